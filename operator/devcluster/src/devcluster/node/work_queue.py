"""A queue of keys to bring in line: each key at most once in it and never in two hands, failures tried again later.

The one queue of the node is filled by watches, timers, ending processes and probes, and emptied by the controllers.
One key's fault is logged with the key and stops no other: not an exception, not a cancelled future that it waited for,
not a wait that never ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from devcluster.loops import Heartbeat, Loops

logger = logging.getLogger(__name__)

KeyType = TypeVar("KeyType", bound=Hashable)

FIRST_DELAY_SECONDS = 0.02
LONGEST_DELAY_SECONDS = 15.0
KEY_SECONDS = 60.0
"""The longest time one key may take; the requests that it makes have shorter limits of their own."""
LATE_SECONDS = KEY_SECONDS + 10.0


class RetryLater(Exception):
    """Raised by a reconcile function: try this key again after so many seconds, nothing is wrong."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"again in {seconds} s")


class WorkQueue(Generic[KeyType]):
    """Keys in the order of their first mention. `heart` is late when keys wait and nobody takes one."""

    def __init__(self, *, key_seconds: float = KEY_SECONDS) -> None:
        self.heart = Heartbeat(LATE_SECONDS)
        self._key_seconds = key_seconds
        self._waiting: asyncio.Queue[KeyType] = asyncio.Queue()
        self._dirty: set[KeyType] = set()
        self._in_hand: set[KeyType] = set()
        self._failures: dict[KeyType, int] = {}
        self._timers: dict[KeyType, asyncio.TimerHandle] = {}
        self._stopping = False

    def add(self, key: KeyType) -> None:
        """The key needs attention now. While it is being worked on, it is done once more afterwards."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._in_hand:
            self._put(key)

    def add_after(self, key: KeyType, seconds: float) -> None:
        """The key needs attention in so many seconds, or earlier if somebody says so."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None:
            if known.when() <= loop.time() + seconds:
                return
            known.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    async def run(self, reconcile: Callable[[KeyType], Awaitable[None]], *, workers: int) -> None:
        """Work until cancelled, on up to `workers` keys at once. A worker that is lost is replaced."""
        loops = Loops()
        self._stopping = False
        try:
            for number in range(workers):
                loops.start(f"worker {number} of the queue", lambda: self._work(reconcile), Heartbeat(float("inf")))
            if self._waiting.empty():
                self.heart.rest()
            await asyncio.Event().wait()
        finally:
            self._stopping = True
            await loops.stop()
            # Nothing is forgotten should it be run again: what waits for its time then comes at once.
            for key in list(self._timers):
                self.add(key)

    def _put(self, key: KeyType) -> None:
        self._waiting.put_nowait(key)
        self.heart.expect()

    async def _work(self, reconcile: Callable[[KeyType], Awaitable[None]]) -> None:
        while True:
            key = await self._waiting.get()
            if self._waiting.empty():
                self.heart.rest()
            else:
                self.heart.beat()
            self._dirty.discard(key)
            self._in_hand.add(key)
            failed = False
            delay: float | None = None
            try:
                async with asyncio.timeout(self._key_seconds):
                    await reconcile(key)
            except RetryLater as again:
                delay = again.seconds
            except asyncio.CancelledError as error:
                # Unless the queue is stopping, this is a failure of the key, tried again like any other: something
                # that the key waited for was cancelled, or else this worker was, which then ends and is replaced.
                if self._stopping:
                    self._dirty.add(key)
                    raise
                failed = True
                delay = self._delay_after(key, error)
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
            except Exception as error:
                failed = True
                delay = self._delay_after(key, error)
            finally:
                self._in_hand.discard(key)
                self._settle(key, failed=failed, delay=delay)

    def _settle(self, key: KeyType, *, failed: bool, delay: float | None) -> None:
        """Decide when the key comes next."""
        if not failed:
            self._failures.pop(key, None)
            if key in self._dirty:
                self._put(key)  # it changed meanwhile
                return
        # After a failure the delay holds even for what changed meanwhile, so that nothing loops hot.
        self._dirty.discard(key)
        if delay is not None:
            self.add_after(key, delay)

    def _delay_after(self, key: KeyType, error: BaseException) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_DELAY_SECONDS * 2.0**failures, LONGEST_DELAY_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311
        wanted: float | None = getattr(error, "retry_after", None)
        delay = max(delay, wanted or 0.0)
        # A refusal or two is everyday life (a conflict, a busy server); what lasts, or is our own mistake, is told.
        known = hasattr(error, "retry_after")
        level = logging.DEBUG if known and failures < 3 else logging.WARNING
        logger.log(level, "%s: %r; again in %.2f s", key, error, delay, exc_info=None if known else error)
        return delay
