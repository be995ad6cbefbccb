"""The operator process: builds its parts, waits for what it needs, runs until told to stop or until a part breaks.

Started by `__main__`. It waits for the database, its schema and the cluster instead of crashing: the probes say what it
waits for. SIGTERM and SIGINT end it at any time; work goes on without it. Any other end is a failure: see `main`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import kopf
from kopf._cogs.structs.credentials import Vault  # for spawn_tasks; it has no public name

from tasker.controller.assembly import Parts, assemble
from tasker.controller.handlers import WatchRestartCounter, make_registry, make_settings
from tasker.controller.installation import leave_adopted_database, take_database
from tasker.controller.kube.access import client_configuration, renew_credentials
from tasker.controller.kube.client import Cluster, ClusterError
from tasker.controller.runtime.health import Health, serve_health
from tasker.controller.runtime.logs import configure_logging
from tasker.controller.runtime.loops import UNOFFERED_SECONDS, ChangeReader, listen, sweep
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import Loop, Pacer, was_cancelled_from_outside
from tasker.controller.runtime.supervision import Breakdown, Part, Supervisor, Waiter
from tasker.controller.runtime.termination import ExitCode, Signals, end_in_any_case, leave_message
from tasker.engine import Engine
from tasker.errors import ConfigurationError, ForeignInstallation, SchemaMismatch, StoreUnavailable
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings, OperatorSettings, termination_log
from tasker_worker._version import __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SILENT_DATABASE_SECONDS = 15.0
"""The operator is not ready once it could not read changes for so long: some rounds of its loop, and a time-out."""

RESYNC_ROUND_SECONDS = 900.0
"""The longest that a resync may take: a hundred pages of a list that come just in time."""

_WAIT_FROM_SECONDS = 0.5
_WAIT_TO_SECONDS = 10.0


async def run(database: DatabaseSettings, settings: OperatorSettings, *, on_fault: Callable[[str], None]) -> None:
    """Runs the operator until a signal ends it. Raises `ConfigurationError`.

    Raises `Breakdown` when a part ends or stalls; `on_fault` is called with the reason at once, before the others end.
    """
    signals, metrics = Signals(), OperatorMetrics()
    supervisor = Supervisor(metrics, on_fault=on_fault)
    signals.handle()
    try:
        await _operate(database, settings, metrics, supervisor, signals)
    except asyncio.CancelledError:
        # What came first counts: a signal while the broken process ends does not make it whole.
        if supervisor.fault is not None:
            raise Breakdown(supervisor.fault) from None
        if not signals.received:
            raise Breakdown("the operator was cancelled, and by no signal") from None


async def _operate(
    database: DatabaseSettings,
    settings: OperatorSettings,
    metrics: OperatorMetrics,
    supervisor: Supervisor,
    signals: Signals,
) -> None:
    health = Health(supervisor.check)
    configuration = await client_configuration()
    WatchRestartCounter(metrics).install()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            serve_health(
                settings.health_host,
                settings.health_port,
                health=health,
                metrics=metrics,
                on_bound=lambda port: logger.info("health and metrics are on port %d", port),
            )
        )
        engine = await _open_engine_when_ready(stack, database, health)
        cluster = await Cluster.connect(configuration, renew=renew_credentials)
        stack.push_async_callback(cluster.close)
        await _until(
            lambda: take_database(cluster, engine, settings.installation), "a database of this installation", health
        )
        parts = assemble(cluster, engine, settings, metrics)
        health.waiting_for = "the first list of resources"
        await _until(parts.changes.start, "the database", health)
        await _until(parts.resync.run, "the Kubernetes API and the tasker.dev CRDs", health)
        health.waiting_for = None
        health.check = lambda: database_obstacle(engine, parts.changes)
        logger.info("tasker operator %s is running", __version__)
        try:
            await supervisor.run(_supervised(parts, engine, settings, metrics, signals))
        finally:
            health.waiting_for = "the operator to stop"
            logger.info("tasker operator %s is stopping", __version__)


def database_obstacle(engine: Engine, changes: ChangeReader) -> str | None:
    """Why the database is none to work with now; None when it is."""
    if engine.obstacle is not None:
        return f"the database: {engine.obstacle}"
    return "the database" if changes.lag_seconds() > SILENT_DATABASE_SECONDS else None


async def _watch(parts: Parts, settings: OperatorSettings, signals: Signals) -> None:
    """kopf, until cancelled. Raises what makes kopf give up."""
    cluster_wide = not settings.watch_namespaces
    before = asyncio.all_tasks()
    vault = Vault()
    try:
        tasks = await kopf.spawn_tasks(
            registry=make_registry(parts.router, cluster_wide=cluster_wide),
            settings=make_settings(settings.watch_silence_seconds, cluster_wide=cluster_wide),
            vault=vault,
            standalone=True,
            clusterwide=cluster_wide,
            namespaces=settings.watch_namespaces,
        )
        # kopf has taken the signals, and would wait for the requests under way.
        signals.handle()
        await kopf.run_tasks(tasks, ignored=before)
    finally:
        await vault.close()  # kopf does so itself unless it is cancelled in the middle of its start


def _supervised(
    parts: Parts, engine: Engine, settings: OperatorSettings, metrics: OperatorMetrics, signals: Signals
) -> list[Part]:
    """All that runs for ever. The names are in operator/README.md."""
    changes, scaling = Pacer(settings.change_seconds), Pacer(settings.scale_seconds)
    resync = Pacer(settings.resync_seconds)
    return [
        *parts.queues,
        Loop("changes", partial(parts.changes.read, resync), changes, metrics=metrics),
        Loop("scaling", parts.scaler.reconcile_scale, scaling, metrics=metrics),
        Loop(
            "sweep",
            partial(sweep, engine.workers, metrics),
            Pacer(settings.sweep_seconds),
            metrics=metrics,
            first_wait_seconds=settings.sweep_seconds * random.random(),  # noqa: S311 - only spreads the sweepers
        ),
        Loop(
            "resync",
            parts.resync.run,
            resync,
            metrics=metrics,
            round_seconds=RESYNC_ROUND_SECONDS,
            first_wait_seconds=settings.resync_seconds,
        ),
        Loop("unoffered", parts.unoffered.read, Pacer(UNOFFERED_SECONDS), metrics=metrics),
        Waiter("hints", partial(listen, engine.changes, changes=changes, scaling=scaling)),
        Waiter("events", parts.events.run),
        Waiter("watches", partial(_watch, parts, settings, signals)),
        Waiter("installation", partial(leave_adopted_database, engine)),
    ]


async def _open_engine_when_ready(stack: AsyncExitStack, database: DatabaseSettings, health: Health) -> Engine:
    async def attempt() -> Engine:
        return await stack.enter_async_context(open_engine(database))

    return await _until(attempt, "the database", health)


async def _until(attempt: Callable[[], Awaitable[Result]], what: str, health: Health) -> Result:
    """Tries until it works, with growing waits, and says once for each new cause what it waits for."""
    wait, said = _WAIT_FROM_SECONDS, ""
    while True:
        try:
            result = await attempt()
        except SchemaMismatch as error:
            cause = f"{error}; waiting for the migration"
        except (StoreUnavailable, ForeignInstallation, ClusterError) as error:
            cause = f"{error}; waiting for {what}"
        else:
            cause = ""
        _require_no_cancellation()
        if not cause:
            return result
        health.waiting_for = f"{what}: {cause}"
        if cause != said:
            logger.warning("%s", cause)
            said = cause
        await asyncio.sleep(wait)
        wait = min(_WAIT_TO_SECONDS, wait * 2)


def _require_no_cancellation() -> None:
    """Raises the cancellation of this task that something awaited has swallowed; `supervision` says what does so."""
    if was_cancelled_from_outside():
        raise asyncio.CancelledError


def main() -> int:
    """The process's exit code; see `ExitCode`. Why it ends unasked is its last line, and in its termination log."""
    log = termination_log()
    try:
        database = DatabaseSettings.from_environment()
        settings = OperatorSettings.from_environment(version=__version__)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(run(database, settings, on_fault=partial(end_in_any_case, log)))
    except ConfigurationError as error:
        leave_message(log, str(error))
        print(f"tasker operator: {error}", file=sys.stderr)
        return ExitCode.CONFIGURATION
    except Breakdown as error:
        return _end(log, ExitCode.BREAKDOWN, str(error))
    except (Exception, SystemExit) as error:  # a library's own sys.exit is no end that anybody asked for
        return _end(log, ExitCode.UNEXPECTED, f"{type(error).__name__}: {error}", error)
    return ExitCode.STOPPED


def _end(log: Path, code: ExitCode, reason: str, error: BaseException | None = None) -> ExitCode:
    leave_message(log, reason)
    logger.critical("the operator ends with exit code %d: %s", code, reason, exc_info=error)
    return code
