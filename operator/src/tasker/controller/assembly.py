"""Builds the operator's object graph, in one place and in the order of what needs what; nothing runs yet.

Called by `app`. Each part is given what it uses. Nothing in memory is a truth: the cluster and the database are.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasker.controller.event_router import Caches, EventRouter, Queues
from tasker.controller.kube.cache import ObjectCache
from tasker.controller.kube.client import TASK, TASK_TEMPLATE, WORKER_POOL, Cluster, Manifest, Resource
from tasker.controller.kube.events import EventRecorder
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.handlers import HandlersHashes
from tasker.controller.pools.lost_pods import LostPodReconciler, LostPods
from tasker.controller.pools.managed import NamespaceReconciler
from tasker.controller.pools.manifests import ImageDefaults
from tasker.controller.pools.reconcile import PoolReconciler
from tasker.controller.pools.scaler import Scaler
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.loops import ChangeReader, UnofferedReader
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.resync import Resync
from tasker.controller.runtime.work_queue import WorkQueue
from tasker.controller.tasks.cache import TaskCache
from tasker.controller.tasks.orphans import OrphanReconciler
from tasker.controller.tasks.progress import ProgressPace
from tasker.controller.tasks.reconcile import TaskReconciler
from tasker.controller.tasks.summaries import SummaryReader
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.engine import Engine
from tasker.settings import OperatorSettings


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What `app` runs."""

    queues: tuple[WorkQueue, ...]
    events: EventRecorder
    router: EventRouter
    resync: Resync
    scaler: Scaler
    changes: ChangeReader
    unoffered: UnofferedReader


def make_caches(metrics: OperatorMetrics) -> Caches:
    """Empty caches of every kind that is watched."""
    return Caches(
        templates=TypedCache(TaskTemplate, metrics),
        tasks=TaskCache(metrics),
        pools=TypedCache(WorkerPool, metrics),
        deployments=TypedCache(Deployment, metrics),
        pods=TypedCache(Pod, metrics),
        terminating_namespaces=set(),
        lost_pods=LostPods(),
    )


def make_status_writer(cluster: Cluster, metrics: OperatorMetrics, caches: Caches) -> StatusWriter:
    """A writer whose answers go into the caches."""
    by_kind: dict[str, ObjectCache] = {
        TASK_TEMPLATE.kind: caches.templates,
        TASK.kind: caches.tasks,
        WORKER_POOL.kind: caches.pools,
    }

    def keep_newest(resource: Resource, manifest: Manifest) -> None:
        by_kind[resource.kind].put(manifest)

    return StatusWriter(cluster, metrics, newest=keep_newest)


def assemble(cluster: Cluster, engine: Engine, settings: OperatorSettings, metrics: OperatorMetrics) -> Parts:
    """Builds every part and ties them together. A queue is made after those that its reconciler adds to."""
    caches, states = make_caches(metrics), PoolStates()
    statuses = make_status_writer(cluster, metrics, caches)
    events = EventRecorder(cluster, metrics)
    progress = ProgressPace(settings.progress_writes_per_second)
    handlers_hashes = HandlersHashes(cluster)

    orphans = WorkQueue(
        "origin",
        OrphanReconciler(actions=engine.actions, progress=progress).reconcile,
        concurrency=4,
        metrics=metrics,
    )
    tasks = WorkQueue(
        "Task",
        TaskReconciler(
            tasks=caches.tasks,
            templates=caches.templates,
            orphan_queue=orphans,
            engine_tasks=engine.tasks,
            engine_actions=engine.actions,
            summaries=SummaryReader(engine.tasks.read_by_origin),
            cluster=cluster,
            statuses=statuses,
            events=events,
            progress=progress,
        ).reconcile,
        concurrency=32,
        metrics=metrics,
    )
    template_reconciler = TemplateReconciler(
        templates=caches.templates,
        waiting_tasks=caches.tasks,
        task_queue=tasks,
        engine_templates=engine.templates,
        statuses=statuses,
        events=events,
        environment=settings.environment,
    )
    templates = WorkQueue("TaskTemplate", template_reconciler.reconcile, concurrency=4, metrics=metrics)
    pools = WorkQueue(
        "WorkerPool",
        PoolReconciler(
            pools=caches.pools,
            deployments=caches.deployments,
            pods=caches.pods,
            terminating_namespaces=caches.terminating_namespaces,
            states=states,
            handlers_hashes=handlers_hashes,
            cluster=cluster,
            statuses=statuses,
            events=events,
            image_defaults=ImageDefaults(
                image=settings.worker_image,
                pull_policy=settings.worker_image_pull_policy,
                pull_secrets=settings.worker_image_pull_secrets,
            ),
            environment=settings.environment,
            worker_database_url=settings.worker_database_url,
        ).reconcile,
        concurrency=4,
        metrics=metrics,
    )
    namespaces = WorkQueue(
        "Namespace",
        NamespaceReconciler(
            pools=caches.pools,
            templates=caches.templates,
            terminating_namespaces=caches.terminating_namespaces,
            states=states,
            pool_queue=pools,
            engine_actions=engine.actions,
            cluster=cluster,
            events=events,
            grace_seconds=settings.managed_pool_grace_seconds,
            managed_spec=settings.managed_pool_spec,
        ).reconcile,
        concurrency=2,
        metrics=metrics,
    )
    lost_pods = WorkQueue(
        "Pod",
        LostPodReconciler(lost_pods=caches.lost_pods, engine_workers=engine.workers, metrics=metrics).reconcile,
        concurrency=2,
        metrics=metrics,
    )

    queues = Queues(
        templates=templates, tasks=tasks, pools=pools, namespaces=namespaces, orphans=orphans, lost_pods=lost_pods
    )
    router = EventRouter(
        caches=caches,
        queues=queues,
        handlers_hashes=handlers_hashes,
        metrics=metrics,
        watch_namespaces=settings.watch_namespaces,
    )
    return Parts(
        queues=(templates, tasks, pools, namespaces, orphans, lost_pods),
        events=events,
        router=router,
        resync=Resync(
            cluster=cluster,
            engine_tasks=engine.tasks,
            router=router,
            caches=caches,
            queues=queues,
            templates=template_reconciler,
            states=states,
            handlers_hashes=handlers_hashes,
            metrics=metrics,
            watch_namespaces=settings.watch_namespaces,
        ),
        scaler=Scaler(
            pools=caches.pools,
            deployments=caches.deployments,
            pods=caches.pods,
            terminating_namespaces=caches.terminating_namespaces,
            states=states,
            pool_queue=pools,
            engine_workers=engine.workers,
            cluster=cluster,
            events=events,
            metrics=metrics,
        ),
        unoffered=UnofferedReader(
            engine_workers=engine.workers,
            engine_tasks=engine.tasks,
            tasks=caches.tasks,
            states=states,
            task_queue=tasks,
            pool_queue=pools,
        ),
        changes=ChangeReader(
            changes=engine.changes, tasks=caches.tasks, task_queue=tasks, template_queue=templates, metrics=metrics
        ),
    )
