"""What messages in Postgres do beyond the shared suite: transactions, notifications, lost connections, plans."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow

from support.cut_proxy import Cut, cut_proxy
from support.engine import connect, open_database
from support.messaging import MemoryWorld, PostgresWorld
from support.messaging_contract import QUEUE, PushingService, World, heard, ready, receive_one
from support.waiting import eventually_async
from tasker.errors import ConfigurationError, InvalidMessage, SchemaMismatch, StoreError, StoreUnavailable
from tasker.factory import open_messaging
from tasker.messaging import Available, Message, PostgresMessaging, Receipt
from tasker.messaging.postgres import message_channel
from tasker.settings import DatabaseSettings

SEND = "select message_id from tasker.send_messages('shop', %s, %s::text[]::json[], %s, %s) order by place"
RECEIVE = "select message_id, body from tasker.receive_messages('shop', %s, %s, 30)"


async def rows(connection: AsyncConnection[DictRow], query: str, *parameters: Any) -> list[dict[str, Any]]:
    return list(await (await connection.execute(query.encode(), parameters)).fetchall())


async def waits_for_a_lock(world: PostgresWorld, connection: AsyncConnection[DictRow]) -> bool:
    query = "select pid from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    return bool(await rows(world.connection, query, connection.info.backend_pid))


async def works(service: PostgresMessaging) -> bool:
    return (await service.health_check()).healthy


async def other_listeners(world: PostgresWorld, *known: int) -> list[int]:
    """The server's processes that listen to channels of messages, but for those known."""
    query = """select pid from pg_stat_activity where datname = current_database() and state = 'idle'
        and application_name = 'tasker-listen' and query ~* 'listen "?tasker_messages' and pid <> all (%s)"""
    return [row["pid"] for row in await rows(world.connection, query, list(known))]


@asynccontextmanager
async def listening(world: PostgresWorld, *queues: str) -> AsyncIterator[AsyncConnection[DictRow]]:
    """A connection that listens to queues of the namespace shop."""
    async with await connect(world.url) as connection:
        for queue in queues:
            channel = sql.Identifier(message_channel("shop", queue))
            await connection.execute(sql.SQL("listen {}").format(channel))
        yield connection


async def notifications_until_told(connection: AsyncConnection[DictRow]) -> list[str]:
    """The channels that were notified of until now: this connection's own notification comes last."""
    await connection.execute("listen the_end")
    await connection.execute("notify the_end")
    told: list[str] = []
    async with asyncio.timeout(10):
        while "the_end" not in told:
            told += [each.channel async for each in connection.notifies(stop_after=1)]
    return told[:-1]


# Notifications.


@pytest.mark.parametrize(("namespace", "queue"), [("shop", "orders"), ("n" * 63, "q" * 63), ("a", "b")])
async def test_the_database_and_the_listeners_agree_on_the_channels(
    world: PostgresWorld, namespace: str, queue: str
) -> None:
    [row] = await rows(world.connection, "select tasker.message_channel(%s, %s) as channel", namespace, queue)
    assert row["channel"] == message_channel(namespace, queue)
    assert len(row["channel"]) <= 63


def test_no_two_queues_share_a_channel() -> None:
    assert message_channel("a", "b-c") != message_channel("a-b", "c") != message_channel("a", "b")


@pytest.mark.parity(300)
async def test_a_message_and_its_notification_are_committed_together_or_not_at_all(world: PostgresWorld) -> None:
    await ready(world)
    async with listening(world, QUEUE) as listener, await connect(world.url) as sender:
        await sender.execute("begin")
        await rows(sender, SEND, [QUEUE], ["1"], [0], True)
        assert await notifications_until_told(listener) == []
        assert await rows(world.connection, RECEIVE, QUEUE, 10) == []
        await sender.execute("rollback")
        assert await notifications_until_told(listener) == []
        assert await rows(world.connection, RECEIVE, QUEUE, 10) == []
        await sender.execute("begin")
        [sent] = await rows(sender, SEND, [QUEUE], ["2"], [0], True)
        await sender.execute("commit")
        assert await notifications_until_told(listener) == [message_channel("shop", QUEUE)]
        assert await rows(world.connection, RECEIVE, QUEUE, 10) == [{"message_id": sent["message_id"], "body": "2"}]


