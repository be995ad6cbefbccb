"""Tasks through kubectl: from apply to Succeeded, waiting, refusing, steering, ending."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest

from devcluster.kubectl import find_kubectl
from support.cluster import HANDLERS, ClusterUnderTest, Namespace, handlers, pool, step, task, template
from support.waiting import PATIENCE, eventually

SUCCEEDED = "condition=Succeeded"


def phase(namespace: Namespace, name: str) -> str:
    found: str = namespace.status("task", name).get("phase", "")
    return found


def chain(length: int) -> list[dict[str, Any]]:
    """Steps one after the other, half a second each."""
    return [
        step(f"s{number}", "sleep", after=[f"s{number - 1}"] if number else [], configuration={"seconds": 0.5})
        for number in range(length)
    ]


def test_a_task_runs_from_apply_to_succeeded_and_its_status_tells_how(namespace: Namespace) -> None:
    namespace.apply(
        handlers(),
        pool(),
        template("diamond", step("a"), step("b", after=["a"]), step("c", after=["a"]), step("d", after=["b", "c"])),
        task("one", "diamond", context={"value": 3}),
    )
    namespace.wait(SUCCEEDED, "task/one")
    status = namespace.status("task", "one")
    assert status["state"] == "complete"
    assert status["progress"] == "4/4"
    assert status["result"] == {"d": {"done": "d"}}
    assert status["steps"] == {
        "total": 4,
        "ready": 0,
        "running": 0,
        "waiting": 0,
        "complete": 4,
        "failed": 0,
        "skipped": 0,
        "cancelled": 0,
    }
    assert status["startTime"] <= status["completionTime"]
    assert status["revision"] == namespace.status("tasktemplate", "diamond")["revision"]
    assert status["observedGeneration"] == 1
    eventually(lambda: {"TaskAccepted", "TaskSucceeded"} <= namespace.event_reasons("one"))
    assert namespace.kubectl("get", "task", "one", "--no-headers").split()[:4] == ["one", "diamond", "complete", "4/4"]


def test_a_result_is_shown_with_its_nulls(namespace: Namespace) -> None:
    result = {"a": None, "b": [None], "c": {"d": None}}
    source = f"{HANDLERS}\n\n@step_handler('nulls')\ndef nulls(context):\n    return {result}\n"
    namespace.apply(handlers(source=source), pool(), template("nulls", step("a", "nulls")), task("one", "nulls"))
    namespace.wait(SUCCEEDED, "task/one")
    assert namespace.status("task", "one")["result"] == {"a": result}


def test_a_task_waits_for_its_template_and_starts_by_itself_when_it_comes(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(), task("early", "later"))
    message = namespace.eventually_condition("task", "early", "Accepted", "False", "TemplateNotFound")
    assert message == f"There is no TaskTemplate later in namespace {namespace.name}."
    namespace.apply(template("later", step("a")))
    namespace.wait(SUCCEEDED, "task/early")


def test_a_context_against_the_schema_is_refused_until_the_template_takes_it(namespace: Namespace) -> None:
    total = {"type": "number", "minimum": 0}
    schema = {"$defs": {"total": total}, "required": ["total"], "properties": {"total": {"$ref": "#/$defs/total"}}}
    strict = template("strict", step("a"), inputSchema=schema)
    namespace.apply(handlers(), pool(), strict, task("bad", "strict", context={"total": -1}))
    message = namespace.eventually_condition("task", "bad", "Stalled", "True", "InvalidContext")
    assert message == "spec.context/total: must be at least 0"
    assert "taskUuid" not in namespace.status("task", "bad")
    namespace.apply(template("strict", step("a"), inputSchema=schema, schemaEnforcement="warn"))
    namespace.wait(SUCCEEDED, "task/bad")
    eventually(lambda: {"TaskInvalid", "InvalidContext"} <= namespace.event_reasons("bad"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [step("a", after=["b"]), step("b", after=["a"])],
            "spec.steps: dependencies form a cycle: a → b → a",
        ),
        ([step("a"), step("b", after=["c"])], "spec.steps[1].dependsOn[0]: unknown step 'c'"),
    ],
    ids=["cycle", "unknown dependency"],
)
def test_an_invalid_template_says_where_and_why_and_recovers_when_it_is_fixed(
    namespace: Namespace, steps: list[dict[str, Any]], message: str
) -> None:
    namespace.apply(handlers(), pool(), template("broken", *steps), task("hopeful", "broken"))
    assert namespace.eventually_condition("tasktemplate", "broken", "Ready", "False", "InvalidSpec") == message
    assert namespace.condition("tasktemplate", "broken", "Stalled") == ("True", "InvalidSpec", message)
    waiting = namespace.eventually_condition("task", "hopeful", "Accepted", "False", "TemplateNotReady")
    assert waiting == f"TaskTemplate broken is not ready: {message}"
    eventually(lambda: "TemplateInvalid" in namespace.event_reasons("broken"))
    namespace.apply(template("broken", step("a"), step("b", after=["a"])))
    namespace.wait("condition=Ready", "tasktemplate/broken")
    namespace.wait(SUCCEEDED, "task/hopeful")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (template("t", step("a", after=["a"])), "spec.steps[0]: Invalid value: {}: a step must not depend on itself"),
        (template("t", step("a"), step("a")), 'spec.steps[1]: Duplicate value: {"name":"a"}'),
        (template("t", step("a"), version="1.x"), 'spec.version: Invalid value: "1.x": must be a semantic version'),
        (template("t"), "spec.steps: Invalid value: 0: spec.steps in body should have at least 1 items"),
        (template("t", step("A")), 'spec.steps[0].name: Invalid value: "A"'),
        (template("t", step("a", type="loop")), 'spec.steps[0].type: Unsupported value: "loop"'),
        (
            template("t", step("a", type="deferred_convergence")),
            "spec.steps[0]: Invalid value: {}: a deferred_convergence needs dependsOn",
        ),
        (
            template("t", step("a"), environments={"prod": {}}),
            "spec.environments: Invalid value: {}: an environment is test, development or production",
        ),
        (
            template("t", step("a"), environments={"test": {"ALL": {"retry": {"baseMs": 2, "maxMs": 1}}}}),
            "spec.environments[test][ALL].retry: Invalid value: {}: baseMs must not exceed maxMs",
        ),
        (
            template("t", step("a"), environments={"test": {"a": {"timeoutSeconds": 0}}}),
            "spec.environments.test.a.timeoutSeconds in body should be greater than or equal to 1",
        ),
        (
            template("t", step("a"), lifecycle={"maxBlockedSeconds": 60}),
            "spec: Invalid value: {}: lifecycle.maxBlockedSeconds needs onFailure: block",
        ),
        (template("t", step("a"), onFailure="wait"), 'spec.onFailure: Unsupported value: "wait"'),
        (template("t", step("a", when="")), "spec.steps[0].when in body should be at least 1 chars long"),
        (task("t", "x", context=[1]), "spec.context in body must be of type object"),
        (task("t", "x", priority=101), "spec.priority in body should be less than or equal to 100"),
        (pool(minReplicas=3, maxReplicas=2), "maxReplicas must not be below minReplicas"),
        (pool(handlersFrom=None), "give handlers, handlersFrom or an image that brings its own handlers"),
        (pool(replicas=3), "replicas may be set only with scaling.mode external or manual"),
        (pool(scaling={"mode": "manual"}), "scaling.mode manual needs replicas"),
        (pool(env=[{"name": "DATABASE_URL", "value": "x"}]), "this variable is set by the operator"),
        (
            template("t", step("a"), identity={"windowSeconds": 60}),
            "windowSeconds needs a strategy other than alwaysUnique",
        ),
        (
            template("t", step("a"), concurrency={"maxTasks": 0}),
            "spec.concurrency.maxTasks in body should be greater than",
        ),
        (template("t", step("a"), surprise=1), 'unknown field "spec.surprise"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_be_refused_at_apply_is_refused_with_its_path(
    namespace: Namespace, manifest: dict[str, Any], message: str
) -> None:
    said = namespace.refused(manifest)
    # What a server shows as the value of a whole object differs from release to release.
    expected = message.replace("Invalid value: {}: ", "")
    assert all(part in said for part in expected.split(": ")), said


def test_what_a_run_was_made_from_cannot_be_changed_and_the_rest_can(namespace: Namespace) -> None:
    namespace.apply(template("a", step("a")), task("one", "a", context={"value": 1}))
    for patch, message in (
        ({"context": {"value": 2}}, "context is immutable; create a new Task instead"),
        ({"templateRef": {"name": "b"}}, "templateRef is immutable; create a new Task instead"),
        ({"priority": 9}, "priority is immutable"),
        ({"idempotencyKey": "x"}, "idempotencyKey is immutable"),
        ({"tags": ["x"]}, "tags are immutable"),
    ):
        with pytest.raises(AssertionError) as caught:
            namespace.patch("task", "one", {"spec": patch})
        assert message in str(caught.value)
    namespace.patch("task", "one", {"spec": {"ttlSecondsAfterFinished": 600, "cancel": True}})
    with pytest.raises(AssertionError) as caught:
        namespace.patch("task", "one", {"spec": {"cancel": False}})
    assert "cancel is final; a cancelled Task cannot be revived" in str(caught.value)


def test_a_failing_step_is_told_with_its_error_and_the_task_is_failed(namespace: Namespace) -> None:
    namespace.apply(
        handlers(),
        pool(),
        template("doomed", step("pay", "refuse"), step("ship", after=["pay"])),
        task("bad", "doomed"),
    )
    namespace.wait("condition=Succeeded=False", "task/bad")
    status = namespace.status("task", "bad")
    assert status["state"] == "error"
    assert status["phase"] == "Failed"
    assert [(failure["step"], failure["attempt"], failure["final"]) for failure in status["failures"]] == [
        ("pay", 1, True)
    ]
    assert "the card was declined" in status["failures"][0]["message"]
    assert namespace.condition("task", "bad", "Stalled")[:2] == ("True", "StepsFailed")
    assert "Step pay failed" in namespace.condition("task", "bad", "Succeeded")[2]
    eventually(lambda: {"StepFailed", "TaskFailed"} <= namespace.event_reasons("bad"))


def test_a_result_against_the_schema_fails_its_step_unless_the_template_does_not_look(namespace: Namespace) -> None:
    pay = step("pay", resultSchema={"required": ["receipt"]}, retry={"retryable": False})
    namespace.apply(
        handlers(),
        pool(),
        template("strict", pay),
        template("lenient", pay, schemaEnforcement="off"),
        task("bad", "strict"),
        task("good", "lenient"),
    )
    namespace.wait("condition=Succeeded=False", "task/bad")
    assert "receipt" in namespace.status("task", "bad")["failures"][0]["message"]
    namespace.wait(SUCCEEDED, "task/good")


def test_a_flaky_step_is_retried_and_the_failed_attempts_stay_visible(namespace: Namespace) -> None:
    flaky = step("call", "flaky", retry={"maxAttempts": 5, "baseMs": 50, "backoff": "none"})
    namespace.apply(handlers(), pool(), template("flaky", flaky), task("patient", "flaky"))
    namespace.wait(SUCCEEDED, "task/patient")
    status = namespace.status("task", "patient")
    assert status["result"] == {"call": {"attempts": 3}}
    assert [(failure["attempt"], failure["final"]) for failure in status["failures"]] == [(2, False), (1, False)]


def test_a_suspended_task_starts_nothing_until_it_is_resumed(namespace: Namespace) -> None:
    namespace.apply(
        handlers(), pool(), template("two", step("a"), step("b", after=["a"])), task("held", "two", suspend=True)
    )
    namespace.eventually_condition("task", "held", "Reconciling", "True", "Suspended")
    assert namespace.status("task", "held")["progress"] == "0/2"
    namespace.patch("task", "held", {"spec": {"suspend": False}})
    namespace.wait(SUCCEEDED, "task/held")


def test_cancel_ends_a_running_task(namespace: Namespace) -> None:
    slow = template("slow", step("a", "sleep", configuration={"seconds": 30}), step("b", after=["a"]))
    namespace.apply(handlers(), pool(), slow, task("stopped", "slow"))
    eventually(lambda: namespace.status("task", "stopped").get("steps", {}).get("running") == 1, timeout=30)
    namespace.patch("task", "stopped", {"spec": {"cancel": True}})
    namespace.wait("condition=Succeeded=False", "task/stopped", seconds=10)
    status = namespace.status("task", "stopped")
    assert (status["state"], status["steps"]["cancelled"]) == ("cancelled", 2)
    assert namespace.condition("task", "stopped", "Succeeded")[1] == "Cancelled"
    eventually(lambda: "TaskCancelled" in namespace.event_reasons("stopped"))


def test_deleting_a_task_ends_its_run(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(), template("long", *chain(100)), task("gone", "long"))
    eventually(lambda: phase(namespace, "gone") == "Running")
    eventually(lambda: namespace.status("workerpool", "default").get("running") == 1, timeout=30)
    namespace.kubectl("delete", "task", "gone")
    eventually(lambda: namespace.status("workerpool", "default")["desiredReplicas"] == 0, timeout=20)


def test_a_finished_task_goes_after_its_time(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(), template("brief", step("a")), task("short", "brief", ttlSecondsAfterFinished=1))
    namespace.wait("delete", "task/short", seconds=30)


def test_fifty_tasks_all_succeed(namespace: Namespace) -> None:
    namespace.apply(handlers(), pool(), template("quick", step("a"), step("b", after=["a"])))
    namespace.apply(*(task(f"t{number}", "quick", context={"n": number}) for number in range(50)))
    namespace.wait(SUCCEEDED, "task", "--all", seconds=60)
    eventually(lambda: namespace.status("tasktemplate", "quick").get("tasks", {}).get("complete") == 50, timeout=20)


def test_tasks_go_on_without_the_operator_and_the_next_one_shows_them_succeeded(
    cluster: ClusterUnderTest, namespace: Namespace
) -> None:
    slow = template("slow", step("a", "sleep", configuration={"seconds": 1}), step("b", after=["a"]))
    namespace.apply(handlers(), pool(minReplicas=2), slow)
    namespace.wait("condition=Ready", "workerpool/default")
    namespace.apply(*(task(f"t{number}", "slow") for number in range(50)))
    namespace.wait("condition=Accepted", "task", "--all", seconds=30)
    cluster.installation.kill()
    namespace.wait(SUCCEEDED, "task", "--all", seconds=60)


def test_a_deletion_that_the_operator_missed_still_ends_the_run(
    cluster: ClusterUnderTest, namespace: Namespace
) -> None:
    namespace.apply(handlers(), pool(), template("long", *chain(100)), task("missed", "long"))
    eventually(lambda: namespace.status("workerpool", "default").get("running") == 1, timeout=30)
    cluster.installation.pause()
    namespace.kubectl("delete", "task", "missed")
    cluster.installation.resume()
    eventually(lambda: namespace.status("workerpool", "default")["desiredReplicas"] == 0, timeout=30)


def test_a_task_of_a_thousand_steps_keeps_its_status_small_and_costs_few_writes(namespace: Namespace) -> None:
    """50 layers of 20 steps, each depending on the whole layer before."""
    steps = []
    for layer in range(50):
        above = [f"s{layer - 1}-{place}" for place in range(20)] if layer else []
        steps += [step(f"s{layer}-{place}", after=above) for place in range(20)]
    namespace.apply(handlers(), pool(slots=20))
    namespace.kubectl("create", "-f", "-", given=json.dumps(template("layers", *steps)))
    namespace.wait("condition=Ready", "tasktemplate/layers")
    namespace.apply(task("thousand", "layers", suspend=True))
    watch = subprocess.Popen(
        [
            str(find_kubectl()),
            f"--kubeconfig={namespace.kubeconfig}",
            f"--namespace={namespace.name}",
            *("get", "tasks", "--watch", '--output=jsonpath={.status.progress}{"\\n"}'),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        watch.stdout.readline()  # it is told of all that comes from here on
        started = time.monotonic()
        namespace.patch("task", "thousand", {"spec": {"suspend": False}})
        namespace.wait(SUCCEEDED, "task/thousand", seconds=120)
        took = time.monotonic() - started
    finally:
        watch.terminate()
        seen, _ = watch.communicate(timeout=10 * PATIENCE)
    status = namespace.status("task", "thousand")
    assert status["progress"] == "1000/1000"
    assert len(json.dumps(status)) < 16 * 1024
    writes = len(seen.splitlines())
    assert 2 <= writes < 200
    assert writes <= took + 5, "at most one write a second, and the ends"
