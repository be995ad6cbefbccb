"""The jobs of the operator's own loops: changed rows to statuses, sweeping, and the hints that hurry.

`repeat` says how a job is repeated; `app` makes the loops.
"""

from __future__ import annotations

import time

from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime.repeat import Pacer
from tasker.controller.templates.reconcile import COUNTS_SECONDS
from tasker.controller.world import World
from tasker.engine import FINISHED, ChangeCursor


class ChangeReader:
    """Reads which runs moved and calls their Tasks; begins where `start` was called."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cursor: ChangeCursor | None = None
        self._read_at = time.monotonic()
        world.metrics.change_lag.set_function(self.lag_seconds)

    def lag_seconds(self) -> float:
        """How long ago changes were last read: while this grows, the database does not answer."""
        return time.monotonic() - self._read_at

    async def start(self) -> None:
        """Takes the place to begin from. Everything that moved before it is for the resync to show."""
        self._cursor = (await self._world.engine.changes.read(None)).cursor

    async def read(self) -> None:
        changes = await self._world.engine.changes.read(self._cursor)
        for uid in changes.origin_uids:
            key = self._world.task_keys.get(uid)
            if key is None:
                continue  # gone, or not seen yet: its own event calls it
            self._world.queues.tasks.add(key)
            task = self._world.tasks.get(key)
            if task is not None:
                template = ObjectKey(namespace=key.namespace, name=task["spec"]["templateRef"]["name"])
                self._world.queues.templates.add_after(template, COUNTS_SECONDS)
        self._cursor = changes.cursor
        self._read_at = time.monotonic()


async def listen(world: World, *, changes: Pacer, scaling: Pacer) -> None:
    """Hurries the loops when the database announces work or ends."""
    async for channel in world.engine.changes.listen():
        changes.hurry()
        if channel != FINISHED:
            scaling.hurry()


async def sweep(world: World) -> None:
    """One sweep: with no worker left nobody else wakes due retries or ends what is over its time."""
    for repair, repaired in (await world.engine.workers.sweep()).items():
        world.metrics.sweep_repairs.labels(repair).inc(repaired)
