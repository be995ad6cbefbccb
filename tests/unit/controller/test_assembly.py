"""The parts as they are assembled: one object of each kind goes through router, queue and reconciler to its effects.

Everything is real but the connections: the cluster and the engine are in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from support.controller_fakes import START, FakeEngine, make_demand, make_run, make_worker, pool, task, template
from support.fake_cluster import FakeCluster
from support.virtual_time import settle
from tasker.controller.assembly import Parts, assemble
from tasker.controller.kube.client import Manifest
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import Pacer
from tasker.controller.runtime.work_queue import WorkQueue
from tasker.engine import Engine
from tasker.model.transitions import TaskState
from tasker.model.workers import UnofferedCallable
from tasker.settings import OperatorSettings

NAME = "tasker-worker-default"
KEY = ObjectKey(namespace="default", name="default")


class Operator:
    """The parts on a cluster and an engine in memory. Its queues run inside of `working`."""

    def __init__(self, **settings: Any) -> None:
        self.cluster, self.engine, self.metrics = FakeCluster(), FakeEngine(), OperatorMetrics()
        self.settings = OperatorSettings(
            **{
                "worker_image": "registry.example/worker:1",
                "worker_image_pull_policy": "Never",
                "worker_image_pull_secrets": ("registry",),
                "worker_database_url": "postgresql:///workers",
                "managed_pool_grace_seconds": 0.0,
                "managed_pool_spec": {"handlers": ["managed"]},
                **settings,
            }
        )
        self.parts: Parts = assemble(self.cluster, cast("Engine", self.engine), self.settings, self.metrics)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        running = [asyncio.create_task(part()) for part in (self.parts.events.run, *(q.run for q in self.parts.queues))]
        try:
            yield
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def settle(self) -> None:
        """Everything is done that can be done now."""
        async with asyncio.timeout(30):
            while not all(queue.idle() for queue in self.parts.queues):  # noqa: ASYNC110 - they tell nobody
                await asyncio.sleep(0.001)
        await settle(50)

    async def give(self, manifest: Mapping[str, Any], event_type: str = "ADDED") -> Manifest:
        """Somebody writes the object, its event arrives, and the operator does what it has to."""
        stored = self.cluster.store(manifest)
        self.route(stored, event_type)
        await self.settle()
        return stored

    async def remove(self, manifest: Mapping[str, Any]) -> None:
        metadata = manifest["metadata"]
        self.route(self.cluster.remove(manifest["kind"], metadata.get("namespace"), metadata["name"]), "DELETED")
        await self.settle()

    def route(self, manifest: Manifest, event_type: str) -> None:
        router = self.parts.router
        routes = {
            "TaskTemplate": router.template,
            "Task": router.task,
            "WorkerPool": router.pool,
            "Deployment": router.deployment,
            "Pod": router.pod,
            "ConfigMap": router.config_map,
            "Namespace": router.namespace,
        }
        routes[manifest["kind"]](manifest, event_type)

    def found(self, kind: str, name: str, namespace: str = "default") -> Manifest:
        return self.cluster.objects[kind, namespace, name]

    def run_of(self, made: Manifest) -> str:
        return str(made["metadata"]["uid"])

    def change_run(self, made: Manifest, **changes: Any) -> None:
        uid = self.run_of(made)
        self.engine.runs[uid] = replace(self.engine.runs[uid], **changes)
        self.engine.changes.moved = frozenset({uid})

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"tasker_operator_{name}", labels)


def worker_pod(name: str) -> dict[str, Any]:
    labels = dict(each.split("=") for each in OWNED_SELECTOR.split(",")) | {"tasker.dev/pool": "default"}
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


async def test_a_task_goes_from_its_template_to_its_end_and_its_run_goes_with_it() -> None:
    operator = Operator()
    async with operator.working():
        waiting = await operator.give(task())
        accepted = find(operator.found("Task", "t")["status"], "Accepted")
        assert accepted is not None and accepted["reason"] == "TemplateNotFound"
        await operator.give(template())
        ready = find(operator.found("TaskTemplate", "order")["status"], "Ready")
        assert ready is not None and ready["status"] == "True"
        assert len(operator.engine.requests) == 1, "the template has called the Task"
        operator.change_run(waiting, state=TaskState.COMPLETE, completed_at=START)
        await operator.parts.changes.read(Pacer(60.0))
        await operator.settle()
        assert operator.found("Task", "t")["status"]["phase"] == "Succeeded"
        other = await operator.give(task("other"))
        await operator.remove(other)
        assert operator.engine.acted == [
            ("cancel_by_origin", operator.run_of(other), "operator", "the Task was deleted")
        ]
        reasons = {found["reason"] for (kind, _, _), found in operator.cluster.objects.items() if kind == "Event"}
        assert reasons >= {"TemplateRegistered", "TaskAccepted", "TaskSucceeded"}
    assert operator.value("events_total", kind="Task", type="ADDED") == 2
    assert operator.value("events_total", kind="Task", type="DELETED") == 1
    assert operator.value("kubernetes_events_total", reason="TaskSucceeded", outcome="posted") == 1
    assert operator.value("status_writes_total", kind="Task", outcome="written") == 2
    assert operator.value("status_writes_total", kind="TaskTemplate", outcome="written") == 1
    for kind in ("Task", "TaskTemplate", "origin"):
        succeeded = operator.value("reconciles_total", kind=kind, outcome="success")
        assert succeeded is not None and succeeded >= 1
        assert operator.value("reconciles_total", kind=kind, outcome="error") is None


async def test_templates_and_workers_are_of_the_installations_environment() -> None:
    operator = Operator(environment="test")
    steps = [{"name": "a", "handler": {"callable": "a"}}]
    environments = {name: {"a": {"timeoutSeconds": seconds}} for name, seconds in (("test", 7), ("production", 8))}
    async with operator.working():
        await operator.give(template(steps=steps, environments=environments))
        [container] = operator.found("Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    [step] = operator.engine.registered_templates["default", "order"].steps
    assert step.timeout_seconds == 7
    assert {"name": "TASKER_ENV", "value": "test"} in container["env"]


async def test_a_template_whose_tasks_move_shows_it_a_while_later() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(template())
        made = await operator.give(task())
        await operator.parts.changes.start()
        operator.change_run(made, state=TaskState.COMPLETE, completed_at=START)
        assert operator.value("queue_depth", kind="TaskTemplate") == 0
        await operator.parts.changes.read(Pacer(60.0))
        assert operator.value("queue_depth", kind="TaskTemplate") == 1
    assert [cursor and cursor.snapshot for cursor in operator.engine.changes.cursors] == [None, "1"]


async def test_a_namespace_with_a_template_gets_workers_and_demand_gets_more_of_them() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(template())
        assert operator.found("WorkerPool", "default")["spec"]["handlers"] == ["managed"]
        pod = operator.found("Deployment", NAME)["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert (container["image"], container["imagePullPolicy"]) == ("registry.example/worker:1", "Never")
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        secret = operator.found("Secret", "tasker-database")
        assert secret["data"] == {"DATABASE_URL": "cG9zdGdyZXNxbDovLy93b3JrZXJz"}
        assert operator.found("Deployment", NAME)["spec"]["replicas"] == 0

        operator.engine.demand["default", "default"] = make_demand("default", "default", queued=11)
        await operator.parts.scaler.reconcile_scale()
        await operator.settle()
        assert operator.found("Deployment", NAME)["spec"]["replicas"] == 2
        assert set(operator.engine.template_hashes) == {("default", "default")}
        assert operator.value("scale_decisions_total", direction="up", mode="operator") == 1

        await operator.remove(operator.found("TaskTemplate", "order"))
        assert ("WorkerPool", "default", "default") in operator.cluster.objects, "it has work"
    for kind in ("Namespace", "WorkerPool"):
        assert operator.value("reconciles_total", kind=kind, outcome="error") is None


async def test_a_managed_pool_retires_through_the_scaler_when_nobody_needs_it() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(template())
        await operator.parts.scaler.reconcile_scale()
        await operator.settle()
        await operator.remove(operator.found("TaskTemplate", "order"))
    assert ("WorkerPool", "default", "default") not in operator.cluster.objects


async def test_workers_that_go_are_drained_and_their_pods_marked() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(pool(scaling={"idleSeconds": 0}))
        live = operator.found("Deployment", NAME)
        await operator.give({**live, "spec": {**live["spec"], "replicas": 1}}, "MODIFIED")
        await operator.give(worker_pod("p0"))
        operator.engine.registered_workers["p0"] = make_worker("p0")
        operator.engine.demand["default", "default"] = make_demand("default", "default", queued=1)
        await operator.parts.scaler.reconcile_scale()
        operator.engine.demand.clear()
        await operator.parts.scaler.reconcile_scale()
        await operator.settle()
    assert operator.engine.registered_workers["p0"].draining
    annotations = operator.found("Pod", "p0")["metadata"]["annotations"]
    assert annotations == {"controller.kubernetes.io/pod-deletion-cost": "-1000"}
    assert operator.found("Deployment", NAME)["spec"]["replicas"] == 0
    events = [found for (kind, _, _), found in operator.cluster.objects.items() if kind == "Event"]
    assert {found["reason"] for found in events} == {"ScaledUp", "ScaledDown"}


async def test_a_stuck_pod_reaches_the_pools_status() -> None:
    operator = Operator()
    stuck = worker_pod("p0")
    stuck["status"] = {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]}
    async with operator.working():
        await operator.give(stuck)
        await operator.give(pool())
    stalled = find(operator.found("WorkerPool", "default")["status"], "Stalled")
    assert stalled is not None and stalled["reason"] == "ErrImagePull"


async def test_a_vanished_pods_worker_is_expired() -> None:
    operator = Operator()
    async with operator.working():
        made = await operator.give(worker_pod("p0"))
        await operator.remove(made)
    expired = ("expire", "default", "p0", "operator", "pod was deleted", "pod_deleted")
    assert operator.engine.acted == [expired]
    assert operator.value("workers_expired_total") == 1
    assert operator.value("reconciles_total", kind="Pod", outcome="success") == 1


async def test_a_changed_config_map_rolls_the_pools_that_name_it() -> None:
    operator = Operator()
    shop = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "namespace": "default"}}

    def pods_hash() -> str:
        annotations = operator.found("Deployment", NAME)["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["tasker.dev/handlers-hash"])

    async with operator.working():
        await operator.give(pool(handlersFrom={"configMapRef": {"name": "shop"}}))
        assert ("Deployment", "default", NAME) not in operator.cluster.objects
        await operator.give({**shop, "data": {"a.py": "1"}})
        before = pods_hash()
        await operator.give({**shop, "data": {"a.py": "2"}}, "MODIFIED")
        assert pods_hash() != before


async def test_a_namespace_that_goes_takes_its_runs_and_pools_along() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(pool())
        terminating = operator.found("Namespace", "default", None)  # type: ignore[arg-type]
        await operator.give({**terminating, "status": {"phase": "Terminating"}}, "MODIFIED")
        assert operator.engine.acted == [("cancel_namespace", "default", "operator", "the namespace was deleted")]
        operator.cluster.calls.clear()
        await operator.give(pool(slots=3), "MODIFIED")
        await operator.parts.scaler.reconcile_scale()
        assert operator.cluster.calls == []


async def test_a_resync_finds_what_no_event_brought() -> None:
    operator = Operator()
    async with operator.working():
        operator.cluster.store(template())
        operator.cluster.store(pool())
        operator.cluster.store(task())
        operator.cluster.store(worker_pod("p0"))
        operator.engine.runs["gone"] = make_run(origin_uid="gone")
        await operator.parts.resync.run()
        await operator.settle()
        assert len(operator.engine.requests) == 1
        assert operator.found("Deployment", NAME)
        assert ("cancel_by_origin", "gone", "operator", "the Task was deleted") in operator.engine.acted
        operator.engine.registered_templates.clear()
        operator.cluster.calls.clear()
        operator.cluster.remove("Pod", "default", "p0")
        await operator.parts.resync.run()
        await operator.settle()
        assert operator.engine.registered_templates, "the database may have been restored"
        assert ("apply", "Deployment", NAME) in operator.cluster.calls, "somebody may have changed it unseen"
        assert operator.engine.acted[-1][:3] == ("expire", "default", "p0")
    assert operator.value("orphans_cancelled_total") == 1
    assert operator.value("events_total", kind="Task", type="LISTED") == 2


async def test_handlers_that_changed_unseen_are_read_again_by_a_resync() -> None:
    operator = Operator()
    shop = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "namespace": "default"}}
    async with operator.working():
        operator.cluster.store({**shop, "data": {"a.py": "1"}})
        await operator.give(pool(handlersFrom={"configMapRef": {"name": "shop"}}))
        before = operator.found("Deployment", NAME)["spec"]["template"]
        operator.cluster.store({**shop, "data": {"a.py": "2"}})
        await operator.parts.resync.run()
        await operator.settle()
        assert operator.found("Deployment", NAME)["spec"]["template"] != before


async def test_only_the_namespaces_that_are_served_are_listed() -> None:
    operator = Operator(watch_namespaces=("mine",))
    async with operator.working():
        for namespace in ("mine", "other"):
            operator.cluster.store({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            made = pool()
            made["metadata"]["namespace"] = namespace
            operator.cluster.store(made)
        await operator.parts.resync.run()
        await operator.settle()
        assert ("Deployment", "mine", NAME) in operator.cluster.objects
        assert ("Deployment", "other", NAME) not in operator.cluster.objects
        assert operator.parts.router.serves("mine")
        assert not operator.parts.router.serves("other")


async def test_what_no_worker_offers_is_named_by_tasks_and_pools() -> None:
    operator = Operator()
    async with operator.working():
        await operator.give(pool())
        await operator.give(template())
        made = await operator.give(task())
        missing = UnofferedCallable(namespace="default", callable="charge", steps=1, since=START)
        operator.engine.unoffered = [missing]
        operator.engine.waiting_for_worker = frozenset({operator.run_of(made)})
        reads = operator.engine.reads
        operator.engine.changes.moved = frozenset()
        await operator.parts.unoffered.read()
        await operator.settle()
        assert operator.engine.reads == reads + 1, "the Task was called"
        pools = next(queue for queue in operator.parts.queues if queue.kind == "WorkerPool")
        assert operator.value("queue_depth", kind="WorkerPool") == 1, "its status waits for its second"
        assert pools.idle()


async def test_a_status_that_was_refused_is_decided_again_from_the_newest_object() -> None:
    """Its answer goes into the cache of its kind, whichever that is."""
    operator = Operator()
    async with operator.working():
        for manifest in (task(), pool(), template()):
            given = operator.cluster.store(manifest)
            changed = operator.cluster.store({**given, "metadata": {**given["metadata"], "labels": {"a": "b"}}})
            operator.route(given, "ADDED")
            await operator.settle()
            await settle_retries(operator)
            live = operator.found(changed["kind"], changed["metadata"]["name"])
            assert live["metadata"]["labels"] == {"a": "b"}
            assert live.get("status"), changed["kind"]
            assert operator.value("status_writes_total", kind=changed["kind"], outcome="conflict") == 1


async def settle_retries(operator: Operator) -> None:
    """Waits for keys that failed: their first wait is a fifth of a second."""
    async with asyncio.timeout(30):
        while any(operator.value("queue_depth", kind=queue.kind) for queue in operator.parts.queues):
            if all(queue._queue._failures == {} for queue in operator.parts.queues):
                break
            await asyncio.sleep(0.01)
    await operator.settle()


@pytest.mark.parametrize(
    ("kind", "concurrency"),
    [("TaskTemplate", 4), ("Task", 32), ("WorkerPool", 4), ("Namespace", 2), ("origin", 4), ("Pod", 2)],
)
async def test_so_many_keys_of_a_kind_are_worked_on_at_once(kind: str, concurrency: int) -> None:
    operator = Operator()
    started = 0

    async def blocked(_: ObjectKey) -> None:
        nonlocal started
        started += 1
        await asyncio.Event().wait()

    [queue] = [queue for queue in operator.parts.queues if queue.kind == kind]
    assert isinstance(queue, WorkQueue)
    queue._reconcile = blocked
    for number in range(100):
        queue.add(ObjectKey(namespace="default", name=str(number)))
    async with operator.working():
        await settle(200)
    assert started == concurrency


async def test_the_pace_of_progress_is_what_the_settings_say() -> None:
    operator = Operator(progress_writes_per_second=0.5)
    async with operator.working():
        await operator.give(template())
        for number in range(4):
            await operator.give(task(f"t{number}"))
        made = operator.found("Task", "t0")
        [tasks] = [queue for queue in operator.parts.queues if queue.kind == "Task"]
        reconciler = tasks._reconcile.__self__  # type: ignore[attr-defined]
        assert reconciler._progress.pause_seconds == 8.0
        await operator.remove(made)
        assert reconciler._progress.pause_seconds == 6.0, "what was deleted slows nobody"
