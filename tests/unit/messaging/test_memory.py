"""Messages in memory keep to what every messaging service does."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from support.messaging_contract import MessagingContract, delivery
from tasker.errors import StoreUnavailable
from tasker.messaging import InMemoryMessaging, Message


@pytest.mark.parity(321)
class TestInMemory(MessagingContract):
    """The whole suite."""


async def test_without_a_broker_it_has_one_of_its_own_and_the_real_time() -> None:
    before = datetime.now(UTC)
    first, second = InMemoryMessaging("shop"), InMemoryMessaging("shop")
    for service in (first, second):
        await service.ensure_queue("orders")
    await first.send("orders", 1)
    assert await second.receive("orders") == []
    [message] = await first.receive("orders")
    assert before <= message.enqueued_at <= datetime.now(UTC)


async def test_a_subscription_that_delivers_outlives_what_is_away_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    class Away(InMemoryMessaging):
        failures = 2

        async def receive(self, queue: str, *, limit: int = 1, visibility_seconds: float = 30.0) -> list[Message]:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("it is away")
            return await super().receive(queue, limit=limit, visibility_seconds=visibility_seconds)

    service = Away("shop", poll_seconds=0.001)
    await service.ensure_queue("orders")
    await service.send("orders", 1)
    async with aclosing(service.subscribe("orders", visibility_seconds=10)) as notifications:
        assert (await delivery(notifications)).body == 1
    assert caplog.messages == ["receiving from queue orders was interrupted: it is away"] * 2
