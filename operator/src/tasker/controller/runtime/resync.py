"""Everything listed and reconciled again: at the start, and every few minutes against events that never came.

What was known before a list began and is not in it counts as deleted, as of the state that was listed; every key is
reconciled; runs whose Task is gone are cancelled. The order matters for those: the open runs are read before the Tasks
are listed, so that a Task that is not listed is truly gone. Objects are distinguished by their uid, names come again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

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
from tasker.controller.pools.handlers import HandlersHashes
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
        handlers_hashes: HandlersHashes,
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
        self._handlers_hashes = handlers_hashes
        self._metrics = metrics
        self._watch_namespaces = watch_namespaces

    async def run(self) -> None:
        """Lists all kinds. Raises `ClusterError` when a list fails, `StoreUnavailable` when the runs cannot be read."""
        caches, router = self._caches, self._router
        self._templates.forget()
        self._states.forget_applied()
        self._handlers_hashes.forget_all()
        origins = await self._engine_tasks.open_origins()
        # Pods and Deployments first, so that pools are first reconciled with their workers known.
        await self._list(POD, caches.pods, router.pod, selector=OWNED_SELECTOR)
        await self._list(DEPLOYMENT, caches.deployments, router.deployment, selector=OWNED_SELECTOR)
        await self._list(WORKER_POOL, caches.pools, router.pool)
        await self._list(TASK_TEMPLATE, caches.templates, router.template)
        tasks = await self._list(TASK, caches.tasks, router.task)
        await self._list_namespaces()
        for key in caches.pools.all_keys():
            self._queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))
        gone = [origin for origin in origins if router.serves(origin.namespace) and origin.uid not in tasks]
        for origin in gone:
            self._queues.orphans.add(ObjectKey(namespace=origin.namespace, name=origin.uid))
        if gone:
            self._metrics.orphans_cancelled.inc(len(gone))
            logger.warning("%d runs are cancelled: their Tasks were deleted", len(gone))

    async def _list(self, resource: Resource, cache: ObjectCache, route: Route, *, selector: str = "") -> set[str]:
        """Routes what there is of a kind, and the end of what there was; the uids of what there is."""
        listed: set[str] = set()
        for namespace in self._watch_namespaces or (None,):
            known = cache.all() if namespace is None else cache.in_namespace(namespace)
            # What comes by events while the list is read may be newer than the list, so its absence says nothing.
            before = {manifest["metadata"]["uid"]: manifest for manifest in known}
            listing = self._cluster.list(resource, namespace, label_selector=selector)
            async for manifest in listing:
                listed.add(manifest["metadata"]["uid"])
                route(manifest, None)
            for uid in before.keys() - listed:
                route(_as_of(before[uid], listing.version), "DELETED")
        return listed

    async def _list_namespaces(self) -> None:
        """Namespaces that were deleted unobserved; skipped when we serve only some and may not list them."""
        if self._watch_namespaces:
            return
        before = set(self._caches.terminating_namespaces)
        listed = set()
        async for manifest in self._cluster.list(NAMESPACE):
            listed.add(manifest["metadata"]["name"])
            self._router.namespace(manifest, None)
        self._caches.terminating_namespaces.difference_update(before - listed)


def _as_of(manifest: Manifest, version: str) -> Manifest:
    """The object the way a DELETED event of that version gives it."""
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
