"""Which functions of which database were called since the last look: what a test that uses a shared database calls."""

from __future__ import annotations

import time

import psycopg


class CalledFunctions:
    """Watches databases by what the server counts in them (``track_functions``)."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, int]] = {}
        """By the URL of a watched database: how often each function was called until the last look."""

    def watch(self, url: str) -> None:
        """From now on, from nothing: the database is new."""
        self._calls[url] = {}

    def forget(self, url: str) -> set[str]:
        """Looks once more, before the database goes."""
        found = self._look(url)
        self._calls.pop(url, None)
        return found

    def look(self) -> set[str]:
        """Names of functions that were called in any watched database since the last look."""
        return {name for url in list(self._calls) for name in self._look(url)}

    def _look(self, url: str) -> set[str]:
        now = called_functions(url)
        before = self._calls.pop(url, {})
        if now is None:
            return set()
        self._calls[url] = now
        return {name for name, calls in now.items() if calls > before.get(name, 0)}


def called_functions(url: str, patience: float = 0.5) -> dict[str, int] | None:
    """How often each of the engine's functions was called in a database; None when it is gone or has another name.

    A session's counts arrive when it ends, so the others get `patience` seconds to do so.
    """
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and connection.execute(_OTHER_SESSIONS).fetchone() is not None:
                time.sleep(0.005)
            return {str(name): int(calls) for name, calls in connection.execute(_CALLED)}
    except psycopg.OperationalError:
        return None


_OTHER_SESSIONS = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() limit 1"
_CALLED = """select funcname, sum(calls) from pg_stat_user_functions
    where schemaname = 'tasker' group by funcname"""
