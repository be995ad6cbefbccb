"""Real worker processes for tests, and templates for them to work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.python_path import python_path
from support.waiting import PATIENCE
from tasker.model.template import TemplateSpec, parse_template_spec

TESTS = Path(__file__).resolve().parent.parent


def worker_environment(url: str, name: str) -> dict[str, str]:
    """The variables of a worker process that handles what is in the tests' folder."""
    return {
        **os.environ,
        "PYTHONPATH": python_path(TESTS),
        "DATABASE_URL": url,
        "TASKER_WORKER_NAME": name,
        "TASKER_NAMESPACE": "default",
        "TASKER_WEB_ENABLED": "false",
    }


class WorkerProcess:
    """One `python -m tasker_worker`. Its output goes to `log`."""

    def __init__(self, url: str, name: str, modules: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        variables = {**worker_environment(url, name), **environment}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasker_worker", *modules], env=variables, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._process.kill()
        self._process.wait(timeout=10 * PATIENCE)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """The exit code, once it ended by itself."""
        return self._process.wait(timeout=timeout * PATIENCE)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if that does not end it."""
        if not self.running():
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(timeout=15 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def worker_processes(
    url: str, folder: Path, names: Sequence[str], modules: Sequence[str], **environment: str
) -> Iterator[list[WorkerProcess]]:
    """Starts a worker for each name and stops all of them in the end."""
    started: list[WorkerProcess] = []
    try:
        started.extend(WorkerProcess(url, name, modules, folder / f"{name}.log", environment) for name in names)
        yield started
    finally:
        for worker in started:
            worker.stop()


def chain(callables: Sequence[str], **step: Any) -> TemplateSpec:
    """A template whose steps run one after the other; `step` goes into each."""
    names = [f"step-{place}" for place in range(len(callables))]
    return parse_template_spec(
        {
            "steps": [
                {
                    "name": name,
                    "handler": {"callable": callables[place]},
                    "dependsOn": names[place - 1 : place] if place else [],
                    **step,
                }
                for place, name in enumerate(names)
            ]
        }
    )
