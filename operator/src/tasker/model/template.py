"""Templates: from what a person wrote to a checked value, and its content hash.

`parse_template_spec` is the one gate: the operator, the command line and the tests all come through it. Faults name the
path as written, like ``spec.steps[3].dependsOn[0]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, TypeVar, assert_never

import semver
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from tasker.errors import InvalidTemplate
from tasker.model import batches, limits
from tasker.model.batches import FailureStrategy
from tasker.model.conditions import condition_fault
from tasker.model.graph import find_cycle
from tasker.model.identity import IdentityStrategy
from tasker.model.retry import Backoff
from tasker.model.schemas import SchemaEnforcement, check_schema
from tasker.model.validation import first_fault
from tasker.settings import ENVIRONMENTS

EVERY_STEP = "ALL"
"""In an environment, in place of a step's name; no step can be called so."""

STEP_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")

TimeoutSeconds = Annotated[int, Field(ge=1, le=604_800)]
"""Up to a week."""

Description = Annotated[str, Field(max_length=4096)]
"""Words for people; no part of the revision."""

TtlSeconds = Annotated[int, Field(ge=0, le=2_147_483_647)]
"""How long a finished Task resource is kept."""

VersionText = Annotated[str, Field(min_length=1, max_length=64)]
"""A semantic version; that it is one is checked with the whole template."""


_Model = TypeVar("_Model", bound=BaseModel)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_camel, populate_by_name=True)


class RetrySpec(_Spec):
    """When and how often a failed step is tried again."""

    retryable: bool = True
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    backoff: Annotated[Backoff, Field(strict=False)] = Backoff.EXPONENTIAL
    base_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_000
    max_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 30_000
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.1

    @property
    def effective_attempts(self) -> int:
        """How often the step may start: once when it is not retryable."""
        return self.max_attempts if self.retryable else 1


class HandlerSpec(_Spec):
    """Which code runs a step."""

    callable: Annotated[str, Field(min_length=1, max_length=253)]
    method: Annotated[str, Field(min_length=1, max_length=63)] = "call"
    resolver: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    initialization: dict[str, Any] = Field(default_factory=dict)


class HandlerDefaultsSpec(_Spec):
    """What handlers share."""

    initialization: dict[str, Any] = Field(default_factory=dict)


class DefaultsSpec(_Spec):
    """What steps get that do not say otherwise; only used to check what was written before it is merged."""

    retry: RetrySpec = RetrySpec()
    timeout_seconds: TimeoutSeconds = 300
    handler: HandlerDefaultsSpec = HandlerDefaultsSpec()


class OverrideSpec(DefaultsSpec):
    """What one environment says of a step, or of every step. Only what was written counts."""


class EnvironmentsSpec(RootModel[dict[str, dict[str, OverrideSpec]]]):
    """By environment, and in it by step or `EVERY_STEP`."""

    model_config = ConfigDict(frozen=True, strict=True, json_schema_extra={"maxProperties": len(ENVIRONMENTS)})


class FailureRule(StrEnum):
    """What becomes of a run that only a person can help: steps failed for good, and nothing else can go on."""

    FAIL = "fail"
    BLOCK = "block"
    """It waits for a person."""


class StalenessAction(StrEnum):
    """What happens when nothing has happened in a run for too long."""

    DLQ = "dlq"
    """It has a dead letter, and goes on."""
    ERROR = "error"
    """It ends in error."""
    NONE = "none"
    """Its status and history tell."""


LimitSeconds = Annotated[int, Field(ge=1, le=limits.DEADLINE_SECONDS)]


class LifecycleSpec(_Spec):
    """How long runs may take and wait; None is for ever."""

    max_duration_seconds: LimitSeconds | None = None
    max_blocked_seconds: LimitSeconds | None = None
    max_waiting_for_worker_seconds: LimitSeconds | None = None
    max_waiting_for_dependencies_seconds: LimitSeconds | None = None
    max_waiting_for_retry_seconds: LimitSeconds | None = None
    max_steps_in_process_seconds: LimitSeconds | None = None
    staleness_action: Annotated[StalenessAction, Field(strict=False)] = StalenessAction.DLQ