async def test_hints_are_sent_apart_from_messages_and_few_for_many(world: PostgresWorld) -> None:
    service = await ready(world, QUEUE, "other")
    async with listening(world, QUEUE, "other") as listener:
        async with await connect(world.url) as sender:
            await rows(sender, SEND, [QUEUE], ["1"], [0], False)
        assert await notifications_until_told(listener) == [], "whoever stores a message holds no lock of NOTIFY"
        await asyncio.gather(*(service.send(QUEUE, n) for n in range(200)))
        await service.send(QUEUE, "later", delay_seconds=60)
        await service.close()  # what is wanted is sent before it ends
        told = await notifications_until_told(listener)
        assert 1 <= len(told) <= 20 and set(told) == {message_channel("shop", QUEUE)}
        await service.send("other", "later", delay_seconds=60)
        await service.close()
        assert await notifications_until_told(listener) == [], "there is nothing to receive yet"
    assert len(await rows(world.connection, RECEIVE, QUEUE, 1000)) == 201


@pytest.mark.parity(304)
async def test_a_listener_that_lost_its_connection_is_told_of_what_it_missed(world: PostgresWorld) -> None:
    service = await ready(world)
    async with aclosing(service.subscribe(QUEUE)) as notifications:
        await heard(notifications)
        [first] = await eventually_async(partial(other_listeners, world))
        # The message is sent while nobody listens: the lost connection is not made again in the same transaction.
        async with world.connection.transaction():
            await rows(world.connection, SEND, [QUEUE], ["1"], [0], True)
            await world.connection.execute("select pg_terminate_backend(%s)", (first,))
        assert await heard(notifications) == Available(queue=QUEUE)
        await eventually_async(partial(other_listeners, world, first))
        assert (await receive_one(service)).body == 1
        # And the new connection hears.
        waiting = asyncio.ensure_future(heard(notifications))
        await service.send_with_notify(QUEUE, 2)
        assert await waiting == Available(queue=QUEUE)


@pytest.mark.parity(304)
async def test_all_queues_of_a_subscription_share_one_connection_that_ends_with_it(world: PostgresWorld) -> None:
    service = await ready(world, "a", "b", "c")
    async with aclosing(service.subscribe_many(["a", "b", "c"])) as notifications:
        await heard(notifications)
        assert len(await eventually_async(partial(other_listeners, world))) == 1

    async def none() -> bool:
        return await other_listeners(world) == []

    await eventually_async(none)


async def test_messages_come_where_nobody_can_listen(world: PostgresWorld, tmp_path: Path) -> None:
    """The way to LISTEN leads nowhere; who polls needs none."""
    settings = DatabaseSettings(url=world.url, listen_url=f"postgresql:///x?host={tmp_path}")
    async with open_database(settings) as database:
        service = PostgresMessaging(database, "shop", poll_seconds=0.01, retry_seconds=0.01)
        await service.ensure_queue(QUEUE)
        async with aclosing(service.subscribe(QUEUE, visibility_seconds=10)) as notifications:
            waiting = asyncio.ensure_future(heard(notifications))
            sent = await world.service().send(QUEUE, 1)
            notification = await waiting
            assert not isinstance(notification, Available) and notification.message.id == sent
        await service.close()


async def test_a_way_to_listen_that_is_none_is_told_to_who_subscribes(world: PostgresWorld) -> None:
    async with open_database(DatabaseSettings(url=world.url, listen_url="port=none of these")) as database:
        service = PostgresMessaging(database, "shop")
        async with aclosing(service.subscribe(QUEUE)) as notifications:
            with pytest.raises(ConfigurationError):
                await heard(notifications)


# Transactions and lost connections.


