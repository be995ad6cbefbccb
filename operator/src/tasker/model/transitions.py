"""The two state machines, tasks and steps: states, events, and the moves that exist.

Called by the engine to explain, and by tests that hold this module, the SQL in ``engine/sql/schema.sql`` and the page
``operator/STATES.md`` against each other. The database enforces the same tables without any Python.

Some states are only ever passed through inside one transaction. A row then jumps over them, while the transition log
shows every hop; `legal_jumps` gives the pairs (state before, state after) that a row may therefore show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class TaskState(StrEnum):
    """Where a run is. The last four are final."""

    PENDING = "pending"
    INITIALIZING = "initializing"
    ENQUEUING_STEPS = "enqueuing_steps"
    STEPS_IN_PROCESS = "steps_in_process"
    EVALUATING_RESULTS = "evaluating_results"
    WAITING_FOR_DEPENDENCIES = "waiting_for_dependencies"
    WAITING_FOR_RETRY = "waiting_for_retry"
    BLOCKED_BY_FAILURES = "blocked_by_failures"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELLED = "cancelled"
    RESOLVED_MANUALLY = "resolved_manually"


class StepState(StrEnum):
    """Where a step of a run is. The last three are final."""

    PENDING = "pending"
    ENQUEUED = "enqueued"
    IN_PROGRESS = "in_progress"
    ENQUEUED_FOR_ORCHESTRATION = "enqueued_for_orchestration"
    ENQUEUED_AS_ERROR_FOR_ORCHESTRATION = "enqueued_as_error_for_orchestration"
    WAITING_FOR_RETRY = "waiting_for_retry"
    ERROR = "error"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    RESOLVED_MANUALLY = "resolved_manually"


FINAL_TASK_STATES = frozenset({TaskState.COMPLETE, TaskState.ERROR, TaskState.CANCELLED, TaskState.RESOLVED_MANUALLY})
FINAL_STEP_STATES = frozenset({StepState.COMPLETE, StepState.CANCELLED, StepState.RESOLVED_MANUALLY})
SATISFYING_STEP_STATES = frozenset({StepState.COMPLETE, StepState.RESOLVED_MANUALLY})
"""A dependent may start once all it depends on are in one of these."""

PASSING_TASK_STATES = frozenset(
    {
        TaskState.INITIALIZING,
        TaskState.ENQUEUING_STEPS,
        TaskState.EVALUATING_RESULTS,
        TaskState.BLOCKED_BY_FAILURES,  # passed at once when the template grants no grace
    }
)
PASSING_STEP_STATES = frozenset(
    {StepState.ENQUEUED, StepState.ENQUEUED_FOR_ORCHESTRATION, StepState.ENQUEUED_AS_ERROR_FOR_ORCHESTRATION}
)


@dataclass(frozen=True, order=True)
class Transition:
    """One move: the state before, what happened, the state after. Values are the names stored in the database."""

    source: str
    event: str
    target: str


def _from_each(sources: Iterable[StrEnum], event: str, target: StrEnum) -> list[Transition]:
    return [Transition(str(source), event, str(target)) for source in sources]


_OPEN_TASK_STATES = [state for state in TaskState if state not in FINAL_TASK_STATES]
_OPEN_STEP_STATES = [state for state in StepState if state not in FINAL_STEP_STATES]

TASK_TRANSITIONS: frozenset[Transition] = frozenset(
    [
        Transition("pending", "start", "initializing"),
        Transition("initializing", "ready_steps_found", "enqueuing_steps"),
        Transition("initializing", "no_steps_found", "complete"),
        Transition("initializing", "no_dependencies_ready", "waiting_for_dependencies"),
        Transition("enqueuing_steps", "steps_enqueued", "steps_in_process"),
        Transition("enqueuing_steps", "enqueue_failed", "error"),
        Transition("steps_in_process", "step_settled", "evaluating_results"),
        Transition("evaluating_results", "all_steps_successful", "complete"),
        Transition("evaluating_results", "ready_steps_found", "enqueuing_steps"),
        Transition("evaluating_results", "steps_running", "steps_in_process"),
        Transition("evaluating_results", "retry_pending", "waiting_for_retry"),
        Transition("evaluating_results", "no_dependencies_ready", "waiting_for_dependencies"),
        Transition("evaluating_results", "permanent_failure", "blocked_by_failures"),
        Transition("waiting_for_dependencies", "dependencies_ready", "evaluating_results"),
        Transition("waiting_for_retry", "retry_ready", "enqueuing_steps"),
        Transition("blocked_by_failures", "give_up", "error"),
        Transition("blocked_by_failures", "step_resolved", "evaluating_results"),
        Transition("error", "rerun", "evaluating_results"),
        Transition("error", "step_resolved", "evaluating_results"),
        *_from_each([*_OPEN_TASK_STATES, TaskState.ERROR], "manual_resolution", TaskState.RESOLVED_MANUALLY),
        *_from_each(_OPEN_TASK_STATES, "cancel", TaskState.CANCELLED),
    ]
)

STEP_TRANSITIONS: frozenset[Transition] = frozenset(
    [
        Transition("pending", "enqueue", "enqueued"),
        Transition("enqueued", "start", "in_progress"),
        Transition("in_progress", "submit_result", "enqueued_for_orchestration"),
        Transition("in_progress", "submit_error", "enqueued_as_error_for_orchestration"),
        Transition("in_progress", "lease_expired", "waiting_for_retry"),
        Transition("in_progress", "released", "enqueued"),
        Transition("enqueued_for_orchestration", "complete", "complete"),
        Transition("enqueued_for_orchestration", "fail", "error"),
        Transition("enqueued_as_error_for_orchestration", "wait_for_retry", "waiting_for_retry"),
        Transition("enqueued_as_error_for_orchestration", "fail", "error"),
        Transition("waiting_for_retry", "retry", "enqueued"),
        Transition("error", "reset_for_retry", "enqueued"),
        *_from_each(_OPEN_STEP_STATES, "cancel", StepState.CANCELLED),
        *_from_each(_OPEN_STEP_STATES, "resolve_manually", StepState.RESOLVED_MANUALLY),
        *_from_each(_OPEN_STEP_STATES, "complete_manually", StepState.COMPLETE),
    ]
)


def legal_jumps(transitions: Iterable[Transition], passing: Iterable[str]) -> frozenset[tuple[str, str]]:
    """All (before, after) pairs that one transaction may make of a row: one hop, or several through passing states.

    A path that comes back to where it began is no jump: the row does not change.
    """
    through = {str(state) for state in passing}
    hops: dict[str, set[str]] = {}
    for transition in transitions:
        hops.setdefault(transition.source, set()).add(transition.target)
    jumps: set[tuple[str, str]] = set()
    for start in hops:
        reached: set[str] = set()
        frontier = set(hops[start])
        while frontier:
            state = frontier.pop()
            if state in reached:
                continue
            reached.add(state)
            if state in through:
                frontier |= hops.get(state, set())
        jumps |= {(start, state) for state in reached if state != start}
    return frozenset(jumps)


TASK_JUMPS = legal_jumps(TASK_TRANSITIONS, PASSING_TASK_STATES)
STEP_JUMPS = legal_jumps(STEP_TRANSITIONS, PASSING_STEP_STATES)
