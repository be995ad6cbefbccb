"""A cluster and an engine in memory, for tests of decisions; the real ones are met in tests/cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from support.fake_cluster import FakeCluster
from tasker.controller.assembly import make_caches, make_status_writer
from tasker.controller.event_router import EventRouter, Queues
from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Cluster, Manifest
from tasker.controller.kube.events import EventRecorder
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.handlers import HandlersHashes
from tasker.controller.pools.lost_pods import LostPodReconciler
from tasker.controller.pools.managed import NamespaceReconciler
from tasker.controller.pools.manifests import ImageDefaults
from tasker.controller.pools.reconcile import PoolReconciler
from tasker.controller.pools.scaler import Scaler
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.resync import Resync
from tasker.controller.tasks.orphans import OrphanReconciler
from tasker.controller.tasks.progress import ProgressPace
from tasker.controller.tasks.reconcile import TaskReconciler
from tasker.controller.tasks.summaries import SummaryReader
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.engine import ChangeCursor, Changes, Engine
from tasker.errors import InvalidContext, TemplateNotFound
from tasker.model.identity import identity_key
from tasker.model.schemas import SchemaEnforcement, context_fault
from tasker.model.task import (
    Hold,
    OpenOrigin,
    RegisteredTemplate,
    StepCounts,
    SubmittedTask,
    TaskRequest,
    TaskSummary,
    TemplateCounts,
)
from tasker.model.template import TemplateSpec
from tasker.model.transitions import TaskState
from tasker.model.workers import PoolDemand, UnofferedCallable, WorkerInfo
from tasker.settings import OperatorSettings

START = datetime(2031, 1, 1, tzinfo=UTC)


class FakeQueue:
    """Remembers which keys were added."""

    def __init__(self) -> None:
        self.added: list[ObjectKey] = []

    def add(self, key: ObjectKey) -> None:
        self.added.append(key)

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        self.added.append(key)

    def take(self) -> list[ObjectKey]:
        """What was added since the last call."""
        added, self.added = self.added, []
        return added


class FakeEngine:
    """Templates, runs and workers, as far as the operator asks for them."""

    def __init__(self) -> None:
        self.registered_templates: dict[tuple[str, str], TemplateSpec] = {}
        self.runs: dict[str, TaskSummary] = {}
        self.requests: list[TaskRequest] = []
        self.identities: dict[tuple[str, str, str], str] = {}
        """Which Task's run holds a key of a template."""
        self.registered_workers: dict[str, WorkerInfo] = {}
        self.demand: dict[tuple[str, str], PoolDemand] = {}
        self.expired: list[tuple[str, str]] = []
        self.expired_as: list[str] = []
        self.acted: list[tuple[str, ...]] = []
        """What was done to runs and workers: the verb, about whom or what, and by whom and why where that is noted."""
        self.template_hashes: dict[tuple[str, str], str] = {}
        self.unoffered: list[UnofferedCallable] = []
        self.waiting_for_worker: frozenset[str] = frozenset()
        self.counts = TemplateCounts(running=0, waiting=0, complete=0, error=0)
        self.obstacle: str | None = None
        self.reads = 0
        self.templates = FakeTemplates(self)
        self.tasks = FakeTasks(self)
        self.actions = FakeActions(self)
        self.workers = FakeWorkers(self)
        self.changes = FakeChanges()
        self.installation = FakeInstallation()

    def change(self, task_uuid: UUID, **changes: Any) -> bool:
        for uid, run in self.runs.items():
            if run.task_uuid == task_uuid and not run.finished:
                self.runs[uid] = replace(run, **changes)
                return True
        return False


class FakeChanges:
    """`moved` are the Tasks' uids that the next read finds."""

    def __init__(self) -> None:
        self.moved: frozenset[str] = frozenset()
        self.cursors: list[ChangeCursor | None] = []

    async def read(self, cursor: ChangeCursor | None) -> Changes:
        self.cursors.append(cursor)
        moved, self.moved = self.moved, frozenset()
        return Changes(origin_uids=moved, cursor=ChangeCursor(snapshot=str(len(self.cursors)), timeline=1, at=START))

    async def listen(self) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "nothing is ever announced"


