"""The worker process without a process: exit codes, last words, and that it ends."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasker_worker import __version__, process
from tasker_worker import logging as json_logging
from tasker_worker.errors import ConfigurationError, DatabaseError, WorkerError
from tasker_worker.termination import VARIABLE


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where last words go; the environment has what a worker needs beside that."""
    file = tmp_path / "words"
    for name in [name for name in os.environ if name.startswith("TASKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    levels = {name: logging.getLogger(name).level for name in ("", "asyncio", "psycopg")}
    yield file
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Ends:
    """In place of a Worker: ends with what it was given."""

    end: BaseException | None = None
    made: dict[str, Any]
    handlers: tuple[Any, ...]

    def __init__(self, **given: Any) -> None:
        type(self).made = given

    def request_stop(self) -> None: ...

    async def run(self) -> None:
        type(self).handlers = tuple(map(signal.getsignal, (signal.SIGTERM, signal.SIGINT)))
        if self.end is not None:
            raise self.end


def _broken(error: BaseException, cause: BaseException | None) -> BaseException:
    try:
        raise error from cause
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (None, 0, None),
        (ConfigurationError("no such handler"), 1, "no such handler"),
        (WorkerError("port 8081 is taken"), 1, "port 8081 is taken"),
        (DatabaseError("the database cannot be reached"), 2, "the database cannot be reached"),
        (ValueError("a fault of ours"), 1, "the worker broke: ValueError('a fault of ours')\nTraceback"),
        (SystemExit(7), 1, "the worker broke: SystemExit(7)\nTraceback"),
    ],
    ids=repr,
)
def test_the_exit_code_and_the_last_words_say_how_it_ended(
    words: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException | None, code: int, told: str | None
) -> None:
    monkeypatch.setattr(process, "Worker", Ends)
    monkeypatch.setattr(Ends, "end", end)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert process.main(["shop.handlers", "shop.more"]) == code
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert all(getattr(handler, "__name__", "") == "_on_signal" for handler in Ends.handlers)
    assert Ends.made["modules"] == ["shop.handlers", "shop.more"]
    assert Ends.made["settings"].database_url == "postgresql://localhost/x"
    if told is None:
        assert not words.exists()
    else:
        assert words.read_text().startswith(told)


def test_every_line_of_the_log_says_whose_it_is(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(process, "Worker", Ends)
    monkeypatch.setattr(Ends, "end", None)
    monkeypatch.setattr(json_logging, "configure", lambda level, **bound: told.update(level=level, **bound))
    for name, value in (("WORKER_NAME", "w-1"), ("NAMESPACE", "shop"), ("ENV", "test"), ("LOG", "debug")):
        monkeypatch.setenv(f"TASKER_{name}", value)
    assert process.main([]) == 0
    assert told == {"level": "debug", "worker": "w-1", "namespace": "shop", "environment": "test"}


@pytest.mark.parametrize("arguments", [["--no-such-option"], []])
def test_a_wrong_configuration_is_told_on_stderr_and_as_last_words(
    words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    if not arguments:
        monkeypatch.delenv("DATABASE_URL")
    assert process.main(arguments) == 1
    told = words.read_text()
    assert told in (
        "unrecognized arguments: --no-such-option (see --help)",
        "DATABASE_URL is required: the URL of the engine's Postgres database",
    )
    assert capsys.readouterr().err == f"tasker_worker: {told}\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        process.main(["--version"])
    assert capsys.readouterr().out == f"tasker-worker {__version__}\n"


def test_help_keeps_its_lines_and_names_the_modules_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        process.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: python -m tasker_worker ")
    assert "Runs workflow steps: claims them from the engine's database and calls their handlers." in lines
    assert any("modules or packages that define handlers, imported in this order" in line for line in lines)
    at = lines.index("  TASKER_SLOTS [worker.slots] in steps; default: 10")
    assert lines[at + 1].startswith("      How many steps to run at once. Default: handlers mostly wait")
    assert lines[-2:] == [
        "",
        "Exit codes: 0 done, 1 wrong configuration, port taken or worker broken, 2 database unreachable.",
    ]
    settings = lines[lines.index("  DATABASE_URL [database.url] in Postgres URL; default: required") : -2]
    assert all(line.startswith("  ") and len(line) <= 108 for line in settings)
    for line, following in itertools.pairwise(settings):
        if line.startswith("      ") and following.startswith("      "):
            assert len(line) + 1 + len(following.split()[0]) > 108, "a line takes all the words that it can"


@pytest.mark.parametrize(
    ("error", "sentence", "has_traceback"),
    [
        (ConfigurationError("wrong"), "wrong", False),
        (_broken(ConfigurationError("wrong"), ValueError("x")), "wrong", False),
        (_broken(DatabaseError("gone"), ValueError("x")), "gone", False),
        (WorkerError("no thread"), "no thread", False),
        (_broken(WorkerError("taken"), OSError("in use")), "taken", False),
        (_broken(WorkerError("the worker broke"), ValueError("x")), "the worker broke", True),
        (_broken(ValueError("x"), None), "the worker broke: ValueError('x')", True),
        (OSError("disk"), "the worker broke: OSError('disk')", False),
    ],
    ids=repr,
)
def test_a_traceback_is_told_of_what_nobody_foresaw(error: BaseException, sentence: str, has_traceback: bool) -> None:
    told, _, trace = process._last_words(error).partition("\n")
    assert told == sentence
    assert trace.endswith("ValueError: x\n") is has_traceback
    assert bool(trace) is has_traceback


def test_of_a_long_traceback_the_end_is_told() -> None:
    error = _broken(ValueError("x" * 5000), None)
    assert process._last_words(error).partition("\n")[2] == "x" * 2999 + "\n"


def test_threads_that_stay_are_cut_off_after_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            made.append(self)

    codes: list[int] = []
    flushed: list[bool] = []
    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: flushed.append(True))
    process.leave_threads_behind(7)
    [timer] = made
    assert (timer.interval, timer.daemon) == (3.0, True)
    timer.function()
    assert (codes, flushed) == ([7], [True])
