"""A pool that cannot have its workers says why: no pod can be made, or what the last one said before it ended."""

from __future__ import annotations

from typing import Any

from support.controller_fakes import START, ControllerKit, pool
from tasker.controller.kube.conditions import find
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.pools.state import PoolState
from tasker.controller.pools.status import LAST_WORDS_LIMIT, build_pool_status


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
