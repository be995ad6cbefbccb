"""The operator's roles: each call that its code makes is granted, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.chart import MATRIX, of_kind, render
from support.helm import Helm, Manifest
from support.rbac import Call, Grant, grants_of

APPS, POLICY, NETWORKING, CUSTOM = "apps", "policy", "networking.k8s.io", "tasker.dev"
EXTENSIONS = "apiextensions.k8s.io"


def calls(namespace: str | None) -> Iterator[Call]:
    """What the operator asks of the API server; `namespace` is where lists and watches look, None for everywhere.

    The sources are tasker.controller: `handlers` (watches), `runtime.resync` (lists), and the users of `Cluster`.
    """
    for group, resource in (
        (CUSTOM, "tasktemplates"),
        (CUSTOM, "tasks"),
        (CUSTOM, "workerpools"),
        (APPS, "deployments"),
        ("", "pods"),
        ("", "configmaps"),
    ):
        for verb in ("list", "watch"):
            yield Call(verb=verb, group=group, resource=resource, namespace=namespace)
    if namespace is None:
        for verb in ("list", "watch"):
            yield Call(verb=verb, group="", resource="namespaces")
            yield Call(verb=verb, group=EXTENSIONS, resource="customresourcedefinitions")
    yield Call(verb="get", group="", resource="namespaces", name="orders")
    for verb, group, resource, name in (
        # a status written on an old version is fetched anew
        ("get", CUSTOM, "tasktemplates", "t"),
        ("get", CUSTOM, "tasks", "t"),
        ("get", CUSTOM, "workerpools", "p"),
        ("patch", CUSTOM, "tasktemplates/status", "t"),
        ("patch", CUSTOM, "tasks/status", "t"),
        ("patch", CUSTOM, "workerpools/status", "p"),
        # the end of a Task's time to live
        ("delete", CUSTOM, "tasks", "t"),
        # the managed pool; server-side apply is patch, and create when there is none
        ("create", CUSTOM, "workerpools", "default"),
        ("patch", CUSTOM, "workerpools", "default"),
        ("delete", CUSTOM, "workerpools", "default"),
        # what a pool is made of
        ("get", "", "configmaps", "handlers"),
        ("create", "", "serviceaccounts", "tasker-worker-p"),
        ("patch", "", "serviceaccounts", "tasker-worker-p"),
        ("create", "", "secrets", "tasker-database"),
        ("patch", "", "secrets", "tasker-database"),
        ("create", POLICY, "poddisruptionbudgets", "tasker-worker-p"),
        ("patch", POLICY, "poddisruptionbudgets", "tasker-worker-p"),
        ("create", NETWORKING, "networkpolicies", "tasker-worker-p"),
        ("patch", NETWORKING, "networkpolicies", "tasker-worker-p"),
        ("get", APPS, "deployments", "tasker-worker-p"),
        ("create", APPS, "deployments", "tasker-worker-p"),
        ("patch", APPS, "deployments", "tasker-worker-p"),
        # which workers go first
        ("patch", "", "pods", "tasker-worker-p-1"),
        ("create", "", "events", "t.1"),
    ):
        yield Call(verb=verb, group=group, resource=resource, namespace="orders", name=name)


def operators_grants(manifests: list[Manifest]) -> set[Grant]:
    return grants_of(manifests, account="tasker")


def test_in_the_whole_cluster_every_call_is_granted_and_every_grant_is_used(helm: Helm) -> None:
    grants = operators_grants(render(helm, "own-database"))
    made = list(calls(None))
    assert [call for call in made if not any(grant.allows(call) for grant in grants)] == []
    assert [grant for grant in grants if not any(grant.allows(call) for call in made)] == []


def test_per_namespace_every_call_is_granted_and_every_grant_is_used(helm: Helm) -> None:
    grants = operators_grants(render(helm, "some-namespaces"))
    made = list(calls("orders"))
    assert [call for call in made if not any(grant.allows(call) for grant in grants)] == []
    in_orders = {grant for grant in grants if grant.namespace in (None, "orders")}
    assert [grant for grant in in_orders if not any(grant.allows(call) for call in made)] == []


def test_per_namespace_nothing_in_others_can_be_seen_or_touched(helm: Helm) -> None:
    grants = operators_grants(render(helm, "some-namespaces"))
    elsewhere = Call(verb="list", group="", resource="configmaps", namespace="kube-system")
    assert not any(grant.allows(elsewhere) for grant in grants)
    everywhere = {(grant.resource, grant.verb) for grant in grants if grant.namespace is None}
    assert everywhere == {("namespaces", "get")}
    assert {grant.namespace for grant in grants} == {None, "orders", "billing"}


def test_secrets_are_written_under_one_name_and_never_read(helm: Helm) -> None:
    for name in MATRIX:
        secrets = {
            (grant.verb, grant.names) for grant in operators_grants(render(helm, name)) if grant.resource == "secrets"
        }
        assert secrets <= {("create", ("tasker-database",)), ("patch", ("tasker-database",))}


def test_no_rule_has_a_star(rendered: list[Manifest]) -> None:
    for role in of_kind(rendered, "Role", "ClusterRole"):
        for rule in role["rules"]:
            for words in rule.values():
                assert not [word for word in words if "*" in word], role["metadata"]["name"]


def test_the_finalizers_right_is_given_only_when_asked_for(helm: Helm) -> None:
    right = Grant(verb="update", group=CUSTOM, resource="workerpools/finalizers", namespace=None)
    assert right not in operators_grants(render(helm, "own-database"))
    assert right in operators_grants(render(helm, "openshift"))


def test_the_check_of_helm_test_can_only_look(helm: Helm) -> None:
    grants = grants_of(render(helm, "own-database"), account="tasker-test")
    assert {grant.verb for grant in grants} == {"get"}
    assert all(grant.names for grant in grants)


@pytest.mark.parametrize(
    ("role", "aggregated", "verbs"),
    [
        ("view", {"view", "edit", "admin"}, {"get", "list", "watch"}),
        ("edit", {"edit", "admin"}, {"create", "update", "patch", "delete", "deletecollection"}),
    ],
)
def test_people_get_the_resources_through_the_clusters_own_roles(
    helm: Helm, role: str, aggregated: set[str], verbs: set[str]
) -> None:
    manifests = render(helm, "own-database")
    [found] = [each for each in manifests if each["metadata"]["name"] == f"tasker-system-tasker-{role}"]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    labels = found["metadata"]["labels"]
    assert {label.removeprefix(prefix) for label in labels if label.startswith(prefix)} == aggregated
    resources = {resource for rule in found["rules"] for resource in rule["resources"] if "/" not in resource}
    assert resources == {"tasktemplates", "tasks", "workerpools"}
    assert {verb for rule in found["rules"] for verb in rule["verbs"]} == verbs
