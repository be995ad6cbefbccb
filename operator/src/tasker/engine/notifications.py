"""LISTEN: hints that something changed. They may be lost, doubled or late; whoever listens also polls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from psycopg import sql

from tasker.engine.pool import connect, translated_errors
from tasker.errors import StoreError

READY = "tasker_ready"
"""Steps became ready that nobody took in hand yet."""
FINISHED = "tasker_finished"
"""Tasks reached a final state."""

logger = logging.getLogger(__name__)


async def listen(url: str, channels: Sequence[str], *, retry_seconds: float = 1.0) -> AsyncIterator[str]:
    """Yields the name of a channel for each notification, for ever; connects again after `retry_seconds`."""
    while True:
        try:
            async with connect(url, "tasker-listen") as connection:
                with translated_errors():
                    for channel in channels:
                        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                    async for notification in connection.notifies():
                        yield notification.channel
        except StoreError as error:
            logger.warning("listening for notifications was interrupted: %s", error)
        await asyncio.sleep(retry_seconds)
