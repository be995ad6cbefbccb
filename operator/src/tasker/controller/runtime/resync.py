"""Everything listed and reconciled again: at the start, and every few minutes against events that never came.

What is not listed any more counts as deleted; every key is reconciled; runs whose Task is gone are cancelled. The order
matters for those: the open runs are read before the Tasks are listed, so that a Task that is not listed is truly gone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from tasker.controller.event_router import Caches, EventRouter, Queues
from tasker.controller.kube.cache import ObjectCache
from tasker.controller.kube.client import (
    DEPLOYMENT,
    NAMESPACE,
    POD,
    TASK,
    TASK_TEMPLATE,
    WORKER_POOL,
    Cluster,
    Manifest,
    Resource,
)
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.engine.tasks import Tasks

logger = logging.getLogger(__name__)

Route = Callable[[Manifest, str | None], None]


class Resync:
    """One pass over the cluster; see the module's text."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        engine_tasks: Tasks,
        router: EventRouter,
        caches: Caches,
        queues: Queues,
        templates: TemplateReconciler,
        states: PoolStates,
        metrics: OperatorMetrics,
        watch_namespaces: tuple[str, ...],
    ) -> None:
        self._cluster = cluster
        self._engine_tasks = engine_tasks
        self._router = router
        self._caches = caches
        self._queues = queues
        self._templates = templates
        self._states = states
        self._metrics = metrics
        self._watch_namespaces = watch_namespaces

    async def run(self) -> None:
        """Lists all kinds. Raises `ClusterError` when a list fails, `StoreUnavailable` when the runs cannot be read."""
        caches, router = self._caches, self._router
        self._templates.forget()
        self._states.forget_applied()
        origins = await self._engine_tasks.open_origins()
        # Pods and Deployments first, so that pools are first reconciled with their workers known.
        await self._list(POD, caches.pods, router.pod, selector=OWNED_SELECTOR)
        await self._list(DEPLOYMENT, caches.deployments, router.deployment, selector=OWNED_SELECTOR)
        await self._list(WORKER_POOL, caches.pools, router.pool)
        await self._list(TASK_TEMPLATE, caches.templates, router.template)
        await self._list(TASK, caches.tasks, router.task)
        await self._list_namespaces()
        for key in caches.pools.all_keys():
            self._queues.pools.add(key)
            self._queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))
        gone = [
            origin
            for origin in origins
            if self._router.serves(origin.namespace) and caches.tasks.find_uid(origin.uid) is None
        ]
        for origin in gone:
            self._queues.orphans.add(ObjectKey(namespace=origin.namespace, name=origin.uid))
        if gone:
            self._metrics.orphans_cancelled.inc(len(gone))
            logger.warning("%d runs are cancelled: their Tasks were deleted", len(gone))

    async def _list(self, resource: Resource, known_objects: ObjectCache, route: Route, *, selector: str = "") -> None:
        before = set(known_objects.all_keys())
        listed: set[ObjectKey] = set()
        async for manifest in self._objects(resource, selector):
            metadata = manifest["metadata"]
            listed.add(ObjectKey(namespace=metadata["namespace"], name=metadata["name"]))
            route(manifest, None)
        # Only what was known before the list began: what came during it by events may be newer than the list.
        for key in before - listed:
            known = known_objects.get(key)
            if known is not None:
                route(known, "DELETED")

    async def _objects(self, resource: Resource, selector: str) -> AsyncIterator[Manifest]:
        for namespace in self._watch_namespaces or (None,):
            async for manifest in self._cluster.list(resource, namespace, label_selector=selector):
                yield manifest

    async def _list_namespaces(self) -> None:
        """Namespaces that were deleted unobserved; skipped when we serve only some and may not list them."""
        if self._watch_namespaces:
            return
        listed = set()
        async for manifest in self._cluster.list(NAMESPACE):
            listed.add(manifest["metadata"]["name"])
            self._router.namespace(manifest, None)
        self._caches.terminating_namespaces.intersection_update(listed)
