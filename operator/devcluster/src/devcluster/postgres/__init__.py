"""A PostgreSQL server of our own on this machine, for development, tests and benchmarks.

``EmbeddedPostgres`` starts a server in a data folder or joins
the one that runs there; ``database_url`` is the short form that lets the environment variable ``DATABASE_URL`` win.

How it hangs together::

    a process that uses the server           another one
      shared flock on users.lock               shared flock on users.lock
                 └──────────────┬──────────────────┘
                          supervisor            exclusive flock on supervisor.lock while it lives
                              └── postgres      dies with the supervisor; restarted by it after a crash

The supervisor (``supervisor.py``, a script that imports nothing of ours) stops the server as soon as it gets
``users.lock`` exclusively, that is when the last user left, however that user ended. Every lock is the kernel's, so
``kill -9`` of any of them leaves nothing to clean up by hand.
"""

from __future__ import annotations

from devcluster.postgres.binaries import PostgresBinaries, find_binaries
from devcluster.postgres.server import EmbeddedPostgres, database_url

__all__ = ["EmbeddedPostgres", "PostgresBinaries", "database_url", "find_binaries"]