async def test_who_receives_waits_for_nobody_and_a_crash_gives_back_what_was_taken(world: PostgresWorld) -> None:
    service = await ready(world)
    await service.send_batch(QUEUE, ["a", "b", "c"])
    async with await connect(world.url) as crashing:
        await crashing.execute("begin")
        assert [row["body"] for row in await rows(crashing, RECEIVE, QUEUE, 2)] == ['"a"', '"b"']
        async with asyncio.timeout(5):
            assert (await receive_one(service)).body == "c"
        await crashing.close()
    # It went away without a commit; the server takes a moment to see that.
    received = await eventually_async(lambda: service.receive(QUEUE, limit=5))
    assert [(message.body, message.read_count) for message in received] == [("a", 1), ("b", 1)]


async def test_an_acknowledgement_waits_for_who_is_just_receiving_and_is_refused_then(world: PostgresWorld) -> None:
    service = await ready(world)
    await service.send(QUEUE, "a")
    late = (await receive_one(service)).receipt
    await world.advance(30)
    acknowledge = "select count(*) as done from tasker.acknowledge_messages('shop', %s, %s)"
    async with await connect(world.url) as receiving, await connect(world.url) as acknowledging:
        await receiving.execute("begin")
        assert len(await rows(receiving, RECEIVE, QUEUE, 1)) == 1
        waiting = asyncio.ensure_future(rows(acknowledging, acknowledge, [late.message_id], [late.token]))
        await eventually_async(partial(waits_for_a_lock, world, acknowledging))
        await receiving.execute("commit")
        assert await waiting == [{"done": 0}]
    await world.advance(30)
    assert (await receive_one(service)).read_count == 3


async def test_a_receiver_passes_over_what_is_just_being_acknowledged(world: PostgresWorld) -> None:
    service = await ready(world)
    await service.send(QUEUE, "a")
    held = (await receive_one(service)).receipt
    await world.advance(30)
    async with await connect(world.url) as acknowledging:
        await acknowledging.execute("begin")
        query = "select place from tasker.acknowledge_messages('shop', %s, %s) as place"
        assert await rows(acknowledging, query, [held.message_id], [held.token]) == [{"place": 1}]
        assert await service.receive(QUEUE) == []
        await acknowledging.execute("commit")
    assert await service.receive(QUEUE) == []


async def test_batches_take_their_locks_in_one_order_whatever_order_they_are_given_in(world: PostgresWorld) -> None:
    """Or each of two would have what the other waits for. The pool's calls would only hide it by trying again."""
    service = await ready(world, QUEUE, "crowd")
    await service.send_batch(QUEUE, ["a", "b", "c"])
    for _ in range(4):
        await service.send_batch("crowd", [0] * 1000)
    await world.connection.execute("analyze tasker.messages")  # so that rows are looked up one by one
    held = [message.receipt for message in await service.receive(QUEUE, limit=3)]
    extend = "select count(*) as done from tasker.extend_messages('shop', %s, %s, 30)"
    async with (
        await connect(world.url) as holder,
        await connect(world.url) as first,
        await connect(world.url) as second,
    ):
        await holder.execute("begin")
        await rows(holder, "select from tasker.messages where message_id = %s for update", held[1].message_id)
        extending: list[asyncio.Task[list[dict[str, Any]]]] = []
        for connection, order in ((first, held), (second, held[::-1])):
            arguments = [each.message_id for each in order], [each.token for each in order]
            extending.append(asyncio.create_task(rows(connection, extend, *arguments)))
            await eventually_async(partial(waits_for_a_lock, world, connection))
        await holder.execute("rollback")
        assert await asyncio.gather(*extending) == [[{"done": 3}]] * 2