class FakeInstallation:
    """The database's owner."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def take(self, installation: str) -> None:
        self.taken.append(installation)

    async def require(self) -> None:
        return


class FakeTemplates:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def register(self, namespace: str, name: str, spec: TemplateSpec) -> RegisteredTemplate:
        known = self._engine.registered_templates.get((namespace, name))
        self._engine.registered_templates[namespace, name] = spec
        created = known is None or known.revision != spec.revision
        return RegisteredTemplate(template_id=1, revision=spec.revision, created=created)

    async def counts(self, namespace: str, name: str) -> TemplateCounts:
        return self._engine.counts


class FakeTasks:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def submit(self, namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
        [request] = requests
        request.check()
        assert request.origin_uid is not None
        spec = self._engine.registered_templates.get((namespace, request.template_name))
        if spec is None or request.template_version not in (None, spec.version):
            raise TemplateNotFound(f"no template {request.template_name} {request.template_version or ''}".rstrip())
        created = request.origin_uid not in self._engine.runs
        fault = self._context_fault(spec, request)
        if created and fault is not None and spec.schema_enforcement is SchemaEnforcement.ENFORCE:
            raise fault
        strategy = spec.identity.strategy
        key = identity_key(strategy, request.template_name, request.context, request.idempotency_key)
        if key is not None and created:
            holder = self._engine.identities.setdefault((namespace, request.template_name, key), request.origin_uid)
            if holder != request.origin_uid:
                run = self._engine.runs[holder]
                return [
                    SubmittedTask(task_uuid=run.task_uuid, created=False, duplicate=True, origin_name=run.origin_name)
                ]
        if created:
            self._engine.requests.append(request)
            self._engine.runs[request.origin_uid] = make_run(
                namespace=namespace,
                origin_uid=request.origin_uid,
                origin_name=request.origin_name,
                template_name=request.template_name,
                holds=frozenset({Hold.RESOURCE} if request.suspended else ()),
            )
        task_uuid = self._engine.runs[request.origin_uid].task_uuid
        return [SubmittedTask(task_uuid=task_uuid, created=created, context_fault=fault if created else None)]

    def _context_fault(self, spec: TemplateSpec, request: TaskRequest) -> InvalidContext | None:
        if spec.input_schema is None or spec.schema_enforcement is SchemaEnforcement.OFF:
            return None
        found = context_fault(spec.input_schema, request.context)
        return None if found is None else InvalidContext(*found)

    async def read_by_origin(self, origin_uids: Sequence[str]) -> list[TaskSummary]:
        self._engine.reads += 1
        return [self._engine.runs[uid] for uid in origin_uids if uid in self._engine.runs]

    async def open_origins(self, namespace: str | None = None) -> list[OpenOrigin]:
        return [
            OpenOrigin(namespace=run.namespace, name=run.origin_name or "", uid=uid, task_uuid=run.task_uuid)
            for uid, run in self._engine.runs.items()
            if not run.finished
        ]

    async def origins_waiting_for_worker(self) -> frozenset[str]:
        return self._engine.waiting_for_worker


class FakeActions:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def cancel(self, task_uuid: UUID, *, actor: str, reason: str) -> bool:
        self._engine.acted.append(("cancel", str(task_uuid), actor, reason))
        return self._engine.change(task_uuid, state=TaskState.CANCELLED, completed_at=START)

    async def suspend(self, task_uuid: UUID, *, actor: str, reason: str, hold: Hold = Hold.PERSON) -> bool:
        self._engine.acted.append(("suspend", str(task_uuid), hold, actor, reason))
        return self._engine.change(task_uuid, holds=self._holds(task_uuid) | {hold})

    async def resume(self, task_uuid: UUID, *, actor: str, reason: str, hold: Hold = Hold.PERSON) -> bool:
        self._engine.acted.append(("resume", str(task_uuid), hold, actor, reason))
        return self._engine.change(task_uuid, holds=self._holds(task_uuid) - {hold})

    def _holds(self, task_uuid: UUID) -> frozenset[Hold]:
        [run] = [run for run in self._engine.runs.values() if run.task_uuid == task_uuid]
        return run.holds

    async def cancel_by_origin(self, origin_uid: str, *, actor: str, reason: str) -> bool:
        self._engine.acted.append(("cancel_by_origin", origin_uid, actor, reason))
        run = self._engine.runs.get(origin_uid)
        return run is not None and self._engine.change(run.task_uuid, state=TaskState.CANCELLED, completed_at=START)

    async def cancel_namespace(self, namespace: str, *, actor: str, reason: str) -> int:
        self._engine.acted.append(("cancel_namespace", namespace, actor, reason))
        opened = [
            run.task_uuid for run in self._engine.runs.values() if run.namespace == namespace and not run.finished
        ]
        return sum(self._engine.change(uuid, state=TaskState.CANCELLED, completed_at=START) for uuid in opened)


class FakeWorkers:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def demand(
        self, pools: Sequence[tuple[str, str]], template_hashes: Mapping[tuple[str, str], str] | None = None
    ) -> list[PoolDemand]:
        self._engine.template_hashes = dict(template_hashes or {})
        return [self._engine.demand.get(pool, make_demand(*pool)) for pool in pools]

    async def unoffered_callables(self) -> list[UnofferedCallable]:
        return self._engine.unoffered

    async def read(self, namespace: str) -> list[WorkerInfo]:
        return list(self._engine.registered_workers.values())

    async def drain(self, namespace: str, names: Sequence[str]) -> list[str]:
        idle = [
            name
            for name in names
            if name in self._engine.registered_workers and self._engine.registered_workers[name].running == 0
        ]
        for name in idle:
            self._engine.registered_workers[name] = replace(self._engine.registered_workers[name], draining=True)
        return idle

    async def drain_pool(self, namespace: str, pool: str) -> list[str]:
        for name, worker in self._engine.registered_workers.items():
            self._engine.registered_workers[name] = replace(worker, draining=True)
        return list(self._engine.registered_workers)

    async def undrain(self, namespace: str, names: Sequence[str]) -> list[str]:
        for name in names:
            self._engine.registered_workers[name] = replace(self._engine.registered_workers[name], draining=False)
        return list(names)

    async def expire(
        self,
        namespace: str,
        names: Sequence[str],
        *,
        actor: str,
        reason: str,
        error_type: str = "worker_crash_loop",
    ) -> int:
        self._engine.acted.append(("expire", namespace, *names, actor, reason, error_type))
        self._engine.expired_as.append(error_type)
        self._engine.expired += [(name, reason) for name in names]
        return 1

    async def sweep(self) -> dict[str, int]:
        return {}


class ControllerKit:
    """Caches, queues and a router on fakes, the reconcilers that a test asks for, and a wall clock that it sets."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OperatorSettings(
            worker_image="tasker-worker:1", worker_database_url="postgresql:///x", **settings
        )
        self.metrics = OperatorMetrics()
        self.cluster, self.engine = FakeCluster(), FakeEngine()
        self.caches = make_caches(self.metrics)
        self.queues = Queues(**{field.name: FakeQueue() for field in fields(Queues)})
        self.states = PoolStates()
        self.statuses = make_status_writer(self._cluster, self.metrics, self.caches)
        self.events = EventRecorder(self._cluster, self.metrics)
        self.handlers_hashes = HandlersHashes(self._cluster)
        self.router = EventRouter(
            caches=self.caches,
            queues=self.queues,
            handlers_hashes=self.handlers_hashes,
            metrics=self.metrics,
            watch_namespaces=self.settings.watch_namespaces,
        )
        self.wall = START

    @property
    def _cluster(self) -> Cluster:
        return cast("Cluster", self.cluster)

    @property
    def _engine(self) -> Engine:
        return cast("Engine", self.engine)

    def now(self) -> datetime:
        return self.wall

    def pass_time(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)

    def queue(self, name: str) -> FakeQueue:
        return cast("FakeQueue", getattr(self.queues, name))

    def give(self, manifest: Mapping[str, Any]) -> Manifest:
        """A person applies the object, and its event arrives."""
        stored = self.cluster.store(manifest)
        routes = {
            TASK.kind: self.router.task,
            TASK_TEMPLATE.kind: self.router.template,
            WORKER_POOL.kind: self.router.pool,
        }
        routes[stored["kind"]](stored, "ADDED")
        return stored

    def take_events(self) -> list[tuple[str, str, str, str]]:
        """Kubernetes Events that were recorded since the last call: about which kind and object, reason and message."""
        taken, backlog = list[tuple[str, str, str, str]](), self.events._backlog
        while not backlog.empty():
            reason, event = backlog.get_nowait()
            about = event["involvedObject"]
            taken.append((about["kind"], about["name"], str(reason), event["message"]))
        return taken

    def take_event_names(self) -> dict[str, str]:
        """The names of those Events by their reasons, for tests of what is said once: of one name there is one."""
        names, backlog = dict[str, str](), self.events._backlog
        while not backlog.empty():
            reason, event = backlog.get_nowait()
            names[str(reason)] = event["metadata"]["name"]
        return names

    def live(self, manifest: Mapping[str, Any]) -> Manifest:
        """The object as the cluster has it now."""
        key = key_of(manifest)
        return self.cluster.objects[manifest["kind"], key.namespace, key.name]

    def template_reconciler(self) -> TemplateReconciler:
        return TemplateReconciler(
            templates=self.caches.templates,
            waiting_tasks=self.caches.tasks,
            task_queue=self.queues.tasks,
            engine_templates=self._engine.templates,
            statuses=self.statuses,
            events=self.events,
            environment=self.settings.environment,
            now=self.now,
        )

    def task_reconciler(self, progress: ProgressPace) -> TaskReconciler:
        return TaskReconciler(
            tasks=self.caches.tasks,
            templates=self.caches.templates,
            orphan_queue=self.queues.orphans,
            engine_tasks=self._engine.tasks,
            engine_actions=self._engine.actions,
            summaries=SummaryReader(self.engine.tasks.read_by_origin),
            cluster=self._cluster,
            statuses=self.statuses,
            events=self.events,
            progress=progress,
            now=self.now,
        )

    def orphan_reconciler(self, progress: ProgressPace) -> OrphanReconciler:
        return OrphanReconciler(actions=self._engine.actions, progress=progress)

    def pool_reconciler(self, clock: Callable[[], float] = time.monotonic) -> PoolReconciler:
        return PoolReconciler(
            pools=self.caches.pools,
            deployments=self.caches.deployments,
            pods=self.caches.pods,
            terminating_namespaces=self.caches.terminating_namespaces,
            states=self.states,
            handlers_hashes=self.handlers_hashes,
            cluster=self._cluster,
            statuses=self.statuses,
            events=self.events,
            image_defaults=ImageDefaults(image=self.settings.worker_image),
            environment=self.settings.environment,
            worker_database_url=self.settings.worker_database_url,
            clock=clock,
            now=self.now,
        )

    def namespace_reconciler(self) -> NamespaceReconciler:
        return NamespaceReconciler(
            pools=self.caches.pools,
            templates=self.caches.templates,
            terminating_namespaces=self.caches.terminating_namespaces,
            states=self.states,
            pool_queue=self.queues.pools,
            engine_actions=self._engine.actions,
            cluster=self._cluster,
            events=self.events,
            grace_seconds=self.settings.managed_pool_grace_seconds,
            managed_spec=self.settings.managed_pool_spec,
            now=self.now,
        )

    def lost_pod_reconciler(self) -> LostPodReconciler:
        return LostPodReconciler(
            lost_pods=self.caches.lost_pods, engine_workers=self._engine.workers, metrics=self.metrics
        )

    def scaler(self, clock: Callable[[], float]) -> Scaler:
        return Scaler(
            pools=self.caches.pools,
            deployments=self.caches.deployments,
            pods=self.caches.pods,
            terminating_namespaces=self.caches.terminating_namespaces,
            states=self.states,
            pool_queue=self.queues.pools,
            engine_workers=self._engine.workers,
            cluster=self._cluster,
            events=self.events,
            metrics=self.metrics,
            clock=clock,
            now=self.now,
        )

    def resync(self) -> Resync:
        return Resync(
            cluster=self._cluster,
            engine_tasks=self._engine.tasks,
            router=self.router,
            caches=self.caches,
            queues=self.queues,
            templates=self.template_reconciler(),
            states=self.states,
            handlers_hashes=self.handlers_hashes,
            metrics=self.metrics,
            watch_namespaces=self.settings.watch_namespaces,
        )


