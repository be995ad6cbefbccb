"""Testing handlers without a worker or a database.

    result = run_handler(validate_cart, make_context(task_context={"cart_items": [...]}))
    assert result.result["total"] == 10.8

    run = LocalRunner(template, modules=["shop.handlers"]).run({"cart_items": [...]})
    assert run.state == "complete"

`LocalRunner` runs a whole template in memory: its order, its decisions, conditions and result schemas, its retries with
the waits between them on a clock of its own, and faults that a test puts in.
"""

from __future__ import annotations

import asyncio
import graphlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from . import outcomes
from .claims import DECISION, Claim, Outcome
from .conditions import judge
from .context import StepContext
from .errors import ConfigurationError, ErrorType, RetryableError, WhenError
from .jsontext import encode
from .logging import bound_to
from .registry import HandlerRegistry, Invocation
from .result import StepResult

_RESULTS_OF_ALL_ANCESTORS = 100  # a step with more of them is given its direct parents' results only
_RETRY_AFTER_CAP_SECONDS = 3600.0


def make_context(
    *,
    step_name: str = "step",
    step_type: str | None = None,
    dependents: Iterable[str] | None = None,
    result_schema: Mapping[str, Any] | bool | None = None,
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

    `dependents` are the steps that a decision may choose; with them, `step_type` is ``decision`` unless said, else
    ``standard``. `result_schema` is the JSON Schema that the result is held to.
    """
    if step_type is None:
        step_type = "standard" if dependents is None else DECISION
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
        )
    )


def run_handler(handler: Any, context: StepContext | None = None, *, method: str = "call") -> StepResult:
    """One attempt of a handler: a function, a StepHandler class or an instance.

    Returns what the engine would be told: a refused result or an exception is a failure here too, and the result of a
    decision is what is recorded of it. Not for use inside a running event loop; there, await `run_handler_async`.
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
            value = await invocation.run(context)
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
    """A step of the template and how far its run is."""

    name: str
    spec: Mapping[str, Any]
    parents: tuple[str, ...]
    max_attempts: int
    attempts: int = 0
    state: str = "pending"  # pending, waiting_for_retry, complete, skipped, error
    due: float = 0.0
    chosen: frozenset[str] = frozenset()  # by a decision that is complete

    @property
    def type(self) -> str:
        return str(self.spec.get("type", "standard"))


@dataclass(kw_only=True)
class LocalRun:
    """A run of a template in memory."""

    state: str = "running"
    """running, waiting_for_retry, complete or error."""
    results: dict[str, Any] = field(default_factory=dict)
    """By step, of those that are complete."""
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
        """Have the next attempts of a step fail with `error` (a RetryableError) before its handler is called."""
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
        return self._order[step].get(key, self._spec.get("defaults", {}).get(key, default))

    def _add_fault(self, step: str, outcome: Outcome, times: int) -> None:
        if step not in self._order:
            raise ConfigurationError(f"the template has no step {step!r}")
        self._faults.setdefault(step, []).extend([outcome] * times)

    async def attempt(self, step: _Step, context: Mapping[str, Any], results: Mapping[str, Any]) -> StepResult | None:
        """One attempt of a step, or the fault that stands in for it; None when its `when` is false."""
        condition = step.spec.get("when")
        if condition is not None and step.attempts == 1:
            try:
                if not await asyncio.to_thread(judge, step.name, condition, encode(context), encode(results)):
                    return None
            except WhenError as error:
                return _result_of(outcomes.from_exception(error))
        faults = self._faults.get(step.name)
        if faults:
            return _result_of(faults.pop(0))
        handler = step.spec["handler"]
        defaults = self._spec.get("defaults", {}).get("handler", {}).get("initialization", {})
        made = make_context(
            step_name=step.name,
            step_type=step.type,
            dependents=self._dependents(step) if step.type == DECISION else None,
            result_schema=step.spec.get("resultSchema"),
            task_context=context,
            step_config={**defaults, **handler.get("initialization", {})},
            dependency_results=results,
            attempt=step.attempts,
            max_attempts=step.max_attempts,
            timeout_seconds=self._merged(step.name, "timeoutSeconds", 300),
        )
        method, resolver = handler.get("method", "call"), handler.get("resolver")
        return _result_of(await _attempt(self.registry, made, handler["callable"], method, resolver))

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
                made += await self._run(step)
        states = {step.state for step in self.steps.values()}
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
        self.skipped.append(step.name)

    def _is_ready(self, step: _Step) -> bool:
        if step.state == "waiting_for_retry":
            return step.due <= self.runner.clock.now
        return step.state == "pending" and "open" not in self._edges(step)

    async def _run(self, step: _Step) -> bool:
        """Make an attempt at a step; False when its `when` was false, and there was none."""
        step.attempts += 1
        ancestors = _ancestors(self.steps, step)
        names = ancestors if len(ancestors) <= _RESULTS_OF_ALL_ANCESTORS else set(step.parents)
        results = {name: self.results[name] for name in names if name in self.results}
        result = await self.runner.attempt(step, self.context, results)
        if result is None:
            step.attempts -= 1
            self._skip(step)
            return False
        now = self.runner.clock.now
        self.attempts.append(LocalAttempt(step=step.name, attempt=step.attempts, at=now, result=result))
        if result.success:
            step.state = "complete"
            self.results[step.name] = result.result
            if step.type == DECISION:
                step.chosen = frozenset(result.result["decision"].get("step_names", ()))
        elif result.retryable and step.attempts < step.max_attempts:
            step.state = "waiting_for_retry"
            step.due = now + _retry_delay(step.spec["retry"], step.attempts, result.retry_after)
        else:
            step.state = "error"
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
    try:
        order = graphlib.TopologicalSorter(
            {name: step.get("dependsOn", ()) for name, step in steps.items()}
        ).static_order()
        return {name: steps[name] for name in order}
    except graphlib.CycleError as error:
        raise ConfigurationError(f"the steps depend on each other: {' → '.join(error.args[1])}") from error
