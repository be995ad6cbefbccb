"""Processor time of a test and of its database's sessions: what a bound on speed means on a machine that is busy."""

from __future__ import annotations

import os
import time
from pathlib import Path

from psycopg import AsyncConnection
from psycopg.rows import DictRow

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


async def cpu_seconds(connection: AsyncConnection[DictRow]) -> float:
    """What this process and every session of the connection's database have used so far, in seconds.

    Where the server's processes cannot be seen (another machine, no /proc) it is the time that has passed instead.
    """
    sessions = await connection.execute("select pid from pg_stat_activity where datname = current_database()")
    try:
        backends = sum(_ticks(row["pid"]) for row in await sessions.fetchall())
    except OSError:
        return time.monotonic()
    return time.process_time() + backends / _TICKS_A_SECOND


def _ticks(pid: int) -> int:
    """User and system time of a process of the server, which shows itself by its command line."""
    process = Path("/proc") / str(pid)
    if not process.joinpath("cmdline").read_bytes().startswith(b"postgres"):
        raise ProcessLookupError(f"process {pid} here is not the server's")
    # The name in parentheses may hold blanks: fields are counted from behind it.
    fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
