"""A worker inside another program: started, asked about and stopped by plain function calls, one a process.

The worker runs on an event loop in a thread of its own. Nothing but a TaskerError ever leaves these functions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import TaskerError, WorkerError
from .registry import HandlerRegistry
from .settings import load_settings
from .worker import Worker

logger = logging.getLogger("tasker_worker.lifecycle")


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
    """How the worker of this process is; `details` as in /health/detailed, empty when none runs."""

    running: bool
    message: str
    details: dict[str, Any] = field(default_factory=dict)


class _Running:
    """A worker and the thread it lives in."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._live, name="worker", daemon=True)

    def _live(self) -> None:
        from .process import run_unharmed  # it imports this module

        try:
            run_unharmed(self._work())
        except BaseException as error:  # told to whoever waits, not to the thread's hook
            if not self.started.done():
                self.started.set_exception(error)
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    async def _work(self) -> None:
        await self.worker.start()
        self.started.set_result(None)
        await self.worker.run_started()


_lock = threading.Lock()
_running: _Running | None = None


def bootstrap_worker(config: BootstrapConfig | None = None) -> WorkerStatus:
    """Start this process's worker and return when it works. A second call finds it running and starts nothing.

    Raises ConfigurationError, WorkerError (port taken) or DatabaseError (unreachable); one may try again after each.
    """
    global _running
    with _lock:
        if _running is not None and not _running.ended.done():
            return WorkerStatus(running=True, message="a worker is running already", details=_running.worker.status())
        try:
            running = _Running(_worker_for(config or BootstrapConfig()))
            running.thread.start()
            running.started.result()
        except TaskerError:
            raise
        except BaseException as error:
            raise _unforeseen(error) from error
        _running = running
        return WorkerStatus(running=True, message="the worker runs", details=running.worker.status())


def get_worker_status() -> WorkerStatus:
    """How the worker is; `running` is false, without an error, when there is none."""
    running = _running
    if running is None or running.ended.done():
        return WorkerStatus(running=False, message="no worker is running")
    try:
        details = running.worker.status()
    except Exception as error:
        raise _unforeseen(error) from error
    return WorkerStatus(running=True, message=f"the worker is {details['state']}", details=details)


def transition_to_graceful_shutdown() -> WorkerStatus:
    """Tell the worker to take no more work and to stop when its handlers have ended, without waiting for that.

    Raises WorkerError when none is running.
    """
    running = _running
    if running is None or running.ended.done():
        raise WorkerError("there is no running worker to shut down")
    running.worker.request_stop()
    return WorkerStatus(running=True, message="the worker is stopping", details=running.worker.status())


def stop_worker() -> WorkerStatus:
    """Stop the worker and wait until it has: handlers end within the grace first. Without a worker, a success too."""
    global _running
    with _lock:
        running = _running
        if running is None or running.ended.done():
            _running = None
            return WorkerStatus(running=False, message="no worker was running")
        running.worker.request_stop()
        try:
            running.ended.result()
        except TaskerError:
            raise
        except BaseException as error:
            raise _unforeseen(error) from error
        finally:
            running.thread.join()
            _running = None
        return WorkerStatus(running=False, message="the worker has stopped")


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


def _unforeseen(error: BaseException) -> TaskerError:
    logger.error("a worker met something unforeseen", exc_info=error)
    return WorkerError(f"{type(error).__name__}: {error}")


class ShutdownController:
    """Turns SIGTERM and SIGINT, or a call, into one orderly shutdown. A second signal ends the process at once."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._before: dict[signal.Signals, Any] = {}

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when shutdown is requested. It must return at once; it may not raise."""
        self._callbacks.append(callback)

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
        if not self._requested.is_set():
            self._requested.set()
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:
                    logger.exception("a shutdown callback failed")

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
        if not self._requested.is_set():
            await requested.wait()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._requested.is_set():
            # No clean-up of any kind: the first signal asked for that, and somebody is tired of waiting.
            os._exit(128 + number)
        logger.info("%s: shutting down", signal.Signals(number).name)
        self.trigger()
