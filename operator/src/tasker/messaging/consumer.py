"""A consumer: receives the messages of one queue, and gives each to a handler, so many at a time and no more.

A message is kept hidden as long as its handler works on it. One whose handling failed comes again after a while, longer
each time; after so many readings, or when the handler says that it is hopeless, it goes to the queue of dead messages
with the reason. So does one that was read too often by processes that ended before they could say anything. What keeps
the messages may go away for a while: the consumer goes on when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tasker.errors import InvalidMessage, StoreError, TaskerError
from tasker.messaging import checks
from tasker.messaging.service import MessagingService, SupportsPushNotifications
from tasker.messaging.types import Message
from tasker.model.retry import Backoff, retry_delay_ms
from tasker.model.validation import first_fault

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=BaseModel)
Result = TypeVar("Result")

DEAD_SUFFIX = "_dead"
"""What the name of a queue's queue of dead messages ends with."""


class Reject(TaskerError):
    """Raised by a handler: the message can never be handled, and is not to come again."""


@dataclass(frozen=True, kw_only=True)
class Received(Generic[Kind]):
    """A message in one's hands, and what it says."""

    message: Message
    kind: type[Kind]

    @cached_property
    def content(self) -> Kind:
        """The body as what was asked for. Raises `InvalidMessage` with path and reason when it is not that."""
        try:
            return self.kind.model_validate_json(self.message.text)
        except ValidationError as error:
            raise InvalidMessage(*first_fault(error, "body")) from error


@dataclass(frozen=True, kw_only=True)
class ConsumerSettings:
    """How a consumer goes about it. Raises `InvalidMessage` naming the field that cannot be."""

    visibility_seconds: float = 30.0
    """How long a message is hidden, renewed every third of it; so soon it comes to another when this process dies."""

    handler_timeout_seconds: float = 300.0
    """A handler that takes longer is cancelled, and has failed: one that hangs must not keep its message for ever."""

    max_reads: int = 5
    """After so many readings without success a message is dead."""

    first_delay_seconds: float = 1.0
    """The pause after the first failure of a message; twice as long after each further one, a fifth more or less."""

    longest_delay_seconds: float = 300.0
    """What that pause grows to."""

    poll_seconds: float = 1.0
    """How often an idle consumer looks for messages that no notification tells of."""

    grace_seconds: float = 20.0
    """How long handlers have to end when the consumer is stopped: less than a pod has."""

    def __post_init__(self) -> None:
        checks.check_visibility(self.visibility_seconds)
        for name in ("handler_timeout_seconds", "first_delay_seconds", "longest_delay_seconds", "poll_seconds"):
            if not 0 < getattr(self, name) <= checks.DELAY_SECONDS:
                raise InvalidMessage(name, f"must be more than 0 and at most {checks.DELAY_SECONDS:.0f}")
        if not 0 <= self.grace_seconds <= checks.DELAY_SECONDS:
            raise InvalidMessage("grace_seconds", f"must be at least 0 and at most {checks.DELAY_SECONDS:.0f}")
        if self.max_reads < 1:
            raise InvalidMessage("max_reads", "must be at least 1")


@dataclass(kw_only=True)
class ConsumerCounts:
    """What became of the messages so far: `handled` were acknowledged, `failed` will come again, `dead` will not,
    `lost` were received by somebody else before this consumer could tell, or may have been."""

    handled: int = 0
    failed: int = 0
    dead: int = 0
    lost: int = 0


@dataclass(kw_only=True, eq=False)
class _Hold:
    """A message in the consumer's hands, until a moment of the monotonic clock unless that is renewed."""

    message: Message
    until: float
    task: asyncio.Task[None] | None = None
    settling: bool = False
    """The handler is done; nothing is renewed any more."""


