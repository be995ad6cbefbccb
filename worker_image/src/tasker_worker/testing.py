"""Testing handlers without a worker or a database.

    result = run_handler(validate_cart, make_context(task_context={"cart_items": [...]}))
    assert result.result["total"] == 10.8

    run = LocalRunner(template, modules=["shop.handlers"]).run({"cart_items": [...]})
    assert run.state == "complete"

`LocalRunner` runs a whole template in memory: its order, its decisions, conditions and result schemas, its batches
with their failure strategies and checkpoints, its retries with the waits between them on a clock of its own, and faults
that a test puts in. Of a batch, one worker runs after the other, whatever `parallelism` says.
"""

from __future__ import annotations

import asyncio
import graphlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from . import outcomes
from .batch_pages import Row
from .batch_results import OUTCOME
from .claims import BATCHABLE, DECISION, Claim, Outcome
from .conditions import judge
from .context import StepContext
from .cursors import worker_step_name
from .errors import ConfigurationError, ErrorType, RetryableError, WhenError
from .jsontext import encode
from .logging import bound_to
from .registry import HandlerRegistry, Invocation
from .result import StepResult
from .types import Checkpoint

_BATCH_WORKER = "batch_worker"
_RESULTS_OF_A_BATCH = 100  # that a step is given with its claim; `batch_results` has all
_RESULTS_OF_ALL_ANCESTORS = 100  # a step with more of them is given its direct parents' results only
_RETRY_AFTER_CAP_SECONDS = 3600.0


