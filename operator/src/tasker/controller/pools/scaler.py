"""How many workers each pool should have, about once a second and at once when work is announced.

One query reads the demand of all pools; `model.scaling.decide` decides; the number goes into the pool's state and the
pool is reconciled, which writes it. Fewer workers come about in an order that never takes work from anybody: workers
with empty hands are marked draining in the database, their pods are made the cheapest to delete, and only then is the
number lowered, by as many as there are such workers. Kubernetes deletes pods that are not ready before it looks at that
price, so while a busy worker is not ready no ready one is given up: the busy one would go in its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasker.controller.kube.cache import is_going, is_ready
from tasker.controller.kube.client import POD, ClusterError, Manifest
from tasker.controller.kube.events import Reason
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import DELETION_COST_ANNOTATION, POOL_LABEL
from tasker.controller.pools.state import PoolBounds, PoolState, PoolStates, identity_of
from tasker.controller.world import World
from tasker.model.scaling import ScaleInputs, decide
from tasker.model.workers import PoolDemand

logger = logging.getLogger(__name__)

VICTIM_COST = "-1000"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    key: ObjectKey
    manifest: Manifest
    bounds: PoolBounds
    state: PoolState
    live_replicas: int
    """What the Deployment asks for now."""


class Scaler:
    """Looks at every pool; see the module's text."""

    def __init__(self, world: World, states: PoolStates, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._states = states
        self._clock = clock

    async def look(self) -> None:
        """One round over all pools. Raises `StoreUnavailable` when the demand cannot be read."""
        pools = self._pools()
        demands = await self._world.engine.workers.demand([(pool.key.namespace, pool.key.name) for pool in pools])
        by_key = {ObjectKey(namespace=demand.namespace, name=demand.pool): demand for demand in demands}
        for pool in pools:
            demand = by_key.get(pool.key)
            if demand is not None:
                await self._look_at(pool, demand)

    def _pools(self) -> list[_Pool]:
        pools: list[_Pool] = []
        for manifest in self._world.pools.all():
            key = key_of(manifest)
            if is_going(manifest) or key.namespace in self._world.going_namespaces:
                continue
            identity = identity_of(manifest)
            deployment = self._world.deployments.get(ObjectKey(namespace=identity.namespace, name=identity.object_name))
            state = self._states.of(key, manifest, deployment)
            bounds = PoolBounds.of(manifest)
            live = (deployment or {}).get("spec", {}).get("replicas", bounds.min_replicas)
            pools.append(_Pool(key=key, manifest=manifest, bounds=bounds, state=state, live_replicas=live))
        return pools

    async def _look_at(self, pool: _Pool, demand: PoolDemand) -> None:
        before = (pool.state.desired, pool.state.reason, _shown(pool.state.demand))
        pool.state.demand = demand
        match pool.bounds.mode:
            case "operator":
                await self._decide(pool, demand)
            case "manual":
                wanted = pool.bounds.replicas if pool.bounds.replicas is not None else pool.bounds.min_replicas
                await self._follow(pool, wanted, "set by a person")
            case "external":
                await self._follow(pool, pool.bounds.replicas, "set by an autoscaler")
        if (pool.state.desired, pool.state.reason, _shown(demand)) != before:
            self._world.queues.pools.add(pool.key)

    async def _decide(self, pool: _Pool, demand: PoolDemand) -> None:
        state, bounds = pool.state, pool.bounds
        ceiling = 0 if state.retiring else bounds.max_replicas
        if state.retiring:
            await self._world.engine.workers.drain_pool(pool.key.namespace, pool.key.name)
        current = state.desired if state.desired is not None else pool.live_replicas
        decision = decide(
            ScaleInputs(
                now=self._clock(),
                current=current,
                queued=demand.queued,
                running=demand.running,
                slots=bounds.slots,
                min_replicas=min(bounds.min_replicas, ceiling),
                max_replicas=ceiling,
                up_seconds=bounds.up_seconds,
                down_seconds=bounds.down_seconds,
                idle_seconds=bounds.idle_seconds,
                max_step=bounds.max_step,
                memory=state.memory,
            )
        )
        state.desired = current
        if decision.replicas < current:
            possible, held_by = await self._free(pool, decision.replicas)
            if possible >= current:
                # The memory stays as it was: the next look tries again at once.
                state.reason = f"{demand.running} running; {held_by}"
                return
            partly = f"{current} → {possible}: the idle ones first"
            self._change(pool, possible, decision.reason if possible == decision.replicas else partly)
        elif decision.replicas > current:
            if demand.draining_workers:
                await self._keep(pool, decision.replicas - current)
            self._change(pool, decision.replicas, decision.reason)
        else:
            state.reason = decision.reason
        state.memory = decision.memory

    async def _follow(self, pool: _Pool, wanted: int | None, why: str) -> None:
        """Takes over a number that somebody else decided; None leaves the Deployment's own alone."""
        state = pool.state
        current = state.desired
        if wanted is None or current is None or wanted == current:
            state.desired = wanted
            state.reason = why
            return
        if wanted < current:
            # As many idle workers as there are go first; whoever set the number wants it now, so it is not held back.
            await self._free(pool, wanted)
        elif state.demand is not None and state.demand.draining_workers:
            await self._keep(pool, wanted - current)
        self._change(pool, wanted, f"{current} → {wanted}: {why}")

    def _change(self, pool: _Pool, replicas: int, reason: str) -> None:
        state = pool.state
        current = state.desired if state.desired is not None else 0
        up = replicas > current
        state.desired, state.reason, state.scaled = replicas, reason, True
        self._world.metrics.scale_decisions.labels("up" if up else "down", pool.bounds.mode).inc()
        self._world.events.record(pool.manifest, Reason.SCALED_UP if up else Reason.SCALED_DOWN, reason)
        logger.info("pool %s: %s", pool.key, reason)

    async def _free(self, pool: _Pool, target: int) -> tuple[int, str]:
        """Makes pods ready to go without taking work from any.

        The number, `target` or more, that may be asked for, and what holds more of them back. It counts from the pods
        that are there: those chosen a moment ago may not have gone yet, and must not be counted for a second time.
        """
        namespace = pool.key.namespace
        pods = {pod["metadata"]["name"]: pod for pod in self._pods(pool) if not is_going(pod)}
        surplus = len(pods) - target
        if surplus <= 0:
            return target, ""
        workers = {worker.name: worker for worker in await self._world.engine.workers.read(namespace)}
        busy = {name for name in pods if name in workers and workers[name].running > 0}
        exposed = min((name for name in busy if not is_ready(pods[name])), default=None)
        free = [name for name in sorted(pods) if name not in busy and not (exposed and is_ready(pods[name]))]
        # A pod without a worker has nothing to lose.
        empty = [name for name in free if name not in workers][:surplus]
        idle = [name for name in free if name in workers]
        idle.sort(key=lambda name: not workers[name].draining)  # those chosen earlier stay chosen
        drained: list[str] = []
        if len(empty) < surplus and idle:
            drained = await self._world.engine.workers.drain(namespace, idle[: surplus - len(empty)])
        await self._price(namespace, [*empty, *drained], VICTIM_COST)
        held_by = "waiting for a worker with empty hands to go"
        if exposed is not None:
            held_by = f"waiting for busy worker {exposed} to be ready: Kubernetes would delete it first"
        return len(pods) - len(empty) - len(drained), held_by

    async def _keep(self, pool: _Pool, count: int) -> None:
        """So many workers that were to go, and whose pods are still there, are wanted after all."""
        namespace = pool.key.namespace
        staying = {pod["metadata"]["name"] for pod in self._pods(pool) if not is_going(pod)}
        draining = [
            worker.name
            for worker in await self._world.engine.workers.read(namespace)
            if worker.draining and worker.pool == pool.key.name and worker.name in staying
        ]
        if draining:
            kept = await self._world.engine.workers.undrain(namespace, draining[:count])
            await self._price(namespace, kept, None)

    async def _price(self, namespace: str, pods: Sequence[str], cost: str | None) -> None:
        patch = {"metadata": {"annotations": {DELETION_COST_ANNOTATION: cost}}}

        async def price(name: str) -> None:
            try:
                await self._world.cluster.merge(POD, namespace, name, patch)
            except ClusterError as error:
                # The pod may be gone already; the number is what counts, the price only says which one.
                logger.debug("pod %s/%s keeps its deletion cost: %s", namespace, name, error)

        await asyncio.gather(*(price(name) for name in pods))

    def _pods(self, pool: _Pool) -> list[Manifest]:
        return [
            pod
            for pod in self._world.pods.in_namespace(pool.key.namespace)
            if (pod["metadata"].get("labels") or {}).get(POOL_LABEL) == pool.key.name
        ]


def _shown(demand: PoolDemand | None) -> tuple[int, int] | None:
    return None if demand is None else (demand.queued, demand.running)
