"""The two state machines, tasks and steps: states, events, and the moves that exist.

Called by the engine to explain, and by tests that hold this module, the SQL in ``engine/sql/schema.sql`` and the page
``operator/STATES.md`` against each other. The database enforces the same tables without any Python.

Some states are only ever passed through inside one transaction. A row then jumps over them; `legal_jumps` gives the
pairs (state before, state after) that a row may therefore show. What one transaction makes of a row is a *passage*, a
named path of moves: the logs hold one row a passage, and views unfold it into its moves.
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
    """Where a step of a run is. The last four are final."""

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
    SKIPPED = "skipped"


FINAL_TASK_STATES = frozenset({TaskState.COMPLETE, TaskState.ERROR, TaskState.CANCELLED, TaskState.RESOLVED_MANUALLY})
FINAL_STEP_STATES = frozenset({StepState.COMPLETE, StepState.CANCELLED, StepState.RESOLVED_MANUALLY, StepState.SKIPPED})
SATISFYING_STEP_STATES = frozenset({StepState.COMPLETE, StepState.RESOLVED_MANUALLY})
"""What a dependent needs: a standard step of all it depends on, a deferred convergence of one, once all have ended."""

PASSING_TASK_STATES = frozenset(
    {
        TaskState.INITIALIZING,
        TaskState.ENQUEUING_STEPS,
        TaskState.EVALUATING_RESULTS,
        TaskState.BLOCKED_BY_FAILURES,  # passed at once unless the template says onFailure: block
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


@dataclass(frozen=True)
class Passage:
    """A path that a row goes in one transaction: its name in the log, and its moves, each from where the last ended.

    One without a move tells of something that leaves the state as it is: any that is not final, or `state` alone.
    """

    name: str
    moves: tuple[Transition, ...]
    state: str | None = None


def _from_each(sources: Iterable[StrEnum], event: str, target: StrEnum) -> list[Transition]:
    return [Transition(str(source), event, str(target)) for source in sources]


_OPEN_TASK_STATES = [state for state in TaskState if state not in FINAL_TASK_STATES]
_OPEN_STEP_STATES = [state for state in StepState if state not in FINAL_STEP_STATES]
_SKIPPABLE_STEP_STATES = [
    StepState.PENDING,
    StepState.ENQUEUED,
    StepState.IN_PROGRESS,
    StepState.WAITING_FOR_RETRY,
    StepState.ERROR,
]

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
        Transition("error", "step_resolved", "evaluating_results"),
        *_from_each([TaskState.COMPLETE, TaskState.ERROR, TaskState.CANCELLED], "rerun", TaskState.EVALUATING_RESULTS),
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
        *_from_each(_SKIPPABLE_STEP_STATES, "skip", StepState.SKIPPED),
        *_from_each([*sorted(FINAL_STEP_STATES), StepState.ERROR], "rerun", StepState.PENDING),
        Transition("cancelled", "revive", "pending"),
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


def _path(name: str, source: str, *moves: tuple[str, str]) -> Passage:
    """A passage from `source` by moves (event, state after)."""
    sources = [source, *(target for _, target in moves)]
    return Passage(
        name, tuple(Transition(before, event, after) for before, (event, after) in zip(sources, moves, strict=False))
    )


def _each_alone(name: str, transitions: Iterable[Transition], event: str) -> list[Passage]:
    """A passage of one move for each state that an event leads out of, named after that state."""
    return [Passage(f"{name}_{each.source}", (each,)) for each in sorted(transitions) if each.event == event]


_FOUND = (("ready_steps_found", "enqueuing_steps"), ("steps_enqueued", "steps_in_process"))
_SETTLED = ("step_settled", "evaluating_results")
_GIVEN_UP = (("permanent_failure", "blocked_by_failures"), ("give_up", "error"))

TASK_PASSAGES: tuple[Passage, ...] = (
    _path("submitted", "pending", ("start", "initializing"), *_FOUND),
    _path("submitted_empty", "pending", ("start", "initializing"), ("no_steps_found", "complete")),
    _path(
        "submitted_waiting", "pending", ("start", "initializing"), ("no_dependencies_ready", "waiting_for_dependencies")
    ),
    Passage("submitted_pending", (), "pending"),  # it waits for a place among the runs of its template
    _path("admitted", "pending", ("start", "initializing"), *_FOUND),
    _path("moved_on", "steps_in_process", _SETTLED, *_FOUND),
    _path("kept_running", "steps_in_process", _SETTLED, ("steps_running", "steps_in_process")),
    _path("completed", "steps_in_process", _SETTLED, ("all_steps_successful", "complete")),
    _path("left_to_retries", "steps_in_process", _SETTLED, ("retry_pending", "waiting_for_retry")),
    _path("left_waiting", "steps_in_process", _SETTLED, ("no_dependencies_ready", "waiting_for_dependencies")),
    _path("blocked", "steps_in_process", _SETTLED, ("permanent_failure", "blocked_by_failures")),
    _path("failed", "steps_in_process", _SETTLED, *_GIVEN_UP),
    _path("retried", "waiting_for_retry", ("retry_ready", "enqueuing_steps"), ("steps_enqueued", "steps_in_process")),
    _path(
        "failed_pending",
        "pending",
        ("start", "initializing"),
        ("ready_steps_found", "enqueuing_steps"),
        ("enqueue_failed", "error"),
    ),
    _path("failed_retrying", "waiting_for_retry", ("retry_ready", "enqueuing_steps"), ("enqueue_failed", "error")),
    _path("failed_waiting", "waiting_for_dependencies", ("dependencies_ready", "evaluating_results"), *_GIVEN_UP),
    _path("failed_blocked", "blocked_by_failures", ("give_up", "error")),
    _path("freed", "blocked_by_failures", ("step_resolved", "evaluating_results"), *_FOUND),
    _path("taken_up", "error", ("step_resolved", "evaluating_results"), *_FOUND),
    *(
        _path(f"run_again_{state}", state, ("rerun", "evaluating_results"), *_FOUND)
        for state in ("cancelled", "complete", "error")
    ),
    _path("woken", "waiting_for_dependencies", ("dependencies_ready", "evaluating_results"), *_FOUND),
    *_each_alone("cancelled", TASK_TRANSITIONS, "cancel"),
    *_each_alone("resolved", TASK_TRANSITIONS, "manual_resolution"),
    Passage("held", ()),
    Passage("let_go", ()),
    Passage("found_stale", ()),
    Passage("repaired", ()),
)

STEP_BEGINNINGS: tuple[Passage, ...] = (
    _path("claimed", "enqueued", ("start", "in_progress")),
    _path("handed_out", "pending", ("enqueue", "enqueued"), ("start", "in_progress")),
)
"""How an attempt may begin. While it lasts its lease tells of that, and then the passage that ends it does."""

STEP_PASSAGES: tuple[Passage, ...] = (
    _path("queued", "pending", ("enqueue", "enqueued")),
    _path("completed", "in_progress", ("submit_result", "enqueued_for_orchestration"), ("complete", "complete")),
    _path("refused", "in_progress", ("submit_result", "enqueued_for_orchestration"), ("fail", "error")),
    _path("released", "in_progress", ("released", "enqueued")),
    _path("lost", "in_progress", ("lease_expired", "waiting_for_retry")),
    _path(
        "failed_to_retry",
        "in_progress",
        ("submit_error", "enqueued_as_error_for_orchestration"),
        ("wait_for_retry", "waiting_for_retry"),
    ),
    _path("failed", "in_progress", ("submit_error", "enqueued_as_error_for_orchestration"), ("fail", "error")),
    _path("retried", "waiting_for_retry", ("retry", "enqueued")),
    _path("reset", "error", ("reset_for_retry", "enqueued")),
    *_each_alone("cancelled", STEP_TRANSITIONS, "cancel"),
    *_each_alone("resolved", STEP_TRANSITIONS, "resolve_manually"),
    *_each_alone("completed_by_hand", STEP_TRANSITIONS, "complete_manually"),
    *_each_alone("skipped", STEP_TRANSITIONS, "skip"),
    *_each_alone("rerun", STEP_TRANSITIONS, "rerun"),
    *_each_alone("revived", STEP_TRANSITIONS, "revive"),
)
"""Every move is in at least one passage, or in one of the beginnings. The names are stored: one that a released schema
has is never given another meaning."""
