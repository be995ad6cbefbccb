"""Requests for runs, and what can be read of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from tasker.errors import DuplicateTask, InvalidContext, InvalidTask
from tasker.model import limits
from tasker.model.transitions import FINAL_TASK_STATES, TaskState
from tasker.model.validation import json_type
from tasker.model.workers import UnofferedCallable

IDEMPOTENCY_KEY_LENGTH = 255
"""Characters, as of the other words that a request carries."""


class Hold(StrEnum):
    """Who holds a run back. Each is set and taken back by its own; a run goes on when none is left."""

    RESOURCE = "resource"
    """``spec.suspend`` of the resource that asked for it."""

    PERSON = "person"


CANCELLED_BY_RESOURCE = "spec.cancel was set"
"""Why a run was cancelled by the resource that asked for it. That is final, as the resource says."""


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """One run to create. `origin_uid` is the uid of the resource that asks; a uid gets at most one run."""

    template_name: str
    template_version: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    idempotency_key: str | None = None
    """Tells runs apart where the template's identity is callerProvided, and is refused where it is not."""
    correlation_id: str | None = None
    parent_correlation_id: str | None = None
    initiator: str | None = None
    source_system: str | None = None
    reason: str | None = None
    tags: tuple[str, ...] = ()
    suspended: bool = False
    deadline_seconds: float | None = None
    origin_uid: str | None = None
    origin_name: str | None = None

    def check(self) -> None:
        """Raises `InvalidTask` with path and reason when the request cannot be accepted."""
        if not isinstance(self.context, dict):
            raise InvalidTask("spec.context", f"must be an object, not {json_type(self.context)}")
        fault = limits.json_fault(self.context, "spec.context")
        if fault is not None:
            raise InvalidTask(*fault)
        size = limits.json_size(self.context)
        if size > limits.CONTEXT_BYTES:
            raise InvalidTask("spec.context", f"is {size} bytes; at most {limits.CONTEXT_BYTES} are allowed")
        if not -100 <= self.priority <= 100:
            raise InvalidTask("spec.priority", f"{self.priority} is not between -100 and 100")
        if self.deadline_seconds is not None and not 0 < self.deadline_seconds <= limits.DEADLINE_SECONDS:
            raise InvalidTask("spec.deadlineSeconds", f"must be more than 0 and at most {limits.DEADLINE_SECONDS}")
        if self.idempotency_key is not None and not 1 <= len(self.idempotency_key) <= IDEMPOTENCY_KEY_LENGTH:
            raise InvalidTask("spec.idempotencyKey", f"must have 1 to {IDEMPOTENCY_KEY_LENGTH} characters")
        for name, value in self._texts():
            fault = limits.json_fault(value, f"spec.{name}")
            if fault is not None:
                raise InvalidTask(*fault)

    def _texts(self) -> list[tuple[str, object]]:
        return [
            ("templateRef.name", self.template_name),
            ("templateRef.version", self.template_version),
            ("idempotencyKey", self.idempotency_key),
            ("correlationId", self.correlation_id),
            ("parentCorrelationId", self.parent_correlation_id),
            ("initiator", self.initiator),
            ("sourceSystem", self.source_system),
            ("reason", self.reason),
            ("tags", self.tags),
        ]

    def as_row(self) -> dict[str, Any]:
        """The request as the database function takes it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SubmittedTask:
    """`created` is False when the request's origin had a run already; `task_uuid` is that run's then.

    It is False too for a `duplicate`, which got no run: `task_uuid` and `origin_name` are of the run that it is one of.
    """

    task_uuid: UUID
    created: bool
    context_fault: InvalidContext | None = None
    """What the context lacks of an inputSchema whose template only warns; of a run that was created now."""
    duplicate: bool = False
    origin_name: str | None = None
    """The name of the resource that asked for the run; None when none did, or the run's row is gone."""

    @property
    def refusal(self) -> DuplicateTask | None:
        """The error to raise where a duplicate is one."""
        return DuplicateTask(self.task_uuid, self.origin_name) if self.duplicate else None


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """How many steps of a run are where. `ready` waits for a worker, `waiting` for a retry.

    `complete` counts those that a person resolved, too; `skipped` those that a condition or a decision left out.
    """

    total: int
    pending: int
    ready: int
    running: int
    waiting: int
    complete: int
    failed: int
    skipped: int = 0
    cancelled: int

    @property
    def done(self) -> int:
        """Steps that the run needs nothing more of."""
        return self.complete + self.skipped


@dataclass(frozen=True, kw_only=True)
class StepFailure:
    """One failed attempt. `message` is at most 1,024 characters; `final` when the step is not tried again."""

    step: str
    attempt: int
    error_type: str
    message: str
    final: bool
    at: str


@dataclass(frozen=True, kw_only=True)
class WaitingForPlace:
    """How many runs of the template may be under way (None: no longer limited), and how many are."""

    max_tasks: int | None
    taken: int


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """A run in a bounded size, whatever its graph: what a resource's status or a list shows.

    `failures` are the newest 20. `leaf_results` are the results of the steps nothing depends on, when the run is
    complete and together they are small enough; else `leaf_results_truncated` is True.
    """

    namespace: str
    task_uuid: UUID
    origin_uid: str | None
    origin_name: str | None
    template_name: str
    template_version: str
    revision: str
    state: TaskState
    holds: frozenset[Hold]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    counts: StepCounts
    failures: tuple[StepFailure, ...]
    leaf_results: dict[str, Any] | None
    leaf_results_truncated: bool
    error: dict[str, Any] | None
    waiting_for_place: WaitingForPlace | None = None
    """Of a run that is pending."""
    waiting_for_worker: tuple[UnofferedCallable, ...] = ()
    """Callables that its ready steps wait for and no live worker offers, oldest first, at most 20."""
    stale: str | None = None
    """In one line, for how long nothing has happened, when that is longer than its template allows."""

    @property
    def suspended(self) -> bool:
        """Whether anybody holds it back."""
        return bool(self.holds)

    @property
    def finished(self) -> bool:
        """Whether the run has ended, one way or the other."""
        return self.state in FINAL_TASK_STATES


@dataclass(frozen=True, kw_only=True)
class OpenOrigin:
    """A resource whose run has not ended."""

    namespace: str
    name: str
    uid: str
    task_uuid: UUID


@dataclass(frozen=True, kw_only=True)
class TemplateCounts:
    """Runs of a template by how they stand."""

    running: int
    waiting: int
    complete: int
    error: int


@dataclass(frozen=True, kw_only=True)
class RegisteredTemplate:
    """A stored revision. `created` is False when the same revision was there already."""

    template_id: int
    revision: str
    created: bool
