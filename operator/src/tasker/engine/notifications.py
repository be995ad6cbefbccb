"""LISTEN: hints that something changed. They may be lost, doubled or late; whoever listens also polls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from psycopg import AsyncConnection, sql

from tasker.engine.pool import connect, execute, translated_errors
from tasker.errors import StoreError
from tasker.settings import ConnectionLimits

READY = "tasker_ready"
"""Steps became ready that nobody took in hand yet."""
FINISHED = "tasker_finished"
"""Tasks reached a final state."""

logger = logging.getLogger(__name__)


async def listen(
    url: str,
    channels: Sequence[str],
    limits: ConnectionLimits,
    *,
    retry_seconds: float = 1.0,
    silence_seconds: float = 5.0,
    hint_at_connect: bool = False,
) -> AsyncIterator[str]:
    """Yields the name of a channel for each notification, for ever; connects again after `retry_seconds`.

    With `hint_at_connect` every channel is also named whenever a connection begins to listen: for what was said while
    none did.

    Every `silence_seconds` the server is asked something, since a server that is gone is as silent as one with no news.
    """
    asking = replace(limits, statement_timeout_seconds=min(silence_seconds, limits.statement_timeout_seconds))
    while True:
        try:
            async with connect(url, "tasker-listen", limits) as connection:
                with translated_errors():
                    for channel in channels:
                        await execute(connection, _listen_to(connection, channel), limits=asking)
                    if hint_at_connect:
                        for channel in channels:
                            yield channel
                    while True:
                        async for notification in connection.notifies(timeout=silence_seconds):
                            yield notification.channel
                        await execute(connection, "select", limits=asking)
        except StoreError as error:
            logger.warning("listening for notifications was interrupted: %s", error)
        await asyncio.sleep(retry_seconds)


def _listen_to(connection: AsyncConnection, channel: str) -> bytes:
    return sql.SQL("listen {}").format(sql.Identifier(channel)).as_bytes(connection)
