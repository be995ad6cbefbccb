"""A pool that goes while it is being brought in line leaves nothing that has no owner."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.controller_fakes import ControllerKit, pool
from support.fake_cluster import FakeCluster
from tasker.controller.kube.client import SECRET, WORKER_POOL, Manifest, Resource
from tasker.controller.kube.keys import key_of
from tasker.controller.pools.manifests import DATABASE_SECRET


def meanwhile(cluster: FakeCluster, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens while the handlers are being read."""
    read = cluster.get

    async def get(resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        happens()
        return await read(resource, namespace, name)

    monkeypatch.setattr(cluster, "get", get)


async def test_the_secret_of_a_pool_that_is_deleted_meanwhile_has_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = ControllerKit()
    handlers = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "handlers", "namespace": "default"}}
    kit.cluster.store(handlers)
    manifest = pool(handlersFrom={"configMapRef": {"name": "handlers"}})
    stored = kit.give(manifest)

    def is_deleted() -> None:
        kit.cluster.objects.pop((WORKER_POOL.kind, "default", "default"), None)
        kit.router.pool(stored, "DELETED")

    meanwhile(kit.cluster, is_deleted, monkeypatch)
    await kit.pool_reconciler().reconcile(key_of(stored))
    assert list(kit.caches.pools.in_namespace("default")) == []
    secret = kit.cluster.objects[SECRET.kind, "default", DATABASE_SECRET]
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == [stored["metadata"]["uid"]]