class StepType(StrEnum):
    """How a step stands to branches: whether it chooses between them, and whether it runs when some were skipped."""

    STANDARD = "standard"
    """Runs when all that it depends on is complete; skipped when any of it was."""
    DECISION = "decision"
    """A standard step whose outcome names those of its direct dependents that run; the others are skipped."""
    DEFERRED_CONVERGENCE = "deferred_convergence"
    """Runs when each step that it depends on is complete or was skipped; skipped only when all were."""
    BATCHABLE = "batchable"
    """A standard step whose outcome divides the work: for each part there is a worker."""
    BATCH_WORKER = "batch_worker"
    """What each worker of the one batchable step does that it depends on. Complete when all of them have ended."""


class BatchSpec(_Spec):
    """How a batchable step's work is divided. Its handler keeps to it; the engine to `parallelism`, `failure_strategy`.

    `worker_template` may be left out where just one batch_worker depends on the step. Without `parallelism` all workers
    may run at once.
    """

    batch_size: Annotated[int, Field(ge=1, le=2_147_483_647)] = 1_000
    parallelism: Annotated[int, Field(ge=1, le=batches.MAXIMUM)] | None = None
    cursor_field: Annotated[str, Field(min_length=1, max_length=253)] = "id"
    worker_template: Annotated[str, Field(min_length=1, max_length=limits.NAME_LENGTH)] | None = None
    failure_strategy: Annotated[FailureStrategy, Field(strict=False)] = FailureStrategy.CONTINUE_ON_FAILURE


class StepSpec(_Spec):
    """One node of the graph. `when` is CEL over `CONDITION_VARIABLES`: where it is false the step is skipped."""

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_LENGTH)]
    type: Annotated[StepType, Field(strict=False)] = StepType.STANDARD
    description: Description = ""
    handler: HandlerSpec
    depends_on: tuple[str, ...] = Field(default=(), strict=False)
    when: Annotated[str, Field(min_length=1, max_length=limits.CONDITION_LENGTH)] | None = None
    retry: RetrySpec = RetrySpec()
    timeout_seconds: TimeoutSeconds = 300
    schedule_timeout_seconds: TimeoutSeconds | None = None
    result_schema: dict[str, Any] | None = None
    """JSON Schema, Draft 2020-12, of the result that is recorded."""
    batch: BatchSpec | None = None


class _Part(_Spec):
    @property
    def says_something(self) -> bool:
        """Whether anything differs from the defaults."""
        return self != type(self)()


class IdentitySpec(_Part):
    """When a second run is a duplicate of one before it: for `window_seconds`, or while that one's row is there."""

    strategy: Annotated[IdentityStrategy, Field(strict=False)] = IdentityStrategy.ALWAYS_UNIQUE
    window_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None


