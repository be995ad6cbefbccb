"""A result that cannot be stored fails the attempt with the place of the fault; one that can is stored as it is."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.worker_engine import make_claim, told
from tasker_worker import StepHandler, StepResult
from tasker_worker.claims import OutcomeKind
from tasker_worker.errors import RetryableError
from tasker_worker.jsontext import MAX_BYTES, NotJson, clean_text, encode
from tasker_worker.outcomes import from_exception, from_value

X = make_claim("x")


class Line(pydantic.BaseModel):
    product: str
    count: int


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Carrier(Enum):
    POST = "post"


class Box(Enum):
    SMALL = (10, 20)


class Order(pydantic.BaseModel):
    """A model with a field that holds it to nothing."""

    anything: Any = None
    shares: list[float] = []


@dataclasses.dataclass
class Parcel:
    weight: Decimal | int
    content: Any = None
    kind: ClassVar[str] = "parcel"


@pydantic.dataclasses.dataclass
class Label:
    print_on: date
    by: Any = None


class Point(NamedTuple):
    x: int
    y: int


class Ratio(float):
    """A relative of a JSON type."""


class Name(str):
    """Another."""

    __slots__ = ()


class Fails(pydantic.BaseModel):
    @pydantic.model_serializer
    def _fails(self) -> Any:
        raise OSError("no")


class Twice(Mapping[str, int]):
    """A mapping that has a key twice, as headers of HTTP may."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(["x", "x"])


def _holds_itself() -> Order:
    order = Order()
    order.anything = order
    return order


def _refusal(value: Any) -> dict[str, Any]:
    outcome = from_value(X, value)
    assert outcome.kind is OutcomeKind.FAIL
    return told(outcome)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"items": [1, 2, {"at": len}]},
            "result of step 'x' is not JSON: $.items[2].at is a builtin_function_or_method",
        ),
        (object(), "result of step 'x' is not JSON: $ is an object"),
        (Line, "result of step 'x' is not JSON: $ is a ModelMetaclass"),
        ((each for each in "ab"), "result of step 'x' is not JSON: $ is a generator"),
        ({"raw": b"\xff"}, "result of step 'x' is not JSON: $.raw is a bytes that is not UTF-8 text"),
        ([10**4300], "result of step 'x' is not JSON: $[0] is an integer of more than 4300 digits"),
        ([-(10**4300)], "result of step 'x' is not JSON: $[0] is an integer of more than 4300 digits"),
        ({"order": Order(anything=object())}, "result of step 'x' is not JSON: $.order.anything is an object"),
        ({"order": Order(shares=[float("nan")])}, "result of step 'x' is not JSON: $.order.shares[0] is nan"),
        (
            {"order": Order(anything="x\0y")},
            "result of step 'x' is not JSON that Postgres can store: $.order.anything h",
        ),
        ([Parcel(weight=1, content=object())], "result of step 'x' is not JSON: $[0].content is an object"),
        (
            [Parcel(weight=1, content={1: 2})],
            "result of step 'x' is not JSON: $[0].content has the key 1, which is not t",
        ),
        ([Label(print_on=date(2026, 1, 1), by=object())], "result of step 'x' is not JSON: $[0].by is an object"),
        ({"a": Fails()}, "result of step 'x' is not JSON: $.a is a Fails, which raises PydanticSerializationError: "),
        (
            {"a": _holds_itself()},
            "result of step 'x' is not JSON: $.a is an Order, which raises ValueError: Circular re",
        ),
        ({"a": Twice()}, "result of step 'x' is not JSON: $.a has the key 'x' twice"),
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
    tells = _refusal(value)
    assert tells["message"].startswith(message)
    assert tells["error_type"] == "PermanentError"
    assert tells["retryable"] is False


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    assert "is nested deeper than 32 levels" in _refusal(value)["message"]


