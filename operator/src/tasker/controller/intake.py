"""What an event means: which object is the newest now, and which keys need work because of it.

Called by the doorways in `handlers` and by the resync, which brings what events have missed. Types are the watch's:
ADDED, MODIFIED, DELETED, or None for an object that was simply there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasker.controller.kube.cache import is_going
from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Manifest, Resource
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.lost_pods import loss_of
from tasker.controller.pools.manifests import POOL_LABEL
from tasker.controller.pools.state import PoolStates, handlers_config_map
from tasker.controller.world import World

EventType = str | None


class Intake:
    """Takes objects in, one method a kind."""

    def __init__(self, world: World, states: PoolStates) -> None:
        self._world = world
        self._states = states

    def template(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(TASK_TEMPLATE, raw, event_type)
        if event_type == "DELETED":
            self._world.templates.remove(manifest)
        elif not self._world.templates.put(manifest):
            return
        self._world.queues.templates.add(key)
        self._world.queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))

    def task(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(TASK, raw, event_type)
        uid = manifest["metadata"]["uid"]
        if event_type == "DELETED":
            self._world.tasks.remove(manifest)
            self._world.task_keys.setdefault(uid, key)
            self._world.forget_task(uid)
            return
        self._world.remember_task(manifest)
        self._world.queues.tasks.add(key)

    def pool(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(WORKER_POOL, raw, event_type)
        known = self._world.pools.get(key)
        if event_type == "DELETED":
            self._world.pools.remove(manifest)
            for sibling in self._world.pools.in_namespace(key.namespace):
                self._world.queues.pools.add(key_of(sibling))  # the Secret they share loses an owner
        elif not self._world.pools.put(manifest):
            return
        self._world.queues.pools.add(key)
        generation = manifest["metadata"]["generation"]
        if known is None or event_type == "DELETED" or known["metadata"]["generation"] != generation:
            self._world.queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))

    def deployment(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, pool = _of_pool(raw)
        if event_type == "DELETED":
            self._world.deployments.remove(manifest)
        elif not self._world.deployments.put(manifest):
            return
        if pool is not None:
            self._world.queues.pools.add(pool)

    def pod(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, pool = _of_pool(raw)
        key = key_of(manifest)
        loss = loss_of(manifest, deleted=event_type == "DELETED")
        if event_type == "DELETED":
            self._world.pods.remove(manifest)
        elif not self._world.pods.put(_slim_pod(manifest)):
            return
        if loss is not None:
            self._world.lost_pod_reasons[key] = loss
            self._world.queues.lost_pods.add(key)
        else:
            self._world.lost_pod_reasons.pop(key, None)
        if pool is not None:
            self._world.queues.pools.add(pool)

    def config_map(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        """Only those that a pool names matter; the pool reads the content itself."""
        key = key_of(raw)
        for pool in self._world.pools.in_namespace(key.namespace):
            if handlers_config_map(pool) == key.name:
                self._world.queues.pools.add(key_of(pool))

    def namespace(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        name = raw["metadata"]["name"]
        if not self._world.watches(name):
            return
        going = event_type == "DELETED" or is_going(raw) or (raw.get("status") or {}).get("phase") == "Terminating"
        if going:
            self._world.going_namespaces.add(name)
            self._world.queues.namespaces.add(ObjectKey(namespace=name, name=name))
        elif name in self._world.going_namespaces:
            self._world.going_namespaces.discard(name)
            self._world.queues.namespaces.add(ObjectKey(namespace=name, name=name))

    def _count(self, resource: Resource, raw: Mapping[str, Any], event_type: EventType) -> tuple[Manifest, ObjectKey]:
        self._world.metrics.events.labels(resource.kind, event_type or "LISTED").inc()
        return dict(raw), key_of(raw)


def _of_pool(raw: Mapping[str, Any]) -> tuple[Manifest, ObjectKey | None]:
    """The object, and the pool that its label names."""
    pool = (raw["metadata"].get("labels") or {}).get(POOL_LABEL)
    namespace = raw["metadata"]["namespace"]
    return dict(raw), ObjectKey(namespace=namespace, name=pool) if pool else None


def _slim_pod(pod: Manifest) -> Manifest:
    """The pod without its spec, which nobody here reads."""
    return {name: value for name, value in pod.items() if name != "spec"}
