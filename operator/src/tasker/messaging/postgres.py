"""Messages in Postgres: `engine/sql/functions/65_messages.sql` over the server's pool of connections, and NOTIFY.

Receivers poll, and a notification only makes them look sooner: it is empty, one channel a queue, and sent in a
transaction of its own, at most one in `HINT_PAUSE_SECONDS` whatever is sent, for commits that notify wait for each
other in the whole server. `send_with_notify` is for those to whom that is worth it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from tasker.engine import notifications
from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.errors import StoreError
from tasker.messaging import checks
from tasker.messaging.subscription import Mailbox, deliveries, end_task, signals
from tasker.messaging.types import Death, Health, Message, MessageNotification, QueueStats, Receipt

logger = logging.getLogger(__name__)

HINT_PAUSE_SECONDS = 0.02
"""Between two notifications of one service: not to be felt, and who sends thousands a second notifies 50 times."""

POLL_SECONDS = 1.0
"""How often a subscription that delivers messages looks for those that no notification tells of."""


def message_channel(namespace: str, queue: str) -> str:
    """On which channel is notified of a queue; the same as the SQL function of this name."""
    return "tasker_messages_" + hashlib.sha256(f"{namespace}/{queue}".encode()).hexdigest()[:32]


class PostgresMessaging:
    """A `MessagingService` that `SupportsPushNotifications`, for any number of processes on one database.

    The database is the caller's, who opens it before and closes it after. `poll_seconds` is for subscriptions that
    deliver whole messages, `retry_seconds` the pause before a lost connection for notifications is made again.
    """

    requires_fallback_polling = True

    def __init__(
        self, database: Database, namespace: str, *, poll_seconds: float = POLL_SECONDS, retry_seconds: float = 1.0
    ) -> None:
        self.namespace = checks.check_namespace(namespace)
        self._database = database
        self._poll_seconds = poll_seconds
        self._retry_seconds = retry_seconds
        self._hints = _Hints(self._notify)
        self._subscriptions: dict[Mailbox, asyncio.Task[None]] = {}
        """Each with the task that listens for it."""

    async def ensure_queue(self, queue: str) -> None:
        await self.ensure_queues([queue])

    async def ensure_queues(self, queues: Sequence[str]) -> None:
        await self._call("ensure_queues", queues=checks.check_queues(queues))

    async def send(self, queue: str, body: Any, *, delay_seconds: float = 0.0) -> int:
        text = checks.body_text(body)
        [message_id] = await self._send(queue, [text], delay_seconds)
        return message_id

    async def send_batch(self, queue: str, bodies: Sequence[Any], *, delay_seconds: float = 0.0) -> list[int]:
        return await self._send(queue, checks.batch_texts(bodies), delay_seconds)

    async def send_with_notify(self, queue: str, body: Any) -> int:
        [message_id] = await self._store(checks.check_queue(queue), [checks.body_text(body)], 0.0, notify=True)
        return message_id

    async def receive(self, queue: str, *, limit: int = 1, visibility_seconds: float = 30.0) -> list[Message]:
        rows = await self._call(
            "receive_messages",
            queue=checks.check_queue(queue),
            limit=checks.check_limit(limit),
            visibility_seconds=checks.check_visibility(visibility_seconds),
        )
        return [_message(queue, row) for row in rows]

    async def acknowledge(self, receipt: Receipt) -> bool:
        [done] = await self.acknowledge_batch([receipt])
        return done

    async def acknowledge_batch(self, receipts: Sequence[Receipt]) -> list[bool]:
        return await self._act("acknowledge_messages", receipts)

    async def nack(self, receipt: Receipt, *, delay_seconds: float = 0.0) -> bool:
        [done] = await self._act("return_messages", [receipt], delay_seconds=checks.check_delay(delay_seconds))
        return done

    async def extend_visibility(self, receipt: Receipt, visibility_seconds: float) -> bool:
        [done] = await self.extend_visibility_batch([receipt], visibility_seconds)
        return done

    async def extend_visibility_batch(self, receipts: Sequence[Receipt], visibility_seconds: float) -> list[bool]:
        return await self._act(
            "extend_messages", receipts, visibility_seconds=checks.check_visibility(visibility_seconds)
        )

    async def dead_letter(self, receipt: Receipt, *, dead_queue: str, reason: str) -> bool:
        [done] = await self._act(
            "bury_messages",
            [receipt],
            dead_queue=checks.check_queue(dead_queue, "dead_queue"),
            reasons=[checks.clean_reason(reason)],
        )
        if done:
            self._hints.want([dead_queue])
        return done

    async def queue_stats(self, queue: str) -> QueueStats:
        [row] = await self._call("queue_stats", queues=[checks.check_queue(queue)], limit=checks.COUNT_LIMIT)
        return QueueStats(**row)

    async def health_check(self) -> Health:
        try:
            await self._database.fetch(load_queries("messages")["message_clock"])
        except StoreError as error:
            return Health(reason=str(error))
        return Health(reason=None)

    async def close(self) -> None:
        subscriptions = list(self._subscriptions.items())
        for mailbox, _ in subscriptions:
            mailbox.end()
        # Here too, for whoever left an iterator without closing it has left its connection open.
        for _, listening in subscriptions:
            await end_task(listening)
        await self._hints.close()

    def subscribe(
        self, queue: str, *, visibility_seconds: float | None = None
    ) -> AsyncGenerator[MessageNotification, None]:
        return self.subscribe_many([queue], visibility_seconds=visibility_seconds)

    def subscribe_many(
        self, queues: Sequence[str], *, visibility_seconds: float | None = None
    ) -> AsyncGenerator[MessageNotification, None]:
        names = checks.check_queues(queues)
        opened = self._listening(names)
        if visibility_seconds is None:
            return signals(opened)
        seconds = checks.check_visibility(visibility_seconds)

        async def receive_one(queue: str) -> list[Message]:
            return await self.receive(queue, visibility_seconds=seconds)

        return deliveries(opened, names, receive_one, self._poll_seconds)

    async def _send(self, queue: str, texts: Sequence[str], delay_seconds: float) -> list[int]:
        checks.check_queue(queue)
        message_ids = await self._store(queue, texts, checks.check_delay(delay_seconds), notify=False)
        if message_ids and delay_seconds == 0:
            self._hints.want([queue])
        return message_ids

    async def _store(self, queue: str, texts: Sequence[str], delay_seconds: float, *, notify: bool) -> list[int]:
        rows = await self._call(
            "send_messages",
            queues=[queue] * len(texts),
            bodies=list(texts),
            delays=[delay_seconds] * len(texts),
            notify=notify,
        )
        return [row["message_id"] for row in rows]

    async def _act(self, query: str, receipts: Sequence[Receipt], **arguments: Any) -> list[bool]:
        """For each receipt whether it was still good."""
        rows = await self._call(
            query,
            message_ids=[receipt.message_id for receipt in receipts],
            receipts=[receipt.token for receipt in receipts],
            **arguments,
        )
        places = {row["place"] for row in rows}
        return [place in places for place in range(1, len(receipts) + 1)]

    async def _notify(self, queues: Sequence[str]) -> None:
        await self._call("notify_queues", queues=list(queues))

    async def _call(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        return await self._database.fetch(load_queries("messages")[query], {"namespace": self.namespace, **arguments})

    @contextlib.asynccontextmanager
    async def _listening(self, queues: Sequence[str]) -> AsyncIterator[Mailbox]:
        """A mailbox that a connection of its own fills, as long as it is open."""
        mailbox = Mailbox()
        listening = asyncio.create_task(self._listen(queues, mailbox), name="listening for messages")
        self._subscriptions[mailbox] = listening
        try:
            yield mailbox
        finally:
            try:
                await end_task(listening)
            finally:
                del self._subscriptions[mailbox]

    async def _listen(self, queues: Sequence[str], mailbox: Mailbox) -> None:
        settings = self._database.settings
        by_channel = {message_channel(self.namespace, queue): queue for queue in queues}
        try:
            async for channel in notifications.listen(
                settings.listen_url or settings.url,
                list(by_channel),
                settings.limits,
                retry_seconds=self._retry_seconds,
                hint_at_connect=True,
            ):
                mailbox.put(by_channel[channel])
        except Exception as error:
            mailbox.end(error)


def _message(queue: str, row: dict[str, Any]) -> Message:
    death = None
    if row["dead_from"] is not None:
        death = Death(queue=row["dead_from"], reason=row["dead_reason"], read_count=row["dead_reads"])
    return Message(
        id=row["message_id"],
        queue=queue,
        text=row["body"],
        read_count=row["read_count"],
        enqueued_at=row["enqueued_at"],
        visible_at=row["visible_at"],
        receipt=Receipt(message_id=row["message_id"], token=row["receipt"]),
        death=death,
    )


class _Hints:
    """Sends hints one after the other, with a pause between them; what is wanted meanwhile goes with the next."""

    def __init__(self, send: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._send = send
        self._wanted: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    def want(self, queues: Iterable[str]) -> None:
        """Who listens to the queues should be told soon."""
        self._wanted.update(queues)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_wanted(), name="hints of messages")

    async def close(self) -> None:
        """Returns when what was wanted is sent."""
        if self._sending is not None:
            await self._sending

    async def _send_wanted(self) -> None:
        while self._wanted:
            queues = sorted(self._wanted)
            self._wanted.clear()
            try:
                await self._send(queues)
            except StoreError as error:
                logger.debug("a hint could not be sent: %s", error)  # who waits for it polls
            await asyncio.sleep(HINT_PAUSE_SECONDS)