def test_the_limits_are_inclusive() -> None:
    assert len(encode("a" * (MAX_BYTES - 2))) == MAX_BYTES
    assert encode(_nested(32)) == "[" * 32 + "1" + "]" * 32
    with pytest.raises(NotJson, match=r"is 1048578 bytes"):
        encode("é" * (MAX_BYTES // 2))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Line(product="tea", count=2), {"product": "tea", "count": 2}),
        ([Line(product="cup", count=1)], [{"product": "cup", "count": 1}]),
        (Order(anything=datetime(2026, 1, 1, tzinfo=UTC)), {"anything": "2026-01-01T00:00:00Z", "shares": []}),
        (Order(anything={1: Carrier.POST}), {"anything": {"1": "post"}, "shares": []}),
        (pydantic.RootModel[list[date]]([date(2026, 1, 1)]), ["2026-01-01"]),
        (Parcel(weight=Decimal("1.50")), {"weight": "1.50", "content": None}),
        (Parcel(weight=1, content=Label(print_on=date(2026, 1, 1))), None),
        (Label(print_on=date(2026, 1, 1)), {"print_on": "2026-01-01", "by": None}),
        (Label(print_on=date(2026, 1, 1), by={1: Carrier.POST}), {"print_on": "2026-01-01", "by": {"1": "post"}}),
        (datetime(2026, 1, 1, 12, 30, tzinfo=UTC), "2026-01-01T12:30:00Z"),
        (datetime(2026, 1, 1, 12, 30), "2026-01-01T12:30:00"),  # noqa: DTZ001 - a handler may return it
        (date(2026, 1, 1), "2026-01-01"),
        (time(12, 30), "12:30:00"),
        (timedelta(minutes=1), "PT1M"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("0.10"), "0.10"),
        (Path("/x"), "/x"),
        (ip_address("10.0.0.1"), "10.0.0.1"),
        (b"text", "text"),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (deque([1, date(2026, 1, 1)]), [1, "2026-01-01"]),
        ((1, 2), [1, 2]),
        (Point(x=1, y=2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.RED, "red"),
        ({Colour.RED: 1}, {"red": 1}),
        (Size.SMALL, 1),
        (Carrier.POST, "post"),
        (Box.SMALL, [10, 20]),
        (Ratio(0.5), 0.5),
        (Name("tea"), "tea"),
        (10**4299, 10**4299),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_pydantic_can_encode_is_stored_as_it_encodes_it(value: Any, stored: Any) -> None:
    if stored is None:
        stored = {"weight": 1, "content": {"print_on": "2026-01-01", "by": None}}
    outcome = from_value(X, value)
    assert outcome.kind is OutcomeKind.COMPLETE
    assert json.loads(outcome.result or "") == stored
    deeper = from_value(X, {"items": [value]})
    assert json.loads(deeper.result or "") == {"items": [stored]}


@pytest.mark.filterwarnings("error")
def test_a_model_whose_fields_hold_other_types_than_it_says_is_stored_all_the_same() -> None:
    line = Line.model_construct(product=UUID(int=1), count="many")
    assert json.loads(encode(line)) == {"product": "00000000-0000-0000-0000-000000000001", "count": "many"}


def test_a_generator_is_not_run_to_be_stored() -> None:
    unread = (each for each in range(3))
    assert _refusal(unread)["message"].endswith("$ is a generator")
    assert next(unread) == 0


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
    outcome = from_value(X, value)
    assert outcome.kind is OutcomeKind.COMPLETE
    assert json.loads(outcome.result or "") == value


@given(st.from_type(object) | st.binary() | st.floats() | st.sets(st.integers()))
def test_no_value_whatever_makes_the_worker_raise(value: Any) -> None:
    assert from_value(X, {"value": value}).kind in (OutcomeKind.COMPLETE, OutcomeKind.FAIL)


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
    outcome = from_value(X, StepResult.succeed({"a": 1}, metadata={"seconds": 2}))
    assert told(outcome) == {"kind": "complete", "result": {"a": 1}, "metadata": {"seconds": 2}}
    tells = _refusal(StepResult.succeed({"a": 1}, metadata={"tags": [object()]}))
    assert tells["message"] == "metadata of step 'x' is not JSON: $.tags[0] is an object"


def test_a_failure_keeps_its_fields() -> None:
    result = StepResult.fail("no stock", "StockError", True, {"product": "tea"}, retry_after=1.5)
    assert _refusal(result) == {
        "kind": "fail",
        "error_type": "StockError",
        "message": "no stock",
        "retryable": True,
        "retry_after_ms": 1500,
        "traceback": None,
        "metadata": {"product": "tea"},
    }


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"what": object()}, "it is not JSON: $.what is an object"),
        ({"what": "a" * 70_000}, "it is longer than 65536 characters"),
        ({"what": _nested(40)}, "it is nested deeper than 32 levels"),
        ([1], "it "),
    ],
    ids=["type", "size", "depth", "shape"],
)
def test_a_failure_is_told_even_when_its_metadata_cannot_be(
    metadata: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    tells = _refusal(StepResult.fail("no", metadata=metadata))
    assert tells["message"] == "no"
    assert "metadata" not in tells
    assert f"metadata of a failure is dropped: {reason}" in caplog.text


def test_metadata_of_a_failure_is_encoded_alike_and_may_be_as_deep() -> None:
    deepest = _nested(31)
    error = RetryableError("busy", metadata={"at": date(2026, 1, 1), "ids": {UUID(int=1)}, "deep": deepest})
    outcome = from_exception(error)
    assert (outcome.kind, outcome.message, outcome.retryable) == ("fail", "busy", True)
    assert told(outcome)["metadata"] == {"at": "2026-01-01", "ids": [str(UUID(int=1))], "deep": deepest}


class UnreadableError(RetryableError):
    """Raises when it is asked for what it says of itself."""

    @property
    def metadata(self) -> Any:
        raise OSError("no")

    @metadata.setter
    def metadata(self, value: Any) -> None: ...


def test_an_exception_that_cannot_be_read_fails_the_attempt_all_the_same() -> None:
    outcome = from_exception(UnreadableError("no stock"))
    assert outcome.kind is OutcomeKind.FAIL
    assert outcome.message == "UnreadableError, which raises OSError when read"
    assert (outcome.error_type, outcome.retryable) == ("HandlerError", True)


def test_text_of_errors_is_made_storable() -> None:
    assert clean_text("a\0b\ud800", 100) == "a\\0b\\ud800"
    assert clean_text("abcdef", 4) == "abc…"
    assert clean_text("abcd", 4) == "abcd"


def test_a_plain_function_that_returns_a_coroutine_is_told_to_be_async() -> None:
    async def work() -> None: ...

    tells = _refusal(work())
    assert tells["message"] == "the handler of step 'x' is a plain function that returned an awaitable; make it async"
    assert (tells["error_type"], tells["retryable"]) == ("PermanentError", False)


@pytest.mark.parametrize(("length", "kept"), [(8192, 8192), (8193, 8192)])
def test_a_message_is_kept_up_to_8_kibibytes(length: int, kept: int) -> None:
    tells = _refusal(StepResult.fail("m" * length))
    assert len(tells["message"]) == kept
    assert tells["message"].endswith("…") is (length > kept)


@pytest.mark.parametrize("length", [256, 257])
def test_an_error_type_is_kept_up_to_256_characters(length: int) -> None:
    assert len(_refusal(StepResult.fail("m", "T" * length))["error_type"]) == 256


@pytest.mark.parametrize(("over", "kept"), [(0, True), (1, False)])
def test_metadata_of_a_failure_is_kept_up_to_64_kibibytes(over: int, kept: bool) -> None:
    metadata = {"what": "a" * (64 * 1024 - len('{"what":""}') + over)}
    assert ("metadata" in _refusal(StepResult.fail("no", metadata=metadata))) is kept


def test_a_wait_is_told_in_milliseconds_and_has_an_end() -> None:
    assert _refusal(StepResult.fail("m", retryable=True, retry_after=0.0015))["retry_after_ms"] == 2
    assert _refusal(StepResult.fail("m", retryable=True, retry_after=float("inf")))["retry_after_ms"] == 10**12


def test_of_a_long_traceback_the_last_16_kibibytes_are_kept() -> None:
    try:
        raise ValueError("v" * 17_000)
    except ValueError as error:
        tells = told(from_exception(error))
    assert tells["traceback"] == "…" + ("v" * 17_000 + "\n")[-(16 * 1024 - 1) :]


def test_a_traceback_of_exactly_that_length_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traceback, "format_exception", lambda *_: ["t" * (16 * 1024)])
    tells = told(from_exception(ValueError("v")))
    assert tells["traceback"] == "t" * (16 * 1024)


