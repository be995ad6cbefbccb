"""The ConfigMap of a pool's handlers is read once, and again when it may have changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, pool
from tasker.controller.kube.client import Manifest, Resource
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import hash_handlers

KEY = ObjectKey(namespace="default", name="handlers")


def config_map(source: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "data": {"handlers.py": source},
    }


@pytest.fixture
def kit() -> ControllerKit:
    return ControllerKit()


async def test_a_pool_that_is_reconciled_often_reads_its_handlers_once(
    kit: ControllerKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = kit.cluster.get

    async def counted_get(resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        asked.append(resource.kind)
        return await get(resource, namespace, name)

    monkeypatch.setattr(kit.cluster, "get", counted_get)
    kit.cluster.store(config_map("one"))
    made = kit.give(pool(handlersFrom={"configMapRef": {"name": KEY.name}}))
    pools = kit.pool_reconciler()
    for _ in range(5):
        await pools.reconcile(key_of(made))
    assert asked.count("ConfigMap") == 1


@pytest.mark.parametrize("event_type", ["MODIFIED", "DELETED"])
async def test_an_event_of_it_makes_it_be_read_again(kit: ControllerKit, event_type: str) -> None:
    kit.cluster.store(config_map("one"))
    first = await kit.handlers_hashes.read(KEY)
    changed = kit.cluster.store(config_map("two"))
    assert await kit.handlers_hashes.read(KEY) == first
    kit.router.config_map(changed, event_type)
    assert await kit.handlers_hashes.read(KEY) == hash_handlers(changed) != first


async def test_a_resync_makes_it_be_read_again(kit: ControllerKit) -> None:
    kit.cluster.store(config_map("one"))
    await kit.handlers_hashes.read(KEY)
    changed = kit.cluster.store(config_map("two"))
    await kit.resync().run()
    assert await kit.handlers_hashes.read(KEY) == hash_handlers(changed)


async def test_one_that_is_missing_is_asked_for_each_time(kit: ControllerKit) -> None:
    assert await kit.handlers_hashes.read(KEY) is None
    made = kit.cluster.store(config_map("one"))
    assert await kit.handlers_hashes.read(KEY) == hash_handlers(made)


@pytest.mark.parametrize("by", ["an event", "a resync"])
async def test_an_answer_that_was_overtaken_is_not_kept(
    kit: ControllerKit, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The ConfigMap changes after it was read and before the answer arrives."""
    kit.cluster.store(config_map("one"))
    asked, answer = asyncio.Event(), asyncio.Event()
    get = kit.cluster.get

    async def slow_get(resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        found = await get(resource, namespace, name)
        asked.set()
        await answer.wait()
        return found

    monkeypatch.setattr(kit.cluster, "get", slow_get)
    reading = asyncio.create_task(kit.handlers_hashes.read(KEY))
    await asked.wait()
    changed = kit.cluster.store(config_map("two"))
    if by == "an event":
        kit.router.config_map(changed, "MODIFIED")
    else:
        await kit.resync().run()
    answer.set()
    await reading
    assert await kit.handlers_hashes.read(KEY) == hash_handlers(changed)
