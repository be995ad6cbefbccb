"""What a messaging service can do: one protocol for all, and one for those that tell of new messages by themselves.

A service speaks for one namespace; queues of the same name in two namespaces have nothing to do with each other.
Messages are delivered at least once. All that is given to a service is checked first: `InvalidMessage` says where and
why. Each call raises `QueueNotFound` for a queue that was never ensured, and `StoreUnavailable` while what keeps the
messages cannot be reached; a call that was cut off may have taken effect.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol, runtime_checkable

from tasker.messaging.types import Health, Message, MessageNotification, QueueStats, Receipt


class MessagingService(Protocol):
    """Queues of JSON messages in one namespace."""

    @property
    def namespace(self) -> str:
        """Whose queues these are."""

    @property
    def requires_fallback_polling(self) -> bool:
        """Whether messages may be there that no notification tells of, so that a receiver must look by itself too: at
        those that come back, whose delay is over, or that were sent while it could not be told."""

    async def ensure_queue(self, queue: str) -> None:
        """Makes the queue unless it is there: at most 63 lower-case letters, digits, ``-``, ``_`` and ``.``."""

    async def ensure_queues(self, queues: Sequence[str]) -> None:
        """The same for several, in one call."""

    async def send(self, queue: str, body: Any, *, delay_seconds: float = 0.0) -> int:
        """Stores a message and returns its id; it can be received after the delay. `body` is any JSON value of at most
        1 MiB and 32 levels."""

    async def send_batch(self, queue: str, bodies: Sequence[Any], *, delay_seconds: float = 0.0) -> list[int]:
        """Stores up to 1,000 messages of together 32 MiB, all or none; their ids in the same order."""

    async def receive(self, queue: str, *, limit: int = 1, visibility_seconds: float = 30.0) -> list[Message]:
        """Up to `limit` messages (1,000, and of together 32 MiB) in the order in which they became visible. For
        `visibility_seconds` nobody else receives them; then they come again. None are there: an empty list, at once."""

    async def acknowledge(self, receipt: Receipt) -> bool:
        """Removes a message for good. False when somebody else has received it meanwhile, or it was removed before."""

    async def acknowledge_batch(self, receipts: Sequence[Receipt]) -> list[bool]:
        """The same for several, in one call."""

    async def nack(self, receipt: Receipt, *, delay_seconds: float = 0.0) -> bool:
        """Gives a message back, to be received again after the delay. False as for `acknowledge`."""

    async def extend_visibility(self, receipt: Receipt, visibility_seconds: float) -> bool:
        """Hides a message for so long from now on. False as for `acknowledge`."""

    async def extend_visibility_batch(self, receipts: Sequence[Receipt], visibility_seconds: float) -> list[bool]:
        """The same for several, in one call."""

    async def dead_letter(self, receipt: Receipt, *, dead_queue: str, reason: str) -> bool:
        """Moves a message that cannot be handled to another queue of the namespace in one step; there its `death` tells
        the reason's first 1,024 characters. False as for `acknowledge`."""

    async def queue_stats(self, queue: str) -> QueueStats:
        """How the queue stands."""

    async def health_check(self) -> Health:
        """Whether messages can be sent and received now. Raises nothing."""

    async def close(self) -> None:
        """Ends its subscriptions, and sends what notifications are still to be sent."""


@runtime_checkable
class SupportsPushNotifications(Protocol):
    """A service that tells of new messages."""

    async def send_with_notify(self, queue: str, body: Any) -> int:
        """As `send`, and tells those who subscribe to the queue in the same step: both happen or neither does."""

    def subscribe(
        self, queue: str, *, visibility_seconds: float | None = None
    ) -> AsyncGenerator[MessageNotification, None]:
        """As `subscribe_many`, for one queue."""

    def subscribe_many(
        self, queues: Sequence[str], *, visibility_seconds: float | None = None
    ) -> AsyncGenerator[MessageNotification, None]:
        """Yields notifications until it is closed or the service is.

        Without `visibility_seconds` the signals `Available`: one for each queue at the beginning and whenever a lost
        connection is there again, for what was sent unheard, and then one or more after each send. Signals that were
        not asked for yet are put together, one a queue. With it each message is received when it is asked for, one by
        one, the queues in turn, hidden for so long, and comes whole as `Delivered`; what no signal tells of is looked
        for as well.
        """
