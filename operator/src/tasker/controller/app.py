"""The operator process: builds its parts, waits for what it needs, runs until a signal ends it.

Started by `__main__`. It waits for the database, its schema and the cluster instead of crashing: the probes say what it
waits for. SIGTERM and SIGINT end it at any time; work goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import kopf

from tasker.controller.assembly import Parts, assemble
from tasker.controller.handlers import WatchRestartCounter, make_registry, make_settings
from tasker.controller.installation import leave_adopted_database, take_database
from tasker.controller.kube.access import client_configuration
from tasker.controller.kube.client import Cluster, ClusterError
from tasker.controller.runtime.health import Readiness, serve_health
from tasker.controller.runtime.logs import configure_logging
from tasker.controller.runtime.loops import (
    ChangeReader,
    Pacer,
    listen,
    read_changes_for_ever,
    read_unoffered_for_ever,
    resync_for_ever,
    scale_for_ever,
    sweep_for_ever,
)
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.engine import Engine
from tasker.errors import ConfigurationError, ForeignInstallation, SchemaMismatch, StoreUnavailable
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings, OperatorSettings
from tasker_worker._version import __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SILENT_DATABASE_SECONDS = 15.0
"""The operator is not ready once it could not read changes for so long: some rounds of its loop, and a time-out."""

_WAIT_FROM_SECONDS = 0.5
_WAIT_TO_SECONDS = 10.0


async def run(database: DatabaseSettings, settings: OperatorSettings) -> None:
    """Runs the operator until a signal ends it. Raises `ConfigurationError`."""
    metrics, readiness = OperatorMetrics(), Readiness()
    configuration = await client_configuration()
    WatchRestartCounter(metrics).install()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            serve_health(
                settings.health_host,
                settings.health_port,
                readiness=readiness,
                metrics=metrics,
                on_bound=lambda port: logger.info("health and metrics are on port %d", port),
            )
        )
        engine = await _open_engine_when_ready(stack, database, readiness)
        cluster = await Cluster.connect(configuration)
        stack.push_async_callback(cluster.close)
        await _until(
            lambda: take_database(cluster, engine, settings.installation), "a database of this installation", readiness
        )
        parts = assemble(cluster, engine, settings, metrics)
        readiness.waiting_for = "the first list of resources"
        await parts.changes.start()
        await _until(parts.resync.run, "the Kubernetes API and the tasker.dev CRDs", readiness)
        await stack.enter_async_context(_running(_loops(parts, engine, settings, metrics)))
        readiness.waiting_for = None
        readiness.check = lambda: database_obstacle(engine, parts.changes)
        logger.info("tasker operator %s is running", __version__)
        try:
            await _watch(parts, settings)
        finally:
            readiness.waiting_for = "the operator to stop"
            logger.info("tasker operator %s is stopping", __version__)


def database_obstacle(engine: Engine, changes: ChangeReader) -> str | None:
    """Why the database is none to work with now; None when it is."""
    if engine.obstacle is not None:
        return f"the database: {engine.obstacle}"
    return "the database" if changes.lag_seconds() > SILENT_DATABASE_SECONDS else None


async def _watch(parts: Parts, settings: OperatorSettings) -> None:
    """kopf, until a signal ends the process. Raises what makes kopf give up."""
    cluster_wide = not settings.watch_namespaces
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=make_registry(parts.router, cluster_wide=cluster_wide),
        settings=make_settings(settings.watch_silence_seconds, cluster_wide=cluster_wide),
        standalone=True,
        clusterwide=cluster_wide,
        namespaces=settings.watch_namespaces,
    )
    # kopf has taken the signals, and would wait for the requests under way.
    _end_on_signals(_main_task())
    await kopf.run_tasks(tasks, ignored=before)


def _loops(parts: Parts, engine: Engine, settings: OperatorSettings, metrics: OperatorMetrics) -> list[Awaitable[None]]:
    changes, scaling = Pacer(settings.change_seconds), Pacer(settings.scale_seconds)
    return [
        *(queue.run() for queue in parts.queues),
        parts.events.run(),
        read_changes_for_ever(parts.changes, changes),
        scale_for_ever(parts.scaler, scaling),
        sweep_for_ever(engine.workers, metrics, settings.sweep_seconds),
        leave_adopted_database(engine),
        read_unoffered_for_ever(parts.unoffered),
        resync_for_ever(parts.resync, settings.resync_seconds),
        listen(engine.changes, changes=changes, scaling=scaling),
    ]


@asynccontextmanager
async def _running(loops: list[Awaitable[None]]) -> AsyncIterator[None]:
    """The loops run while the context is open. One that ends by itself ends the process: it must not go on half."""
    owner = asyncio.current_task()

    def ended(task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is not None and owner is not None:
            logger.critical("a loop of the operator ended", exc_info=task.exception())
            owner.cancel()

    tasks = [asyncio.ensure_future(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open_engine_when_ready(stack: AsyncExitStack, database: DatabaseSettings, readiness: Readiness) -> Engine:
    async def attempt() -> Engine:
        return await stack.enter_async_context(open_engine(database))

    return await _until(attempt, "the database", readiness)


async def _until(attempt: Callable[[], Awaitable[Result]], what: str, readiness: Readiness) -> Result:
    """Tries until it works, with growing waits, and says once for each new cause what it waits for."""
    wait, said = _WAIT_FROM_SECONDS, ""
    while True:
        try:
            return await attempt()
        except SchemaMismatch as error:
            cause = f"{error}; waiting for the migration"
        except (StoreUnavailable, ForeignInstallation, ClusterError) as error:
            cause = f"{error}; waiting for {what}"
        readiness.waiting_for = f"{what}: {cause}"
        if cause != said:
            logger.warning("%s", cause)
            said = cause
        await asyncio.sleep(wait)
        wait = min(_WAIT_TO_SECONDS, wait * 2)


async def _run_until_signalled(database: DatabaseSettings, settings: OperatorSettings) -> None:
    _end_on_signals(_main_task())
    with contextlib.suppress(asyncio.CancelledError):
        await run(database, settings)


def _main_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _end_on_signals(task: asyncio.Task[object]) -> None:
    def end() -> None:
        # It complains of requests that the end cuts off.
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)


def main() -> int:
    """The process's exit code: 0 after a signal, 2 when a setting cannot be used."""
    try:
        database = DatabaseSettings.from_environment()
        settings = OperatorSettings.from_environment(version=__version__)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(_run_until_signalled(database, settings))
    except ConfigurationError as error:
        print(f"tasker operator: {error}", file=sys.stderr)
        return 2
    return 0
