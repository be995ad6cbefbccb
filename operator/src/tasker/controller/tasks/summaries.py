"""Reads of runs for statuses, gathered: what many reconcilers ask for at once is one query.

`tasks` asks for one run at a time; requests that come while a query is under way or within a moment go together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tasker.model.task import TaskSummary

GATHER_SECONDS = 0.005
"""How long the first request waits for company: far below what a person or a status notices."""

ReadSummaries = Callable[[Sequence[str]], Awaitable[list[TaskSummary]]]


class SummaryReader:
    """Gathers reads of `Engine.tasks.read_by_origin`."""

    def __init__(self, read: ReadSummaries) -> None:
        self._read = read
        self._waiting: dict[str, asyncio.Future[TaskSummary | None]] = {}
        self._flush: asyncio.Task[None] | None = None

    async def load(self, origin_uid: str) -> TaskSummary | None:
        """The run that the resource of this uid asked for, read after this call began; None when there is none."""
        future = self._waiting.get(origin_uid)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[origin_uid] = future
            if self._flush is None:
                self._flush = asyncio.create_task(self._read_waiting())
        return await asyncio.shield(future)

    async def _read_waiting(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        waiting, self._waiting, self._flush = self._waiting, {}, None
        try:
            found = {summary.origin_uid: summary for summary in await self._read(list(waiting))}
        except Exception as error:  # whoever waits gets it
            for future in waiting.values():
                future.set_exception(error)
                future.exception()  # nobody may be left to take it
            return
        for uid, future in waiting.items():
            future.set_result(found.get(uid))
