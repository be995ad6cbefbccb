"""The chart on a cluster: what helm installs, changes and takes away, and that nothing holds on to what is left.

Where the chart's operator is the one under test (TASKER_TEST_OPERATOR=chart) its release is used. Elsewhere a release
of its own is made whose operator image is nowhere, so that no second operator starts: everything but that pod and the
hooks is as it would be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.cluster import ClusterUnderTest, Namespace, handlers, pool, step, task, template
from support.cluster_settings import OPERATOR
from support.helm import CHARTS, Helm, find_helm
from support.installation import DEFINITIONS, ChartInstallation
from support.waiting import eventually

SUCCEEDED = "condition=Succeeded"
IN_NAMESPACE = "deployments,services,serviceaccounts,networkpolicies,roles,rolebindings"
IN_CLUSTER = "clusterroles,clusterrolebindings"
DEPLOYMENT = "tasker-worker-default"


class Release:
    """`helm … standin` in one namespace."""

    def __init__(self, helm: Helm, namespace: Namespace, served: Namespace) -> None:
        self._helm = helm
        self.namespace = namespace
        self.served = served

    def helm(self, *arguments: str) -> str:
        options = ("--namespace", self.namespace.name)
        return self._helm.run(*arguments, *options, kubeconfig=self.namespace.kubeconfig, timeout=120)

    def apply(self, command: str, **values: Any) -> None:
        every = {
            "fullnameOverride": "standin",
            "database": {"existingSecret": "postgres"},
            "image": {"repository": "registry.example/not-there", "pullPolicy": "Never"},
            # They are the suite's, and stay when this release goes.
            "crds": {"enabled": False},
            "watchNamespaces": [self.served.name],
            **values,
        }
        file = self._helm.home / "standin.yaml"
        file.write_text(yaml.safe_dump(every), encoding="utf-8")
        self.helm(command, "standin", str(CHARTS / "tasker"), "--no-hooks", "--values", str(file))

    def objects(self, kinds: str, namespace: Namespace | None = None) -> set[tuple[str, str]]:
        """Kind and name of the release's objects in a namespace (its own) or, for such kinds, the cluster."""
        labels = f"app.kubernetes.io/instance=standin,tasker.dev/standin={self.namespace.name}"
        listed = (namespace or self.namespace).list(kinds, f"--selector={labels}")
        return {(each["kind"], each["metadata"]["name"]) for each in listed}


@pytest.fixture
def release(cluster: ClusterUnderTest, namespace: Namespace, tmp_path: Path) -> Iterator[Release]:
    if cluster.settings.operator == "chart":
        pytest.skip("the suite's own release shows the same, with its pods")
    with cluster.namespace() as served:
        made = Release(find_helm(tmp_path), namespace, served)
        yield made
        made.helm("uninstall", "standin", "--no-hooks", "--ignore-not-found")


def test_a_release_comes_changes_and_goes(release: Release) -> None:
    labels = {"tasker.dev/standin": release.namespace.name}
    release.apply("install", commonLabels=labels)
    name = f"{release.namespace.name}-standin"
    assert release.objects(IN_NAMESPACE) == {
        ("Deployment", "standin"),
        ("NetworkPolicy", "standin"),
        ("NetworkPolicy", "standin-test"),
        ("Role", "standin-test"),
        ("RoleBinding", "standin-test"),
        ("Service", "standin"),
        ("ServiceAccount", "standin"),
        ("ServiceAccount", "standin-test"),
    }
    test = {("ClusterRole", f"{name}-test"), ("ClusterRoleBinding", f"{name}-test")}
    roles = {("ClusterRole", name), ("ClusterRole", f"{name}-view"), ("ClusterRole", f"{name}-edit")}
    assert release.objects(IN_CLUSTER) == {*roles, ("ClusterRoleBinding", name), *test}
    assert release.objects(IN_NAMESPACE, release.served) == {("Role", name), ("RoleBinding", name)}
    # The namespace admits restricted pods only: that there is one shows that the operator's is.
    eventually(lambda: release.namespace.list("pods"), timeout=20, what="the operator's pod is made")

    release.apply("upgrade", commonLabels=labels, logLevel="debug", rbac={"userRoles": False})
    [container] = release.namespace.get("deployment", "standin")["spec"]["template"]["spec"]["containers"]
    assert {"name": "TASKER_LOG", "value": "debug"} in container["env"]
    assert release.objects(IN_CLUSTER) == {("ClusterRole", name), ("ClusterRoleBinding", name), *test}
    assert [each["revision"] for each in json.loads(release.helm("list", "--output=json"))] == ["2"]

    release.helm("uninstall", "standin", "--no-hooks")
    assert release.objects(IN_NAMESPACE) == release.objects(IN_CLUSTER) == set()
    assert release.objects(IN_NAMESPACE, release.served) == set()
    assert json.loads(release.helm("list", "--output=json")) == []


