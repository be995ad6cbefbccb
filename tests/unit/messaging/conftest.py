"""Messages in memory, with a clock that is moved."""

from __future__ import annotations

import pytest

from support.messaging import MemoryWorld

pytest.register_assert_rewrite("support.messaging_contract")


@pytest.fixture
def world() -> MemoryWorld:
    """What keeps the messages, empty."""
    return MemoryWorld()
