"""One suite for the embedded cluster and any other: README.md says how it is pointed at one.

Tests of the product take `cluster` or `namespace` (see `support.cluster`); tests of what a cluster's API does with our
kinds take `kubectl` and come first, before an operator runs that would write to the same objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import Kubectl
from support.cluster import ClusterUnderTest
from support.cluster_settings import ClusterSettings, WrongVariables

HERE = Path(__file__).parent
REAL_TEST_SECONDS = 900


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes of pytest-xdist each have an embedded cluster; somebody's own cluster is one process's at a time."""
    if _is_embedded():
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneProcessForTheCluster(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith("tests/cluster/") else nodeid

    return OneProcessForTheCluster(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    if HERE in item.path.parents and not _is_embedded():
        item.add_marker(pytest.mark.timeout(REAL_TEST_SECONDS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    ordered = iter(sorted(ours, key=lambda item: "kubectl" not in getattr(item, "fixturenames", ())))
    items[:] = [next(ordered) if HERE in item.path.parents else item for item in items]


def _is_embedded() -> bool:
    try:
        return ClusterSettings.from_environment().is_embedded
    except WrongVariables:
        return True  # the first test says what is wrong


@pytest.fixture
def kubeconfig(any_cluster: ClusterUnderTest) -> Path:
    """Of a cluster with our definitions where no operator runs."""
    any_cluster.serve(operator=False)
    return any_cluster.kubeconfig


@pytest.fixture
def kubectl(any_cluster: ClusterUnderTest, kubeconfig: Path) -> Iterator[Kubectl]:
    """kubectl in a namespace of its own."""
    # Nothing runs in it that would have to be restricted; its Deployments name images that do not exist.
    with any_cluster.namespace(**{"pod-security.kubernetes.io/enforce": "baseline"}) as namespace:
        yield Kubectl(kubeconfig=kubeconfig, namespace=namespace.name)
