"""What a WorkerPool becomes: golden files, the published schemas, and the rules of the restricted pod standard.

To accept a change of the output on purpose: TASKER_WRITE_GOLDEN=1 pytest tests/unit/controller/test_manifests.py
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasker.controller.kube.resources.worker_pool import WorkerPool, WorkerPoolSpec
from tasker.controller.pools import manifests
from tasker.controller.pools.manifests import PoolIdentity

DATA = Path(__file__).parents[2] / "data" / "kubernetes"
POOLS = sorted(path.name for path in (DATA / "input").glob("pool-*.yaml"))
IMAGE = "registry.example/tasker-worker:1.2.3"
KUBERNETES = ("1.29.0", "1.37.0")
"""The oldest release that the chart admits and the newest whose schemas are published."""


def load(name: str) -> dict[str, Any]:
    pool: dict[str, Any] = yaml.safe_load((DATA / "input" / name).read_text())
    return pool


def identity_of(pool: dict[str, Any]) -> PoolIdentity:
    return PoolIdentity.of(WorkerPool.parse(pool))


def render(pool: dict[str, Any], *, replicas: int | None = 2) -> list[dict[str, Any]]:
    identity = identity_of(pool)
    has_handlers = "handlersFrom" in pool["spec"]
    return [
        manifests.service_account(identity),
        manifests.database_secret(identity.namespace, [identity], "postgresql://worker:secret@db/tasker"),
        manifests.disruption_budget(identity),
        manifests.network_policy(identity),
        manifests.deployment(
            identity,
            WorkerPoolSpec.model_validate(pool["spec"]),
            defaults=manifests.ImageDefaults(image=IMAGE),
            environment="test",
            replicas=replicas,
            handlers_hash="0" * 32 if has_handlers else None,
        ),
    ]


def pod_of(pool: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = render(pool)[-1]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("name", POOLS)
def test_the_manifests_are_the_golden_ones(name: str) -> None:
    rendered = yaml.safe_dump_all(render(load(name)), sort_keys=True, width=120)
    golden = DATA / "output" / name
    if os.environ.get("TASKER_WRITE_GOLDEN"):
        golden.write_text(rendered)
    assert rendered == golden.read_text()


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", POOLS)
def test_the_published_schemas_accept_every_manifest(name: str, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import kubernetes_validate
    for manifest in render(load(name)):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", POOLS)
def test_pods_meet_the_restricted_standard_and_have_no_token(name: str) -> None:
    pod = pod_of(load(name))
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize("name", POOLS)
def test_everything_goes_with_its_pool(name: str) -> None:
    pool = load(name)
    for manifest in render(pool):
        [owner] = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == pool["metadata"]["uid"]


@pytest.mark.parametrize("name", POOLS)
def test_the_connection_url_is_in_the_secret_alone(name: str) -> None:
    for manifest in render(load(name)):
        assert ("secret@db" in yaml.safe_dump(manifest)) is False  # in the Secret it is base64


def test_replicas_are_left_out_when_they_are_an_autoscalers() -> None:
    deployment = render(load(POOLS[0]), replicas=None)[-1]
    assert "replicas" not in deployment["spec"]


def test_the_handlers_have_the_grace_period_less_a_margin() -> None:
    pool = load("pool-plain.yaml")
    for grace, expected in ((300, "295"), (3, "1")):
        pool["spec"]["terminationGracePeriodSeconds"] = grace
        environment = {variable["name"]: variable.get("value") for variable in pod_of(pool)["containers"][0]["env"]}
        assert environment["TASKER_SHUTDOWN_GRACE_SECONDS"] == expected


def test_a_variable_of_the_operator_cannot_be_overridden() -> None:
    pool = load("pool-plain.yaml")
    taken = [{"name": "TASKER_SLOTS", "value": "999"}, {"name": "TASKER_ENV", "value": "production"}]
    pool["spec"]["env"] = [*taken, {"name": "MINE", "value": "1"}]
    environment = [(variable["name"], variable.get("value")) for variable in pod_of(pool)["containers"][0]["env"]]
    assert ("TASKER_SLOTS", "999") not in environment
    assert [value for name, value in environment if name == "TASKER_ENV"] == ["test"]
    assert ("MINE", "1") in environment


def test_how_the_default_image_is_pulled_is_for_pools_without_an_image_of_their_own() -> None:
    defaults = manifests.ImageDefaults(image=IMAGE, pull_policy="Never", pull_secrets=("registry",))
    plain = load("pool-plain.yaml")
    made = manifests.deployment(
        identity_of(plain),
        WorkerPoolSpec.model_validate(plain["spec"]),
        defaults=defaults,
        environment="test",
        replicas=0,
        handlers_hash=None,
    )
    pod = made["spec"]["template"]["spec"]
    assert pod["containers"][0]["imagePullPolicy"] == "Never"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    own = load("pool-full.yaml")
    del own["spec"]["imagePullPolicy"], own["spec"]["imagePullSecrets"]
    made = manifests.deployment(
        identity_of(own),
        WorkerPoolSpec.model_validate(own["spec"]),
        defaults=defaults,
        environment="test",
        replicas=0,
        handlers_hash=None,
    )
    pod = made["spec"]["template"]["spec"]
    assert "imagePullPolicy" not in pod["containers"][0]
    assert "imagePullSecrets" not in pod


def test_changed_handlers_change_the_pods_and_the_same_handlers_do_not() -> None:
    one = {"data": {"a.py": "x = 1", "b.py": "y = 2"}, "metadata": {"resourceVersion": "1"}}
    same = {"data": {"b.py": "y = 2", "a.py": "x = 1"}, "metadata": {"resourceVersion": "2"}}
    other = {"data": {"a.py": "x = 2", "b.py": "y = 2"}}
    assert manifests.hash_handlers(one) == manifests.hash_handlers(same) != manifests.hash_handlers(other)
    binary = {"binaryData": {"a.whl": "eA=="}}
    none, text = manifests.hash_handlers({}), manifests.hash_handlers({"data": binary["binaryData"]})
    newer = manifests.hash_handlers({"binaryData": {"a.whl": "eQ=="}})
    assert len({none, text, manifests.hash_handlers(binary), newer}) == 4
    assert len(none) == 32
    assert manifests.hash_handlers({"data": None, "binaryData": None}) == none


def test_the_secret_is_owned_by_every_pool_that_uses_it() -> None:
    first, second = identity_of(load("pool-plain.yaml")), identity_of(load("pool-full.yaml"))
    secret = manifests.database_secret("orders", [second, first], "postgresql:///x")
    assert {owner["uid"] for owner in secret["metadata"]["ownerReferences"]} == {first.uid, second.uid}
    assert secret == manifests.database_secret("orders", [first, second], "postgresql:///x")


@pytest.mark.parametrize(
    ("manager", "operation", "fields", "expected"),
    [
        ("tasker-operator", "Apply", {"f:spec": {"f:replicas": {}}}, False),
        ("kube-controller-manager", "Update", {"f:status": {"f:replicas": {}}}, False),
        ("kube-controller-manager", "Update", {"f:spec": {"f:replicas": {}}}, True),
        ("kubectl-scale", "Update", {"f:spec": {"f:replicas": {}}}, True),
        ("kubectl-apply", "Apply", {"f:spec": {"f:replicas": {}}}, True),
        ("tasker-operator", "Update", {"f:spec": {"f:replicas": {}}}, True),
        ("kubectl-apply", "Apply", {"f:metadata": {}}, False),
        ("kubectl-apply", "Apply", None, False),
    ],
)
def test_another_owner_of_the_replicas_is_seen(
    manager: str, operation: str, fields: dict[str, Any] | None, expected: bool
) -> None:
    entry = {"manager": manager, "operation": operation, "fieldsV1": fields}
    ours = {"manager": "tasker-operator", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    for entries in ([entry], [ours, entry]):
        assert manifests.others_own_replicas({"metadata": {"managedFields": entries}}) is expected
    assert manifests.others_own_replicas({"metadata": {}}) is False


def test_the_pull_secrets_of_a_pool_take_the_place_of_the_default_ones() -> None:
    plain = load("pool-plain.yaml")
    plain["spec"]["imagePullSecrets"] = [{"name": "mine"}]
    made = manifests.deployment(
        identity_of(plain),
        WorkerPoolSpec.model_validate(plain["spec"]),
        defaults=manifests.ImageDefaults(image=IMAGE, pull_secrets=("registry",)),
        environment="test",
        replicas=0,
        handlers_hash=None,
    )
    assert made["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "mine"}]


def test_a_pool_that_shares_its_secret_goes_without_waiting_for_it() -> None:
    """An owner that blocks would need rights on the pools' finalizers, and a Secret has one controller at most."""
    secret = manifests.database_secret("orders", [identity_of(load("pool-plain.yaml"))], "postgresql:///x")
    [owner] = secret["metadata"]["ownerReferences"]
    assert owner.keys() == {"apiVersion", "kind", "name", "uid"}
