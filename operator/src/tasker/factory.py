"""The composition root: settings to store to engine, and to messages. Nobody else builds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tasker.engine import Engine
from tasker.engine.migrate import check_schema, migrate
from tasker.engine.pool import Database
from tasker.messaging import PostgresMessaging
from tasker.settings import DatabaseSettings

__all__ = ["migrate", "open_engine", "open_messaging"]


@asynccontextmanager
async def open_engine(settings: DatabaseSettings) -> AsyncIterator[Engine]:
    """An engine on a database whose schema this release understands.

    Raises `StoreUnavailable` when it cannot be reached in time, `SchemaMismatch` when it is not migrated, and
    `ConfigurationError` when it is none that can be used.
    """
    await check_schema(settings.url, settings.limits)
    database = Database(settings)
    await database.open()
    try:
        yield Engine(database)
    finally:
        await database.close()


@asynccontextmanager
async def open_messaging(settings: DatabaseSettings, namespace: str) -> AsyncIterator[PostgresMessaging]:
    """The queues of a namespace, on connections of their own.

    Raises as `open_engine`, and `InvalidMessage` for a namespace that cannot be one.
    """
    await check_schema(settings.url, settings.limits)
    database = Database(settings)
    messaging = PostgresMessaging(database, namespace)
    await database.open()
    try:
        yield messaging
    finally:
        await messaging.close()
        await database.close()
