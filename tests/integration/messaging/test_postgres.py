"""Messages in Postgres keep to what every messaging service does."""

from __future__ import annotations

import pytest

from support.messaging_contract import MessagingContract


@pytest.mark.parity(319)
class TestPostgres(MessagingContract):
    """The whole suite."""
