"""Events, and what they miss: the newest object wins, a resync finds what went unseen, orphaned runs end."""

from __future__ import annotations

from typing import Any

import pytest

from support.controller_fakes import ControllerKit, make_run, pool, task, template
from tasker.controller.kube.cache import ObjectCache
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.pools.lost_pods import loss_of

KEY = ObjectKey(namespace="default", name="t")


def version(number: int, uid: str = "u") -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": "t", "uid": uid, "resourceVersion": str(number)}}


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = ObjectCache()
    assert cache.put(version(10))
    assert not cache.put(version(9))
    assert not cache.put(version(9, uid="its predecessor"))
    found = cache.get(KEY)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "10"


def test_a_late_deletion_does_not_remove_the_successor_of_the_same_name() -> None:
    cache = ObjectCache()
    cache.put(version(10, uid="new"))
    assert cache.remove(version(11, uid="old")) is None
    assert KEY in cache
    assert cache.remove(version(11, uid="new")) is not None
    assert cache.namespaces() == []


def test_what_nobody_reads_is_not_kept() -> None:
    cache = ObjectCache()
    manifest = version(1)
    manifest["metadata"] |= {
        "managedFields": [{"manager": "x"}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"},
    }
    cache.put(manifest)
    found = cache.get(KEY)
    assert found is not None
    assert "managedFields" not in found["metadata"]
    assert found["metadata"]["annotations"] == {"mine": "1"}
    assert "managedFields" in manifest["metadata"], "what was given stays as it was"


def test_the_context_of_a_submitted_task_is_not_kept() -> None:
    kit = ControllerKit()
    made = kit.give(task(context={"big": "x"}))
    assert kit.caches.tasks.get(key_of(made))["spec"]["context"] == {"big": "x"}  # type: ignore[index]
    ended = kit.cluster.store({**made, "status": {"taskUuid": "1", "phase": "Succeeded", "result": {"a": 1}}})
    kit.router.task(ended, "MODIFIED")
    kept = kit.caches.tasks.get(key_of(made))
    assert kept is not None
    assert "context" not in kept["spec"]
    assert "result" not in kept["status"]


def test_a_config_map_calls_only_the_pools_that_name_it() -> None:
    kit = ControllerKit()
    kit.give(pool("a", handlersFrom={"configMapRef": {"name": "h"}}))
    kit.give(pool("b"))
    kit.queue("pools").take()
    kit.router.config_map({"metadata": {"namespace": "default", "name": "h"}}, "ADDED")
    kit.router.config_map({"metadata": {"namespace": "default", "name": "other"}}, "ADDED")
    kit.router.config_map({"metadata": {"namespace": "elsewhere", "name": "h"}}, "ADDED")
    assert kit.queue("pools").take() == [ObjectKey(namespace="default", name="a")]


def test_only_a_changed_spec_of_a_pool_calls_its_namespace() -> None:
    kit = ControllerKit()
    made = kit.give(pool())
    assert len(kit.queue("namespaces").take()) == 1
    kit.router.pool(kit.cluster.store({**made, "status": {"replicas": 1}}), "MODIFIED")
    assert kit.queue("namespaces").take() == []


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
    pod = Pod.parse({"metadata": {"name": "p", "uid": "1"}, "status": status})
    assert loss_of(pod, deleted=deleted) == expected


async def test_a_vanished_pods_worker_is_expired_with_the_reason() -> None:
    kit = ControllerKit()
    pod = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1", "labels": {}}}
    kit.router.pod(pod, "ADDED")
    assert kit.queue("lost_pods").take() == []
    kit.router.pod(pod, "DELETED")
    [key] = kit.queue("lost_pods").take()
    await kit.lost_pod_reconciler().reconcile(key)
    assert kit.engine.expired == [("p", "pod was deleted")]
    assert kit.engine.expired_as == ["pod_deleted"], "its worker did nothing wrong"
    await kit.lost_pod_reconciler().reconcile(key)
    assert len(kit.engine.expired) == 1


async def test_a_container_that_came_back_before_anybody_looked_is_not_lost() -> None:
    kit = ControllerKit()
    pod: dict[str, Any] = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1"}}
    kit.router.pod({**pod, "status": crashing("CrashLoopBackOff")}, "MODIFIED")
    [key] = kit.queue("lost_pods").take()
    kit.router.pod({**pod, "status": {"containerStatuses": [{"state": {"running": {}}}]}}, "MODIFIED")
    await kit.lost_pod_reconciler().reconcile(key)
    assert kit.engine.expired == []


async def test_a_resync_calls_everything_and_finds_what_was_deleted_unseen() -> None:
    kit = ControllerKit()
    stays, goes = kit.give(task("stays")), kit.give(task("goes"))
    kit.give(template())
    for queue in ("tasks", "templates", "orphans"):
        kit.queue(queue).take()
    del kit.cluster.objects["Task", "default", "goes"]
    await kit.resync().run()
    assert key_of(stays) in kit.queue("tasks").take()
    assert kit.queue("templates").take()
    assert key_of(goes) not in kit.caches.tasks
    assert kit.queue("orphans").take() == [ObjectKey(namespace="default", name=goes["metadata"]["uid"])]


async def test_runs_whose_task_went_while_nobody_looked_are_cancelled() -> None:
    kit = ControllerKit()
    made = kit.cluster.store(task("alive"))
    alive = made["metadata"]["uid"]
    kit.engine.runs[alive] = make_run(origin_uid=alive)
    kit.engine.runs["gone"] = make_run(origin_uid="gone")
    await kit.resync().run()
    assert kit.queue("orphans").take() == [ObjectKey(namespace="default", name="gone")]
    assert kit.metrics.registry.get_sample_value("tasker_operator_orphans_cancelled_total") == 1


async def test_runs_of_namespaces_that_are_not_served_are_left_alone() -> None:
    kit = ControllerKit(watch_namespaces=("mine",))
    kit.engine.runs["other"] = make_run(origin_uid="other", namespace="default")
    kit.engine.runs["mine"] = make_run(origin_uid="mine", namespace="mine")
    await kit.resync().run()
    assert kit.queue("orphans").take() == [ObjectKey(namespace="mine", name="mine")]
