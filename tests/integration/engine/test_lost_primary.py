"""A primary that vanishes or is demoted is left: no call hangs on it, and nothing is given out that leads to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from devcluster.postgres import EmbeddedPostgres
from support.cut_proxy import cut_proxy
from support.engine import open_database
from support.postgres import FAST_SETTINGS
from support.waiting import eventually_async
from tasker.engine import READY, notifications
from tasker.engine.migrate import check_schema, migrate
from tasker.engine.pool import connect
from tasker.engine.queries import load_queries
from tasker.errors import StoreError, StoreUnavailable
from tasker.factory import open_engine
from tasker.settings import DEFAULT_LIMITS, MIGRATION_LIMITS, DatabaseSettings

BRIEF = replace(DEFAULT_LIMITS, connect_timeout_seconds=2, statement_timeout_seconds=0.2, answer_margin_seconds=0.1)
"""So that a test need not wait as long as an installation would."""


def test_a_primary_that_vanishes_is_noticed_within_fifteen_seconds() -> None:
    limits = DEFAULT_LIMITS
    probed = limits.keepalives_idle_seconds + limits.keepalives_interval_seconds * limits.keepalives_count
    assert probed <= 15
    assert limits.keepalives_idle_seconds + limits.unacknowledged_seconds <= 15
    assert limits.answer_seconds <= 15
    assert limits.connect_timeout_seconds <= DatabaseSettings(url="").connect_timeout_seconds <= 15


async def test_every_connection_has_its_limits(database_url: str) -> None:
    """That of the pool, and those of LISTEN, of migrations and of the look at the schema, which are all made alike."""
    async with cut_proxy(database_url) as proxy:
        async with open_database(DatabaseSettings(url=proxy.tcp_url)) as database, database._connection() as pooled:
            await _assert_limited(pooled, statement="10s", lock="2s")
        async with connect(proxy.tcp_url, "tasker-listen", DEFAULT_LIMITS) as connection:
            await _assert_limited(connection, statement="10s", lock="2s")
        async with connect(proxy.tcp_url, "tasker-migrate", MIGRATION_LIMITS) as connection:
            await _assert_limited(connection, statement="10min", lock="0")


async def _assert_limited(connection: psycopg.AsyncConnection[object], *, statement: str, lock: str) -> None:
    with socket.socket(fileno=connection.fileno()) as line:
        try:
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
        finally:
            line.detach()
    parameters = connection.info.get_parameters()
    assert (parameters["target_session_attrs"], parameters["connect_timeout"]) == ("read-write", "5")
    for name, expected in {"statement_timeout": statement, "lock_timeout": lock}.items():
        cursor = await connection.execute(sql.SQL("select current_setting({}) as it").format(name))
        [row] = await cursor.fetchall()
        assert (row["it"] if isinstance(row, dict) else row[0]) == expected  # type: ignore[index]


async def test_what_the_url_says_of_a_limit_stands(database_url: str) -> None:
    async with connect(f"{database_url}&tcp_user_timeout=1234&target_session_attrs=primary", "x", BRIEF) as connection:
        parameters = connection.info.get_parameters()
    assert (parameters["tcp_user_timeout"], parameters["target_session_attrs"]) == ("1234", "primary")
    assert parameters["keepalives_idle"] == "5"


async def test_calls_do_not_hang_on_a_database_that_went_silent(database_url: str) -> None:
    """Nothing closes the connection, and every byte that is sent is acknowledged: TCP sees a server in good health."""
    settings = DatabaseSettings(url="", pool_min=3, limits=BRIEF, connect_timeout_seconds=2.0)
    async with cut_proxy(database_url) as proxy, open_engine(replace(settings, url=proxy.url)) as engine:
        proxy.go_silent()
        calls = [asyncio.create_task(engine.workers.read("shop")) for _ in range(2)]
        await proxy.swallowed()
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
        assert str(outcomes[0]) == "the database does not answer: nothing came for 0.3 s"
        assert engine.obstacle == str(outcomes[0])

        proxy.speak_again()

        async def works() -> bool:
            try:
                return await engine.workers.read("shop") == []
            except StoreUnavailable:
                return False

        await eventually_async(works, what="the engine works again")
        assert not engine.obstacle
        # The third connection was idle all the while, and leads into the silence as the other two did.
        await asyncio.gather(*(engine.workers.read("shop") for _ in range(6)))


async def test_a_statement_that_takes_too_long_is_given_up_by_a_server_that_is_well(database_url: str) -> None:
    async with open_database(
        DatabaseSettings(url=database_url, limits=replace(BRIEF, answer_margin_seconds=10))
    ) as database:
        pid = await database.fetch_value("select pg_backend_pid()")
        with pytest.raises(StoreUnavailable, match="gave a statement up: canceling statement due to statement timeout"):
            await database.fetch("select pg_sleep(30)")
        assert database.obstacle is None
        assert await database.fetch_value("select pg_backend_pid()") == pid


async def test_a_statement_behind_a_lock_is_given_up_and_tried_again(database_url: str) -> None:
    limits = replace(DEFAULT_LIMITS, lock_timeout_seconds=0.05)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("lock table tasker.settings")
        async with open_database(DatabaseSettings(url=database_url, limits=limits)) as database:
            with pytest.raises(StoreError, match="canceling statement due to lock timeout"):
                await database.fetch("select * from tasker.settings")
            assert database.obstacle is None


async def test_a_listener_leaves_a_database_that_went_silent(database_url: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listen(url: str) -> None:
        async for channel in notifications.listen(url, [READY], BRIEF, retry_seconds=0.01, silence_seconds=0.05):
            heard.put_nowait(channel)

    async with (
        cut_proxy(database_url) as proxy,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection,
    ):
        listener = asyncio.create_task(listen(proxy.url))

        async def notified() -> bool:
            await connection.execute("select pg_notify('tasker_ready', '')")
            return not heard.empty()

        await eventually_async(notified, what="a notification is heard")
        proxy.go_silent()
        async with asyncio.timeout(10):
            await proxy.swallowed()
        proxy.speak_again()
        while not heard.empty():
            heard.get_nowait()
        await eventually_async(notified, what="a notification is heard on a new connection")
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def test_a_migration_does_not_hang_on_a_database_that_goes_silent(database_url: str) -> None:
    async with cut_proxy(database_url) as proxy, connect(database_url, "other", MIGRATION_LIMITS) as other:
        lock = load_queries("migrations")["lock_migrations"]
        await other.execute(lock)
        migration = asyncio.create_task(migrate(proxy.url, replace(BRIEF, statement_timeout_seconds=3)))

        async def waits() -> bool:
            waiting = await other.execute("select from pg_locks where locktype = 'advisory' and not granted")
            return waiting.rowcount > 0

        await eventually_async(waits)
        proxy.go_silent()
        with pytest.raises(StoreUnavailable, match=r"nothing came for 3\.1 s"):
            async with asyncio.timeout(20):
                await migration


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database on a server of the test's own."""
    with EmbeddedPostgres(tmp_path / "postgres", FAST_SETTINGS) as server:
        yield server.url()


