"""A result that cannot be stored fails the attempt with the place of the fault; one that can is stored as it is."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import date
from enum import IntEnum, StrEnum
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasker_worker import StepResult
from tasker_worker.claims import OutcomeKind
from tasker_worker.jsontext import MAX_BYTES, NotJson, clean_text, encode
from tasker_worker.outcomes import from_value


class Line(pydantic.BaseModel):
    product: str
    count: int


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


def _refusal(value: Any) -> dict[str, Any]:
    outcome = from_value("x", value)
    assert outcome.kind is OutcomeKind.ERROR
    told: dict[str, Any] = json.loads(outcome.payload or "")
    return told


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"items": [1, 2, {3}]}, "result of step 'x' is not JSON: $.items[2] is a set"),
        ({"at": {"day": date(2026, 1, 1)}}, "result of step 'x' is not JSON: $.at.day is a date"),
        (object(), "result of step 'x' is not JSON: $ is an object"),
        ({"raw": b"x"}, "result of step 'x' is not JSON: $.raw is a bytes"),
        ({"rate": float("nan")}, "result of step 'x' is not JSON: $.rate is nan"),
        ([1.0, float("inf")], "result of step 'x' is not JSON: $[1] is inf"),
        ({"a": {1: "b"}}, "result of step 'x' is not JSON: $.a has the key 1, which is not text"),
        ({"a": "x\0y"}, "result of step 'x' is not JSON that Postgres can store: $.a holds the character U+0000"),
        ({"a": "\ud800"}, "result of step 'x' is not JSON that Postgres can store: $.a holds half a character, U+D800"),
        ({"a": _nested(40)}, f"result of step 'x' is nested deeper than 32 levels at $.a{'[0]' * 31}"),
        ("a" * MAX_BYTES, f"result of step 'x' is {MAX_BYTES + 2} bytes of JSON, the limit is 1048576"),
    ],
    ids=lambda value: (
        value.removeprefix("result of step ")[:50] if isinstance(value, str) and " of step " in value else ""
    ),
)
def test_what_cannot_be_stored_fails_for_good_and_names_the_place(value: Any, message: str) -> None:
    told = _refusal(value)
    assert told["message"] == message
    assert told["error_type"] == "PermanentError"
    assert told["retryable"] is False


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    assert "is nested deeper than 32 levels" in _refusal(value)["message"]


def test_the_limits_are_inclusive() -> None:
    assert len(encode("a" * (MAX_BYTES - 2))) == MAX_BYTES
    assert encode(_nested(32)) == "[" * 32 + "1" + "]" * 32
    with pytest.raises(NotJson, match=r"is 1048578 bytes"):
        encode("é" * (MAX_BYTES // 2))


def test_models_tuples_and_enumerations_become_plain_json() -> None:
    value = {
        "line": Line(product="tea", count=2),
        "lines": [Line(product="cup", count=1)],
        "pair": (1, 2),
        "colour": Colour.RED,
        "size": Size.SMALL,
        "ordered": OrderedDict(a=1),
    }
    assert json.loads(encode(value)) == {
        "line": {"product": "tea", "count": 2},
        "lines": [{"product": "cup", "count": 1}],
        "pair": [1, 2],
        "colour": "red",
        "size": 1,
        "ordered": {"a": 1},
    }


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)


@given(_json)
def test_any_json_value_comes_back_as_it_was(value: Any) -> None:
    outcome = from_value("x", value)
    assert outcome.kind is OutcomeKind.SUCCESS
    assert json.loads(outcome.payload or "") == {"result": value}


@given(st.from_type(object) | st.binary() | st.floats() | st.sets(st.integers()))
def test_no_value_whatever_makes_the_worker_raise(value: Any) -> None:
    assert from_value("x", {"value": value}).kind in (OutcomeKind.SUCCESS, OutcomeKind.ERROR)


class Hostile(dict[str, Any]):
    """A mapping that raises when it is read."""

    def items(self) -> Any:
        raise OSError("no")


@pytest.mark.parametrize(
    "value",
    [
        Hostile(),
        {"inner": Hostile()},
        StepResult(success=False, error_message=5),  # type: ignore[arg-type]
        StepResult(success=False, error_type=ValueError),  # type: ignore[arg-type]
        StepResult(success=False, retryable="perhaps"),  # type: ignore[arg-type]
        StepResult(success=False, metadata=[1]),  # type: ignore[arg-type]
    ],
    ids=range(6),
)
def test_what_cannot_even_be_read_fails_the_attempt(value: Any) -> None:
    assert isinstance(_refusal(value)["message"], str)


def test_metadata_is_stored_beside_the_result_and_held_to_the_same() -> None:
    outcome = from_value("x", StepResult.succeed({"a": 1}, metadata={"seconds": 2}))
    assert json.loads(outcome.payload or "") == {"result": {"a": 1}, "metadata": {"seconds": 2}}
    told = _refusal(StepResult.succeed({"a": 1}, metadata={"tags": {"b"}}))
    assert told["message"] == "metadata of step 'x' is not JSON: $.tags is a set"


def test_a_failure_keeps_its_fields() -> None:
    result = StepResult.fail("no stock", "StockError", True, {"product": "tea"}, retry_after=1.5)
    assert _refusal(result) == {
        "error_type": "StockError",
        "message": "no stock",
        "retryable": True,
        "retry_after_ms": 1500,
        "traceback": None,
        "metadata": {"product": "tea"},
    }


def test_a_failure_is_told_even_when_its_metadata_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    told = _refusal(StepResult.fail("no", metadata={"what": object()}))
    assert told["message"] == "no"
    assert "metadata" not in told
    assert "metadata of a failure is dropped" in caplog.text


def test_text_of_errors_is_made_storable() -> None:
    assert clean_text("a\0b\ud800", 100) == "a\\0b\\ud800"
    assert clean_text("abcdef", 4) == "abc…"


def test_a_plain_function_that_returns_a_coroutine_is_told_to_be_async() -> None:
    async def work() -> None: ...

    assert _refusal(work())["message"] == (
        "the handler of step 'x' is a plain function that returned an awaitable; make it async"
    )
