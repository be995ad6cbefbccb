"""A Task's status: bounded whatever the run, and conditions that kubectl wait and kstatus understand."""

from __future__ import annotations

from dataclasses import replace
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
from tasker.model.task import Hold, StepCounts, StepFailure, TaskSummary, WaitingForPlace
from tasker.model.transitions import FINAL_TASK_STATES, TaskState
from tasker.model.workers import UnofferedCallable

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
        "holds": frozenset(),
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
    assert size_in_bytes(status) <= STATUS_LIMIT_BYTES
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
        (TaskState.BLOCKED_BY_FAILURES, ("False", "True", "Unknown")),
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


# In full, as people and their scripts read it.

RUN = "00000000-0000-0000-0000-000000000007"
PROGRESS = "2 of 4 steps are done."
FAILED = StepFailure(
    step="pay", attempt=2, error_type="CardDeclined", message="no funds", final=True, at="2031-05-06T09:08:01.5+02:00"
)


def conditions(status: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(each["type"], each["status"], each["reason"], each["message"]) for each in status["conditions"]]


def reconciling(reason: str, message: str = PROGRESS) -> list[tuple[str, str, str, str]]:
    return [
        ("Reconciling", "True", reason, message),
        ("Stalled", "False", reason, message),
        ("Succeeded", "Unknown", reason, message),
    ]


def settled(reason: str, message: str, stalled: str, succeeded: str) -> list[tuple[str, str, str, str]]:
    return [
        ("Reconciling", "False", reason, message),
        ("Stalled", stalled, reason, message),
        ("Succeeded", succeeded, reason, message),
    ]


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (TaskState.PENDING, {}, reconciling("Pending")),
        (TaskState.STEPS_IN_PROCESS, {}, reconciling("Running")),
        (TaskState.STEPS_IN_PROCESS, {"holds": frozenset({Hold.RESOURCE})}, reconciling("Suspended")),
        (TaskState.WAITING_FOR_RETRY, {}, reconciling("Waiting")),
        (
            TaskState.STEPS_IN_PROCESS,
            {"stale": "nothing has happened for 60 s"},
            reconciling("Stale", f"{PROGRESS} Stale: nothing has happened for 60 s."),
        ),
        (
            TaskState.BLOCKED_BY_FAILURES,
            {"error": {"step": "ship", "error_type": "Timeout", "message": "gone"}, "holds": frozenset({Hold.PERSON})},
            settled(
                "BlockedByFailures",
                "A person, to deal with what failed. Step ship failed: Timeout: gone",
                "True",
                "Unknown",
            ),
        ),
        (
            TaskState.BLOCKED_BY_FAILURES,
            {},
            settled("BlockedByFailures", "A person, to deal with what failed. Steps have failed.", "True", "Unknown"),
        ),
        (TaskState.COMPLETE, {}, settled("Completed", "All 4 steps are done.", "False", "True")),
        (TaskState.RESOLVED_MANUALLY, {}, settled("ResolvedManually", "All 4 steps are done.", "False", "True")),
        (TaskState.ERROR, {}, settled("StepsFailed", "The run ended in error.", "True", "False")),
        (
            TaskState.ERROR,
            {"failures": (FAILED, replace(FAILED, step="ship"))},
            settled("StepsFailed", "Step pay failed: CardDeclined: no funds", "True", "False"),
        ),
        (
            TaskState.ERROR,
            {"failures": (FAILED,), "error": {"message": "too late"}},
            settled("StepsFailed", "too late", "True", "False"),
        ),
        (
            TaskState.ERROR,
            {"error": {"step": "ship", "error_type": "Timeout", "message": "gone"}},
            settled("StepsFailed", "Step ship failed: Timeout: gone", "True", "False"),
        ),
        (
            TaskState.ERROR,
            {"error": {"step": "ship", "message": "gone"}},
            settled("StepsFailed", "Step ship failed: error: gone", "True", "False"),
        ),
        (
            TaskState.ERROR,
            {"error": {"step": "ship", "message": ""}},
            settled("StepsFailed", "The run ended in error.", "True", "False"),
        ),
        (TaskState.CANCELLED, {}, settled("Cancelled", "The run was cancelled.", "False", "False")),
        (
            TaskState.CANCELLED,
            {"error": {"message": "spec.cancel was set"}},
            settled("Cancelled", "spec.cancel was set", "False", "False"),
        ),
    ],
)
def test_the_conditions_of_each_state(
    state: TaskState, changes: dict[str, Any], expected: list[tuple[str, str, str, str]]
) -> None:
    accepted = ("Accepted", "True", "Submitted", f"Run {RUN}.")
    assert conditions(status_of(summary(state, **changes))) == [accepted, *expected]


