"""A worker started by plain function calls inside another program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import NAMESPACE, open_lab, step
from support.waiting import eventually
from tasker_worker import HandlerRegistry, StepContext, lifecycle
from tasker_worker.errors import DatabaseError, WorkerError
from tasker_worker.lifecycle import BootstrapConfig


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    lifecycle.stop_worker()


class Held:
    """A handler that waits in its thread until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, context: StepContext) -> Any:
        self.began.set()
        self.go.wait(20)
        return "done"


def _config(url: str, handler: Any, **changes: Any) -> BootstrapConfig:
    registry = HandlerRegistry()
    registry.register("do", handler)
    given = {"database_url": url, "namespace": NAMESPACE, "web_enabled": False, **changes}
    return BootstrapConfig(registry=registry, **given)


def _submit(url: str) -> None:
    async def submit() -> None:
        async with open_lab(url) as lab:
            await lab.run(step("a"))
            await lab.engine.hint_ready()

    asyncio.run(submit())


def _results(url: str) -> list[Any]:
    async def read() -> list[Any]:
        async with open_lab(url) as lab:
            return [row["result"] for row in await lab.rows("select result from tasker.steps")]

    return asyncio.run(read())


def test_it_starts_once_works_tells_how_it_is_and_stops(database_url: str) -> None:
    first = lifecycle.bootstrap_worker(_config(database_url, lambda context: "done", environment="test"))
    assert (first.running, first.message) == (True, "the worker runs")
    again = lifecycle.bootstrap_worker(_config(database_url, lambda context: "other"))
    assert (again.running, again.message) == (True, "a worker is running already")
    assert again.details["worker"] == first.details["worker"]
    _submit(database_url)
    eventually(lambda: lifecycle.get_worker_status().details["steps_succeeded"] == 1)
    eventually(lambda: _results(database_url) == ["done"])  # counted when it ends, settled after that
    status = lifecycle.get_worker_status()
    assert (status.running, status.details["environment"], status.details["ready"]) == (True, "test", True)
    assert lifecycle.stop_worker().message == "the worker has stopped"
    assert not lifecycle.get_worker_status().running
    assert lifecycle.bootstrap_worker(_config(database_url, lambda context: "done")).running


def test_graceful_shutdown_lets_running_work_end(database_url: str) -> None:
    held = Held()
    lifecycle.bootstrap_worker(_config(database_url, held))
    _submit(database_url)
    assert held.began.wait(10)
    told = lifecycle.transition_to_graceful_shutdown()
    assert told.message == "the worker is stopping"
    held.go.set()
    eventually(lambda: not lifecycle.get_worker_status().running)
    assert _results(database_url) == ["done"]
    with pytest.raises(WorkerError, match="there is no running worker to shut down"):
        lifecycle.transition_to_graceful_shutdown()


def test_a_database_that_is_not_there_is_an_error_and_one_may_try_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKER_STARTUP_SECONDS", "0.1")
    with pytest.raises(DatabaseError, match=r"the database cannot be reached after 0\.1 s"):
        lifecycle.bootstrap_worker(_config(f"postgresql://nobody@/none?host={tmp_path}", lambda context: 1))
    assert not lifecycle.get_worker_status().running
    assert lifecycle.bootstrap_worker(_config(database_url, lambda context: 1)).running