async def test_an_answer_that_is_lost_loses_no_message(world: PostgresWorld) -> None:
    service = await ready(world)
    async with cut_proxy(world.url) as proxy, open_database(DatabaseSettings(url=proxy.url, pool_max=1)) as database:
        unlucky = PostgresMessaging(database, "shop")

        async def cut(where: Cut, call: Callable[[], Awaitable[object]]) -> None:
            await eventually_async(partial(works, unlucky))  # with a connection that is there already
            proxy.cut_next(where)
            with pytest.raises(StoreUnavailable):
                await call()

        await cut("after", lambda: unlucky.send_with_notify(QUEUE, "a"))
        await cut("after", lambda: unlucky.receive(QUEUE))
        assert await service.receive(QUEUE) == [], "it was received, though nobody heard of it"
        await world.advance(30)
        message = await receive_one(unlucky)
        assert (message.body, message.read_count) == ("a", 2)
        await cut("before", lambda: unlucky.acknowledge(message.receipt))
        await cut("after", lambda: unlucky.acknowledge(message.receipt))
        assert await unlucky.acknowledge(message.receipt) is False, "it is gone"
        assert proxy.cuts == 4
        await unlucky.close()
    await world.advance(100)
    assert await service.receive(QUEUE) == []


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        ("count(*) from tasker.send_messages('shop', array['orders'], array['1'::json], array[0], false)", "on"),
        ("count(*) from tasker.acknowledge_messages('shop', array[1], array[gen_random_uuid()])", "on"),
        ("count(*) from tasker.bury_messages('shop', array[1], array[gen_random_uuid()], 'orders', array['x'])", "on"),
        ("count(*) from tasker.receive_messages('shop', 'orders', 1, 30)", "off"),
        ("count(*) from tasker.extend_messages('shop', array[1], array[gen_random_uuid()], 30)", "off"),
        ("count(*) from tasker.return_messages('shop', array[1], array[gen_random_uuid()], 0)", "off"),
    ],
    ids=lambda value: value.partition("tasker.")[2].partition("(")[0] or value,
)
async def test_only_what_must_survive_a_crash_of_the_server_waits_for_its_disk(
    world: PostgresWorld, call: str, waits: str
) -> None:
    await ready(world)
    async with await connect(world.url) as connection:
        await connection.execute("begin")
        await rows(connection, f"select {call}")
        assert await rows(connection, "show synchronous_commit") == [{"synchronous_commit": waits}]


async def test_a_database_that_is_gone_is_told(world: PostgresWorld, tmp_path: Path) -> None:
    async with cut_proxy(world.url) as proxy, open_database(DatabaseSettings(url=proxy.url, pool_max=1)) as database:
        service = PostgresMessaging(database, "shop")
        assert (await service.health_check()).healthy
        proxy.cut_next("before")
        health = await service.health_check()
        assert not health.healthy and str(health.reason).startswith("the database cannot be reached: ")
        assert (await service.health_check()).healthy


async def test_a_hint_that_cannot_be_sent_fails_nobody(world: PostgresWorld) -> None:
    await ready(world)
    async with cut_proxy(world.url) as proxy, open_database(DatabaseSettings(url=proxy.url, pool_max=1)) as database:
        service = PostgresMessaging(database, "shop")
        sent = await service.send(QUEUE, 1)
        proxy.cut_next("before")
        await service.close()
        assert proxy.cuts == 1
    assert (await receive_one(world.service())).id == sent


# What SQL itself holds to, whoever calls.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([QUEUE], ["1", "2"], [0], False), "send_messages: the arrays differ in length"),
        (([QUEUE], ["1"], [], False), "send_messages: the arrays differ in length"),
        (([QUEUE], ['"' + "x" * 1_048_575 + '"'], [0], False), "send_messages: a body of 1048577 bytes; at most"),
        (([QUEUE], ["{"], [0], False), "invalid input syntax for type json"),
        ((["none"], ["1"], [0], False), "no queue none in namespace shop"),
    ],
)
async def test_the_function_refuses_what_cannot_be_stored(world: PostgresWorld, arguments: Any, message: str) -> None:
    await ready(world)
    with pytest.raises(psycopg.Error) as caught:
        await rows(world.connection, SEND, *arguments)
    assert str(caught.value.diag.message_primary).startswith(message)
    assert await rows(world.connection, "select * from tasker.messages") == []


@pytest.mark.parametrize("name", ["", "A", "x" * 64, "a/b", "-a"])
async def test_the_database_refuses_names_that_cannot_be(world: PostgresWorld, name: str) -> None:
    for namespace, queue in ((name, "a"), ("a", name)):
        with pytest.raises(psycopg.errors.CheckViolation):
            await rows(world.connection, "select tasker.ensure_queues(%s, %s)", namespace, [queue])


