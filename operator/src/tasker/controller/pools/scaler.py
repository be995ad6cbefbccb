"""How many workers each pool should have, about once a second and at once when work is announced.

One query reads the demand of all pools; `model.scaling.decide` decides; the number goes into the pool's state and the
pool is reconciled, which writes it. Fewer workers come about in an order that never takes work from anybody: idle
workers are marked draining in the database, their pods are made the cheapest to delete, and only then is the number
lowered, by as many as there are such workers. Kubernetes deletes pods that are not ready before it compares deletion
costs, so while a busy worker is not ready no ready one is given up: the busy one would go in its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from tasker.controller.kube.client import POD, Cluster, ClusterError
from tasker.controller.kube.conditions import parse_timestamp, utc_now
from tasker.controller.kube.events import EventRecorder, Reason
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.manifests import DELETION_COST_ANNOTATION, START_SECONDS, PoolIdentity
from tasker.controller.pools.members import deployment_of, pods_of
from tasker.controller.pools.state import PoolState, PoolStates, rounded_age
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.queues import KeyQueue
from tasker.engine.workers import Workers
from tasker.model.scaling import ScaleInputs, decide
from tasker.model.workers import PoolDemand

logger = logging.getLogger(__name__)

DRAINED_COST = "-1000"
"""The deletion cost of pods that may go. Pods without one cost 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ScaledPool:
    """A pool in one round."""

    key: ObjectKey
    pool: WorkerPool
    state: PoolState
    live_replicas: int
    """The Deployment's `spec.replicas` now."""


