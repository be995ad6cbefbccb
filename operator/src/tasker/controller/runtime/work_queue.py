"""The work queue: a fixed number of coroutines that reconcile keys, one at a time a key.

`app` makes one a kind; event handlers, loops and reconcilers add keys. The rules (coalescing, back-off) are in
`keyed_queue`; this module adds the waiting and what is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from tasker.controller.kube.client import ClusterError
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime.keyed_queue import Backoff, KeyedQueue
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.errors import StoreUnavailable

logger = logging.getLogger(__name__)


Reconcile = Callable[[ObjectKey], Awaitable[float | None]]
"""Brings one key in line. Returns the seconds until it wants to be called again, or None; raises to be retried."""


class WorkQueue:
    """Keys that need reconciling, and the coroutines that do it."""

    def __init__(
        self,
        kind: str,
        reconcile: Reconcile,
        *,
        concurrency: int,
        metrics: OperatorMetrics,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self._reconcile = reconcile
        self._concurrency = concurrency
        self._metrics = metrics
        self._clock = clock
        self._queue: KeyedQueue[ObjectKey] = KeyedQueue(backoff=backoff)
        self._changed = asyncio.Event()
        metrics.queue_depth.labels(kind).set_function(lambda: len(self._queue))

    def add(self, key: ObjectKey) -> None:
        """The key needs reconciling now."""
        self._queue.add(key)
        self._changed.set()

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """The key needs reconciling in so many seconds, or earlier."""
        self._queue.add_at(key, self._clock() + seconds)
        self._changed.set()

    def idle(self) -> bool:
        """Nothing is under way and nothing could be taken now."""
        return self._queue.active == 0 and self._queue.ready == 0

    async def run(self) -> None:
        """Reconciles until cancelled; at most `concurrency` keys at once."""
        free = asyncio.Semaphore(self._concurrency)
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                key = await self._take()
                task = group.create_task(self._work(key), name=f"reconcile {self.kind} {key}")
                task.add_done_callback(lambda _: free.release())

    async def _take(self) -> ObjectKey:
        while True:
            self._changed.clear()
            key = self._queue.take(self._clock())
            if key is not None:
                return key
            due = self._queue.next_due()
            timeout = None if due is None else max(0.0, due - self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()

    async def _work(self, key: ObjectKey) -> None:
        started = self._clock()
        try:
            again_after = await self._reconcile(key)
        except Exception as error:
            self._failed(key, error)
        else:
            self._queue.done(key, self._clock(), again_after=again_after)
            self._metrics.reconciles.labels(self.kind, "success").inc()
        finally:
            self._metrics.reconcile_seconds.labels(self.kind).observe(self._clock() - started)
            self._changed.set()

    def _failed(self, key: ObjectKey, error: Exception) -> None:
        self._metrics.reconciles.labels(self.kind, "error").inc()
        match error:
            case ClusterError():
                self._metrics.reconcile_errors.labels(self.kind, error.label).inc()
                delay = self._queue.failed(key, self._clock(), at_least=error.retry_after or 0.0)
                level = logging.DEBUG if error.is_conflict else logging.WARNING
                logger.log(level, "%s %s: %s; again in %.1f s", self.kind, key, error, delay)
            case StoreUnavailable():
                self._metrics.reconcile_errors.labels(self.kind, "database").inc()
                delay = self._queue.failed(key, self._clock())
                logger.warning("%s %s: %s; again in %.1f s", self.kind, key, error, delay)
            case _:
                self._metrics.reconcile_errors.labels(self.kind, type(error).__name__).inc()
                delay = self._queue.failed(key, self._clock())
                logger.error("%s %s failed; again in %.1f s", self.kind, key, delay, exc_info=error)
