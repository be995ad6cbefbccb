"""Connections: one small pool a process, and the translation of Postgres' errors into ours.

No connection outlives the primary that it was made to. What TCP notices (a machine that is gone) ends by keepalives and
by the time that sent data may stay unacknowledged. What TCP does not notice (a proxy or load balancer that takes the
bytes and knows nobody behind it) ends by a deadline on each statement, some seconds after the server's own
`statement_timeout` would have ended it: then the line is hung up from this side, and the driver sees the server gone. A
server that became read-only is left as soon as it says so, in an error or in what it reports of itself beside any
answer, and no new connection is made to one. Each time all idle connections of the pool go too, for they lead to the
same server.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from tasker.errors import (
    ActionRefused,
    ConfigurationError,
    IllegalTransition,
    InvalidTask,
    QueueNotFound,
    StepNotFound,
    StoreError,
    StoreUnavailable,
    TaskNotFound,
    TemplateNotFound,
)
from tasker.settings import ConnectionLimits, DatabaseSettings

RETRIED = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)
"""Postgres gave up one of two transactions that met; the same statement again will do."""

Connection = AsyncConnection[DictRow]
Result = TypeVar("Result")
Row = TypeVar("Row")

_SESSION_LIMITS: LiteralString = """select set_config('statement_timeout', %(statement)s, false),
    set_config('lock_timeout', %(lock)s, false)"""

_READ_ONLY_REPORTS = ("in_hot_standby", "default_transaction_read_only")
"""What a server says of itself unasked, at the end of the next answer after it changed."""


class _ServerLost(StoreUnavailable):
    """The server at the other end does not answer, or may no longer write: whoever is connected to it must leave."""


class Database:
    """Runs statements on pooled connections: single ones that are each a transaction, or several in one."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self.obstacle: str | None = None
        """Why the newest call found no database to work with; None when it found one."""
        self.installation: str | None = None
        """For which installation it is used; None by a program that is none."""
        self._refusal: str | None = None
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            settings.url,
            connection_class=_recording(self._record_refusal),
            kwargs={
                **connection_parameters(settings.url, settings.limits),
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": settings.application_name,
            },
            configure=self._configure,
            min_size=settings.pool_min,
            max_size=settings.pool_max,
            timeout=settings.connect_timeout_seconds,
            max_lifetime=settings.connection_lifetime_seconds,
            # The pool doubles the pause between its tries up to this time, and then begins anew at the next call: so
            # long, too, may a server that came back go unused.
            reconnect_timeout=settings.connect_timeout_seconds,
            open=False,
        )

    async def open(self) -> None:
        """Connects. Raises `StoreUnavailable` when the database cannot be reached in time."""
        with self._noting_obstacles(), translated_errors():
            try:
                await self._pool.open(wait=True, timeout=self.settings.connect_timeout_seconds)
            except BaseException:
                await self._pool.close()
                raise

    async def close(self) -> None:
        """Closes all connections."""
        await self._pool.close()

    async def fetch(self, query: LiteralString, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """All rows of one statement, tried again when Postgres chose it as the victim of a deadlock.

        Raises `StoreUnavailable` within some seconds of `statement_timeout_seconds` when the primary is gone, and at
        once when it is one no longer.
        """

        async def run() -> list[dict[str, Any]]:
            async with self._connection() as connection:
                cursor = await execute(connection, query, parameters, limits=self.settings.limits)
                return list(await cursor.fetchall())

        with self._noting_obstacles():
            return await retried(run)

    async def fetch_value(self, query: LiteralString, parameters: dict[str, Any] | None = None) -> Any:
        """The first column of the first row; None when there is no row."""
        return next((next(iter(row.values())) for row in await self.fetch(query, parameters)), None)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool. When its server was lost, neither it nor any other that is idle is used again."""
        async with self._pool.connection() as connection:
            try:
                yield connection
            except _ServerLost:
                await self._pool.drain()
                raise

    async def _configure(self, connection: Connection) -> None:
        await limit_session(connection, self.settings.limits)

    def _record_refusal(self, refusal: str | None) -> None:
        self._refusal = refusal

    @contextmanager
    def _noting_obstacles(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                self.obstacle = None  # it is there and answered: the statement was too much for it
                raise
            if isinstance(error.__cause__, PoolTimeout) and self._refusal is not None:
                error = StoreUnavailable(f"the database cannot be reached: {self._refusal}")
            self.obstacle = str(error)
            raise error
        self.obstacle = None


def _recording(record: Callable[[str | None], None]) -> type[Connection]:
    """A class of connections that tells why the newest could not be made, or None. A pool keeps that to itself."""

    class Recorded(AsyncConnection[DictRow]):
        @classmethod
        async def connect(cls, *arguments: Any, **options: Any) -> Any:
            try:
                connection = await super().connect(*arguments, **options)
            except psycopg.Error as error:
                record(str(error).strip())
                raise
            record(None)
            return connection

    return Recorded


def connection_parameters(url: str, limits: ConnectionLimits) -> dict[str, Any]:
    """What libpq is given beside the URL; what the URL says itself stands. Raises `ConfigurationError`."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        # Without the driver's text: it repeats the URL, password and all.
        raise ConfigurationError("the connection string of the database is not one that Postgres takes") from None
    bounded = {
        "connect_timeout": limits.connect_timeout_seconds,
        "keepalives_idle": limits.keepalives_idle_seconds,
        "keepalives_interval": limits.keepalives_interval_seconds,
        "keepalives_count": limits.keepalives_count,
        "tcp_user_timeout": limits.unacknowledged_seconds * 1000,
        "target_session_attrs": "read-write",
    }
    return {name: value for name, value in bounded.items() if given.get(name) is None}


async def limit_session(connection: AsyncConnection[Any], limits: ConnectionLimits) -> None:
    """Sets the server's side of the limits: by a statement, for poolers refuse what they do not know at the start."""
    await execute(
        connection,
        _SESSION_LIMITS,
        {
            "statement": _milliseconds(limits.statement_timeout_seconds),
            "lock": _milliseconds(limits.lock_timeout_seconds),
        },
        limits=limits,
    )


def _milliseconds(seconds: float | None) -> str:
    """As Postgres takes it; 0 is no limit there."""
    return "0" if seconds is None else f"{max(1, round(seconds * 1000))}ms"


async def execute(
    connection: AsyncConnection[Row],
    query: LiteralString | bytes,
    parameters: Mapping[str, Any] | None = None,
    *,
    limits: ConnectionLimits,
) -> AsyncCursor[Row]:
    """One statement, and its answer within the limits. Raises `StoreUnavailable` when its server is lost."""
    try:
        with _answering_within(connection, limits.answer_seconds):
            cursor = await connection.execute(query, parameters)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise _ServerLost(f"the database is read-only: {error.diag.message_primary}") from error
    for name in _READ_ONLY_REPORTS:
        if connection.info.parameter_status(name) == "on":
            # It may have fallen behind the one that took its place, so what it answered is not used.
            raise _ServerLost(f"the database is read-only: it reports {name}")
    return cursor


@contextmanager
def _answering_within(connection: AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Hangs up on a server that takes longer.

    Cancelling would not do: the driver then asks the same server to give the statement up, and waits for its answer.
    """
    hung_up = False

    def hang_up() -> None:
        nonlocal hung_up
        hung_up = True
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, hang_up)
    try:
        yield
    except psycopg.OperationalError as error:
        if not hung_up:
            raise
        raise _ServerLost(f"the database does not answer: nothing came for {seconds:g} s") from error
    finally:
        timer.cancel()


async def retried(run: Callable[[], Awaitable[Result]], attempts: int = 5) -> Result:
    """Runs a statement, again after a short random wait while it loses to another transaction."""
    for attempt in range(1, attempts):
        try:
            with translated_errors():
                return await run()
        except StoreError as error:
            if not isinstance(error.__cause__, RETRIED):
                raise
            await asyncio.sleep(random.uniform(0.0, 0.01 * 2**attempt))  # noqa: S311 - jitter, not a secret
    with translated_errors():
        return await run()


@asynccontextmanager
async def connect(url: str, application_name: str, limits: ConnectionLimits) -> AsyncIterator[AsyncConnection]:
    """One connection of its own in autocommit, for migrations and LISTEN."""
    with translated_errors():
        connection = await AsyncConnection.connect(
            url, autocommit=True, application_name=application_name, **connection_parameters(url, limits)
        )
    try:
        with translated_errors():
            await limit_session(connection, limits)
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
    except psycopg.Error as error:
        raise _translate(error) from error


def _translate(error: psycopg.Error) -> Exception:
    message = error.diag.message_primary or str(error).strip()
    match error.sqlstate:
        case "TK001":
            return TemplateNotFound(message)
        case "TK006":
            return InvalidTask("identity_key", message)
        case "TK002":
            return IllegalTransition(message)
        case "TK010":
            return QueueNotFound(message)
        case "TK020":
            return StepNotFound(message)
        case "TK021":
            return ActionRefused(message)
        case "TK022":
            return TaskNotFound(message)
        case None if isinstance(error, psycopg.OperationalError):
            return StoreUnavailable(f"the database cannot be reached: {message}")
        case "57014":
            return StoreUnavailable(f"the database gave a statement up: {message}")
        case state if state is not None and state[:2] in {"08", "57"}:
            return StoreUnavailable(f"the database cannot be reached: {message}")
        case _:
            return StoreError(message)
