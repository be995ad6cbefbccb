"""Logging for handlers and for the worker: JSON lines that say which step they belong to.

`log_info("charged", amount=12)` inside a handler writes one line with the task, step, attempt and correlation id of the
attempt that runs it; so does any use of the standard library's logging, for the worker's formatter adds them. Handlers'
own threads keep the ids when started with `contextvars.copy_context().run`; asyncio tasks keep them by themselves.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from .context import StepContext
from .errors import ConfigurationError
from .readable import readable

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

#: The attempt that the current thread or asyncio task works on.
current_step: contextvars.ContextVar[StepContext | None] = contextvars.ContextVar("tasker_step", default=None)

_logger = logging.getLogger("tasker_worker.handler")
_FIELDS = "tasker_fields"


@contextlib.contextmanager
def bound_to(step: StepContext) -> Iterator[None]:
    """Lines logged inside say which step they belong to."""
    token = current_step.set(step)
    try:
        yield
    finally:
        current_step.reset(token)


def log_debug(message: str, /, **fields: Any) -> None:
    _log(logging.DEBUG, message, fields)


def log_info(message: str, /, **fields: Any) -> None:
    _log(logging.INFO, message, fields)


def log_warn(message: str, /, **fields: Any) -> None:
    _log(logging.WARNING, message, fields)


def log_error(message: str, /, **fields: Any) -> None:
    """Inside an `except` block the line holds the traceback too."""
    _log(logging.ERROR, message, fields, exc_info=sys.exception() is not None)


def _log(level: int, message: str, fields: dict[str, Any], exc_info: bool = False) -> None:
    if _logger.isEnabledFor(level):
        _logger.log(level, message, extra={_FIELDS: fields}, exc_info=exc_info)


def with_fields(**fields: Any) -> dict[str, Any]:
    """`extra=` for the standard library's logging, so that the fields stand in the JSON line by their names."""
    return {_FIELDS: fields}


class JsonLines(logging.Formatter):
    """One JSON object a line: timestamp, level, logger, message, what is bound, and the fields of the call.

    A field whose name tells of a secret is written as ``***``, at whatever depth (see `readable`). Values are written
    as a result's would be; those that are not JSON by any rule as their text. Whatever is logged, there is a line.
    """

    def __init__(self, **bound: Any) -> None:
        super().__init__()
        self._bound = readable(bound)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": "trace" if record.levelno < logging.DEBUG else record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **self._bound,
        }
        step = current_step.get()
        if step is not None:
            line |= {
                "task_uuid": step.task_uuid,
                "step_uuid": step.step_uuid,
                "step": step.step_name,
                "attempt": step.attempt,
                "correlation_id": step.correlation_id,
            }
        for name, value in readable(getattr(record, _FIELDS, {})).items():
            if line.setdefault(name, value) != value:
                line[f"field_{name}"] = value
        _, error, _ = record.exc_info or (None, None, None)
        if error is not None:
            line["traceback"] = _traceback(error)
        return json.dumps(line, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    """The message with its arguments put in; beside them when they do not fit, for a line is worth more than none."""
    try:
        return str(readable(record.getMessage()))
    except Exception:
        return f"{readable(record.msg)} (its arguments do not fit: {readable(record.args)})"


def _traceback(error: BaseException) -> str:
    try:
        return str(readable("".join(traceback.format_exception(error))))
    except Exception as fault:  # formatting calls code of the exception's class
        return f"{type(error).__name__} (its traceback cannot be formatted: {type(fault).__name__})"


def configure(level: str, *, stream: TextIO | None = None, **bound: Any) -> None:
    """Send everything that is logged in this process to `stream` (stderr) as JSON lines, from `level` up.

    `bound` stands in every line. For the worker process; a program that embeds a worker keeps its own logging.
    """
    if level not in LEVELS:
        raise ConfigurationError(f"there is no log level {level!r}; there are {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(**bound))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for chatty in ("asyncio", "psycopg"):
        logging.getLogger(chatty).setLevel(max(LEVELS[level], logging.WARNING))
