"""Workers: demand, draining, what time has broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.model.workers import NO_WORKER_SECONDS, PoolDemand, UnofferedCallable, WorkerInfo


class Workers:
    """Calls on workers and on what they hold."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def demand(
        self, pools: Sequence[tuple[str, str]], template_hashes: Mapping[tuple[str, str], str] | None = None
    ) -> list[PoolDemand]:
        """One row for each (namespace, pool) given, in one query.

        `template_hashes` names the pod template that a pool's next worker is made from. Until one of it has registered,
        its workers may offer anything; of a pool that is not named, the worker that registered last tells.
        """
        if not pools:
            return []
        hashes = template_hashes or {}
        rows = await self._database.fetch(
            load_queries("workers")["demand"],
            {
                "namespaces": [namespace for namespace, _ in pools],
                "pools": [pool for _, pool in pools],
                "template_hashes": [hashes.get(pool) for pool in pools],
            },
        )
        return [PoolDemand(**row) for row in rows]

    async def unoffered_callables(self) -> list[UnofferedCallable]:
        """Callables for which steps have waited `NO_WORKER_SECONDS` and which no live worker offers, oldest first."""
        rows = await self._database.fetch(
            load_queries("workers")["unoffered_callables"], {"seconds": NO_WORKER_SECONDS}
        )
        return [UnofferedCallable(**row) for row in rows]

    async def read(self, namespace: str) -> list[WorkerInfo]:
        """The registered workers of a namespace, by name."""
        rows = await self._database.fetch(load_queries("workers")["workers"], {"namespace": namespace})
        return [WorkerInfo(**row) for row in rows]

    async def drain(self, namespace: str, names: Sequence[str]) -> list[str]:
        """Marks those of `names` that hold nothing; they get nothing from then on. Returns the marked ones."""
        rows = await self._database.fetch(
            load_queries("workers")["drain_idle_workers"], {"namespace": namespace, "names": list(names)}
        )
        return [row["drain_idle_workers"] for row in rows]

    async def drain_pool(self, namespace: str, pool: str) -> list[str]:
        """Marks every worker of the pool, busy or not; they get nothing from then on. Returns those newly marked."""
        rows = await self._database.fetch(load_queries("workers")["drain_pool"], {"namespace": namespace, "pool": pool})
        return [row["name"] for row in rows]

    async def undrain(self, namespace: str, names: Sequence[str]) -> list[str]:
        """Takes the mark back. Returns those that had it."""
        rows = await self._database.fetch(
            load_queries("workers")["undrain_workers"], {"namespace": namespace, "names": list(names)}
        )
        undrained = [row["undrain_workers"] for row in rows]
        if undrained:
            await self.hint_ready()
        return undrained

    async def expire(
        self,
        namespace: str,
        names: Sequence[str],
        *,
        actor: str,
        reason: str,
        error_type: str = "worker_crash_loop",
    ) -> int:
        """Ends workers that are gone; returns how many steps they held.

        `error_type` is what the failed attempts are called; the default is for workers that ended by themselves.
        """
        expired: int = await self._database.fetch_value(
            load_queries("workers")["expire_workers"],
            {"namespace": namespace, "names": list(names), "actor": actor, "reason": reason, "error_type": error_type},
        )
        return expired

    async def sweep(self, limit: int = 500) -> dict[str, int]:
        """Repairs what time has broken, at most `limit` of a kind; counts by kind, empty while another sweep runs."""
        rows = await self._database.fetch(load_queries("workers")["sweep"], {"limit": limit})
        repaired = {row["repair"]: row["repaired"] for row in rows}
        if repaired:
            await self.hint_ready()
        return repaired

    async def hint_ready(self) -> None:
        """Wakes idle workers."""
        await hint_ready(self._database)


async def hint_ready(database: Database) -> None:
    """Wakes idle workers; in a transaction of its own, since a commit that notifies holds a database-wide lock."""
    await database.fetch(load_queries("workers")["hint_ready"])
