"""What the server does in the background goes on whatever one object does to it; its health tells of what does not."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from devcluster.apiserver import garbage
from devcluster.node.client import CONFIG_MAPS, EVENTS, PODS, ApiError
from devcluster.node.objects import Key, uid_of
from support.node_cluster import NAMESPACE, NodeCluster, api_and_client


def event(name: str, last: str) -> dict[str, object]:
    subject = {"kind": "Pod", "name": "a", "namespace": NAMESPACE}
    return {"metadata": {"name": name}, "involvedObject": subject, "lastTimestamp": last}


async def delete_owner_and_wait_for_dependent(cluster: NodeCluster, name: str) -> None:
    owner = await cluster.create(CONFIG_MAPS, {"metadata": {"name": name}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid_of(owner)}
    await cluster.create(CONFIG_MAPS, {"metadata": {"name": f"{name}-child", "ownerReferences": [reference]}})
    await cluster.client.delete(CONFIG_MAPS, Key(NAMESPACE, name))
    await cluster.gone(CONFIG_MAPS, f"{name}-child")


async def test_one_event_that_cannot_expire_stops_neither_others_nor_the_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faulty, good = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"

    def parse(text: str) -> datetime:
        if text == faulty:
            raise RuntimeError("what nobody thought of")
        return datetime.fromisoformat(text)

    monkeypatch.setattr(garbage, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(garbage, "parse_timestamp", parse)
    async with api_and_client(tmp_path) as cluster:
        await cluster.create(EVENTS, event("first", faulty))
        await cluster.create(EVENTS, event("second", good))
        await cluster.gone(EVENTS, "second")
        await delete_owner_and_wait_for_dependent(cluster, "owner")
    assert "cannot expire the event default/first" in caplog.text


async def test_an_object_that_could_not_be_collected_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = False
    look_at = garbage.Collector._check_owners

    def fail_once(*arguments: object) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise RuntimeError("what nobody thought of")
        look_at(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(garbage, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(garbage.Collector, "_check_owners", fail_once)
    async with api_and_client(tmp_path) as cluster:
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "there"}
        await cluster.create(CONFIG_MAPS, {"metadata": {"name": "child", "ownerReferences": [reference]}})
        await cluster.gone(CONFIG_MAPS, "child")
    assert "cannot collect configmaps/default/child" in caplog.text


async def test_health_is_the_servers_own_and_what_was_put_beside_it(tmp_path: Path) -> None:
    async with api_and_client(tmp_path) as cluster, aiohttp.ClientSession() as session:
        server = cluster.server
        options = {"ssl": False, "headers": {"Authorization": f"Bearer {server.token}"}}

        async def health(path: str) -> tuple[int, str]:
            async with session.get(f"{server.url}{path}", **options) as answer:  # type: ignore[arg-type]
                return answer.status, await answer.text()

        assert await health("/healthz") == (200, "ok")
        server.health_checks["node"] = lambda: ["watch pods has not come round for 99 s"]
        assert await health("/healthz") == (500, "node: watch pods has not come round for 99 s\n")
        server.health_checks.clear()
        server._loops._loops["apiserver-collector"].heart._clock = lambda: float("inf")
        assert await health("/livez") == (500, "apiserver-collector has not come round for inf s\n")


async def test_a_pod_of_a_service_account_that_is_not_there_is_refused(tmp_path: Path) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"serviceAccountName": "robot", "containers": [{"name": "a"}]}}
    async with api_and_client(tmp_path) as cluster:
        with pytest.raises(ApiError, match='serviceaccount "robot" not found') as refused:
            await cluster.create(PODS, body)
        assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
