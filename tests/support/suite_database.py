"""The database of one run of the cluster suite: one of its own where the role may make one, else the one given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from support.postgres import TestServer

_REMOVE_ROWS = Path(__file__).with_name("remove_rows.sql")


@contextmanager
def suite_database(server: TestServer, name: str, namespace_prefix: str) -> Iterator[str]:
    """The URL of a database `name`, dropped afterwards.

    A role that may not make it (or not connect to it) works in the database that its URL names; afterwards the rows of
    the namespaces that begin with `namespace_prefix` are removed from there.
    """
    try:
        url = server.create(name)
    except psycopg.errors.InsufficientPrivilege:
        yield server.admin_url
        _remove_rows(server.admin_url, namespace_prefix)
        return
    try:
        if _can_be_reached(url):
            yield url
        else:
            yield server.admin_url
            _remove_rows(server.admin_url, namespace_prefix)
    finally:
        server.drop(name)


def _can_be_reached(url: str) -> bool:
    """Whether the server's own rules let the role into a database that it has just made."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _remove_rows(url: str, prefix: str) -> None:
    # Bound on the client's side: the file has several statements, and some that take no parameters.
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(_REMOVE_ROWS.read_bytes(), {"prefix": prefix})
