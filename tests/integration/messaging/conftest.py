"""A database for messages, shared by the tests of this folder and emptied before each."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from support.messaging import PostgresWorld, open_postgres_world
from support.postgres import TestServer

pytest.register_assert_rewrite("support.messaging_contract")

EMPTY = "truncate tasker.settings, tasker.message_queues, tasker.messages"


@pytest.fixture(scope="session")
def shared_database(postgres_server: TestServer) -> Iterator[str]:
    """The URL of the database."""
    name = f"messaging_{secrets.token_hex(6)}"
    yield postgres_server.create(name, postgres_server.template())
    postgres_server.drop(name)


@pytest.fixture
async def world(shared_database: str) -> AsyncIterator[PostgresWorld]:
    """What keeps the messages, empty."""
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute("set lock_timeout = '10s'")
        connection.execute(EMPTY.encode())
    async with open_postgres_world(shared_database) as world:
        yield world
