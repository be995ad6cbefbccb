"""The rows that the engine's functions answer with, and what is sent back. The wire contract of a worker.

The gateway builds rows, the context reads claims, the executor makes outcomes, the exchange sends them. JSON columns
stay the text they came as until somebody reads them: a no-op step never pays for parsing its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """One row that the engine answers with, columns in its order; those after `fence` are set for claims only."""

    kind: str  # stale, claim, summary
    step_id: int
    fence: int
    task_uuid: str
    step_uuid: str
    namespace: str
    template_name: str
    template_version: str
    step_name: str
    step_type: str  # of the template: standard, decision, deferred_convergence, batchable, batch_worker
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
    results_left: Sequence[str] | None = None  # steps whose results did not fit the call, to be fetched before the run
    condition: str | None = None  # the step's `when`, in CEL
    result_schema: str | None = None  # JSON text of a JSON Schema
    dependents: Sequence[str] | None = None  # the steps that a decision may choose; None for other types
    batch: str | None = None  # JSON text: how a batchable step is to divide; None for other types
    checkpoint: str | None = None  # JSON text: what an earlier attempt has saved
    ready_left: int | None = None  # of the summary row only, as is the next
    tasks_finished: int | None = None


DECISION = "decision"
"""The type of steps whose handlers choose which of their dependents run."""


BATCHABLE = "batchable"
"""The type of steps whose handlers divide their work among workers."""


class OutcomeKind(StrEnum):
    COMPLETE = "complete"  # the handler returned
    DECIDE = "decide"  # the handler of a decision chose
    DIVIDE = "divide"  # the handler of a batchable step divided its work: settled by a call of its own
    SKIP = "skip"  # the step's `when` was false: its handler was not called, the attempt is given back
    FAIL = "fail"
    RELEASE = "release"  # it goes back unrun, the attempt is given back


class Batches(NamedTuple):
    """The workers that a batchable step asks for. The lists are parallel, in the order of the workers."""

    ids: list[str]
    starts: list[int | None]  # of integer cursors, as is the next; None for others
    ends: list[int | None]  # exclusive
    inputs: list[str]  # JSON texts
    is_no_op: bool  # there is nothing to do, and the one worker stands for that

    @property
    def characters(self) -> int:
        """About how much of a call they take."""
        return sum(map(len, self.inputs))


class Outcome(NamedTuple):
    """What became of an attempt, ready to be sent. What an outcome's kind has no use for is None."""

    kind: OutcomeKind
    result: str | None = None  # JSON text
    metadata: str | None = None  # JSON text
    branches: str | None = None  # of a decision: the names of the chosen steps, joined with commas
    error_type: str | None = None  # of a failure, as are those below
    message: str | None = None
    traceback: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None
    batches: Batches | None = None  # of a batchable step that divided

    @property
    def characters(self) -> int:
        """About how much of a call it takes."""
        result, metadata, message, trace = self.result, self.metadata, self.message, self.traceback
        return len(result or "") + len(metadata or "") + len(message or "") + len(trace or "")

    @property
    def succeeded(self) -> bool:
        """Whether a handler has come to its result."""
        kind = self.kind
        return kind is OutcomeKind.COMPLETE or kind is OutcomeKind.DECIDE or kind is OutcomeKind.DIVIDE


class Settlement(NamedTuple):
    """An outcome with the claim it settles."""

    step_id: int
    fence: int
    outcome: Outcome


class Answer(NamedTuple):
    """What one call of the engine came back with."""

    stale: frozenset[int]  # fences that are not current, of which this call recorded nothing; all others are settled
    claims: list[Claim]
    ready_left: int  # steps that became ready and were not handed to this worker
    tasks_finished: int


RELEASE = Outcome(OutcomeKind.RELEASE)
SKIP = Outcome(OutcomeKind.SKIP)
