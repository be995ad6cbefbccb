"""Asking for a worker that does not run, and the shutdown controller."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tasker_worker import HandlerRegistry, Worker, lifecycle
from tasker_worker.errors import ConfigurationError, WorkerError
from tasker_worker.eventloop import run_unharmed
from tasker_worker.lifecycle import BootstrapConfig, ShutdownController
from tasker_worker.settings import load_settings


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


class Interrupter(logging.Handler):
    """Sends SIGINT to the main thread, as Ctrl-C does, when a message is logged first, from whatever thread."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message
        self._sent = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == self._message and not self._sent:
            self._sent = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.fixture
def interrupt_at() -> Iterator[Callable[[str], None]]:
    """Call it with the message that is to be logged when the interrupt comes."""
    logger = logging.getLogger("tasker_worker")
    handlers: list[Interrupter] = []

    def arm(message: str) -> None:
        handlers.append(Interrupter(message))
        logger.addHandler(handlers[-1])

    yield arm
    for handler in handlers:
        logger.removeHandler(handler)


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"worker", "web", "leases"}


def _unreachable(folder: Path, **changes: Any) -> BootstrapConfig:
    """A worker that would wait for its database for ten minutes."""
    registry = HandlerRegistry()
    registry.register("do", lambda context: None)
    url = f"postgresql://nobody@/none?host={folder}"
    return BootstrapConfig(registry=registry, database_url=url, **{"web_enabled": False, **changes})


def test_an_interrupt_of_the_start_ends_what_was_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt_at: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TASKER_STARTUP_SECONDS", "600")
    monkeypatch.setenv("TASKER_WEB_HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", "0")
    interrupt_at("waiting for the database")
    with pytest.raises(KeyboardInterrupt):
        lifecycle.bootstrap_worker(_unreachable(tmp_path, web_enabled=True))
    assert _threads() == set()
    assert "still ending" not in caplog.text
    assert not lifecycle.get_worker_status().running
    assert lifecycle.stop_worker().message == "no worker was running"


