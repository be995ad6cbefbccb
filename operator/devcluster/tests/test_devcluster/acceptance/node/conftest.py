"""An API server with a node that knows one image, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from support.node_cluster import NodeCluster, api_and_client


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[NodeCluster]:
    """No node: the test starts one."""
    async with api_and_client(tmp_path) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def cluster(api: NodeCluster) -> AsyncIterator[NodeCluster]:
    """With a running node."""
    async with api.make_node():
        yield api
