"""The fixtures that tests of the engine are written with.

Most tests only put rows into tables, so they share one database, emptied before each: ten times as quick as a database
of their own. Those that change the schema itself (triggers, partitions) take `own_lab`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from support.engine import Lab, open_lab
from support.postgres import TestServer

EMPTY = """truncate tasker.settings, tasker.templates, tasker.definitions, tasker.definition_edges, tasker.tasks,
    tasker.steps, tasker.ready_steps, tasker.leases, tasker.workers, tasker.pool_callables, tasker.timers,
    tasker.step_batches, tasker.open_tasks, tasker.limited_tasks, tasker.concurrency_limits, tasker.identities,
    tasker.step_failures, tasker.dead_letters, tasker.dead_letter_changes, tasker.task_log, tasker.step_log"""


@pytest.fixture(scope="session")
def shared_database(postgres_server: TestServer) -> Iterator[str]:
    """The URL of the database that the tests of this folder share."""
    name = f"engine_{secrets.token_hex(6)}"
    yield postgres_server.create(name, postgres_server.template())
    postgres_server.drop(name)


@pytest.fixture
async def lab(shared_database: str) -> AsyncIterator[Lab]:
    """An engine on an empty database, and short words for both."""
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute("set lock_timeout = '10s'")
        connection.execute(EMPTY.encode())
    async with open_lab(shared_database) as lab:
        yield lab


@pytest.fixture
async def own_lab(database_url: str) -> AsyncIterator[Lab]:
    """The same on a database of the test's own, whose schema it may change."""
    async with open_lab(database_url) as lab:
        yield lab
