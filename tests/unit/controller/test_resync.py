"""Lists that are long, broken off or overtaken by events: a resync ends no run whose Task is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, make_run, pool, task
from support.fake_cluster import Fault
from tasker.controller.kube.client import (
    LIST_ATTEMPTS,
    LIST_CHUNK,
    NAMESPACE,
    POD,
    TASK,
    ClusterError,
    Manifest,
    Resource,
)
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import OWNED_SELECTOR


class Setting:
    """A resync during which something happens."""

    def __init__(self) -> None:
        self.kit = ControllerKit()
        self.resync = self.kit.resync()

    def give(self, name: str) -> Manifest:
        """A Task with a run, of which an event has told."""
        return self.with_run(self.kit.give(task(name)))

    def with_run(self, made: Manifest) -> Manifest:
        uid = made["metadata"]["uid"]
        self.kit.engine.runs[uid] = make_run(origin_uid=uid)
        return made

    def while_listed(self, resource: Resource, happens: Callable[[], Any]) -> None:
        """It happens once, after the first page was read."""

        def meanwhile(verb: str, kind: str) -> None:
            if (verb, kind) == ("list", resource.kind):
                self.kit.cluster.meanwhile = lambda verb, kind: None
                happens()

        self.kit.cluster.meanwhile = meanwhile

    def cancelled(self) -> set[str]:
        """The uids whose runs are to be ended."""
        return {key.name for key in self.kit.queue("orphans").take()}


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_tasks_of_every_page_are_found(setting: Setting) -> None:
    count = 2 * LIST_CHUNK + 200
    made = [setting.with_run(setting.kit.cluster.store(task(f"t{number}"))) for number in range(count)]
    await setting.resync.run()
    assert setting.cancelled() == set()
    assert set(setting.kit.caches.tasks.all_keys()) == {key_of(each) for each in made}
    await setting.resync.run()
    assert len(setting.kit.caches.tasks) == count


async def test_a_task_made_after_the_list_was_begun_keeps_its_run(setting: Setting) -> None:
    """No event has told of it yet: its run is open, and it is not listed."""
    setting.while_listed(TASK, lambda: setting.with_run(setting.kit.cluster.store(task("new"))))
    await setting.resync.run()
    assert setting.cancelled() == set()


async def test_a_task_that_an_event_brings_during_the_list_stays(setting: Setting) -> None:
    setting.while_listed(TASK, lambda: setting.give("new"))
    await setting.resync.run()
    assert ObjectKey(namespace="default", name="new") in setting.kit.caches.tasks
    assert setting.cancelled() == set()


async def test_a_task_made_anew_under_an_old_name_during_the_list_stays_and_the_old_one_goes(setting: Setting) -> None:
    old = setting.give("name")
    setting.kit.cluster.remove("Task", "default", "name")  # and no event tells of it
    setting.while_listed(TASK, lambda: setting.give("name"))
    await setting.resync.run()
    found = setting.kit.caches.tasks.get(key_of(old))
    assert found is not None
    assert found["metadata"]["uid"] == setting.kit.live(old)["metadata"]["uid"]
    assert setting.cancelled() == {old["metadata"]["uid"]}


async def test_the_run_of_a_task_whose_name_was_taken_unseen_is_cancelled(setting: Setting) -> None:
    old = setting.give("name")
    setting.kit.cluster.remove("Task", "default", "name")
    new = setting.give("name")  # its event comes, the one of the deletion does not
    await setting.resync.run()
    assert setting.cancelled() == {old["metadata"]["uid"]}
    assert setting.kit.caches.tasks.find_uid(old["metadata"]["uid"]) is None
    assert setting.kit.caches.tasks.find_uid(new["metadata"]["uid"]) == key_of(new)


async def test_an_answer_that_comes_after_a_resync_missed_the_task_does_not_revive_it(setting: Setting) -> None:
    """The write was carried out, the Task was deleted, and the answer is still on its way."""
    made = setting.give("t")
    answer = setting.kit.cluster.store({**made, "status": {"phase": "Running"}})
    setting.kit.cluster.remove("Task", "default", "t")
    await setting.resync.run()
    assert setting.kit.caches.tasks.put(answer) is False
    assert key_of(made) not in setting.kit.caches.tasks
    assert setting.kit.caches.tasks.find_uid(made["metadata"]["uid"]) is None


async def test_of_pods_and_deployments_only_the_workers_are_kept(setting: Setting) -> None:
    ours = dict(each.split("=") for each in OWNED_SELECTOR.split(","))
    for name, labels in (("ours", ours), ("of-others", {"app.kubernetes.io/managed-by": "tasker"})):
        for api_version, kind, spec in (("v1", "Pod", {}), ("apps/v1", "Deployment", {"replicas": 1})):
            metadata = {"name": name, "namespace": "default", "labels": labels}
            setting.kit.cluster.store({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})
    await setting.resync.run()
    kept = [ObjectKey(namespace="default", name="ours")]
    assert (setting.kit.caches.pods.all_keys(), setting.kit.caches.deployments.all_keys()) == (kept, kept)


async def test_the_namespaces_of_pools_are_looked_at_again(setting: Setting) -> None:
    """What would have called them may have been missed: the last template's end, for one."""
    setting.kit.give(pool())
    await setting.resync.run()
    setting.kit.queue("namespaces").take()
    await setting.resync.run()
    assert setting.kit.queue("namespaces").take() == [ObjectKey(namespace="default", name="default")]