class ConcurrencySpec(_Part):
    """How many runs of the template, whatever their revision, are under way at one time; the others wait."""

    max_tasks: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class TemplateSpec(_Spec):
    """A checked template: names are unique, what steps depend on exists, there is no cycle."""

    version: VersionText = "1.0.0"
    description: Description = ""
    steps: tuple[StepSpec, ...] = Field(min_length=1, max_length=limits.STEPS_PER_TASK, strict=False)
    on_failure: Annotated[FailureRule, Field(strict=False)] = FailureRule.FAIL
    lifecycle: LifecycleSpec = LifecycleSpec()
    ttl_seconds_after_finished: TtlSeconds | None = None
    identity: IdentitySpec = IdentitySpec()
    concurrency: ConcurrencySpec = ConcurrencySpec()
    input_schema: dict[str, Any] | None = None
    """JSON Schema, Draft 2020-12, of the context of a run."""
    schema_enforcement: Annotated[SchemaEnforcement, Field(strict=False)] = SchemaEnforcement.ENFORCE

    @cached_property
    def revision(self) -> str:
        """The content hash: the first 16 hexadecimal digits of SHA-256 over the canonical JSON of what runs."""
        content = self.model_dump(
            mode="json",
            exclude={"description": True, "ttl_seconds_after_finished": True, "steps": {"__all__": {"description"}}},
        )
        # A part that says nothing is left out: so it could be added without making every template a new revision.
        for name in ("identity", "concurrency"):
            if not getattr(self, name).says_something:
                del content[name]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def dependency_positions(self) -> list[list[int]]:
        """For each step, by position, the positions of the steps it depends on."""
        positions = {step.name: position for position, step in enumerate(self.steps)}
        return [[positions[name] for name in step.depends_on] for step in self.steps]

    @cached_property
    def worker_positions(self) -> dict[int, int]:
        """For each batchable step, by position, the position of its batch_worker."""
        return {
            parent: position
            for position, parents in enumerate(self.dependency_positions)
            if self.steps[position].type is StepType.BATCH_WORKER
            for parent in parents
        }


def parse_template_spec(spec: Mapping[str, Any], *, environment: str | None = None) -> TemplateSpec:
    """Checks a TaskTemplate's ``spec`` (camelCase keys, as written) and returns it as it is run in `environment`.

    ``defaults`` are merged under each step, and what ``environments`` say of this one over it; None is none of them.
    Raises `InvalidTemplate` with the path and reason of the first fault, in whichever environment it is.
    """
    if not isinstance(spec, Mapping):
        raise InvalidTemplate("spec", "must be an object")
    written = dict(spec)
    environments = _read_environments(written.pop("environments", None))
    template = _validated(TemplateSpec, _with_defaults(written), "spec")
    _check_version(template)
    _check_identity(template.identity)
    _check_lifecycle(template)
    _check_steps(template)
    _check_schemas(template)
    chosen = template
    for name, overrides in environments.items():
        overridden = _in_environment(template, name, overrides)
        if name == environment:
            chosen = overridden
    return chosen


