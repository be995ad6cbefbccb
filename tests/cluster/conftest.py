"""A cluster with the project's CRDs, and kubectl in a namespace of its own for each test.

By default an embedded API server; ``TASKER_TEST_KUBECONFIG`` names another cluster. The tests of the operator take the
fixtures of `support.cluster` instead, where the whole product runs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apiserver import REPOSITORY, Kubectl, api_server


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    given = os.environ.get("TASKER_TEST_KUBECONFIG")
    if given:
        yield Path(given)
        return
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        server.kubectl("apply", "-f", str(REPOSITORY / "crds"))
        yield server.kubeconfig


@pytest.fixture
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    Kubectl(kubeconfig=kubeconfig)("create", "namespace", name)
    yield Kubectl(kubeconfig=kubeconfig, namespace=name)
    Kubectl(kubeconfig=kubeconfig)("delete", "namespace", name, "--wait=false")