async def test_a_list_whose_rest_the_server_forgot_is_begun_again(setting: Setting) -> None:
    made = [setting.give(f"t{number}") for number in range(LIST_CHUNK + 1)]
    setting.while_listed(TASK, setting.kit.cluster.forget_lists)
    await setting.resync.run()
    assert setting.cancelled() == set()
    assert len(setting.kit.caches.tasks) == len(made)


@pytest.mark.parametrize("code", [410, 500, 429])
async def test_a_list_that_cannot_be_read_to_its_end_deletes_nothing(setting: Setting, code: int) -> None:
    made = [setting.give(f"t{number}") for number in range(LIST_CHUNK + 1)]

    def break_off() -> None:
        reason = "Expired" if code == 410 else "Broken"
        fault = Fault(verb="list", kind="Task", code=code, reason=reason, count=LIST_ATTEMPTS)
        setting.kit.cluster.faults.append(fault)

    setting.while_listed(TASK, break_off)
    with pytest.raises(ClusterError, match=str(code)):
        await setting.resync.run()
    assert setting.cancelled() == set()
    assert len(setting.kit.caches.tasks) == len(made)


async def test_a_namespace_that_begins_to_go_during_the_list_is_remembered(
    setting: Setting,
) -> None:
    def begins_to_go(name: str) -> None:
        setting.kit.router.namespace(
            {"metadata": {"name": name, "uid": name}, "status": {"phase": "Terminating"}}, "MODIFIED"
        )

    begins_to_go("went-unseen")
    going = {"metadata": {"name": "still-going"}, "status": {"phase": "Terminating"}}
    setting.kit.cluster.store({"apiVersion": "v1", "kind": "Namespace", **going})
    begins_to_go("still-going")
    setting.while_listed(NAMESPACE, lambda: begins_to_go("new"))
    await setting.resync.run()
    assert setting.kit.caches.terminating_namespaces == {"new", "still-going"}


async def test_a_namespace_that_began_to_go_unseen_is_found(setting: Setting) -> None:
    going = {"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}
    setting.kit.cluster.store({"apiVersion": "v1", "kind": "Namespace", **going})
    await setting.resync.run()
    assert setting.kit.caches.terminating_namespaces == {"going"}
    assert setting.kit.queue("namespaces").take() == [ObjectKey(namespace="going", name="going")]


async def test_a_pod_that_vanished_during_the_list_stays_lost(setting: Setting) -> None:
    labels = dict(each.split("=") for each in OWNED_SELECTOR.split(","))
    metadata = {"name": "p", "namespace": "default", "labels": labels}
    pod = setting.kit.cluster.store({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
    setting.kit.router.pod(pod, "ADDED")

    def vanishes() -> None:
        setting.kit.router.pod(setting.kit.cluster.remove("Pod", "default", "p"), "DELETED")

    setting.while_listed(POD, vanishes)
    await setting.resync.run()
    assert setting.kit.caches.lost_pods.reason(key_of(pod)) == "pod was deleted"
    assert key_of(pod) not in setting.kit.caches.pods
