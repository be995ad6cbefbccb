"""Runs the tests where races show: beside busy processes, with threads that change places every 10 µs.

``make test-under-load`` is ``PYTHONPATH=tests python -m support.under_load`` with the arguments for pytest behind
``--``. The interval holds in the test processes and in every Python process that they start (see
``switch_interval/sitecustomize.py``). Longest waits of tests are multiplied by ``TASKER_TEST_PATIENCE`` (3 unless it is
set) and the time limit of a test with it; what the product promises is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SWITCH_INTERVAL = Path(__file__).with_name("switch_interval")
TEST_SECONDS = 300
"""The time limit of a test in pyproject.toml."""

_BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):  # another one takes the parent's place when it ends, however it ends
    for _ in range(100_000):
        pass
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of pytest."""
    parser = argparse.ArgumentParser(prog="make test-under-load", description=__doc__)
    parser.add_argument("--busy", type=int, default=2, help="how many busy processes (%(default)s)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    options = parser.parse_args(arguments)
    environment = environment_under_load(os.environ)
    patience = float(environment["TASKER_TEST_PATIENCE"])
    print(f"beside {options.busy} busy processes, longest waits × {patience:g}", flush=True)
    command = [sys.executable, "-m", "pytest", f"--timeout={TEST_SECONDS * patience:g}", *options.pytest]
    with busy_processes(options.busy), subprocess.Popen(command, env=environment) as tests:
        while True:
            try:
                return tests.wait()
            except KeyboardInterrupt:
                continue  # it reaches pytest as well, which ends by itself


def environment_under_load(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process whose threads, and those of all Python processes below it, change places often."""
    folders = [str(SWITCH_INTERVAL), *filter(None, [environment.get("PYTHONPATH")])]
    return {"TASKER_TEST_PATIENCE": "3", **environment, "PYTHONPATH": os.pathsep.join(folders)}


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that do nothing but compute while the context is open; they also end when this process does."""
    command = [sys.executable, "-I", "-S", "-c", _BUSY, str(os.getpid())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.extend(subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(count))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
