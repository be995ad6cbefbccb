"""What passes between a program and a messaging service: messages, receipts, notifications, figures of a queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from tasker.errors import InvalidMessage


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """That a message is in the holder's hands. Good until somebody else receives the message.

    `token` is drawn at random at each reading, so that a receipt can be neither guessed nor kept.
    """

    message_id: int
    token: UUID


@dataclass(frozen=True, kw_only=True)
class Death:
    """Why a message was given up: the queue that it came from, the reason, and how often it was received there."""

    queue: str
    reason: str
    read_count: int


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message in its receiver's hands.

    `text` is the JSON as it was stored, to the last digit. `read_count` counts this reading too. Nobody else receives
    it before `visible_at`. Times are the service's own.
    """

    id: int
    queue: str
    text: str
    read_count: int
    enqueued_at: datetime
    visible_at: datetime
    receipt: Receipt
    death: Death | None = None
    """Only of a message that was moved to a queue of dead ones."""

    @cached_property
    def body(self) -> Any:
        """The JSON value. Raises `InvalidMessage` for one that Python cannot read, which only a sender can have stored
        that went round this package: nested too deep, or a number of thousands of digits."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise InvalidMessage("body", f"cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Available:
    """The signal: there may be messages in a queue. It may come late, twice, and for nothing."""

    queue: str


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """The whole message, received: it is hidden from others and must be acknowledged."""

    message: Message

    @property
    def queue(self) -> str:
        """Where it was received from."""
        return self.message.queue


MessageNotification = Available | Delivered
"""What a subscription yields."""


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """How a queue stands. Each count ends at `checks.COUNT_LIMIT`, and so does the sum of the last two.

    `available` can be received now, `in_flight` are in somebody's hands, `delayed` in nobody's. `oldest_seconds` is how
    long ago the one that would be received next became visible; None when there is none.
    """

    queue: str
    available: int
    in_flight: int
    delayed: int
    oldest_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether messages can be sent and received now, and why not; `reason` is None when they can."""

    reason: str | None

    @property
    def healthy(self) -> bool:
        """Whether they can."""
        return self.reason is None
