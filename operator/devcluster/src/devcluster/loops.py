"""Background loops that are watched over: one that ends, however it ends, is logged and begins again; one that does not
come round is told of. Used by ``apiserver`` and ``node``, whose ``/healthz`` answers with `Loops.late`.

All of it belongs to one event loop and is called from its thread only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 15.0
STEADY_SECONDS = 60.0
"""Having run so long, the next failure is the first again."""
CHECK_SECONDS = 5.0
"""How often it is looked whether a loop is late."""

Work = Callable[[], Coroutine[Any, Any, None]]


class Heartbeat:
    """Whether a loop comes round: it is late when something is expected of it and it has not beaten for its limit."""

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._since: float | None = None

    def expect(self) -> None:
        """There is work to do from now on; nothing changes when there was before."""
        if self._since is None:
            self._since = self._clock()

    def beat(self) -> None:
        """The loop has come round, and is expected to again."""
        self._since = self._clock()

    def rest(self) -> None:
        """Nothing is expected until `expect` or `beat`."""
        self._since = None

    def late_seconds(self) -> float | None:
        """Seconds since the last beat when that is over the limit; else None."""
        waited = 0.0 if self._since is None else self._clock() - self._since
        return waited if waited > self._limit_seconds else None


@dataclass(kw_only=True)
class _Loop:
    work: Work
    heart: Heartbeat
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    began: float = 0.0
    failures: int = 0
    is_told_late: bool = False


class Loops:
    """Named loops that run until `stop`."""

    def __init__(self) -> None:
        self._loops: dict[str, _Loop] = {}
        self._stopping = False
        self._watchdog: asyncio.TimerHandle | None = None

    def start(self, name: str, work: Work, heart: Heartbeat) -> None:
        """Run `work` now, and again whenever it ends. It beats `heart` as it goes."""
        self._loops[name] = _Loop(work=work, heart=heart)
        heart.expect()
        self._begin(name)
        if self._watchdog is None:
            self._check()

    def late(self) -> list[str]:
        """One line for each loop that has not come round in time."""
        return [
            f"{name} has not come round for {seconds:.0f} s"
            for name, found in self._loops.items()
            if (seconds := found.heart.late_seconds()) is not None
        ]

    async def stop(self) -> None:
        """End all of them. May be called more than once."""
        self._stopping = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        for found in self._loops.values():
            if found.timer is not None:
                found.timer.cancel()
        tasks = [found.task for found in self._loops.values() if found.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops.clear()

    def _begin(self, name: str) -> None:
        found = self._loops[name]
        found.began = time.monotonic()
        found.task = asyncio.create_task(found.work(), name=name)
        found.task.add_done_callback(lambda task: self._ended(name, task))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._stopping:
            return
        found = self._loops[name]
        if time.monotonic() - found.began > STEADY_SECONDS:
            found.failures = 0
        delay = min(FIRST_DELAY_SECONDS * 2.0**found.failures, LONGEST_DELAY_SECONDS)
        found.failures += 1
        how = "was cancelled" if task.cancelled() else "ended" if error is None else "broke"
        logger.error("%s %s; it begins again in %.1f s", name, how, delay, exc_info=error)
        found.timer = asyncio.get_running_loop().call_later(delay, self._begin, name)

    def _check(self) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)
        for name, found in self._loops.items():
            seconds = found.heart.late_seconds()
            if seconds is not None and not found.is_told_late:
                logger.critical("%s has not come round for %.0f s", name, seconds)
            found.is_told_late = seconds is not None
