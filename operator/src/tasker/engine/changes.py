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
    """A place in the log of runs: what was committed then has been read."""

    snapshot: str
    """Postgres' account of which transactions had ended, as ``pg_snapshot`` is written."""

    timeline: int | None
    """Of the server; None where it does not tell."""

    at: datetime
    """The database's time then."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The resources whose runs moved since a cursor, and where to go on."""

    origin_uids: frozenset[str]
    cursor: ChangeCursor

    place_lost: bool = False
    """The server is not the one of the cursor, or one that went back: runs may have moved, or lost moves, untold."""


class ChangeLog:
    """Calls that follow what happens to runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, cursor: ChangeCursor | None) -> Changes:
        """Resources whose runs moved since `cursor`, and where to go on. No move is ever left out.

        None begins with now. The resources are then those of all runs that ever went on after they had ended: what is
        shown of these may be an earlier end.
        """
        queries = load_queries("tasks")
        if cursor is None:
            [place] = await self._database.fetch(queries["changes_place"])
            taken_up = await self._database.fetch(queries["origins_taken_up"])
            return Changes(origin_uids=frozenset(row["origin_uid"] for row in taken_up), cursor=ChangeCursor(**place))
        [found] = await self._database.fetch(queries["changes"], {"snapshot": cursor.snapshot, "since": cursor.at})
        after = ChangeCursor(snapshot=found["snapshot"], timeline=found["timeline"], at=found["at"])
        return Changes(
            origin_uids=frozenset(found["origin_uids"]),
            cursor=after,
            place_lost=found["went_back"] or after.timeline != cursor.timeline,
        )

    def listen(self) -> AsyncIterator[str]:
        """Yields a channel's name for each hint of ready steps or finished runs; connects again when it must."""
        settings = self._database.settings
        channels = [notifications.READY, notifications.FINISHED]
        return notifications.listen(settings.listen_url or settings.url, channels, settings.limits)
