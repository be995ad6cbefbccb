"""``python -m devcluster.postgres``: a scratch database at the shell.

With a command after ``--``, runs it with DATABASE_URL set and ends with its exit code; without one, prints the URL and
keeps the server until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from devcluster.errors import ClusterError
from devcluster.postgres.server import DATABASE_VARIABLE, DEFAULT_DATABASE, EmbeddedPostgres


def main() -> int:
    """Parse, run, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.postgres", description="A scratch PostgreSQL.")
    parser.add_argument(
        "--data", type=Path, default=Path(".devcluster/postgres"), help="data folder (default: %(default)s)"
    )
    parser.add_argument("--database", default=DEFAULT_DATABASE, help="made when missing (default: %(default)s)")
    parser.add_argument("command", nargs="*", help="after --: a command to run with DATABASE_URL set")
    given = parser.parse_args()
    try:
        with EmbeddedPostgres(given.data) as server:
            url = server.ensure_database(given.database)
            if given.command:
                return subprocess.run(given.command, env={**os.environ, DATABASE_VARIABLE: url}, check=False).returncode
            print(url, flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
            return 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # Blocked from the start, so that the wait above gets them whenever they come.
    if "--" not in sys.argv:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    raise SystemExit(main())
