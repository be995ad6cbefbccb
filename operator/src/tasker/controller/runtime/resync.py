"""Everything listed and reconciled again: at the start, and every few minutes against events that never came.

What is not listed any more counts as deleted; every key is reconciled; runs whose Task is gone are cancelled. The order
matters for those: the open runs are read before the Tasks are listed, so that a Task that is not listed is truly gone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from tasker.controller.intake import Intake
from tasker.controller.kube.cache import SeenObjects
from tasker.controller.kube.client import (
    DEPLOYMENT,
    NAMESPACE,
    POD,
    TASK,
    TASK_TEMPLATE,
    WORKER_POOL,
    Manifest,
    Resource,
)
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.pools.state import PoolStates
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.controller.world import World

logger = logging.getLogger(__name__)

TakeIn = Callable[[Manifest, str | None], None]


class Resync:
    """One pass over the cluster; see the module's text."""

    def __init__(self, world: World, intake: Intake, templates: TemplateReconciler, states: PoolStates) -> None:
        self._world = world
        self._intake = intake
        self._templates = templates
        self._states = states

    async def run(self) -> None:
        """Lists all kinds. Raises `ClusterError` when a list fails, `StoreUnavailable` when the runs cannot be read."""
        world, intake = self._world, self._intake
        self._templates.forget()
        self._states.forget_applied()
        origins = await world.engine.tasks.open_origins()
        # Pods and Deployments first, so that pools are first looked at with their workers known.
        await self._list(POD, world.pods, intake.pod, selector=OWNED_SELECTOR)
        await self._list(DEPLOYMENT, world.deployments, intake.deployment, selector=OWNED_SELECTOR)
        await self._list(WORKER_POOL, world.pools, intake.pool)
        await self._list(TASK_TEMPLATE, world.templates, intake.template)
        await self._list(TASK, world.tasks, intake.task)
        await self._list_namespaces()
        for key in world.pools.all_keys():
            world.queues.pools.add(key)
            world.queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))
        gone = [origin for origin in origins if world.watches(origin.namespace) and origin.uid not in world.task_keys]
        for origin in gone:
            world.queues.origins.add(ObjectKey(namespace=origin.namespace, name=origin.uid))
        if gone:
            world.metrics.orphans_cancelled.inc(len(gone))
            logger.warning("%d runs are cancelled: their Tasks were deleted", len(gone))

    async def _list(self, resource: Resource, seen: SeenObjects, take_in: TakeIn, *, selector: str = "") -> None:
        before = set(seen.all_keys())
        listed: set[ObjectKey] = set()
        async for manifest in self._objects(resource, selector):
            metadata = manifest["metadata"]
            listed.add(ObjectKey(namespace=metadata["namespace"], name=metadata["name"]))
            take_in(manifest, None)
        # Only what was known before the list began: what came during it by events may be newer than the list.
        for key in before - listed:
            known = seen.get(key)
            if known is not None:
                take_in(known, "DELETED")

    async def _objects(self, resource: Resource, selector: str) -> AsyncIterator[Manifest]:
        for namespace in self._world.settings.watch_namespaces or (None,):
            async for manifest in self._world.cluster.list(resource, namespace, label_selector=selector):
                yield manifest

    async def _list_namespaces(self) -> None:
        """Namespaces that went while nobody looked; skipped when we serve only some and may not list them."""
        if self._world.settings.watch_namespaces:
            return
        listed = set()
        async for manifest in self._world.cluster.list(NAMESPACE):
            listed.add(manifest["metadata"]["name"])
            self._intake.namespace(manifest, None)
        self._world.going_namespaces &= listed