def make_run(**changes: Any) -> TaskSummary:
    fields: dict[str, Any] = {
        "namespace": "default",
        "task_uuid": uuid4(),
        "origin_uid": "u",
        "origin_name": "t",
        "template_name": "order",
        "template_version": "1.0.0",
        "revision": "0123456789abcdef",
        "state": TaskState.STEPS_IN_PROCESS,
        "holds": frozenset(),
        "created_at": START,
        "started_at": START,
        "completed_at": None,
        "counts": StepCounts(total=4, pending=3, ready=1, running=0, waiting=0, complete=0, failed=0, cancelled=0),
        "failures": (),
        "leaf_results": None,
        "leaf_results_truncated": False,
        "error": None,
    }
    return TaskSummary(**fields | changes)


def make_demand(namespace: str, pool: str, *, queued: int = 0, running: int = 0, draining: int = 0) -> PoolDemand:
    return PoolDemand(
        namespace=namespace,
        pool=pool,
        queued=queued,
        running=running,
        oldest_ready_seconds=0.0,
        live_workers=0,
        draining_workers=draining,
    )


def make_worker(name: str, *, running: int = 0, draining: bool = False, pool: str = "default") -> WorkerInfo:
    return WorkerInfo(
        name=name, pool=pool, slots=10, version="1", running=running, draining=draining, lease_until=START
    )


def template(name: str = "order", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": TASK_TEMPLATE.api_version,
        "kind": TASK_TEMPLATE.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"version": "1.0.0", "steps": [{"name": "a", "handler": {"callable": "a"}}], **spec},
    }


def task(name: str = "t", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": TASK.api_version,
        "kind": TASK.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"templateRef": {"name": "order"}, "context": {}, **spec},
    }


def pool(name: str = "default", *, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": WORKER_POOL.api_version,
        "kind": WORKER_POOL.kind,
        "metadata": {"name": name, "namespace": "default", "labels": labels or {}},
        "spec": {"handlers": ["h"], **spec},
    }
