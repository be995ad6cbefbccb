"""What every messaging service keeps to: one suite, run against the one in memory and the one in Postgres.

A module of tests subclasses `MessagingContract` and brings a fixture `world`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest

from tasker.errors import InvalidMessage, QueueNotFound
from tasker.messaging import (
    Available,
    Death,
    Delivered,
    Message,
    MessageNotification,
    MessagingService,
    QueueStats,
    Receipt,
    SupportsPushNotifications,
)

QUEUE = "orders"
MEBIBYTE = 1_048_576


class PushingService(MessagingService, SupportsPushNotifications, Protocol):
    """Both protocols at once."""


class World(Protocol):
    """What keeps the messages, and its clock, which stands still until it is moved."""

    def service(self, namespace: str = "shop") -> PushingService:
        """A service as another process has it."""

    async def advance(self, seconds: float) -> None:
        """Moves the clock on."""


async def ready(world: World, *queues: str) -> PushingService:
    """A service with its queues made."""
    service = world.service()
    await service.ensure_queues(queues or [QUEUE])
    return service


async def receive_one(service: MessagingService, **more: Any) -> Message:
    [message] = await service.receive(QUEUE, **more)
    return message


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


FAULTS: dict[str, tuple[Any, str]] = {
    "nan": (float("nan"), "{path}: is nan, which JSON does not have"),
    "infinity": ({"a": [float("inf")]}, "{path}.a[0]: is inf, which JSON does not have"),
    "depth": (nested(33), "{path}" + "[0]" * 32 + ": is nested deeper than 32 levels"),
    "size": ("x" * (MEBIBYTE - 1), "{path}: is 1048577 bytes; at most 1048576 are allowed"),
    "size in UTF-8": ("ü" * (MEBIBYTE // 2), "{path}: is 1048578 bytes; at most 1048576 are allowed"),
    "NUL": ({"a": "x\0"}, "{path}.a: holds the character U+0000, which Postgres cannot store"),
    "surrogate": ("\ud800", "{path}: holds half a surrogate pair, which is no character"),
    "key": ({1: 2}, "{path}: has the key 1, which is not text"),
    "type": (b"x", "{path}: is not JSON but a Python bytes"),
    "digits": ([10**5000], "{path}: cannot be written as JSON: "),
}


class MessagingContract:
    """The suite."""

    # Sending and receiving.

    async def test_messages_are_received_in_the_order_in_which_they_were_sent(self, world: World) -> None:
        service = await ready(world)
        first = await service.send(QUEUE, {"n": 0})
        others = await service.send_batch(QUEUE, [{"n": n} for n in range(1, 20)])
        received = [*await service.receive(QUEUE, limit=3), *await service.receive(QUEUE, limit=100)]
        assert [message.body for message in received] == [{"n": n} for n in range(20)]
        assert [message.id for message in received] == [first, *others]
        assert len({message.id for message in received}) == 20
        assert await service.send_batch(QUEUE, []) == []

    @pytest.mark.parity(301)
    async def test_a_received_message_is_hidden_until_its_visibility_ends(self, world: World) -> None:
        service, other = await ready(world), world.service()
        sent = await service.send(QUEUE, {"order": 7})
        first = await receive_one(service, visibility_seconds=30)
        assert (first.id, first.queue, first.body, first.read_count) == (sent, QUEUE, {"order": 7}, 1)
        assert (first.visible_at - first.enqueued_at).total_seconds() == 30
        assert first.death is None
        await world.advance(29.999)
        assert await other.receive(QUEUE) == []
        await world.advance(0.001)
        again = await receive_one(other)
        assert (again.id, again.body, again.read_count) == (sent, {"order": 7}, 2)
        assert again.enqueued_at == first.enqueued_at
        assert again.receipt != first.receipt

    @pytest.mark.parity(301)
    async def test_an_empty_queue_gives_none_at_once(self, world: World) -> None:
        service = await ready(world)
        async with asyncio.timeout(5):
            assert await service.receive(QUEUE, limit=10) == []

    async def test_a_delayed_message_comes_when_its_delay_is_over(self, world: World) -> None:
        service = await ready(world)
        await service.send(QUEUE, "later", delay_seconds=10)
        await service.send_batch(QUEUE, ["sooner"], delay_seconds=5)
        await world.advance(4.999)
        assert await service.receive(QUEUE, limit=2) == []
        await world.advance(6)
        assert [message.body for message in await service.receive(QUEUE, limit=2)] == ["sooner", "later"]

    async def test_a_body_comes_back_as_it_was(self, world: World) -> None:
        service = await ready(world)
        bodies: list[Any] = [
            {"z": 1e23, "a": -0.0, "": None, "ü": '\u2028 \U0001f600 \\ "', "big": 10**30, "small": 5e-324},
            nested(32),
            "x" * (MEBIBYTE - 2),
            None,
            [],
            0,
            False,
        ]
        await service.send_batch(QUEUE, bodies)
        received = await service.receive(QUEUE, limit=10)
        assert [message.body for message in received] == bodies
        assert received[0].text == (
            '{"z":1e+23,"a":-0.0,"":null,"ü":"\u2028 \U0001f600 \\\\ \\"","big":1' + "0" * 30 + ',"small":5e-324}'
        )

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_body_that_cannot_be_stored_is_refused_with_its_place(self, world: World, fault: str) -> None:
        body, reason = FAULTS[fault]
        service = await ready(world)
        calls: dict[str, list[Awaitable[object]]] = {
            "body": [service.send(QUEUE, body), service.send_with_notify(QUEUE, body)],
            "bodies[1]": [service.send_batch(QUEUE, [1, body, 2])],
        }
        for path, sendings in calls.items():
            for sending in sendings:
                with pytest.raises(InvalidMessage) as caught:
                    await sending
                assert str(caught.value).startswith(reason.format(path=path))
        assert await service.receive(QUEUE, limit=10) == []

    async def test_one_call_has_bounds(self, world: World) -> None:
        service = await ready(world)
        with pytest.raises(InvalidMessage, match="bodies: are 1001; at most 1000 are allowed in one call"):
            await service.send_batch(QUEUE, [0] * 1001)
        large = "x" * (MEBIBYTE - 2)
        with pytest.raises(InvalidMessage, match="bodies: are 34603008 bytes; at most 33554432 are allowed"):
            await service.send_batch(QUEUE, [large] * 33)
        await service.send_batch(QUEUE, [large] * 32)
        await service.send_batch(QUEUE, [large] * 2)
        # As many as fit into 32 MiB; the rest is still there.
        assert len(await service.receive(QUEUE, limit=1000)) == 32
        assert len(await service.receive(QUEUE, limit=1000)) == 2

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"limit": 0}, "limit: must be at least 1 and at most 1000"),
            ({"limit": 1001}, "limit: must be at least 1 and at most 1000"),
            ({"visibility_seconds": 0}, "visibility_seconds: must be more than 0 and at most 86400"),
            ({"visibility_seconds": 86401}, "visibility_seconds: must be more than 0 and at most 86400"),
            ({"visibility_seconds": float("nan")}, "visibility_seconds: must be more than 0 and at most 86400"),
        ],
    )
    async def test_what_cannot_be_asked_is_refused(self, world: World, arguments: Any, reason: str) -> None:
        service = await ready(world)
        with pytest.raises(InvalidMessage) as caught:
            await service.receive(QUEUE, **arguments)
        assert str(caught.value) == reason

    async def test_times_of_a_message_have_bounds(self, world: World) -> None:
        service = await ready(world)
        await service.send(QUEUE, 1)
        receipt = (await receive_one(service)).receipt
        for delay in (-1, 31_536_001, float("nan")):
            for call in (
                service.send(QUEUE, 1, delay_seconds=delay),
                service.send_batch(QUEUE, [1], delay_seconds=delay),
                service.nack(receipt, delay_seconds=delay),
            ):
                with pytest.raises(InvalidMessage, match="delay_seconds: must be at least 0 and at most 31536000"):
                    await call
        for seconds in (0, 86_401):
            for extension in (
                service.extend_visibility(receipt, seconds),
                service.extend_visibility_batch([receipt], seconds),
            ):
                with pytest.raises(InvalidMessage, match="visibility_seconds: must be more than 0 and at most 86400"):
                    await extension
        assert await service.acknowledge(receipt)

    # Receipts.

    @pytest.mark.parity(302)
    async def test_an_acknowledged_message_is_gone_and_only_once(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, ["a", "b"])
        a, b = await service.receive(QUEUE, limit=2)
        assert await service.acknowledge(a.receipt) is True
        assert await service.acknowledge(a.receipt) is False
        await world.advance(31)
        assert [message.body for message in await service.receive(QUEUE, limit=2)] == ["b"]
        assert await service.acknowledge_batch([a.receipt, b.receipt]) == [False, False]

    @pytest.mark.parity(302, 322)
    async def test_who_lost_a_message_to_another_can_do_nothing_with_it(self, world: World) -> None:
        service, other = await ready(world, QUEUE, "dead"), world.service()
        await service.send(QUEUE, "x")
        lost = (await receive_one(service, visibility_seconds=10)).receipt
        await world.advance(10)
        held = await receive_one(other, visibility_seconds=10)
        assert await service.acknowledge(lost) is False
        assert await service.nack(lost) is False
        assert await service.extend_visibility(lost, 100) is False
        assert await service.dead_letter(lost, dead_queue="dead", reason="late") is False
        assert await service.receive("dead") == []
        # None of that touched what the other has: hidden until its time, and then its own to remove.
        await world.advance(9.999)
        assert await service.receive(QUEUE) == []
        assert await other.acknowledge(held.receipt) is True

    async def test_who_is_late_but_not_too_late_still_has_the_message(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, ["a", "b"])
        a, b = await service.receive(QUEUE, limit=2, visibility_seconds=10)
        await world.advance(60)
        assert await service.extend_visibility(a.receipt, 10) is True
        assert await service.acknowledge(b.receipt) is True
        assert await service.receive(QUEUE, limit=2) == []

    async def test_a_receipt_can_be_neither_guessed_nor_used_for_another_message(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, ["a", "b"])
        a, b = (message.receipt for message in await service.receive(QUEUE, limit=2))
        forgeries = [
            Receipt(message_id=a.message_id, token=uuid4()),
            Receipt(message_id=a.message_id, token=b.token),
            Receipt(message_id=10**9, token=a.token),
        ]
        assert await service.extend_visibility_batch([*forgeries, b], 30) == [False, False, False, True]
        for forged in forgeries:
            assert await service.nack(forged) is False
        assert await service.acknowledge_batch([*forgeries, b]) == [False, False, False, True]
        assert await service.acknowledge(a) is True

    @pytest.mark.parity(322)
    async def test_a_message_that_is_given_back_comes_again_behind_those_that_waited(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, ["a", "b"])
        a = await receive_one(service)
        await world.advance(1)
        assert await service.nack(a.receipt) is True
        assert await service.nack(a.receipt) is False, "it is in nobody's hands"
        b, again = await service.receive(QUEUE, limit=2)
        assert (b.body, again.body, again.read_count) == ("b", "a", 2)
        assert await service.nack(again.receipt, delay_seconds=5) is True
        await world.advance(4.999)
        assert await service.receive(QUEUE) == []
        await world.advance(0.001)
        assert (await receive_one(service)).read_count == 3

    @pytest.mark.parity(322)
    async def test_visibility_is_extended_from_now_on(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, ["a", "b"])
        a, b = await service.receive(QUEUE, limit=2, visibility_seconds=10)
        await world.advance(9)
        gone = Receipt(message_id=10**9, token=uuid4())
        assert await service.extend_visibility(a.receipt, 10) is True
        assert await service.extend_visibility_batch([gone, b.receipt], 20) == [False, True]
        assert await service.extend_visibility_batch([], 20) == []
        await world.advance(9.999)
        assert await service.receive(QUEUE) == []
        await world.advance(0.001)
        assert (await receive_one(service)).body == "a"
        await world.advance(10)
        assert (await receive_one(service)).body == "b"

    async def test_a_dead_message_is_in_the_other_queue_with_its_reason_and_its_age(self, world: World) -> None:
        service = await ready(world, QUEUE, "orders_dead")
        await service.send(QUEUE, {"a": 1})
        await receive_one(service, visibility_seconds=1)
        await world.advance(1)
        message = await receive_one(service)
        reason = "no\0 \ud800" + "x" * 2000
        assert await service.dead_letter(message.receipt, dead_queue="orders_dead", reason=reason) is True
        assert await service.dead_letter(message.receipt, dead_queue="orders_dead", reason=reason) is False
        [dead] = await service.receive("orders_dead", limit=2)
        assert (dead.id, dead.body, dead.read_count) == (message.id, {"a": 1}, 1)
        assert dead.enqueued_at == message.enqueued_at
        assert dead.death == Death(queue=QUEUE, reason="no\\0 \\ud800" + "x" * 1013, read_count=2)
        await world.advance(100)
        assert await service.receive(QUEUE) == []

    # Queues.

    @pytest.mark.parity(303)
    async def test_queues_of_two_namespaces_have_nothing_to_do_with_each_other(self, world: World) -> None:
        shop, bank = await ready(world), world.service("bank")
        with pytest.raises(QueueNotFound, match="no queue orders in namespace bank"):
            await bank.send(QUEUE, 1)
        await bank.ensure_queue(QUEUE)
        await shop.send(QUEUE, "shop's")
        assert await bank.receive(QUEUE) == []
        await bank.send(QUEUE, "bank's")
        message = await receive_one(bank)
        assert (bank.namespace, message.body) == ("bank", "bank's")
        # A receipt is worth nothing elsewhere.
        assert await shop.acknowledge(message.receipt) is False
        assert await shop.nack(message.receipt) is False
        assert await bank.acknowledge(message.receipt) is True

    async def test_a_queue_is_made_once_and_keeps_what_it_has(self, world: World) -> None:
        service = await ready(world)
        await service.send(QUEUE, 1)
        await asyncio.gather(*(world.service().ensure_queues(["b", QUEUE, "a", "b"]) for _ in range(4)))
        assert (await receive_one(service)).body == 1
        assert await service.receive("a") == await service.receive("b") == []

    async def test_a_queue_that_was_never_made_is_told(self, world: World) -> None:
        service = await ready(world)
        await service.send(QUEUE, 1)
        receipt = (await receive_one(service)).receipt
        for call in (
            service.send("none", 1),
            service.send_with_notify("none", 1),
            service.send_batch("none", [1, 2]),
            service.receive("none"),
            service.queue_stats("none"),
            service.dead_letter(receipt, dead_queue="none", reason="x"),
        ):
            with pytest.raises(QueueNotFound) as caught:
                await call
            assert str(caught.value) == "no queue none in namespace shop"
        assert await service.acknowledge(receipt) is True, "it was left where it is"

    @pytest.mark.parity(303)
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("", "'' is no name: "),
            ("x" * 64, "'" + "x" * 64 + "' is longer than 63 characters"),
            ("Orders", "'Orders' is no name: "),
            ("_orders", "'_orders' is no name: "),
            ("orders-", "'orders-' is no name: "),
            ("orders\n", "'orders\\n' is no name: "),
            ("a/b", "'a/b' is no name: "),
            ("a'; drop table tasker.messages; --", '"a\'; drop table tasker.messages; --" is no name: '),
            ("größe", "'größe' is no name: "),
        ],
    )
    async def test_a_name_that_cannot_be_is_refused(self, world: World, name: str, reason: str) -> None:
        service = world.service()
        calls = (service.ensure_queue(name), service.send(name, 1), service.receive(name), service.queue_stats(name))
        for call in calls:
            with pytest.raises(InvalidMessage) as caught:
                await call
            assert str(caught.value).partition(": ")[2].startswith(reason)
        with pytest.raises(InvalidMessage):
            service.subscribe(name)
        with pytest.raises(InvalidMessage, match="namespace: "):
            world.service(name)

    async def test_the_longest_names_that_can_be_are_taken(self, world: World) -> None:
        service, name = world.service("n" * 63), "a" + "." * 30 + "_" * 31 + "9"
        await service.ensure_queue(name)
        await service.send_with_notify(name, 1)
        assert [message.queue for message in await service.receive(name)] == [name]
        with pytest.raises(InvalidMessage, match="queues: must not be empty"):
            await service.ensure_queues([])

    @pytest.mark.parity(322)
    async def test_how_a_queue_stands(self, world: World) -> None:
        service = await ready(world)
        empty = QueueStats(queue=QUEUE, available=0, in_flight=0, delayed=0, oldest_seconds=None)
        assert await service.queue_stats(QUEUE) == empty
        await service.send_batch(QUEUE, ["a", "b", "c", "d", "e"])
        await service.send(QUEUE, "late", delay_seconds=100)
        a, _ = await service.receive(QUEUE, limit=2, visibility_seconds=50)
        await world.advance(7)
        await service.nack(a.receipt, delay_seconds=60)
        stats = await service.queue_stats(QUEUE)
        assert stats == QueueStats(queue=QUEUE, available=3, in_flight=1, delayed=2, oldest_seconds=7.0)

    @pytest.mark.parity(322)
    async def test_a_service_that_works_says_so(self, world: World) -> None:
        health = await world.service().health_check()
        assert (health.healthy, health.reason) == (True, None)

    # Many at once.

    async def test_two_receivers_never_hold_one_message_at_the_same_time(self, world: World) -> None:
        """Eight at once; some of what they take they lose, as a process does that dies, and that comes again."""
        service = await ready(world)
        ids = [await service.send_batch(QUEUE, [{"n": n} for n in range(start, start + 60)]) for start in (0, 60, 120)]
        chance = random.Random(7)
        holders: dict[int, int] = {}
        done: set[int] = set()
        lost: dict[int, Receipt] = {}

        async def work(worker: int, *, crashing: bool) -> None:
            own = world.service()
            while messages := await own.receive(QUEUE, limit=chance.randint(1, 5)):
                for message in messages:
                    assert message.id not in holders and message.id not in done
                    holders[message.id] = worker
                await asyncio.sleep(0)
                for message in messages:
                    assert holders.get(message.id) == worker
                    if crashing and chance.random() < 0.3:
                        lost[message.id] = message.receipt
                        continue
                    del holders[message.id]
                    done.add(message.id)
                    assert await own.acknowledge(message.receipt) is True

        await asyncio.gather(*(work(n, crashing=True) for n in range(8)))
        everything = {message_id for batch in ids for message_id in batch}
        assert lost and done | set(lost) == everything and not done & set(lost)
        assert await service.receive(QUEUE) == []
        await world.advance(30)
        for message_id in lost:
            del holders[message_id]
        held = await service.receive(QUEUE, limit=1000)
        assert {message.id for message in held} == set(lost)
        assert {message.read_count for message in held} == {2}
        assert not any(await service.acknowledge_batch(list(lost.values()))), "the dead write no more"
        assert all(await service.acknowledge_batch([message.receipt for message in held]))

    async def test_whatever_the_timing_each_message_is_acknowledged_exactly_once(self, world: World) -> None:
        """Six receivers, some slow, some forgetful, while time goes on and takes their messages from them."""
        service = await ready(world)
        everything = set(await service.send_batch(QUEUE, list(range(60))))
        chance = random.Random(11)
        readings: set[tuple[int, int]] = set()
        tokens: set[UUID] = set()
        acknowledged: set[int] = set()
        refused = 0
        ticked = asyncio.Condition()

        async def work() -> None:
            nonlocal refused
            own = world.service()
            while acknowledged != everything:
                for message in await own.receive(QUEUE, limit=chance.randint(1, 4), visibility_seconds=3):
                    assert (message.id, message.read_count) not in readings, "two readings count as two"
                    assert message.receipt.token not in tokens
                    readings.add((message.id, message.read_count))
                    tokens.add(message.receipt.token)
                    for _ in range(chance.choice([0, 0, 1, 4])):
                        async with ticked:
                            await ticked.wait()
                    match chance.randrange(6):
                        case 0:
                            await own.nack(message.receipt, delay_seconds=chance.choice([0, 2]))
                        case 1:
                            pass  # forgotten
                        case _ if await own.acknowledge(message.receipt):
                            assert message.id not in acknowledged
                            acknowledged.add(message.id)
                        case _:
                            refused += 1
                await asyncio.sleep(0)

        async def go_on() -> None:
            while True:
                await world.advance(1)
                async with ticked:
                    ticked.notify_all()
                await asyncio.sleep(0.001)

        time = asyncio.create_task(go_on())
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(work() for _ in range(6)))
        finally:
            time.cancel()
            await asyncio.gather(time, return_exceptions=True)
        assert refused > 0, "nobody was ever too late: the test shows nothing"
        assert len(readings) > len(everything)
        await world.advance(10)
        assert await service.receive(QUEUE) == []

    async def test_of_many_that_settle_one_message_one_succeeds(self, world: World) -> None:
        service = await ready(world, QUEUE, "dead")
        for _ in range(10):
            await service.send(QUEUE, 1)
            receipt = (await receive_one(service)).receipt
            outcomes = await asyncio.gather(
                world.service().acknowledge(receipt),
                world.service().nack(receipt, delay_seconds=1000),
                world.service().dead_letter(receipt, dead_queue="dead", reason="x"),
                world.service().acknowledge(receipt),
            )
            assert sum(outcomes) == 1, outcomes

    async def test_batches_in_opposite_orders_do_not_wait_in_a_circle(self, world: World) -> None:
        service = await ready(world)
        await service.send_batch(QUEUE, list(range(100)))
        receipts = [message.receipt for message in await service.receive(QUEUE, limit=100)]
        kept = await asyncio.gather(
            *(world.service().extend_visibility_batch(receipts[::step], 30) for step in (1, -1) for _ in range(4))
        )
        assert kept == [[True] * 100] * 8
        removed = await asyncio.gather(*(world.service().acknowledge_batch(receipts[::step]) for step in (1, -1)))
        assert sorted(map(sum, removed)) == [0, 100]

    # Notifications.

    @pytest.mark.parity(323, 326)
    async def test_who_subscribes_is_told_of_messages(self, world: World) -> None:
        service, sender = await ready(world), world.service()
        async with aclosing(service.subscribe(QUEUE)) as notifications:
            assert await heard(notifications) == Available(queue=QUEUE), "for what was there before"
            await sender.send(QUEUE, 1)
            assert await heard(notifications) == Available(queue=QUEUE)
            await sender.send_batch(QUEUE, [2, 3])
            assert await heard(notifications) == Available(queue=QUEUE)

    @pytest.mark.parity(300)
    async def test_a_message_that_is_sent_with_its_notification_has_both(self, world: World) -> None:
        service, sender = await ready(world), world.service()
        async with aclosing(service.subscribe(QUEUE)) as notifications:
            await heard(notifications)
            sent = await sender.send_with_notify(QUEUE, {"a": 1})
            assert await heard(notifications) == Available(queue=QUEUE)
            message = await receive_one(service)
            assert (message.id, message.body) == (sent, {"a": 1})

    @pytest.mark.parity(324)
    async def test_who_subscribes_to_several_queues_is_told_of_which(self, world: World) -> None:
        service, sender = await ready(world, "a", "b", "c"), world.service()
        async with aclosing(service.subscribe_many(["a", "b", "a"])) as notifications:
            assert {await heard(notifications), await heard(notifications)} == {
                Available(queue="a"),
                Available(queue="b"),
            }
            await sender.send("c", "not asked for")
            await sender.send_with_notify("b", 1)
            assert await heard(notifications) == Available(queue="b")
            await sender.send_with_notify("a", 1)
            assert await heard(notifications) == Available(queue="a")

    async def test_a_queue_of_the_same_name_elsewhere_is_not_told_of(self, world: World) -> None:
        service, elsewhere = await ready(world), world.service("bank")
        await elsewhere.ensure_queue(QUEUE)
        async with aclosing(service.subscribe(QUEUE)) as notifications:
            await heard(notifications)
            await elsewhere.send_with_notify(QUEUE, 1)
            waiting = asyncio.ensure_future(anext(notifications))
            # What is told here later comes alone.
            await service.send_with_notify(QUEUE, 2)
            async with asyncio.timeout(10):
                assert await waiting == Available(queue=QUEUE)
            assert [message.body for message in await service.receive(QUEUE, limit=5)] == [2]

    @pytest.mark.parity(326)
    async def test_a_subscription_can_bring_the_messages_themselves(self, world: World) -> None:
        service, sender = await ready(world, "a", "b"), world.service()
        await sender.send_batch("a", [1, 2])
        await sender.send("b", 3)
        async with aclosing(service.subscribe_many(["a", "b"], visibility_seconds=10)) as notifications:
            delivered = [await delivery(notifications) for _ in range(3)]
            assert [(message.queue, message.body) for message in delivered] == [("a", 1), ("b", 3), ("a", 2)]
            waiting = asyncio.ensure_future(delivery(notifications))
            sent = await sender.send("a", 4)
            message = await waiting
            assert (message.id, message.body, message.read_count) == (sent, 4, 1)
            assert await service.receive("a") == [], "it is in one's hands, and in nobody else's"
            assert await service.acknowledge(message.receipt) is True

    @pytest.mark.parity(325)
    async def test_what_no_notification_tells_of_is_found_by_polling(self, world: World) -> None:
        service = await ready(world)
        assert service.requires_fallback_polling is True
        await service.send(QUEUE, 1)
        async with aclosing(service.subscribe(QUEUE, visibility_seconds=10)) as notifications:
            assert (await delivery(notifications)).read_count == 1
            waiting = asyncio.ensure_future(delivery(notifications))
            for _ in range(20):
                await asyncio.sleep(0)  # until it has taken note of all that was said before
            await world.advance(10)  # nobody says anything
            assert (await waiting).read_count == 2

    async def test_subscriptions_end_with_their_service(self, world: World) -> None:
        service = await ready(world)
        signals, deliveries = service.subscribe(QUEUE), service.subscribe(QUEUE, visibility_seconds=10)
        await heard(signals)
        await service.send(QUEUE, 1)
        await delivery(deliveries)
        waiting = [asyncio.create_task(collected(each)) for each in (signals, deliveries)]
        await asyncio.sleep(0)
        await service.close()
        async with asyncio.timeout(10):
            heard_last, delivered_last = await asyncio.gather(*waiting)
        assert set(heard_last) <= {Available(queue=QUEUE)} and delivered_last == []

    async def test_a_subscription_that_is_left_leaves_nothing_running(self, world: World) -> None:
        service = await ready(world)
        await service.send_with_notify(QUEUE, 1)
        running = asyncio.all_tasks()
        for seconds in (None, 10.0):
            async with aclosing(service.subscribe(QUEUE, visibility_seconds=seconds)) as notifications:
                async for _ in notifications:
                    break
            abandoned = asyncio.ensure_future(collected(service.subscribe(QUEUE, visibility_seconds=seconds)))
            await asyncio.sleep(0.01)
            abandoned.cancel()
            await asyncio.gather(abandoned, return_exceptions=True)
        assert asyncio.all_tasks() == running

    async def test_it_says_that_it_pushes(self, world: World) -> None:
        assert isinstance(world.service(), SupportsPushNotifications)


async def heard(notifications: Any) -> MessageNotification:
    async with asyncio.timeout(10):
        notification: MessageNotification = await anext(notifications)
    return notification


async def delivery(notifications: Any) -> Message:
    notification = await heard(notifications)
    assert isinstance(notification, Delivered)
    assert notification.queue == notification.message.queue
    return notification.message


async def collected(notifications: Any) -> list[MessageNotification]:
    return [notification async for notification in notifications]
