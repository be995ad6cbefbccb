"""Settings in frozen groups by concern. Each field: a sentence, its unit, the reason for the default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasker.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """How the server reaches Postgres."""

    url: str = field(repr=False)
    """Connection string; it may hold a password, so it is never shown."""

    pool_min: int = 1
    """Connections kept open. One answers an idle operator."""

    pool_max: int = 4
    """Most connections of this process. All work is short statements, so four carry thousands a second."""

    connect_timeout_seconds: float = 10.0
    """How long to wait for a connection before saying that the database cannot be reached."""

    application_name: str = "tasker"
    """Shown in pg_stat_activity."""

    listen_url: str | None = field(default=None, repr=False)
    """Connection string for LISTEN, when `url` goes through a pooler that cannot carry it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DatabaseSettings:
        """From DATABASE_URL and TASKER_LISTEN_DATABASE_URL. Raises `ConfigurationError` without the first."""
        url = environment.get("DATABASE_URL", "")
        if not url:
            raise ConfigurationError("DATABASE_URL is not set: give the connection string of the Postgres database")
        return cls(url=url, listen_url=environment.get("TASKER_LISTEN_DATABASE_URL") or None)
