"""Fixtures of databases: one embedded server for the whole run, a migrated template built once, a clone for each test.

With several pytest-xdist workers the processes share the one server, as any processes may; whoever comes first builds
the template. ``TASKER_TEST_DATABASE_URL`` puts another server in its place: a URL of a role that may create databases.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import tasker
from devcluster.locks import FileLock
from devcluster.postgres import EmbeddedPostgres

SERVER_VARIABLE = "TASKER_TEST_DATABASE_URL"


def _schema_checksum() -> str:
    """Of all SQL that a migrated database is made by, wherever in the package it lies."""
    files = sorted(Path(tasker.__path__[0]).rglob("*.sql"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


TEMPLATE = f"tasker_template_{_schema_checksum()}"
"""Named after the SQL: a server that outlives a run must not give the next one the schema of an earlier tree."""

# A test's data need not outlive the machine. For tests of durability a server of their own keeps the defaults.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300", "shared_buffers": "64MB"}


class TestServer:
    """A running server in which tests make databases of their own."""

    __test__ = False

    def __init__(self, admin_url: str, folder: Path) -> None:
        self.admin_url = admin_url
        self._folder = folder

    def url(self, dbname: str) -> str:
        """The connection URL of one of its databases."""
        return _with_database(self.admin_url, dbname)

    def create(self, dbname: str, template: str | None = None) -> str:
        """Make a database, empty or a copy of `template`. Its URL."""
        if template is None:
            # Whatever the server's own databases are encoded in.
            source = sql.SQL("template template0 encoding {}").format("UTF8")
        else:
            # file_copy is the faster strategy where nothing is synced to the disk.
            source = sql.SQL("template {} strategy file_copy").format(sql.Identifier(template))
        self._execute(sql.SQL("create database {} {}").format(sql.Identifier(dbname), source))
        return self.url(dbname)

    def drop(self, dbname: str) -> None:
        """Remove a database and whoever is still connected to it."""
        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(dbname)))

    def template(self) -> str:
        """The name of the migrated database that clones are made of; built by the first who asks."""
        with FileLock(self._folder / "template.lock") as lock:
            lock.lock("exclusive", 120)
            with psycopg.connect(self.admin_url, autocommit=True) as connection:
                if connection.execute("select from pg_database where datname = %s", (TEMPLATE,)).fetchone() is not None:
                    return TEMPLATE
            fresh = f"{TEMPLATE}_new"
            self.drop(fresh)
            url = self.create(fresh)
            from tasker.factory import migrate  # here, so that tests of the server alone need nothing of it

            _run_apart(migrate(url))
            self._execute(
                sql.SQL("alter database {} rename to {}").format(sql.Identifier(fresh), sql.Identifier(TEMPLATE))
            )
        return TEMPLATE

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def running_server(folder: Path, settings: Mapping[str, str] = FAST_SETTINGS) -> Iterator[TestServer]:
    """A server with its data in a folder of this one, shared by all who start it there."""
    with EmbeddedPostgres(folder / "postgres", settings) as server:
        yield TestServer(server.url(), folder)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """The run's server, shared by all: make databases in it, never kill it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    given = os.environ.get(SERVER_VARIABLE)
    if given:
        yield TestServer(given, shared)
        return
    with running_server(shared) as server:
        yield server


@pytest.fixture
def database_url(postgres_server: TestServer) -> Iterator[str]:
    """The URL of a database with the schema in place and nothing in it, this test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create(name, postgres_server.template())
    postgres_server.drop(name)


@pytest.fixture
def empty_database_url(postgres_server: TestServer) -> Iterator[str]:
    """The URL of a database without our schema, this test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create(name)
    postgres_server.drop(name)


def _run_apart(work: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine to its end in a loop of its own, whatever loop the caller's thread has."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, work).result()


def _with_database(url: str, dbname: str) -> str:
    """The same server's URL with another database name. `url` is one that libpq takes."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    user = parts.pop("user", "postgres")
    password = parts.pop("password", "")
    parts.pop("dbname", None)
    credentials = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql://{credentials}@/{quote(dbname, safe='')}?{urlencode(parts, quote_via=quote)}"
