"""The rows that the engine's functions answer with, and what is sent back. The wire contract of a worker.

The gateway builds rows, the context reads claims, the executor makes outcomes, the exchange sends them. JSON columns
stay the text they came as until somebody reads them: a no-op step never pays for parsing its context.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """One row of `tasker.worker_row`, columns in its order; those after `fence` are set for claims only."""

    kind: str  # settled, stale, claim, summary
    step_id: int
    fence: int
    task_uuid: str
    step_uuid: str
    namespace: str
    template_name: str
    template_version: str
    step_name: str
    callable: str
    method: str
    resolver: str | None
    attempt: int  # 1 is the first
    max_attempts: int
    timeout_ms: int
    deadline: datetime | None  # the task's
    correlation_id: str
    ready_at: datetime | None
    configuration: str | dict[str, Any]  # JSON text until parsed, as are the next three
    inputs: str | dict[str, Any]
    context: str | dict[str, Any]
    dependency_results: str | dict[str, Any]
    ready_left: int | None = None  # of the summary row only, as is the next
    tasks_finished: int | None = None


class OutcomeKind(StrEnum):
    SUCCESS = "success"
    ERROR = "error"
    RELEASE = "release"


class Outcome(NamedTuple):
    """What became of an attempt, ready to be sent: `payload` is JSON text, None for a release."""

    kind: OutcomeKind
    payload: str | None
    error_type: str | None = None  # of an error, as is the next: what the payload says, for logs and metrics
    message: str | None = None


class Settlement(NamedTuple):
    """An outcome with the claim it settles."""

    step_id: int
    fence: int
    outcome: Outcome


class Answer(NamedTuple):
    """What one call of the engine came back with."""

    settled: frozenset[int]  # fences recorded by this very call
    claims: list[Claim]
    ready_left: int  # steps that became ready and were not handed to this worker
    tasks_finished: int


RELEASE = Outcome(OutcomeKind.RELEASE, None)
