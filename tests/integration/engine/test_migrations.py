"""The schema: one text of the whole, numbered steps that add up to it, a runner that any number may start at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import psycopg
import pytest

from devcluster.postgres.binaries import find_binaries
from support.engine import Lab, serve_contracts, step
from support.postgres import TestServer
from tasker.engine.migrate import CONTRACT, FUNCTIONS, RELEASE, check_schema, functions, migrations
from tasker.errors import ConfigurationError, SchemaMismatch, StoreError
from tasker.factory import migrate, open_engine
from tasker.settings import DatabaseSettings

EVERYTHING = [*(migration.name for migration in migrations()), FUNCTIONS]


def dump_schema(url: str) -> list[str]:
    """pg_dump's account of all that is there, without what differs from one dump to the next."""
    dumped = subprocess.run(
        [find_binaries().folder / "pg_dump", "--schema-only", "--no-owner", url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line for line in dumped.splitlines() if not line.startswith(("--", "\\restrict", "\\unrestrict")) and line]


def test_the_whole_schema_equals_the_sum_of_the_migrations(postgres_server: TestServer) -> None:
    whole = (files("tasker.engine") / "sql" / "schema.sql").read_text(encoding="utf-8")
    texts = {"schema_whole": [whole], "schema_steps": [migration.text for migration in migrations()]}
    dumps: dict[str, list[str]] = {}
    for name, parts in texts.items():
        database = f"{name}_{secrets.token_hex(4)}"
        url = postgres_server.create(database)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                for part in [*parts, functions().text]:
                    connection.execute(part.encode())
            dumps[name] = dump_schema(url)
        finally:
            postgres_server.drop(database)
    assert any("create table tasker.steps" in line.lower() for line in dumps["schema_whole"])
    assert dumps["schema_whole"] == dumps["schema_steps"]


async def test_a_database_that_does_not_hold_every_text_is_refused(postgres_server: TestServer) -> None:
    """What initdb makes where no locale is set: every answer would be bytes, and every length a count of them."""
    name = f"ascii_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_server.admin_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template template0 encoding 'SQL_ASCII' locale 'C'".encode())
    try:
        for attempt in (migrate, check_schema):
            with pytest.raises(ConfigurationError, match=f"database {name} has the encoding SQL_ASCII, .*'UTF8'"):
                await attempt(postgres_server.url(name))
    finally:
        postgres_server.drop(name)


def test_migrations_are_numbered_without_gaps_and_say_when_they_run() -> None:
    for number, migration in enumerate(migrations(), start=1):
        parts = migration.name.split("_", 3)
        assert int(parts[0]) == number
        assert parts[1:3] in (["before", "deploy"], ["after", "deploy"])


async def test_migrating_twice_does_nothing_the_second_time(empty_database_url: str) -> None:
    assert await migrate(empty_database_url) == EVERYTHING
    before = dump_schema(empty_database_url)
    assert await migrate(empty_database_url) == []
    assert dump_schema(empty_database_url) == before


async def test_many_may_migrate_at_once_and_each_part_is_applied_once(empty_database_url: str) -> None:
    program = "import asyncio, os; from tasker.factory import migrate; print(*asyncio.run(migrate(os.environ['URL'])))"
    environment = {**os.environ, "URL": empty_database_url}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    applied = list(await asyncio.gather(*(migrate(empty_database_url) for _ in range(4))))
    for process in processes:
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        applied.append(output.decode().split())
    assert sorted(name for names in applied for name in names) == sorted(EVERYTHING)
    await check_schema(empty_database_url)


async def test_functions_are_applied_again_when_their_text_changed(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "create or replace function tasker.task_of_step(step_id bigint) returns bigint"
            " language sql immutable parallel safe as 'select 0::bigint'"
        )
        connection.execute(
            "create or replace function tasker.drain_worker(p_namespace text, p_worker text) returns boolean"
            " language sql as 'select false'"
        )
        connection.execute("update tasker.migrations set checksum = 'old' where name = 'functions'")
        assert await migrate(database_url) == [FUNCTIONS]
        source = connection.execute("select prosrc from pg_proc where proname = 'drain_worker'").fetchone()
        assert source is not None and "draining = true" in source[0]


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(database_url: str) -> None:
    name = migrations()[0].name
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update tasker.migrations set checksum = 'another' where name = %s", (name,))
    with pytest.raises(SchemaMismatch) as caught:
        await migrate(database_url)
    assert str(caught.value) == f"migration {name} was applied with another text; it must never change"


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = migrations()[0]
    broken = type(broken)(name=broken.name, text=broken.text + "\nselect no_such_function();")
    monkeypatch.setattr("tasker.engine.migrate.migrations", lambda: [broken])
    with pytest.raises(StoreError, match=r"function no_such_function\(\) does not exist"):
        await migrate(empty_database_url)
    monkeypatch.undo()
    assert await migrate(empty_database_url) == EVERYTHING