@pytest.mark.parametrize("limit", [None, 0, -1])
async def test_no_limit_is_not_all(world: PostgresWorld, limit: int | None) -> None:
    await (await ready(world)).send(QUEUE, 1)
    if limit == -1:
        with pytest.raises(psycopg.errors.InvalidRowCountInLimitClause):
            await rows(world.connection, RECEIVE, QUEUE, limit)
    else:
        assert await rows(world.connection, RECEIVE, QUEUE, limit) == []


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "9" * 5_000], ids=["depth", "digits"])
async def test_a_body_that_cannot_be_read_stands_in_the_way_of_no_other(world: PostgresWorld, text: str) -> None:
    """Sent round this package, by a program in another language."""
    service = await ready(world)
    await world.connection.execute("set max_stack_depth = '7MB'")
    try:
        await rows(world.connection, SEND, [QUEUE], [text], [0], False)
    except psycopg.errors.StatementTooComplex:
        text = "[" * 5_000 + "]" * 5_000
        await rows(world.connection, SEND, [QUEUE], [text], [0], False)
    await service.send(QUEUE, "good")
    bad, good = await service.receive(QUEUE, limit=2)
    assert (bad.text, good.body) == (text, "good")
    with pytest.raises(InvalidMessage, match="body: cannot be read: "):
        _ = bad.body


async def test_counts_end_at_their_limit(world: PostgresWorld) -> None:
    service = await ready(world)
    await service.send_batch(QUEUE, list(range(20)))
    await service.receive(QUEUE, limit=8)
    await service.send_batch(QUEUE, list(range(8)), delay_seconds=100)
    [stats] = await rows(world.connection, "select * from tasker.queue_stats('shop', %s, 10)", [QUEUE])
    assert (stats["available"], stats["in_flight"] + stats["delayed"]) == (10, 10)


# Plans.


@pytest.mark.parametrize("statistics", ["of an empty table", "of it all"])
async def test_however_much_is_there_a_call_reads_what_it_needs(world: PostgresWorld, statistics: str) -> None:
    """20,000 messages in ten queues, most of them hidden or of others."""
    await world.connection.execute("analyze tasker.messages")
    await ready(world, *(f"q{n}" for n in range(10)))
    for n in range(10):
        await world.connection.execute(
            "insert into tasker.messages (message_id, queue_id, visible_at, enqueued_at, body_bytes, body)"
            " select nextval('tasker.message_ids'), (select queue_id from tasker.message_queues where name = %s),"
            " tasker.now() + (i %% 2) * interval '1 hour', tasker.now(), 1, '1' from generate_series(1, 2000) i",
            (f"q{n}",),
        )
    if statistics == "of it all":
        await world.connection.execute("analyze tasker.messages")
    receipts: list[Receipt] = []
    async with await connect(world.url) as connection:
        for _ in range(8):  # more often than until a plan is kept
            received = await rows(connection, "select * from tasker.receive_messages('shop', 'q3', 10, 30)")
            assert len(received) == 10
            receipts += [Receipt(message_id=row["message_id"], token=row["receipt"]) for row in received]
        ids, tokens = [each.message_id for each in receipts], [each.token for each in receipts]
        calls: dict[str, tuple[tuple[Any, ...], int]] = {
            "count(*) from tasker.receive_messages('shop', 'q3', 10, 30)": ((), 40),
            "count(*) from tasker.extend_messages('shop', %s, %s, 30)": ((ids[:10], tokens[:10]), 40),
            "count(*) from tasker.return_messages('shop', %s, %s, 0)": ((ids[10:20], tokens[10:20]), 40),
            "count(*) from tasker.acknowledge_messages('shop', %s, %s)": ((ids[20:30], tokens[20:30]), 40),
            "count(*) from tasker.bury_messages('shop', %s, %s, 'q0', array['x'])": ((ids[30:31], tokens[30:31]), 4),
            "sum(available) from tasker.queue_stats('shop', array['q3'], 50)": ((), 110),
        }
        for call, (arguments, most) in calls.items():
            before = await rows_read(connection)
            [result] = await rows(connection, f"select {call}", *arguments)
            assert next(iter(result.values())) > 0
            assert await rows_read(connection) - before <= most, call


