"""Postgres and what can be done with templates and runs: calls by subject, connections, migrations, SQL.

The only package that imports psycopg.
"""

from tasker.engine.changes import ChangeCursor, Changes
from tasker.engine.engine import Engine
from tasker.engine.notifications import FINISHED, READY

__all__ = ["FINISHED", "READY", "ChangeCursor", "Changes", "Engine"]
