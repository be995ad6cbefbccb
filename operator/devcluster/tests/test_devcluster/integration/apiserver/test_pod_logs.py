"""`kubectl logs` reads the files that the node writes."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import Api, Kubectl, RunningApiServer
from support.waiting import PATIENCE


@pytest.fixture
def kubectl(server: RunningApiServer, namespace: str) -> Kubectl:
    return Kubectl(kubeconfig=server.kubeconfig, namespace=namespace)


@pytest.fixture
def log(api: Api, server: RunningApiServer, namespace: str) -> Path:
    """The log file of the container `main` of the pod `a`."""
    pod: dict[str, Any] = {
        "metadata": {"name": "a"},
        "spec": {"nodeName": "here", "containers": [{"name": "main", "image": "x.example/y:1"}]},
    }
    api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    folder = server.folder / "logs" / namespace / "a"
    folder.mkdir(parents=True)
    return folder / "main.log"


def test_the_whole_log_or_its_tail(kubectl: Kubectl, log: Path) -> None:
    log.write_text("".join(f"line {number}\n" for number in range(10_000)) + "no newline at the end")
    assert kubectl("logs", "a").splitlines()[-2:] == ["line 9999", "no newline at the end"]
    assert kubectl("logs", "a", "--tail=2") == "line 9999\nno newline at the end"
    assert len(kubectl("logs", "a", "--tail=9000").splitlines()) == 9000
    assert kubectl("logs", "a", "--tail=0") == ""
    assert kubectl("logs", "a", "--limit-bytes=6") == "line 0"


def test_following_ends_with_the_pod(api: Api, kubectl: Kubectl, namespace: str, log: Path) -> None:
    log.write_text("one\n")
    with kubectl.running("logs", "a", "--follow") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        with log.open("a") as file:
            file.write("two\n")
        assert following.stdout.readline() == "two\n"
        api.merge(f"/api/v1/namespaces/{namespace}/pods/a/status", {"status": {"phase": "Succeeded"}})
        assert following.wait(timeout=10 * PATIENCE) == 0


def test_a_reader_that_goes_away_does_no_harm(api: Api, kubectl: Kubectl, log: Path) -> None:
    log.write_text("one\n")
    with kubectl.running("logs", "a", "--follow") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        os.kill(following.pid, signal.SIGKILL)
    assert api.get("/healthz").code == 200


def test_since_reads_the_time_in_the_lines(kubectl: Kubectl, log: Path) -> None:
    now = datetime.now(UTC)
    old, new = (now - timedelta(hours=2)).isoformat(), now.isoformat()
    log.write_text(f'{{"timestamp": "{old}", "message": "old"}}\n{{"timestamp": "{new}", "message": "new"}}\n  trace\n')
    assert kubectl("logs", "a", "--since=1h").splitlines()[-1] == "  trace"
    assert "old" not in kubectl("logs", "a", "--since=1h")
    log.write_text("no time here\n")
    assert "this log has none" in kubectl.fails("logs", "a", "--since=1h")


def test_what_is_not_there_is_said(kubectl: Kubectl, log: Path) -> None:
    assert 'container "main" in pod "a" is waiting to start' in kubectl.fails("logs", "a")
    assert "container other is not valid for pod a" in kubectl.fails("logs", "a", "-c", "other")
    assert 'previous terminated container "main" in pod "a" not found' in kubectl.fails("logs", "a", "--previous")
    log.with_name("main.previous.log").write_text("before\n")
    assert kubectl("logs", "a", "--previous") == "before\n"
    assert "timestamps are not available" in kubectl.fails("logs", "a", "--timestamps", "--previous")