def test_the_sdk_s_own_errors_bring_a_traceback_when_another_one_caused_them() -> None:
    def traceback_of(error: BaseException) -> Any:
        try:
            raise error from (ValueError("why") if error.args == ("caused",) else None)
        except BaseException as raised:
            return from_exception(raised).traceback

    assert traceback_of(RetryableError("alone")) is None
    assert "ValueError: why" in traceback_of(RetryableError("caused"))
    assert "RuntimeError: other" in traceback_of(RuntimeError("other"))


def test_a_failure_without_words_is_told_all_the_same_and_an_awaitable_of_no_coroutine_too() -> None:
    tells = _refusal(StepResult(success=False))
    assert (tells["message"], tells["error_type"]) == (
        "the handler reported a failure without a message",
        "HandlerError",
    )

    class Later:
        def __await__(self) -> Any:
            yield

    assert _refusal(Later())["message"].endswith("returned an awaitable; make it async")


def test_what_cannot_be_read_is_told_with_the_place_where_that_failed() -> None:
    class Unreadable(StepResult):
        @property
        def success(self) -> bool:
            raise OSError("no")

    value = object.__new__(Unreadable)
    tells = _refusal(value)
    assert tells["message"] == "what the handler of step 'x' returned cannot be read: OSError"
    assert (tells["error_type"], tells["retryable"]) == ("PermanentError", False)
    assert tells["traceback"].endswith("OSError: no\n")


