"""Task: one run of a template, as its CRD has it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tasker.controller.kube.resources.base import Items, KubernetesObject, Name, ResourcePart, ResourceStatus

FINAL_PHASES = frozenset({"Succeeded", "Failed", "Cancelled"})

_Word = Annotated[str, Field(min_length=1, max_length=255)]


class TemplateReference(ResourcePart):
    """Which template a Task runs; no version means the newest that is ready."""

    name: Name
    version: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class TaskSpec(ResourcePart):
    """What to run and with what input."""

    template_ref: TemplateReference
    context: dict[str, Any] = Field(default_factory=dict)
    """Empty in the cache once the Task has been submitted."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    idempotency_key: _Word | None = None
    correlation_id: _Word | None = None
    parent_correlation_id: _Word | None = None
    initiator: _Word | None = None
    source_system: _Word | None = None
    reason: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    tags: Annotated[Items[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=64)] = ()
    suspend: bool = False
    cancel: bool = False
    deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None


class TaskStepCounts(ResourcePart):
    """The run's steps by state."""

    total: int | None = None
    ready: int | None = None
    running: int | None = None
    waiting: int | None = None
    complete: int | None = None
    failed: int | None = None
    skipped: int | None = None
    cancelled: int | None = None


class TaskFailure(ResourcePart):
    """One failed attempt."""

    step: str
    attempt: int
    error_type: str | None = None
    message: str | None = None
    time: str | None = None
    final: bool | None = None


class TaskStatus(ResourceStatus):
    """The summary of a run. `state` and `phase` are texts here: another release may know more of them."""

    state: str | None = None
    phase: str | None = None
    task_uuid: str | None = None
    revision: str | None = None
    progress: str | None = None
    waiting_for: Annotated[str, Field(max_length=256)] | None = None
    steps: TaskStepCounts | None = None
    start_time: str | None = None
    completion_time: str | None = None
    failures: Annotated[Items[TaskFailure], Field(max_length=20)] = ()
    result: dict[str, Any] | None = None
    result_truncated: bool | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self.phase in FINAL_PHASES


class Task(KubernetesObject):
    """One run of a TaskTemplate."""

    spec: TaskSpec
    status: TaskStatus = TaskStatus()

    @property
    def is_settled(self) -> bool:
        """Whether the status already shows the end, for the spec as it is now."""
        return self.status.is_finished and self.status.observed_generation == self.metadata.generation
