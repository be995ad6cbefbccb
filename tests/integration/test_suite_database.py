"""The cluster suite's database: one of its own where it may make one; in a given one the rows of its namespaces go."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from support.postgres import TestServer
from support.suite_database import suite_database
from tasker.factory import migrate, open_engine
from tasker.model.task import TaskRequest
from tasker.model.template import parse_template_spec
from tasker.settings import DatabaseSettings

PREFIX = "tasker-test-abc123-"
TABLES = ("tasks", "steps", "templates", "ready_steps", "task_log", "step_log")


@pytest.fixture
def modest_url(postgres_server: TestServer) -> Iterator[str]:
    """A database and the role that owns it, which may make no other."""
    name = f"modest_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    url = postgres_server.create(name)
    with psycopg.connect(postgres_server.admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login").format(role))
        connection.execute(sql.SQL("alter database {0} owner to {0}").format(role))
    yield url.replace("postgres@", f"{name}@", 1)
    postgres_server.drop(name)
    with psycopg.connect(postgres_server.admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop role {}").format(role))


def databases(server: TestServer) -> set[str]:
    with psycopg.connect(server.admin_url) as connection:
        return {str(name) for (name,) in connection.execute("select datname from pg_database")}


def counts(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        statement = sql.SQL("select count(*) from tasker.{}")
        found = {table: connection.execute(statement.format(sql.Identifier(table))).fetchone() for table in TABLES}
    return {table: row[0] for table, row in found.items() if row is not None}


async def run_one_task(url: str, namespace: str) -> None:
    spec = parse_template_spec({"steps": [{"name": "a", "handler": {"callable": "a"}}]})
    async with open_engine(DatabaseSettings(url=url)) as engine:
        await engine.templates.register(namespace, "one", spec)
        await engine.tasks.submit(namespace, [TaskRequest(template_name="one")])


def test_a_role_that_may_make_databases_gets_one_that_goes(postgres_server: TestServer) -> None:
    name = f"suite_{secrets.token_hex(4)}"
    with suite_database(postgres_server, name, PREFIX) as url:
        assert name in url
        assert name in databases(postgres_server)
    assert name not in databases(postgres_server)


async def test_in_a_given_database_only_the_rows_of_the_run_go(modest_url: str, tmp_path: Path) -> None:
    await migrate(modest_url)
    await run_one_task(modest_url, "somebody-elses")
    before = counts(modest_url)
    with suite_database(TestServer(modest_url, tmp_path), "never_made", PREFIX) as url:
        assert url == modest_url
        await run_one_task(url, f"{PREFIX}1")
        assert counts(url) == {table: 2 * count for table, count in before.items()}
    assert counts(modest_url) == before
    assert set(before.values()) != {0}