def test_the_whole_status_of_a_run() -> None:
    counts = StepCounts(
        total=37, pending=8, ready=1, running=2, waiting=3, complete=4, failed=5, skipped=7, cancelled=6
    )
    status = status_of(summary(TaskState.ERROR, counts=counts, failures=(FAILED,)))
    shown = status.pop("conditions")
    assert {(each["observedGeneration"], each["lastTransitionTime"]) for each in shown} == {(3, "2031-05-06T07:08:09Z")}
    assert status == {
        "observedGeneration": 3,
        "state": "error",
        "phase": "Failed",
        "taskUuid": RUN,
        "revision": "0123456789abcdef",
        "progress": "11/37",
        "steps": {
            "total": 37,
            "ready": 1,
            "running": 2,
            "waiting": 3,
            "complete": 4,
            "failed": 5,
            "skipped": 7,
            "cancelled": 6,
        },
        "startTime": "2031-05-06T07:08:01Z",
        "completionTime": "2031-05-06T07:08:09Z",
        "failures": [
            {
                "step": "pay",
                "attempt": 2,
                "errorType": "CardDeclined",
                "message": "no funds",
                "time": "2031-05-06T07:08:01Z",
                "final": True,
            }
        ],
    }


def test_what_was_skipped_is_done() -> None:
    counts = StepCounts(total=5, pending=1, ready=1, running=0, waiting=0, complete=1, failed=0, skipped=2, cancelled=0)
    status = status_of(summary(counts=counts))
    assert status["progress"] == "3/5"
    assert {message for _, _, _, message in conditions(status)[1:]} == {"3 of 5 steps are done."}


def test_what_has_not_happened_is_not_shown() -> None:
    status = status_of(summary(TaskState.PENDING, started_at=None))
    assert status.keys() == {
        "observedGeneration",
        "state",
        "phase",
        "taskUuid",
        "revision",
        "progress",
        "steps",
        "conditions",
    }
    assert "result" not in status_of(summary(TaskState.COMPLETE))
    assert "resultTruncated" not in status_of(summary(TaskState.COMPLETE))


@pytest.mark.parametrize(("stalled", "truths"), [(False, ("True", "False")), (True, ("False", "True"))])
def test_the_whole_status_of_a_task_without_a_run(stalled: bool, truths: tuple[str, str]) -> None:
    status = waiting_status("Why", "m" * 300, stalled=stalled, previous=TaskStatus(), generation=2, now=NOW)
    cut = "m" * 255 + "…"
    assert conditions(status) == [
        ("Accepted", "False", "Why", cut),
        ("Reconciling", truths[0], "Why", cut),
        ("Stalled", truths[1], "Why", cut),
        ("Succeeded", "Unknown", "Why", "The run has not started."),
    ]
    assert (status["observedGeneration"], status["phase"], len(status)) == (2, "Pending", 3)
    assert {each["observedGeneration"] for each in status["conditions"]} == {2}
    later = NOW + timedelta(seconds=1)
    again = waiting_status(
        "Why", "m", stalled=stalled, previous=TaskStatus.model_validate(status), generation=2, now=later
    )
    assert {each["lastTransitionTime"] for each in again["conditions"]} == {"2031-05-06T07:08:09Z"}


def test_the_whole_status_of_a_task_that_was_cancelled_before_it_had_a_run() -> None:
    status = cancelled_before_start_status(previous=TaskStatus(), generation=2, now=NOW)
    assert conditions(status) == [
        (name, "False", "Cancelled", "The Task was cancelled before it was accepted.")
        for name in ("Accepted", "Reconciling", "Stalled", "Succeeded")
    ]
    del status["conditions"]
    assert status == {
        "observedGeneration": 2,
        "state": "cancelled",
        "phase": "Cancelled",
        "completionTime": "2031-05-06T07:08:09Z",
    }


# The limits, to the byte.


def test_the_limits_are_what_the_documentation_says() -> None:
    assert (STATUS_LIMIT_BYTES, RESULT_LIMIT_BYTES) == (16_384, 8_192)


def test_a_result_of_just_the_limit_is_shown_and_one_byte_more_is_not() -> None:
    frame = len('{"ship":""}')
    for size, shown in ((RESULT_LIMIT_BYTES, True), (RESULT_LIMIT_BYTES + 1, False)):
        status = status_of(summary(TaskState.COMPLETE, leaf_results={"ship": "x" * (size - frame)}))
        assert ("result" in status, "resultTruncated" in status) == (shown, not shown)


def test_what_the_api_server_escapes_counts_as_it_stores_it() -> None:
    assert size_in_bytes("ab") == 4
    assert size_in_bytes({"a": [1, 2]}) == 11
    assert size_in_bytes("<>&\N{SNOWMAN}") == 2 + 4 * len("\\u2603")


