"""Outcomes of runs that somebody else holds, or that take long themselves: they wait here, so that those of all other
runs need not.

A run's row may be held for long, by a session that was left open or by a large call of another worker's. The call
that meets such a row fails after a while and has recorded nothing. All its outcomes then come here and are handed in
again over a connection of their own, one run a call: those of other runs go through at once, and only those of the run
that is held wait for it. What ends meanwhile for a run that waits here joins it, in the order in which it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from .attempts import Attempt
from .logging import with_fields
from .settling import Settler

logger = logging.getLogger("tasker_worker.locked")

_PAUSE_SECONDS = 0.1  # after a call that met a row which is still held: the call itself has waited for seconds


class LockedTasks:
    """The outcomes that wait, by task. Belongs to the loop's thread."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        """`on_progress` is called whenever there may be less that waits."""
        self._on_progress = on_progress
        self._outcomes: dict[str, deque[Attempt]] = {}  # by task uuid, in the order in which they are tried
        self._trying: str | None = None  # the task uuid of the call under way
        self._wanted = asyncio.Event()
        self._logged: set[str] = set()  # task uuids that were logged

    def waiting(self) -> int:
        """Outcomes here, without those of the call under way."""
        return sum(map(len, self._outcomes.values()))

    def __contains__(self, task_uuid: str) -> bool:
        return task_uuid == self._trying or task_uuid in self._outcomes

    def add(self, attempts: Iterable[Attempt]) -> None:
        """Let outcomes wait here until they are recorded."""
        for attempt in attempts:
            self._outcomes.setdefault(attempt.claim.task_uuid, deque()).append(attempt)
        self._wanted.set()

    def put_back(self, attempts: list[Attempt]) -> None:
        """The run of these is still held: they come last from now on, before what has ended since."""
        first, *_ = attempts
        task_uuid = first.claim.task_uuid
        later = self._outcomes.pop(task_uuid, ())
        self._outcomes[task_uuid] = deque([*attempts, *later])
        if task_uuid not in self._logged:
            self._logged.add(task_uuid)
            logger.warning(
                "a task is held by another session of the database; its outcomes wait",
                extra=with_fields(task_uuid=task_uuid, count=len(self._outcomes[task_uuid])),
            )

    async def run(self, settler: Settler) -> None:
        """Hand in what waits, until cancelled or until the settler gives up."""
        while True:
            self._wanted.clear()
            while self._outcomes:
                if not await self._settle_next(settler):
                    return
                self._on_progress()
            await self._wanted.wait()

    async def _settle_next(self, settler: Settler) -> bool:
        """One call, for the first run; False when the settler has given up."""
        task_uuid = next(iter(self._outcomes))
        finished = self._outcomes.pop(task_uuid)
        batch = settler.take_batch(finished)
        if finished:  # more than a call takes
            self._outcomes[task_uuid] = finished
        if not batch:
            return True
        self._trying = task_uuid
        try:
            if not await settler.settle(batch, 0):
                return False
        finally:
            self._trying = None
        if task_uuid in self._outcomes:
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            self._logged.discard(task_uuid)
        return True
