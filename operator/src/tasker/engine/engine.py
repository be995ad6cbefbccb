"""The engine's one face: what the operator, the command line and other programs do with templates and runs.

One object of calls a subject. Each call checks what enters, calls one database function, and hints workers afterwards.
Nothing is kept in memory but what never changes; any number of engines may work on one database. Every call raises
`StoreUnavailable` while it cannot be reached.
"""

from __future__ import annotations

from tasker.engine.actions import Actions
from tasker.engine.changes import ChangeLog
from tasker.engine.dead_letters import DeadLetters
from tasker.engine.installation import Installation
from tasker.engine.pool import Database
from tasker.engine.tasks import Tasks
from tasker.engine.templates import Templates
from tasker.engine.workers import Workers


class Engine:
    """Calls by subject on one database."""

    def __init__(self, database: Database) -> None:
        self.templates = Templates(database)
        self.tasks = Tasks(database)
        self.actions = Actions(database)
        self.dead_letters = DeadLetters(database)
        self.workers = Workers(database)
        self.changes = ChangeLog(database)
        self.installation = Installation(database)
        self._database = database

    @property
    def obstacle(self) -> str | None:
        """Why the newest call found no database to work with; None when it found one."""
        return self._database.obstacle
