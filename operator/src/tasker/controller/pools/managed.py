"""A worker pool for a namespace that holds templates and has none; and its end when a person writes one.

The reconcile of the work queue "Namespace"; it also cancels the runs of a namespace that is being deleted. The pool
made here is called `default`, is marked by a label, and has the spec that the operator's settings give.
"""

from __future__ import annotations

import logging

from tasker.controller.kube.cache import is_going
from tasker.controller.kube.client import FIELD_MANAGER, NAMESPACE, WORKER_POOL, Manifest
from tasker.controller.kube.conditions import parse_timestamp
from tasker.controller.kube.events import Reason
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import MANAGED_BY_LABEL, MANAGED_POOL_LABEL, OPERATOR_NAME
from tasker.controller.pools.state import PoolStates, is_managed
from tasker.controller.world import ACTOR, World

logger = logging.getLogger(__name__)

POOL_NAME = "default"
RETIRE_SECONDS = 1.0
"""How often a managed pool that is to go is looked at, in seconds."""


class NamespaceReconciler:
    """Keeps one managed pool where it is needed and none where it is not."""

    def __init__(self, world: World, states: PoolStates) -> None:
        self._world = world
        self._states = states

    async def reconcile(self, key: ObjectKey) -> float | None:
        namespace = key.name
        if namespace in self._world.going_namespaces:
            await self._cancel_runs(namespace)
            return None
        pools = [pool for pool in self._world.pools.in_namespace(namespace) if not is_going(pool)]
        managed = [pool for pool in pools if is_managed(pool)]
        for pool in managed:
            if pool["metadata"]["generation"] > 1 and await self._adopted(pool):
                managed = []
        has_templates = any(not is_going(template) for template in self._world.templates.in_namespace(namespace))
        if not pools and has_templates:
            return await self._create(namespace)
        if managed and (len(pools) > len(managed) or not has_templates):
            return await self._retire(managed[0], takes_work=has_templates)
        for pool in managed:
            state = self._states.get(key_of(pool))
            if state is not None:
                state.retiring = False
        return None

    async def _cancel_runs(self, namespace: str) -> None:
        cancelled = await self._world.engine.actions.cancel_namespace(
            namespace, actor=ACTOR, reason="the namespace was deleted"
        )
        if cancelled:
            logger.info("namespace %s is being deleted: %d runs cancelled", namespace, cancelled)

    async def _create(self, namespace: str) -> float | None:
        """A pool, once the namespace has had templates for a moment: a person's own may be on its way."""
        oldest = min(
            parse_timestamp(template["metadata"]["creationTimestamp"])
            for template in self._world.templates.in_namespace(namespace)
        )
        grace = self._world.settings.managed_pool_grace_seconds
        left = grace - (self._world.now() - oldest).total_seconds()
        if left > 0:
            # A clock ahead of ours must not make this wait for longer than the grace.
            return min(left, grace)
        live = await self._world.cluster.get(NAMESPACE, None, namespace)
        if live is None or is_going(live):
            return None
        created = await self._world.cluster.apply(
            WORKER_POOL,
            {
                "apiVersion": WORKER_POOL.api_version,
                "kind": WORKER_POOL.kind,
                "metadata": {
                    "name": POOL_NAME,
                    "namespace": namespace,
                    "labels": {MANAGED_POOL_LABEL: "true", MANAGED_BY_LABEL: OPERATOR_NAME},
                },
                "spec": dict(self._world.settings.managed_pool_spec),
            },
        )
        self._world.pools.put(created)
        self._world.queues.pools.add(key_of(created))
        message = "The namespace has templates and had no WorkerPool. Write one of your own to replace this one."
        self._world.events.record(created, Reason.MANAGED_POOL_CREATED, message, once_per="created")
        return None

    async def _adopted(self, pool: Manifest) -> bool:
        """Whether a person has written the managed pool's own name: then it is theirs, and what was ours is dropped."""
        metadata = pool["metadata"]
        live = await self._world.cluster.get(WORKER_POOL, metadata["namespace"], metadata["name"])
        if live is None or not is_managed(live) or not _others_own_spec(live):
            return False
        # Applying nothing gives up every field that is only ours: the labels and the spec of the settings.
        released = await self._world.cluster.apply(
            WORKER_POOL,
            {
                "apiVersion": WORKER_POOL.api_version,
                "kind": WORKER_POOL.kind,
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            },
        )
        if is_managed(released):
            released = await self._world.cluster.merge(
                WORKER_POOL,
                metadata["namespace"],
                metadata["name"],
                {"metadata": {"labels": {MANAGED_POOL_LABEL: None, MANAGED_BY_LABEL: None}}},
            )
        self._world.pools.put(released)
        self._world.queues.pools.add(key_of(released))
        logger.info("pool %s/%s is a person's from now on", metadata["namespace"], metadata["name"])
        return True

    async def _retire(self, pool: Manifest, *, takes_work: bool) -> float | None:
        """Lets the managed pool run dry, then deletes it. `takes_work`: another pool goes on with what is queued."""
        key = key_of(pool)
        state = self._states.get(key)
        if state is None or state.demand is None:
            return RETIRE_SECONDS  # the scaler has not looked at it yet
        state.retiring = takes_work or state.demand.queued == 0
        if not state.retiring or state.demand.running > 0 or state.desired:
            return RETIRE_SECONDS
        metadata = pool["metadata"]
        await self._world.cluster.delete(WORKER_POOL, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        self._world.events.record(
            pool, Reason.MANAGED_POOL_REMOVED, "The managed pool is no longer needed.", once_per="removed"
        )
        return None


def _others_own_spec(pool: Manifest) -> bool:
    return any(
        entry.get("manager") != FIELD_MANAGER and "f:spec" in (entry.get("fieldsV1") or {})
        for entry in pool["metadata"].get("managedFields") or ()
    )
