"""Log lines are JSON and say which step they belong to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tasker_worker.errors import ConfigurationError
from tasker_worker.logging import bound_to, configure, log_debug, log_error, log_info, log_warn
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


def test_what_is_not_json_is_written_as_text_and_secrets_not_at_all(lines: Any) -> None:
    read = lines()
    log_info("x", thing={1, 2}, api_token="abc", Password="def", message="mine")
    [line] = read()
    assert line["thing"] == "{1, 2}"
    assert (line["api_token"], line["Password"]) == ("***", "***")
    assert (line["message"], line["field_message"]) == ("x", "mine")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no log level 'loud'; there are trace, debug, info"):
        configure("loud")
