"""Objects that this release cannot read stop no other: they are logged once, counted, and say so in their status."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pydantic import ValidationError

from support.controller_fakes import ControllerKit, make_run, pool, task, template
from tasker.controller.kube.client import Manifest
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.tasks.progress import ProgressPace
from tasker.errors import InvalidResource
from tasker.model.transitions import TaskState


@pytest.fixture
def kit() -> ControllerKit:
    return ControllerKit()


def invalid_objects(kit: ControllerKit, kind: str) -> float | None:
    return kit.metrics.registry.get_sample_value("tasker_operator_invalid_objects", {"kind": kind})


def condition(kit: ControllerKit, manifest: Manifest, name: str) -> tuple[str, str, str]:
    found = find(kit.live(manifest).get("status"), name)
    assert found is not None
    return found["status"], found["reason"], found["message"]


async def reconcile_task(kit: ControllerKit, manifest: Manifest) -> None:
    await kit.task_reconciler(ProgressPace(100)).reconcile(key_of(manifest))


def test_an_object_that_cannot_be_read_is_logged_once_counted_and_left_out(
    kit: ControllerKit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    kit.give(pool("a"))
    odd = kit.give(pool("b", slots="many"))
    kit.give(pool("c"))
    for text in ("1", "2"):
        kit.give({**odd, "metadata": {**odd["metadata"], "labels": {"changed": text}}})
    assert [each.metadata.name for each in kit.caches.pools.read_all()] == ["a", "c"]
    with pytest.raises(InvalidResource, match=r"^spec\.slots: must be a whole number$"):
        kit.caches.pools.read(key_of(odd))
    assert invalid_objects(kit, "WorkerPool") == 1
    assert [record.getMessage() for record in caplog.records] == [
        "WorkerPool default/b cannot be read and is left as it is: spec.slots: must be a whole number"
    ]
    kit.give(pool("b", slots=3))
    assert invalid_objects(kit, "WorkerPool") == 0
    assert len(list(kit.caches.pools.read_all())) == 3


def test_what_is_nearly_right_is_wrong(kit: ControllerKit) -> None:
    """As for the CRD: a text is no number, and no number is a truth."""
    for name, spec in (("a", {"priority": "5"}), ("b", {"suspend": 1}), ("c", {"deadlineSeconds": 5.0})):
        made = kit.give(task(name, **spec))
        with pytest.raises(InvalidResource):
            kit.caches.tasks.read(key_of(made))


def test_a_value_that_many_share_cannot_be_changed(kit: ControllerKit) -> None:
    shared = kit.caches.pools.read(key_of(kit.give(pool())))
    assert shared is not None
    with pytest.raises(ValidationError):
        shared.spec.slots = 3


def test_what_is_removed_is_handed_back(kit: ControllerKit) -> None:
    for give, cache in ((task, kit.caches.tasks), (pool, kit.caches.pools)):
        made = kit.give(give())
        removed = cache.remove(made)
        assert removed is not None and removed["metadata"]["uid"] == made["metadata"]["uid"]
        assert cache.remove(made) is None


def test_a_deleted_object_is_no_longer_counted(kit: ControllerKit) -> None:
    odd = kit.give(pool(slots="many"))
    kit.router.pool(odd, "DELETED")
    assert invalid_objects(kit, "WorkerPool") == 0


def test_of_a_deleted_object_nothing_is_kept(kit: ControllerKit) -> None:
    pools, tasks = kit.caches.pools, kit.caches.tasks
    for made, route in ((kit.give(pool()), kit.router.pool), (kit.give(task()), kit.router.task)):
        assert pools.read(key_of(made)) is not None or tasks.read(key_of(made)) is not None
        route(made, "DELETED")
    assert (pools._values, tasks._values, tasks._keys_by_uid, tasks._waiting) == ({}, {}, {}, {})
    assert pools.namespaces() == tasks.namespaces() == []


def test_values_of_few_kinds_are_kept_and_those_of_tasks_are_not(kit: ControllerKit) -> None:
    """There may be ten thousand of them."""
    made = kit.give(pool())
    assert kit.caches.pools.read(key_of(made)) is kit.caches.pools.read(key_of(made))
    kit.caches.tasks.read(key_of(kit.give(task())))
    assert kit.caches.tasks._values == {}
    changed = kit.give(pool(slots=3))
    known = kit.caches.pools.read(key_of(changed))
    assert known is not None and known.spec.slots == 3, "a value is of the version that is there"


def test_what_is_read_of_many_is_in_the_order_of_the_names(kit: ControllerKit) -> None:
    for name in ("b", "c", "a"):
        kit.give(pool(name))
    kit.give(pool("odd", slots="many"))
    assert [each.metadata.name for each in kit.caches.pools.read_namespace("default")] == ["a", "b", "c"]
    assert [each.name for each in kit.caches.pools.read_metadata("default")] == ["a", "b", "c", "odd"]
    assert list(kit.caches.pools.read_namespace("elsewhere")) == []
    assert kit.caches.pools.read_valid(ObjectKey(namespace="default", name="odd")) is None
    assert kit.caches.pools.read(ObjectKey(namespace="default", name="none")) is None


async def test_one_oddity_does_not_stop_the_scaling_of_other_pools(kit: ControllerKit) -> None:
    kit.give(pool("odd", scaling={"mode": "by the moon"}))
    kit.give(pool("plain"))
    await kit.scaler(lambda: 0.0).reconcile_scale()
    assert kit.states.get(ObjectKey(namespace="default", name="plain")) is not None
    assert kit.states.get(ObjectKey(namespace="default", name="odd")) is None


async def test_a_pool_that_cannot_be_read_says_so_and_is_a_pool_all_the_same(kit: ControllerKit) -> None:
    kit.cluster.store({"kind": "Namespace", "metadata": {"name": "default"}})
    kit.give(template())
    odd = kit.give(pool("mine", slots=0))
    await kit.pool_reconciler().reconcile(key_of(odd))
    fault = ("InvalidSpec", "spec.slots: must be at least 1")
    assert condition(kit, odd, "Ready") == ("False", *fault)
    assert condition(kit, odd, "Stalled") == ("True", *fault)
    kit.pass_time(60)
    await kit.namespace_reconciler().reconcile(ObjectKey(namespace="default", name="default"))
    assert ("WorkerPool", "default", "default") not in kit.cluster.objects, "no managed pool beside a person's own"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"version": 5}, "spec.version: must be a string"),
        ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished: must be at least 0"),
        ({"steps": [{"name": "a"}]}, "spec.steps[0].handler: is required"),
    ],
)
async def test_a_templates_fault_reaches_its_status_and_its_tasks(
    kit: ControllerKit, spec: dict[str, Any], path: str
) -> None:
    broken = kit.give(template(**spec))
    await kit.template_reconciler().reconcile(key_of(broken))
    assert condition(kit, broken, "Ready") == ("False", "InvalidSpec", path)
    waiting = kit.give(task())
    await reconcile_task(kit, waiting)
    assert condition(kit, waiting, "Accepted") == (
        "False",
        "TemplateNotReady",
        f"TaskTemplate order is not ready: {path}",
    )
    mended = kit.give(template())
    await kit.template_reconciler().reconcile(key_of(mended))
    assert condition(kit, mended, "Ready")[0] == "True"
    assert invalid_objects(kit, "TaskTemplate") == 0


async def test_a_task_that_cannot_be_read_is_refused_with_the_path(kit: ControllerKit) -> None:
    odd = kit.give(task(priority="high"))
    await reconcile_task(kit, odd)
    fault = ("InvalidTask", "spec.priority: must be a whole number")
    assert condition(kit, odd, "Accepted") == ("False", *fault)
    assert condition(kit, odd, "Stalled") == ("True", *fault)
    assert kit.live(odd)["status"]["phase"] == "Pending"


async def test_the_run_of_a_task_that_cannot_be_read_any_more_is_left_alone(kit: ControllerKit) -> None:
    made = kit.give(template())
    await kit.template_reconciler().reconcile(key_of(made))
    running = kit.give(task())
    await reconcile_task(kit, running)
    await reconcile_task(kit, running)  # by another pace: this one's first status is due at once
    uid = running["metadata"]["uid"]
    before = kit.live(running)["status"]
    odd = kit.give({**running, "spec": {**running["spec"], "suspend": "maybe"}})
    await reconcile_task(kit, odd)
    await kit.resync().run()
    assert kit.queue("orphans").take() == [], "it is no orphan: its Task is there"
    assert kit.engine.runs[uid].state is TaskState.STEPS_IN_PROCESS
    assert condition(kit, odd, "Stalled") == ("True", "InvalidTask", "spec.suspend: must be true or false")
    assert condition(kit, odd, "Accepted")[0] == "True"
    after = kit.live(odd)["status"]
    assert {name: after[name] for name in ("taskUuid", "phase", "steps")} == {
        name: before[name] for name in ("taskUuid", "phase", "steps")
    }
    kit.router.task(odd, "DELETED")
    assert kit.queue("orphans").take() == [ObjectKey(namespace="default", name=uid)]


async def test_a_pod_that_cannot_be_read_does_not_end_a_resync(kit: ControllerKit) -> None:
    labels = dict(each.split("=") for each in OWNED_SELECTOR.split(","))
    metadata = {"name": "odd", "namespace": "default", "labels": labels}
    kit.cluster.store({"kind": "Pod", "metadata": metadata, "status": {"phase": 7}})
    kit.cluster.store(task())
    await kit.resync().run()
    assert invalid_objects(kit, "Pod") == 1
    assert kit.queue("tasks").take()


async def test_the_run_of_a_task_that_was_replaced_unobserved_is_an_orphan(kit: ControllerKit) -> None:
    """Deleted and created again under its name while no watch was open: the deletion's event never comes."""
    old = kit.give(task())["metadata"]["uid"]
    kit.engine.runs[old] = make_run(origin_uid=old)
    del kit.cluster.objects["Task", "default", "t"]
    kit.cluster.store(task())
    kit.queue("orphans").take()
    await kit.resync().run()
    assert set(kit.queue("orphans").take()) == {ObjectKey(namespace="default", name=old)}


def test_the_version_that_is_known_is_not_validated_again(kit: ControllerKit) -> None:
    """A resync lists ten thousand Tasks of which hardly any has changed."""
    made = kit.give(task())
    known = kit.caches.tasks.get(key_of(made))
    assert kit.caches.tasks.put(dict(made))
    assert kit.caches.tasks.get(key_of(made)) is known


def test_tasks_are_found_by_the_template_that_they_wait_for(kit: ControllerKit) -> None:
    order, other = (ObjectKey(namespace="default", name=name) for name in ("order", "other"))
    first = kit.give(task("first"))
    kit.give(task("second", templateRef={"name": "other"}))
    assert kit.caches.tasks.waiting_for(order) == [key_of(first)]
    accepted = {
        "type": "Accepted",
        "status": "True",
        "lastTransitionTime": "2031-01-01T00:00:00Z",
        "reason": "Submitted",
        "message": "",
    }
    kit.give({**first, "status": {"conditions": [accepted]}})
    assert kit.caches.tasks.waiting_for(order) == []
    kit.router.task(kit.live(task("second")), "DELETED")
    assert kit.caches.tasks.waiting_for(other) == []
