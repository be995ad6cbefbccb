"""Brings a database to the schema of this release: numbered migrations once each, the functions whenever they changed.

Runs under an advisory lock, so that any number of processes may try at once; each file is one transaction with a lock
timeout, so that a busy table makes it give up and be tried again instead of stopping the world behind it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

from psycopg import AsyncConnection

from tasker.engine.pool import connect, execute, retried, translated_errors
from tasker.engine.queries import load_queries
from tasker.errors import ConfigurationError, SchemaMismatch
from tasker.settings import DEFAULT_LIMITS, MIGRATION_LIMITS, ConnectionLimits

logger = logging.getLogger(__name__)

FUNCTIONS = "functions"
"""The name under which the bundle of all functions is noted."""

CONTRACT = 2
"""What this release relies on, by the number that ``tasker.contract()`` tells of the functions in a database."""

RELEASE = version("tasker")

FIRST_EDITION = "0001_before_deploy_initial"
"""What the schema began with before anything was released; it cannot be brought to this one."""


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
    """Applies what is missing and returns the names. Functions of a later release stay as they are, with a warning.

    Raises `SchemaMismatch` when an applied file was changed since, or the schema is one from before the first release;
    `ConfigurationError` when the database is none that can be used.
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
        if known is not None:
            if known.checksum == migration.checksum:
                continue
            if migration.name != FUNCTIONS:
                raise SchemaMismatch(f"migration {migration.name} was applied with another text; it must never change")
            if _order(known.release) > _order(RELEASE):
                logger.warning(
                    "the database's functions are those of release %s and stay: this is the earlier %s",
                    known.release,
                    RELEASE,
                )
                continue

        async def apply(migration: Migration = migration) -> None:
            async with connection.transaction():
                await execute(connection, "set local lock_timeout = '5s'", limits=limits)
                await execute(connection, migration.text.encode(), limits=limits)
                await execute(
                    connection,
                    queries["record_migration"],
                    {"name": migration.name, "checksum": migration.checksum, "release": RELEASE},
                    limits=limits,
                )

        await retried(apply)
        done.append(migration.name)

    async def ensure_partitions() -> None:
        await execute(connection, queries["ensure_partitions"], limits=limits)

    await retried(ensure_partitions)
    return done


@dataclass(frozen=True, kw_only=True)
class _Applied:
    checksum: str
    release: str


async def _applied(connection: AsyncConnection, limits: ConnectionLimits) -> dict[str, _Applied]:
    queries = load_queries("migrations")
    present = await execute(connection, queries["has_migrations_table"], limits=limits)
    if present.rowcount == 0:
        return {}
    names = await (await execute(connection, queries["migration_names"], limits=limits)).fetchall()
    if (FIRST_EDITION,) in names:
        raise SchemaMismatch(
            "the database holds the schema of a version from before the first release, which cannot be brought to this"
            " one: give an empty database, or let go of all that is in this one with `drop schema tasker cascade`"
        )
    rows = await (await execute(connection, queries["applied_migrations"], limits=limits)).fetchall()
    return {name: _Applied(checksum=checksum, release=release) for name, checksum, release in rows}


def _order(release: str) -> tuple[int, ...]:
    """Releases by their numbers."""
    return tuple(map(int, re.findall(r"\d+", release)[:3]))


async def check_schema(url: str, limits: ConnectionLimits = DEFAULT_LIMITS) -> None:
    """Raises `SchemaMismatch` unless all migrations of this release are applied and the functions serve its contract. A
    newer schema is fine: migrations are written so that the release before still runs. Raises `ConfigurationError` when
    the database cannot be used."""
    async with connect(url, "tasker-check", limits) as connection:
        _require_unicode(connection)
        with translated_errors():
            applied = await _applied(connection, limits)
            missing = [migration.name for migration in migrations() if migration.name not in applied]
            if missing or FUNCTIONS not in applied:
                raise SchemaMismatch(f"the database schema is behind: missing {', '.join(missing or [FUNCTIONS])}")
            served = await execute(connection, load_queries("migrations")["contract"], limits=limits)
            [(oldest, current)] = await served.fetchall()
    if not oldest <= CONTRACT <= current:
        raise SchemaMismatch(
            f"the database's functions serve the contracts {oldest} to {current}, and this release needs {CONTRACT}"
        )


def _require_unicode(connection: AsyncConnection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"database {connection.info.dbname} has the encoding {encoding}, which does not hold every text that a "
            "task may carry; name one that was made with encoding 'UTF8' template template0"
        )
