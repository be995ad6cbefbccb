"""Subscriptions: the mailbox that signals wait in, and the iterators that are made of it.

A provider opens a mailbox and puts the names of queues into it; `signals` and `deliveries` are what its users iterate
over, and close the mailbox in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from tasker.errors import StoreUnavailable
from tasker.messaging.types import Available, Delivered, Message, MessageNotification

logger = logging.getLogger(__name__)

CANCEL_AGAIN_SECONDS = 5.0
"""How long a task has to end before it is cancelled again: more than closing a connection takes."""


class Mailbox:
    """Names of queues that something was said of: each once, however often, in the order of their first mention."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = dict.fromkeys(names)
        self._filled = asyncio.Event()
        self._error: BaseException | None = None
        self.ended = False
        """Whether nothing will come any more."""
        if names:
            self._filled.set()

    def put(self, name: str) -> None:
        """Something was said of a queue."""
        self._names[name] = None
        self._filled.set()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more; `error` is raised to whoever waits."""
        self.ended = True
        self._error = error
        self._filled.set()

    async def take(self, timeout: float | None = None) -> str | None:
        """The next name; None when there is none in time, or none will come any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._filled.wait()
        if self._error is not None:
            raise self._error
        if self.ended or not self._names:
            return None
        name = next(iter(self._names))
        del self._names[name]
        if not self._names:
            self._filled.clear()
        return name


async def signals(opened: AbstractAsyncContextManager[Mailbox]) -> AsyncGenerator[MessageNotification, None]:
    """A signal for each name that comes into the mailbox."""
    async with opened as mailbox:
        while (name := await mailbox.take()) is not None:
            yield Available(queue=name)


async def deliveries(
    opened: AbstractAsyncContextManager[Mailbox],
    queues: Sequence[str],
    receive_one: Callable[[str], Awaitable[list[Message]]],
    poll_seconds: float,
) -> AsyncGenerator[MessageNotification, None]:
    """The messages themselves, each received when it is asked for; the queues are asked in turn."""
    async with opened as mailbox:
        while not mailbox.ended:
            found = False
            for queue in queues:
                try:
                    messages = await receive_one(queue)
                except StoreUnavailable as error:
                    logger.warning("receiving from queue %s was interrupted: %s", queue, error)
                    break
                for message in messages:
                    found = True
                    yield Delivered(message=message)
            if not found:
                await mailbox.take(poll_seconds)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancels a task and returns when it has ended. Several may ask for the end of one.

    Cancelled once, for a driver that is cancelled while it takes its leave of a server breaks that off; and again only
    after a while, for in Python 3.11 a library's `asyncio.wait_for` may swallow a cancellation.
    """
    if task.cancelling() == 0:
        task.cancel()
    while not (await asyncio.wait({task}, timeout=CANCEL_AGAIN_SECONDS))[0]:
        task.cancel()
    if not task.cancelled():
        task.exception()  # told where it arose
