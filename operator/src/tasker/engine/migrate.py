"""Brings a database to the schema of this release: numbered migrations once each, the functions whenever they changed.

Runs under an advisory lock, so that any number of processes may try at once; each file is one transaction with a lock
timeout, so that a busy table makes it give up and be tried again instead of stopping the world behind it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from psycopg import AsyncConnection

from tasker.engine.pool import connect, execute, retried, translated_errors
from tasker.engine.queries import load_queries
from tasker.errors import ConfigurationError, SchemaMismatch
from tasker.settings import DEFAULT_LIMITS, MIGRATION_LIMITS, ConnectionLimits

FUNCTIONS = "functions"
"""The name under which the bundle of all functions is noted."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One file of SQL, with the checksum under which it is noted as applied."""

    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def _read(folder: str) -> list[Migration]:
    place = files(__package__) / "sql" / folder
    return [
        Migration(name=name.removesuffix(".sql"), text=(place / name).read_text(encoding="utf-8"))
        for name in sorted(file.name for file in place.iterdir())
        if name.endswith(".sql")
    ]


def migrations() -> list[Migration]:
    """All numbered migrations, in order."""
    return _read("migrations")


def functions() -> Migration:
    """All functions as one text."""
    return Migration(name=FUNCTIONS, text="\n".join(part.text for part in _read("functions")))


async def migrate(url: str, limits: ConnectionLimits = MIGRATION_LIMITS) -> list[str]:
    """Applies what is missing and returns the names.

    Raises `SchemaMismatch` when an applied file was changed since, `ConfigurationError` when the database is none that
    can be used.
    """
    queries = load_queries("migrations")
    async with connect(url, "tasker-migrate", limits) as connection:
        _require_unicode(connection)
        with translated_errors():
            await execute(connection, queries["lock_migrations"], limits=limits)
            try:
                return await _apply_missing(connection, limits)
            finally:
                if not connection.broken:
                    await execute(connection, queries["unlock_migrations"], limits=limits)


async def _apply_missing(connection: AsyncConnection, limits: ConnectionLimits) -> list[str]:
    queries = load_queries("migrations")
    applied = await _applied(connection, limits)
    done: list[str] = []
    for migration in [*migrations(), functions()]:
        known = applied.get(migration.name)
        if known == migration.checksum:
            continue
        if known is not None and migration.name != FUNCTIONS:
            raise SchemaMismatch(f"migration {migration.name} was applied with another text; it must never change")

        async def apply(migration: Migration = migration) -> None:
            async with connection.transaction():
                await execute(connection, "set local lock_timeout = '5s'", limits=limits)
                await execute(connection, migration.text.encode(), limits=limits)
                await execute(
                    connection,
                    queries["record_migration"],
                    {"name": migration.name, "checksum": migration.checksum},
                    limits=limits,
                )

        await retried(apply)
        done.append(migration.name)

    async def ensure_partitions() -> None:
        await execute(connection, queries["ensure_partitions"], limits=limits)

    await retried(ensure_partitions)
    return done


async def _applied(connection: AsyncConnection, limits: ConnectionLimits) -> dict[str, str]:
    queries = load_queries("migrations")
    present = await execute(connection, queries["has_migrations_table"], limits=limits)
    if present.rowcount == 0:
        return {}
    rows = await (await execute(connection, queries["applied_migrations"], limits=limits)).fetchall()
    return dict(rows)


async def check_schema(url: str, limits: ConnectionLimits = DEFAULT_LIMITS) -> None:
    """Raises `SchemaMismatch` unless all migrations of this release are applied. A newer schema is fine: migrations are
    written so that the release before still runs. Raises `ConfigurationError` when the database cannot be used."""
    async with connect(url, "tasker-check", limits) as connection:
        _require_unicode(connection)
        with translated_errors():
            applied = await _applied(connection, limits)
    missing = [migration.name for migration in migrations() if migration.name not in applied]
    if missing or FUNCTIONS not in applied:
        raise SchemaMismatch(f"the database schema is behind: missing {', '.join(missing or [FUNCTIONS])}")


def _require_unicode(connection: AsyncConnection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"database {connection.info.dbname} has the encoding {encoding}, which does not hold every text that a "
            "task may carry; name one that was made with encoding 'UTF8' template template0"
        )
