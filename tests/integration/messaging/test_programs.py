"""Programs of their own that send and consume messages: one outside of this system, and one that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from support.messaging import PostgresWorld
from support.waiting import eventually_async
from tasker.messaging import ConsumerSettings, MessageClient, Received

QUEUE = "orders"


class Order(BaseModel):
    number: int


OUTSIDER = """
import asyncio, os, sys
from tasker.factory import open_messaging
from tasker.settings import DatabaseSettings

async def main():
    async with open_messaging(DatabaseSettings(url=os.environ["URL"]), "another-program") as messaging:
        await messaging.ensure_queue("mine")
        await messaging.send_with_notify("mine", {"n": 1})
        async for notification in messaging.subscribe("mine", visibility_seconds=5):
            print(notification.message.body, await messaging.acknowledge(notification.message.receipt))
            break
    print(sorted(set(sys.modules) & {"kopf", "kubernetes", "aiohttp", "tasker.controller", "tasker_worker"}))

asyncio.run(main())
"""

HANGING = """
import asyncio, os
from pydantic import BaseModel
from tasker.factory import open_messaging
from tasker.messaging import MessageClient
from tasker.settings import DatabaseSettings

class Order(BaseModel):
    number: int

async def handle(received):
    print(received.content.number, flush=True)
    await asyncio.Event().wait()

async def main():
    async with open_messaging(DatabaseSettings(url=os.environ["URL"]), "shop") as messaging:
        await MessageClient(messaging).consume("orders", Order, handle).run()

asyncio.run(main())
"""


@asynccontextmanager
async def program(text: str, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        text,
        env={**os.environ, "URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parity(305)
async def test_a_program_that_has_nothing_to_do_with_workflows_can_use_the_queues(world: PostgresWorld) -> None:
    """A database, two imports; none of the operator, the cluster's client or the workers is loaded for it."""
    async with program(OUTSIDER, world.url) as process:
        output, errors = await process.communicate()
    assert (output.decode().splitlines(), errors.decode()) == (["{'n': 1} True", "[]"], "")
    assert process.returncode == 0


async def test_what_a_killed_consumer_had_in_hand_is_handled_by_another(world: PostgresWorld) -> None:
    service = world.service()
    client = MessageClient(service)
    await service.ensure_queues([QUEUE, f"{QUEUE}_dead"])
    await client.send(QUEUE, Order(number=7))
    async with program(HANGING, world.url) as process:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).decode().strip() == "7"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert (await service.queue_stats(QUEUE)).in_flight == 1
    handled: list[Received[Order]] = []

    async def handle(received: Received[Order]) -> None:
        handled.append(received)

    consumer = client.consume(QUEUE, Order, handle, settings=ConsumerSettings(poll_seconds=0.02))
    running = asyncio.create_task(consumer.run())
    await world.advance(30)

    async def done() -> bool:
        return consumer.counts.handled == 1

    await eventually_async(done)
    consumer.stop()
    await running
    assert [(each.content.number, each.message.read_count) for each in handled] == [(7, 2)]


async def test_consumers_beside_each_other_handle_each_message_once(world: PostgresWorld) -> None:
    """Four consumers of four processes' services; notifications wake them, for they poll once an hour."""
    sender = MessageClient(world.service())
    handled: list[int] = []

    async def handle(received: Received[Order]) -> None:
        handled.append(received.content.number)

    settings = ConsumerSettings(poll_seconds=3600)
    consumers = [
        MessageClient(world.service()).consume(QUEUE, Order, handle, concurrency=3, settings=settings) for _ in range(4)
    ]
    await sender.service.ensure_queues([QUEUE, f"{QUEUE}_dead"])
    running = [asyncio.create_task(consumer.run()) for consumer in consumers]
    for start in range(0, 100, 10):
        await sender.send_batch(QUEUE, [Order(number=number) for number in range(start, start + 10)])

    async def all_handled() -> bool:
        return sum(consumer.counts.handled for consumer in consumers) == 100

    await eventually_async(all_handled)
    for consumer in consumers:
        consumer.stop()
    await asyncio.gather(*running)
    assert sorted(handled) == list(range(100))
    stats = await sender.service.queue_stats(QUEUE)
    assert (stats.available, stats.in_flight, stats.delayed) == (0, 0, 0)


async def test_a_consumer_that_is_cancelled_leaves_nothing_running(world: PostgresWorld) -> None:
    client = MessageClient(world.service())
    before = asyncio.all_tasks()
    started = asyncio.Event()

    async def hang(_: Received[Order]) -> None:
        started.set()
        await asyncio.Event().wait()

    await client.service.ensure_queue(QUEUE)
    running = asyncio.create_task(client.consume(QUEUE, Order, hang).run())
    await client.service.send(QUEUE, {"number": 7})
    async with asyncio.timeout(10):
        await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await client.service.close()
    assert {task for task in asyncio.all_tasks() - before if "hints" not in task.get_name()} == set()
