"""From what a handler returned or raised to the outcome that is sent. Never raises, whatever it is given."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .claims import Outcome, OutcomeKind
from .errors import ErrorType, TaskerError, classify
from .jsontext import NotJson, clean_text, encode
from .result import StepResult

logger = logging.getLogger("tasker_worker.handler")

_MESSAGE_CHARACTERS = 8 * 1024  # kept of an error's message; the engine keeps no more
_TRACEBACK_CHARACTERS = 16 * 1024
_METADATA_CHARACTERS = 64 * 1024  # of JSON, for a failure's metadata
_PACKAGE = str(Path(__file__).parent)


def from_value(step_name: str, value: Any) -> Outcome:
    """The outcome of a handler that returned."""
    try:
        return _from_value(step_name, value)
    except Exception as error:  # what it returned is the user's, and may raise anything when it is read
        return failure(
            ErrorType.PERMANENT_ERROR,
            f"what the handler of step {step_name!r} returned cannot be read: {type(error).__name__}",
            retryable=False,
            trace=_traceback(error),
        )


def _from_value(step_name: str, value: Any) -> Outcome:
    metadata: Mapping[str, Any] | None = None
    if isinstance(value, StepResult):
        if not value.success:
            return failure(
                value.error_type or ErrorType.HANDLER_ERROR,
                value.error_message or "the handler reported a failure without a message",
                value.retryable,
                retry_after=value.retry_after,
                metadata=value.metadata,
            )
        value, metadata = value.result, value.metadata
    elif inspect.isawaitable(value):
        close = getattr(value, "close", None)
        if close is not None:
            close()
        return failure(
            ErrorType.PERMANENT_ERROR,
            f"the handler of step {step_name!r} is a plain function that returned an awaitable; make it async",
            retryable=False,
        )
    what = "result"
    try:
        text = encode(value)
        if not metadata:
            return Outcome(OutcomeKind.SUCCESS, f'{{"result":{text}}}')
        what = "metadata"
        return Outcome(OutcomeKind.SUCCESS, f'{{"result":{text},"metadata":{encode(dict(metadata))}}}')
    except NotJson as error:
        return failure(ErrorType.PERMANENT_ERROR, f"{what} of step {step_name!r} {error}", retryable=False)


def from_exception(error: BaseException) -> Outcome:
    """The outcome of a handler that raised; the traceback is kept unless the SDK's own errors say all there is."""
    try:
        return _from_exception(error)
    except Exception as fault:  # the exception is the user's, too
        return failure(
            ErrorType.HANDLER_ERROR, f"{type(error).__name__}, which raises {type(fault).__name__} when read", True
        )


def _from_exception(error: BaseException) -> Outcome:
    judged = classify(error)
    metadata = None
    if isinstance(error, SystemExit):
        message = f"handler called sys.exit({'' if error.code is None else repr(error.code)})"
    elif isinstance(error, TaskerError):
        message, metadata = _text(error), error.metadata
    elif isinstance(error, Exception):
        message = f"{type(error).__name__}: {_text(error)}" if _text(error) else type(error).__name__
    else:
        message = f"handler raised {type(error).__name__}"
    return failure(
        judged.error_type,
        message,
        judged.retryable,
        retry_after=judged.retry_after,
        metadata=metadata,
        trace=None if isinstance(error, TaskerError) and error.__cause__ is None else _traceback(error),
    )


def timeout(step_name: str, timeout_ms: int) -> Outcome:
    return failure(
        ErrorType.TIMEOUT, f"step {step_name!r} exceeded its timeout of {timeout_ms / 1000:g} s", retryable=True
    )


def failure(
    error_type: str,
    message: str,
    retryable: bool,
    *,
    retry_after: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    trace: str | None = None,
) -> Outcome:
    error: dict[str, Any] = {
        "error_type": clean_text(str(error_type), 256),
        "message": clean_text(str(message), _MESSAGE_CHARACTERS),
        "retryable": bool(retryable),
        "retry_after_ms": None if retry_after is None else round(min(retry_after, 1e9) * 1000),
        "traceback": trace,
    }
    payload = encode(error)
    if metadata:
        try:
            text = encode(dict(metadata))
            if len(text) > _METADATA_CHARACTERS:
                raise NotJson(f"is longer than {_METADATA_CHARACTERS} characters")
        except Exception as fault:  # the failure itself matters more than what was said about it
            logger.warning("metadata of a failure is dropped: it %s", fault)
        else:
            payload = f'{payload[:-1]},"metadata":{text}}}'
    return Outcome(OutcomeKind.ERROR, payload, error["error_type"], error["message"])


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a __str__ that raises is the user's; its type still tells something
        return "(its text cannot be read)"


def _traceback(error: BaseException) -> str:
    """The end of the traceback, without the frames of this package that every one begins with."""
    begin: TracebackType | None = error.__traceback__
    while begin is not None and begin.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        begin = begin.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, begin))
    except Exception as fault:  # formatting calls the user's __str__ and __repr__
        text = f"(the traceback cannot be formatted: {type(fault).__name__})"
    text = text if len(text) <= _TRACEBACK_CHARACTERS else "…" + text[1 - _TRACEBACK_CHARACTERS :]
    return clean_text(text, _TRACEBACK_CHARACTERS)
