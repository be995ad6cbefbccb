"""Asking for a worker that does not run, and the shutdown controller."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasker_worker import lifecycle
from tasker_worker.errors import ConfigurationError, WorkerError
from tasker_worker.lifecycle import BootstrapConfig, ShutdownController
from tasker_worker.process import run_unharmed


def test_without_a_worker_status_and_stop_are_answers_and_graceful_shutdown_is_an_error() -> None:
    assert not lifecycle.get_worker_status().running
    stopped = lifecycle.stop_worker()
    assert (stopped.running, stopped.message) == (False, "no worker was running")
    with pytest.raises(WorkerError, match="there is no running worker to shut down"):
        lifecycle.transition_to_graceful_shutdown()


def test_a_worker_that_cannot_be_started_leaves_an_error_and_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="DATABASE_URL is required"):
        lifecycle.bootstrap_worker(BootstrapConfig())
    url = "postgresql://localhost/x"
    with pytest.raises(ConfigurationError, match="there are no handlers to run"):
        lifecycle.bootstrap_worker(BootstrapConfig(database_url=url, web_enabled=False))
    with pytest.raises(ConfigurationError, match="TASKER_CONFIG_PATH"):
        lifecycle.bootstrap_worker(BootstrapConfig(database_url=url, config_path=Path("/none.toml")))
    assert not lifecycle.get_worker_status().running


def test_the_password_is_not_in_the_text_of_the_configuration() -> None:
    assert "hunter2" not in repr(BootstrapConfig(database_url="postgresql://me:hunter2@db/x"))


@pytest.fixture
def controller() -> Iterator[ShutdownController]:
    made = ShutdownController()
    yield made
    made.restore_signal_handlers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_one_shutdown(controller: ShutdownController, number: signal.Signals) -> None:
    told: list[str] = []
    controller.on_shutdown(lambda: told.append("told"))
    before = signal.getsignal(number)
    controller.register_signal_handlers()
    assert not controller.is_shutdown_requested()
    assert not controller.wait_for_shutdown(timeout=0)
    os.kill(os.getpid(), number)
    assert controller.wait_for_shutdown(timeout=5)
    assert controller.is_shutdown_requested()
    controller.trigger()
    assert told == ["told"]
    controller.restore_signal_handlers()
    assert signal.getsignal(number) is before


def test_a_callback_that_fails_keeps_no_other_from_being_told(controller: ShutdownController) -> None:
    told: list[str] = []

    def fails() -> None:
        raise RuntimeError("no")

    controller.on_shutdown(fails)
    controller.on_shutdown(lambda: told.append("told"))
    controller.trigger()
    assert told == ["told"]


async def test_an_event_loop_can_wait_for_shutdown_too(controller: ShutdownController) -> None:
    waiting = asyncio.get_running_loop().create_task(controller.wait_for_shutdown_async())
    await asyncio.sleep(0)
    threading.Thread(target=controller.trigger).start()
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(controller.wait_for_shutdown_async(), 5)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_of_a_handler_that_exits_does_not_end_the_loop(error: BaseException) -> None:
    async def exits() -> None:
        raise error

    async def work() -> list[BaseException | None]:
        return [*await asyncio.gather(asyncio.get_running_loop().create_task(exits()), return_exceptions=True)]

    assert run_unharmed(work()) == [error]
