"""What a request for a run may say, and the exact words with which anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tasker.errors import InvalidTask
from tasker.model.task import TaskRequest


def refusal(**request: Any) -> str:
    with pytest.raises(InvalidTask) as caught:
        TaskRequest(template_name="order", **request).check()
    return str(caught.value)


def nested(levels: int) -> Any:
    return {} if levels == 1 else {"in": nested(levels - 1)}


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ([1, 2], "a list"),
        ("text", "a string"),
        (3, "a number"),
        (2.5, "a number"),
        (True, "a boolean"),
        (None, "null"),
        ({1}, "set"),
    ],
)
def test_a_context_that_is_not_an_object_is_refused(context: Any, kind: str) -> None:
    assert refusal(context=context) == f"spec.context: must be an object, not {kind}"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(
            {"idempotency_key": ""}, "spec.idempotencyKey: must have 1 to 255 characters", id="idempotency-key-empty"
        ),
        pytest.param(
            {"idempotency_key": "k" * 256},
            "spec.idempotencyKey: must have 1 to 255 characters",
            id="idempotency-key-long",
        ),
        pytest.param({"priority": 101}, "spec.priority: 101 is not between -100 and 100", id="priority-too-high"),
        pytest.param({"priority": -101}, "spec.priority: -101 is not between -100 and 100", id="priority-too-low"),
        pytest.param(
            {"deadline_seconds": 0}, "spec.deadlineSeconds: must be more than 0 and at most 31536000", id="no-time"
        ),
        pytest.param(
            {"deadline_seconds": -1}, "spec.deadlineSeconds: must be more than 0 and at most 31536000", id="past"
        ),
        pytest.param(
            {"deadline_seconds": float("nan")},
            "spec.deadlineSeconds: must be more than 0 and at most 31536000",
            id="deadline-nan",
        ),
        pytest.param(
            {"deadline_seconds": 1e300},
            "spec.deadlineSeconds: must be more than 0 and at most 31536000",
            id="deadline-past-every-calendar",
        ),
        pytest.param({"context": nested(33)}, f"spec.context{'.in' * 32}: is nested deeper than 32 levels", id="depth"),
        pytest.param(
            {"context": {"text": "x" * 1_048_576}},
            "spec.context: is 1048587 bytes; at most 1048576 are allowed",
            id="size",
        ),
        pytest.param(
            {"context": {"a": [{"b": float("inf")}]}},
            "spec.context.a[0].b: is inf, which JSON does not have",
            id="infinity",
        ),
        pytest.param(
            {"context": {"a": "x\0y"}},
            "spec.context.a: holds the character U+0000, which Postgres cannot store",
            id="nul",
        ),
        pytest.param(
            {"context": {"a": "\ud800"}},
            "spec.context.a: holds half a surrogate pair, which is no character",
            id="surrogate",
        ),
        pytest.param(
            {"context": {"a": {"\0": 1}}},
            "spec.context.a: has a key that holds the character U+0000, which Postgres cannot store",
            id="nul-in-a-key",
        ),
        pytest.param({"context": {"a": {1: 2}}}, "spec.context.a: has the key 1, which is not text", id="number-key"),
        pytest.param({"context": {"a": {1, 2}}}, "spec.context.a: is not JSON but a Python set", id="set"),
        pytest.param(
            {"reason": "\0"}, "spec.reason: holds the character U+0000, which Postgres cannot store", id="reason"
        ),
        pytest.param(
            {"tags": ("ok", "\0")}, "spec.tags[1]: holds the character U+0000, which Postgres cannot store", id="tag"
        ),
    ],
)
def test_requests_are_refused_with_the_place_and_the_reason(request_: dict[str, Any], message: str) -> None:
    assert refusal(**request_) == message


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"priority": 100},
        {"priority": -100},
        {"idempotency_key": "ü" * 255},
        {"context": nested(32)},
        {"context": {"text": "x" * (1_048_576 - 11)}},
        {"context": {"ü": "€😀", "n": None, "list": [1, 2.5, True, {"a": []}]}},
        {"deadline_seconds": 0.001},
    ],
)
def test_requests_within_the_limits_are_accepted(request_: dict[str, Any]) -> None:
    TaskRequest(template_name="order", **request_).check()