async def test_an_engine_does_not_open_on_a_database_without_its_schema(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ", ".join(migration.name for migration in migrations())
    with pytest.raises(SchemaMismatch) as caught:
        async with open_engine(DatabaseSettings(url=empty_database_url)):
            pass
    assert str(caught.value) == f"the database schema is behind: missing {names}"
    await migrate(empty_database_url)
    await check_schema(empty_database_url)
    later = type(migrations()[0])(name="0999_after_deploy_later", text="")
    monkeypatch.setattr("tasker.engine.migrate.migrations", lambda: [later])
    with pytest.raises(SchemaMismatch) as caught:
        await check_schema(empty_database_url)
    assert str(caught.value) == "the database schema is behind: missing 0999_after_deploy_later"


async def test_a_schema_newer_than_the_release_is_fine(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into tasker.migrations values ('0999_before_deploy_later', 'x', '9.0.0')")
    await check_schema(database_url)
    assert await migrate(database_url) == []


@pytest.mark.parametrize(
    ("release", "stays"), [("9.0.0", True), ("0.10.0", True), (RELEASE, False), ("0.0.9", False), ("0.1.0rc1", False)]
)
async def test_functions_of_a_later_release_are_never_replaced_by_those_of_an_earlier_one(
    database_url: str, release: str, stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "update tasker.migrations set checksum = 'x', release = %s where name = 'functions'", (release,)
        )
        assert await migrate(database_url) == ([] if stays else [FUNCTIONS])
        noted = connection.execute("select release from tasker.migrations where name = 'functions'").fetchone()
    assert noted == (release if stays else RELEASE,)
    told = f"the database's functions are those of release {release} and stay: this is the earlier {RELEASE}"
    assert [record.getMessage() for record in caplog.records] == ([told] if stays else [])


@pytest.mark.parametrize(("oldest", "current", "served"), [(0, 2, True), (2, 3, True), (3, 4, False), (0, 1, False)])
async def test_a_release_works_with_functions_that_serve_its_contract_and_with_no_others(
    database_url: str, oldest: int, current: int, served: bool
) -> None:
    serve_contracts(database_url, oldest, current)
    if served:
        await check_schema(database_url)
        return
    with pytest.raises(SchemaMismatch) as caught:
        await check_schema(database_url)
    assert str(caught.value) == (
        f"the database's functions serve the contracts {oldest} to {current}, and this release needs {CONTRACT}"
    )


async def test_a_schema_from_before_the_first_release_is_refused_with_what_to_do(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("create schema tasker")
        connection.execute(
            "create table tasker.migrations (name text primary key, checksum text, applied_at timestamptz)"
        )
        connection.execute("insert into tasker.migrations values ('0001_before_deploy_initial', 'x', now())")
        for attempt in (migrate, check_schema):
            with pytest.raises(SchemaMismatch, match=r"give an empty database, or .* `drop schema tasker cascade`"):
                await attempt(empty_database_url)
        connection.execute("drop schema tasker cascade")
    assert await migrate(empty_database_url) == EVERYTHING


async def test_history_of_today_and_the_next_week_has_partitions_of_its_own(lab: Lab) -> None:
    task = await lab.run(step("a"))
    today = await lab.value("select (clock_timestamp() at time zone 'UTC')::date")
    for table in ("task_log", "step_log"):
        for days in range(8):
            name = f"tasker.{table}_{today + timedelta(days=days):%Y%m%d}"
            assert await lab.value("select to_regclass(%s) is not null", name), name
        assert await lab.value(f"select count(*) from tasker.{table}_default") == 0
    assert await lab.state(task) == "steps_in_process"


async def test_the_sweep_makes_missing_partitions_like_the_others_whatever_the_time_zone(own_lab: Lab) -> None:
    """Also while a run is writing history, which it must not stop."""
    lab = own_lab
    await lab.run(step("a"))
    in_a_week = f"{datetime.now(UTC) + timedelta(days=7):%Y%m%d}"
    for table in ("task_log", "step_log"):
        await lab.execute(f"drop table tasker.{table}_{in_a_week}")
    async with await psycopg.AsyncConnection.connect(lab.url) as writer:
        await writer.execute(
            "insert into tasker.step_log (step_id, at, passage, actor_id) values (1, clock_timestamp(), 'queued', 1)"
        )
        await lab.execute("set timezone = 'Pacific/Kiritimati'")
        assert await lab.value("select repaired from tasker.sweep(10) where repair = 'partitions_created'") >= 2
        await lab.execute("set timezone = 'Pacific/Pago_Pago'")
        assert await lab.rows("select * from tasker.sweep(10)") == []
    for table in ("task_log", "step_log"):
        name = f"tasker.{table}_{in_a_week}"
        await lab.execute("set timezone = 'UTC'")
        bounds = await lab.value("select pg_get_expr(relpartbound, oid) from pg_class where oid = %s::regclass", name)
        midnight = datetime.strptime(in_a_week, "%Y%m%d").replace(tzinfo=UTC)
        assert (
            bounds == f"FOR VALUES FROM ('{midnight:%Y-%m-%d %H:%M:%S}+00') TO "
            f"('{midnight + timedelta(days=1):%Y-%m-%d %H:%M:%S}+00')"
        )
        assert await lab.value("select count(*) from pg_trigger where tgrelid = %s::regclass", name) == 1
        indexes = await lab.value("select count(*) from pg_index where indrelid = %s::regclass", name)
        assert indexes == {"task_log": 2, "step_log": 1}[table]
