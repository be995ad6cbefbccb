"""Every API call of a whole run of the operator is written down: its roles grant each, and grant nothing else.

The embedded API server's log of calls tells the operator's from kubectl's and the node's by its token. `test_rbac`
holds the roles against a list made by reading the code; this holds them against what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import REPOSITORY, Kubectl, api_of
from support.chart import render
from support.cluster import EmbeddedCluster, Namespace, embedded_cluster, handlers, pool, step, task, template
from support.helm import Helm
from support.operator_process import OperatorProcess, running_operator
from support.rbac import Call, grants_of
from support.waiting import eventually

SERVED = ("orders", "billing")
SUCCEEDED = "condition=Succeeded"
QUICK = {
    "TASKER_MANAGED_POOL_GRACE_SECONDS": "0.5",
    "TASKER_MANAGED_POOL": '{"handlersFrom": {"configMapRef": {"name": "handlers"}}, "scaling": {"idleSeconds": 1}}',
}


@pytest.fixture(params=["own-database", "some-namespaces"])
def row(request: pytest.FixtureRequest) -> str:
    """A row of the matrix: the operator serves the whole cluster, or `SERVED`."""
    found: str = request.param
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with embedded_cluster(tmp_path / "cluster") as running:
        kubectl = Kubectl(kubeconfig=running.kubeconfig)
        kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
        for name in SERVED:
            kubectl("create", "namespace", name)
        running.begin_recording()
        yield running


@pytest.fixture
def operator(cluster: EmbeddedCluster, database_url: str, tmp_path: Path, row: str) -> Iterator[OperatorProcess]:
    served = {"TASKER_WATCH_NAMESPACES": ",".join(SERVED)} if row == "some-namespaces" else {}
    log = tmp_path / "operator.log"
    with running_operator(database_url, cluster.operator_kubeconfig, log, **QUICK, **served) as running:
        running.await_ready()
        yield running
        running.end()


def refuse_next_statuses(cluster: EmbeddedCluster) -> None:
    """The next status of each of our kinds is refused as written on an old version."""
    rules = [
        {"action": "error", "verb": "patch", "resource": f"{kind}.tasker.dev", "status": 409, "count": 1}
        for kind in ("tasktemplates", "tasks", "workerpools")
    ]
    assert api_of(cluster.kubeconfig).request("PUT", "/debug/faults", {"rules": rules}).code == 200


def live_through_everything(cluster: EmbeddedCluster, namespace: Namespace) -> None:
    """All that can happen to templates, Tasks and pools and makes the operator call."""
    slow = template("slow", step("a", "sleep", configuration={"seconds": 1}))
    namespace.apply(handlers(), slow, task("managed", "slow"))
    namespace.wait(SUCCEEDED, "task/managed", seconds=40)
    assert "tasker.dev/managed" in namespace.get("workerpool", "default")["metadata"]["labels"]

    refuse_next_statuses(cluster)
    namespace.apply(pool("mine", slots=1, maxReplicas=3, scaling={"idleSeconds": 2, "downSeconds": 1}))
    namespace.wait("delete", "workerpool/default", seconds=30)
    long = template("long", step("a", "sleep", configuration={"seconds": 6}))
    # The pool shrinks while one worker is busy, so that the others are made the cheapest to delete.
    namespace.apply(long, task("long", "long"), *(task(f"t{number}", "slow") for number in range(4)))
    namespace.wait(SUCCEEDED, "task", "--all", seconds=60)

    namespace.apply(task("brief", "slow", ttlSecondsAfterFinished=1))
    namespace.wait("delete", "task/brief", seconds=40)
    deployment = "tasker-worker-mine"
    namespace.patch("deployment", deployment, {"spec": {"minReadySeconds": 1, "replicas": 2}})
    eventually(lambda: namespace.get("deployment", deployment)["spec"]["replicas"] == 0, timeout=20)

    namespace.apply(pool("scaled", scaling={"mode": "external"}))
    namespace.wait("condition=Ready", "workerpool/scaled", seconds=20)


def describe(objects: list[Any]) -> str:
    return "\n".join(str(each) for each in objects)


def test_each_call_of_a_whole_run_is_granted_and_each_grant_is_used(
    helm: Helm, cluster: EmbeddedCluster, operator: OperatorProcess, row: str
) -> None:
    live_through_everything(cluster, Namespace(cluster.kubeconfig, SERVED[0]))
    made = cluster.operator_calls()
    assert Call(verb="delete", group="tasker.dev", resource="tasks", namespace="orders", name="brief") in made
    grants = grants_of(render(helm, row), account="tasker")
    refused = [call for call in made if not any(grant.allows(call) for grant in grants)]
    assert refused == [], f"calls that no role grants:\n{describe(refused)}"
    # The other namespaces of the row have the same Role and saw no work.
    looked_at = [grant for grant in grants if grant.namespace in (None, SERVED[0])]
    unused = sorted(grant for grant in looked_at if not any(grant.allows(call) for call in made))
    assert unused == [], f"rights that the run did not use:\n{describe(unused)}"
