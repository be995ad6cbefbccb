"""Templates: from what a person wrote to a checked value, and its content hash.

`parse_template_spec` is the one gate: the operator, the command line and the tests all come through it. Faults name the
path as written, like ``spec.steps[3].dependsOn[0]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, TypeVar

import semver
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasker.errors import InvalidTemplate
from tasker.model import limits
from tasker.model.graph import find_cycle
from tasker.model.retry import Backoff
from tasker.model.schemas import SchemaEnforcement, check_schema
from tasker.model.validation import first_fault

STEP_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")

TimeoutSeconds = Annotated[int, Field(ge=1, le=604_800)]
"""Up to a week."""

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


class StepSpec(_Spec):
    """One node of the graph."""

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_LENGTH)]
    handler: HandlerSpec
    depends_on: tuple[str, ...] = Field(default=(), strict=False)
    retry: RetrySpec = RetrySpec()
    timeout_seconds: TimeoutSeconds = 300
    schedule_timeout_seconds: TimeoutSeconds | None = None
    result_schema: dict[str, Any] | None = None
    """JSON Schema, Draft 2020-12, of the result that is recorded."""


class TemplateSpec(_Spec):
    """A checked template: names are unique, what steps depend on exists, there is no cycle."""

    version: VersionText = "1.0.0"
    description: Annotated[str, Field(max_length=4096)] = ""
    steps: tuple[StepSpec, ...] = Field(min_length=1, max_length=limits.STEPS_PER_TASK, strict=False)
    ttl_seconds_after_finished: TtlSeconds | None = None
    input_schema: dict[str, Any] | None = None
    """JSON Schema, Draft 2020-12, of the context of a run."""
    schema_enforcement: Annotated[SchemaEnforcement, Field(strict=False)] = SchemaEnforcement.ENFORCE

    @cached_property
    def revision(self) -> str:
        """The content hash: the first 16 hexadecimal digits of SHA-256 over the canonical JSON of what runs."""
        content = self.model_dump(mode="json", exclude={"description", "ttl_seconds_after_finished"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def dependency_positions(self) -> list[list[int]]:
        """For each step, by position, the positions of the steps it depends on."""
        positions = {step.name: position for position, step in enumerate(self.steps)}
        return [[positions[name] for name in step.depends_on] for step in self.steps]


def parse_template_spec(spec: Mapping[str, Any]) -> TemplateSpec:
    """Checks a TaskTemplate's ``spec`` (camelCase keys, as written) and returns it with ``defaults`` merged in.

    Raises `InvalidTemplate` with the path and reason of the first fault.
    """
    if not isinstance(spec, Mapping):
        raise InvalidTemplate("spec", "must be an object")
    template = _validated(TemplateSpec, _with_defaults(spec), "spec")
    _check_version(template)
    _check_steps(template)
    _check_schemas(template)
    return template


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


def _check_version(template: TemplateSpec) -> None:
    if not semver.Version.is_valid(template.version):
        raise InvalidTemplate("spec.version", f"{template.version!r} is not a semantic version like 1.0.0")


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
        if fault is not None:
            raise InvalidTemplate(*fault)
        if step.retry.max_ms < step.retry.base_ms:
            raise InvalidTemplate(
                f"{path}.retry.maxMs", f"{step.retry.max_ms} is less than baseMs {step.retry.base_ms}"
            )
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
