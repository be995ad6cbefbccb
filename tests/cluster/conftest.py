"""The cluster under test: the embedded API server, or the one that TASKER_TEST_KUBECONFIG names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apiserver import REPOSITORY, Kubectl, api_server

CRDS = REPOSITORY / "crds"


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster that has the CRDs."""
    given = os.environ.get("TASKER_TEST_KUBECONFIG")
    if given:
        Kubectl(kubeconfig=Path(given))("apply", "-f", str(CRDS))
        yield Path(given)
        return
    with api_server(tmp_path_factory.mktemp("cluster")) as server:
        server.kubectl("apply", "-f", str(CRDS))
        yield server.kubeconfig


@pytest.fixture
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    everywhere = Kubectl(kubeconfig=kubeconfig)
    everywhere("create", "namespace", namespace)
    yield Kubectl(kubeconfig=kubeconfig, namespace=namespace)
    everywhere("delete", "namespace", namespace, "--wait=false")
