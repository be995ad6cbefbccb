"""Hints between processes: NOTIFY tells that something is there; nothing depends on its arriving.

`HintSender` coalesces what the exchange wants to tell others and sends it over a connection of its own, outside of any
transaction that matters. `HintReceiver` listens on another one and wakes the exchange. Both mend themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg

from .errors import DatabaseError
from .gateway import Gateway, connection_settings
from .logging import with_fields
from .metrics import WorkerMetrics
from .queries import QUERIES

logger = logging.getLogger("tasker_worker.hints")

_RECONNECT_SECONDS = (0.1, 5.0)  # first and longest wait before connecting again


class _Channel:
    """One channel's pace: at once after a quiet time, at most every `shortest` seconds, rarer while hints keep coming.

    A hint is for workers that sleep. One that it has woken stays awake by itself as long as there is work, so a
    stream of hints is worth less and less.
    """

    def __init__(self, name: str, shortest: float, longest: float) -> None:
        self.name = name
        self.wanted = False
        self._shortest = shortest
        self._longest = longest
        self._interval = shortest
        #: From this monotonic time on, a wanted hint may be sent.
        self.due_at = float("-inf")

    def sent(self, now: float) -> None:
        self.wanted = False
        quiet = now - self.due_at > self._interval
        self._interval = self._shortest if quiet else min(self._interval * 2, self._longest)
        self.due_at = now + self._interval


class HintSender:
    """Sends `tasker_ready` and `tasker_finished`. Used from the loop's thread."""

    def __init__(self, url: str, *, lease_seconds: float, metrics: WorkerMetrics) -> None:
        self._gateway = Gateway(url, namespace="", lease_seconds=lease_seconds, role="hints")  # it only notifies
        self._metrics = metrics
        self._ready = _Channel("tasker_ready", 0.005, 0.1)
        self._finished = _Channel("tasker_finished", 0.02, 0.1)
        self._wanted = asyncio.Event()

    def ready(self) -> None:
        """Steps became ready that other workers may take."""
        self._ready.wanted = True
        self._wanted.set()

    def finished(self) -> None:
        """Tasks reached a final state."""
        self._finished.wanted = True
        self._wanted.set()

    async def run(self) -> None:
        """Send what is wanted until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                await self._send_wanted()
        finally:
            await self._gateway.close()

    async def _send_wanted(self) -> None:
        while waiting := [channel for channel in (self._ready, self._finished) if channel.wanted]:
            channel = min(waiting, key=lambda each: each.due_at)
            await asyncio.sleep(channel.due_at - time.monotonic())  # of what is due already: no time
            channel.sent(time.monotonic())
            try:
                await self._gateway.notify(channel.name)
                self._metrics.hints_sent += 1
            except DatabaseError as error:
                # Who waits for it polls. The exchange reports a database that is gone.
                logger.debug("a hint could not be sent", extra=with_fields(channel=channel.name, reason=str(error)))
                await asyncio.sleep(_RECONNECT_SECONDS[0])


class HintReceiver:
    """Calls `on_ready` whenever another session says that steps became ready."""

    def __init__(self, url: str, *, lease_seconds: float, metrics: WorkerMetrics, on_ready: Callable[[], None]) -> None:
        self._settings: dict[str, Any] = connection_settings(url, "listen", lease_seconds)
        self._metrics = metrics
        self._on_ready = on_ready

    async def run(self) -> None:
        """Listen until cancelled; connects again whenever the session is lost, as it may be at any moment."""
        delay = _RECONNECT_SECONDS[0]
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._settings, autocommit=True) as connection:
                    await connection.execute(QUERIES["listen_ready"])
                    delay = _RECONNECT_SECONDS[0]
                    self._on_ready()  # what was said while nobody listened
                    async for _ in connection.notifies():
                        self._metrics.hints_received += 1
                        self._on_ready()
            except psycopg.Error as error:
                logger.info("not listening for hints; polling goes on", extra=with_fields(reason=str(error).strip()))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _RECONNECT_SECONDS[1])
