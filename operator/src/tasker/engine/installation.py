"""Whose database it is: one installation's, which is noted in it, and no other's.

An operator cancels runs whose Tasks its cluster does not have. With two of them on one database, each would cancel all
that the other was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.errors import ForeignInstallation


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The installation that a database belongs to, and since when."""

    id: str
    since: datetime


class Installation:
    """Calls on the database's owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owner(self) -> Owner | None:
        """Whose the database is; None until an installation has taken it."""
        rows = await self._database.fetch(load_queries("installation")["installation"])
        return next((Owner(**row) for row in rows), None)

    async def take(self, installation: str) -> None:
        """Works for this installation from now on: takes a database that is nobody's.

        Raises `ForeignInstallation` when it is another's. After it, calls that would end the runs of resources that are
        not there find no run any more as soon as the database has become another's.
        """
        [row] = await self._database.fetch(load_queries("installation")["take_installation"], {"id": installation})
        self._refuse_foreign(installation, Owner(**row))
        self._database.installation = installation

    async def require(self) -> None:
        """Raises `ForeignInstallation` when the database has become another's since it was taken."""
        installation, owner = self._database.installation, await self.owner()
        if installation is not None:
            self._refuse_foreign(installation, owner)

    async def adopt(self, installation: str) -> None:
        """Gives the database to this installation, whoever had it."""
        await self._database.fetch(load_queries("installation")["adopt_installation"], {"id": installation})

    def _refuse_foreign(self, installation: str, owner: Owner | None) -> None:
        if owner is None:
            raise ForeignInstallation(f"the database is no longer that of installation {installation}")
        if owner.id != installation:
            raise ForeignInstallation(
                f"the database belongs to another installation, {owner.id}, since {owner.since:%Y-%m-%d %H:%M} UTC; "
                f"this one is {installation}. Give this one a database of its own. If the other is gone for good (its "
                f"database was restored for this one, say), run: tasker system adopt {installation}"
            )
