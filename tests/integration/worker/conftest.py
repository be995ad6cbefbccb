"""A migrated database with an engine on it, for workers to work on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from support.engine import Lab, open_lab


@pytest_asyncio.fixture
async def lab(database_url: str) -> AsyncIterator[Lab]:
    """The engine, and statements of the test's own."""
    async with open_lab(database_url) as made:
        yield made
