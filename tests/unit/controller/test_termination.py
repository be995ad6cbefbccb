"""How the operator process ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasker.controller.runtime.termination import (
    END_SECONDS,
    MESSAGE_BYTES,
    ExitCode,
    Signals,
    end_in_any_case,
    leave_message,
)
from tasker.settings import termination_log


def test_the_message_replaces_what_the_file_held(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("of the container before, and longer")
    leave_message(file, "part 'sweep' ended by itself")
    assert file.read_text() == "part 'sweep' ended by itself"


def test_where_kubernetes_has_made_no_file_none_is_made(tmp_path: Path) -> None:
    leave_message(tmp_path / "log", "a reason")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    leave_message(tmp_path, "a reason")
    assert tmp_path.is_dir()


def test_a_long_message_is_cut_at_its_end_between_characters(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch()
    leave_message(file, "x" + "é" * MESSAGE_BYTES)
    assert file.read_text(encoding="utf-8") == "x" + "é" * ((MESSAGE_BYTES - 1) // 2)
    leave_message(file, "x" * (MESSAGE_BYTES + 1))
    assert file.stat().st_size == MESSAGE_BYTES == 4096


def test_the_file_is_kubernetes_own_unless_told() -> None:
    assert termination_log({}) == Path("/dev/termination-log")
    assert termination_log({"TASKER_TERMINATION_LOG": "/run/last"}) == Path("/run/last")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_cancels_the_task_that_took_it(number: signal.Signals) -> None:
    taken: list[Signals] = []

    async def main() -> None:
        signals = Signals()
        signals.handle()
        taken.append(signals)
        assert not signals.received
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    level = logging.getLogger("kopf").level
    task = asyncio.create_task(main())
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
        assert taken[0].received
        assert logging.getLogger("kopf").level == logging.CRITICAL
    finally:
        logging.getLogger("kopf").setLevel(level)
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)


HANGS = """
import sys, threading
from pathlib import Path
from tasker.controller.runtime.termination import end_in_any_case

end_in_any_case(Path(sys.argv[1]), "part 'sweep' ended by itself", after_seconds=float(sys.argv[2]))
if sys.argv[3] == "hangs":
    threading.Event().wait()
"""


def ending(file: Path, after_seconds: float, then: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HANGS, str(file), str(after_seconds), then]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_broken_process_that_hangs_ends_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch()
    ended = ending(file, 0.1, "hangs")
    assert ended.returncode == ExitCode.BREAKDOWN
    reason = "part 'sweep' ended by itself; and the operator did not end in order within 0 s"
    assert file.read_text() == reason
    assert f"the operator ends: {reason}" in ended.stderr


def test_its_last_words_are_left_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, codes = tmp_path / "log", queue.SimpleQueue[int]()
    file.touch()
    monkeypatch.setattr(os, "_exit", codes.put)
    end_in_any_case(file, "it broke", after_seconds=0.0)
    assert codes.get(timeout=20) == ExitCode.BREAKDOWN
    assert file.read_text() == "it broke; and the operator did not end in order within 0 s"


def test_nobody_waits_for_the_thread_that_ends_it(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    end_in_any_case(tmp_path / "log", "it broke")
    [timer] = set(threading.enumerate()) - before
    assert isinstance(timer, threading.Timer)
    timer.cancel()
    assert (timer.daemon, timer.interval) == (True, END_SECONDS)


def test_an_end_in_order_does_not_wait_for_that(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch()
    assert ending(file, 3600.0, "ends").returncode == 0
    assert file.read_text() == ""


def test_a_pod_has_time_for_it() -> None:
    assert END_SECONDS < 30
