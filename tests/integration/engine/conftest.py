"""The fixture that tests of the engine are written with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.engine import Lab, open_lab


@pytest.fixture
async def lab(database_url: str) -> AsyncIterator[Lab]:
    """A fresh database, the engine on it, and short words for both."""
    async with open_lab(database_url) as lab:
        yield lab
