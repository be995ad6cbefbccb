"""The operator as a process, against a cluster and a database that the test brings."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.node import launcher
from support.waiting import PATIENCE, eventually


class OperatorProcess:
    """One `python -m tasker.controller`, or another module of this name. Its output goes to `log_file`."""

    def __init__(
        self,
        database_url: str,
        kubeconfig: Path,
        log_file: Path,
        *,
        module: str = "tasker.controller",
        **environment: str,
    ) -> None:
        self._log_file = log_file
        variables = {
            **os.environ,
            "DATABASE_URL": database_url,
            "KUBECONFIG": str(kubeconfig),
            "TASKER_HEALTH_HOST": "127.0.0.1",
            "TASKER_HEALTH_PORT": "0",
            "TASKER_LOG_FORMAT": "text",
            **environment,
        }
        with log_file.open("ab") as output:
            # Through the launcher, so that not even a killed test process leaves an operator behind.
            ends_with_us = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())]
            command = [*ends_with_us, sys.executable, "-m", module]
            self._process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)

    @property
    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8")

    def await_log(self, text: str, *, timeout: float = 20.0) -> None:
        """Until the log has the text; fails at once when the process ended."""

        def probe() -> bool:
            assert text in self.log, self.log[-3000:]
            return True

        eventually(probe, timeout=timeout, what=f"{text!r} is in the log")

    def await_ready(self, *, timeout: float = 20.0) -> None:
        def probe() -> bool:
            code, text = self.fetch("/readyz")
            assert code == 200, f"{text}\n{self.log[-3000:]}"
            return True

        eventually(probe, timeout=timeout)

    def fetch(self, path: str) -> tuple[int, str]:
        """Status and text of the operator's own HTTP side."""
        port = re.search(r"health and metrics are on port (\d+)", self.log)
        if port is None:
            return 0, "not listening yet"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        _, text = self.fetch("/metrics")
        total = 0.0
        for line in text.splitlines():
            sample = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if sample is not None and all(f'{key}="{value}"' in (sample[1] or "") for key, value in labels.items()):
                total += float(sample[2])
        return total

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, *, timeout: float = 10.0) -> int:
        """Sends the signal and waits; the exit code."""
        self.send(number)
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 10.0) -> int:
        return self._process.wait(timeout * PATIENCE)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@contextmanager
def running_operator(
    database_url: str, kubeconfig: Path, log_file: Path, *, module: str = "tasker.controller", **environment: str
) -> Iterator[OperatorProcess]:
    """An operator process, killed in the end if it is still there. It may not be ready yet."""
    process = OperatorProcess(database_url, kubeconfig, log_file, module=module, **environment)
    try:
        yield process
    finally:
        process.kill()
