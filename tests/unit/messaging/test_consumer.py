"""A consumer handles every message, so many at a time; what fails comes again or is dead, and nothing ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic import BaseModel

from support.messaging import MemoryWorld
from support.waiting import eventually_async
from tasker.errors import InvalidMessage, StoreUnavailable
from tasker.messaging import (
    Consumer,
    ConsumerSettings,
    InMemoryMessaging,
    Message,
    MessageClient,
    MessagingService,
    Receipt,
    Received,
    Reject,
)

QUEUE, DEAD = "orders", "orders_dead"
NEVER = 3600.0
"""Of a time that a test must not need."""
SETTINGS = ConsumerSettings(poll_seconds=NEVER)


class Order(BaseModel):
    number: int


Handler = Callable[[Received[Order]], Awaitable[None]]


class Service(InMemoryMessaging):
    """One whose calls fail as often as they are told to, and are counted."""

    def __init__(self, world: MemoryWorld) -> None:
        super().__init__("shop", broker=world.broker, poll_seconds=0.01)
        self.calls: Counter[str] = Counter()
        self.failures: dict[str, list[Exception]] = {}
        self.gate: asyncio.Event | None = None
        """What answers of `receive` wait for."""
        self.acknowledged: asyncio.Event | None = None
        """What answers of `acknowledge` wait for."""

    def fail(self, call: str, times: int = 1, error: Exception | None = None) -> None:
        self.failures[call] = [error or StoreUnavailable("it is away")] * times

    def _count(self, call: str) -> None:
        self.calls[call] += 1
        if self.failures.get(call):
            raise self.failures[call].pop()

    async def ensure_queues(self, queues: Sequence[str]) -> None:
        self._count("ensure_queues")
        await super().ensure_queues(queues)

    async def receive(self, queue: str, *, limit: int = 1, visibility_seconds: float = 30.0) -> list[Message]:
        self._count("receive")
        messages = await super().receive(queue, limit=limit, visibility_seconds=visibility_seconds)
        if self.gate is not None:
            await self.gate.wait()
        return messages

    async def acknowledge(self, receipt: Receipt) -> bool:
        self._count("acknowledge")
        done = await super().acknowledge(receipt)
        if self.acknowledged is not None:
            await self.acknowledged.wait()
        return done

    async def nack(self, receipt: Receipt, *, delay_seconds: float = 0.0) -> bool:
        self._count("nack")
        return await super().nack(receipt, delay_seconds=delay_seconds)

    async def extend_visibility_batch(self, receipts: Sequence[Receipt], visibility_seconds: float) -> list[bool]:
        self._count("extend")
        return await super().extend_visibility_batch(receipts, visibility_seconds)


@pytest.fixture
async def service(world: MemoryWorld) -> Service:
    service = Service(world)
    await service.ensure_queues([QUEUE, DEAD])
    service.calls.clear()
    return service


async def send(service: MessagingService, *numbers: int) -> list[int]:
    return await MessageClient(service).send_batch(QUEUE, [Order(number=number) for number in numbers])


@asynccontextmanager
async def consuming(
    service: MessagingService, handler: Handler, *, concurrency: int = 4, settings: ConsumerSettings = SETTINGS
) -> AsyncIterator[Consumer[Order]]:
    """A consumer that runs, and is stopped in the end."""
    consumer = MessageClient(service).consume(QUEUE, Order, handler, concurrency=concurrency, settings=settings)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
        consumer.stop()
        async with asyncio.timeout(10):
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    async def probe() -> Any:
        return condition()

    await eventually_async(probe, interval=0.001)


async def dead_letters(service: MessagingService) -> list[str]:
    """The reasons of the dead."""
    messages = await service.receive(DEAD, limit=10)
    return [message.death.reason for message in messages if message.death is not None]


class Noting:
    """A handler that notes what it is given, and does what it is told."""

    def __init__(self, then: Callable[[Received[Order]], Awaitable[None]] | None = None) -> None:
        self.numbers: list[int] = []
        self._then = then

    async def __call__(self, received: Received[Order]) -> None:
        self.numbers.append(received.content.number)
        if self._then is not None:
            await self._then(received)


def raising(error: BaseException) -> Noting:
    async def fail(_: Received[Order]) -> None:
        raise error

    return Noting(fail)


@pytest.mark.parity(327)
async def test_each_message_is_handled_and_gone(world: MemoryWorld) -> None:
    service = world.service()  # the queues are not there yet
    handler = Noting()
    async with consuming(service, handler) as consumer:
        await until(lambda: ("shop", DEAD) in world.broker.queues)
        await send(service, *range(50))
        await until(lambda: consumer.counts.handled == 50)
    assert sorted(handler.numbers) == list(range(50))
    stats = await service.queue_stats(QUEUE)
    assert (stats.available, stats.in_flight, stats.delayed) == (0, 0, 0)
    assert (consumer.counts.failed, consumer.counts.dead, consumer.counts.lost) == (0, 0, 0)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_so_many_are_handled_at_a_time_and_no_more(service: Service, concurrency: int) -> None:
    running, most = 0, 0

    async def handle(_: Received[Order]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _turn in range(5):
            await asyncio.sleep(0)
        running -= 1

    await send(service, *range(20))
    async with consuming(service, handle, concurrency=concurrency) as consumer:
        await until(lambda: consumer.counts.handled == 20)
    assert most == concurrency


async def test_no_more_is_received_than_there_are_hands(service: Service) -> None:
    await send(service, *range(5))
    release = asyncio.Event()

    async def wait(_: Received[Order]) -> None:
        await release.wait()

    handler = Noting(wait)
    async with consuming(service, handler, concurrency=2):
        await until(lambda: len(handler.numbers) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (await service.queue_stats(QUEUE)).available == 3
        release.set()
        await until(lambda: len(handler.numbers) == 5)


async def test_an_idle_consumer_hears_of_a_message_at_once(service: Service) -> None:
    handler = Noting()
    async with consuming(service, handler):
        await until(lambda: service.calls["receive"] >= 2)
        await send(service, 7)
        await until(lambda: handler.numbers == [7])  # and polls once an hour


async def test_a_service_that_tells_nothing_is_polled(service: Service) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            if "subscribe" in name or "notify" in name:
                raise AttributeError(name)
            return getattr(service, name)

    handler = Noting()
    silent = cast("MessagingService", Silent())
    async with consuming(silent, handler, settings=ConsumerSettings(poll_seconds=0.005)):
        await until(lambda: service.calls["receive"] >= 2)
        await send(service, 7)
        await until(lambda: handler.numbers == [7])


# What fails.


async def test_what_fails_comes_again_later_and_later_and_is_dead_in_the_end(
    world: MemoryWorld, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    handler = raising(ValueError("no such shop"))
    settings = ConsumerSettings(poll_seconds=0.001, max_reads=4, first_delay_seconds=10, longest_delay_seconds=25)
    [sent] = await send(service, 1)
    async with consuming(service, handler, settings=settings) as consumer:
        for reads, delay in enumerate((10, 20, 25), start=1):
            await until(lambda: consumer.counts.failed == reads)  # noqa: B023 - awaited at once
            [row] = world.broker.queues["shop", QUEUE].values()
            waits = (row.visible_at - world.clock()).total_seconds()
            assert 0.8 * delay <= waits <= 1.2 * delay
            assert len(handler.numbers) == reads
            await world.advance(waits)
        await until(lambda: consumer.counts.dead == 1)
    [dead] = await service.receive(DEAD)
    assert dead.id == sent and dead.death is not None
    assert (dead.death.queue, dead.death.reason, dead.death.read_count) == (QUEUE, "ValueError: no such shop", 4)
    assert f"message {sent} of queue orders goes to orders_dead: ValueError: no such shop" in caplog.messages


async def test_a_message_that_always_fails_holds_up_no_other(service: Service) -> None:
    async def fail_first(received: Received[Order]) -> None:
        if received.content.number == 0:
            raise ValueError("no")

    await send(service, *range(10))
    async with consuming(service, fail_first, concurrency=1) as consumer:
        await until(lambda: consumer.counts.handled == 9)
        assert consumer.counts.failed == 1


async def test_what_is_hopeless_is_dead_at_once(service: Service) -> None:
    handler = raising(Reject("the order was withdrawn"))
    await send(service, 1)
    async with consuming(service, handler) as consumer:
        await until(lambda: consumer.counts.dead == 1)
    assert handler.numbers == [1]
    assert await dead_letters(service) == ["rejected: the order was withdrawn"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "InvalidMessage: body.number: is required"),
        ({"number": "x"}, "InvalidMessage: body.number: input should be a valid integer, unable to parse string as an"),
        ([1], "InvalidMessage: body: must be an object"),
    ],
)
async def test_what_is_no_such_message_is_dead_after_its_readings_and_never_handled(
    service: Service, body: Any, reason: str
) -> None:
    """Not at once: a newer consumer beside this one may know what it is."""
    handler = Noting()
    await service.send(QUEUE, body)
    async with consuming(service, handler, settings=ConsumerSettings(poll_seconds=NEVER, max_reads=1)) as consumer:
        await until(lambda: consumer.counts.dead == 1)
    assert handler.numbers == []
    [told] = await dead_letters(service)
    assert told.startswith(reason)


async def test_what_ends_every_process_that_reads_it_is_dead_unread(world: MemoryWorld, service: Service) -> None:
    await send(service, 1)
    for _ in range(3):
        assert len(await service.receive(QUEUE, visibility_seconds=1)) == 1
        await world.advance(1)
    handler = Noting()
    async with consuming(service, handler, settings=ConsumerSettings(poll_seconds=NEVER, max_reads=3)) as consumer:
        await until(lambda: consumer.counts.dead == 1)
    assert handler.numbers == []
    assert await dead_letters(service) == [
        "was received 3 times, and nobody told what became of it: processes ended while they handled it"
    ]


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "the handler was cancelled from within"),
        (TimeoutError(), "TimeoutError"),
        (StoreUnavailable("another one's"), "StoreUnavailable: another one's"),
        (Unreadable(), "Unreadable: (its text cannot be read)"),
        (ExceptionGroup("many", [ValueError("x")]), "ExceptionGroup: many (1 sub-exception)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_no_handler_ends_a_consumer(service: Service, error: BaseException, reason: str) -> None:
    async def handle(received: Received[Order]) -> None:
        if received.content.number == 1:
            raise error

    await send(service, 1, 2)
    async with consuming(service, handle, settings=ConsumerSettings(poll_seconds=NEVER, max_reads=1)) as consumer:
        await until(lambda: (consumer.counts.dead, consumer.counts.handled) == (1, 1))
        await send(service, 3)
        await until(lambda: consumer.counts.handled == 2)
    assert await dead_letters(service) == [reason]


async def test_a_handler_that_takes_too_long_is_cancelled_and_has_failed(service: Service) -> None:
    cancelled = asyncio.Event()

    async def hang(_: Received[Order]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    settings = ConsumerSettings(poll_seconds=NEVER, max_reads=1, handler_timeout_seconds=0.01)
    await send(service, 1)
    async with consuming(service, hang, settings=settings) as consumer:
        await until(lambda: consumer.counts.dead == 1)
        assert cancelled.is_set()
    assert await dead_letters(service) == ["the handler took longer than 0.01 s"]


# What takes long, and who loses a message.


async def test_a_message_is_kept_hidden_as_long_as_it_is_handled(world: MemoryWorld, service: Service) -> None:
    async def until_extended(_: Received[Order]) -> None:
        for times in range(1, 4):
            await until(lambda: service.calls["extend"] >= times)  # noqa: B023 - awaited at once
            await world.advance(0.02)  # thrice: more than the visibility

    handler = Noting(until_extended)
    await send(service, 1)
    settings = ConsumerSettings(poll_seconds=0.001, visibility_seconds=0.03)
    async with consuming(service, handler, settings=settings) as consumer:
        await until(lambda: consumer.counts.handled == 1)
    assert handler.numbers == [1]


async def test_who_lost_a_message_to_another_stops_working_on_it(world: MemoryWorld, service: Service) -> None:
    cancelled = asyncio.Event()

    async def work(received: Received[Order]) -> None:
        if received.content.number == 2:
            return
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await send(service, 1)
    handler = Noting(work)
    settings = ConsumerSettings(poll_seconds=NEVER, visibility_seconds=0.1)
    async with consuming(service, handler, concurrency=1, settings=settings) as consumer:
        await until(lambda: handler.numbers == [1])
        await world.advance(1)  # this process was frozen, say
        [held] = await world.service().receive(QUEUE)
        await until(cancelled.is_set)
        await until(lambda: consumer.counts.lost == 1)
        await send(service, 2)
        await until(lambda: handler.numbers == [1, 2])  # its slot is free again
        assert await service.acknowledge(held.receipt)


async def test_who_is_done_too_late_is_told(world: MemoryWorld, service: Service) -> None:
    async def too_late(_: Received[Order]) -> None:
        await world.advance(31)
        await world.service().receive(QUEUE)

    await send(service, 1)
    async with consuming(service, too_late) as consumer:
        await until(lambda: consumer.counts.lost == 1)
    assert consumer.counts.handled == 0


async def test_what_is_just_being_acknowledged_is_not_lost(service: Service) -> None:
    """The answer takes long, and meanwhile a renewal would find the message gone."""
    service.acknowledged = asyncio.Event()

    async def hang_on_the_second(received: Received[Order]) -> None:
        if received.content.number == 2:
            await until(service.acknowledged.is_set)  # type: ignore[union-attr] # it was set above

    await send(service, 1, 2)
    settings = ConsumerSettings(poll_seconds=NEVER, visibility_seconds=0.03)
    async with consuming(service, hang_on_the_second, settings=settings) as consumer:
        await until(lambda: service.calls["acknowledge"] == 1 and service.calls["extend"] >= 2)
        service.acknowledged.set()
        await until(lambda: consumer.counts.handled == 2)
    assert consumer.counts.lost == 0


async def test_what_was_renewed_is_in_hand_for_as_long_again(service: Service) -> None:
    """So an acknowledgement that fails then is repeated, though the first visibility is long over."""

    async def until_renewed(_: Received[Order]) -> None:
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.05 and service.calls["extend"] >= 3)
        service.fail("acknowledge")

    await send(service, 1)
    settings = ConsumerSettings(poll_seconds=NEVER, visibility_seconds=0.05)
    async with consuming(service, until_renewed, settings=settings) as consumer:
        await until(lambda: consumer.counts.handled + consumer.counts.lost == 1)
    assert consumer.counts.handled == 1


# What keeps the messages goes away.


async def test_a_service_that_is_away_is_waited_for(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    handler = Noting()
    service.fail("ensure_queues")
    service.fail("receive", 2)
    service.fail("acknowledge")
    await send(service, 1)
    async with consuming(service, handler) as consumer:
        await until(lambda: consumer.counts.handled == 1)
    assert handler.numbers == [1]
    assert (service.calls["ensure_queues"], service.calls["acknowledge"]) == (2, 2)
    told = [message for message in caplog.messages if "queue orders" in message]
    assert told == [
        "making queues, queue orders, is interrupted: it is away",
        "making queues, queue orders, goes on",
        "receiving, queue orders, is interrupted: it is away",
        "receiving, queue orders, goes on",
    ]


async def test_what_cannot_be_told_while_the_message_is_in_hand_is_let_go(world: MemoryWorld, service: Service) -> None:
    service.fail("acknowledge", 1000)
    service.fail("extend", 1000)
    await send(service, 1)
    settings = ConsumerSettings(poll_seconds=NEVER, visibility_seconds=0.05)
    async with consuming(service, Noting(), settings=settings) as consumer:
        await until(lambda: consumer.counts.lost == 1)
    await world.advance(1)
    assert len(await world.service().receive(QUEUE)) == 1, "it comes again"


async def test_an_error_that_waiting_does_not_mend_ends_the_consumer(service: Service) -> None:
    service.fail("receive", error=RuntimeError("a fault of the service"))
    consumer = MessageClient(service).consume(QUEUE, Order, Noting())
    async with asyncio.timeout(10):
        with pytest.raises(ExceptionGroup) as caught:
            await consumer.run()
    assert caught.group_contains(RuntimeError, match="a fault of the service")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_consumer_outlives_the_notifications_of_its_service(service: Service) -> None:
    handler = Noting()
    async with consuming(service, handler, settings=ConsumerSettings(poll_seconds=0.005)):
        await until(lambda: service.calls["receive"] >= 2)
        await service.close()
        await send(service, 7)
        await until(lambda: handler.numbers == [7])


# The end.


async def test_a_stop_lets_what_is_in_hand_end_and_takes_nothing_more(service: Service) -> None:
    release = asyncio.Event()

    async def wait(_: Received[Order]) -> None:
        await release.wait()

    handler = Noting(wait)
    await send(service, *range(4))
    async with consuming(service, handler, concurrency=2) as consumer:
        await until(lambda: len(handler.numbers) == 2)
        consumer.stop()
        release.set()
        await until(lambda: consumer.counts.handled == 2)
    assert len(handler.numbers) == 2
    assert (await service.queue_stats(QUEUE)).available == 2


async def test_what_is_not_done_within_the_grace_is_given_back_at_once(service: Service) -> None:
    async def hang(_: Received[Order]) -> None:
        await asyncio.Event().wait()

    handler = Noting(hang)
    await send(service, 1)
    settings = ConsumerSettings(poll_seconds=NEVER, grace_seconds=0.01)
    async with consuming(service, handler, settings=settings) as consumer:
        await until(lambda: handler.numbers == [1])
    assert consumer.counts.lost == 0
    [message] = await service.receive(QUEUE)
    assert message.read_count == 2


async def test_what_arrives_after_the_stop_is_given_back_at_once(service: Service) -> None:
    service.gate = asyncio.Event()
    handler = Noting()
    await send(service, 1)
    async with consuming(service, handler) as consumer:
        await until(lambda: service.calls["receive"] == 1)
        consumer.stop()
        service.gate.set()
    assert handler.numbers == []
    assert len(await service.receive(QUEUE)) == 1


async def test_a_consumer_that_is_cancelled_leaves_its_messages_to_others(world: MemoryWorld, service: Service) -> None:
    async def hang(_: Received[Order]) -> None:
        await asyncio.Event().wait()

    handler = Noting(hang)
    await send(service, 1)
    running = asyncio.create_task(MessageClient(service).consume(QUEUE, Order, handler).run())
    await until(lambda: handler.numbers == [1])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await service.receive(QUEUE) == []
    await world.advance(30)
    assert len(await service.receive(QUEUE)) == 1


async def test_a_consumer_that_was_stopped_before_it_ran_does_nothing(service: Service) -> None:
    await send(service, 1)
    consumer = MessageClient(service).consume(QUEUE, Order, Noting())
    consumer.stop()
    async with asyncio.timeout(10):
        await consumer.run()
    assert service.calls["receive"] == 0


# What cannot be asked for.


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("visibility_seconds", 0, "must be more than 0 and at most 86400"),
        ("handler_timeout_seconds", 0, "must be more than 0 and at most 31536000"),
        ("first_delay_seconds", -1, "must be more than 0 and at most 31536000"),
        ("longest_delay_seconds", float("nan"), "must be more than 0 and at most 31536000"),
        ("poll_seconds", 0, "must be more than 0 and at most 31536000"),
        ("grace_seconds", -1, "must be at least 0 and at most 31536000"),
        ("max_reads", 0, "must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        replace(SETTINGS, **{field: value})
    assert str(caught.value) == f"{field}: {reason}"


@pytest.mark.parametrize("concurrency", [0, 1001])
async def test_a_concurrency_that_cannot_be_is_refused(service: Service, concurrency: int) -> None:
    with pytest.raises(InvalidMessage, match="concurrency: must be at least 1 and at most 1000"):
        MessageClient(service).consume(QUEUE, Order, Noting(), concurrency=concurrency)


async def test_a_queue_whose_dead_would_have_no_name_is_refused(service: Service) -> None:
    MessageClient(service).consume("q" * 58, Order, Noting())
    with pytest.raises(InvalidMessage, match=r"queue: 'q{59}_dead' is longer than 63 characters"):
        MessageClient(service).consume("q" * 59, Order, Noting())
