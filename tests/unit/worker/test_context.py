"""What a handler can ask its context."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pydantic
import pytest

from support.worker_engine import make_claim
from tasker_worker import StepContext
from tasker_worker.attempts import Attempt
from tasker_worker.testing import make_context


class Cart(pydantic.BaseModel):
    total: float


def test_attempts_are_counted_from_one_and_retries_from_none() -> None:
    first = make_context(attempt=1, max_attempts=3)
    assert (first.retry_count, first.max_retries, first.is_retry, first.is_last_retry) == (0, 2, False, False)
    second = make_context(attempt=2, max_attempts=3)
    assert (second.retry_count, second.is_retry, second.is_last_retry) == (1, True, False)
    last = make_context(attempt=3, max_attempts=3)
    assert (last.retry_count, last.max_retries, last.is_retry, last.is_last_retry) == (2, 2, True, True)
    assert make_context(attempt=1, max_attempts=1).is_last_retry


def test_an_input_is_the_steps_own_when_it_has_it_else_the_tasks() -> None:
    context = make_context(task_context={"a": 1, "b": 2}, step_inputs={"b": 3, "c": None})
    assert context.get_input("a") == 1
    assert context.get_input("b") == 3
    assert context.get_input("c", "default") is None
    assert context.get_input("d") is None
    assert context.get_input("d", "default") == "default"


def test_dependency_results_are_read_whole_by_field_and_as_models() -> None:
    context = make_context(dependency_results={"cart": {"total": 5, "lines": [{"name": "tea"}]}, "none": None})
    assert context.get_dependency_result("cart") == {"total": 5, "lines": [{"name": "tea"}]}
    assert context.get_dependency_result("missing") is None
    assert context.get_dependency_result("missing", Cart) is None
    assert context.get_dependency_result("cart", Cart) == Cart(total=5)
    assert context.get_dependency_field("cart", "lines", 0, "name") == "tea"
    assert context.get_dependency_field("cart", "lines", 1, "name") is None
    assert context.get_dependency_field("cart", "total", "x") is None
    assert context.get_dependency_field("missing", "x") is None
    with pytest.raises(pydantic.ValidationError):
        context.get_dependency_result("none") or context.get_dependency_result("cart", int)


def test_results_of_a_family_of_steps_come_in_the_order_of_their_names() -> None:
    context = make_context(dependency_results={"load_002": 2, "load_001": 1, "other": 9, "load_010": 10})
    assert context.get_all_dependency_results("load_") == [1, 2, 10]


def test_configuration_has_defaults() -> None:
    context = make_context(step_config={"rate": 2})
    assert context.get_config("rate") == 2
    assert context.get_config("other", 5) == 5


def test_json_is_parsed_when_it_is_read_and_only_once() -> None:
    context = StepContext(make_claim(context="{broken", inputs='{"a": 1}'))
    assert context.step_inputs is context.step_inputs
    with pytest.raises(ValueError, match="Expecting property name"):
        _ = context.task_context


def test_the_deadline_is_the_timeout_or_the_tasks_whichever_is_sooner() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=10)
    with_task_deadline = make_context(timeout_seconds=300, deadline=soon)
    with_task_deadline.begin()
    assert with_task_deadline.deadline == soon
    with_timeout = make_context(timeout_seconds=1, deadline=soon)
    with_timeout.begin()
    assert with_timeout.deadline is not None
    assert with_timeout.deadline < soon
    assert 0 < with_timeout.seconds_left <= 1
    assert make_context(deadline=soon).deadline == soon
    assert make_context().deadline is None
    assert make_context().seconds_left == float("inf")


def test_a_heartbeat_tells_how_far_it_is_and_whether_to_go_on() -> None:
    attempt = Attempt(make_claim(), 0.0)
    assert attempt.context.heartbeat({"rows": 5})
    assert attempt.detail == {"rows": 5}
    attempt.context.cancelled = True
    assert not attempt.context.heartbeat({"rows": 10})
    assert attempt.detail == {"rows": 10}
    assert StepContext(make_claim()).heartbeat(), "without a worker nobody is told"


def test_a_deadline_that_has_passed_leaves_nothing_and_no_less() -> None:
    assert make_context(deadline=datetime.now(UTC) - timedelta(hours=1)).seconds_left == 0


def test_a_place_in_an_array_counts_from_either_end_and_leads_nowhere_outside_of_it() -> None:
    context = make_context(dependency_results={"rows": [1, 2, 3], "text": "abc"})
    found = {place: context.get_dependency_field("rows", place) for place in (-4, -3, -1, 0, 2, 3)}
    assert found == {-4: None, -3: 1, -1: 3, 0: 1, 2: 3, 3: None}
    assert context.get_dependency_field("rows", "0") is None
    assert context.get_dependency_field("text", 0) is None


def test_the_text_of_a_context_tells_whose_it_is() -> None:
    context = make_context(step_name="pay", attempt=2, task_uuid="t-1")
    assert repr(context) == "<StepContext of step 'pay', task t-1, attempt 2>"
