"""What the parts of the operator share: the cluster, the engine, what has been seen, and the queues of work.

Made once by `app` and handed to every reconciler and loop. Nothing in it is a truth: the cluster and the database are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tasker.controller.kube.cache import SeenObjects
from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Cluster, Manifest, Resource
from tasker.controller.kube.events import EventRecorder
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.tasks.status import is_finished
from tasker.controller.tasks.summaries import SummaryReader
from tasker.engine import Engine
from tasker.settings import OperatorSettings

ACTOR = "operator"
"""Who the transition log names for what the operator does."""


class Queue(Protocol):
    """The part of a work queue that others use."""

    def add(self, key: ObjectKey) -> None: ...

    def add_after(self, key: ObjectKey, seconds: float) -> None: ...


@dataclass(kw_only=True)
class Queues:
    """One work queue a kind. The keys of `origins` are (namespace, uid of a Task that is gone); of `namespaces`, of the
    namespaces themselves; of `lost_pods`, of pods that vanished."""

    templates: Queue
    tasks: Queue
    pools: Queue
    namespaces: Queue
    origins: Queue
    lost_pods: Queue


@dataclass(kw_only=True)
class World:
    """Everything that a reconciler may reach. `queues` is set right after construction: queues hold reconcilers."""

    cluster: Cluster
    engine: Engine
    settings: OperatorSettings
    metrics: OperatorMetrics
    events: EventRecorder
    statuses: StatusWriter
    summaries: SummaryReader
    templates: SeenObjects = field(default_factory=SeenObjects)
    tasks: SeenObjects = field(default_factory=SeenObjects)
    pools: SeenObjects = field(default_factory=SeenObjects)
    deployments: SeenObjects = field(default_factory=SeenObjects)
    pods: SeenObjects = field(default_factory=SeenObjects)
    going_namespaces: set[str] = field(default_factory=set)
    task_keys: dict[str, ObjectKey] = field(default_factory=dict)
    """Where the Task of a uid is."""
    lost_pod_reasons: dict[ObjectKey, str] = field(default_factory=dict)
    queues: Queues = field(init=False)

    def now(self) -> datetime:
        """The wall clock; statuses and TTLs go by it."""
        return datetime.now(UTC)

    def seen(self, resource: Resource) -> SeenObjects:
        """The newest objects of one of our kinds."""
        match resource.kind:
            case TASK_TEMPLATE.kind:
                return self.templates
            case TASK.kind:
                return self.tasks
            case WORKER_POOL.kind:
                return self.pools
            case _:
                raise ValueError(f"{resource.kind} is not a kind of ours")

    async def write_status(self, resource: Resource, current: Manifest, status: Mapping[str, Any]) -> bool:
        """Writes a status when it differs, and remembers what the API server answers. True when there was a write."""
        written = await self.statuses.write(resource, current, status)
        if written is None:
            return False
        self.remember(resource, written)
        return True

    def remember(self, resource: Resource, manifest: Manifest) -> None:
        """Keeps the newest object of one of our kinds."""
        if resource is TASK:
            self.remember_task(manifest)
        else:
            self.seen(resource).put(manifest)

    def watches(self, namespace: str) -> bool:
        """Whether the operator serves the namespace."""
        return not self.settings.watch_namespaces or namespace in self.settings.watch_namespaces

    def forget_task(self, uid: str) -> None:
        """The Task of this uid is gone: its run has to end."""
        key = self.task_keys.pop(uid, None)
        if key is not None:
            self.queues.origins.add(ObjectKey(namespace=key.namespace, name=uid))

    def remember_task(self, manifest: Manifest) -> None:
        """Keeps a Task and where it is."""
        if self.tasks.put(slim_task(manifest)):
            self.task_keys[manifest["metadata"]["uid"]] = key_of(manifest)


def slim_task(manifest: Manifest) -> Manifest:
    """The Task without what is large and no longer read: the context of a run, the results of one that ended."""
    status = manifest.get("status") or {}
    if "taskUuid" not in status:
        return manifest
    slimmed = {**manifest, "spec": {name: value for name, value in manifest["spec"].items() if name != "context"}}
    if is_finished(status):
        slimmed["status"] = {name: value for name, value in status.items() if name not in ("result", "failures")}
    return slimmed