class _MemoryHost:
    """Does for a handler what a worker does, as far as a test can see it."""

    def __init__(self, batch_results: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows = {
            node: [(place, name, encode(result)) for place, (name, result) in enumerate(results.items(), 1)]
            for node, results in batch_results.items()
        }

    def heartbeat(self, detail: object) -> None:
        """Nobody looks."""

    def save_checkpoint(self, checkpoint: str) -> None:
        """The context remembers it."""

    def read_batch_results(self, node: str, after: int, limit: int) -> list[Row]:
        if node not in self._rows:
            raise ConfigurationError(f"there is no batch_worker {node!r} before this step")
        return [row for row in self._rows[node] if row[0] > after][:limit]

    async def read_batch_results_async(self, node: str, after: int, limit: int) -> list[Row]:
        return self.read_batch_results(node, after, limit)


def make_context(
    *,
    step_name: str = "step",
    step_type: str | None = None,
    dependents: Iterable[str] | None = None,
    result_schema: Mapping[str, Any] | bool | None = None,
    batch: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    batch_results: Mapping[str, Mapping[str, Any]] | None = None,
    task_context: Mapping[str, Any] | None = None,
    step_inputs: Mapping[str, Any] | None = None,
    step_config: Mapping[str, Any] | None = None,
    dependency_results: Mapping[str, Any] | None = None,
    attempt: int = 1,
    max_attempts: int = 3,
    timeout_seconds: float = 300,
    deadline: datetime | None = None,
    task_uuid: str | None = None,
    step_uuid: str | None = None,
    correlation_id: str = "test",
    namespace: str = "default",
    template_name: str = "template",
    template_version: str = "1.0.0",
    callable_name: str | None = None,
    method: str = "call",
) -> StepContext:
    """A context as a worker would give. The mappings go through JSON, as they do on their way to a worker.

    `dependents` are the steps that a decision may choose; with them, `step_type` is ``decision`` unless said, with
    `batch` ``batchable``, else ``standard``. `result_schema` is the JSON Schema that the result is held to.

    `batch` says how a batchable step is to divide (see `StepContext.batch_config`), with defaults for what it leaves
    out; `batch_results` are the results of batches' workers by the name of their node and by their own; `checkpoint` is
    what an earlier attempt saved, and what this one saves is `checkpoint` of the context from then on.
    """
    if step_type is None:
        step_type = "standard" if batch is None else BATCHABLE
        step_type = step_type if dependents is None else DECISION
    return StepContext(
        Claim(
            kind="claim",
            step_id=1,
            fence=1,
            task_uuid=task_uuid or str(uuid4()),
            step_uuid=step_uuid or str(uuid4()),
            namespace=namespace,
            template_name=template_name,
            template_version=template_version,
            step_name=step_name,
            step_type=step_type,
            callable=callable_name or step_name,
            method=method,
            resolver=None,
            attempt=attempt,
            max_attempts=max_attempts,
            timeout_ms=round(timeout_seconds * 1000),
            deadline=deadline,
            correlation_id=correlation_id,
            ready_at=None,
            configuration=encode(step_config or {}),
            inputs=encode(step_inputs or {}),
            context=encode(task_context or {}),
            dependency_results=encode(dependency_results or {}),
            result_schema=None if result_schema is None else encode(result_schema),
            dependents=None if dependents is None else list(dependents),
            batch=None if batch is None else encode({**_BATCH_DEFAULTS, **batch}),
            checkpoint=None if checkpoint is None else encode(checkpoint),
        ),
        _MemoryHost(batch_results or {}),
    )


_BATCH_DEFAULTS = {
    "batch_size": 1000,
    "parallelism": None,
    "cursor_field": "id",
    "worker_template": None,
    "failure_strategy": "continue_on_failure",
}


def run_handler(handler: Any, context: StepContext | None = None, *, method: str = "call") -> StepResult:
    """One attempt of a handler: a function, a StepHandler class or an instance.

    Returns what the engine would be told: a refused result or an exception is a failure here too, the result of a
    decision is what is recorded of it, and that of a batchable step has its cursors too. Not for use inside a running
    event loop; there, await `run_handler_async`.
    """
    return asyncio.run(run_handler_async(handler, context, method=method))


async def run_handler_async(handler: Any, context: StepContext | None = None, *, method: str = "call") -> StepResult:
    """`run_handler` for use inside an event loop."""
    registry = HandlerRegistry()
    registry.register("handler", handler)
    return _result_of(await _attempt(registry, context or make_context(), "handler", method, None))


async def _attempt(
    registry: HandlerRegistry, context: StepContext, name: str, method: str, resolver: str | None
) -> Outcome:
    try:
        invocation = registry.invocation(name, method, resolver)
    except ConfigurationError as error:
        return outcomes.from_exception(error)
    context.begin()
    with bound_to(context):
        if not invocation.is_async:
            return await asyncio.to_thread(_call, invocation, context)
        try:
            value = invocation.run(context)
            value = await value if inspect.isawaitable(value) else value
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return outcomes.from_exception(error)
        except BaseException as error:
            return outcomes.from_exception(error)
        return _outcome_of(context, value)


def _outcome_of(context: StepContext, value: Any) -> Outcome:
    return outcomes.checked(context._claim, outcomes.from_value(context._claim, value))


def _call(invocation: Invocation, context: StepContext) -> Outcome:
    try:
        return _outcome_of(context, invocation.run(context))
    except BaseException as error:
        return outcomes.from_exception(error)


def _result_of(outcome: Outcome) -> StepResult:
    metadata = None if outcome.metadata is None else json.loads(outcome.metadata)
    if outcome.batches is not None:
        result = json.loads(outcome.result or "")
        if not outcome.batches.is_no_op:
            result[OUTCOME]["cursor_configs"] = [json.loads(inputs)["cursor"] for inputs in outcome.batches.inputs]
        return StepResult.succeed(result, metadata)
    if outcome.succeeded:
        return StepResult.succeed(json.loads(outcome.result or "null"), metadata)
    return StepResult.fail(
        outcome.message or "",
        outcome.error_type or ErrorType.HANDLER_ERROR,
        outcome.retryable,
        metadata,
        retry_after=None if outcome.retry_after_ms is None else outcome.retry_after_ms / 1000,
    )


class LocalClock:
    """Seconds since the run began, moved by hand or by the runner; nothing ever waits for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalAttempt:
    """One execution of a step."""

    step: str
    attempt: int
    at: float
    """The clock's time."""
    result: StepResult


@dataclass(kw_only=True)
class _Step:
    """A step of the template, or a worker of a batch, and how far its run is."""

    name: str
    spec: Mapping[str, Any]
    parents: tuple[str, ...]
    max_attempts: int
    attempts: int = 0
    state: str = "pending"  # pending, waiting_for_retry, complete, skipped, error, cancelled
    due: float = 0.0
    chosen: frozenset[str] = frozenset()  # by a decision that is complete
    node: str | None = None  # of a batch's worker: the step of the template that it is made from
    inputs: Mapping[str, Any] = field(default_factory=dict)  # of a batch's worker
    checkpoint: Checkpoint | None = None

    @property
    def type(self) -> str:
        return str(self.spec.get("type", "standard"))

    @property
    def stands_for_workers(self) -> bool:
        """Whether it never runs itself: it is complete when all workers that are made from it have ended."""
        return self.type == _BATCH_WORKER and self.node is None


@dataclass(kw_only=True)
class LocalRun:
    """A run of a template in memory."""

    state: str = "running"
    """running, waiting_for_retry, complete or error."""
    results: dict[str, Any] = field(default_factory=dict)
    """By step, of those that are complete; workers of batches by their own names, as `process_csv_001`."""
    attempts: list[LocalAttempt] = field(default_factory=list)
    """In the order in which they were made."""
    skipped: list[str] = field(default_factory=list)
    """Steps that do not run: not chosen, their `when` false, or what they depend on skipped; in that order."""

    @property
    def failures(self) -> list[LocalAttempt]:
        return [attempt for attempt in self.attempts if not attempt.result.success]

    def attempts_of(self, step: str) -> int:
        return sum(attempt.step == step for attempt in self.attempts)


class LocalRunner:
    """Runs templates in memory with the handlers of a registry, of modules, or both.

    `template` is the spec of a TaskTemplate, or the whole resource, as a mapping. Jitter is left out, so that a run is
    the same every time. Timeouts are not measured; put them in with `time_out`.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        registry: HandlerRegistry | None = None,
        *,
        modules: Iterable[str] = (),
        clock: LocalClock | None = None,
    ) -> None:
        self.registry = registry if registry is not None else HandlerRegistry()
        for module in modules:
            self.registry.discover(module)
        self.clock = clock or LocalClock()
        self._spec = template.get("spec", template)
        self._order = _ordered(self._spec)
        self._faults: dict[str, list[Outcome]] = {}

    def fail(self, step: str, *, times: int = 1, error: BaseException | None = None) -> None:
        """Have the next attempts of a step fail with `error` (a RetryableError) before its handler is called.

        A worker of a batch has a name of its own, here as for the functions below: `process_csv_001`.
        """
        self._add_fault(step, outcomes.from_exception(error or RetryableError("put in by the test")), times)

    def time_out(self, step: str, *, times: int = 1) -> None:
        """Have the next attempts of a step exceed their timeout."""
        seconds = self._merged(step, "timeoutSeconds", 300)
        self._add_fault(step, outcomes.timeout(step, round(seconds * 1000)), times)

    def crash(self, step: str, *, times: int = 1) -> None:
        """Have the worker die in the next attempts of a step: each counts, and the step is tried again at once."""
        lost = outcomes.failure("worker_crash_loop", "the worker was lost", retryable=True, retry_after=0)
        self._add_fault(step, lost, times)

    def run(self, context: Mapping[str, Any] | None = None) -> LocalRun:
        """Run to the end, moving the clock to each retry. Not for use inside a running event loop; see `run_async`."""
        return asyncio.run(self.run_async(context))

    async def run_async(self, context: Mapping[str, Any] | None = None) -> LocalRun:
        """`run` for use inside an event loop."""
        run = self.start(context)
        await run.run_ready()
        while run.state == "waiting_for_retry":
            self.clock.now = max(self.clock.now, run.next_due)
            await run.run_ready()
        return run

    def start(self, context: Mapping[str, Any] | None = None) -> SteppedRun:
        """A run that goes on only when told to: `await run.run_ready()`, then move `clock`, and again."""
        return SteppedRun(runner=self, context=dict(context or {}), steps=self._fresh_steps())

    def _fresh_steps(self) -> dict[str, _Step]:
        steps = {}
        for name, spec in self._order.items():
            retry = {**self._spec.get("defaults", {}).get("retry", {}), **spec.get("retry", {})}
            steps[name] = _Step(
                name=name,
                spec={**spec, "retry": retry},
                parents=tuple(spec.get("dependsOn", ())),
                max_attempts=retry.get("maxAttempts", 3) if retry.get("retryable", True) else 1,
            )
        return steps

    def _merged(self, step: str, key: str, default: Any) -> Any:
        spec = self._find(step)
        return spec.get(key, self._spec.get("defaults", {}).get(key, default))

    def _find(self, step: str) -> Mapping[str, Any]:
        """What the template says of a step, or of a worker of a batch."""
        node, _, number = step.rpartition("_")
        for name in (step, node) if len(number) >= 3 and number.isdecimal() else (step,):
            spec = self._order.get(name)
            if spec is not None and (name == step) is not (spec.get("type") == _BATCH_WORKER):
                return spec
        raise ConfigurationError(f"the template has no step {step!r}")

    def _add_fault(self, step: str, outcome: Outcome, times: int) -> None:
        self._find(step)
        self._faults.setdefault(step, []).extend([outcome] * times)

    async def attempt(
        self,
        step: _Step,
        context: Mapping[str, Any],
        results: Mapping[str, Any],
        batch_results: Mapping[str, Mapping[str, Any]],
    ) -> Outcome | None:
        """One attempt of a step, or the fault that stands in for it; None when its `when` is false."""
        condition = step.spec.get("when")
        if condition is not None and step.attempts == 1:
            try:
                if not await asyncio.to_thread(judge, step.name, condition, encode(context), encode(results)):
                    return None
            except WhenError as error:
                return outcomes.from_exception(error)
        faults = self._faults.get(step.name)
        if faults:
            return faults.pop(0)
        handler = step.spec["handler"]
        defaults = self._spec.get("defaults", {}).get("handler", {}).get("initialization", {})
        made = make_context(
            step_name=step.name,
            step_type=step.type,
            dependents=self._dependents(step) if step.type == DECISION else None,
            result_schema=step.spec.get("resultSchema"),
            batch=self.batch_of(step) if step.type == BATCHABLE else None,
            checkpoint=step.checkpoint,
            batch_results=batch_results,
            task_context=context,
            step_inputs=step.inputs,
            step_config={**defaults, **handler.get("initialization", {})},
            dependency_results=results,
            attempt=step.attempts,
            max_attempts=step.max_attempts,
            timeout_seconds=self._merged(step.name, "timeoutSeconds", 300),
        )
        method, resolver = handler.get("method", "call"), handler.get("resolver")
        outcome = await _attempt(self.registry, made, handler["callable"], method, resolver)
        step.checkpoint = made.checkpoint
        return outcome

    def batch_of(self, step: _Step) -> dict[str, Any]:
        """What the handler of a batchable step is told."""
        batch = step.spec.get("batch", {})
        [worker] = [name for name in self._dependents(step) if self._order[name].get("type") == _BATCH_WORKER]
        return {
            "batch_size": batch.get("batchSize", _BATCH_DEFAULTS["batch_size"]),
            "parallelism": batch.get("parallelism"),
            "cursor_field": batch.get("cursorField", _BATCH_DEFAULTS["cursor_field"]),
            "worker_template": worker,
            "failure_strategy": batch.get("failureStrategy", _BATCH_DEFAULTS["failure_strategy"]),
        }

    def _dependents(self, step: _Step) -> list[str]:
        return [name for name, spec in self._order.items() if step.name in spec.get("dependsOn", ())]


@dataclass(kw_only=True)
class SteppedRun(LocalRun):
    """A run in progress."""

    runner: LocalRunner = field(repr=False)
    context: dict[str, Any]
    steps: dict[str, _Step] = field(repr=False)

    @property
    def next_due(self) -> float:
        """The clock's time at which the next retry is due; only while waiting for one."""
        return min(step.due for step in self.steps.values() if step.state == "waiting_for_retry")

    async def run_ready(self) -> int:
        """Run every step that may run at the clock's time, and those that become ready by that; how many ran."""
        made = 0
        while True:
            self._skip_void()
            ready = [step for step in self.steps.values() if self._is_ready(step)]
            if not ready:
                break
            for step in ready:
                if self._is_ready(step):  # another worker of its batch may have failed since
                    made += await self._run(step)
        states = {step.state for step in self.steps.values() if not self._is_tolerated(step)}
        if states <= {"complete", "skipped"}:
            self.state = "complete"
        else:
            self.state = "waiting_for_retry" if "waiting_for_retry" in states else "error"
        return made

    def _edges(self, step: _Step) -> set[str]:
        """What the steps before it are to a step: open, satisfied, or void (skipped, or a decision for others)."""
        return {self._edge(self.steps[parent], step) for parent in step.parents}

    def _edge(self, parent: _Step, step: _Step) -> str:
        if parent.state == "skipped":
            return "void"
        if parent.state != "complete":
            return "open"
        return "satisfied" if parent.type != DECISION or step.name in parent.chosen else "void"

    def _skip_void(self) -> None:
        """Skip what can not run any more; the steps come in the order in which they depend on each other."""
        for step in self.steps.values():
            if step.state != "pending":
                continue
            edges = self._edges(step)
            if "open" not in edges and "void" in edges:
                if step.type == "deferred_convergence" and "satisfied" in edges:
                    continue
                self._skip(step)

    def _skip(self, step: _Step) -> None:
        step.state = "skipped"
        if not step.stands_for_workers:
            self.skipped.append(step.name)

    def _is_ready(self, step: _Step) -> bool:
        if step.state == "waiting_for_retry":
            return step.due <= self.runner.clock.now
        return step.state == "pending" and not step.stands_for_workers and "open" not in self._edges(step)

    # batches

    def _workers(self, node: str) -> list[_Step]:
        return [step for step in self.steps.values() if step.node == node]

    def _strategy(self, worker: _Step) -> str:
        return str(self.runner.batch_of(self.steps[worker.parents[0]])["failure_strategy"])

    def _is_tolerated(self, step: _Step) -> bool:
        """Whether the run can be complete although this step has failed."""
        return step.state == "error" and step.node is not None and self._strategy(step) != "fail_fast"

    def _create_workers(self, batchable: _Step, outcome: Outcome) -> None:
        batches = outcome.batches
        assert batches is not None
        node = self.steps[self.runner.batch_of(batchable)["worker_template"]]
        for number, inputs in enumerate(batches.inputs, 0 if batches.is_no_op else 1):
            name = worker_step_name(node.name, number)
            self.steps[name] = _Step(
                name=name,
                spec=node.spec,
                parents=node.parents,
                max_attempts=node.max_attempts,
                node=node.name,
                inputs=json.loads(inputs),
            )

    def _after_worker(self, worker: _Step) -> None:
        """A worker of a batch has ended: so may have the batch, or the others, by its failure."""
        assert worker.node is not None
        others = [each for each in self._workers(worker.node) if each.state in ("pending", "waiting_for_retry")]
        if worker.state == "error" and self._strategy(worker) == "fail_fast":
            for each in others:
                each.state = "cancelled"
            self.steps[worker.node].state = "error"
        elif not others and self.steps[worker.node].state == "pending":
            self.steps[worker.node].state = "complete"

    async def _run(self, step: _Step) -> bool:
        """Make an attempt at a step; False when its `when` was false, and there was none."""
        step.attempts += 1
        ancestors = _ancestors(self.steps, step)
        names = ancestors if len(ancestors) <= _RESULTS_OF_ALL_ANCESTORS else set(step.parents)
        results = {name: self.results[name] for name in names if name in self.results}
        batch_results = {
            name: {each.name: self.results[each.name] for each in self._workers(name) if each.name in self.results}
            for name in sorted(ancestors)
            if self.steps[name].stands_for_workers
        }
        for each in batch_results.values():
            results |= dict(list(each.items())[:_RESULTS_OF_A_BATCH])
        outcome = await self.runner.attempt(step, self.context, results, batch_results)
        if outcome is None:
            step.attempts -= 1
            self._skip(step)
            if step.node is not None:
                self._after_worker(step)
            return False
        result = _result_of(outcome)
        now = self.runner.clock.now
        self.attempts.append(LocalAttempt(step=step.name, attempt=step.attempts, at=now, result=result))
        if result.success:
            step.state = "complete"
            self.results[step.name] = json.loads(outcome.result or "null")
            if outcome.batches is not None:
                self._create_workers(step, outcome)
            if step.type == DECISION:
                step.chosen = frozenset(result.result["decision"].get("step_names", ()))
        elif result.retryable and step.attempts < step.max_attempts:
            step.state = "waiting_for_retry"
            step.due = now + _retry_delay(step.spec["retry"], step.attempts, result.retry_after)
        else:
            step.state = "error"
        if step.node is not None and step.state != "waiting_for_retry":
            self._after_worker(step)
        return True


def _ancestors(steps: Mapping[str, _Step], step: _Step) -> set[str]:
    found: set[str] = set()
    to_see = list(step.parents)
    while to_see:
        name = to_see.pop()
        if name not in found:
            found.add(name)
            to_see.extend(steps[name].parents)
    return found


def _retry_delay(retry: Mapping[str, Any], failures: int, retry_after: float | None) -> float:
    """Seconds to wait after the n-th failure, as the engine counts them, without jitter."""
    if retry_after is not None:
        return min(retry_after, _RETRY_AFTER_CAP_SECONDS)
    match retry.get("backoff", "exponential"):
        case "none":
            factor = 0.0
        case "linear":
            factor = float(failures)
        case "exponential":
            factor = 2.0 ** (failures - 1)
        case "fibonacci":
            before, factor = 0.0, 1.0
            for _ in range(failures - 1):
                before, factor = factor, before + factor
        case other:
            raise ConfigurationError(f"there is no backoff {other!r}")
    return min(float(retry.get("maxMs", 30_000)), float(retry.get("baseMs", 1000)) * factor) / 1000


def _ordered(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The steps by name, each after all it depends on; ConfigurationError when that cannot be."""
    steps: dict[str, Mapping[str, Any]] = {}
    for step in spec.get("steps", ()):
        if step["name"] in steps:
            raise ConfigurationError(f"two steps of the template are named {step['name']!r}")
        steps[step["name"]] = step
    if not steps:
        raise ConfigurationError("the template has no steps")
    for name, step in steps.items():
        for parent in step.get("dependsOn", ()):
            if parent not in steps:
                raise ConfigurationError(f"step {name!r} depends on {parent!r}, which the template does not have")
        if step.get("type") == BATCHABLE:
            workers = [each for each in steps.values() if each.get("type") == _BATCH_WORKER]
            if sum(name in each.get("dependsOn", ()) for each in workers) != 1:
                raise ConfigurationError(f"step {name!r} is batchable: just one batch_worker depends on it")
        if step.get("type") == _BATCH_WORKER:
            parents = step.get("dependsOn", ())
            if len(parents) != 1 or steps[parents[0]].get("type") != BATCHABLE:
                raise ConfigurationError(f"step {name!r} is a batch_worker: it depends on one step, which is batchable")
    try:
        order = graphlib.TopologicalSorter(
            {name: step.get("dependsOn", ()) for name, step in steps.items()}
        ).static_order()
        return {name: steps[name] for name in order}
    except graphlib.CycleError as error:
        raise ConfigurationError(f"the steps depend on each other: {' → '.join(error.args[1])}") from error
