"""The state machines as values: what is final stays, what is passed is passed, and every state can be reached."""

from __future__ import annotations

import pytest

from tasker.model.transitions import (
    FINAL_STEP_STATES,
    FINAL_TASK_STATES,
    PASSING_STEP_STATES,
    PASSING_TASK_STATES,
    STEP_JUMPS,
    STEP_TRANSITIONS,
    TASK_JUMPS,
    TASK_TRANSITIONS,
    StepState,
    TaskState,
    Transition,
    legal_jumps,
)


def test_there_are_twelve_states_of_tasks_and_eleven_of_steps() -> None:
    assert (len(TaskState), len(StepState)) == (12, 11)
    assert (len(FINAL_TASK_STATES), len(FINAL_STEP_STATES)) == (4, 4)


def test_a_step_leaves_a_final_state_only_to_where_it_began_when_somebody_has_the_run_go_again() -> None:
    leaving = {(move.event, move.target) for move in STEP_TRANSITIONS if move.source in FINAL_STEP_STATES}
    assert leaving == {("rerun", "pending"), ("revive", "pending")}
    assert {move.source for move in STEP_TRANSITIONS if move.event == "revive"} == {"cancelled"}


def test_a_task_leaves_a_final_state_only_when_somebody_takes_it_up() -> None:
    leaving = {(move.source, move.event) for move in TASK_TRANSITIONS if move.source in FINAL_TASK_STATES}
    assert leaving == {
        ("error", "rerun"),
        ("error", "step_resolved"),
        ("error", "manual_resolution"),
        ("complete", "rerun"),
        ("cancelled", "rerun"),
    }


@pytest.mark.parametrize(("moves", "states"), [(TASK_TRANSITIONS, TaskState), (STEP_TRANSITIONS, StepState)])
def test_every_state_is_reached_from_pending_and_only_known_ones_are_named(
    moves: frozenset[Transition], states: type[TaskState] | type[StepState]
) -> None:
    reached = {"pending"}
    while True:
        more = reached | {move.target for move in moves if move.source in reached}
        if more == reached:
            break
        reached = more
    assert reached == {str(state) for state in states}
    assert {move.source for move in moves} <= reached


@pytest.mark.parametrize("moves", [TASK_TRANSITIONS, STEP_TRANSITIONS])
def test_a_state_and_an_event_lead_to_one_state(moves: frozenset[Transition]) -> None:
    assert len({(move.source, move.event) for move in moves}) == len(moves)


def test_jumps_are_single_hops_and_paths_through_passing_states() -> None:
    moves = {Transition("a", "go", "b"), Transition("b", "go", "c"), Transition("c", "go", "d")}
    assert legal_jumps(moves, ["b"]) == {("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")}
    round_trip = {Transition("a", "go", "b"), Transition("b", "back", "a")}
    assert legal_jumps(round_trip, ["b"]) == {("a", "b"), ("b", "a")}


def test_jumps_that_runs_make_are_legal_and_others_are_not() -> None:
    assert {
        ("pending", "steps_in_process"),
        ("steps_in_process", "complete"),
        ("steps_in_process", "error"),
        ("waiting_for_retry", "steps_in_process"),
        ("waiting_for_retry", "cancelled"),
    } <= TASK_JUMPS
    assert {("in_progress", "complete"), ("in_progress", "waiting_for_retry"), ("pending", "in_progress")} <= STEP_JUMPS
    assert not {target for start, target in TASK_JUMPS if start == "resolved_manually"}
    assert ("complete", "pending") not in TASK_JUMPS and ("cancelled", "initializing") not in TASK_JUMPS
    assert ("pending", "waiting_for_retry") not in STEP_JUMPS and ("complete", "in_progress") not in STEP_JUMPS
    assert {target for start, target in STEP_JUMPS if start in FINAL_STEP_STATES} == {"pending"}


def test_what_is_passed_is_not_final() -> None:
    assert not PASSING_TASK_STATES & FINAL_TASK_STATES
    assert not PASSING_STEP_STATES & FINAL_STEP_STATES