async def set_read_only(url: str, setting: str) -> None:
    """Has the server take no writes (`on`), or take them again, in sessions that are open as well."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("set default_transaction_read_only = off")
        await connection.execute(f"alter system set default_transaction_read_only = {setting}".encode())
        await connection.execute("select pg_reload_conf()")


async def test_a_server_that_became_read_only_is_left_at_once(own_server: str) -> None:
    """As a managed database does when its disk is full, or one whose place another has taken."""
    await migrate(own_server)
    settings = DatabaseSettings(url=own_server, pool_min=2, connect_timeout_seconds=0.5)
    async with open_engine(settings) as engine:
        assert await engine.workers.read("shop") == []
        await set_read_only(own_server, "on")

        async def refused() -> bool:
            with suppress(StoreUnavailable):
                await engine.workers.read("shop")
            return engine.obstacle is not None

        await eventually_async(refused, what="the server's own word that it is read-only is heard in a mere read")
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="read-only"):
                await engine.workers.read("shop")
        assert engine.obstacle is not None and "read-only" in engine.obstacle
        with pytest.raises(StoreUnavailable, match="read-only"):
            await check_schema(own_server)

        await set_read_only(own_server, "off")

        async def works() -> bool:
            with suppress(StoreUnavailable):
                await engine.workers.read("shop")
            return engine.obstacle is None

        await eventually_async(works, what="the server is used again")


async def test_no_connection_is_kept_that_said_a_write_is_refused(database_url: str) -> None:
    """Behind a pooler the server's reports of itself do not come through; an error is all there is."""
    refuse: LiteralString = """create function refuse() returns void language plpgsql as $$
        begin raise exception 'cannot execute UPDATE in a read-only transaction' using errcode = '25006'; end $$"""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(refuse)
    async with open_database(DatabaseSettings(url=database_url, pool_min=2)) as database:
        pids = {await database.fetch_value("select pg_backend_pid()") for _ in range(8)}
        assert len(pids) == 2
        with pytest.raises(StoreUnavailable, match="the database is read-only: cannot execute UPDATE"):
            await database.fetch("select refuse()")
        assert database.obstacle is not None
        fresh = {await database.fetch_value("select pg_backend_pid()") for _ in range(8)}
        assert fresh and not fresh & pids, "neither that connection nor the idle one beside it"
        assert database.obstacle is None
