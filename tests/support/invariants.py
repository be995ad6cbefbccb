"""Checks from the rows and the transition log that all went as it must: I1 to I5, I8 and I12 of the design.

Called at the end of every fault run, whatever the faults were; it needs no knowledge of what was run. It may also be
called while work goes on: all is read in one snapshot.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

_HEAD = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def invariants() -> dict[str, str]:
    """The queries of ``invariants.sql`` by name."""
    parts = _HEAD.split(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))[1:]
    return {name: query.strip() for name, query in zip(parts[::2], parts[1::2], strict=True)}


async def check_invariants(connection: AsyncConnection[Any]) -> list[str]:
    """Everything that is wrong, each as ``invariant: what``; an empty list when all is well.

    The connection must be in autocommit; its kind of rows does not matter. Within a transaction of the caller's, what
    that transaction has done so far is looked at.
    """
    violations: list[str] = []
    alone = connection.info.transaction_status is TransactionStatus.IDLE
    async with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        if alone:
            await cursor.execute("set transaction isolation level repeatable read, read only")
        for name, query in invariants().items():
            await cursor.execute(query.encode())
            violations += [f"{name}: {row[0]}" for row in await cursor.fetchall()]
    return violations
