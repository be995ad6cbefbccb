"""One embedded API server a module, and a namespace a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from support.apiserver import Api, RunningApiServer, api_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@pytest.fixture
def api(server: RunningApiServer) -> Iterator[Api]:
    found = server.api
    yield found
    found.request("DELETE", "/debug/faults")


@pytest.fixture
def namespace(api: Api) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def config_maps(namespace: str) -> str:
    """The path of the namespace's ConfigMaps."""
    return f"/api/v1/namespaces/{namespace}/configmaps"
