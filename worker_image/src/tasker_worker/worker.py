"""A worker: claims steps, runs their handlers, settles what came of them. The parts are put together here."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ._version import __version__
from .errors import DatabaseError, WorkerError
from .exchange import Exchange, Hinter
from .execution import Executor
from .fetching import ResultFetcher
from .gateway import Gateway, Offer, SchemaMissing, SyncGateway, Unavailable
from .hints import HintReceiver, HintSender
from .jitter import spread
from .leases import LeaseKeeper
from .loading import load_handlers
from .logging import with_fields
from .metrics import WorkerMetrics, exposition
from .registry import HandlerRegistry
from .services import WorkerServices
from .settings import WorkerSettings, load_settings
from .sweeping import Sweeper
from .web import WebServer

logger = logging.getLogger("tasker_worker.worker")

_CONNECT_PAUSE = (0.1, 2.0)  # seconds between tries at the start, first and longest
_SETTLE_SECONDS = 4.0  # after the grace, to tell the engine how it ended
_THREAD_SECONDS = 2.0  # for a thread of the worker's own to end: it may be inside a call
_STUCK_SECONDS = 60.0  # a loop that has not answered for this long, with no handler in its time to blame, is dead


class _NoHints:
    """In place of a HintSender when notifications are off: whoever waits, polls."""

    def ready(self) -> None: ...
    def finished(self) -> None: ...


class Worker:
    """Runs steps of one namespace, up to `slots` at once.

        async with Worker(modules=["my_package.handlers"], database_url=url, namespace="shop"):
            ...

    or ``await Worker(...).run()`` until `request_stop` is called. Settings come from keyword arguments by the field
    names of `WorkerSettings`, then from the environment and the file it names.
    """

    def __init__(
        self,
        registry: HandlerRegistry | None = None,
        *,
        modules: Iterable[str] = (),
        settings: WorkerSettings | None = None,
        **overrides: Any,
    ) -> None:
        """`modules` are imported for handlers by `start`, beside what `registry` holds."""
        self.registry = registry if registry is not None else HandlerRegistry()
        if settings is None:
            self.settings = load_settings(os.environ, **overrides)
        else:
            self.settings = dataclasses.replace(settings, **overrides)
        self.metrics = WorkerMetrics()
        self._modules = list(modules)
        self._state = "new"  # new, starting, running, stopping, stopped
        self._web: WebServer | None = None
        self._gateway: Gateway | None = None
        self._gateway_for_locked: Gateway | None = None
        self._gateway_for_results: Gateway | None = None
        self._gateway_for_handlers: Gateway | None = None
        self._services: WorkerServices | None = None
        self._executor: Executor | None = None
        self._exchange: Exchange | None = None
        self._leases: LeaseKeeper | None = None
        self._sweeper: Sweeper | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._hint_tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_wanted: asyncio.Event | None = None
        self._stop_requested = False  # the same for the time before there is a loop
        self._failure: BaseException | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def state(self) -> str:
        """new, starting, running, stopping or stopped."""
        return self._state

    @property
    def web_port(self) -> int | None:
        """The port that is answered at; None without the server."""
        return self._web.port if self._web is not None else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run(self) -> None:
        """Start, work until `request_stop`, stop.

        Raises what `start` and `stop` raise, and WorkerError should the worker itself break.
        """
        await self.start()
        await self.run_started()

    async def run_started(self) -> None:
        """The rest of `run`, after `start`."""
        assert self._stop_wanted is not None
        try:
            await self._stop_wanted.wait()
        finally:
            try:
                await self.stop()
            except DatabaseError:
                if self._failure is None:  # else that is why nothing could be settled, and what is to be told
                    raise
        if self._failure is not None:
            raise WorkerError(f"the worker broke: {self._failure!r}") from self._failure

    def request_stop(self) -> None:
        """Ask `run` to end gracefully. May be called from any thread and from signal handlers."""
        self._stop_requested = True
        if self._loop is not None:
            assert self._stop_wanted is not None  # it is there before the loop is
            try:
                self._loop.call_soon_threadsafe(self._stop_wanted.set)
            except RuntimeError:
                logger.debug("the event loop is closed already")

    async def start(self) -> None:
        """Load handlers, open the port, register with the database, begin to work. Does nothing when started already.

        Raises ConfigurationError for handlers or settings, WorkerError when the port is taken or the system has no
        thread left, DatabaseError when the database cannot be reached within `startup_seconds`.
        """
        if self._state in ("starting", "running"):
            logger.warning("the worker is running already; it is not started again")
            return
        if self._state != "new":
            raise WorkerError("a worker that was stopped cannot be started again; make a new one")
        self._state = "starting"
        self._stop_wanted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._stop_requested:
            self._stop_wanted.set()
        settings = self.settings
        try:
            folder = Path(settings.handlers_path) if settings.handlers_path else None
            load_handlers(self.registry, self._modules, folder)
            if settings.web_enabled:
                self._web = WebServer(self, settings.web_host, settings.web_port)
            self._gateway = self._open_gateway("exchange")
            revision = self.registry.revision
            await self._register(self._gateway)
            if self._stop_requested:
                self._state = "running"
                return  # asked to stop while waiting for the database: `stop` finds nothing to wait for
            self._begin(self._gateway, revision)
        except BaseException:
            if self._exchange is not None:
                self._state = "stopping"  # what has registered signs off
            await self._close()
            raise
        self._state = "running"
        logger.info(
            "the worker runs",
            extra=with_fields(
                worker=settings.name,
                namespace=settings.namespace,
                pool=settings.pool,
                slots=settings.slots,
                handlers=self.registry.list_handlers(),
                version=__version__,
                port=self.web_port,
            ),
        )

    def _begin(self, gateway: Gateway, revision: int) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        listen_url = settings.listen_database_url or settings.database_url
        sender = HintSender(
            settings.database_url,
            lease_seconds=settings.lease_seconds,
            metrics=self.metrics,
        )
        hinter = sender if settings.notifications else _NoHints()
        self._gateway_for_locked = self._open_gateway("locked")
        exchange = self._exchange = Exchange(
            gateway,
            self._gateway_for_locked,
            worker=settings.name,
            slots=settings.slots,
            poll_min=settings.poll_min_ms / 1000,
            poll_max=settings.poll_max_ms / 1000,
            metrics=self.metrics,
            hinter=hinter,
        )
        self._gateway_for_results = self._open_gateway("results")
        self._gateway_for_handlers = self._open_gateway("handlers")
        self._services = WorkerServices(self._gateway_for_handlers, worker=settings.name)
        self._executor = Executor(
            self.registry,
            slots=settings.slots,
            metrics=self.metrics,
            fetcher=ResultFetcher(self._gateway_for_results, worker=settings.name),
            services=self._services,
            on_finished=exchange.finished,
            on_threads_back=exchange.hint,
        )
        exchange.attach(self._executor)
        self._begin_threads(exchange, self._executor, hinter, revision)
        self._conversation = loop.create_task(exchange.run(), name="exchange")
        self._conversation.add_done_callback(self._on_conversation_end)
        if settings.notifications:
            receiver = HintReceiver(
                listen_url, lease_seconds=settings.lease_seconds, metrics=self.metrics, on_ready=exchange.hint
            )
            for name, work in (("hints-out", sender.run()), ("hints-in", receiver.run())):
                self._hint_tasks.append(self._spawn_hints(name, work))

    def _begin_threads(self, exchange: Exchange, executor: Executor, hinter: Hinter, revision: int) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()

        def after_repairs() -> None:
            exchange.hint()
            hinter.ready()
            hinter.finished()

        def on_repairs() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(after_repairs)

        self._sweeper = Sweeper(
            self._open_sync_gateway("sweeps"),
            worker=settings.name,
            on_repairs=on_repairs,
            metrics=self.metrics,
        )
        self._leases = LeaseKeeper(
            self._open_sync_gateway("leases"),
            offer=self._offer,
            offered_revision=revision,
            offer_revision=lambda: self.registry.revision,
            held=exchange.held,
            settle=self._sweeper.settle,
            on_draining=exchange.set_draining,
            watch=executor.watch,
            loop=loop,
            metrics=self.metrics,
        )
        try:
            self._leases.start()
            self._sweeper.start()
        except (RuntimeError, MemoryError) as error:
            raise WorkerError(f"the system has no thread for the worker's leases: {error}") from error

    def _spawn_hints(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def report(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s broke; polling goes on", name, exc_info=error)

        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(report)
        return task

    def _on_conversation_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the exchange with the engine broke", exc_info=error)
            self._failure = error
            self.request_stop()

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Claim no more, let handlers end within the grace, settle, give the rest back, leave.

        Raises DatabaseError when outcomes could not be settled; their leases expire and the steps run again.
        """
        if self._state in ("new", "stopped", "stopping"):
            return
        self._state = "stopping"
        grace = self.settings.shutdown_grace_seconds if grace_seconds is None else grace_seconds
        unsettled = 0
        try:
            if self._conversation is not None:
                assert self._exchange is not None
                assert self._executor is not None
                logger.info(
                    "stopping: no new work is taken",
                    extra=with_fields(running=self._executor.running, grace_seconds=grace),
                )
                give_up_at = time.monotonic() + grace + _SETTLE_SECONDS
                self._exchange.stop(give_up_at)
                done, _ = await asyncio.wait([self._conversation], timeout=grace)
                if not done:
                    running = [attempt for attempt in self._exchange.held.attempts() if attempt.outcome is None]
                    logger.warning(
                        "steps that did not end in time are given back", extra=with_fields(count=len(running))
                    )
                    for attempt in running:
                        self._executor.release(attempt)
                    await asyncio.wait([self._conversation], timeout=2 * _SETTLE_SECONDS)
                unsettled = self._exchange.outcomes_waiting
        finally:
            await self._close()
        if unsettled:
            raise DatabaseError(f"{unsettled} outcomes could not be settled before the worker had to stop")
        logger.info("stopped")

    async def _close(self) -> None:
        """Leave, whatever state things are in, within seconds: nothing here waits for what handlers may have taken."""
        threads = [part for part in (self._leases, self._sweeper) if part is not None]
        await asyncio.gather(
            *(_in_own_thread(partial(part.stop, _THREAD_SECONDS), _THREAD_SECONDS) for part in threads)
        )
        tasks = [task for task in (*self._hint_tasks, self._conversation) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)
        if self._executor is not None:
            await self._executor.close()
        if self._services is not None:
            self._services.close()
        if self._gateway is not None:
            if self._state == "stopping":
                await self._sign_off(self._gateway)
            await self._gateway.close()
        for each in (self._gateway_for_locked, self._gateway_for_results, self._gateway_for_handlers):
            if each is not None:
                await each.close()
        if self._web is not None:
            await _in_own_thread(self._web.close, _THREAD_SECONDS)
            self._web = None
        self._state = "stopped"

    async def _sign_off(self, gateway: Gateway) -> None:
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                released = await gateway.deregister(self.settings.name)
        except (DatabaseError, TimeoutError) as error:
            logger.warning("the worker could not sign off", extra=with_fields(reason=str(error)))
        else:
            if released:
                logger.warning("claims were given back unrun", extra=with_fields(count=released))

    async def _register(self, gateway: Gateway) -> None:
        """Register, waiting for a database that cannot be reached or has no schema yet."""
        give_up_at = time.monotonic() + self.settings.startup_seconds
        pause = _CONNECT_PAUSE[0]
        assert self._stop_wanted is not None
        while not self._stop_wanted.is_set():
            try:
                await gateway.require_contract()
                if left_behind := await gateway.expire_predecessor(self.settings.name):
                    logger.warning(
                        "an earlier process of this name was lost in the middle of its work",
                        extra=with_fields(steps=left_behind),
                    )
                await gateway.register(self._offer())
                await self._warn_of_unhandled(gateway)
                return
            except Unavailable as error:
                left = give_up_at - time.monotonic()
                if left <= 0:
                    what = "has no schema for this worker" if isinstance(error, SchemaMissing) else "cannot be reached"
                    raise DatabaseError(
                        f"the database {what} after {self.settings.startup_seconds:g} s: {error}"
                    ) from error
                logger.warning(
                    "waiting for the database", extra=with_fields(reason=str(error), seconds_left=round(left, 1))
                )
                wait = min(spread(pause), left)
                try:
                    async with asyncio.timeout(wait):
                        await self._stop_wanted.wait()
                except TimeoutError:
                    pause = min(pause * 2, _CONNECT_PAUSE[1])

    async def _warn_of_unhandled(self, gateway: Gateway) -> None:
        """Say once what this worker leaves to others: a handler that was forgotten is else only seen as a long wait."""
        missing = await gateway.unhandled_callables(self.settings.name)
        if missing:
            logger.warning(
                "templates of this namespace need handlers that this worker does not have",
                extra=with_fields(callables=missing[:20], count=len(missing)),
            )

    def _open_gateway(self, role: str) -> Gateway:
        settings = self.settings
        return Gateway(
            settings.database_url, namespace=settings.namespace, lease_seconds=settings.lease_seconds, role=role
        )

    def _open_sync_gateway(self, role: str) -> SyncGateway:
        settings = self.settings
        return SyncGateway(
            settings.database_url, namespace=settings.namespace, lease_seconds=settings.lease_seconds, role=role
        )

    def _offer(self) -> Offer:
        settings = self.settings
        return Offer(
            worker=settings.name,
            namespace=settings.namespace,
            pool=settings.pool,
            slots=settings.slots,
            version=__version__,
            callables=self.registry.callables(),
            lease_seconds=settings.lease_seconds,
            template_hash=settings.template_hash,
        )

    # what others may know, from any thread

    def is_live(self) -> bool:
        """False when the event loop is dead: blocked for a minute, and not by a handler that is within its timeout."""
        leases, executor = self._leases, self._executor
        if leases is None or executor is None or self._state != "running":
            return True
        if not leases.alive:
            return False
        if leases.loop_lag < _STUCK_SECONDS:
            return True
        attempt = executor.watch.stepping
        return attempt is not None and time.monotonic() - attempt.since <= attempt.claim.timeout_ms / 1000

    def is_ready(self) -> bool:
        """Registered, not stopping, with threads to run handlers in, and the last call of the database was answered."""
        exchange, executor, leases = self._exchange, self._executor, self._leases
        if self._state != "running" or exchange is None or executor is None or leases is None:
            return False
        return exchange.connected and not executor.out_of_threads and time.monotonic() < leases.valid_until

    def status(self) -> dict[str, Any]:
        """All that a person may want to know of a worker, as JSON."""
        now = time.monotonic()
        exchange, executor, leases = self._exchange, self._executor, self._leases
        running = [attempt for attempt in exchange.held.attempts() if attempt.outcome is None] if exchange else []
        return {
            "running": self._state in ("running", "stopping"),
            "state": self._state,
            "live": self.is_live(),
            "ready": self.is_ready(),
            "draining": exchange.draining if exchange else False,
            "worker": self.settings.name,
            "namespace": self.settings.namespace,
            "pool": self.settings.pool,
            "environment": self.settings.environment,
            "version": __version__,
            "slots": self.settings.slots,
            "handlers": self.registry.versions(),
            "steps_running": [
                {
                    "task_uuid": attempt.claim.task_uuid,
                    "step": attempt.claim.step_name,
                    "attempt": attempt.claim.attempt,
                    "seconds": round(now - attempt.since, 3),
                    "cancelled": attempt.context.cancelled,
                    "heartbeat": attempt.detail,
                }
                for attempt in running
            ],
            "outcomes_waiting": exchange.outcomes_waiting if exchange else 0,
            "threads_stuck": executor.stuck_threads if executor else 0,
            "out_of_threads": executor.out_of_threads if executor else False,
            "loop_lag_seconds": round(leases.loop_lag, 3) if leases else 0.0,
            "lease_seconds_left": round(leases.valid_until - now, 3) if leases else None,
            "steps_succeeded": self.metrics.succeeded,
            "steps_failed": self.metrics.failed,
        }

    def metrics_text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        settings = self.settings
        labels = {
            "worker": settings.name,
            "namespace": settings.namespace,
            "pool": settings.pool,
            "environment": settings.environment,
            "version": __version__,
        }
        return exposition(self.metrics, self._gauges, labels)

    def _gauges(self) -> dict[str, float]:
        exchange, executor, leases = self._exchange, self._executor, self._leases
        return {
            "slots": self.settings.slots,
            "steps_running": executor.running if executor else 0,
            "outcomes_waiting": exchange.outcomes_waiting if exchange else 0,
            "threads_stuck": executor.stuck_threads if executor else 0,
            "loop_lag_seconds": leases.loop_lag if leases else 0,
            "lease_seconds_left": leases.valid_until - time.monotonic() if leases else 0,
            "ready": self.is_ready(),
            "draining": exchange.draining if exchange else 0,
        }


async def _in_own_thread(work: Callable[[], None], seconds: float) -> None:
    """Do something that blocks, waiting for it no longer than `seconds`.

    In a thread of its own, for the loop's pool may be full of what handlers do there.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            with suppress(RuntimeError):  # the loop was not waited for, and is closed
                loop.call_soon_threadsafe(done.set)

    try:
        threading.Thread(target=run, name="stopping", daemon=True).start()
    except (RuntimeError, MemoryError):  # no thread is left: then here
        work()
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
