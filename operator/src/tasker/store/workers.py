"""Rows of workers: demand, draining, what time has broken."""

from __future__ import annotations

from collections.abc import Sequence

from tasker.model.workers import PoolDemand, WorkerInfo
from tasker.store.pool import Database
from tasker.store.queries import load_queries


async def read_demand(database: Database, pools: Sequence[tuple[str, str]]) -> list[PoolDemand]:
    """One row for each (namespace, pool) given, in one query."""
    if not pools:
        return []
    rows = await database.fetch(
        load_queries("workers")["demand"],
        {"namespaces": [namespace for namespace, _ in pools], "pools": [pool for _, pool in pools]},
    )
    return [PoolDemand(**row) for row in rows]


async def read_workers(database: Database, namespace: str) -> list[WorkerInfo]:
    """The registered workers of a namespace, by name."""
    rows = await database.fetch(load_queries("workers")["workers"], {"namespace": namespace})
    return [WorkerInfo(**row) for row in rows]


async def drain_idle_workers(database: Database, namespace: str, names: Sequence[str]) -> list[str]:
    """Marks those of `names` that hold nothing; they get nothing from then on. Returns the marked ones."""
    rows = await database.fetch(
        load_queries("workers")["drain_idle_workers"], {"namespace": namespace, "names": list(names)}
    )
    return [row["drain_idle_workers"] for row in rows]


async def drain_pool(database: Database, namespace: str, pool: str) -> list[str]:
    """Marks every worker of the pool, busy or not; they get nothing from then on. Returns those newly marked."""
    rows = await database.fetch(load_queries("workers")["drain_pool"], {"namespace": namespace, "pool": pool})
    return [row["name"] for row in rows]


async def undrain_workers(database: Database, namespace: str, names: Sequence[str]) -> list[str]:
    """Takes the mark back. Returns those that had it."""
    rows = await database.fetch(
        load_queries("workers")["undrain_workers"], {"namespace": namespace, "names": list(names)}
    )
    return [row["undrain_workers"] for row in rows]


async def expire_workers(database: Database, namespace: str, names: Sequence[str], *, actor: str, reason: str) -> int:
    """Ends workers that are gone; returns how many steps they held."""
    expired = await database.fetch_value(
        load_queries("workers")["expire_workers"],
        {"namespace": namespace, "names": list(names), "actor": actor, "reason": reason},
    )
    return int(expired or 0)


async def sweep(database: Database, limit: int) -> dict[str, int]:
    """Repairs what time has broken; counts by kind of repair, empty while another sweep runs."""
    rows = await database.fetch(load_queries("workers")["sweep"], {"limit": limit})
    return {row["repair"]: row["repaired"] for row in rows}


async def hint_ready(database: Database) -> None:
    """Wakes idle workers; in a transaction of its own, since a commit that notifies holds a database-wide lock."""
    await database.fetch(load_queries("workers")["hint_ready"])
