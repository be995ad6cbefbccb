"""What an event means: which object is the newest now, and which keys need work because of it.

Called by the handlers of watch events and by the resync, which brings what events have missed. Types are the watch's:
ADDED, MODIFIED, DELETED, or None for an object that was listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Manifest, Resource
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.base import KubernetesObject, ObjectMeta
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.namespace import Namespace
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.handlers import HandlersHashes
from tasker.controller.pools.lost_pods import LostPods, loss_of
from tasker.controller.pools.manifests import POOL_LABEL
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.queues import KeyQueue
from tasker.controller.tasks.cache import TaskCache
from tasker.errors import InvalidResource

EventType = str | None

Viewed = TypeVar("Viewed", bound=KubernetesObject)


@dataclass(frozen=True, kw_only=True)
class Caches:
    """The newest objects of each kind that is watched."""

    templates: TypedCache[TaskTemplate]
    tasks: TaskCache
    pools: TypedCache[WorkerPool]
    deployments: TypedCache[Deployment]
    pods: TypedCache[Pod]
    terminating_namespaces: set[str]
    lost_pods: LostPods


@dataclass(frozen=True, kw_only=True)
class Queues:
    """One work queue a kind. The keys of `orphans` are (namespace, uid of a deleted Task); of `namespaces`, of the
    namespaces themselves; of `lost_pods`, of pods that vanished."""

    templates: KeyQueue
    tasks: KeyQueue
    pools: KeyQueue
    namespaces: KeyQueue
    orphans: KeyQueue
    lost_pods: KeyQueue


class EventRouter:
    """Puts objects into the caches and keys into the queues, one method a kind."""

    def __init__(
        self,
        *,
        caches: Caches,
        queues: Queues,
        handlers_hashes: HandlersHashes,
        metrics: OperatorMetrics,
        watch_namespaces: tuple[str, ...],
    ) -> None:
        self._caches = caches
        self._handlers_hashes = handlers_hashes
        self._queues = queues
        self._metrics = metrics
        self._watch_namespaces = watch_namespaces

    def template(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(TASK_TEMPLATE, raw, event_type)
        if event_type == "DELETED":
            self._caches.templates.remove(manifest)
        elif not self._caches.templates.put(manifest):
            return
        self._queues.templates.add(key)
        self._queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))

    def task(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(TASK, raw, event_type)
        if event_type == "DELETED":
            self._caches.tasks.remove(manifest)
            self._queues.orphans.add(ObjectKey(namespace=key.namespace, name=manifest["metadata"]["uid"]))
            return
        self._caches.tasks.put(manifest)
        self._queues.tasks.add(key)

    def pool(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest, key = self._count(WORKER_POOL, raw, event_type)
        pools = self._caches.pools
        known = pools.get(key)
        if event_type == "DELETED":
            pools.remove(manifest)
            for sibling in pools.in_namespace(key.namespace):
                self._queues.pools.add(key_of(sibling))  # the Secret they share loses an owner
        elif not pools.put(manifest):
            return
        self._queues.pools.add(key)
        generation = manifest["metadata"]["generation"]
        if known is None or event_type == "DELETED" or known["metadata"]["generation"] != generation:
            self._queues.namespaces.add(ObjectKey(namespace=key.namespace, name=key.namespace))

    def deployment(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        manifest = dict(raw)
        if event_type == "DELETED":
            self._caches.deployments.remove(manifest)
        elif not self._caches.deployments.put(manifest):
            return
        self._add_pool_of(manifest)

    def pod(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        # Nobody here reads a pod's spec.
        manifest = {name: value for name, value in raw.items() if name != "spec"}
        key, deleted = key_of(manifest), event_type == "DELETED"
        if deleted:
            self._caches.pods.remove(manifest)
        elif not self._caches.pods.put(manifest):
            return
        pod = _parse(Pod, manifest)
        loss = loss_of(pod, deleted=deleted) if pod is not None else None
        if loss is not None:
            self._caches.lost_pods.add(key, loss)
            self._queues.lost_pods.add(key)
        else:
            self._caches.lost_pods.discard(key)
        self._add_pool_of(manifest)

    def config_map(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        """Only those that a pool names matter; the pool reads the content itself."""
        key = key_of(raw)
        self._handlers_hashes.forget(key)
        for pool in self._caches.pools.read_namespace(key.namespace):
            if pool.spec.handlers_config_map == key.name:
                self._queues.pools.add(ObjectKey(namespace=key.namespace, name=pool.metadata.name))

    def namespace(self, raw: Mapping[str, Any], event_type: EventType) -> None:
        name = raw["metadata"]["name"]
        namespace = _parse(Namespace, dict(raw))
        if namespace is None or not self.serves(name):
            return
        terminating = self._caches.terminating_namespaces
        if event_type == "DELETED" or namespace.is_terminating:
            terminating.add(name)
            self._queues.namespaces.add(ObjectKey(namespace=name, name=name))
        elif name in terminating:
            terminating.discard(name)
            self._queues.namespaces.add(ObjectKey(namespace=name, name=name))

    def serves(self, namespace: str) -> bool:
        """Whether the operator serves the namespace."""
        return not self._watch_namespaces or namespace in self._watch_namespaces

    def _count(self, resource: Resource, raw: Mapping[str, Any], event_type: EventType) -> tuple[Manifest, ObjectKey]:
        self._metrics.events.labels(resource.kind, event_type or "LISTED").inc()
        return dict(raw), key_of(raw)

    def _add_pool_of(self, manifest: Manifest) -> None:
        """The pool that the object's label names needs work."""
        metadata = ObjectMeta.of(manifest)
        pool = metadata.labels.get(POOL_LABEL)
        if pool is not None:
            self._queues.pools.add(ObjectKey(namespace=metadata.namespace, name=pool))


def _parse(kind: type[Viewed], manifest: Manifest) -> Viewed | None:
    """The object, or None when it cannot be read: one oddity must not end a list of many."""
    try:
        return kind.parse(manifest)
    except InvalidResource:
        return None
