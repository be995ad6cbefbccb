"""A pool that cannot have its workers says why: no pod can be made, or what the last one said before it ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from support.controller_fakes import START, ControllerKit, make_demand, pool
from tasker.controller.kube.conditions import find
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.pools.state import PoolState
from tasker.controller.pools.status import (
    LAST_WORDS_LIMIT,
    build_pool_status,
    missing_handlers_status,
    stalled_conditions,
)


def status_of(deployment_status: dict[str, Any], *pod_statuses: dict[str, Any]) -> dict[str, Any]:
    stored = ControllerKit().give(pool())
    metadata = {"name": "x", "namespace": "default", "uid": "u"}
    deployment = Deployment.parse(
        {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 1}, "status": deployment_status}
    )
    pods = [Pod.parse({"kind": "Pod", "metadata": metadata, "status": each}) for each in pod_statuses]
    state = PoolState(uid="u", desired=1)
    return build_pool_status(WorkerPool.parse(stored), state, deployment, pods=pods, selector="", now=START)


def condition(status: dict[str, Any], name: str) -> tuple[str, str, str]:
    found = find(status, name)
    assert found is not None
    return found["status"], found["reason"], found["message"]


def test_pods_that_cannot_be_made_stall_the_pool_with_the_api_servers_word() -> None:
    refused = 'pods "x-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refused}
    status = status_of({"conditions": [failure]})
    assert condition(status, "Stalled") == ("True", "FailedCreate", f"Pods cannot be created: {refused}")
    assert condition(status, "Progressing")[:2] == ("False", "FailedCreate")
    assert condition(status, "Ready")[0] == "False"
    over = status_of({"conditions": [{**failure, "status": "False"}]})
    assert condition(over, "Stalled")[:2] == ("False", "WorkersStarting")


def test_the_last_words_of_a_worker_are_shown() -> None:
    words = "Traceback …\nModuleNotFoundError: No module named 'stripe'\n"
    container = {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        "lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": "x" * 5000 + words}},
    }
    truth, reason, message = condition(status_of({}, {"containerStatuses": [container]}), "Stalled")
    assert (truth, reason) == ("True", "CrashLoopBackOff")
    assert message.startswith("Pod x: CrashLoopBackOff: back-off 10s. Its last words: xxx")
    assert message.endswith("No module named 'stripe'")
    assert len(message) < LAST_WORDS_LIMIT + 100


# In full.

METADATA = {"name": "x", "namespace": "default", "uid": "u"}


def deployment(*, asked: int | None = 1, replicas: int = 0, ready: int = 0, updated: int = 0) -> Deployment:
    status = {"replicas": replicas, "readyReplicas": ready, "updatedReplicas": updated}
    return Deployment.parse({"metadata": METADATA, "spec": {"replicas": asked}, "status": status})


def built(
    live: Deployment | None, state: PoolState, *pods: Pod, old: dict[str, Any] | None = None, later: float = 0
) -> dict[str, Any]:
    parsed = WorkerPool.parse({**pool(), "metadata": {**METADATA, "generation": 4}, "status": old or {}})
    now = START + timedelta(seconds=later)
    return build_pool_status(parsed, state, live, pods=pods, selector="a=b", now=now)


def wants(desired: int | None, **changes: Any) -> PoolState:
    return PoolState(uid="u", desired=desired, **changes)


def shown(status: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(each["type"], each["status"], each["reason"], each["message"]) for each in status["conditions"]]


@pytest.mark.parametrize(
    ("desired", "replicas", "ready", "updated", "truths", "reason", "message"),
    [
        (2, 2, 2, 2, ("True", "False"), "WorkersReady", "2 of 2 workers are ready."),
        (0, 0, 0, 0, ("True", "False"), "ScaledToZero", "No worker is needed now."),
        (2, 1, 1, 1, ("False", "True"), "WorkersStarting", "1 of 2 workers are ready."),
        (2, 2, 1, 2, ("False", "True"), "WorkersStarting", "1 of 2 workers are ready."),
        (2, 2, 2, 1, ("True", "True"), "WorkersLeaving", "2 of 2 workers are ready."),
        (2, 3, 3, 3, ("True", "True"), "WorkersLeaving", "3 of 2 workers are ready."),
        (0, 1, 1, 1, ("True", "True"), "WorkersLeaving", "1 of 0 workers are ready."),
    ],
)
def test_the_conditions_of_a_pool(
    desired: int, replicas: int, ready: int, updated: int, truths: tuple[str, str], reason: str, message: str
) -> None:
    status = built(deployment(replicas=replicas, ready=ready, updated=updated), wants(desired))
    assert shown(status) == [
        ("Ready", truths[0], reason, message),
        ("Progressing", truths[1], reason, message),
        ("Stalled", "False", reason, message),
    ]


def test_the_whole_status_of_a_pool() -> None:
    demand = replace(make_demand("default", "x", queued=3, running=2), oldest_ready_seconds=65.0)
    state = wants(7, reason="r" * 300, demand=demand, scaled=True)
    status = built(deployment(replicas=5, ready=4, updated=3), state)
    conditions = status.pop("conditions")
    assert {(each["observedGeneration"], each["lastTransitionTime"]) for each in conditions} == {
        (4, "2031-01-01T00:00:00Z")
    }
    assert status == {
        "observedGeneration": 4,
        "replicas": 5,
        "readyReplicas": 4,
        "desiredReplicas": 7,
        "queued": 3,
        "running": 2,
        "oldestReadySeconds": 60,
        "reason": "r" * 255 + "…",
        "selector": "a=b",
        "lastScaleTime": "2031-01-01T00:00:00Z",
    }


def test_before_anything_was_observed_the_status_shows_what_is_known() -> None:
    status = built(None, wants(None))
    assert [each[1:3] for each in shown(status)] == [
        ("True", "ScaledToZero"),
        ("False", "ScaledToZero"),
        ("False", "ScaledToZero"),
    ]
    del status["conditions"]
    assert status == {
        "observedGeneration": 4,
        "replicas": 0,
        "readyReplicas": 0,
        "desiredReplicas": 0,
        "queued": 0,
        "running": 0,
        "oldestReadySeconds": 0,
        "reason": "not observed yet",
        "selector": "a=b",
    }
    old = {"queued": 5, "running": 6, "lastScaleTime": "2030-01-01T00:00:00Z"}
    after_restart = built(deployment(asked=3), wants(None), old=old)
    assert (after_restart["queued"], after_restart["running"], after_restart["desiredReplicas"]) == (5, 6, 3)
    assert after_restart["lastScaleTime"] == "2030-01-01T00:00:00Z"
    assert built(deployment(asked=None), wants(None))["desiredReplicas"] == 0


def test_numbers_that_a_deployment_leaves_out_are_none_at_all() -> None:
    """As the API server writes zero: during a roll-out all workers may be of the template before."""
    status = status_of({"replicas": 1, "readyReplicas": 1})
    assert condition(status, "Progressing")[:2] == ("True", "WorkersLeaving")
    assert condition(status_of({"updatedReplicas": 1}), "Ready")[2] == "0 of 1 workers are ready."


def test_a_transition_time_stays_until_the_condition_changes() -> None:
    first = built(deployment(), wants(1))
    second = built(deployment(replicas=1, ready=1, updated=1), wants(1), old=first, later=30)
    times = {each["type"]: each["lastTransitionTime"][-3:-1] for each in second["conditions"]}
    assert times == {"Ready": "30", "Progressing": "30", "Stalled": "00"}


# Pods that cannot run.


def waiting_pod(reason: str, message: str = "", *, name: str = "p", **metadata: Any) -> Pod:
    running: dict[str, Any] = {"state": {}}
    stuck = {"state": {"waiting": {"reason": reason, "message": message}}}
    return Pod.parse(
        {"metadata": {**METADATA, "name": name, **metadata}, "status": {"containerStatuses": [running, stuck]}}
    )


@pytest.mark.parametrize(
    "reason",
    [
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    ],
)
def test_a_pod_that_cannot_run_without_help_stalls_the_pool(reason: str) -> None:
    status = built(deployment(replicas=1, ready=1, updated=1), wants(1), waiting_pod(reason, "see there"))
    assert shown(status) == [
        ("Ready", "True", "WorkersReady", "1 of 1 workers are ready."),
        ("Progressing", "False", reason, f"Pod p: {reason}: see there"),
        ("Stalled", "True", reason, f"Pod p: {reason}: see there"),
    ]


def test_the_first_stuck_pod_speaks_and_one_that_starts_or_goes_does_not() -> None:
    pods = [
        waiting_pod("ContainerCreating", name="a"),
        waiting_pod("ErrImagePull", name="b", deletionTimestamp="2031-01-01T00:00:00Z"),
        waiting_pod("InvalidImageName", name="c"),
        waiting_pod("ErrImagePull", name="d"),
    ]
    assert condition(built(deployment(), wants(1), *pods), "Stalled")[2] == "Pod c: InvalidImageName"
    assert condition(built(deployment(), wants(1), *pods[:2]), "Stalled")[0] == "False"


@pytest.mark.parametrize(
    ("words", "told"),
    [("  \n", ""), ("bye\n", ". Its last words: bye"), ("a" * 9 + "b" * 600, ". Its last words: " + "b" * 600)],
)
def test_last_words_are_trimmed_to_their_end(words: str, told: str) -> None:
    container = {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"message": words}},
    }
    pod = Pod.parse({"metadata": METADATA, "status": {"containerStatuses": [container]}})
    assert condition(built(deployment(), wants(1), pod), "Stalled")[2] == f"Pod x: CrashLoopBackOff{told}"


def test_a_failed_creation_without_a_reason_has_one_and_other_conditions_are_no_failure() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "no"}
    other = {"type": "Progressing", "status": "True", "reason": "Fine", "message": "yes"}
    expected = ("True", "ReplicaFailure", "Pods cannot be created: no")
    assert condition(status_of({"conditions": [other, failure]}), "Stalled") == expected
    assert condition(status_of({"conditions": [other]}), "Stalled")[0] == "False"


# Pools for which nothing is done.


def test_a_pool_whose_handlers_are_missing_keeps_what_it_showed() -> None:
    old = {"replicas": 2, "queued": 7, "reason": "7 queued"}
    parsed = WorkerPool.parse({**pool(), "metadata": {**METADATA, "generation": 4}, "status": old})
    status = missing_handlers_status(parsed, "h" * 300, now=START)
    message = f"There is no ConfigMap {'h' * 300} in namespace default."
    assert shown(status) == [
        ("Ready", "False", "HandlersNotFound", message),
        ("Progressing", "False", "HandlersNotFound", message),
        ("Stalled", "True", "HandlersNotFound", message),
    ]
    assert {each["lastTransitionTime"] for each in status.pop("conditions")} == {"2031-01-01T00:00:00Z"}
    reason = "waiting for ConfigMap " + "h" * 233 + "…"
    assert status == {"replicas": 2, "queued": 7, "reason": reason, "observedGeneration": 4}


def test_a_stalled_pool_is_neither_ready_nor_progressing() -> None:
    conditions = stalled_conditions(reason="Why", message="because")
    assert [(each.type, each.status, each.reason, each.message) for each in conditions] == [
        ("Ready", "False", "Why", "because"),
        ("Progressing", "False", "Why", "because"),
        ("Stalled", "True", "Why", "because"),
    ]
