"""Worker pools through kubectl: from zero to what the work needs and back, by whoever decides."""

from __future__ import annotations

from support.cluster import HANDLERS, Namespace, handlers, pool, step, task, template
from support.waiting import PATIENCE, eventually

SUCCEEDED = "condition=Succeeded"
DEPLOYMENT = "tasker-worker-default"


def desired(namespace: Namespace, name: str = "default") -> int:
    return int(namespace.status("workerpool", name).get("desiredReplicas", -1))


def pods(namespace: Namespace) -> list[str]:
    """Names of the worker pods that are not on their way out."""
    listed = namespace.list("pods", "--selector=app.kubernetes.io/name=tasker-worker")
    return [pod["metadata"]["name"] for pod in listed if "deletionTimestamp" not in pod["metadata"]]


def deployed_replicas(namespace: Namespace) -> int:
    return int(namespace.get("deployment", DEPLOYMENT)["spec"]["replicas"])


def test_a_pool_goes_from_zero_to_what_the_work_needs_and_back(namespace: Namespace) -> None:
    slow = template("slow", step("a", "sleep", configuration={"seconds": 1.5}))
    namespace.apply(handlers(), pool(slots=2, maxReplicas=3), slow)
    namespace.wait("condition=Ready", "workerpool/default")
    assert desired(namespace) == 0
    assert pods(namespace) == []
    namespace.apply(*(task(f"t{number}", "slow") for number in range(6)))
    eventually(lambda: desired(namespace) == 3, timeout=10)
    namespace.wait(SUCCEEDED, "task", "--all", seconds=60)
    eventually(lambda: desired(namespace) == 0 and pods(namespace) == [], timeout=40)
    eventually(lambda: {"ScaledUp", "ScaledDown"} <= namespace.event_reasons("default"))
    status = namespace.status("workerpool", "default")
    assert "lastScaleTime" in status
    assert status["selector"] == "app.kubernetes.io/name=tasker-worker,tasker.dev/pool=default"


def test_what_a_pool_needs_is_made_and_goes_with_it(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool())
    namespace.wait("condition=Ready", "workerpool/default")
    made = [("serviceaccount", DEPLOYMENT), ("poddisruptionbudget", DEPLOYMENT), ("networkpolicy", DEPLOYMENT)]
    made += [("deployment", DEPLOYMENT), ("secret", "tasker-database")]
    for kind, name in made:
        assert namespace.exists(kind, name), kind
    namespace.kubectl("delete", "workerpool", "default")
    for kind, name in made:
        eventually(lambda kind=kind, name=name: not namespace.exists(kind, name), timeout=20)  # type: ignore[misc]


def test_what_somebody_deletes_or_changes_is_put_back(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool())
    namespace.wait("condition=Ready", "workerpool/default")
    namespace.kubectl("delete", "deployment", DEPLOYMENT)
    eventually(lambda: namespace.exists("deployment", DEPLOYMENT))
    namespace.patch("deployment", DEPLOYMENT, {"spec": {"replicas": 4}})
    eventually(lambda: deployed_replicas(namespace) == 0)


def test_a_pool_waits_for_its_handlers_and_recovers_when_they_come(namespace: Namespace) -> None:
    namespace.apply(pool(), template("quick", step("a")), task("patient", "quick"))
    message = namespace.eventually_condition("workerpool", "default", "Stalled", "True", "HandlersNotFound")
    assert message == f"There is no ConfigMap handlers in namespace {namespace.name}."
    assert namespace.condition("workerpool", "default", "Ready")[:2] == ("False", "HandlersNotFound")
    eventually(lambda: "HandlersNotFound" in namespace.event_reasons("default"))
    namespace.apply(handlers())
    namespace.wait(SUCCEEDED, "task/patient", seconds=30)
    assert namespace.condition("workerpool", "default", "Stalled")[0] == "False"


def test_changed_handlers_reach_the_workers(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(minReplicas=1), template("quick", step("a")), task("before", "quick"))
    namespace.wait(SUCCEEDED, "task/before")
    assert namespace.status("task", "before")["result"] == {"a": {"done": "a"}}
    [old] = pods(namespace)
    namespace.apply(handlers(source=HANDLERS.replace('"done": context.step_name', '"done": "differently"')))
    # Gone, not only going: until the kubelet tells it to stop it takes work.
    eventually(lambda: not namespace.exists("pod", old), timeout=40)
    namespace.apply(task("after", "quick"))
    namespace.wait(SUCCEEDED, "task/after")
    assert namespace.status("task", "after")["result"] == {"a": {"done": "differently"}}


def test_a_busy_worker_is_not_taken_away(namespace: Namespace) -> None:
    """Two workers, one with a long step: the pool shrinks to one, and the step's only attempt succeeds."""
    long_step = step("a", "sleep", configuration={"seconds": 8 * PATIENCE}, retry={"maxAttempts": 1})
    namespace.apply(
        handlers(),
        pool(slots=1, scaling={"idleSeconds": 1, "downSeconds": 1}),
        template("long", long_step),
        template("short", step("a", "sleep", configuration={"seconds": 1})),
        task("long", "long"),
        task("short", "short"),
    )
    namespace.wait(SUCCEEDED, "task/short", seconds=30)
    eventually(lambda: len(pods(namespace)) == 1, timeout=20)
    assert namespace.status("task", "long")["steps"]["running"] == 1
    namespace.wait(SUCCEEDED, "task/long", seconds=20)
    assert "failures" not in namespace.status("task", "long")
    eventually(lambda: pods(namespace) == [], timeout=20)


