"""Messages in this process's memory, for tests and for programs of one process: what it holds ends with it.

The same meaning as in Postgres, and the same suite of tests holds both to it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from tasker.errors import QueueNotFound
from tasker.messaging import checks
from tasker.messaging.subscription import Mailbox, deliveries, signals
from tasker.messaging.types import Death, Health, Message, MessageNotification, QueueStats, Receipt

POLL_SECONDS = 0.05
"""How often a subscription that delivers messages looks for those that no signal tells of: it costs little here."""


class MovableClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now = now

    def __call__(self) -> datetime:
        """The time it shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves it on."""
        self._now += timedelta(seconds=seconds)


def system_clock() -> datetime:
    """The real time."""
    return datetime.now(UTC)


@dataclass(kw_only=True)
class _Row:
    message_id: int
    text: str
    size: int
    enqueued_at: datetime
    visible_at: datetime
    read_count: int = 0
    token: UUID | None = None
    death: Death | None = None


class MemoryBroker:
    """What several services share: the queues of all namespaces, by namespace and name. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], datetime] = system_clock) -> None:
        self.clock = clock
        self.queues: dict[tuple[str, str], dict[int, _Row]] = {}
        self.mailboxes: defaultdict[tuple[str, str], set[Mailbox]] = defaultdict(set)
        self.ids = itertools.count(1)


