"""Messages in memory keep to what every messaging service does."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from support.messaging_contract import MessagingContract
from tasker.messaging import InMemoryMessaging


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