def failed(number: int, message: str, **changes: Any) -> StepFailure:
    fields: dict[str, Any] = {
        "step": f"step{number:02}",
        "attempt": 1,
        "error_type": "E",
        "message": message,
        "final": True,
        "at": "2031-05-06T07:08:09+00:00",
    }
    return StepFailure(**fields | changes)


@pytest.mark.parametrize(("count", "length"), [(1, 1024), (4, 512), (6, 256), (11, 128), (20, 64)])
def test_messages_are_cut_as_little_as_the_room_allows(count: int, length: int) -> None:
    many = tuple(failed(number, "<" * 3000) for number in range(count))
    shown = status_of(summary(failures=many))["failures"]
    assert [len(each["message"]) for each in shown] == [length] * count


def test_when_even_short_messages_are_too_many_the_oldest_go() -> None:
    wide = tuple(failed(number, "<" * 99, step=f"{number:02}" + "<" * 99, error_type="<" * 200) for number in range(20))
    status = status_of(summary(failures=wide))
    shown = status["failures"]
    assert [each["step"][:2] for each in shown] == [f"{number:02}" for number in range(len(shown))]
    assert {(len(each["step"]), len(each["errorType"]), len(each["message"])) for each in shown} == {(63, 128, 64)}
    one_more = size_in_bytes(shown[0]) + 1
    assert size_in_bytes(status) <= STATUS_LIMIT_BYTES < size_in_bytes(status) + one_more


def test_failures_that_fill_the_status_to_the_last_byte_are_not_cut() -> None:
    def status_with(length: int) -> dict[str, Any]:
        wide = [failed(number, "m" * 1024) for number in range(13)]
        return status_of(summary(failures=(*wide, failed(13, "m" * length))))

    left = STATUS_LIMIT_BYTES - size_in_bytes(status_with(1))
    assert 0 < left < 1023, "the last message decides"
    full = status_with(1 + left)
    assert size_in_bytes(full) == STATUS_LIMIT_BYTES
    assert len(full["failures"][0]["message"]) == 1024
    assert len(status_with(2 + left)["failures"][0]["message"]) == 512


def test_what_a_run_waits_for_is_one_short_line() -> None:
    missing = UnofferedCallable(namespace="default", callable="c" * 300, steps=1, since=NOW)
    waiting_for = status_of(summary(waiting_for_worker=(missing,)))["waitingFor"]
    assert waiting_for == "callable " + "c" * 246 + "…"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (WaitingForPlace(max_tasks=3, taken=3), "waits for a place: 3 of 3 runs of template order are under way"),
        (WaitingForPlace(max_tasks=3, taken=5), "waits for a place: 5 of 3 runs of template order are under way"),
        (WaitingForPlace(max_tasks=3, taken=2), "waits for its turn among the runs of template order"),
        (WaitingForPlace(max_tasks=None, taken=9), "waits for its turn among the runs of template order"),
    ],
)
def test_a_run_without_a_place_says_what_it_waits_for(place: WaitingForPlace, said: str) -> None:
    run = summary(TaskState.PENDING, started_at=None, waiting_for_place=place)
    status = status_of(run)
    assert (status["state"], status["phase"], status["waitingFor"]) == ("pending", "Pending", said)
    assert "startTime" not in status
    assert truth(status, "Accepted") == ("True", "Submitted")
    for condition, expected in {"Reconciling": "True", "Stalled": "False", "Succeeded": "Unknown"}.items():
        assert truth(status, condition) == (expected, "ConcurrencyLimit")
    found = find(status, "Reconciling")
    assert found is not None and found["message"] == f"It {said}."


def test_a_run_without_a_place_that_is_held_back_waits_for_whoever_holds_it() -> None:
    run = summary(
        TaskState.PENDING, holds=frozenset({Hold.PERSON}), waiting_for_place=WaitingForPlace(max_tasks=1, taken=1)
    )
    status = status_of(run)
    assert truth(status, "Reconciling") == ("True", "Suspended")
    assert "waitingFor" not in status


def test_a_blocked_run_waits_for_a_person_whoever_else_is_missing() -> None:
    missing = UnofferedCallable(namespace="default", callable="do", steps=1, since=NOW)
    status = status_of(
        summary(
            TaskState.BLOCKED_BY_FAILURES, failures=(replace(FAILED, message="x" * 999),), waiting_for_worker=(missing,)
        )
    )
    assert status["phase"] == "Blocked"
    told = "A person, to deal with what failed. Step pay failed: CardDeclined: x"
    assert status["waitingFor"].startswith(told) and len(status["waitingFor"]) == 256
    assert not TaskStatus.model_validate(status).is_finished