class Consumer(Generic[Kind]):
    """Handles the messages of a queue from `run` until `stop`. Made by `MessageClient.consume`."""

    def __init__(
        self,
        service: MessagingService,
        queue: str,
        kind: type[Kind],
        handler: Callable[[Received[Kind]], Awaitable[None]],
        *,
        concurrency: int,
        settings: ConsumerSettings,
    ) -> None:
        self.queue = checks.check_queue(queue)
        self.dead_queue = checks.check_queue(queue + DEAD_SUFFIX, "queue")
        if not 1 <= concurrency <= checks.BATCH_MESSAGES:
            raise InvalidMessage("concurrency", f"must be at least 1 and at most {checks.BATCH_MESSAGES}")
        self.counts = ConsumerCounts()
        self._service = service
        self._kind = kind
        self._handler = handler
        self._concurrency = concurrency
        self._settings = settings
        self._holds: set[_Hold] = set()
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()
        """There may be messages, a slot is free again, or the end has come."""

    def stop(self) -> None:
        """Receives nothing more; `run` returns when what is in hand is done, or its grace is over."""
        self._stopped.set()
        self._wake.set()

    async def run(self) -> None:
        """Handles messages until stopped, and makes the queues first when they are missing.

        When it is cancelled instead, handlers are too, and what they had comes to others when its visibility ends. An
        error that waiting does not mend ends it, as an `ExceptionGroup`.
        """
        async with asyncio.TaskGroup() as group:
            await self._persist("making queues", lambda: self._service.ensure_queues([self.queue, self.dead_queue]))
            helpers = [group.create_task(self._listen()), group.create_task(self._renew_for_ever())]
            while not self._stopped.is_set():
                await self._receive_some(group)
            await self._finish()
            for helper in helpers:
                helper.cancel()

    # Receiving.

    async def _receive_some(self, group: asyncio.TaskGroup) -> None:
        self._wake.clear()
        free = self._concurrency - len(self._holds)
        if free == 0:
            await self._wake.wait()
            return
        until = time.monotonic() + self._settings.visibility_seconds
        messages = await self._persist(
            "receiving",
            lambda: self._service.receive(self.queue, limit=free, visibility_seconds=self._settings.visibility_seconds),
        )
        for message in messages or ():
            if self._stopped.is_set():
                await self._give_back(message)
                continue
            hold = _Hold(message=message, until=until)
            self._holds.add(hold)
            hold.task = group.create_task(self._handle(hold), name=f"message {message.id} of {self.queue}")
            # Not at the end of the task's own code, which one that is cancelled before its first step never comes to.
            hold.task.add_done_callback(partial(self._let_go, hold))
        if not messages:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    self._settings.poll_seconds if self._service.requires_fallback_polling else None
                ):
                    await self._wake.wait()

    async def _persist(self, what: str, call: Callable[[], Awaitable[Result]]) -> Result | None:
        """Calls until it works, with growing pauses; None when stopped meanwhile."""
        failures = 0
        while not self._stopped.is_set():
            try:
                result = await call()
            except StoreError as error:
                failures += 1
                if failures == 1:
                    logger.warning("%s, queue %s, is interrupted: %s", what, self.queue, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_reconnect_seconds(failures)):
                        await self._stopped.wait()
            else:
                if failures:
                    logger.info("%s, queue %s, goes on", what, self.queue)
                return result
        return None

    async def _listen(self) -> None:
        """Looks at once when something is said of the queue; where nothing ever is, polling does."""
        if isinstance(self._service, SupportsPushNotifications):
            async with aclosing(self._service.subscribe(self.queue)) as notifications:
                async for _ in notifications:
                    self._wake.set()

    async def _renew_for_ever(self) -> None:
        """Keeps what is being handled hidden. Who lost a message need not go on with it: somebody else has it."""
        visibility = self._settings.visibility_seconds
        while True:
            await asyncio.sleep(visibility / 3)
            holds = [hold for hold in self._holds if not hold.settling]
            if not holds:
                continue
            until = time.monotonic() + visibility
            try:
                kept = await self._service.extend_visibility_batch([hold.message.receipt for hold in holds], visibility)
            except StoreError as error:
                logger.warning("messages of queue %s could not be kept hidden: %s", self.queue, error)
                continue
            for hold, still_held in zip(holds, kept, strict=True):
                if still_held:
                    hold.until = until
                elif not hold.settling and hold.task is not None:
                    hold.task.cancel()

    # Handling.

    async def _handle(self, hold: _Hold) -> None:
        message = hold.message
        try:
            if message.read_count > self._settings.max_reads:
                await self._bury(
                    hold,
                    f"was received {message.read_count - 1} times, and nobody told what became of it: processes ended"
                    " while they handled it",
                )
                return
            fault = await self._attempt(message)
            hold.settling = True
            if fault is None:
                if await self._settle(hold, lambda: self._service.acknowledge(message.receipt)):
                    self.counts.handled += 1
            elif fault.hopeless or message.read_count >= self._settings.max_reads:
                await self._bury(hold, fault.reason)
            else:
                logger.warning("message %d of queue %s will come again: %s", message.id, self.queue, fault.reason)
                delay = self._delay_seconds(message.read_count)
                if await self._settle(hold, lambda: self._service.nack(message.receipt, delay_seconds=delay)):
                    self.counts.failed += 1
        except asyncio.CancelledError:
            if not self._stopped.is_set():
                self._lost(message)
            raise

    def _let_go(self, hold: _Hold, _: asyncio.Task[None]) -> None:
        self._holds.discard(hold)
        self._wake.set()

    async def _attempt(self, message: Message) -> _Fault | None:
        """Runs the handler. None when it did its work."""
        limit = asyncio.timeout(self._settings.handler_timeout_seconds)
        try:
            async with limit:
                received = Received(message=message, kind=self._kind)
                _ = received.content  # what is no such message is none of the handler's business
                await self._handler(received)
        except Reject as error:
            return _Fault(reason=f"rejected: {error}", hopeless=True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return _Fault(reason="the handler was cancelled from within")
        except (Exception, SystemExit) as error:
            if limit.expired():
                return _Fault(reason=f"the handler took longer than {self._settings.handler_timeout_seconds:g} s")
            return _Fault(reason=_text(error))
        return None

    async def _bury(self, hold: _Hold, reason: str) -> None:
        hold.settling = True
        message = hold.message
        logger.error("message %d of queue %s goes to %s: %s", message.id, self.queue, self.dead_queue, reason)
        if await self._settle(
            hold,
            lambda: self._service.dead_letter(message.receipt, dead_queue=self.dead_queue, reason=reason),
        ):
            self.counts.dead += 1

    async def _settle(self, hold: _Hold, call: Callable[[], Awaitable[bool]]) -> bool:
        """Tells what became of a message, until it is heard or the message is no longer in hand. Whether it was."""
        failures = 0
        while True:
            try:
                if await call():
                    return True
                break
            except StoreError as error:
                failures += 1
                if time.monotonic() >= hold.until:
                    logger.warning("what became of message %d could not be told: %s", hold.message.id, error)
                    break
                await asyncio.sleep(_reconnect_seconds(failures))
        self._lost(hold.message)
        return False

    def _lost(self, message: Message) -> None:
        self.counts.lost += 1
        logger.warning("message %d of queue %s is no longer in hand, and may be handled twice", message.id, self.queue)

    def _delay_seconds(self, reads: int) -> float:
        milliseconds = retry_delay_ms(
            Backoff.EXPONENTIAL,
            base_ms=round(self._settings.first_delay_seconds * 1000),
            max_ms=round(self._settings.longest_delay_seconds * 1000),
            failures=reads,
            jitter=0.2,
            randomness=random.random(),  # noqa: S311 - jitter, not a secret
        )
        return milliseconds / 1000

    # Ending.

    async def _finish(self) -> None:
        """Waits for what is in hand, and gives back what is not done in time."""
        if not self._holds:
            return
        tasks = {hold.task for hold in self._holds if hold.task is not None}
        _, late = await asyncio.wait(tasks, timeout=self._settings.grace_seconds)
        if not late:
            return
        given_back = [hold.message for hold in self._holds if hold.task in late]
        for task in late:
            task.cancel()
        await asyncio.wait(late)
        for message in given_back:
            await self._give_back(message)

    async def _give_back(self, message: Message) -> None:
        with contextlib.suppress(StoreError):  # then it comes again when its visibility ends
            await self._service.nack(message.receipt)


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """Why the handling of a message failed; `hopeless` when trying again cannot help."""

    reason: str
    hopeless: bool = False


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # the exception is the handler's, and so is its text
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _reconnect_seconds(failures: int) -> float:
    """Before asking again what keeps the messages: from a tenth of a second up to five, half as much more or less."""
    milliseconds = retry_delay_ms(
        Backoff.EXPONENTIAL,
        base_ms=100,
        max_ms=5_000,
        failures=failures,
        jitter=0.5,
        randomness=random.random(),  # noqa: S311 - jitter, not a secret
    )
    return milliseconds / 1000
