"""The work queue: a fixed number of coroutines that reconcile keys, one at a time a key.

`app` makes one a kind; event handlers, loops and reconcilers add keys. The rules (coalescing, back-off) are in
`keyed_queue`; this module adds the waiting, what is counted, and by what `supervision` sees that keys are taken.
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
from tasker.controller.runtime.own_loop import OwnLoop
from tasker.controller.runtime.supervision import Breakdown, Progress
from tasker.errors import StoreUnavailable

logger = logging.getLogger(__name__)

RECONCILE_SECONDS = 300.0
"""A reconcile that takes longer is cancelled and counts as failed: that is ten requests that the API server leaves
unanswered. Without a bound, one that waits for what never comes would hold its key and its slot for ever."""

STALL_SECONDS = 30.0
"""A key that could be taken and a free slot meet within a turn of the event loop. So long without is no load: whatever
should have woken the queue was lost, and nothing will wake it."""

Reconcile = Callable[[ObjectKey], Awaitable[float | None]]
"""Brings one key in line. Returns the seconds until it wants to be called again, or None; raises to be retried."""


class WorkQueue:
    """Keys that need reconciling, and the coroutines that do it.

    Belongs to one event loop, whose single thread protects it: between a look at the keys and the wait for a change no
    other coroutine runs, so no wake-up is lost. Calls from elsewhere are refused.
    """

    stall = "has taken no key, although some are ready,"

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
        self.name = f"queue {kind}"
        self._reconcile = reconcile
        self._concurrency = concurrency
        self._metrics = metrics
        self._clock = clock
        self._queue: KeyedQueue[ObjectKey] = KeyedQueue(backoff=backoff)
        self._changed = asyncio.Event()
        self._own_loop = OwnLoop(f"the work queue of {kind}")
        self._taken = 0
        self._working = 0
        self._stopping = False
        metrics.queue_depth.labels(kind).set_function(lambda: len(self._queue))

    def add(self, key: ObjectKey) -> None:
        """The key needs reconciling now. Raises `RuntimeError` in a foreign thread."""
        self._own_loop.require()
        self._queue.add(key)
        self._changed.set()

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """The key needs reconciling in so many seconds, or earlier. Raises `RuntimeError` in a foreign thread."""
        self._own_loop.require()
        self._queue.add_at(key, self._clock() + seconds)
        self._changed.set()

    def idle(self) -> bool:
        """Nothing is under way and nothing could be taken now."""
        return self._queue.active == 0 and self._queue.ready == 0

    def progress(self) -> Progress:
        """Counts the keys taken. Raises `Breakdown` when a key counts as worked on and nobody works on it."""
        if self._queue.active > self._working:
            raise Breakdown(f"part {self.name!r} holds a key that nobody works on: it would never be taken again")
        due = self._queue.next_due()
        if self._queue.ready == 0 and (due is None or due > self._clock()):
            return Progress(count=self._taken, allowed_seconds=None)
        busy = self._working >= self._concurrency
        return Progress(count=self._taken, allowed_seconds=STALL_SECONDS + (RECONCILE_SECONDS if busy else 0.0))

    async def run(self) -> None:
        """Reconciles until cancelled; at most `concurrency` keys at once."""
        free = asyncio.Semaphore(self._concurrency)

        def ended(_: asyncio.Task[None]) -> None:
            self._working -= 1
            free.release()

        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    await free.acquire()
                    key = await self._take()
                    self._taken += 1
                    self._working += 1
                    group.create_task(self._work(key), name=f"reconcile {self.kind} {key}").add_done_callback(ended)
            finally:
                self._stopping = True

    async def _take(self) -> ObjectKey:
        while True:
            self._changed.clear()
            key = self._queue.take(self._clock())
            if key is not None:
                return key
            due = self._queue.next_due()
            timeout = None if due is None else due - self._clock()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()

    async def _work(self, key: ObjectKey) -> None:
        started = self._clock()
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                again_after = await self._reconcile(key)
        except Exception as error:
            self._failed(key, error)
        except asyncio.CancelledError as error:
            if self._stopping:
                raise
            # Not ours: a library's own task or future was cancelled. Left alone it would keep the key taken for ever.
            self._failed(key, error)
        else:
            self._queue.done(key, self._clock(), again_after=again_after)
            self._metrics.reconciles.labels(self.kind, "success").inc()
        finally:
            self._metrics.reconcile_seconds.labels(self.kind).observe(self._clock() - started)
            self._changed.set()

    def _failed(self, key: ObjectKey, error: BaseException) -> None:
        self._metrics.reconciles.labels(self.kind, "error").inc()
        match error:
            case ClusterError():
                self._metrics.reconcile_errors.labels(self.kind, error.label).inc()
                delay = self._queue.failed(key, self._clock(), at_least=error.retry_after)
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