def test_an_interrupt_does_not_wait_for_a_module_that_never_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared: Any = ModuleType("shared_with_the_handlers")
    shared.go = threading.Event()
    monkeypatch.setitem(sys.modules, shared.__name__, shared)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lifecycle, "_ABANDON_SECONDS", 0.0)
    (tmp_path / "endless_handlers.py").write_text(
        "import signal, threading, shared_with_the_handlers\n"
        "signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)\n"
        "shared_with_the_handlers.go.wait(20)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        lifecycle.bootstrap_worker(_unreachable(tmp_path, modules=["endless_handlers"]))
    assert "a worker whose start was interrupted is still ending" in caplog.text
    [left] = [thread for thread in threading.enumerate() if thread.name == "worker"]
    shared.go.set()
    left.join(10)
    assert _threads() == set()


def test_a_signal_that_comes_just_before_a_wait_begins_is_seen_to_in_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks at signals between its instructions and when a wait is interrupted: not in one that has begun."""
    waits: list[float | None] = []

    class Never(concurrent.futures.Future[None]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            waits.append(timeout)
            if len(waits) == 3:
                raise KeyboardInterrupt
            raise TimeoutError

    with pytest.raises(KeyboardInterrupt):
        lifecycle._exception_of(Never())
    assert waits == [0.5, 0.5, 0.5]
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()
    error = TimeoutError("of the worker")
    ended.set_exception(error)
    assert lifecycle._exception_of(ended) is error


def test_an_interrupt_that_a_module_raises_is_an_error_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted_handlers.py").write_text("raise KeyboardInterrupt('of the module')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerError, match=r"^KeyboardInterrupt: of the module$"):
        lifecycle.bootstrap_worker(_unreachable(tmp_path, modules=["interrupted_handlers"]))
    assert _threads() == set()


def test_a_thread_that_cannot_be_started_is_an_error_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(WorkerError, match=r"^RuntimeError: can't start new thread$"):
            lifecycle.bootstrap_worker(_unreachable(tmp_path))
    assert not lifecycle.get_worker_status().running


def test_a_wrong_url_for_listening_is_told_as_that_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKER_LISTEN_DATABASE_URL", "postgresql://me:hunter2@[/x")
    with pytest.raises(ConfigurationError) as refusal:
        lifecycle.bootstrap_worker(_unreachable(tmp_path))
    assert str(refusal.value) == "TASKER_LISTEN_DATABASE_URL is not a Postgres connection URL"
    assert _threads() == set()


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


def test_a_callback_that_comes_late_is_called_at_once(controller: ShutdownController) -> None:
    called: list[str] = []
    controller.trigger()
    controller.on_shutdown(lambda: called.append("called"))
    controller.trigger()
    assert called == ["called"]


def test_every_callback_is_called_once_however_many_ask_at_a_time(controller: ShutdownController) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    called: deque[int] = deque()
    together = threading.Barrier(4)

    def adds(first: int) -> None:
        together.wait()
        for number in range(first, first + 500):
            controller.on_shutdown(lambda number=number: called.append(number))  # type: ignore[misc]

    def triggers() -> None:
        together.wait()
        controller.trigger()

    threads = [threading.Thread(target=adds, args=(first,)) for first in (0, 500)]
    threads += [threading.Thread(target=triggers) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(called) == list(range(1000))


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


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_a_handler_left_behind_and_that_exits_when_cancelled_costs_nothing(error: BaseException) -> None:
    ended: list[str] = []

    async def exits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise error

    async def ends() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    async def generates() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("closed")

    left: list[Any] = []

    async def work() -> str:
        loop = asyncio.get_running_loop()
        left.extend([loop.create_task(exits()), loop.create_task(ends()), generates()])
        await anext(left[2])
        await asyncio.sleep(0)
        return "done"

    assert run_unharmed(work()) == "done"
    assert ended == ["ended", "closed"]
    assert left[0].exception() is error


def test_what_the_work_itself_raises_comes_out() -> None:
    async def work() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_unharmed(work())


def test_tasks_that_will_not_end_are_left_behind_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []
    wait = asyncio.wait

    async def noted(tasks: Any, *, timeout: float | None = None) -> Any:
        waited.append(timeout)
        return await wait(tasks, timeout=5)

    monkeypatch.setattr(asyncio, "wait", noted)
    left: list[asyncio.Task[Any]] = []

    async def work() -> None:
        left.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    run_unharmed(work())
    assert waited == [1.0]


def _not_begun() -> lifecycle._Running:
    return lifecycle._Running(Worker(settings=load_settings({"DATABASE_URL": "postgresql://localhost/x"})))


def test_a_worker_whose_start_was_interrupted_is_waited_for_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    running = _not_begun()
    joined: list[float] = []
    stuck = SimpleNamespace(ident=1, join=joined.append, is_alive=lambda: True)
    running.thread = stuck  # type: ignore[assignment]
    running.abandon()
    assert joined == [10.0]
    assert running.stop_requested
    assert "a worker whose start was interrupted is still ending" in caplog.text


def test_the_thread_of_a_worker_keeps_no_program_from_ending() -> None:
    assert _not_begun().thread.daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_with_the_code_of_the_signal(
    controller: ShutdownController, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    controller._on_signal(number, None)
    assert codes == []
    controller._on_signal(number, None)
    assert codes == [128 + number]


def test_what_nobody_foresaw_is_told_by_its_type_and_what_the_sdk_says_by_its_text() -> None:
    assert lifecycle._text(ValueError("x")) == "ValueError: x"
    assert lifecycle._text(WorkerError("x")) == "x"


def test_a_stop_waits_for_the_end_of_the_thread_and_forgets_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    running = _not_begun()
    joined: list[bool] = []
    running.thread = SimpleNamespace(join=lambda: joined.append(True))  # type: ignore[assignment]
    running.ended.set_result(None)
    monkeypatch.setattr(lifecycle, "_running", running)
    assert lifecycle.stop_worker().message == "no worker was running"
    assert joined == [True]
    assert lifecycle._running is None


def test_settings_that_end_the_program_when_they_are_read_are_an_error_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*given: Any, **settings: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr(lifecycle, "load_settings", ends)
    with pytest.raises(WorkerError, match=r"^SystemExit: 3$"):
        lifecycle.bootstrap_worker(_unreachable(tmp_path))