def _validated(model: type[_Model], written: object, path: str) -> _Model:
    try:
        return model.model_validate(written, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidTemplate(*first_fault(error, path)) from error


def _with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with ``defaults`` put under each step; the step's own words win."""
    merged = dict(spec)
    defaults = merged.pop("defaults", None)
    if defaults is None:
        return merged
    _validated(DefaultsSpec, defaults, "spec.defaults")
    steps = merged.get("steps")
    if isinstance(steps, (list, tuple)):
        merged["steps"] = [_step_with_defaults(step, defaults) if isinstance(step, Mapping) else step for step in steps]
    return merged


def _step_with_defaults(step: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in defaults.items() if key == "timeoutSeconds"} | dict(step)
    _merge(merged, "retry", defaults.get("retry", {}))
    if isinstance(merged.get("handler"), Mapping):
        merged["handler"] = dict(merged["handler"])
        _merge(merged["handler"], "initialization", defaults.get("handler", {}).get("initialization", {}))
    return merged


def _merge(into: dict[str, Any], key: str, shared: Mapping[str, Any]) -> None:
    """Puts `shared` under an object that was written, or in place of one that was not; leaves what is no object."""
    own = into.get(key, {})
    if shared and isinstance(own, Mapping):
        into[key] = {**shared, **own}


def _read_environments(written: object) -> Mapping[str, Mapping[str, OverrideSpec]]:
    if written is None:
        return {}
    for name in written if isinstance(written, Mapping) else ():
        if name not in ENVIRONMENTS:
            raise InvalidTemplate(f"spec.environments.{name}", f"must be one of {', '.join(ENVIRONMENTS)}")
    return _validated(EnvironmentsSpec, written, "spec.environments").root


def _in_environment(template: TemplateSpec, environment: str, overrides: Mapping[str, OverrideSpec]) -> TemplateSpec:
    """The template with what an environment says put over each step: first of every step, then of this one."""
    names = {EVERY_STEP, *(step.name for step in template.steps)}
    for name, override in overrides.items():
        path = f"spec.environments.{environment}.{name}"
        if name not in names:
            raise InvalidTemplate(path, f"unknown step {name!r}")
        fault = limits.json_fault(override.handler.initialization, f"{path}.handler.initialization")
        if fault is not None:
            raise InvalidTemplate(*fault)
    steps = []
    for step in template.steps:
        overridden = step
        for name in (EVERY_STEP, step.name):
            overridden = _overridden(overridden, overrides[name]) if name in overrides else overridden
        retry = overridden.retry
        if retry.max_ms < retry.base_ms:
            own = overrides.get(step.name, OverrideSpec()).retry.model_fields_set
            name = EVERY_STEP if own.isdisjoint({"base_ms", "max_ms"}) else step.name
            raise InvalidTemplate(
                f"spec.environments.{environment}.{name}.retry",
                f"makes maxMs {retry.max_ms} less than baseMs {retry.base_ms} for step {step.name!r}",
            )
        steps.append(overridden)
    return template.model_copy(update={"steps": tuple(steps)})


def _overridden(step: StepSpec, override: OverrideSpec) -> StepSpec:
    initialization = {**step.handler.initialization, **override.handler.initialization}
    return step.model_copy(
        update={
            "retry": step.retry.model_copy(update=override.retry.model_dump(exclude_unset=True)),
            "handler": step.handler.model_copy(update={"initialization": initialization}),
            "timeout_seconds": override.timeout_seconds
            if "timeout_seconds" in override.model_fields_set
            else step.timeout_seconds,
        }
    )


def _check_version(template: TemplateSpec) -> None:
    if not semver.Version.is_valid(template.version):
        raise InvalidTemplate("spec.version", f"{template.version!r} is not a semantic version like 1.0.0")


def _check_identity(identity: IdentitySpec) -> None:
    if identity.window_seconds is not None and identity.strategy is IdentityStrategy.ALWAYS_UNIQUE:
        raise InvalidTemplate("spec.identity.windowSeconds", "needs a strategy other than alwaysUnique")


def _check_lifecycle(template: TemplateSpec) -> None:
    if template.lifecycle.max_blocked_seconds is not None and template.on_failure is not FailureRule.BLOCK:
        raise InvalidTemplate("spec.lifecycle.maxBlockedSeconds", "needs onFailure: block, else no run is ever blocked")


def _check_schemas(template: TemplateSpec) -> None:
    """Also of those that are not enforced: they may be tomorrow."""
    if template.input_schema is not None:
        check_schema(template.input_schema, "spec.inputSchema")
    for position, step in enumerate(template.steps):
        if step.result_schema is not None:
            check_schema(step.result_schema, f"spec.steps[{position}].resultSchema")


def _check_steps(template: TemplateSpec) -> None:
    fault = limits.json_fault(template.description, "spec.description")
    if fault is not None:
        raise InvalidTemplate(*fault)
    first_seen: dict[str, int] = {}
    for position, step in enumerate(template.steps):
        path = f"spec.steps[{position}]"
        if not STEP_NAME.fullmatch(step.name):
            raise InvalidTemplate(
                f"{path}.name",
                f"{step.name!r} must be lower-case letters, digits, '-' or '_', with a letter or digit at both ends",
            )
        if step.name in first_seen:
            raise InvalidTemplate(
                f"{path}.name", f"duplicate step name {step.name!r} (first at spec.steps[{first_seen[step.name]}])"
            )
        first_seen[step.name] = position
        fault = limits.json_fault(step.handler.initialization, f"{path}.handler.initialization")
        for field in ("callable", "method", "resolver"):
            fault = fault or limits.json_fault(getattr(step.handler, field), f"{path}.handler.{field}")
        for field in ("description", "when"):
            fault = fault or limits.json_fault(getattr(step, field), f"{path}.{field}")
        if fault is not None:
            raise InvalidTemplate(*fault)
        if step.retry.max_ms < step.retry.base_ms:
            raise InvalidTemplate(
                f"{path}.retry.maxMs", f"{step.retry.max_ms} is less than baseMs {step.retry.base_ms}"
            )
        reason = None if step.when is None else condition_fault(step.when)
        if reason is not None:
            raise InvalidTemplate(f"{path}.when", reason)
    for position, step in enumerate(template.steps):
        named: set[str] = set()
        for place, name in enumerate(step.depends_on):
            path = f"spec.steps[{position}].dependsOn[{place}]"
            if name == step.name:
                raise InvalidTemplate(path, f"step {step.name!r} depends on itself")
            if name not in first_seen:
                raise InvalidTemplate(path, f"unknown step {name!r}")
            if name in named:
                raise InvalidTemplate(path, f"{name!r} is named twice")
            named.add(name)
    cycle = find_cycle(template.dependency_positions)
    if cycle is not None:
        names = " → ".join(template.steps[position].name for position in cycle)
        raise InvalidTemplate("spec.steps", f"dependencies form a cycle: {names}")
    _check_types(template)


def _check_types(template: TemplateSpec) -> None:
    depended_on = {name for step in template.steps for name in step.depends_on}
    for position, step in enumerate(template.steps):
        match step.type:
            case StepType.STANDARD:
                pass
            case StepType.DECISION:
                if step.name not in depended_on:
                    raise InvalidTemplate(
                        f"spec.steps[{position}].type",
                        f"a decision needs steps to choose from, and none depends on {step.name!r}",
                    )
            case StepType.DEFERRED_CONVERGENCE:
                if not step.depends_on:
                    raise InvalidTemplate(
                        f"spec.steps[{position}].dependsOn", "must not be empty: a deferred_convergence joins branches"
                    )
            case StepType.BATCHABLE:
                _check_batchable(template, position)
            case StepType.BATCH_WORKER:
                _check_batch_worker(template, position)
            case _:
                assert_never(step.type)
        if step.batch is not None and step.type is not StepType.BATCHABLE:
            raise InvalidTemplate(f"spec.steps[{position}].batch", f"is for batchable steps, and this is {step.type}")


def _check_batchable(template: TemplateSpec, position: int) -> None:
    name, path = template.steps[position].name, f"spec.steps[{position}]"
    workers = [step.name for step in template.steps if step.type is StepType.BATCH_WORKER and name in step.depends_on]
    if not workers:
        raise InvalidTemplate(
            f"{path}.type", f"a batchable step needs a batch_worker that depends on it: {name!r} has none"
        )
    if len(workers) > 1:
        raise InvalidTemplate(
            f"{path}.type", f"a batchable step has one batch_worker, and {', '.join(workers)} depend on {name!r}"
        )
    batch = template.steps[position].batch
    if batch is not None and batch.worker_template not in (None, workers[0]):
        raise InvalidTemplate(
            f"{path}.batch.workerTemplate", f"{batch.worker_template!r} is not the batch_worker {workers[0]!r}"
        )


def _check_batch_worker(template: TemplateSpec, position: int) -> None:
    step, path = template.steps[position], f"spec.steps[{position}]"
    parents = [template.steps[parent] for parent in template.dependency_positions[position]]
    if len(parents) != 1 or parents[0].type is not StepType.BATCHABLE:
        raise InvalidTemplate(f"{path}.dependsOn", "a batch_worker depends on one step, which is batchable")
    if len(step.name) > batches.NAME_LENGTH:
        raise InvalidTemplate(
            f"{path}.name",
            f"has {len(step.name)} characters; a batch_worker has {batches.NAME_LENGTH} at most, for numbers follow",
        )
