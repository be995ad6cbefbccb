"""What the pool of connections holds to, how Postgres' errors are told, and when a statement is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection

from support.engine import Lab, connect, open_database, step
from support.waiting import eventually_async
from tasker.engine import READY, notifications, tasks
from tasker.engine.migrate import FUNCTIONS, Migration, check_schema, migrate, migrations
from tasker.engine.pool import RETRIED, Database, _recording, retried
from tasker.engine.pool import connect as connect_limited
from tasker.engine.queries import load_queries
from tasker.errors import (
    IllegalTransition,
    QueueNotFound,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    TemplateNotFound,
)
from tasker.settings import DEFAULT_LIMITS, ConnectionLimits, DatabaseSettings


async def test_a_pool_keeps_what_it_is_told_to_and_makes_no_more_than_it_may(database_url: str) -> None:
    settings = DatabaseSettings(
        url=database_url, pool_min=2, pool_max=3, connect_timeout_seconds=0.3, application_name="told-so"
    )
    async with await connect(database_url) as watching, open_database(settings) as database:

        async def count(condition: LiteralString) -> int:
            query: LiteralString = (
                "select count(*) from pg_stat_activity where application_name = 'told-so'" + condition
            )
            row = await (await watching.execute(query)).fetchone()
            assert row is not None
            return int(row["count"])

        assert await count("") == 2
        await watching.execute("select pg_advisory_lock(1)")
        waiting = [
            asyncio.create_task(database.fetch("select pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1)"))
            for _ in range(3)
        ]

        async def all_wait() -> bool:
            return await count(" and wait_event_type = 'Lock'") == 3

        await eventually_async(all_wait)
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable, match="the database cannot be reached: "):
                await database.fetch("select 1")
        assert await count("") == 3
        await watching.execute("select pg_advisory_unlock(1)")
        await asyncio.gather(*waiting)


async def test_an_open_that_failed_leaves_nothing_running(tmp_path: Path) -> None:
    database = Database(DatabaseSettings(url=f"postgresql:///x?host={tmp_path}", connect_timeout_seconds=0.1))
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailable):
            await database.open()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_connection_is_made_anew_when_its_time_is_over(database_url: str) -> None:
    async with open_database(
        DatabaseSettings(url=database_url, pool_max=1, connection_lifetime_seconds=0.01)
    ) as database:

        async def backend() -> int:
            return int(await database.fetch_value("select pg_backend_pid()"))

        first = await backend()

        async def another() -> bool:
            return await backend() != first

        await eventually_async(another)


async def test_a_server_that_came_back_is_tried_within_the_time_that_a_call_waits() -> None:
    database = Database(DatabaseSettings(url="postgresql:///x", connect_timeout_seconds=7.0))
    assert database._pool.reconnect_timeout == database._pool.timeout == 7.0


async def test_why_no_connection_can_be_made_is_known_until_one_is_made(database_url: str, tmp_path: Path) -> None:
    told: list[str | None] = []
    connection_class = _recording(told.append)
    with pytest.raises(psycopg.OperationalError) as caught:
        await connection_class.connect(f"postgresql:///x?host={tmp_path}")
    assert told == [str(caught.value).strip()] and str(tmp_path) in str(told[0])
    async with await connection_class.connect(database_url):
        assert told[1:] == [None]


async def test_an_error_of_a_connection_that_there_is_is_not_told_as_why_there_is_none(
    database_url: str, tmp_path: Path
) -> None:
    async with open_database(DatabaseSettings(url=database_url)) as database:
        with pytest.raises(psycopg.OperationalError):
            await database._pool.connection_class.connect(f"postgresql:///x?host={tmp_path}")
        with pytest.raises(StoreUnavailable) as caught:
            await database.fetch("do $$ begin raise exception 'as it was said' using errcode = '57P01'; end $$")
        assert str(caught.value) == database.obstacle == "the database cannot be reached: as it was said"


async def test_each_statement_is_a_transaction_of_its_own(database_url: str) -> None:
    async with open_database(DatabaseSettings(url=database_url)) as database:
        first = await database.fetch_value("select pg_current_xact_id()::text")
        assert await database.fetch_value("select pg_current_xact_id()::text") != first
        assert await database.fetch_value("select 1 where false") is None
    async with connect_limited(database_url, "told-so", DEFAULT_LIMITS) as connection:
        first = await (await connection.execute("select pg_current_xact_id()::text")).fetchone()
        assert await (await connection.execute("select pg_current_xact_id()::text")).fetchone() != first
        assert connection.info.get_parameters()["application_name"] == "told-so"
    assert connection.closed


@pytest.mark.parametrize(("seconds", "set_to"), [(None, "0"), (0.0001, "1ms"), (0.0016, "2ms"), (1.5, "1500ms")])
async def test_a_limit_is_set_to_the_millisecond_and_never_to_none_by_rounding(
    database_url: str, seconds: float | None, set_to: str
) -> None:
    limits = replace(DEFAULT_LIMITS, lock_timeout_seconds=seconds)
    async with connect_limited(database_url, "x", limits) as connection:
        row = await (await connection.execute("select current_setting('lock_timeout')")).fetchone()
    assert row == (set_to,)


async def test_no_statement_that_was_answered_is_hung_up_on_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(DatabaseSettings(url=database_url)) as database:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later
        timers: list[asyncio.TimerHandle] = []

        def noted(delay: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
            timer = call_later(delay, *arguments, **more)
            if delay == DEFAULT_LIMITS.answer_seconds:
                timers.append(timer)
            return timer

        monkeypatch.setattr(loop, "call_later", noted)
        await database.fetch("select 1")
        with pytest.raises(StoreError):
            await database.fetch("select 1 / 0")
    assert len(timers) == 2 and all(timer.cancelled() for timer in timers)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("TK001", TemplateNotFound, "as it was said"),
        ("TK002", IllegalTransition, "as it was said"),
        ("TK010", QueueNotFound, "as it was said"),
        ("57014", StoreUnavailable, "the database gave a statement up: as it was said"),
        ("57P01", StoreUnavailable, "the database cannot be reached: as it was said"),
        ("08006", StoreUnavailable, "the database cannot be reached: as it was said"),
        ("25006", StoreUnavailable, "the database is read-only: as it was said"),
        ("0A000", StoreError, "as it was said"),
        ("53100", StoreError, "as it was said"),
        ("P0001", StoreError, "as it was said"),
    ],
)
async def test_what_the_database_says_is_told_in_words_of_ours(
    database_url: str, code: str, kind: type[Exception], message: str
) -> None:
    async with await connect(database_url) as connection:
        await connection.execute(
            "create function say(code text) returns void language plpgsql as"
            " $$ begin raise exception 'as it was said' using errcode = code; end $$"
        )
    async with open_database(DatabaseSettings(url=database_url)) as database:
        with pytest.raises(kind) as caught:
            await database.fetch("select say(%(code)s)", {"code": code})
        assert str(caught.value) == message
        assert isinstance(caught.value, StoreUnavailable) is (kind is StoreUnavailable)
        if code == "57014":
            assert database.obstacle is None, "it is there and answers"


async def test_a_statement_that_lost_waits_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []
    slept: list[float] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def lose() -> None:
        raise psycopg.errors.DeadlockDetected("lost")

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr("tasker.engine.pool.asyncio.sleep", sleep)
    with pytest.raises(StoreError, match="lost") as caught:
        await retried(lose)
    assert isinstance(caught.value.__cause__, RETRIED)
    assert asked == [(0.0, 0.02), (0.0, 0.04), (0.0, 0.08), (0.0, 0.16)]
    assert slept == [high for _, high in asked]


async def test_summaries_are_read_two_hundred_at_a_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fetch = Database.fetch

    async def noted(database: Database, query: LiteralString, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        sizes.append(len(parameters["origin_uids"]))
        return await fetch(database, query, parameters)

    monkeypatch.setattr(Database, "fetch", noted)
    assert await lab.engine.tasks.read_by_origin([f"uid-{n}" for n in range(401)]) == []
    assert sizes == [200, 200, 1]
    assert (tasks.LEAF_RESULTS_BYTES, tasks.WAITING_AT_ONCE) == (8 * 1024, 10_000)


async def first_channel(listening: AsyncConnection[Any]) -> str:
    """Where the next notification comes from, this connection's own at the latest."""
    async with asyncio.timeout(20):
        await listening.execute("select pg_notify('tasker_finished', '')")
        heard: list[str] = []
        while "tasker_finished" not in heard:
            heard += [each.channel async for each in listening.notifies(stop_after=1)]
    return heard[0]


