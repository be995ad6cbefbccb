"""Events, and what they miss: the newest object wins, a resync finds what went unseen, orphaned runs end."""

from __future__ import annotations

from typing import Any

import pytest

from support.controller_fakes import FakeWorld, make_run, make_world, pool, task, template
from tasker.controller.intake import Intake
from tasker.controller.kube.cache import SeenObjects
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.lost_pods import LostPodReconciler, loss_of
from tasker.controller.pools.state import PoolStates
from tasker.controller.runtime.resync import Resync
from tasker.controller.templates.reconcile import TemplateReconciler

KEY = ObjectKey(namespace="default", name="t")


def version(number: int, uid: str = "u") -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": "t", "uid": uid, "resourceVersion": str(number)}}


def test_an_older_version_never_replaces_a_newer_one() -> None:
    seen = SeenObjects()
    assert seen.put(version(10))
    assert not seen.put(version(9))
    assert not seen.put(version(9, uid="its predecessor"))
    found = seen.get(KEY)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "10"


def test_a_late_deletion_does_not_remove_the_successor_of_the_same_name() -> None:
    seen = SeenObjects()
    seen.put(version(10, uid="new"))
    assert seen.remove(version(11, uid="old")) is None
    assert KEY in seen
    assert seen.remove(version(12, uid="new")) is not None
    assert seen.namespaces() == []


def test_what_nobody_reads_is_not_kept() -> None:
    seen = SeenObjects()
    manifest = version(1)
    manifest["metadata"] |= {
        "managedFields": [{"manager": "x"}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"},
    }
    seen.put(manifest)
    found = seen.get(KEY)
    assert found is not None
    assert "managedFields" not in found["metadata"]
    assert found["metadata"]["annotations"] == {"mine": "1"}
    assert "managedFields" in manifest["metadata"], "what was given stays as it was"


def test_the_context_of_a_submitted_task_is_not_kept() -> None:
    world, _, intake = make_world()
    made = world.give(intake, task(context={"big": "x"}))
    assert world.tasks.get(key_of(made))["spec"]["context"] == {"big": "x"}  # type: ignore[index]
    intake.task({**made, "status": {"taskUuid": "1", "phase": "Succeeded", "result": {"a": 1}}}, "MODIFIED")
    kept = world.tasks.get(key_of(made))
    assert kept is not None
    assert "context" not in kept["spec"]
    assert "result" not in kept["status"]


def test_a_config_map_calls_only_the_pools_that_name_it() -> None:
    world, _, intake = make_world()
    world.give(intake, pool("a", handlersFrom={"configMapRef": {"name": "h"}}))
    world.give(intake, pool("b"))
    world.queue("pools").take()
    intake.config_map({"metadata": {"namespace": "default", "name": "h"}}, "ADDED")
    intake.config_map({"metadata": {"namespace": "default", "name": "other"}}, "ADDED")
    intake.config_map({"metadata": {"namespace": "elsewhere", "name": "h"}}, "ADDED")
    assert world.queue("pools").take() == [ObjectKey(namespace="default", name="a")]


def test_only_a_changed_spec_of_a_pool_calls_its_namespace() -> None:
    world, _, intake = make_world()
    made = world.give(intake, pool())
    assert len(world.queue("namespaces").take()) == 1
    intake.pool(world.fake_cluster.store({**made, "status": {"replicas": 1}}), "MODIFIED")
    assert world.queue("namespaces").take() == []


def crashing(reason: str) -> dict[str, Any]:
    """The status of a pod whose container ran out of memory and waits for that reason."""
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    return {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": reason}}, "lastState": ended}]}


@pytest.mark.parametrize(
    ("status", "deleted", "expected"),
    [
        ({"phase": "Running"}, False, None),
        ({"phase": "Running"}, True, "pod was deleted"),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
            False,
            "pod failed: Evicted: low on memory",
        ),
        (
            {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]},
            True,
            "pod was deleted: OOMKilled",
        ),
        ({"containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}, True, "pod was deleted"),
        (crashing("CrashLoopBackOff"), False, "its container ended: OOMKilled, exit code 137"),
        (crashing("ErrImagePull"), False, None),
        # Started anew already: the new process gives up what the one before has left.
        (
            {"containerStatuses": [{"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}]},
            False,
            None,
        ),
    ],
)
def test_why_a_pod_is_lost(status: dict[str, Any], deleted: bool, expected: str | None) -> None:
    assert loss_of({"status": status}, deleted=deleted) == expected


async def test_a_vanished_pods_worker_is_expired_with_the_reason() -> None:
    world, _, intake = make_world()
    pod = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1", "labels": {}}}
    intake.pod(pod, "ADDED")
    assert world.queue("lost_pods").take() == []
    intake.pod(pod, "DELETED")
    [key] = world.queue("lost_pods").take()
    await LostPodReconciler(world).reconcile(key)
    assert world.fake_engine.expired == [("p", "pod was deleted")]
    await LostPodReconciler(world).reconcile(key)
    assert len(world.fake_engine.expired) == 1


async def test_a_container_that_came_back_before_anybody_looked_is_not_lost() -> None:
    world, _, intake = make_world()
    pod: dict[str, Any] = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1"}}
    intake.pod({**pod, "status": crashing("CrashLoopBackOff")}, "MODIFIED")
    [key] = world.queue("lost_pods").take()
    intake.pod({**pod, "status": {"containerStatuses": [{"state": {"running": {}}}]}}, "MODIFIED")
    await LostPodReconciler(world).reconcile(key)
    assert world.fake_engine.expired == []


def make_resync() -> tuple[FakeWorld, Intake, Resync]:
    world, states, intake = make_world()
    assert isinstance(states, PoolStates)
    return world, intake, Resync(world, intake, TemplateReconciler(world), states)


async def test_a_resync_calls_everything_and_finds_what_was_deleted_unseen() -> None:
    world, intake, resync = make_resync()
    stays, goes = world.give(intake, task("stays")), world.give(intake, task("goes"))
    world.give(intake, template())
    for queue in ("tasks", "templates", "origins"):
        world.queue(queue).take()
    del world.fake_cluster.objects["Task", "default", "goes"]
    await resync.run()
    assert key_of(stays) in world.queue("tasks").take()
    assert world.queue("templates").take()
    assert key_of(goes) not in world.tasks
    assert world.queue("origins").take() == [ObjectKey(namespace="default", name=goes["metadata"]["uid"])]


async def test_runs_whose_task_went_while_nobody_looked_are_cancelled() -> None:
    world, _, resync = make_resync()
    made = world.fake_cluster.store(task("alive"))
    alive = made["metadata"]["uid"]
    world.fake_engine.runs[alive] = make_run(origin_uid=alive)
    world.fake_engine.runs["gone"] = make_run(origin_uid="gone")
    await resync.run()
    assert world.queue("origins").take() == [ObjectKey(namespace="default", name="gone")]
    assert world.metrics.registry.get_sample_value("tasker_operator_orphans_cancelled_total") == 1


async def test_runs_of_namespaces_that_are_not_served_are_left_alone() -> None:
    world, states, intake = make_world(watch_namespaces=("mine",))
    resync = Resync(world, intake, TemplateReconciler(world), states)
    world.fake_engine.runs["other"] = make_run(origin_uid="other", namespace="default")
    world.fake_engine.runs["mine"] = make_run(origin_uid="mine", namespace="mine")
    await resync.run()
    assert world.queue("origins").take() == [ObjectKey(namespace="mine", name="mine")]
