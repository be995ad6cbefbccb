"""The pods that the operator makes for pools meet the restricted Pod Security Standard, rule by rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart import MATRIX, environment, render
from support.helm import Helm
from support.pod_security import violations
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.pools import manifests
from tasker.controller.pools.manifests import ImageDefaults, PoolIdentity
from tasker.settings import OperatorSettings

INPUT = Path(__file__).parents[2] / "data" / "kubernetes" / "input"
EXAMPLES = Path(__file__).parents[3] / "examples"
POOLS = [*sorted(INPUT.glob("pool-*.yaml")), *sorted(EXAMPLES.glob("*/pool.yaml"))]


def pod_of(pool: dict[str, Any], settings: OperatorSettings | None = None) -> dict[str, Any]:
    parsed = WorkerPool.parse({**pool, "metadata": {"namespace": "orders", "uid": "1", **pool["metadata"]}})
    defaults = ImageDefaults(
        image=settings.worker_image if settings else "tasker-worker:0.1.0",
        pull_policy=settings.worker_image_pull_policy if settings else None,
        pull_secrets=settings.worker_image_pull_secrets if settings else (),
    )
    made = manifests.deployment(
        PoolIdentity.of(parsed),
        parsed.spec,
        defaults=defaults,
        environment=settings.environment if settings else "production",
        replicas=1,
        handlers_hash="0" * 32,
    )
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("file", POOLS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_worker_pods_meet_the_restricted_standard(file: Path) -> None:
    pod = pod_of(yaml.safe_load(file.read_text()))
    assert violations(pod) == []
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_so_do_those_of_the_managed_pool(helm: Helm, name: str) -> None:
    given = environment(render(helm, name))
    plain = {key: value for key, value in given.items() if isinstance(value, str)}
    settings = OperatorSettings.from_environment(plain, version="0")
    pod = pod_of({"metadata": {"name": "default"}, "spec": dict(settings.managed_pool_spec)}, settings)
    assert violations(pod) == []


def test_workers_get_the_charts_image_policy_and_secrets(helm: Helm) -> None:
    def pod(name: str) -> dict[str, Any]:
        given = environment(render(helm, name))
        plain = {key: value for key, value in given.items() if isinstance(value, str)}
        settings = OperatorSettings.from_environment(plain, version="0")
        return pod_of({"metadata": {"name": "p"}, "spec": {"handlers": ["orders"]}}, settings)

    [container] = pod("images-by-hand")["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("tasker-worker:dev", "Never")
    assert pod("private-registry")["imagePullSecrets"] == [{"name": "registry"}, {"name": "registry-2"}]
