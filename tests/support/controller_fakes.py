"""A cluster and an engine in memory, for tests of decisions; the real ones are met in tests/cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from support.fake_cluster import FakeCluster
from tasker.controller.intake import Intake
from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Manifest
from tasker.controller.kube.events import EventRecorder
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.tasks.summaries import SummaryReader
from tasker.controller.world import Queues, World
from tasker.engine import Engine
from tasker.errors import TemplateNotFound
from tasker.model.task import (
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
from tasker.model.workers import PoolDemand, WorkerInfo
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
        self.registered_workers: dict[str, WorkerInfo] = {}
        self.demand: dict[tuple[str, str], PoolDemand] = {}
        self.expired: list[tuple[str, str]] = []
        self.reads = 0
        self.templates = FakeTemplates(self)
        self.tasks = FakeTasks(self)
        self.actions = FakeActions(self)
        self.workers = FakeWorkers(self)

    def change(self, task_uuid: UUID, **changes: Any) -> bool:
        for uid, run in self.runs.items():
            if run.task_uuid == task_uuid and not run.finished:
                self.runs[uid] = replace(run, **changes)
                return True
        return False


class FakeTemplates:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def register(self, namespace: str, name: str, spec: TemplateSpec) -> RegisteredTemplate:
        known = self._engine.registered_templates.get((namespace, name))
        self._engine.registered_templates[namespace, name] = spec
        created = known is None or known.revision != spec.revision
        return RegisteredTemplate(template_id=1, revision=spec.revision, created=created)

    async def counts(self, namespace: str, name: str) -> TemplateCounts:
        return TemplateCounts(running=0, waiting=0, complete=0, error=0)


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
        if created:
            self._engine.requests.append(request)
            self._engine.runs[request.origin_uid] = make_run(
                namespace=namespace,
                origin_uid=request.origin_uid,
                origin_name=request.origin_name,
                template_name=request.template_name,
                suspended=request.suspended,
            )
        return [SubmittedTask(task_uuid=self._engine.runs[request.origin_uid].task_uuid, created=created)]

    async def read_by_origin(self, origin_uids: Sequence[str]) -> list[TaskSummary]:
        self._engine.reads += 1
        return [self._engine.runs[uid] for uid in origin_uids if uid in self._engine.runs]

    async def open_origins(self, namespace: str | None = None) -> list[OpenOrigin]:
        return [
            OpenOrigin(namespace=run.namespace, name=run.origin_name or "", uid=uid, task_uuid=run.task_uuid)
            for uid, run in self._engine.runs.items()
            if not run.finished
        ]


class FakeActions:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def cancel(self, task_uuid: UUID, *, actor: str, reason: str) -> bool:
        return self._engine.change(task_uuid, state=TaskState.CANCELLED, completed_at=START)

    async def suspend(self, task_uuid: UUID) -> bool:
        return self._engine.change(task_uuid, suspended=True)

    async def resume(self, task_uuid: UUID) -> bool:
        return self._engine.change(task_uuid, suspended=False)

    async def cancel_by_origin(self, origin_uid: str, *, actor: str, reason: str) -> bool:
        run = self._engine.runs.get(origin_uid)
        return run is not None and self._engine.change(run.task_uuid, state=TaskState.CANCELLED, completed_at=START)

    async def cancel_namespace(self, namespace: str, *, actor: str, reason: str) -> int:
        opened = [
            run.task_uuid for run in self._engine.runs.values() if run.namespace == namespace and not run.finished
        ]
        return sum(self._engine.change(uuid, state=TaskState.CANCELLED, completed_at=START) for uuid in opened)


class FakeWorkers:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def demand(self, pools: Sequence[tuple[str, str]]) -> list[PoolDemand]:
        return [self._engine.demand.get(pool, make_demand(*pool)) for pool in pools]

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

    async def expire(self, namespace: str, names: Sequence[str], *, actor: str, reason: str) -> int:
        self._engine.expired += [(name, reason) for name in names]
        return 1


class FakeWorld(World):
    """A world on fakes, whose wall clock the test sets."""

    wall: datetime = START

    def now(self) -> datetime:
        return self.wall

    @property
    def fake_cluster(self) -> FakeCluster:
        assert isinstance(self.cluster, FakeCluster)
        return self.cluster

    @property
    def fake_engine(self) -> FakeEngine:
        return cast("FakeEngine", self.engine)

    def queue(self, name: str) -> FakeQueue:
        return cast("FakeQueue", getattr(self.queues, name))

    def pass_time(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)

    def give(self, intake: Intake, manifest: Mapping[str, Any]) -> Manifest:
        """A person applies the object, and its event arrives."""
        stored = self.fake_cluster.store(manifest)
        take_in = {TASK.kind: intake.task, TASK_TEMPLATE.kind: intake.template, WORKER_POOL.kind: intake.pool}
        take_in[stored["kind"]](stored, "ADDED")
        return stored

    def live(self, manifest: Mapping[str, Any]) -> Manifest:
        """The object as the cluster has it now."""
        key = key_of(manifest)
        return self.fake_cluster.objects[manifest["kind"], key.namespace, key.name]


def make_world(**settings: Any) -> tuple[FakeWorld, PoolStates, Intake]:
    metrics = OperatorMetrics()
    cluster, fake_engine = FakeCluster(), FakeEngine()
    engine = cast("Engine", fake_engine)
    world = FakeWorld(
        cluster=cluster,
        engine=engine,
        settings=OperatorSettings(worker_image="tasker-worker:1", worker_database_url="postgresql:///x", **settings),
        metrics=metrics,
        events=EventRecorder(cluster, metrics),
        statuses=StatusWriter(cluster, metrics, newest=lambda resource, manifest: world.remember(resource, manifest)),
        summaries=SummaryReader(fake_engine.tasks.read_by_origin),
    )
    world.queues = Queues(
        **{name: FakeQueue() for name in ("templates", "tasks", "pools", "namespaces", "origins", "lost_pods")}
    )
    states = PoolStates()
    return world, states, Intake(world, states)


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
        "suspended": False,
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
