"""A worker inside another program: started, asked about and stopped by plain function calls, one a process.

The worker runs on an event loop in a thread of its own. Nothing but a TaskerError ever leaves these functions, except
for the KeyboardInterrupt of a person who waits for one of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .errors import TaskerError, WorkerError
from .eventloop import run_unharmed
from .registry import HandlerRegistry
from .settings import load_settings
from .worker import Worker

logger = logging.getLogger("tasker_worker.lifecycle")

_ABANDON_SECONDS = 10.0  # for a worker whose start was interrupted to end, before the interrupt goes on without it
_TURN_SECONDS = 0.5  # of a wait that a person may interrupt


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapConfig:
    """What to start; None leaves a setting to the environment and the file."""

    modules: Sequence[str] = ()
    registry: HandlerRegistry | None = None
    database_url: str | None = field(default=None, repr=False)
    namespace: str | None = None
    environment: str | None = None
    config_path: Path | None = None
    slots: int | None = None
    web_enabled: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """How the worker of this process is."""

    running: bool
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    """As in /health/detailed; empty when none runs, a `fault` beside the `state` when the handlers' code forbids it."""
    failure: str | None = None
    """Why the last worker ended, when it did not end as it should; until the next one is started or `stop_worker`."""


class _Running:
    """A worker and the thread it lives in."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._live, name="worker", daemon=True)
        self.stop_requested = False

    def request_stop(self) -> None:
        self.stop_requested = True
        self.worker.request_stop()

    def abandon(self) -> None:
        """Have a worker end that nobody will know of. From here it claims nothing, however far its start has come."""
        self.request_stop()
        if self.thread.ident is not None:
            self.thread.join(_ABANDON_SECONDS)
            if self.thread.is_alive():
                logger.warning("a worker whose start was interrupted is still ending")

    def failure(self) -> BaseException | None:
        """What the worker ended with; None while it runs, and when it ended as it should."""
        return self.ended.exception() if self.ended.done() else None

    def status(self, message: str) -> WorkerStatus:
        """`message` with the worker's details, which it asks the handlers for, too: their code must do no harm here."""
        try:
            details = self.worker.status()
        except (Exception, SystemExit) as error:
            logger.error("the status of the worker cannot be read", exc_info=error)
            details = {"state": self.worker.state, "fault": _text(error)}
        return WorkerStatus(running=True, message=message, details=details)

    def _live(self) -> None:
        try:
            run_unharmed(self._work())
        except BaseException as error:  # for whoever waits, not for the thread's hook
            if not self.started.done():
                self.started.set_exception(error)
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    async def _work(self) -> None:
        await self.worker.start()
        self.started.set_result(None)
        await self.worker.run_started()


