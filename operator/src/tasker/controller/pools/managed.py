"""A worker pool for a namespace that holds templates and has none; and its end when a person writes one.

The reconcile of the work queue "Namespace"; it also cancels the runs of a namespace that is being deleted. The pool
made here is called `default`, is marked by a label, and has the spec that the operator's settings give.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from datetime import datetime

from tasker.controller.actor import ACTOR
from tasker.controller.kube.client import FIELD_MANAGER, NAMESPACE, WORKER_POOL, Cluster, ClusterError, Manifest
from tasker.controller.kube.conditions import parse_timestamp, utc_now
from tasker.controller.kube.events import EventRecorder, Reason
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.base import ObjectMeta
from tasker.controller.kube.resources.namespace import Namespace
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.controller.kube.resources.worker_pool import MANAGED_POOL_LABEL, WorkerPool, is_managed
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.manifests import MANAGED_BY_LABEL, OPERATOR_NAME
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.queues import KeyQueue
from tasker.engine.actions import Actions

logger = logging.getLogger(__name__)

POOL_NAME = "default"
_INVALID = 422
RETIRE_SECONDS = 1.0
"""How often a managed pool that is to go is reconciled, in seconds."""


class NamespaceReconciler:
    """Keeps one managed pool where it is needed and none where it is not."""

    def __init__(
        self,
        *,
        pools: TypedCache[WorkerPool],
        templates: TypedCache[TaskTemplate],
        terminating_namespaces: Set[str],
        states: PoolStates,
        pool_queue: KeyQueue,
        engine_actions: Actions,
        cluster: Cluster,
        events: EventRecorder,
        grace_seconds: float,
        managed_spec: Mapping[str, object],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pools = pools
        self._templates = templates
        self._terminating_namespaces = terminating_namespaces
        self._states = states
        self._pool_queue = pool_queue
        self._engine_actions = engine_actions
        self._cluster = cluster
        self._events = events
        self._grace_seconds = grace_seconds
        self._managed_spec = managed_spec
        self._now = now

    async def reconcile(self, key: ObjectKey) -> float | None:
        namespace = key.name
        if namespace in self._terminating_namespaces:
            await self._cancel_runs(namespace)
            return None
        # By metadata alone: a pool or a template that cannot be read is there all the same.
        pools = [pool for pool in self._pools.read_metadata(namespace) if not pool.is_being_deleted]
        managed = [pool for pool in pools if is_managed(pool)]
        for pool in managed:
            if pool.generation > 1 and await self._adopted(pool):
                managed = []
        has_templates = any(not template.is_being_deleted for template in self._templates.read_metadata(namespace))
        if not pools and has_templates:
            return await self._create(namespace)
        if managed and (len(pools) > len(managed) or not has_templates):
            return await self._retire(managed[0], takes_work=has_templates)
        for pool in managed:
            state = self._states.get(_key(pool))
            if state is not None:
                state.retiring = False
        return None

    async def _cancel_runs(self, namespace: str) -> None:
        cancelled = await self._engine_actions.cancel_namespace(
            namespace, actor=ACTOR, reason="the namespace was deleted"
        )
        logger.info("namespace %s is being deleted: %d runs cancelled", namespace, cancelled)

    async def _create(self, namespace: str) -> float | None:
        """A pool, once the namespace has had templates for a moment: a person's own may be on its way."""
        now = self._now()
        created_at = (
            parse_timestamp(template.creation_timestamp)
            for template in self._templates.read_metadata(namespace)
            if template.creation_timestamp is not None
        )
        left = self._grace_seconds - (now - min(created_at, default=now)).total_seconds()
        # A clock that is ahead of ours by more than the grace says nothing about how long this should wait.
        if 0 < left <= 2 * self._grace_seconds:
            return left
        live = await self._cluster.get(NAMESPACE, None, namespace)
        if live is None or Namespace.parse(live).is_being_deleted:
            return None
        if await self._cluster.get(WORKER_POOL, namespace, POOL_NAME) is not None:
            return None  # a person's own, whose event is on its way
        # A person may write one of that name at this moment. Without force nothing that they wrote is changed; and what
        # was added to it, where the two do not conflict, is taken back.
        created = await self._cluster.apply(
            WORKER_POOL,
            {
                "apiVersion": WORKER_POOL.api_version,
                "kind": WORKER_POOL.kind,
                "metadata": {
                    "name": POOL_NAME,
                    "namespace": namespace,
                    "labels": {MANAGED_POOL_LABEL: "true", MANAGED_BY_LABEL: OPERATOR_NAME},
                },
                "spec": dict(self._managed_spec),
            },
            force=False,
        )
        if _others_own_spec(created):
            await self._release(ObjectMeta.of(created))
            return None
        self._pools.put(created)
        self._pool_queue.add(key_of(created))
        message = "The namespace has templates and had no WorkerPool. Write one of your own to replace this one."
        self._events.record(created, Reason.MANAGED_POOL_CREATED, message, once_per="created")
        return None

    async def _adopted(self, pool: ObjectMeta) -> bool:
        """Whether a person has written the managed pool's own name: then it is theirs, and what was ours is dropped."""
        live = await self._cluster.get(WORKER_POOL, pool.namespace, pool.name)
        adopted = live is not None and is_managed(ObjectMeta.of(live)) and _others_own_spec(live)
        if adopted:
            await self._release(pool)
        return adopted

    async def _release(self, pool: ObjectMeta) -> None:
        namespace, name = pool.namespace, pool.name
        # Applying nothing gives up every field that is only ours: the labels and the spec of the settings.
        nothing = {
            "apiVersion": WORKER_POOL.api_version,
            "kind": WORKER_POOL.kind,
            "metadata": {"name": name, "namespace": namespace, "uid": pool.uid},
        }
        released: Manifest | None = None
        try:
            released = await self._cluster.apply(WORKER_POOL, nothing)
        except ClusterError as error:
            # What they changed is no pool on its own, so what the settings gave stays with it.
            if error.status != _INVALID:
                raise
        if released is None or is_managed(ObjectMeta.of(released)):
            released = await self._cluster.merge(
                WORKER_POOL,
                namespace,
                name,
                {"metadata": {"labels": {MANAGED_POOL_LABEL: None, MANAGED_BY_LABEL: None}}},
            )
        self._pools.put(released)
        self._pool_queue.add(key_of(released))
        logger.info("pool %s/%s is a person's from now on", namespace, name)

    async def _retire(self, pool: ObjectMeta, *, takes_work: bool) -> float | None:
        """Drains the managed pool, then deletes it. `takes_work`: another pool takes what is queued."""
        key = _key(pool)
        state = self._states.get(key)
        if state is None or state.demand is None:
            return RETIRE_SECONDS  # the scaler has not observed it yet
        state.retiring = takes_work or state.demand.queued == 0
        if not state.retiring or state.demand.running > 0 or state.desired:
            return RETIRE_SECONDS
        manifest = self._pools.get(key)
        await self._cluster.delete(WORKER_POOL, pool.namespace, pool.name, uid=pool.uid)
        if manifest is not None:
            message = "The managed pool is no longer needed."
            self._events.record(manifest, Reason.MANAGED_POOL_REMOVED, message, once_per="removed")
        return None


def _key(metadata: ObjectMeta) -> ObjectKey:
    return ObjectKey(namespace=metadata.namespace, name=metadata.name)


def _others_own_spec(pool: Manifest) -> bool:
    return any(
        entry.get("manager") != FIELD_MANAGER and "f:spec" in (entry.get("fieldsV1") or {})
        for entry in pool["metadata"].get("managedFields") or ()
    )
