"""Log lines are JSON and say which step they belong to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tasker_worker.errors import ConfigurationError
from tasker_worker.logging import JsonLines, bound_to, configure, log_debug, log_error, log_info, log_warn
from tasker_worker.testing import make_context


@pytest.fixture
def lines() -> Iterator[Any]:
    """Configures logging as the worker process does; gives what was written, parsed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()

    def begin(level_name: str = "info") -> Any:
        configure(level_name, stream=stream, worker="w-1")
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield begin
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("psycopg").setLevel(logging.NOTSET)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)


def test_a_line_holds_level_message_fields_and_what_is_bound(lines: Any) -> None:
    read = lines()
    log_info("charged", component="payment", amount=12.5)
    log_warn("slow")
    [first, second] = read()
    assert first["message"] == "charged"
    assert (first["level"], second["level"]) == ("info", "warning")
    assert (first["component"], first["amount"], first["worker"]) == ("payment", 12.5, "w-1")
    assert first["timestamp"].endswith("+00:00")


def test_inside_a_step_every_line_has_its_ids_from_whatever_logger(lines: Any) -> None:
    read = lines()
    context = make_context(step_name="pay", attempt=2, correlation_id="c-7")
    with bound_to(context):
        log_info("ours")
        logging.getLogger("some.library").warning("theirs")
    log_info("outside")
    [ours, theirs, outside] = read()
    for line in (ours, theirs):
        assert (line["step"], line["attempt"], line["correlation_id"]) == ("pay", 2, "c-7")
        assert (line["task_uuid"], line["step_uuid"]) == (context.task_uuid, context.step_uuid)
    assert "step" not in outside


def test_the_level_is_kept_to(lines: Any) -> None:
    read = lines("warn")
    log_debug("no")
    log_info("no")
    log_error("yes")
    assert [line["message"] for line in read()] == ["yes"]


def test_an_error_inside_an_except_block_brings_its_traceback(lines: Any) -> None:
    read = lines()
    try:
        raise ValueError("wrong")
    except ValueError:
        log_error("failed")
    log_error("just said")
    [failed, said] = read()
    assert "ValueError: wrong" in failed["traceback"]
    assert "traceback" not in said


def test_fields_are_written_as_results_are_and_secrets_not_at_all(lines: Any) -> None:
    read = lines()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    log_info("x", thing={1}, at=at, api_token="abc", Password="def", input_tokens=1500, login={"password": "ghi"})
    [line] = read()
    assert (line["thing"], line["at"], line["input_tokens"]) == ([1], "2026-01-01T00:00:00Z", 1500)
    assert (line["api_token"], line["Password"], line["login"]) == ("***", "***", {"password": "***"})


def test_a_field_takes_no_other_ones_place(lines: Any) -> None:
    read = lines()
    log_info("x", message="mine", worker="w-1")
    [line] = read()
    assert (line["message"], line["field_message"]) == ("x", "mine")
    assert "field_worker" not in line


class Hostile:
    """Raises whenever anything is done with it."""

    def __str__(self) -> str:
        raise OSError("no")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise OSError("no")

    __hash__ = None  # type: ignore[assignment]


class HostileError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise OSError("no")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "nan"),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ("\ud800", "\\ud800"),
        (Hostile(), "(Hostile, which cannot be read)"),
        ([Hostile()], ["(Hostile, which cannot be read)"]),
    ],
    ids=["nan", "key", "half a character", "hostile", "hostile in a list"],
)
def test_no_value_costs_the_line_or_makes_it_something_else_than_json(lines: Any, value: Any, written: Any) -> None:
    read = lines()
    log_info("x", value=value, message=value)
    [line] = read()
    assert (line["message"], line["value"], line["field_message"]) == ("x", written, written)


def test_no_message_and_no_exception_costs_the_line_either(lines: Any) -> None:
    read = lines()
    logger = logging.getLogger("some.library")
    logger.warning("%d of %d", "one")
    logger.warning("half \ud800")
    logger.warning(Hostile())
    try:
        raise HostileError("\ud800")
    except HostileError:
        log_error("failed")
    [unfit, half, hostile, failed] = read()
    assert unfit["message"] == "%d of %d (its arguments do not fit: ['one'])"
    assert half["message"] == "half \\ud800"
    assert hostile["message"].startswith("(Hostile, which cannot be read)")
    assert failed["message"] == "failed"
    assert "HostileError" in failed["traceback"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no log level 'loud'; there are trace, debug, info"):
        configure("loud")


def test_only_an_error_brings_the_traceback_of_an_except_block(lines: Any) -> None:
    read = lines("debug")
    try:
        raise ValueError("wrong")
    except ValueError:
        log_warn("tried again")
        log_info("tried again")
        log_debug("tried again")
    assert ["traceback" in line for line in read()] == [False] * 3


@pytest.mark.parametrize(("level", "written"), [("trace", 5), ("debug", 4), ("info", 3), ("warn", 2), ("error", 1)])
def test_each_level_lets_through_what_is_at_least_as_grave(lines: Any, level: str, written: int) -> None:
    read = lines(level)
    logging.getLogger("some.library").log(5, "x")
    for log in (log_debug, log_info, log_warn, log_error):
        log("x")
    assert [line["level"] for line in read()] == ["trace", "debug", "info", "warning", "error"][5 - written :]
    assert (
        logging.getLogger("psycopg").level == logging.getLogger("asyncio").level == max(30, {"error": 40}.get(level, 0))
    )


def test_a_step_is_bound_for_the_block_and_what_was_bound_before_comes_back(lines: Any) -> None:
    read = lines()
    with bound_to(make_context(step_name="outer")):
        with bound_to(make_context(step_name="inner")):
            log_info("x")
        log_info("x")
    assert [line["step"] for line in read()] == ["inner", "outer"]


def test_below_trace_nothing_is_written(lines: Any) -> None:
    read = lines("trace")
    for level in (4, 5):
        logging.getLogger("some.library").log(level, "x")
    assert len(read()) == 1


def test_a_line_is_text_as_people_read_it_with_a_time_to_the_millisecond() -> None:
    record = logging.makeLogRecord({"msg": "café", "levelno": logging.INFO, "levelname": "INFO", "created": 1.25})
    lines = JsonLines()
    assert not lines.usesTime(), "as any formatter, it can be asked"
    assert lines.format(record) == (
        '{"timestamp": "1970-01-01T00:00:01.250+00:00", "level": "info", "logger": null, "message": "café"}'
    )
