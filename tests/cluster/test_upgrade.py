"""A new release while Tasks run: no step is lost or done over, and no worker is killed in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cluster import HANDLERS, ClusterUnderTest, Namespace, handlers, pool, step, task, template
from support.cluster_settings import SECOND_WORKER_IMAGE
from support.waiting import eventually

SUCCEEDED = "condition=Succeeded"
TASKS = 50
LONG_SECONDS = 12
NEW_HANDLERS = HANDLERS.replace('"done": context.step_name', '"done": "by the new handlers"')


@pytest.fixture
def busy(namespace: Namespace) -> Namespace:
    """50 Tasks under way, each step with a single attempt: one that is broken off fails its Task."""
    once = {"maxAttempts": 1}
    namespace.apply(
        handlers(),
        pool(minReplicas=2, maxReplicas=2, slots=5, terminationGracePeriodSeconds=60),
        template(
            "two",
            step("a", "sleep", configuration={"seconds": 1}, retry=once),
            step("b", after=["a"], retry=once),
        ),
        template("long", step("a", "sleep", configuration={"seconds": LONG_SECONDS}, retry=once)),
    )
    namespace.wait("condition=Ready", "workerpool/default", "tasktemplate/two", "tasktemplate/long", seconds=30)
    eventually(lambda: namespace.status("workerpool", "default").get("readyReplicas") == 2, timeout=30)
    namespace.apply(task("long", "long"), *(task(f"t{number}", "two") for number in range(TASKS - 1)))
    eventually(lambda: namespace.status("task", "long").get("steps", {}).get("running") == 1, timeout=30)
    return namespace


@pytest.fixture
def first_image_afterwards(cluster: ClusterUnderTest) -> Iterator[None]:
    first = cluster.installation.worker_image
    yield
    cluster.installation.worker_image = first
    cluster.installation.upgrade()


def worker_images(namespace: Namespace) -> set[str]:
    """Of the worker pods that are not on their way out."""
    pods = namespace.list("pods", "--selector=app.kubernetes.io/name=tasker-worker")
    return {pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def old_pods_end_in_order(namespace: Namespace, old: set[str]) -> None:
    """The long step's worker is among them, so this takes as long as that step at least."""
    eventually(lambda: not old & pod_names(namespace), timeout=60, interval=0.5, what="the old workers have gone")


def pod_names(namespace: Namespace) -> set[str]:
    pods = namespace.list("pods", "--selector=app.kubernetes.io/name=tasker-worker")
    return {pod["metadata"]["name"] for pod in pods}


def assert_nothing_was_lost(namespace: Namespace) -> None:
    namespace.wait(SUCCEEDED, "task", "--all", seconds=90)
    tasks = {each["metadata"]["name"]: each["status"] for each in namespace.list("tasks")}
    assert len(tasks) == TASKS
    assert {status["state"] for status in tasks.values()} == {"complete"}
    assert [name for name, status in tasks.items() if "failures" in status] == [], "attempts were broken off"
    assert tasks["long"]["result"] == {"a": {"slept": True}}


def test_changed_handlers_and_a_new_operator_lose_no_step(cluster: ClusterUnderTest, busy: Namespace) -> None:
    old = pod_names(busy)
    busy.apply(handlers(source=NEW_HANDLERS))
    cluster.installation.upgrade()
    old_pods_end_in_order(busy, old)
    assert_nothing_was_lost(busy)
    busy.apply(task("after", "two"))
    busy.wait(SUCCEEDED, "task/after", seconds=30)
    assert busy.status("task", "after")["result"] == {"b": {"done": "by the new handlers"}}


def test_a_changed_worker_image_loses_no_step(
    cluster: ClusterUnderTest, busy: Namespace, first_image_afterwards: None
) -> None:
    old = pod_names(busy)
    [before] = worker_images(busy)
    image = cluster.second_worker_image(before)
    if image is None:
        pytest.skip(f"no node knows {before} by a second name; another tag of it will do: {SECOND_WORKER_IMAGE}")
    assert image != before
    busy.apply(handlers(source=NEW_HANDLERS))
    cluster.installation.worker_image = image
    cluster.installation.upgrade()
    eventually(lambda: worker_images(busy) == {image}, timeout=60, interval=0.2)
    old_pods_end_in_order(busy, old)
    assert_nothing_was_lost(busy)
