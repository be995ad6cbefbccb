"""A job that is repeated for ever: its pace, what its failures do, and how its coming round is seen.

A loop goes on whatever fails: the failure is counted, logged once when it begins and once when it ends, and the pause
before the next try is the one between any two rounds. `loops` has the jobs, `app` makes the loops of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from tasker.controller.kube.client import ClusterError
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.own_loop import OwnLoop
from tasker.controller.runtime.supervision import Progress
from tasker.errors import StoreError

logger = logging.getLogger(__name__)

HINT_PAUSE_SECONDS = 0.1
"""A loop that hints hurry still runs at most this often, in seconds."""

ROUND_SECONDS = 120.0
"""The longest that a round's work may take, in seconds: four requests that an API server leaves unanswered, and far
more than any statement takes. What waits longer waits for what will not come, and a new process connects anew."""


class Pacer:
    """Waits for a loop's next round: the period, or a hint, but never less than a short pause.

    Belongs to one event loop, whose single thread protects it; calls from elsewhere are refused.
    """

    def __init__(self, period_seconds: float) -> None:
        self.period_seconds = period_seconds
        self._hint = asyncio.Event()
        self._own_loop = OwnLoop("a pacer")

    def hurry(self) -> None:
        """The next round should begin soon. Raises `RuntimeError` in a foreign thread."""
        self._own_loop.require()
        self._hint.set()

    async def wait(self, seconds: float | None = None) -> None:
        """For `seconds`, or the period when left out, or until hurried."""
        seconds = self.period_seconds if seconds is None else seconds
        await asyncio.sleep(min(HINT_PAUSE_SECONDS, seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - HINT_PAUSE_SECONDS):
                await self._hint.wait()
        self._hint.clear()


class Loop:
    """Runs `once` for ever, with the pacer's waits between; a part that `supervision` watches."""

    stall = "has not come round"

    def __init__(
        self,
        name: str,
        once: Callable[[], Awaitable[None]],
        pacer: Pacer,
        *,
        metrics: OperatorMetrics,
        round_seconds: float = ROUND_SECONDS,
        first_wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._once = once
        self._pacer = pacer
        self._first_wait_seconds = first_wait_seconds
        self._longest_seconds = max(first_wait_seconds, pacer.period_seconds) + round_seconds
        self._rounds = 0
        self._failing = False
        self._clock = clock
        self._succeeded_at = clock()
        self._failures = metrics.loop_failures.labels(name)
        metrics.loop_lag.labels(name).set_function(self.lag_seconds)

    def lag_seconds(self) -> float:
        """How long ago a round last succeeded, or the loop was made."""
        return self._clock() - self._succeeded_at

    def progress(self) -> Progress:
        return Progress(count=self._rounds, allowed_seconds=self._longest_seconds)

    async def run(self) -> None:
        if self._first_wait_seconds > 0:
            await self._pacer.wait(self._first_wait_seconds)
        while True:
            await self._round()
            self._rounds += 1
            if was_cancelled_from_outside():
                raise asyncio.CancelledError  # the round swallowed it: see `supervision`
            await self._pacer.wait()

    async def _round(self) -> None:
        try:
            await self._once()
        except (StoreError, ClusterError) as error:
            self._failed("%s is interrupted: %s", self.name, error)
        except Exception as error:
            self._failed("%s failed", self.name, error=error)
        except asyncio.CancelledError as error:
            if was_cancelled_from_outside():
                raise
            self._failed("%s was cancelled from within", self.name, error=error)
        else:
            if self._failing:
                logger.info("%s goes on", self.name)
            self._failing = False
            self._succeeded_at = self._clock()

    def _failed(self, text: str, *arguments: object, error: BaseException | None = None) -> None:
        self._failures.inc()
        if error is not None:
            logger.error(text, *arguments, exc_info=error)
        elif not self._failing:
            logger.warning(text, *arguments)
        self._failing = True


def was_cancelled_from_outside() -> bool:
    """Whether somebody cancels the current task. When nobody does, a CancelledError is a failure of what was awaited:
    of a library's own future or task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
