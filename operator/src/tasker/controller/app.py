"""The operator process: builds its parts, waits for what it needs, runs until told to stop.

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
from dataclasses import dataclass
from typing import TypeVar

import kopf

from tasker.controller.handlers import WatchRestartCounter, make_registry, make_settings
from tasker.controller.intake import Intake
from tasker.controller.kube.access import client_configuration, renew_credentials
from tasker.controller.kube.client import Cluster, ClusterError, Manifest, Resource
from tasker.controller.kube.events import EventRecorder
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.pools.lost_pods import LostPodReconciler
from tasker.controller.pools.managed import NamespaceReconciler
from tasker.controller.pools.reconcile import PoolReconciler
from tasker.controller.pools.scaler import Scaler
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.health import Readiness, serve_health
from tasker.controller.runtime.logs import configure_logging
from tasker.controller.runtime.loops import (
    ChangeReader,
    Pacer,
    listen,
    read_changes_for_ever,
    resync_for_ever,
    scale_for_ever,
    sweep_for_ever,
)
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.resync import Resync
from tasker.controller.runtime.work_queue import WorkQueue
from tasker.controller.tasks.reconcile import TaskReconciler
from tasker.controller.tasks.summaries import SummaryReader
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.controller.world import Queues, World
from tasker.engine import Engine
from tasker.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings, OperatorSettings
from tasker_worker._version import __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SILENT_DATABASE_SECONDS = 15.0
"""The operator is not ready once it could not read changes for so long: some rounds of its loop, and a time-out."""

_WAIT_FROM_SECONDS = 0.5
_WAIT_TO_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The assembled operator."""

    world: World
    intake: Intake
    resync: Resync
    scaler: Scaler
    changes: ChangeReader
    queues: tuple[WorkQueue, ...]


def assemble(cluster: Cluster, engine: Engine, settings: OperatorSettings, metrics: OperatorMetrics) -> Parts:
    """Builds every part and ties them together; nothing runs yet."""

    def newest(resource: Resource, manifest: Manifest) -> None:
        world.remember(resource, manifest)

    world = World(
        cluster=cluster,
        engine=engine,
        settings=settings,
        metrics=metrics,
        events=EventRecorder(cluster, metrics),
        statuses=StatusWriter(cluster, metrics, newest=newest),
        summaries=SummaryReader(engine.tasks.read_by_origin),
    )
    states = PoolStates()
    templates = TemplateReconciler(world)
    tasks = TaskReconciler(world)
    queues = {
        "templates": WorkQueue("TaskTemplate", templates.reconcile, concurrency=4, metrics=metrics),
        "tasks": WorkQueue("Task", tasks.reconcile, concurrency=32, metrics=metrics),
        "pools": WorkQueue("WorkerPool", PoolReconciler(world, states).reconcile, concurrency=4, metrics=metrics),
        "namespaces": WorkQueue(
            "Namespace", NamespaceReconciler(world, states).reconcile, concurrency=2, metrics=metrics
        ),
        "origins": WorkQueue("origin", tasks.cancel_gone, concurrency=4, metrics=metrics),
        "lost_pods": WorkQueue("Pod", LostPodReconciler(world).reconcile, concurrency=2, metrics=metrics),
    }
    world.queues = Queues(**queues)
    intake = Intake(world, states)
    return Parts(
        world=world,
        intake=intake,
        resync=Resync(world, intake, templates, states),
        scaler=Scaler(world, states),
        changes=ChangeReader(world),
        queues=tuple(queues.values()),
    )


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
        cluster = await Cluster.connect(configuration, renew=renew_credentials)
        stack.push_async_callback(cluster.close)
        parts = assemble(cluster, engine, settings, metrics)
        readiness.waiting_for = "the first list of resources"
        await parts.changes.start()
        await _until(parts.resync.run, "the Kubernetes API and the tasker.dev CRDs", readiness)
        await stack.enter_async_context(_running(_loops(parts)))
        readiness.waiting_for = None
        readiness.check = lambda: "the database" if parts.changes.lag_seconds() > SILENT_DATABASE_SECONDS else None
        logger.info("tasker operator %s is running", __version__)
        try:
            await _watch(parts)
        finally:
            readiness.waiting_for = "the operator to stop"
            logger.info("tasker operator %s is stopping", __version__)


async def _watch(parts: Parts) -> None:
    """kopf, until the process is told to stop. Raises what makes kopf give up."""
    settings = parts.world.settings
    cluster_wide = not settings.watch_namespaces
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=make_registry(parts.intake, cluster_wide=cluster_wide),
        settings=make_settings(settings.watch_silence_seconds, cluster_wide=cluster_wide),
        standalone=True,
        clusterwide=cluster_wide,
        namespaces=settings.watch_namespaces,
    )
    # kopf has taken the signals, and would wait for the requests under way.
    _end_on_signals(_main_task())
    await kopf.run_tasks(tasks, ignored=before)


def _loops(parts: Parts) -> list[Awaitable[None]]:
    world = parts.world
    changes, scaling = Pacer(world.settings.change_seconds), Pacer(world.settings.scale_seconds)
    return [
        *(queue.run() for queue in parts.queues),
        world.events.run(),
        read_changes_for_ever(parts.changes, changes),
        scale_for_ever(parts.scaler, scaling),
        sweep_for_ever(world),
        resync_for_ever(parts.resync, world.settings.resync_seconds),
        listen(world, changes=changes, scaling=scaling),
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
        except (StoreUnavailable, ClusterError) as error:
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
