"""From what a handler returned or raised to the outcome that is sent. Never raises, whatever it is given."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .claims import BATCHABLE, DECISION, Batches, Claim, Outcome, OutcomeKind
from .cursors import BatchError
from .decision import MAX_BRANCHES, Decision
from .division import divide, is_division
from .errors import ErrorType, TaskerError, classify
from .jsontext import NotJson, an, clean_text, encode
from .result import StepResult
from .schemas import fault_of_result

logger = logging.getLogger("tasker_worker.handler")

_MESSAGE_CHARACTERS = 8 * 1024  # kept of an error's message; the engine keeps no more
_TRACEBACK_CHARACTERS = 16 * 1024
_METADATA_CHARACTERS = 64 * 1024  # of JSON, for a failure's metadata
_PACKAGE = str(Path(__file__).parent)


def from_value(claim: Claim, value: Any) -> Outcome:
    """The outcome of a handler that returned; a result is not yet held to the step's schema (see `checked`)."""
    try:
        return _from_value(claim, value)
    except Exception as error:  # what it returned is the user's, and may raise anything when it is read
        return failure(
            ErrorType.PERMANENT_ERROR,
            f"what the handler of step {claim.step_name!r} returned cannot be read: {type(error).__name__}",
            retryable=False,
            trace=_traceback(error),
        )


def _from_value(claim: Claim, value: Any) -> Outcome:
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
            f"the handler of step {claim.step_name!r} is a plain function that returned an awaitable; make it async",
            retryable=False,
        )
    kind, branches = OutcomeKind.COMPLETE, None
    batches: Batches | None = None
    if claim.step_type == DECISION or isinstance(value, Decision):
        fault = _fault_of_decision(claim, value)
        if fault is not None:
            return failure(ErrorType.PERMANENT_ERROR, fault, retryable=False)
        kind, branches = OutcomeKind.DECIDE, ",".join(value.step_names)
        value, metadata = value.as_result(), metadata or value.metadata
    elif claim.step_type == BATCHABLE or is_division(value):
        try:
            value, batches = divide(claim, value)
        except BatchError as error:
            return failure(error.error_type, str(error), retryable=False)
        kind = OutcomeKind.DIVIDE
    what = "result"
    try:
        text = encode(value)
        if not metadata:
            return Outcome(kind, text, None, branches, batches=batches)
        what = "metadata"
        return Outcome(kind, text, encode(dict(metadata)), branches, batches=batches)
    except NotJson as error:
        return failure(ErrorType.PERMANENT_ERROR, f"{what} of step {claim.step_name!r} {error}", retryable=False)


def _fault_of_decision(claim: Claim, value: Any) -> str | None:
    """What is wrong with what a decision's handler returned, or with a Decision that somebody else returned."""
    if claim.step_type != DECISION:
        return (
            f"step {claim.step_name!r} is of the type {claim.step_type!r}, and its handler returned a Decision;"
            f" only a step of the type {DECISION!r} can choose what runs"
        )
    if not isinstance(value, Decision):
        returned = "nothing" if value is None else an(type(value).__name__)
        return (
            f"step {claim.step_name!r} is a decision, and its handler returned {returned};"
            " return Decision.route(…) with names of steps, or Decision.skip(reason)"
        )
    if len(value.step_names) > MAX_BRANCHES:
        return f"decision {claim.step_name!r} chose {len(value.step_names)} steps, the limit is {MAX_BRANCHES}"
    choices = claim.dependents or ()
    unknown = [name for name in value.step_names if name not in choices]
    if unknown:
        return (
            f"decision {claim.step_name!r} chose {_listed(unknown)}, which"
            f" {'does' if len(unknown) == 1 else 'do'} not depend on it;"
            f" it can choose {_listed(sorted(choices)) if choices else 'nothing'}"
        )
    return None


def _listed(names: Sequence[str], shown: int = 20) -> str:
    listed = ", ".join(repr(name) for name in names[:shown])
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more"


def checked(claim: Claim, outcome: Outcome) -> Outcome:
    """An outcome of `from_value`, with its result held to the step's schema where there is one."""
    if claim.result_schema is None or not outcome.succeeded or outcome.result is None:
        return outcome
    try:
        fault = fault_of_result(claim.result_schema, outcome.result)
    except Exception as error:  # of a library, about a schema that somebody wrote
        fault = f"cannot be validated: {type(error).__name__}: {error}"
    if fault is None:
        return outcome
    return failure(ErrorType.RESULT_SCHEMA_ERROR, f"result of step {claim.step_name!r} {fault}", retryable=False)


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
    text = None
    if metadata:
        try:
            text = encode(dict(metadata))
            if len(text) > _METADATA_CHARACTERS:
                raise NotJson(f"is longer than {_METADATA_CHARACTERS} characters")
        except Exception as fault:  # the failure itself matters more than what was said about it
            logger.warning("metadata of a failure is dropped: it %s", fault)
            text = None
    return Outcome(
        OutcomeKind.FAIL,
        metadata=text,
        error_type=clean_text(str(error_type), 256),
        message=clean_text(str(message), _MESSAGE_CHARACTERS),
        traceback=trace,
        retryable=bool(retryable),
        retry_after_ms=None if retry_after is None else round(min(retry_after, 1e9) * 1000),
    )


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