def _exception_of(future: concurrent.futures.Future[None]) -> BaseException | None:
    """What a future ends with.

    Waited for in turns: Python sees to a signal when a wait is interrupted by it, and one that comes just before
    the wait begins would be seen to when the future ends, no earlier.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            return future.exception(_TURN_SECONDS)


# Who starts or stops a worker holds the lock. Readers of `_running` need none: they take it once, and what it names
# only ever goes from running to ended.
_lock = threading.Lock()
_running: _Running | None = None


def bootstrap_worker(config: BootstrapConfig | None = None) -> WorkerStatus:
    """Start this process's worker and return when it works. A second call finds it running and starts nothing.

    Raises ConfigurationError, WorkerError (port taken) or DatabaseError (unreachable); one may try again after each.
    When it is interrupted (Ctrl-C), what it has started ends before the interrupt goes on.
    """
    global _running
    with _lock:
        if _running is not None and not _running.ended.done():
            return _running.status("a worker is running already")
        try:
            running = _Running(_worker_for(config or BootstrapConfig()))
        except (Exception, SystemExit) as error:
            _raise(error)
        try:
            running.thread.start()
            # What the worker's thread raised comes back as a value; what is raised here is this thread's own.
            failure = _exception_of(running.started)
            if failure is not None:
                _raise(failure)
            _running = running
            return running.status("the worker runs")
        except BaseException as error:
            running.abandon()
            if isinstance(error, Exception):
                _raise(error)
            raise


def get_worker_status() -> WorkerStatus:
    """How the worker is. `running` is false, without an error, when there is none; `failure` says why it broke."""
    running = _running
    if running is None or running.ended.done():
        return _not_running("no worker is running", running)
    return running.status(f"the worker is {running.worker.state}")


def transition_to_graceful_shutdown() -> WorkerStatus:
    """Tell the worker to take no more work and to stop when its handlers have ended, without waiting for that.

    What goes wrong with that is raised by `stop_worker`, and told by `get_worker_status`. Raises WorkerError when none
    is running.
    """
    running = _running
    if running is None or running.ended.done():
        raise WorkerError(_not_running("there is no running worker to shut down", running).message)
    running.request_stop()
    return running.status("the worker is stopping")


def stop_worker() -> WorkerStatus:
    """Stop the worker and wait until it has: handlers end within the grace first. Without a worker, a success too.

    Raises DatabaseError when outcomes could not be settled, WorkerError for all else that kept it from ending as it
    should, also when it was asked to stop before by `transition_to_graceful_shutdown`; once. A worker that broke by
    itself is none any more: that is a success, with the `failure`.
    """
    global _running
    with _lock:
        running = _running
        if running is None:
            return _not_running("no worker was running", None)
        was_running = not running.ended.done()
        if was_running:
            running.request_stop()
        failure = _exception_of(running.ended)  # an interrupt leaves it stopping, for another call to wait for
        running.thread.join()
        _running = None
        if failure is not None and running.stop_requested:
            _raise(failure)
        return _not_running("the worker has stopped" if was_running else "no worker was running", running)


def _not_running(message: str, last: _Running | None) -> WorkerStatus:
    failure = None if last is None else last.failure()
    if failure is None:
        return WorkerStatus(running=False, message=message)
    return WorkerStatus(
        running=False, message=f"{message}; the last one failed: {_text(failure)}", failure=_text(failure)
    )


def _worker_for(config: BootstrapConfig) -> Worker:
    environment = dict(os.environ)
    if config.config_path is not None:
        environment["TASKER_CONFIG_PATH"] = str(config.config_path)
    given = {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(config)
        if each.name not in ("modules", "registry", "config_path")
    }
    return Worker(config.registry, modules=config.modules, settings=load_settings(environment, **given))


def _raise(error: BaseException) -> NoReturn:
    """Raise the error as one of the tree's; what is of no kind that the SDK foresees is logged with its traceback."""
    if isinstance(error, TaskerError):
        raise error
    logger.error("a worker met something unforeseen", exc_info=error)
    raise WorkerError(_text(error)) from error


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, TaskerError) else f"{type(error).__name__}: {error}"


class ShutdownController:
    """Turns SIGTERM and SIGINT, or a call, into one orderly shutdown. A second signal ends the process at once."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        # Taken out one by one, which is atomic: whoever gets one calls it, be it a thread or the signal handler that
        # interrupts it, so each is called once. A lock would deadlock there.
        self._callbacks: deque[Callable[[], None]] = deque()
        self._before: dict[signal.Signals, Any] = {}

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when shutdown is requested, or now when it was. It is to return at once."""
        self._callbacks.append(callback)
        if self._requested.is_set():
            self._call_all()

    def register_signal_handlers(self) -> None:
        """Listen for SIGTERM and SIGINT; only in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)

    def restore_signal_handlers(self) -> None:
        """Undo `register_signal_handlers`."""
        while self._before:
            signal.signal(*self._before.popitem())

    def trigger(self) -> None:
        """Request shutdown from within the program."""
        self._requested.set()
        self._call_all()

    def is_shutdown_requested(self) -> bool:
        return self._requested.is_set()

    def wait_for_shutdown(self, timeout: float | None = None) -> bool:
        """Block until shutdown is requested; False when `timeout` seconds passed first."""
        return self._requested.wait(timeout)

    async def wait_for_shutdown_async(self) -> None:
        """The same for an event loop."""
        loop = asyncio.get_running_loop()
        requested = asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(requested.set)

        self.on_shutdown(tell)
        await requested.wait()

    def _call_all(self) -> None:
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # none is left
                return
            try:
                callback()
            except Exception:
                logger.exception("a shutdown callback failed")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._requested.is_set():
            # No clean-up of any kind: the first signal asked for that, and somebody is tired of waiting.
            os._exit(128 + number)
        logger.info("%s: shutting down", signal.Signals(number).name)
        self.trigger()
