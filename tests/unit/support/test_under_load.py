"""The load of ``make test-under-load`` is there, reaches every Python process, and goes however the run ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.under_load import busy_processes, environment_under_load, main
from support.waiting import eventually
from support.workers import worker_environment

TESTS = Path(__file__).parents[2]
INTERVAL = "import sys; print(sys.getswitchinterval())"


def printed(code: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_threads_of_every_process_below_change_places_every_10_microseconds() -> None:
    environment = environment_under_load({"PATH": os.environ["PATH"]})
    below = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {INTERVAL!r}], check=True)"
    assert float(printed(INTERVAL, environment)) == pytest.approx(1e-5)
    assert float(printed(below, environment)) == pytest.approx(1e-5)


def test_worker_processes_of_the_tests_are_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_under_load({}).items():
        monkeypatch.setenv(name, value)
    environment = worker_environment("postgresql://nowhere", "w")
    assert float(printed(INTERVAL, environment)) == pytest.approx(1e-5)


def test_the_path_that_was_there_and_a_patience_that_was_set_stay() -> None:
    environment = environment_under_load({"PYTHONPATH": "/somewhere", "TASKER_TEST_PATIENCE": "7"})
    assert environment["PYTHONPATH"].split(os.pathsep)[1:] == ["/somewhere"]
    assert environment["TASKER_TEST_PATIENCE"] == "7"


def test_busy_processes_end_with_the_run() -> None:
    with busy_processes(2) as started:
        assert [process.poll() for process in started] == [None, None]
    assert [process.poll() is not None for process in started] == [True, True]


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the state of a process is read from /proc: Linux has it"
)
def test_busy_processes_end_with_a_run_that_is_killed() -> None:
    code = (
        "from support.under_load import busy_processes\nimport sys\n"
        "with busy_processes(1) as started:\n    print(started[0].pid, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        busy = int(run.stdout.readline())
        assert is_running(busy)
        run.kill()
        run.wait()
    eventually(lambda: not is_running(busy), what="the busy process ends")


def test_the_exit_code_is_pytests(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text(f"{INTERVAL}\ndef test_one(): assert sys.getswitchinterval() < 2e-5\n")
    quiet = ["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", os.devnull]
    assert main(["--busy", "1", "--", *quiet, str(file)]) == 0
    file.write_text("def test_one(): assert False\n")
    assert main(["--busy", "0", "--", *quiet, str(file)]) == 1
