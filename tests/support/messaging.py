"""Worlds of messages as tests have them: what keeps the messages, and a clock that stands still until it is moved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from support.engine import Clock, connect, open_database
from tasker.engine.pool import Database
from tasker.messaging import InMemoryMessaging, MemoryBroker, MovableClock, PostgresMessaging
from tasker.settings import DatabaseSettings


class MemoryWorld:
    """One broker, and services on it."""

    def __init__(self) -> None:
        self.clock = MovableClock()
        self.broker = MemoryBroker(self.clock)

    def service(self, namespace: str = "shop") -> InMemoryMessaging:
        return InMemoryMessaging(namespace, broker=self.broker)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


class PostgresWorld:
    """A database, and services on it that share a pool of connections."""

    def __init__(self, url: str, database: Database, connection: AsyncConnection[DictRow]) -> None:
        self.url = url
        self.database = database
        self.connection = connection
        self.clock = Clock(connection)
        self.services: list[PostgresMessaging] = []

    def service(self, namespace: str = "shop") -> PostgresMessaging:
        service = PostgresMessaging(self.database, namespace, poll_seconds=0.05, retry_seconds=0.05)
        self.services.append(service)
        return service

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@asynccontextmanager
async def open_postgres_world(url: str) -> AsyncIterator[PostgresWorld]:
    """A world on a migrated database."""
    async with AsyncExitStack() as stack:
        settings = DatabaseSettings(url=url, pool_min=4, pool_max=8)
        database = await stack.enter_async_context(open_database(settings))
        world = PostgresWorld(url, database, await stack.enter_async_context(await connect(url)))
        await world.clock.freeze()
        try:
            yield world
        finally:
            for service in world.services:
                await service.close()
