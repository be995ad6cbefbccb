"""kopf, unmodified, finds what it needs: discovery, watches, patches, finalizers, events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

from support.apiserver import Kubectl
from support.waiting import PATIENCE

HANDLERS = Path(__file__).with_name("kopf_handlers.py")


class Lines:
    """The lines that a process prints, waited for one by one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._seen: list[str] = []
        self._queue: Queue[str] = Queue()
        self._reader = Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._queue.put(line.rstrip("\n"))

    def wait_for(self, text: str) -> None:
        while True:
            try:
                line = self._queue.get(timeout=20)
            except Exception as error:
                raise AssertionError(f"{text!r} never came; before it: {self._seen}") from error
            self._seen.append(line)
            if text in line:
                return

    def join(self) -> None:
        self._reader.join(timeout=5)


@pytest.fixture
def operator_lines(kubectl: Kubectl) -> Iterator[Lines]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kopf", "run", str(HANDLERS), "--namespace", kubectl.namespace, "--standalone"],
        env={**os.environ, "KUBECONFIG": str(kubectl.kubeconfig), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = Lines(process)
    try:
        lines.wait_for("Initial authentication has finished")
        yield lines
    finally:
        process.terminate()
        try:
            assert process.wait(timeout=15 * PATIENCE) == 0
        finally:
            process.kill()
            lines.join()
            assert process.stdout is not None
            process.stdout.close()


def test_handlers_follow_resources_through_their_life(kubectl: Kubectl, operator_lines: Lines) -> None:
    task = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": "t"},
        "spec": {"templateRef": {"name": "x"}},
    }
    pool = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": "p"},
        "spec": {"handlers": ["h"]},
    }
    kubectl.apply(task)
    operator_lines.wait_for("event ADDED t")
    kubectl("patch", "task", "t", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    operator_lines.wait_for("event MODIFIED t")
    kubectl("delete", "task", "t")
    operator_lines.wait_for("event DELETED t")

    kubectl.apply(pool)
    operator_lines.wait_for("create p after 1 retries")
    kubectl("wait", "--for=jsonpath={.status.reason}=created", "workerpool/p", "--timeout=10s")
    assert kubectl.get("workerpool", "p")["metadata"]["finalizers"] == ["kopf.zalando.org/KopfFinalizerMarker"]
    kubectl("patch", "workerpool", "p", "--type=merge", "-p", json.dumps({"spec": {"maxReplicas": 3}}))
    operator_lines.wait_for("update p 10 -> 3")
    kubectl("delete", "workerpool", "p", "--timeout=20s")
    operator_lines.wait_for("delete p")
    assert '"p" not found' in kubectl.fails("get", "workerpool", "p")
