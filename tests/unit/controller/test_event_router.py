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


def test_of_a_run_that_goes_on_only_the_context_is_left_out() -> None:
    kit = ControllerKit()
    made = kit.give(task(context={"big": "x"}, priority=3))
    failures = [{"step": "a", "attempt": 1}]
    running = {**made, "status": {"taskUuid": "1", "phase": "Running", "failures": failures}}
    kit.router.task(kit.cluster.store(running), "MODIFIED")
    kept = kit.caches.tasks.get(key_of(made))
    assert kept is not None
    assert kept["spec"]["priority"] == 3
    assert "context" not in kept["spec"]
    assert kept["status"]["failures"] == failures, "the next status is compared with it"
    ended = {**made, "status": {"taskUuid": "1", "phase": "Failed", "failures": failures, "progress": "1/2"}}
    kit.router.task(kit.cluster.store(ended), "MODIFIED")
    kept = kit.caches.tasks.get(key_of(made))
    assert kept is not None
    assert kept["status"] == {"taskUuid": "1", "phase": "Failed", "progress": "1/2"}


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
        ({"containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]}, True, "pod was deleted"),
        ({"containerStatuses": [{"state": {"running": {}}}]}, True, "pod was deleted"),
        ({"phase": "Failed"}, False, "pod failed"),
        ({"phase": "Failed", "message": "low on memory"}, True, "pod failed: low on memory"),
        (
            {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            False,
            None,
        ),
        (
            {
                "containerStatuses": [
                    {"state": {"running": {}}},
                    {
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 3}},
                    },
                ]
            },
            False,
            "its container ended: Error, exit code 3",
        ),
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


# Which keys need work because of which event.


def keys(*names: str) -> list[ObjectKey]:
    return [ObjectKey(namespace="default", name=name) for name in names]


def labelled(kind: str, name: str = "x", labels: dict[str, str] | None = None, version: int = 5) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "uid": f"{kind}-{name}", "resourceVersion": str(version)}
    return {"kind": kind, "metadata": {**metadata, "labels": labels or {}}, "spec": {}}


def taken(kit: ControllerKit) -> dict[str, list[ObjectKey]]:
    """The keys of every queue that got any."""
    names = ("templates", "tasks", "pools", "namespaces", "orphans", "lost_pods")
    return {name: added for name in names if (added := kit.queue(name).take())}


@pytest.mark.parametrize("event_type", ["ADDED", "MODIFIED", None])
def test_what_comes_or_changes_calls_its_own_kind(event_type: str | None) -> None:
    kit = ControllerKit()
    kit.router.template(kit.cluster.store(template()), event_type)
    assert taken(kit) == {"templates": keys("order"), "namespaces": keys("default")}
    kit.router.task(kit.cluster.store(task()), event_type)
    assert taken(kit) == {"tasks": keys("t")}
    kit.router.pool(kit.cluster.store(pool("p")), event_type)
    assert taken(kit) == {"pools": keys("p"), "namespaces": keys("default")}


def test_what_goes_calls_those_who_have_to_clear_up() -> None:
    kit = ControllerKit()
    made = kit.give(template()), kit.give(task()), kit.give(pool("a")), kit.give(pool("b"))
    taken(kit)
    kit.router.template(made[0], "DELETED")
    assert taken(kit) == {"templates": keys("order"), "namespaces": keys("default")}
    kit.router.task(made[1], "DELETED")
    assert taken(kit) == {"orphans": keys(made[1]["metadata"]["uid"])}
    kit.router.pool(made[2], "DELETED")
    assert taken(kit) == {"pools": keys("b", "a"), "namespaces": keys("default")}, "the Secret loses an owner"
    for cache in (kit.caches.templates, kit.caches.tasks):
        assert cache.all_keys() == []
    assert kit.caches.pools.all_keys() == keys("b")


def test_news_that_are_old_call_nobody_but_for_a_task() -> None:
    """Of a Task a conflict may wait for its newest version, which the answer to the write has brought already."""
    kit = ControllerKit()
    old = [kit.cluster.store(each) for each in (template(), pool(), task())]
    for manifest in old:
        kit.give({**manifest, "metadata": {**manifest["metadata"], "labels": {"a": "b"}}})
    taken(kit)
    kit.router.template(old[0], "MODIFIED")
    kit.router.pool(old[1], "MODIFIED")
    assert taken(kit) == {}
    kit.router.task(old[2], "MODIFIED")
    assert taken(kit) == {"tasks": keys("t")}


