"""Connections: one small pool a process, and the translation of Postgres' errors into ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from tasker.errors import IllegalTransition, StoreError, StoreUnavailable, TaskNotFound, TemplateNotFound
from tasker.settings import DatabaseSettings

RETRIED = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)
"""Postgres gave up one of two transactions that met; the same statement again will do."""

Connection = AsyncConnection[DictRow]
Result = TypeVar("Result")


class Database:
    """Runs single statements, each its own transaction, on pooled connections."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            settings.url,
            connection_class=AsyncConnection[DictRow],
            kwargs={"autocommit": True, "row_factory": dict_row, "application_name": settings.application_name},
            min_size=settings.pool_min,
            max_size=settings.pool_max,
            timeout=settings.connect_timeout_seconds,
            open=False,
        )

    async def open(self) -> None:
        """Connects. Raises `StoreUnavailable` when the database cannot be reached in time."""
        with translated_errors():
            await self._pool.open(wait=True, timeout=self.settings.connect_timeout_seconds)

    async def close(self) -> None:
        """Closes all connections."""
        await self._pool.close()

    async def fetch(self, query: LiteralString, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """All rows of one statement, tried again when Postgres chose it as the victim of a deadlock."""

        async def run() -> list[dict[str, Any]]:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(query, parameters)
                return list(await cursor.fetchall())

        return await retried(run)

    async def fetch_value(self, query: LiteralString, parameters: dict[str, Any] | None = None) -> Any:
        """The first column of the first row; None when there is no row."""
        rows = await self.fetch(query, parameters)
        return next(iter(rows[0].values())) if rows else None


async def retried(run: Callable[[], Awaitable[Result]], attempts: int = 5) -> Result:
    """Runs a statement, again after a short random wait while it loses to another transaction."""
    for attempt in range(1, attempts + 1):
        try:
            with translated_errors():
                return await run()
        except StoreError as error:
            if attempt == attempts or not isinstance(error.__cause__, RETRIED):
                raise
            await asyncio.sleep(random.uniform(0.0, 0.01 * 2**attempt))  # noqa: S311 - jitter, not a secret
    raise AssertionError("unreachable")


@asynccontextmanager
async def connect(url: str, application_name: str) -> AsyncIterator[AsyncConnection]:
    """One connection of its own in autocommit, for migrations and LISTEN."""
    with translated_errors():
        connection = await AsyncConnection.connect(url, autocommit=True, application_name=application_name)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raises this project's errors in place of psycopg's, which stay as the cause."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable(f"the database cannot be reached: {error}") from error
    except psycopg.errors.RaiseException as error:
        raise StoreError(str(error)) from error
    except psycopg.Error as error:
        raise _translate(error) from error


def _translate(error: psycopg.Error) -> Exception:
    message = error.diag.message_primary or str(error).strip()
    match error.sqlstate:
        case "TK001":
            return TemplateNotFound(message)
        case "TK002":
            return IllegalTransition(message)
        case "TK006":
            return TaskNotFound(message)
        case None if isinstance(error, psycopg.OperationalError):
            return StoreUnavailable(f"the database cannot be reached: {message}")
        case state if state is not None and state[:2] in {"08", "57"}:
            return StoreUnavailable(f"the database cannot be reached: {message}")
        case _:
            return StoreError(message)
