"""A worker started by plain function calls inside another program."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import NAMESPACE, open_lab, step
from support.waiting import eventually
from tasker_worker import HandlerRegistry, StepContext, Worker, lifecycle
from tasker_worker.errors import ConfigurationError, DatabaseError, WorkerError
from tasker_worker.exchange import Exchange
from tasker_worker.gateway import Gateway
from tasker_worker.hints import HintReceiver
from tasker_worker.lifecycle import BootstrapConfig, WorkerStatus


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
            await lab.engine.workers.hint_ready()

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


def test_a_port_that_is_taken_is_an_error_that_names_it_and_one_may_try_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKER_WEB_HOST", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(WorkerError, match=rf"^port {port} on 127\.0\.0\.1 cannot be used for health and metrics: "):
            lifecycle.bootstrap_worker(_config(database_url, lambda context: 1, web_enabled=True))
        assert not lifecycle.get_worker_status().running
    assert lifecycle.bootstrap_worker(_config(database_url, lambda context: 1, web_enabled=True)).running


# What goes wrong in it, or in the code of its handlers


@pytest.mark.parametrize("fault", [SystemExit(3), ValueError("no version")])
def test_code_of_handlers_that_keeps_the_status_from_being_told_does_no_more_than_that(
    database_url: str, fault: BaseException
) -> None:
    config = _config(database_url, lambda context: 1)
    assert config.registry is not None

    def look_up(name: str) -> Any:
        raise type(fault)(*fault.args)

    config.registry.add_resolver("fails", look_up, priority=1)
    answers = [
        lifecycle.bootstrap_worker(config),
        lifecycle.bootstrap_worker(config),
        lifecycle.get_worker_status(),
        lifecycle.transition_to_graceful_shutdown(),
    ]
    assert [status.message for status in answers] == [
        "the worker runs",
        "a worker is running already",
        "the worker is running",
        "the worker is stopping",
    ]
    for status in answers:
        assert status.running
        assert status.details["fault"] == f"{type(fault).__name__}: {fault}"
        assert status.details["state"] in ("running", "stopping")
    assert not lifecycle.stop_worker().running


@pytest.fixture
def break_worker(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes workers whose exchange breaks when the event is set."""
    wanted = threading.Event()

    async def run(exchange: Exchange) -> None:
        await asyncio.to_thread(wanted.wait, 20)
        raise LookupError("of the exchange")

    monkeypatch.setattr(Exchange, "run", run)
    return wanted


@pytest.mark.parametrize("outcomes_left", [0, 2])
def test_a_worker_that_broke_after_its_start_leaves_the_reason(
    database_url: str, break_worker: threading.Event, monkeypatch: pytest.MonkeyPatch, outcomes_left: int
) -> None:
    monkeypatch.setattr(Exchange, "outcomes_waiting", outcomes_left)
    assert lifecycle.bootstrap_worker(_config(database_url, lambda context: 1)).failure is None
    break_worker.set()
    reason = "the worker broke: LookupError('of the exchange')"
    status = eventually(lambda: None if (now := lifecycle.get_worker_status()).running else now)
    assert status is not None
    assert (status.running, status.failure) == (False, reason)
    assert status.message == f"no worker is running; the last one failed: {reason}"
    with pytest.raises(
        WorkerError, match=r"no running worker to shut down; the last one failed: the worker broke: Look"
    ):
        lifecycle.transition_to_graceful_shutdown()
    stopped = lifecycle.stop_worker()
    assert (stopped.running, stopped.failure) == (False, reason)
    assert lifecycle.get_worker_status().failure is None


def test_a_new_worker_takes_the_place_of_one_that_broke(database_url: str, break_worker: threading.Event) -> None:
    lifecycle.bootstrap_worker(_config(database_url, lambda context: 1))
    break_worker.set()
    eventually(lambda: not lifecycle.get_worker_status().running)
    break_worker.clear()
    again = lifecycle.bootstrap_worker(_config(database_url, lambda context: 1))
    assert (again.running, again.message, again.failure) == (True, "the worker runs", None)
    assert lifecycle.get_worker_status().running
    break_worker.set()


def test_what_goes_wrong_with_a_graceful_shutdown_is_told_and_raised_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.bootstrap_worker(_config(database_url, lambda context: 1))
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "outcomes_waiting", 2)
        lifecycle.transition_to_graceful_shutdown()
        eventually(lambda: not lifecycle.get_worker_status().running)
    reason = "2 outcomes could not be settled before the worker had to stop"
    assert lifecycle.get_worker_status().failure == reason
    with pytest.raises(DatabaseError, match=reason):
        lifecycle.stop_worker()
    assert lifecycle.stop_worker() == WorkerStatus(running=False, message="no worker was running")


def test_what_goes_wrong_with_a_stop_is_raised(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle.bootstrap_worker(_config(database_url, lambda context: 1))
    monkeypatch.setattr(Exchange, "outcomes_waiting", 2)
    with pytest.raises(DatabaseError, match="2 outcomes could not be settled"):
        lifecycle.stop_worker()
    assert lifecycle.stop_worker() == WorkerStatus(running=False, message="no worker was running")


def test_a_start_that_fails_at_its_end_leaves_no_port_no_thread_and_no_registration(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise ConfigurationError("of the receiver")

    monkeypatch.setattr(HintReceiver, "__init__", fails)
    monkeypatch.setenv("TASKER_WEB_HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", "0")
    with pytest.raises(ConfigurationError, match="of the receiver"):
        lifecycle.bootstrap_worker(_config(database_url, lambda context: 1, web_enabled=True))
    assert _threads() == set()
    assert _registered(database_url) == []


# Interrupts. Ctrl-C is a signal, and what it interrupts is the main thread, which runs the tests.


def test_an_interrupt_when_the_worker_runs_already_ends_it(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(worker: Worker) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "status", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lifecycle.bootstrap_worker(_config(database_url, lambda context: 1))
    assert _threads() == set()
    assert _registered(database_url) == []
    assert not lifecycle.get_worker_status().running


def test_a_stop_that_is_asked_for_at_the_end_of_the_start_claims_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(database_url, lambda context: "done")
    worker = Worker(config.registry, database_url=database_url, namespace=NAMESPACE, web_enabled=False)
    _submit(database_url)

    async def asks(gateway: Gateway, name: str) -> list[str]:
        worker.request_stop()  # as from another thread: the loop comes to know of it in its next turn
        return []

    monkeypatch.setattr(Gateway, "unhandled_callables", asks)
    asyncio.run(worker.run())
    assert _results(database_url) == [None]
    assert worker.metrics.calls == 0
    assert _registered(database_url) == []


def test_an_interrupt_of_a_stop_leaves_it_to_another_call(database_url: str) -> None:
    held = Held()
    lifecycle.bootstrap_worker(_config(database_url, held))
    _submit(database_url)
    assert held.began.wait(10)

    class Interrupter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "stopping: no new work is taken":
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = Interrupter()
    logger = logging.getLogger("tasker_worker.worker")
    level = logger.level
    logger.addHandler(interrupter)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            lifecycle.stop_worker()
    finally:
        logger.removeHandler(interrupter)
        logger.setLevel(level)
    assert lifecycle.get_worker_status().message == "the worker is stopping"
    held.go.set()
    assert lifecycle.stop_worker().message == "the worker has stopped"
    assert _results(database_url) == ["done"]


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"worker", "web", "leases"}


def _registered(url: str) -> list[Any]:
    async def read() -> list[Any]:
        async with open_lab(url) as lab:
            return await lab.rows("select name from tasker.workers")

    return asyncio.run(read())
