"""The jobs of the operator's own loops: changed rows to statuses, sweeping, and the hints that hurry.

`repeat` says how a job is repeated; `app` makes the loops.
"""

from __future__ import annotations

import logging
import time

from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.queues import KeyQueue
from tasker.controller.runtime.repeat import Pacer
from tasker.controller.tasks.cache import TaskCache
from tasker.controller.templates.reconcile import COUNTS_SECONDS
from tasker.engine import FINISHED, ChangeCursor
from tasker.engine.changes import ChangeLog
from tasker.engine.tasks import Tasks
from tasker.engine.workers import Workers

logger = logging.getLogger(__name__)

REPAIRS_PARKED = "repairs_parked"
"""How a sweep counts what it could not repair."""

UNOFFERED_SECONDS = 5.0
"""How often what no worker offers is read, in seconds: seldom beside the minute after which it is said."""


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
        changes = await self._changes.read(None)
        for uid in changes.origin_uids:
            self._tasks.note_moved(uid)
        self._cursor = changes.cursor

    async def read(self, resync: Pacer) -> None:
        """One round. `resync` is hurried when a server has taken over that may know less, or more, than was read."""
        changes = await self._changes.read(self._cursor)
        if changes.place_lost:
            logger.warning("another database server has taken over, or this one went back: all is compared anew")
            resync.hurry()
        for uid in changes.origin_uids:
            key = self._tasks.find_uid(uid)
            if key is None:
                continue  # deleted, or not listed yet: its own event queues it
            self._tasks.note_moved(uid)
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
        if repair == REPAIRS_PARKED:
            logger.error("%d rows could not be repaired and are tried again later: see tasker.parked_repairs", repaired)
