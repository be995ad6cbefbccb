"""The high-level face: messages as pydantic models instead of JSON, and a loop that handles what comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import BaseModel

from tasker.messaging.consumer import Consumer, ConsumerSettings, Kind, Received
from tasker.messaging.service import MessagingService


class MessageClient:
    """Sends and receives messages of one kind or another by way of a service, which is the caller's."""

    def __init__(self, service: MessagingService) -> None:
        self.service = service

    async def send(self, queue: str, message: BaseModel, *, delay_seconds: float = 0.0) -> int:
        """Stores a message; its id."""
        return await self.service.send(queue, _body(message), delay_seconds=delay_seconds)

    async def send_batch(self, queue: str, messages: Sequence[BaseModel], *, delay_seconds: float = 0.0) -> list[int]:
        """Stores messages, all or none; their ids in the same order."""
        return await self.service.send_batch(queue, list(map(_body, messages)), delay_seconds=delay_seconds)

    async def receive(
        self, queue: str, kind: type[Kind], *, limit: int = 1, visibility_seconds: float = 30.0
    ) -> list[Received[Kind]]:
        """Receives messages. One that is of another kind says so when its `content` is asked for, and not before: it
        must not stand in the way of the others."""
        messages = await self.service.receive(queue, limit=limit, visibility_seconds=visibility_seconds)
        return [Received(message=message, kind=kind) for message in messages]

    async def acknowledge(self, received: Received[Kind]) -> bool:
        """Removes a message that was handled. False when it was no longer in hand."""
        return await self.service.acknowledge(received.message.receipt)

    async def nack(self, received: Received[Kind], *, delay_seconds: float = 0.0) -> bool:
        """Gives a message back. False when it was no longer in hand."""
        return await self.service.nack(received.message.receipt, delay_seconds=delay_seconds)

    def consume(
        self,
        queue: str,
        kind: type[Kind],
        handler: Callable[[Received[Kind]], Awaitable[None]],
        *,
        concurrency: int = 8,
        settings: ConsumerSettings | None = None,
    ) -> Consumer[Kind]:
        """A loop that gives each message of a queue to `handler`, at most `concurrency` at a time; `run` it.

        A handler that returns has handled the message. One that raises gets it again after a while, `Reject` excepted:
        see `consumer`. It may be called more than once for a message, so what it does must bear that.
        """
        return Consumer(
            self.service, queue, kind, handler, concurrency=concurrency, settings=settings or ConsumerSettings()
        )


def _body(message: BaseModel) -> Any:
    return message.model_dump(mode="json", by_alias=True)
