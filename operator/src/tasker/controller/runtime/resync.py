"""Everything listed and reconciled again: at the start, and every few minutes against events that never came.

What was known before a list began and is not in it counts as deleted, as of the state that was listed; every key is
reconciled; runs whose Task is gone are cancelled. The order matters for those: the open runs are read before the Tasks
are listed, so that a Task that is not listed is truly gone. Objects are told apart by their uid, names come again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

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
        tasks = await self._list(TASK, world.tasks, intake.task)
        await self._list_namespaces()
        for key in world.pools.all_keys():
            world.queues.pools.add(key)
            world.queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))
        gone = [origin for origin in origins if world.watches(origin.namespace) and origin.uid not in tasks]
        for origin in gone:
            world.task_keys.pop(origin.uid, None)
            world.queues.origins.add(ObjectKey(namespace=origin.namespace, name=origin.uid))
        if gone:
            world.metrics.orphans_cancelled.inc(len(gone))
            logger.warning("%d runs are cancelled: their Tasks were deleted", len(gone))

    async def _list(self, resource: Resource, seen: SeenObjects, take_in: TakeIn, *, selector: str = "") -> set[str]:
        """Takes in what there is of a kind, and the end of what there was; the uids of what there is."""
        listed: set[str] = set()
        for namespace in self._world.settings.watch_namespaces or (None,):
            known = seen.all() if namespace is None else seen.in_namespace(namespace)
            # What comes by events while the list is read may be newer than the list, so its absence says nothing.
            before = {manifest["metadata"]["uid"]: manifest for manifest in known}
            listing = self._world.cluster.list(resource, namespace, label_selector=selector)
            async for manifest in listing:
                listed.add(manifest["metadata"]["uid"])
                take_in(manifest, None)
            for uid in before.keys() - listed:
                take_in(_as_of(before[uid], listing.version), "DELETED")
        return listed

    async def _list_namespaces(self) -> None:
        """Namespaces that went while nobody looked; skipped when we serve only some and may not list them."""
        if self._world.settings.watch_namespaces:
            return
        before = set(self._world.going_namespaces)
        listed = set()
        async for manifest in self._world.cluster.list(NAMESPACE):
            listed.add(manifest["metadata"]["name"])
            self._intake.namespace(manifest, None)
        self._world.going_namespaces -= before - listed


def _as_of(manifest: Manifest, version: str) -> Manifest:
    """The object the way a DELETED event of that version gives it."""
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