def test_a_deployment_and_a_pod_call_their_pool_and_others_nobody() -> None:
    kit = ControllerKit()
    mine = {"tasker.dev/pool": "p"}
    for kind, route in (("Deployment", kit.router.deployment), ("Pod", kit.router.pod)):
        route(labelled(kind, "other"), "ADDED")
        assert taken(kit) == {}
        route(labelled(kind, labels=mine), "ADDED")
        assert taken(kit) == {"pools": keys("p")}
        route(labelled(kind, labels=mine, version=4), "MODIFIED")
        assert taken(kit) == {}, "old"
        route(labelled(kind, labels=mine, version=6), "DELETED")
        assert taken(kit)["pools"] == keys("p")
    assert kit.caches.deployments.all_keys() == kit.caches.pods.all_keys() == keys("other")


def test_of_a_pod_its_spec_is_not_kept() -> None:
    kit = ControllerKit()
    kit.router.pod(labelled("Pod"), "ADDED")
    kept = kit.caches.pods.get(ObjectKey(namespace="default", name="x"))
    assert kept is not None and "spec" not in kept


def test_a_pod_that_cannot_be_read_is_not_lost() -> None:
    kit = ControllerKit()
    kit.router.pod({**labelled("Pod"), "status": {"phase": 7}}, "ADDED")
    assert taken(kit) == {}


def test_a_namespace_calls_when_it_begins_to_go_and_when_it_is_back() -> None:
    kit = ControllerKit()
    active = {"metadata": {"name": "n", "uid": "1"}, "status": {"phase": "Active"}}
    deleted = {**active, "metadata": {**active["metadata"], "deletionTimestamp": "2031-01-01T00:00:00Z"}}
    itself = {"namespaces": [ObjectKey(namespace="n", name="n")]}
    kit.router.namespace(active, "ADDED")
    assert taken(kit) == {}
    kit.router.namespace(deleted, "MODIFIED")
    assert (taken(kit), kit.caches.terminating_namespaces) == (itself, {"n"})
    kit.router.namespace(active, "ADDED")
    assert (taken(kit), kit.caches.terminating_namespaces) == (itself, set())
    kit.router.namespace(active, "DELETED")
    assert (taken(kit), kit.caches.terminating_namespaces) == (itself, {"n"})
    kit.router.namespace({"metadata": {"name": 7, "uid": "1"}}, "DELETED")
    assert taken(kit) == {}


def test_a_namespace_that_is_not_served_calls_nobody() -> None:
    kit = ControllerKit(watch_namespaces=("mine",))
    kit.router.namespace({"metadata": {"name": "n", "uid": "1"}}, "DELETED")
    assert taken(kit) == {}
    kit.router.namespace({"metadata": {"name": "mine", "uid": "1"}}, "DELETED")
    assert list(taken(kit)) == ["namespaces"]


def test_the_end_of_a_pools_generation_is_what_its_namespace_hears() -> None:
    kit = ControllerKit()
    made = kit.give(pool())
    taken(kit)
    kit.give(pool(slots=3))
    assert taken(kit) == {"pools": keys("default"), "namespaces": keys("default")}
    kit.router.pool(kit.live(made), "DELETED")
    assert taken(kit) == {"pools": keys("default"), "namespaces": keys("default")}


def test_events_are_counted_by_kind_and_type() -> None:
    kit = ControllerKit()
    for manifest, route in ((template(), kit.router.template), (task(), kit.router.task), (pool(), kit.router.pool)):
        stored = kit.cluster.store(manifest)
        for event_type in ("ADDED", None, "DELETED"):
            route(stored, event_type)
    for kind in ("TaskTemplate", "Task", "WorkerPool"):
        for event_type in ("ADDED", "LISTED", "DELETED"):
            labels = {"kind": kind, "type": event_type}
            assert kit.metrics.registry.get_sample_value("tasker_operator_events_total", labels) == 1


async def test_why_a_worker_was_lost_is_said_to_the_engine_and_counted() -> None:
    kit = ControllerKit()
    pod: dict[str, Any] = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1"}}
    kit.router.pod({**pod, "status": crashing("CrashLoopBackOff")}, "MODIFIED")
    [key] = kit.queue("lost_pods").take()
    await kit.lost_pod_reconciler().reconcile(key)
    why = "its container ended: OOMKilled, exit code 137"
    assert kit.engine.acted == [("expire", "default", "p", "operator", why, "worker_crash_loop")]
    assert kit.metrics.registry.get_sample_value("tasker_operator_workers_expired_total") == 1


async def test_a_lost_pod_that_held_nothing_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = ControllerKit()

    async def nothing(*_: Any, **__: Any) -> int:
        return 0

    monkeypatch.setattr(kit.engine.workers, "expire", nothing)
    pod: dict[str, Any] = {"metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1"}}
    kit.router.pod(pod, "DELETED")
    [key] = kit.queue("lost_pods").take()
    await kit.lost_pod_reconciler().reconcile(key)
    assert kit.metrics.registry.get_sample_value("tasker_operator_workers_expired_total") == 0
    assert kit.caches.lost_pods.reason(key) is None
