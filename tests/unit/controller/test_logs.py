"""The operator's log: one line a record, for machines or for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from tasker.controller.runtime.logs import JsonFormatter, configure_logging

CHATTY = ("kopf", "aiohttp", "psycopg")


@pytest.fixture
def loggers() -> Iterator[logging.Logger]:
    """The root logger; all that is configured here is put back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in CHATTY]
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    yield root
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for name, level in zip(CHATTY, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def make_record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("tasker.some", logging.WARNING, "file.py", 1, message, arguments, exc_info)
    record.created = 1924992000.1239
    return record


def test_a_record_is_one_json_object_on_one_line() -> None:
    line = JsonFormatter().format(make_record("Task %s:\nnot „found“", "a"))
    assert "\n" not in line
    assert "„found“" in line, "readable as it is"
    assert json.loads(line) == {
        "time": "2031-01-01T00:00:00.123+00:00",
        "level": "warning",
        "logger": "tasker.some",
        "message": "Task a:\nnot „found“",
    }


def test_an_error_brings_its_traceback() -> None:
    try:
        raise KeyError("spec")
    except KeyError as error:
        entry = json.loads(JsonFormatter().format(make_record("failed", error=error)))
    assert entry["traceback"].startswith("Traceback (most recent call last):")
    assert entry["traceback"].endswith("KeyError: 'spec'")


def test_json_goes_to_standard_error_from_the_level_on(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers.addHandler(logging.StreamHandler(sys.stdout))
    configure_logging("info", "json")
    logging.getLogger("tasker.some").info("shown")
    logging.getLogger("tasker.some").debug("hidden")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(line)["message"] for line in captured.err.splitlines()] == ["shown"]


def test_a_debug_record_that_another_logger_lets_through_stays_out(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the one that watch restarts are read from."""
    configure_logging("info", "text")
    opened = logging.getLogger("tasker.opened")
    opened.setLevel(logging.DEBUG)
    opened.debug("only for a handler of its own")
    assert capsys.readouterr().err == ""


def test_text_is_for_people(loggers: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "text")
    logging.getLogger("tasker.some").warning("shown")
    logging.getLogger("tasker.some").info("hidden")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(" WARNING tasker.some: shown")


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_libraries_chatter_is_shown_in_debug_alone(
    loggers: logging.Logger, capsys: pytest.CaptureFixture[str], level: str, shown: bool
) -> None:
    configure_logging(level, "text")
    for name in CHATTY:
        logging.getLogger(name).info("chatter of %s", name)
        logging.getLogger(name).warning("warning of %s", name)
    printed = capsys.readouterr().err
    for name in CHATTY:
        assert (f"chatter of {name}" in printed) == shown
        assert f"warning of {name}" in printed
