"""What the chart renders, over a matrix of values: valid for old and new Kubernetes, restricted, and tied together."""

from __future__ import annotations

import functools
import json
import re
import warnings
from typing import Any

import pytest

from support.chart import MATRIX, environment, find, of_kind, pod_specs, render
from support.definitions import project_kind
from support.helm import Helm, Manifest
from support.pod_security import violations
from tasker.settings import DatabaseSettings, OperatorSettings

OLDEST, NEWEST = "1.29.0", "1.37.0"
OURS = {"TaskTemplate", "Task", "WorkerPool"}


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_helm_finds_nothing_to_say_against_the_chart(helm: Helm, name: str) -> None:
    assert "0 chart(s) failed" in helm.lint("tasker", MATRIX[name])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_meets_the_published_schemas(rendered: list[Manifest], version: str) -> None:
    for manifest in rendered:
        if manifest["kind"] not in OURS:
            check_against_published(json.dumps(manifest), version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_published_schemas_refuse_a_field_that_there_is_not(helm: Helm, version: str) -> None:
    for manifest in render(helm, "bundled-postgres"):
        with pytest.raises(Exception, match="replicaz"):
            check_against_published(json.dumps(manifest | {"replicaz": 1}), version)


def test_custom_resources_meet_our_own_definitions(helm: Helm) -> None:
    resources = of_kind(render(helm, "more-objects"), *OURS)
    assert len(resources) == 2
    for manifest in resources:
        assert_valid(manifest)


def test_every_pod_meets_the_restricted_standard(rendered: list[Manifest]) -> None:
    for where, pod in pod_specs(rendered):
        assert violations(pod) == [], where


def test_every_container_has_a_read_only_root_and_limits(rendered: list[Manifest]) -> None:
    for where, pod in pod_specs(rendered):
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert "memory" in container["resources"]["limits"], where
            assert "cpu" in container["resources"]["requests"], where


def test_only_those_that_ask_the_api_server_have_a_token(rendered: list[Manifest]) -> None:
    with_token = {where for where, pod in pod_specs(rendered) if pod["automountServiceAccountToken"]}
    assert {where.partition("/")[0] for where in with_token} == {"Deployment", "Pod"}
    for account in of_kind(rendered, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_what_is_named_is_there(rendered: list[Manifest]) -> None:
    """Accounts and roles that others refer to; a given ServiceAccount is the one exception."""
    accounts = {each["metadata"]["name"] for each in of_kind(rendered, "ServiceAccount")} | {"given"}
    for where, pod in pod_specs(rendered):
        assert pod["serviceAccountName"] in accounts, where
    roles = {(each["kind"], each["metadata"]["name"]) for each in of_kind(rendered, "Role", "ClusterRole")}
    for binding in of_kind(rendered, "RoleBinding", "ClusterRoleBinding"):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles
        assert {subject["name"] for subject in binding["subjects"]} <= accounts


def test_names_and_labels_fit(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        name, labels = manifest["metadata"]["name"], manifest["metadata"].get("labels", {})
        if manifest["kind"] not in ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"):
            assert len(name) <= 63
        assert all(len(value) <= 63 for value in labels.values())


def test_everything_of_the_chart_carries_its_labels(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        if manifest["kind"] not in (*OURS, "CustomResourceDefinition", "ConfigMap"):
            assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "tasker"
            assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tasker"


def test_selectors_pick_their_own_pods_and_no_others(rendered: list[Manifest]) -> None:
    pods = {
        f"{each['kind']}/{each['metadata']['name']}": (each["spec"].get("template") or each)["metadata"]["labels"]
        for each in of_kind(rendered, "Deployment", "StatefulSet", "Job", "Pod")
    }
    selectors = [each["spec"]["selector"]["matchLabels"] for each in of_kind(rendered, "Deployment", "StatefulSet")]
    selectors += [each["spec"]["selector"] for each in of_kind(rendered, "Service")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(rendered, "NetworkPolicy")]
    for selector in selectors:
        assert len([name for name, labels in pods.items() if selector.items() <= labels.items()]) == 1, selector


def test_every_pod_has_its_network_policy_unless_switched_off(helm: Helm) -> None:
    for name, values in MATRIX.items():
        manifests = render(helm, name)
        pods = of_kind(manifests, "Deployment", "StatefulSet", "Job", "Pod")
        enabled = values.get("networkPolicy", {}).get("enabled", True)
        assert len(of_kind(manifests, "NetworkPolicy")) == (len(pods) if enabled else 0), name


def test_every_variable_of_the_operator_is_one_that_it_reads(rendered: list[Manifest]) -> None:
    given = environment(rendered)
    read: set[str] = set()

    class Recorded(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    plain = Recorded({name: value for name, value in given.items() if isinstance(value, str)})
    plain["DATABASE_URL"] = "postgresql:///x"
    DatabaseSettings.from_environment(plain)
    OperatorSettings.from_environment(plain, version="0")
    assert given.keys() - read <= {"SSL_CERT_FILE"}


def test_the_operator_is_told_what_the_values_say(helm: Helm) -> None:
    def settings(name: str) -> OperatorSettings:
        given = environment(render(helm, name))
        plain = {name: value for name, value in given.items() if isinstance(value, str)}
        return OperatorSettings.from_environment(plain, version="0")

    assert settings("own-database").watch_namespaces == ()
    assert settings("own-database").worker_image == "tasker-worker:0.1.0"
    assert settings("some-namespaces").watch_namespaces == ("orders", "billing")
    assert settings("some-namespaces").environment == "test"
    assert environment(render(helm, "own-database"))["TASKER_ENV"] == "production"
    assert settings("images-by-hand").worker_image_pull_policy == "Never"
    assert settings("private-registry").worker_image_pull_secrets == ("registry", "registry-2")
    assert settings("private-registry").worker_image == f"registry.example:5000/tasker/worker@sha256:{'b' * 64}"
    assert settings("placed").resync_seconds == 600.0


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_the_managed_pool_is_a_valid_workerpool(helm: Helm, name: str) -> None:
    spec = managed_pool(helm, name)
    assert_valid({"apiVersion": "tasker.dev/v1alpha1", "kind": "WorkerPool", "metadata": META, "spec": spec})


def test_the_managed_pool_mounts_a_config_map_unless_it_has_handlers(helm: Helm) -> None:
    assert managed_pool(helm, "own-database")["handlersFrom"] == {"configMapRef": {"name": "tasker-handlers"}}
    busy = managed_pool(helm, "busy-pool")
    assert "handlersFrom" not in busy
    assert (busy["handlers"], busy["maxReplicas"], busy["slots"]) == (["orders.handlers"], 50, 20)


def test_the_connection_url_comes_from_the_named_secret_and_key(helm: Helm) -> None:
    manifests = render(helm, "images-by-hand")
    expected = {"secretKeyRef": {"name": "postgres", "key": "url"}}
    assert environment(manifests)["DATABASE_URL"] == expected
    job = find(manifests, "Job", "tasker-migrate")
    [variable] = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variable == {"name": "DATABASE_URL", "valueFrom": expected}
    workers = environment(render(helm, "private-registry"))["TASKER_WORKER_DATABASE_URL"]
    assert workers == {"secretKeyRef": {"name": "postgres-workers", "key": "url"}}


def test_helm_test_has_one_suite_which_is_a_pod(helm: Helm) -> None:
    """helm lists every object that is a test hook as a suite, whatever its kind."""
    for name in MATRIX:
        tests = [each for each in render(helm, name) if hook(each) == "test"]
        assert [each["kind"] for each in tests] == ["Pod"], name


def test_the_migration_and_all_it_needs_come_before_anything_else(helm: Helm) -> None:
    manifests = render(helm, "own-database")
    job = find(manifests, "Job", "tasker-migrate")
    assert hook(job) == "pre-install,pre-upgrade"
    needed = [find(manifests, kind, "tasker-migrate") for kind in ("ServiceAccount", "NetworkPolicy")]
    for manifest in needed:
        assert hook(manifest) == hook(job)
        assert weight(manifest) < weight(job)
    # Whatever else the Job refers to must be there already: a Secret of the user's, no object of the release.
    ordinary = {(each["kind"], each["metadata"]["name"]) for each in manifests if hook(each) is None}
    assert not {(kind, "tasker-migrate") for kind in ("ServiceAccount", "Secret", "ConfigMap")} & ordinary
    assert job["spec"]["template"]["spec"]["containers"][0]["command"] == ["tasker", "migrate"]


def test_with_the_bundled_postgres_the_operators_pod_migrates_first(helm: Helm) -> None:
    """No hook could: before the release there is no Postgres, after it `--wait` waits for an operator that waits."""
    manifests = render(helm, "bundled-postgres")
    assert not of_kind(manifests, "Job")
    [deployment] = of_kind(manifests, "Deployment")
    [migrate] = deployment["spec"]["template"]["spec"]["initContainers"]
    assert migrate["command"] == ["tasker", "migrate"]
    secret = find(manifests, "Secret", "tasker-postgresql")["stringData"]
    assert secret["DATABASE_URL"] == "postgresql://tasker:secret@tasker-postgresql.tasker-system.svc:5432/tasker"
    assert migrate["env"] == [
        {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "tasker-postgresql", "key": "DATABASE_URL"}}}
    ]


def test_the_bundled_postgres_says_that_it_is_for_development(helm: Helm) -> None:
    manifests = render(helm, "bundled-postgres")
    stateful_set = find(manifests, "StatefulSet", "tasker-postgresql")
    assert stateful_set["metadata"]["labels"]["tasker.dev/development-only"] == "true"
    assert stateful_set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    in_memory = find(render(helm, "bundled-postgres-in-memory"), "StatefulSet", "tasker-postgresql")
    assert "volumeClaimTemplates" not in in_memory["spec"]


def test_a_made_password_is_long_and_new_each_time(helm: Helm) -> None:
    first, second = (
        find(helm.template("tasker", MATRIX["bundled-postgres-in-memory"]), "Secret", "tasker-postgresql")["stringData"]
        for _ in range(2)
    )
    assert re.fullmatch(r"[A-Za-z0-9]{32}", first["POSTGRES_PASSWORD"])
    assert first["POSTGRES_PASSWORD"] != second["POSTGRES_PASSWORD"]


def test_probes_ask_the_paths_that_the_operator_answers(helm: Helm) -> None:
    [deployment] = of_kind(render(helm, "own-database"), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["command"] == ["python", "-m", "tasker.controller"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", "why it ends is in the pod's status"
    port = container["ports"][0]
    assert (port["name"], str(port["containerPort"])) == ("http", environment([deployment])["TASKER_HEALTH_PORT"])


def test_pods_are_placed_as_the_values_say(helm: Helm) -> None:
    values = MATRIX["placed"]
    [deployment] = of_kind(render(helm, "placed"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    for field in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert pod[field] == values[field]
    assert deployment["spec"]["template"]["metadata"]["labels"]["tier"] == "control"
    assert deployment["metadata"]["labels"]["team"] == "payments"


def test_images_are_named_by_digest_or_by_the_charts_version(helm: Helm) -> None:
    digest = f"registry.example:5000/tasker/operator@sha256:{'a' * 64}"
    for where, pod in pod_specs(render(helm, "private-registry")):
        assert pod["containers"][0]["image"] == digest, where
        assert pod["imagePullSecrets"] == [{"name": "registry"}], where
    for where, pod in pod_specs(render(helm, "own-database")):
        assert pod["containers"][0]["image"] == "tasker-operator:0.1.0", where
    for where, pod in pod_specs(render(helm, "images-by-hand")):
        assert pod["containers"][0]["imagePullPolicy"] == "Never", where


@functools.cache
def check_against_published(manifest: str, version: str) -> None:
    """Raises when the object does not fit. Rows of the matrix share most objects, so each is looked at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import kubernetes_validate
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


META = {"name": "default", "namespace": "orders"}


def managed_pool(helm: Helm, name: str) -> Any:
    given = {"TASKER_MANAGED_POOL": environment(render(helm, name))["TASKER_MANAGED_POOL"]}
    return OperatorSettings.from_environment(given, version="0").managed_pool_spec


def assert_valid(manifest: Manifest) -> None:
    schema = project_kind(manifest["kind"]).schema
    assert schema.unknown_fields(manifest) == []
    assert [str(error) for error in schema.validate(schema.default(manifest))] == []


def hook(manifest: Manifest) -> str | None:
    found: str | None = manifest["metadata"].get("annotations", {}).get("helm.sh/hook")
    return found


def weight(manifest: Manifest) -> int:
    return int(manifest["metadata"]["annotations"]["helm.sh/hook-weight"])