class Scaler:
    """Decides for every pool; see the module's text."""

    def __init__(
        self,
        *,
        pools: TypedCache[WorkerPool],
        deployments: TypedCache[Deployment],
        pods: TypedCache[Pod],
        terminating_namespaces: Set[str],
        states: PoolStates,
        pool_queue: KeyQueue,
        engine_workers: Workers,
        cluster: Cluster,
        events: EventRecorder,
        metrics: OperatorMetrics,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pools = pools
        self._deployments = deployments
        self._pods = pods
        self._terminating_namespaces = terminating_namespaces
        self._states = states
        self._pool_queue = pool_queue
        self._engine_workers = engine_workers
        self._cluster = cluster
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._now = now

    async def reconcile_scale(self) -> None:
        """One round over all pools. Raises `StoreUnavailable` when the demand cannot be read."""
        scaled_pools = self._scaled_pools()
        demands = await self._engine_workers.demand(
            [(each.key.namespace, each.key.name) for each in scaled_pools],
            {
                (each.key.namespace, each.key.name): each.state.template_hash
                for each in scaled_pools
                if each.state.template_hash is not None
            },
        )
        by_key = {ObjectKey(namespace=demand.namespace, name=demand.pool): demand for demand in demands}
        for scaled in scaled_pools:
            demand = by_key.get(scaled.key)
            if demand is not None:
                await self._reconcile_pool(scaled, demand)

    def _scaled_pools(self) -> list[_ScaledPool]:
        scaled_pools: list[_ScaledPool] = []
        for pool in self._pools.read_all():
            if pool.is_being_deleted or pool.metadata.namespace in self._terminating_namespaces:
                continue
            key = ObjectKey(namespace=pool.metadata.namespace, name=pool.metadata.name)
            deployment = deployment_of(PoolIdentity.of(pool), self._deployments)
            state = self._states.of(key, pool, deployment)
            live = deployment.spec.replicas if deployment is not None else None
            live_replicas = live if live is not None else pool.spec.min_replicas
            scaled_pools.append(_ScaledPool(key=key, pool=pool, state=state, live_replicas=live_replicas))
        return scaled_pools

    async def _reconcile_pool(self, scaled: _ScaledPool, demand: PoolDemand) -> None:
        spec, state = scaled.pool.spec, scaled.state
        before = (state.desired, state.reason, _visible(state.demand))
        state.demand = demand
        match spec.scaling.mode:
            case "operator":
                await self._decide(scaled, demand)
            case "manual":
                wanted = spec.replicas if spec.replicas is not None else spec.min_replicas
                await self._follow(scaled, demand, wanted, "set by a person")
            case "external":
                await self._follow(scaled, demand, spec.replicas, "set by an autoscaler")
        if (state.desired, state.reason, _visible(demand)) != before:
            self._pool_queue.add(scaled.key)

    async def _decide(self, scaled: _ScaledPool, demand: PoolDemand) -> None:
        state, spec = scaled.state, scaled.pool.spec
        ceiling = 0 if state.retiring else spec.max_replicas
        if state.retiring:
            await self._engine_workers.drain_pool(scaled.key.namespace, scaled.key.name)
        current = state.desired if state.desired is not None else scaled.live_replicas
        decision = decide(
            ScaleInputs(
                now=self._clock(),
                current=current,
                queued=demand.queued,
                running=demand.running,
                slots=spec.slots,
                min_replicas=min(spec.min_replicas, ceiling),
                max_replicas=ceiling,
                up_seconds=spec.scaling.up_seconds,
                down_seconds=spec.scaling.down_seconds,
                idle_seconds=spec.scaling.idle_seconds,
                max_step=spec.scaling.max_step,
                memory=state.memory,
            )
        )
        state.desired = current
        if decision.replicas < current:
            possible, held_by = await self._drain(scaled, decision.replicas)
            if possible >= current:
                # The memory stays as it was: the next round tries again at once.
                state.reason = f"{demand.running} running; {held_by}"
                return
            partly = f"{current} → {possible}: the idle ones first"
            why = decision.reason if possible == decision.replicas else partly
            self._change(scaled, possible, Reason.SCALED_DOWN, why)
        elif decision.replicas > current:
            if demand.draining_workers:
                await self._undrain(scaled, decision.replicas - current)
            self._change(scaled, decision.replicas, Reason.SCALED_UP, decision.reason)
        else:
            state.reason = decision.reason
        state.memory = decision.memory

    async def _follow(self, scaled: _ScaledPool, demand: PoolDemand, wanted: int | None, why: str) -> None:
        """Takes over a number that somebody else decided; None leaves the Deployment's own alone."""
        state = scaled.state
        current = state.desired
        change = f"{current} → {wanted}: {why}"
        if wanted is None or current is None:
            state.desired, state.reason = wanted, why
        elif wanted > current:
            if demand.draining_workers:
                await self._undrain(scaled, wanted - current)
            self._change(scaled, wanted, Reason.SCALED_UP, change)
        elif wanted < current:
            # As many idle workers as there are go first; whoever set the number wants it now, so it is not held back.
            await self._drain(scaled, wanted)
            self._change(scaled, wanted, Reason.SCALED_DOWN, change)
        else:
            state.reason = why

    def _change(self, scaled: _ScaledPool, replicas: int, reason: Reason, why: str) -> None:
        state = scaled.state
        state.desired, state.reason, state.scaled = replicas, why, True
        direction = "up" if reason is Reason.SCALED_UP else "down"
        self._metrics.scale_decisions.labels(direction, scaled.pool.spec.scaling.mode).inc()
        self._events.record(scaled.pool.manifest, reason, why)
        logger.info("pool %s: %s", scaled.key, why)

    async def _drain(self, scaled: _ScaledPool, target: int) -> tuple[int, str]:
        """Makes pods ready to go without taking work from any.

        The number, `target` or more, that may be asked for, and what holds more of them back. It counts from the pods
        that are there: those chosen a moment ago may not have gone yet, and must not be counted for a second time.
        """
        namespace = scaled.key.namespace
        pods = self._staying_pods(scaled)
        surplus = len(pods) - target
        if surplus <= 0:
            return target, ""
        workers = {worker.name: worker for worker in await self._engine_workers.read(namespace)}
        busy = {name for name in pods if name in workers and workers[name].running > 0}
        # A worker that starts may register and claim steps before its pod is deleted.
        starting = {name for name, pod in pods.items() if name not in workers and self._may_register(pod)}
        exposed = min((name for name in busy | starting if not pods[name].is_ready), default=None)
        free = [
            name
            for name in sorted(pods)
            if name not in busy and name not in starting and not (exposed and pods[name].is_ready)
        ]
        # A pod whose worker cannot register has nothing to lose.
        empty = [name for name in free if name not in workers][:surplus]
        idle = [name for name in free if name in workers]
        idle.sort(key=lambda name: not workers[name].draining)  # those chosen earlier stay chosen
        chosen = idle[: surplus - len(empty)]
        drained = await self._engine_workers.drain(namespace, chosen) if chosen else []
        await self._set_deletion_cost(namespace, [*empty, *drained], DRAINED_COST)
        held_by = "waiting for a worker to become idle"
        if exposed is not None:
            kind = "busy worker" if exposed in busy else "starting worker"
            held_by = f"waiting for {kind} {exposed} to be ready: Kubernetes would delete it first"
        return len(pods) - len(empty) - len(drained), held_by

    def _may_register(self, pod: Pod) -> bool:
        """Whether a worker that has not registered yet may be about to: it runs, and has not for too long."""
        created = pod.metadata.creation_timestamp
        return (
            pod.is_running
            and created is not None
            and (self._now() - parse_timestamp(created)).total_seconds() < START_SECONDS
        )

    async def _undrain(self, scaled: _ScaledPool, count: int) -> None:
        """So many workers that were to go, and whose pods are still there, are wanted after all."""
        namespace = scaled.key.namespace
        staying = self._staying_pods(scaled)
        draining = [
            worker.name
            for worker in await self._engine_workers.read(namespace)
            if worker.draining and worker.pool == scaled.key.name and worker.name in staying
        ]
        if draining:
            kept = await self._engine_workers.undrain(namespace, draining[:count])
            await self._set_deletion_cost(namespace, kept, None)

    async def _set_deletion_cost(self, namespace: str, pods: Sequence[str], cost: str | None) -> None:
        """Says which pods go first when the number is lowered; None takes that back."""
        patch = {"metadata": {"annotations": {DELETION_COST_ANNOTATION: cost}}}

        async def set_one(name: str) -> None:
            try:
                await self._cluster.merge(POD, namespace, name, patch)
            except ClusterError as error:
                # The pod may be gone already; the number is what counts, the cost only says which one.
                logger.debug("pod %s/%s keeps its deletion cost: %s", namespace, name, error)

        await asyncio.gather(*(set_one(name) for name in pods))

    def _staying_pods(self, scaled: _ScaledPool) -> dict[str, Pod]:
        """The pool's pods that are not being deleted, by name."""
        return {pod.metadata.name: pod for pod in pods_of(scaled.key, self._pods) if not pod.is_being_deleted}


def _visible(demand: PoolDemand | None) -> tuple[int, int, int] | None:
    """The part of the demand that a status shows at once; the age in few steps, for it moves on with nothing else."""
    return None if demand is None else (demand.queued, demand.running, rounded_age(demand.oldest_ready_seconds))