async def rows_read(connection: AsyncConnection[DictRow]) -> int:
    """Rows of messages that a session has read and not yet reported, which it does when it idles."""
    await connection.execute("begin")
    query = "select seq_tup_read + idx_tup_fetch as count from pg_stat_xact_user_tables where relname = 'messages'"
    [row] = await rows(connection, query)
    await connection.execute("commit")
    return int(row["count"])


# The two services beside each other.


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_in_whatever_order_both_services_answer_the_same(
    world: PostgresWorld, seed: int
) -> None:
    chance = random.Random(seed)
    worlds: list[World] = [world, MemoryWorld()]
    services = [await ready(each, "a", "b", "dead") for each in worlds]
    held: list[list[Message]] = [[], []]
    for step in range(120):
        name, arguments = _draw(chance, step, len(held[0]))
        if name == "advance":
            for each in worlds:
                await each.advance(arguments["seconds"])
            continue
        answers = [await _do(service, own, name, arguments) for service, own in zip(services, held, strict=True)]
        assert answers[0] == answers[1], (seed, step, name, arguments)
    assert held[0], "nothing was ever received"


def _draw(chance: random.Random, step: int, known: int) -> tuple[str, dict[str, Any]]:
    """Something to do; messages are named by the order in which they were received."""
    queue = chance.choice(["a", "a", "b", "dead"])
    place = chance.randrange(known) if known else None
    match chance.randrange(9):
        case 0 | 1:
            bodies = [f"{step}.{n}" for n in range(chance.randint(1, 4))]
            return "send", {"queue": queue, "bodies": bodies, "delay": chance.choice([0, 0, 5])}
        case 2 | 3:
            seconds = chance.choice([5, 20])
            return "receive", {"queue": queue, "limit": chance.randint(1, 3), "seconds": seconds}
        case 4:
            return "advance", {"seconds": chance.choice([1, 3, 5, 20])}
        case 5 if place is not None:
            return "acknowledge", {"place": place}
        case 6 if place is not None:
            return "nack", {"place": place, "delay": chance.choice([0, 4])}
        case 7 if place is not None:
            return "extend", {"place": place, "seconds": chance.choice([2, 30])}
        case 8 if place is not None:
            return "dead_letter", {"place": place}
        case _:
            return "stats", {"queue": queue}


async def _do(service: PushingService, held: list[Message], name: str, arguments: dict[str, Any]) -> Any:
    receipt = held[arguments["place"]].receipt if "place" in arguments else None
    match name:
        case "send":
            return len(
                await service.send_batch(
                    arguments["queue"], arguments["bodies"], delay_seconds=float(arguments["delay"])
                )
            )
        case "receive":
            received = await service.receive(
                arguments["queue"], limit=arguments["limit"], visibility_seconds=float(arguments["seconds"])
            )
            held += received
            return [(each.body, each.read_count, each.visible_at - each.enqueued_at, each.death) for each in received]
        case "stats":
            return await service.queue_stats(arguments["queue"])
    assert receipt is not None
    match name:
        case "acknowledge":
            return await service.acknowledge(receipt)
        case "nack":
            return await service.nack(receipt, delay_seconds=float(arguments["delay"]))
        case "extend":
            return await service.extend_visibility(receipt, float(arguments["seconds"]))
        case _:
            return await service.dead_letter(receipt, dead_queue="dead", reason="because")


# On its own.


async def test_a_messaging_service_opens_on_a_database_with_its_schema_and_on_no_other(
    world: PostgresWorld, empty_database_url: str
) -> None:
    async with open_messaging(DatabaseSettings(url=world.url), "shop") as messaging:
        await messaging.ensure_queue(QUEUE)
        sent = await messaging.send(QUEUE, 1)
    assert (await receive_one(world.service())).id == sent
    with pytest.raises(StoreError):
        await messaging.send(QUEUE, 1)
    with pytest.raises(SchemaMismatch, match="the database schema is behind"):
        async with open_messaging(DatabaseSettings(url=empty_database_url), "shop"):
            pass
    with pytest.raises(InvalidMessage, match="namespace: 'Shop' is no name"):
        async with open_messaging(DatabaseSettings(url=world.url), "Shop"):
            pass