async def test_idle_workers_are_told_of_work_that_people_and_sweeps_bring_and_of_nothing_else(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", scheduleTimeoutSeconds=60))
    await lab.worker("w")
    assert await lab.engine.workers.drain("shop", ["w"]) == ["w"]
    async with await connect(lab.url) as listening:
        for channel in ("tasker_ready", "tasker_finished"):
            await listening.execute(f"listen {channel}".encode())
        assert await lab.engine.actions.suspend(task, actor="ann", reason="x") is True
        assert await lab.engine.actions.suspend(task, actor="ann", reason="x") is False
        assert await first_channel(listening) == "tasker_finished"
        assert await lab.engine.actions.resume(task, actor="ann", reason="x") is True
        assert await first_channel(listening) == "tasker_ready"
        assert await lab.engine.actions.resume(task, actor="ann", reason="x") is False
        assert await first_channel(listening) == "tasker_finished"
        assert await lab.engine.workers.undrain("shop", ["w"]) == ["w"]
        assert await first_channel(listening) == "tasker_ready"
        assert await lab.engine.workers.undrain("shop", ["w"]) == []
        assert await lab.engine.workers.sweep() == {}
        assert await first_channel(listening) == "tasker_finished"
        await lab.clock.advance(31)
        assert await lab.engine.workers.sweep() == {"workers_expired": 1}
        assert await first_channel(listening) == "tasker_ready"
        await lab.submit()
        assert await first_channel(listening) == "tasker_ready"
    assert await lab.engine.actions.cancel_by_origin("nobody", actor="me", reason="x") is False


async def test_resources_without_a_name_and_runs_without_a_resource_are_listed_as_such(lab: Lab) -> None:
    await lab.template(step("a"))
    await lab.submit(origin_uid="uid-1")
    await lab.submit()
    ended = await lab.submit(origin_uid="uid-3", origin_name="ended")
    await lab.engine.actions.cancel(ended, actor="me", reason="x")
    for namespace in ("shop", None):
        assert [(each.name, each.uid) for each in await lab.engine.tasks.open_origins(namespace)] == [("", "uid-1")]
    assert await lab.engine.tasks.open_origins("elsewhere") == []


async def test_the_lock_of_a_migration_is_given_back_on_a_connection_that_stays(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does behind a pooler, and also when the migration failed."""
    async with connect_limited(database_url, "pooled", DEFAULT_LIMITS) as connection:

        @asynccontextmanager
        async def pooled(*_: object) -> AsyncIterator[AsyncConnection]:
            yield connection

        monkeypatch.setattr("tasker.engine.migrate.connect", pooled)
        held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        assert await migrate("") == []
        assert await (await connection.execute(held)).fetchone() == (0,)
        await connection.execute("update tasker.migrations set checksum = 'another' where name <> 'functions'")
        with pytest.raises(SchemaMismatch):
            await migrate("")
        assert await (await connection.execute(held)).fetchone() == (0,)


async def test_a_migration_waits_five_seconds_for_a_table_and_no_longer(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "create table seen as select current_setting('lock_timeout') as lock_timeout"
    monkeypatch.setattr("tasker.engine.migrate.migrations", lambda: [Migration(name="another", text=text)])
    assert await migrate(database_url) == ["another"]
    async with await connect(database_url) as connection:
        assert await (await connection.execute("select * from seen")).fetchone() == {"lock_timeout": "5s"}


@pytest.mark.parametrize("missing", [migrations()[-1].name, FUNCTIONS])
async def test_a_schema_that_lacks_one_part_is_behind(database_url: str, missing: str) -> None:
    async with await connect(database_url) as connection:
        await connection.execute("delete from tasker.migrations where name = %s", (missing,))
    with pytest.raises(SchemaMismatch) as caught:
        await check_schema(database_url)
    assert str(caught.value) == f"the database schema is behind: missing {missing}"


async def test_a_step_that_left_the_queue_is_not_failed_for_want_of_a_worker(lab: Lab) -> None:
    task = await lab.run(step("a"))
    step_ids = [row["step_id"] for row in (await lab.steps(task)).values()]
    await (await lab.worker()).claim_one()
    before = await lab.dump()
    assert (
        await lab.value("select tasker.expire_queued_steps(%s::bigint[], 'me', tasker.now(), 'x', 'y')", step_ids) == 0
    )
    assert await lab.dump() == before


async def test_a_listener_without_a_database_tries_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Enough

    monkeypatch.setattr("tasker.engine.notifications.asyncio.sleep", sleep)
    with pytest.raises(Enough):
        async for _ in notifications.listen(f"postgresql:///x?host={tmp_path}", [READY], DEFAULT_LIMITS):
            pass
    assert slept == [1.0, 1.0, 1.0]


async def test_a_listener_asks_its_server_every_five_seconds_and_waits_no_longer_for_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Silent for so long, asked, no answer for so long: a primary that vanished is noticed within 15 seconds."""
    paused: list[float] = []
    asked: list[float] = []

    class Enough(Exception):
        pass

    class Silent:
        async def notifies(self, *, timeout: float) -> AsyncIterator[None]:
            paused.append(timeout)
            news: list[None] = []
            for each in news:
                yield each

    @asynccontextmanager
    async def silent(*_: object) -> AsyncIterator[Silent]:
        yield Silent()

    async def noted(_: object, query: str, *, limits: ConnectionLimits) -> None:
        asked.append(limits.answer_seconds)
        if len(asked) == 2:
            raise Enough

    monkeypatch.setattr("tasker.engine.notifications.connect", silent)
    monkeypatch.setattr("tasker.engine.notifications.execute", noted)
    with pytest.raises(Enough):
        async for _ in notifications.listen("", [], DEFAULT_LIMITS):
            pass
    assert paused == [5.0, 5.0]
    assert asked == [5.0 + DEFAULT_LIMITS.answer_margin_seconds] * 2
    assert paused[0] + asked[0] <= 15


def test_queries_are_read_once() -> None:
    assert load_queries("tasks") is load_queries("tasks")