def test_a_step_that_ends_its_worker_is_tried_again_at_once_and_fails_with_the_reason(namespace: Namespace) -> None:
    """Nothing waits for a lease: the container's next process, or the operator, knows that the one before is gone."""
    deadly = HANDLERS + '\n\n@step_handler("die")\ndef die(context):\n    import os\n    os._exit(3)\n'
    namespace.apply(
        handlers(source=deadly),
        pool(minReplicas=1),
        template("deadly", step("a", "die", retry={"maxAttempts": 2, "baseMs": 10})),
        task("one", "deadly"),
    )
    namespace.wait("condition=Succeeded=False", "task/one")
    failures = namespace.status("task", "one")["failures"]
    assert [(each["attempt"], each["errorType"]) for each in failures] == [
        (number, "worker_crash_loop") for number in (2, 1)
    ]
    reasons = ("its process ended and was started anew", "its container ended: Error, exit code 3")
    assert all(each["message"].endswith(reasons) for each in failures), failures


def test_a_person_sets_the_number_with_kubectl_scale(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(replicas=1, scaling={"mode": "manual"}))
    eventually(lambda: len(pods(namespace)) == 1, timeout=20)
    namespace.kubectl("scale", "workerpool", "default", "--replicas=2")
    eventually(lambda: deployed_replicas(namespace) == 2, timeout=10)
    eventually(lambda: namespace.status("workerpool", "default").get("readyReplicas") == 2, timeout=30)
    namespace.kubectl("scale", "workerpool", "default", "--replicas=0")
    eventually(lambda: pods(namespace) == [], timeout=30)


def test_an_autoscalers_number_on_the_deployment_is_left_alone(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(scaling={"mode": "external"}), template("quick", step("a")))
    eventually(lambda: namespace.exists("deployment", DEPLOYMENT))
    assert deployed_replicas(namespace) == 0
    namespace.kubectl("scale", "deployment", DEPLOYMENT, "--replicas=1")
    namespace.apply(task("one", "quick"))
    namespace.wait(SUCCEEDED, "task/one", seconds=30)
    # A change that makes the operator apply the Deployment again.
    namespace.patch("workerpool", "default", {"spec": {"slots": 3}})
    eventually(
        lambda: (
            {"name": "TASKER_SLOTS", "value": "3"}
            in namespace.get("deployment", DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]["env"]
        )
    )
    assert deployed_replicas(namespace) == 1


def test_a_namespace_without_a_pool_gets_one_and_loses_it_to_a_persons_own(namespace: Namespace) -> None:
    namespace.apply(handlers("tasker-handlers"), template("quick", step("a")), task("one", "quick"))
    namespace.wait(SUCCEEDED, "task/one", seconds=40)
    managed = namespace.get("workerpool", "default")
    assert managed["metadata"]["labels"]["tasker.dev/managed"] == "true"
    namespace.apply(handlers(), pool("mine"), task("two", "quick"))
    namespace.wait(SUCCEEDED, "task/two", seconds=30)
    namespace.wait("delete", "workerpool/default", seconds=30)
    assert namespace.exists("workerpool", "mine")


def test_a_managed_pool_that_a_person_writes_over_becomes_theirs(namespace: Namespace) -> None:
    namespace.apply(template("quick", step("a")))
    eventually(lambda: namespace.exists("workerpool", "default"), timeout=20)
    namespace.apply(handlers(), pool(slots=3))
    eventually(lambda: "tasker.dev/managed" not in namespace.get("workerpool", "default")["metadata"].get("labels", {}))
    spec = namespace.get("workerpool", "default")["spec"]
    assert (spec["slots"], spec["handlersFrom"]["configMapRef"]["name"]) == (3, "handlers")
    namespace.apply(task("one", "quick"))
    namespace.wait(SUCCEEDED, "task/one", seconds=30)


def test_a_callable_that_no_worker_has_brings_a_worker_from_zero_and_keeps_none_up(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(), template("lost", step("a", "nobody-has-it")), task("t", "lost"))
    eventually(lambda: desired(namespace) == 1, timeout=30)
    eventually(lambda: namespace.status("workerpool", "default").get("readyReplicas"), timeout=60)
    eventually(lambda: desired(namespace) == 0, timeout=60)
    assert namespace.status("workerpool", "default")["queued"] == 0, "no demand of this pool's"
    assert namespace.status("task", "t")["steps"]["ready"] == 1
    # Handlers that have it are another pod template: the pool is tried again.
    namespace.apply(handlers(source=HANDLERS.replace('@step_handler("succeed")', '@step_handler("nobody-has-it")')))
    namespace.wait(SUCCEEDED, "task/t", seconds=60)
