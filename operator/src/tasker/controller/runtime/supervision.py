"""Supervision: a part of the operator that ends, or no longer moves, is logged, counted, and ends the process.

Work goes on without an operator and a new process begins where the old one was, so an end costs little; an operator
that goes on without one of its parts, its probes green, costs a day of searching. `app` gives the parts to
`Supervisor.run`; the probes ask `Supervisor.check` themselves, so that not even a dead check goes unseen.

Time counts only while the event loop turns: a process that was frozen, or had no processor, does not blame its parts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.errors import TaskerError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often all parts are checked. Cheap, and little beside what any of them may take."""

MOST_COUNTED_SECONDS = 2.0
"""The most that the time between two checks counts for, twice what it should be: when it was longer, the event
loop itself did not turn."""

CANCEL_AGAIN_SECONDS = 5.0
"""How long a part has to end before it is cancelled again: more than closing takes, less than a pod's grace."""


class Breakdown(TaskerError):
    """A part of the operator has ended or stalled."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a part is. It stalls when `count` (None: it counts nothing) stands still for more than `allowed_seconds`
    (None: it has nothing to do, and may stand still for ever)."""

    count: int | None
    allowed_seconds: float | None


class Part(Protocol):
    """What is supervised: something that runs for ever, and shows that it moves."""

    @property
    def name(self) -> str:
        """One for each part; for logs, probes and metrics."""

    @property
    def stall(self) -> str:
        """What a stall of it means, to be read between its name and the seconds."""

    async def run(self) -> None:
        """Does its work until cancelled."""

    def progress(self) -> Progress:
        """How far it is now. Raises `Breakdown` when it can see itself that it is broken."""


class Waiter:
    """A part that waits for what may never come: only its end tells that it is broken."""

    stall = ""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._run = run

    async def run(self) -> None:
        await self._run()

    def progress(self) -> Progress:
        return Progress(count=None, allowed_seconds=None)


async def _cancel_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancels the tasks until all have ended.

    Once is not enough: in Python 3.11 `asyncio.wait_for`, which the connection pool uses, swallows a cancellation that
    comes together with what it waits for.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)  # what they raise at their end is nobody's any more


class _Watched:
    """A part, and since when it stands where it stands."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._seen: Progress | None = None
        self._since: float
        """Since when that has been seen; there is none before."""

    def fault(self, now: float) -> str | None:
        try:
            progress = self.part.progress()
        except Breakdown as error:
            return str(error)
        # Another allowance begins another wait: a queue whose last slot has just become free has not stalled.
        if progress != self._seen:
            self._seen, self._since = progress, now
        stood = now - self._since
        if progress.allowed_seconds is None or stood <= progress.allowed_seconds:
            return None
        return f"part {self.part.name!r} {self.part.stall} for {stood:.0f} s"


class Supervisor:
    """Runs the parts and watches them. `on_fault` is called once, with what has broken first."""

    def __init__(
        self,
        metrics: OperatorMetrics,
        *,
        on_fault: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault: str | None = None
        """What has broken, in words; the first of it."""
        self._metrics = metrics
        self._on_fault = on_fault
        self._clock = clock
        self._watched: list[_Watched] = []
        self._turned = self._checked_at = clock()
        self._broken = asyncio.Event()

    async def run(self, parts: Iterable[Part]) -> NoReturn:
        """Runs the parts until cancelled. Raises `Breakdown` when one ends or stalls; the others are ended first."""
        watched = [_Watched(part) for part in parts]
        tasks = [asyncio.create_task(each.part.run(), name=each.part.name) for each in watched]
        tasks.append(asyncio.create_task(self._check_for_ever(), name="supervision"))
        for task in tasks:
            task.add_done_callback(self._ended)
        self._watched = watched
        try:
            await self._broken.wait()
            raise Breakdown(self.fault)
        finally:
            self._watched = []
            for task in tasks:
                task.remove_done_callback(self._ended)
            await _cancel_all(tasks)

    def check(self) -> str | None:
        """What has broken, None while all is well. Nothing is checked before `run` begins nor after it ended."""
        now = self._clock()
        self._turned += min(now - self._checked_at, MOST_COUNTED_SECONDS)
        self._checked_at = now
        for watched in self._watched:
            if (fault := watched.fault(self._turned)) is not None:
                self._break(watched.part.name, fault)
        return self.fault

    async def _check_for_ever(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(CHECK_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        name = task.get_name()
        if task.cancelled():
            self._break(name, f"part {name!r} was cancelled, and not by the operator's end")
        elif (error := task.exception()) is not None:
            cause = _first_cause(error)
            self._break(name, f"part {name!r} ended: {type(cause).__name__}: {cause}", error)
        else:
            self._break(name, f"part {name!r} ended by itself")

    def _break(self, name: str, fault: str, error: BaseException | None = None) -> None:
        if self.fault is not None:
            return
        self.fault = fault
        self._metrics.breakdowns.labels(name).inc()
        logger.critical("%s", fault, exc_info=error)
        self._broken.set()
        self._on_fault(fault)


def _first_cause(error: BaseException) -> BaseException:
    """What made a group of tasks end, rather than the group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
