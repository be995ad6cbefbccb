"""A Task's status: bounded whatever the run, and conditions that kubectl wait and kstatus understand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasker.controller.kube.conditions import find
from tasker.controller.kube.resources.task import FINAL_PHASES, TaskStatus
from tasker.controller.kube.status_writer import status_operations
from tasker.controller.tasks.status import (
    PHASES,
    RESULT_LIMIT_BYTES,
    STATUS_LIMIT_BYTES,
    build_status,
    cancelled_before_start_status,
    size_in_bytes,
    waiting_status,
)
from tasker.model.task import StepCounts, StepFailure, TaskSummary
from tasker.model.transitions import FINAL_TASK_STATES, TaskState

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def summary(state: TaskState = TaskState.STEPS_IN_PROCESS, **changes: Any) -> TaskSummary:
    fields: dict[str, Any] = {
        "namespace": "default",
        "task_uuid": UUID(int=7),
        "origin_uid": "u",
        "origin_name": "t",
        "template_name": "order",
        "template_version": "1.0.0",
        "revision": "0123456789abcdef",
        "state": state,
        "suspended": False,
        "created_at": NOW - timedelta(seconds=9),
        "started_at": NOW - timedelta(seconds=8),
        "completed_at": NOW if state in FINAL_TASK_STATES else None,
        "counts": StepCounts(total=4, pending=1, ready=0, running=1, waiting=0, complete=2, failed=0, cancelled=0),
        "failures": (),
        "leaf_results": None,
        "leaf_results_truncated": False,
        "error": None,
    }
    return TaskSummary(**fields | changes)


def status_of(run: TaskSummary, previous: dict[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
    return build_status(run, previous=TaskStatus.model_validate(previous or {}), generation=3, now=now)


def truth(status: dict[str, Any], condition: str) -> tuple[str, str]:
    found = find(status, condition)
    assert found is not None
    return found["status"], found["reason"]


failures = st.lists(
    st.builds(
        StepFailure,
        step=st.text(min_size=1, max_size=63),
        attempt=st.integers(1, 100),
        error_type=st.text(max_size=300),
        message=st.text(max_size=3000) | st.just("<" * 3000) | st.just("\N{SNOWMAN}" * 3000),
        final=st.booleans(),
        at=st.just("2031-05-06T07:08:09.123456+00:00"),
    ),
    max_size=30,
).map(tuple)


@settings(deadline=None)
@given(
    state=st.sampled_from(TaskState),
    failures=failures,
    results=st.none() | st.dictionaries(st.text(max_size=63), st.text(max_size=3000) | st.integers(), max_size=30),
    error=st.none() | st.fixed_dictionaries({"reason": st.text(max_size=99), "message": st.text(max_size=5000)}),
)
def test_no_status_is_larger_than_its_limit(
    state: TaskState,
    failures: tuple[StepFailure, ...],
    results: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> None:
    status = status_of(summary(state, failures=failures, leaf_results=results, error=error))
    assert size_in_bytes(status) < STATUS_LIMIT_BYTES
    assert len(status.get("failures", ())) <= 20
    assert size_in_bytes(status.get("result", {})) <= RESULT_LIMIT_BYTES
    assert all(len(failure["message"]) <= 1024 for failure in status.get("failures", ()))


def test_a_few_long_failures_keep_their_messages_and_very_many_keep_the_newest() -> None:
    def failure(number: int) -> StepFailure:
        return StepFailure(
            step=f"step{number}",
            attempt=1,
            error_type="ValueError",
            message="x" * 2000,
            final=True,
            at="2031-05-06T07:08:09+00:00",
        )

    few = status_of(summary(failures=tuple(failure(number) for number in range(3))))
    assert [len(shown["message"]) for shown in few["failures"]] == [1024] * 3
    many = status_of(summary(failures=tuple(failure(number) for number in range(25))))
    assert [shown["step"] for shown in many["failures"]] == [f"step{number}" for number in range(20)]


def test_small_results_are_shown_and_large_ones_said_to_be_left_out() -> None:
    small = status_of(summary(TaskState.COMPLETE, leaf_results={"ship": {"id": 1}}))
    assert small["result"] == {"ship": {"id": 1}}
    assert "resultTruncated" not in small
    for large in (
        summary(TaskState.COMPLETE, leaf_results={"ship": "x" * 9000}),
        summary(TaskState.COMPLETE, leaf_results_truncated=True),
    ):
        status = status_of(large)
        assert status["resultTruncated"] is True
        assert "result" not in status


def test_every_state_has_a_phase_and_only_final_states_finish() -> None:
    assert set(PHASES) == {str(state) for state in TaskState}
    for state in TaskState:
        assert (PHASES[state] in FINAL_PHASES) == (state in FINAL_TASK_STATES)
        assert TaskStatus.model_validate(status_of(summary(state))).is_finished == (state in FINAL_TASK_STATES)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TaskState.STEPS_IN_PROCESS, ("True", "False", "Unknown")),
        (TaskState.COMPLETE, ("False", "False", "True")),
        (TaskState.ERROR, ("False", "True", "False")),
        (TaskState.CANCELLED, ("False", "False", "False")),
    ],
)
def test_conditions_say_reconciling_stalled_and_succeeded(state: TaskState, expected: tuple[str, str, str]) -> None:
    status = status_of(summary(state))
    assert truth(status, "Accepted") == ("True", "Submitted")
    assert tuple(truth(status, name)[0] for name in ("Reconciling", "Stalled", "Succeeded")) == expected


def test_a_condition_keeps_its_transition_time_until_its_status_changes() -> None:
    first = status_of(summary())
    later = NOW + timedelta(seconds=30)
    second = status_of(summary(), previous=first, now=later)
    assert [shown["lastTransitionTime"] for shown in second["conditions"]] == ["2031-05-06T07:08:09Z"] * 4
    done = status_of(summary(TaskState.COMPLETE), previous=second, now=later)
    times = {shown["type"]: shown["lastTransitionTime"] for shown in done["conditions"]}
    assert times["Accepted"] == times["Stalled"] == "2031-05-06T07:08:09Z"
    assert times["Reconciling"] == times["Succeeded"] == "2031-05-06T07:08:39Z"


def test_the_same_rows_give_the_same_status_so_that_nothing_is_written() -> None:
    first = status_of(summary())
    assert status_operations(first, status_of(summary(), previous=first, now=NOW + timedelta(hours=1))) == []


def test_a_waiting_task_is_not_accepted_and_a_refused_one_is_stalled() -> None:
    waiting = waiting_status("TemplateNotFound", "none", stalled=False, previous=TaskStatus(), generation=1, now=NOW)
    assert truth(waiting, "Accepted") == ("False", "TemplateNotFound")
    assert truth(waiting, "Stalled")[0] == "False"
    assert truth(waiting, "Succeeded")[0] == "Unknown"
    refused = waiting_status(
        "InvalidContext", "bad", stalled=True, previous=TaskStatus.model_validate(waiting), generation=1, now=NOW
    )
    assert truth(refused, "Stalled") == ("True", "InvalidContext")
    assert truth(refused, "Reconciling")[0] == "False"


def test_a_task_cancelled_before_it_was_accepted_is_finished() -> None:
    status = cancelled_before_start_status(previous=TaskStatus(), generation=1, now=NOW)
    assert TaskStatus.model_validate(status).is_finished
    assert truth(status, "Succeeded") == ("False", "Cancelled")
    again = cancelled_before_start_status(
        previous=TaskStatus.model_validate(status), generation=1, now=NOW + timedelta(seconds=5)
    )
    assert status_operations(status, again) == []