class InMemoryMessaging:
    """A `MessagingService` that `SupportsPushNotifications`, of this process alone.

    Services with the same broker see the same queues, as processes with the same database do.
    """

    requires_fallback_polling = True

    def __init__(
        self, namespace: str, *, broker: MemoryBroker | None = None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self.namespace = checks.check_namespace(namespace)
        self._broker = broker or MemoryBroker()
        self._poll_seconds = poll_seconds
        self._mailboxes: set[Mailbox] = set()

    async def ensure_queue(self, queue: str) -> None:
        await self.ensure_queues([queue])

    async def ensure_queues(self, queues: Sequence[str]) -> None:
        for queue in checks.check_queues(queues):
            self._broker.queues.setdefault((self.namespace, queue), {})

    async def send(self, queue: str, body: Any, *, delay_seconds: float = 0.0) -> int:
        [message_id] = self._store(queue, [checks.body_text(body)], delay_seconds)
        return message_id

    async def send_batch(self, queue: str, bodies: Sequence[Any], *, delay_seconds: float = 0.0) -> list[int]:
        return self._store(queue, checks.batch_texts(bodies), delay_seconds)

    async def send_with_notify(self, queue: str, body: Any) -> int:
        return await self.send(queue, body)

    async def receive(self, queue: str, *, limit: int = 1, visibility_seconds: float = 30.0) -> list[Message]:
        checks.check_queue(queue)
        checks.check_limit(limit)
        until = self._broker.clock() + timedelta(seconds=checks.check_visibility(visibility_seconds))
        rows = self._rows(queue)
        received = []
        size = 0
        for row in heapq.nsmallest(limit, self._visible(rows), key=lambda row: (row.visible_at, row.message_id)):
            if size >= checks.BATCH_BYTES:
                break
            size += row.size
            row.read_count += 1
            row.token = uuid4()
            row.visible_at = until
            received.append(_message(queue, row, row.token))
        return received

    async def acknowledge(self, receipt: Receipt) -> bool:
        [done] = await self.acknowledge_batch([receipt])
        return done

    async def acknowledge_batch(self, receipts: Sequence[Receipt]) -> list[bool]:
        held = [self._held(receipt) for receipt in receipts]
        for found in held:
            if found is not None:
                self._rows(found[0]).pop(found[1].message_id, None)
        return [found is not None for found in held]

    async def nack(self, receipt: Receipt, *, delay_seconds: float = 0.0) -> bool:
        delay = timedelta(seconds=checks.check_delay(delay_seconds))
        found = self._held(receipt)
        if found is None:
            return False
        _, row = found
        row.token, row.visible_at = None, self._broker.clock() + delay
        return True

    async def extend_visibility(self, receipt: Receipt, visibility_seconds: float) -> bool:
        [done] = await self.extend_visibility_batch([receipt], visibility_seconds)
        return done

    async def extend_visibility_batch(self, receipts: Sequence[Receipt], visibility_seconds: float) -> list[bool]:
        until = self._broker.clock() + timedelta(seconds=checks.check_visibility(visibility_seconds))
        held = [self._held(receipt) for receipt in receipts]
        for found in held:
            if found is not None:
                found[1].visible_at = until
        return [found is not None for found in held]

    async def dead_letter(self, receipt: Receipt, *, dead_queue: str, reason: str) -> bool:
        dead_rows = self._rows(checks.check_queue(dead_queue, "dead_queue"))
        found = self._held(receipt)
        if found is None:
            return False
        queue, row = found
        del self._rows(queue)[row.message_id]
        dead_rows[row.message_id] = _Row(
            message_id=row.message_id,
            text=row.text,
            size=row.size,
            enqueued_at=row.enqueued_at,
            visible_at=self._broker.clock(),
            death=Death(queue=queue, reason=checks.clean_reason(reason), read_count=row.read_count),
        )
        self._signal(dead_queue)
        return True

    async def queue_stats(self, queue: str) -> QueueStats:
        rows = self._rows(checks.check_queue(queue))
        now = self._broker.clock()
        visible = list(itertools.islice(self._visible(rows), checks.COUNT_LIMIT))
        hidden = list(itertools.islice((row for row in rows.values() if row.visible_at > now), checks.COUNT_LIMIT))
        in_flight = sum(row.token is not None for row in hidden)
        oldest = min((row.visible_at for row in visible), default=None)
        return QueueStats(
            queue=queue,
            available=len(visible),
            in_flight=in_flight,
            delayed=len(hidden) - in_flight,
            oldest_seconds=None if oldest is None else (now - oldest).total_seconds(),
        )

    async def health_check(self) -> Health:
        return Health(reason=None)

    async def close(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.end()

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

    def _store(self, queue: str, texts: Sequence[str], delay_seconds: float) -> list[int]:
        delay = timedelta(seconds=checks.check_delay(delay_seconds))
        rows = self._rows(checks.check_queue(queue))
        now = self._broker.clock()
        sent = [
            _Row(
                message_id=next(self._broker.ids),
                text=text,
                size=len(text.encode()),
                enqueued_at=now,
                visible_at=now + delay,
            )
            for text in texts
        ]
        rows.update((row.message_id, row) for row in sent)
        if sent and not delay:
            self._signal(queue)
        return [row.message_id for row in sent]

    def _rows(self, queue: str) -> dict[int, _Row]:
        found = self._broker.queues.get((self.namespace, queue))
        if found is None:
            raise QueueNotFound(f"no queue {queue} in namespace {self.namespace}")
        return found

    def _visible(self, rows: dict[int, _Row]) -> Iterator[_Row]:
        now = self._broker.clock()
        return (row for row in rows.values() if row.visible_at <= now)

    def _held(self, receipt: Receipt) -> tuple[str, _Row] | None:
        """The queue and the row of a message whose receipt is still good."""
        for (namespace, queue), rows in self._broker.queues.items():
            row = rows.get(receipt.message_id)
            if row is not None and namespace == self.namespace and row.token == receipt.token:
                return queue, row
        return None

    def _signal(self, queue: str) -> None:
        for mailbox in self._broker.mailboxes[self.namespace, queue]:
            mailbox.put(queue)

    @contextlib.asynccontextmanager
    async def _listening(self, queues: Sequence[str]) -> AsyncIterator[Mailbox]:
        mailbox = Mailbox(queues)
        self._mailboxes.add(mailbox)
        heard = [self._broker.mailboxes[self.namespace, queue] for queue in queues]
        for mailboxes in heard:
            mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
            for mailboxes in heard:
                mailboxes.discard(mailbox)


def _message(queue: str, row: _Row, token: UUID) -> Message:
    return Message(
        id=row.message_id,
        queue=queue,
        text=row.text,
        read_count=row.read_count,
        enqueued_at=row.enqueued_at,
        visible_at=row.visible_at,
        receipt=Receipt(message_id=row.message_id, token=token),
        death=row.death,
    )
