"""The operator's own loops: changed rows to statuses, scaling, sweeping, resync, and the hints that hurry them.

No failure ends a loop: it is logged once when it begins and once when it ends, and the pause before the next try never
falls below the loop's own period.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from tasker.controller.kube.client import ClusterError
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.scaler import Scaler
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.queues import KeyQueue
from tasker.controller.runtime.resync import Resync
from tasker.controller.tasks.cache import TaskCache
from tasker.controller.templates.reconcile import COUNTS_SECONDS
from tasker.engine import FINISHED, ChangeCursor
from tasker.engine.changes import ChangeLog
from tasker.engine.tasks import Tasks
from tasker.engine.workers import Workers
from tasker.errors import StoreError

logger = logging.getLogger(__name__)

UNOFFERED_SECONDS = 5.0
"""How often what no worker offers is read, in seconds: seldom beside the minute after which it is said."""

HINT_PAUSE_SECONDS = 0.1
"""A loop that hints hurry still runs at most this often, in seconds."""


class Pacer:
    """Waits for a loop's next round: the period, or a hint, but never less than a short pause."""

    def __init__(self, period_seconds: float) -> None:
        self._period = period_seconds
        self._hint = asyncio.Event()

    def hurry(self) -> None:
        """The next round should begin soon."""
        self._hint.set()

    async def wait(self) -> None:
        await asyncio.sleep(min(HINT_PAUSE_SECONDS, self._period))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._period - HINT_PAUSE_SECONDS)):
                await self._hint.wait()
        self._hint.clear()


async def repeat(name: str, pacer: Pacer, once: Callable[[], Awaitable[None]]) -> None:
    """Runs `once` for ever, with the pacer's waits between."""
    failing = False
    while True:
        try:
            await once()
        except (StoreError, ClusterError) as error:
            if not failing:
                logger.warning("%s is interrupted: %s", name, error)
            failing = True
        except Exception:
            logger.exception("%s failed", name)
            failing = True
        else:
            if failing:
                logger.info("%s works again", name)
            failing = False
        await pacer.wait()


class ChangeReader:
    """Reads which runs moved and queues their Tasks; begins where `start` was called."""

    def __init__(
        self,
        *,
        changes: ChangeLog,
        tasks: TaskCache,
        task_queue: KeyQueue,
        template_queue: KeyQueue,
        metrics: OperatorMetrics,
    ) -> None:
        self._changes = changes
        self._tasks = tasks
        self._task_queue = task_queue
        self._template_queue = template_queue
        self._cursor: ChangeCursor | None = None
        self._read_at = time.monotonic()
        metrics.change_lag.set_function(self.lag_seconds)

    def lag_seconds(self) -> float:
        """How long ago changes were last read: while this grows, the database does not answer."""
        return time.monotonic() - self._read_at

    async def start(self) -> None:
        """Takes the place to begin from. The resync reconciles everything that moved before it."""
        self._cursor = (await self._changes.read(None)).cursor

    async def read(self) -> None:
        changes = await self._changes.read(self._cursor)
        for uid in changes.origin_uids:
            key = self._tasks.find_uid(uid)
            if key is None:
                continue  # deleted, or not listed yet: its own event queues it
            self._task_queue.add(key)
            task = self._tasks.read_valid(key)
            if task is not None:
                template = ObjectKey(namespace=key.namespace, name=task.spec.template_ref.name)
                self._template_queue.add_after(template, COUNTS_SECONDS)
        self._cursor = changes.cursor
        self._read_at = time.monotonic()


class UnofferedReader:
    """Reads which callables no worker offers, and queues the pools and Tasks that show it.

    Nothing moves in a run that waits so; that it does is a matter of time alone.
    """

    def __init__(
        self,
        *,
        engine_workers: Workers,
        engine_tasks: Tasks,
        tasks: TaskCache,
        states: PoolStates,
        task_queue: KeyQueue,
        pool_queue: KeyQueue,
    ) -> None:
        self._engine_workers = engine_workers
        self._engine_tasks = engine_tasks
        self._tasks = tasks
        self._states = states
        self._task_queue = task_queue
        self._pool_queue = pool_queue
        self._waiting: frozenset[str] = frozenset()

    async def read(self) -> None:
        unoffered = await self._engine_workers.unoffered_callables()
        for key, state in self._states.items():
            mine = tuple(each for each in unoffered if each.namespace == key.namespace)
            if mine != state.unoffered:
                state.unoffered = mine
                self._pool_queue.add(key)
        waiting = await self._engine_tasks.origins_waiting_for_worker() if unoffered else frozenset()
        for uid in waiting ^ self._waiting:
            key_of_task = self._tasks.find_uid(uid)
            if key_of_task is not None:
                self._task_queue.add(key_of_task)
        self._waiting = waiting


async def listen(log: ChangeLog, *, changes: Pacer, scaling: Pacer) -> None:
    """Hurries the loops when the database announces work or ends."""
    async for channel in log.listen():
        changes.hurry()
        if channel != FINISHED:
            scaling.hurry()


async def sweep(workers: Workers, metrics: OperatorMetrics) -> None:
    """One sweep: with no worker left nobody else wakes due retries or ends what is over its time."""
    for repair, repaired in (await workers.sweep()).items():
        metrics.sweep_repairs.labels(repair).inc(repaired)


async def sweep_for_ever(workers: Workers, metrics: OperatorMetrics, period_seconds: float) -> None:
    await asyncio.sleep(period_seconds * random.random())  # noqa: S311 - only spreads the sweepers
    await repeat("the sweep", Pacer(period_seconds), lambda: sweep(workers, metrics))


async def scale_for_ever(scaler: Scaler, pacer: Pacer) -> None:
    await repeat("scaling", pacer, scaler.reconcile_scale)


async def read_unoffered_for_ever(reader: UnofferedReader) -> None:
    await repeat("reading what no worker offers", Pacer(UNOFFERED_SECONDS), reader.read)


async def read_changes_for_ever(reader: ChangeReader, pacer: Pacer) -> None:
    await repeat("reading changes", pacer, reader.read)


async def resync_for_ever(resync: Resync, period_seconds: float) -> None:
    pacer = Pacer(period_seconds)
    await pacer.wait()
    await repeat("the resync", pacer, resync.run)
