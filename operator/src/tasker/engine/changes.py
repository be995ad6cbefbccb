"""Which runs moved: a reader of the transition log, and the notifications that hint at it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from tasker.engine import notifications
from tasker.engine.pool import Database
from tasker.engine.queries import load_queries


@dataclass(frozen=True, kw_only=True)
class ChangeCursor:
    """A place in the transition log: every transaction before it has been read. `at` is the database's time then."""

    transaction_id: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The resources whose runs moved since a cursor, and where to go on."""

    origin_uids: frozenset[str]
    cursor: ChangeCursor


class ChangeLog:
    """Calls that follow what happens to runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, cursor: ChangeCursor | None) -> Changes:
        """Resources whose runs moved since `cursor` (None: from now on). No move is ever left out."""
        queries = load_queries("tasks")
        [horizon] = await self._database.fetch(queries["changes_horizon"])
        after = ChangeCursor(transaction_id=horizon["horizon"], at=horizon["at"])
        if cursor is None:
            return Changes(origin_uids=frozenset(), cursor=after)
        rows = await self._database.fetch(
            queries["changes"],
            {"cursor": cursor.transaction_id, "horizon": after.transaction_id, "since": cursor.at},
        )
        return Changes(origin_uids=frozenset(row["origin_uid"] for row in rows), cursor=after)

    def listen(self) -> AsyncIterator[str]:
        """Yields a channel's name for each hint of ready steps or finished runs; connects again when it must."""
        settings = self._database.settings
        channels = [notifications.READY, notifications.FINISHED]
        return notifications.listen(settings.listen_url or settings.url, channels, settings.limits)