def test_an_outcome_carries_type_and_message() -> None:
    outcome = from_value(X, StepResult.fail("no stock", "StockError"))
    assert (outcome.kind, outcome.error_type, outcome.message) == ("fail", "StockError", "no stock")


def test_integers_are_stored_up_to_4300_digits() -> None:
    largest = 10**4300 - 1
    assert encode(largest) == "9" * 4300
    assert encode(-largest) == "-" + "9" * 4300
    for value in (largest + 1, -largest - 1):
        with pytest.raises(NotJson, match="is an integer of more than 4300 digits"):
            encode(value)


@pytest.mark.parametrize(
    "around",
    [lambda inner: {"a": inner}, lambda inner: [inner], lambda inner: OrderedDict(a=inner), lambda inner: (inner,)],
    ids=["dict", "list", "mapping", "tuple"],
)
def test_too_deep_is_too_deep_in_objects_as_in_arrays(around: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(32):
        value = around(value)
    assert encode(value)
    with pytest.raises(NotJson, match="is nested deeper than 32 levels"):
        encode(around(value))


def test_the_text_of_a_result_has_no_blanks_and_no_escapes_that_need_not_be() -> None:
    assert encode({"a": [1, "é"], "b": None}) == '{"a":[1,"é"],"b":null}'


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_number_without_an_end_is_stored(value: float) -> None:
    with pytest.raises(NotJson, match=rf"^is not JSON: \$ is {value}$"):
        encode(value)


@pytest.mark.filterwarnings("error")
def test_a_dataclass_whose_fields_hold_other_types_than_it_says_is_stored_all_the_same() -> None:
    label = Label(print_on=date(2026, 1, 1))
    label.print_on = "tomorrow"  # type: ignore[assignment]
    assert json.loads(encode(label)) == {"print_on": "tomorrow", "by": None}


def test_only_a_retryable_failure_that_says_so_is_tried_again() -> None:
    assert _refusal(StepResult(success=False, error_message="no"))["retryable"] is False
    for wait in (0, 0.5):
        assert _refusal(StepResult.fail("no", retry_after=wait))["retry_after_ms"] == wait * 1000
    for wrong in (-0.5, float("nan")):
        with pytest.raises(ValueError, match="retry_after is a number of seconds from 0"):
            StepResult.fail("no", retry_after=wrong)


def test_a_traceback_that_cannot_be_written_costs_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("no")

    monkeypatch.setattr(traceback, "format_exception", fails)
    tells = told(from_exception(ValueError("v")))
    assert (tells["message"], tells["traceback"]) == ("ValueError: v", "(the traceback cannot be formatted: OSError)")


def test_a_class_of_handlers_has_words_for_both_ends() -> None:
    handler = StepHandler()
    assert handler.success({"a": 1}, {"seconds": 2}) == StepResult.succeed({"a": 1}, {"seconds": 2})
    tells = _refusal(handler.failure("busy", "BusyError", True, {"queue": 7}, retry_after=1.5))
    assert (tells["message"], tells["error_type"], tells["retryable"]) == ("busy", "BusyError", True)
    assert (tells["metadata"], tells["retry_after_ms"]) == ({"queue": 7}, 1500)
