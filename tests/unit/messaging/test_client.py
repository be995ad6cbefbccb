"""The client: messages of a kind, sent and received."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field

from support.messaging import MemoryWorld
from tasker.errors import InvalidMessage
from tasker.messaging import MessageClient

QUEUE = "orders"


class Order(BaseModel):
    number: int
    shop_name: str = Field(default="corner", alias="shopName")


@pytest.fixture
async def client(world: MemoryWorld) -> MessageClient:
    service = world.service()
    await service.ensure_queue(QUEUE)
    return MessageClient(service)


@pytest.mark.parity(327)
async def test_what_was_sent_as_a_model_is_received_as_one(client: MessageClient) -> None:
    first = await client.send(QUEUE, Order(number=1, shopName="main"))
    others = await client.send_batch(QUEUE, [Order(number=2), Order(number=3)])
    received = await client.receive(QUEUE, Order, limit=5)
    assert [each.message.id for each in received] == [first, *others]
    assert [each.content for each in received] == [Order(number=1, shopName="main"), Order(number=2), Order(number=3)]
    assert received[0].message.body == {"number": 1, "shopName": "main"}
    assert await client.acknowledge(received[0]) is True
    assert await client.acknowledge(received[0]) is False
    assert await client.nack(received[1]) is True
    [again] = await client.receive(QUEUE, Order)
    assert (again.content.number, again.message.read_count) == (2, 2)


async def test_a_message_can_be_delayed_and_given_back_for_later(world: MemoryWorld, client: MessageClient) -> None:
    await client.send(QUEUE, Order(number=1), delay_seconds=5)
    await client.send_batch(QUEUE, [Order(number=2)], delay_seconds=5)
    assert await client.receive(QUEUE, Order) == []
    await world.advance(5)
    first, _ = await client.receive(QUEUE, Order, limit=2, visibility_seconds=3)
    await client.nack(first, delay_seconds=10)
    await world.advance(3)
    assert [each.content.number for each in await client.receive(QUEUE, Order, limit=2)] == [2]


async def test_a_message_of_another_kind_says_so_and_stands_in_the_way_of_none(client: MessageClient) -> None:
    await client.service.send_batch(QUEUE, [{"number": "seven"}, {"number": 8}])
    wrong, right = await client.receive(QUEUE, Order, limit=2)
    assert right.content.number == 8
    with pytest.raises(InvalidMessage) as caught:
        _ = wrong.content
    assert (caught.value.path, caught.value.reason[:32]) == ("body.number", "input should be a valid integer,")


async def test_a_model_that_json_cannot_hold_is_refused(client: MessageClient) -> None:
    class Measure(BaseModel):
        value: float

    with pytest.raises(InvalidMessage, match=r"body\.value: is inf, which JSON does not have"):
        await client.send(QUEUE, Measure(value=float("inf")))