@pytest.fixture
def chart(cluster: ClusterUnderTest) -> ChartInstallation:
    if not isinstance(cluster.installation, ChartInstallation):
        pytest.skip(f"needs the chart's hooks and pods: a real cluster and {OPERATOR}=chart")
    return cluster.installation


def test_helm_test_passes(chart: ChartInstallation) -> None:
    told = chart.helm("test", "tasker", "--timeout", "3m")
    assert (told.count("TEST SUITE:"), told.count("Succeeded")) == (1, 1)


def test_the_chart_is_upgraded_with_tasks_running(chart: ChartInstallation, namespace: Namespace) -> None:
    slow = template("slow", step("a", "sleep", configuration={"seconds": 5}, retry={"maxAttempts": 1}))
    namespace.apply(handlers(), pool(slots=20), slow, *(task(f"t{number}", "slow") for number in range(20)))
    eventually(lambda: namespace.status("workerpool", "default").get("running"), timeout=30)
    before = chart.helm("history", "tasker", "--output=json")
    chart.upgrade()
    assert len(json.loads(chart.helm("history", "tasker", "--output=json"))) == len(json.loads(before)) + 1
    namespace.wait(SUCCEEDED, "task", "--all", seconds=60)
    assert not [each for each in namespace.list("tasks") if "failures" in each["status"]]


@pytest.fixture
def narrow(cluster: ClusterUnderTest, chart: ChartInstallation, namespace: Namespace) -> Iterator[Namespace]:
    """The namespace that a second release serves, in place of the suite's own."""
    chart.pause()
    chart.install_beside("narrow", watchNamespaces=[namespace.name], rbac={"userRoles": False}, crds={"enabled": False})
    yield namespace
    chart.helm("uninstall", "narrow", "--ignore-not-found", "--wait", "--timeout", "2m")
    chart.resume()


def test_a_release_with_rights_in_one_namespace_serves_it_and_no_other(
    cluster: ClusterUnderTest, narrow: Namespace
) -> None:
    work = (handlers(), pool(slots=1), template("quick", step("a", "sleep", configuration={"seconds": 1})))
    with cluster.namespace() as other:
        other.apply(*work, task("theirs", "quick"))
        narrow.apply(*work, *(task(f"t{number}", "quick", ttlSecondsAfterFinished=2) for number in range(3)))
        eventually(lambda: narrow.status("workerpool", "default").get("desiredReplicas") == 3, timeout=10)
        narrow.wait("delete", "task", "--all", seconds=40)
        eventually(lambda: narrow.status("workerpool", "default")["desiredReplicas"] == 0, timeout=30)
        assert "status" not in other.get("task", "theirs")
        assert not other.exists("deployment", DEPLOYMENT)


def finalizers(objects: Sequence[dict[str, Any]]) -> list[str]:
    return [name for each in objects for name in each["metadata"].get("finalizers") or ()]


def test_what_is_left_without_the_operator_can_be_deleted(cluster: ClusterUnderTest, namespace: Namespace) -> None:
    """The product is taken away in the midst of things: nothing of ours waits for an operator that does not come."""
    namespace.apply(
        handlers(),
        pool(terminationGracePeriodSeconds=6),
        template("quick", step("a")),
        template("long", step("a", "sleep", configuration={"seconds": 120})),
        task("done", "quick"),
        task("running", "long"),
    )
    namespace.wait(SUCCEEDED, "task/done")
    eventually(lambda: namespace.status("task", "running").get("steps", {}).get("running") == 1, timeout=30)
    cluster.uninstall()
    assert namespace.exists("task", "running"), "definitions and resources outlive the operator"
    assert namespace.list(IN_CLUSTER, f"--selector={cluster.selector}") == []
    kinds = "tasks,tasktemplates,workerpools,deployments,pods,secrets,configmaps,serviceaccounts,networkpolicies"
    assert finalizers(namespace.list(kinds)) == []
    namespace.kubectl("delete", "task", "running", "--timeout=20s")
    namespace.kubectl("delete", "workerpool", "default", "--timeout=20s")
    eventually(
        lambda: not namespace.exists("deployment", DEPLOYMENT), timeout=20, what="the workers go with their pool"
    )
    namespace.kubectl("delete", "namespace", namespace.name, "--timeout=120s", timeout=130)
    kept = namespace.kubectl("get", "crd", *DEFINITIONS, "--output=name").split()
    assert len(kept) == len(DEFINITIONS)


def test_it_can_be_installed_again_and_goes_on(cluster: ClusterUnderTest, namespace: Namespace) -> None:
    cluster.uninstall()
    namespace.apply(handlers(), pool(), template("quick", step("a")), task("meanwhile", "quick"))
    cluster.serve(operator=True)
    namespace.wait(SUCCEEDED, "task/meanwhile")
