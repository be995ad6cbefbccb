"""Failure in two words: which exceptions are worth another attempt."""

from __future__ import annotations

import io
import json
from typing import Any

import pydantic
import pytest

from tasker_worker import ErrorType, PermanentError, RetryableError, errors
from tasker_worker.errors import Classification, classify


class Amount(pydantic.BaseModel):
    amount: int


def _invalid() -> pydantic.ValidationError:
    try:
        Amount.model_validate({"amount": "many"})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "exception",
    [
        TypeError("x"),
        ValueError("x"),
        KeyError("x"),
        AttributeError("x"),
        ZeroDivisionError("x"),
        AssertionError("x"),
        NotImplementedError("x"),
        RecursionError("x"),
        ImportError("x"),
        json.JSONDecodeError("x", "", 0),
        PermanentError("x"),
        errors.NotFoundError("x"),
        errors.BusinessLogicError("x"),
        errors.AuthenticationError("x"),
        errors.AuthorizationError("x"),
        errors.ConfigurationError("x"),
        _invalid(),
        ExceptionGroup("x", [OSError("x"), ValueError("x")]),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_programming_and_value_errors_are_permanent(exception: BaseException) -> None:
    assert not classify(exception).retryable


@pytest.mark.parametrize(
    "exception",
    [
        OSError("x"),
        ConnectionResetError("x"),
        TimeoutError("x"),
        FileNotFoundError("x"),
        io.UnsupportedOperation("x"),
        RuntimeError("x"),
        Exception("x"),
        MemoryError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        RetryableError("x"),
        errors.TimeoutError_("x"),
        errors.NetworkError("x"),
        errors.RateLimitError("x"),
        errors.ServiceUnavailableError("x"),
        errors.DatabaseError("x"),
        errors.WorkerError("x"),
        ExceptionGroup("x", [OSError("x"), RuntimeError("x")]),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_io_errors_and_unknown_ones_are_retryable(exception: BaseException) -> None:
    assert classify(exception).retryable


def test_a_retryable_error_says_when_to_try_again() -> None:
    judged = classify(errors.RateLimitError("slow down", retry_after=2.5))
    assert judged == Classification(error_type="RateLimitError", retryable=True, retry_after=2.5)


def test_a_wait_that_is_no_duration_is_refused_where_it_is_written() -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="retry_after is a number of seconds from 0"):
            RetryableError("x", retry_after=wrong)


def test_validation_errors_are_told_apart_from_other_permanent_ones() -> None:
    assert classify(errors.ValidationError("x")).error_type == "ValidationError"
    assert classify(_invalid()).error_type == "ValidationError"
    assert classify(PermanentError("x")).error_type == "PermanentError"
    assert classify(ValueError("x")).error_type == "HandlerError"


def test_a_subclass_may_set_its_own_type() -> None:
    class CardDeclined(PermanentError):
        error_type = "CardDeclined"

    assert classify(CardDeclined("no")) == Classification(error_type="CardDeclined", retryable=False)


def test_a_class_without_a_message_speaks_by_its_docstring() -> None:
    assert str(errors.RateLimitError()) == "Another system asks for fewer requests."


def test_every_error_of_the_tree_is_a_tasker_error() -> None:
    def tree(root: type[Any]) -> set[type[Any]]:
        return {root}.union(*(tree(child) for child in root.__subclasses__()))

    named = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert named <= tree(errors.TaskerError)


def test_only_errors_that_another_attempt_would_meet_again_are_not_tried_again_by_default() -> None:
    assert {each for each in ErrorType if not each.retryable} == {
        ErrorType.PERMANENT_ERROR,
        ErrorType.VALIDATION_ERROR,
        ErrorType.RESULT_SCHEMA_ERROR,
        ErrorType.WHEN_ERROR,
    }


def test_a_wait_of_nothing_is_one() -> None:
    for wait in (0, 0.5):
        assert RetryableError("x", retry_after=wait).retry_after == wait
    with pytest.raises(ValueError, match="retry_after is a number of seconds from 0"):
        RetryableError("x", retry_after=-0.5)


def test_of_a_group_that_is_worth_another_attempt_the_first_member_tells_how() -> None:
    first = errors.RateLimitError("slow down", retry_after=2.5)
    assert classify(ExceptionGroup("x", [first, OSError("x"), errors.NetworkError("x")])) == classify(first)
