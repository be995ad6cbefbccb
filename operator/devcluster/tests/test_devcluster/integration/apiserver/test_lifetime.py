"""Starting, stopping, being killed: what is acknowledged stays, versions never go back, a folder has one server."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest
import yaml

from devcluster.apiserver import ApiServer
from devcluster.errors import EmbeddedError
from support.apiserver import REPOSITORY, Api, RunningApiServer, api_server, start_api_server
from support.debug_switch import DebugSwitch, debug_api_server
from support.faults import FaultPlan, FaultRule

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def test_a_killed_server_has_kept_what_it_acknowledged(tmp_path: Path) -> None:
    server = start_api_server(tmp_path)
    api = server.api
    acknowledged: list[str] = []

    def write() -> None:
        while True:
            try:
                created = api.create(CONFIG_MAPS, {"metadata": {"generateName": "a-"}})
            except (OSError, ValueError):
                return
            acknowledged.append(created["metadata"]["name"])

    writer = Thread(target=write)
    writer.start()
    while len(acknowledged) < 50:
        time.sleep(0.01)
    server.stop(signal.SIGKILL)
    writer.join(timeout=10)
    with api_server(tmp_path) as again:
        assert again.api.token == api.token, "a kubeconfig stays good"
        listed = again.api.get(CONFIG_MAPS).json
        assert set(acknowledged) <= {item["metadata"]["name"] for item in listed["items"]}


def test_versions_do_not_go_back_when_the_newest_object_is_gone(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        server.api.create(CONFIG_MAPS, {"metadata": {"name": "a"}})
        server.api.request("DELETE", f"{CONFIG_MAPS}/a")
        before = int(server.api.get(CONFIG_MAPS).json["metadata"]["resourceVersion"])
    with api_server(tmp_path) as server:
        assert int(server.api.create(CONFIG_MAPS, {"metadata": {"name": "a"}})["metadata"]["resourceVersion"]) > before


def test_definitions_and_their_objects_survive_a_restart(tmp_path: Path) -> None:
    task: dict[str, Any] = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": "t", "finalizers": ["example.com/hold"]},
        "spec": {"templateRef": {"name": "x"}},
    }
    with api_server(tmp_path) as server:
        server.kubectl("apply", "-f", str(REPOSITORY / "crds"))
        server.kubectl.apply(task)
        server.kubectl("delete", "crd", "tasks.tasker.dev", "--wait=false")
    with api_server(tmp_path) as server:
        server.kubectl("patch", "task", "t", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        server.kubectl("wait", "--for=delete", "crd/tasks.tasker.dev", "--timeout=20s")


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    with api_server(tmp_path), pytest.raises(EmbeddedError, match="does another embedded cluster use this folder"):
        asyncio.run(ApiServer(tmp_path).start())


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with ApiServer(tmp_path / "first") as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(EmbeddedError, match=f"cannot listen on 127.0.0.1:{port}"):
            await ApiServer(tmp_path / "second", port=port).start()


def test_a_terminated_server_ends_its_watches_and_goes(tmp_path: Path) -> None:
    server = start_api_server(tmp_path)
    with server.api.watch(CONFIG_MAPS) as watch:
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        assert watch.rest() == []


async def test_it_runs_inside_another_program(tmp_path: Path) -> None:
    rule = FaultRule(action="error", verb="create", resource="configmaps", status=409, count=1)
    async with debug_api_server(tmp_path, DebugSwitch(FaultPlan(rules=[rule]))) as server:
        server.write_kubeconfig(tmp_path / "config")
        user = yaml.safe_load((tmp_path / "config").read_text())["users"][0]["user"]
        headers = {"Authorization": f"Bearer {user['token']}"}
        context = ssl.create_default_context(cadata=server.authority.decode())
        async with aiohttp.ClientSession(server.url, headers=headers) as session:
            codes = []
            for _ in range(2):
                async with session.post(CONFIG_MAPS, json={"metadata": {"name": "a"}}, ssl=context) as reply:
                    codes.append(reply.status)
        assert codes == [409, 201]
        assert rule.hits == 1
    await server.stop()


def cpu_seconds(server: RunningApiServer) -> float:
    """What the server has computed so far: other than the time it took, that does not depend on what else runs here."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_template_of_a_thousand_steps_is_taken_in_a_second(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = []
    for layer in range(50):
        before = [f"s-{layer - 1}-{number}" for number in range(20)] if layer else []
        steps.extend(
            {"name": f"s-{layer}-{number}", "handler": {"callable": "work.run"}, "dependsOn": before}
            for number in range(20)
        )
    template = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "TaskTemplate",
        "metadata": {"name": "wide"},
        "spec": {"version": "1.0.0", "steps": steps},
    }
    path = "/apis/tasker.dev/v1alpha1/namespaces/default/tasktemplates"
    with api_server(tmp_path) as server:
        server.kubectl("apply", "-f", str(REPOSITORY / "crds"))
        started = cpu_seconds(server)
        created = server.api.create(path, template)
        took = cpu_seconds(server) - started
        assert len(created["spec"]["steps"]) == 1000
        assert took < 3, f"{took:.2f} s"
        server.kubectl.apply(template, options=("--server-side", "--force-conflicts"))
        server.api.merge(f"{path}/wide", {"metadata": {"labels": {"a": "b"}}})
        resident = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 150 * 1024 * 1024


def test_a_thousand_objects_are_created_in_a_few_seconds(tmp_path: Path) -> None:
    async def create(api: Api) -> None:
        context = ssl.create_default_context(cadata=api.authority)
        connector = aiohttp.TCPConnector(ssl=context, limit=8)
        headers = {"Authorization": f"Bearer {api.token}"}
        async with aiohttp.ClientSession(
            f"https://{api.host}:{api.port}", headers=headers, connector=connector
        ) as session:

            async def one() -> None:
                body = {"metadata": {"generateName": "a-"}, "data": {"k": "v"}}
                async with session.post(CONFIG_MAPS, json=body) as reply:
                    assert reply.status == 201

            await asyncio.gather(*(one() for _ in range(1000)))

    with api_server(tmp_path) as server:
        started = cpu_seconds(server)
        asyncio.run(create(server.api))
        took = cpu_seconds(server) - started
    assert took < 5, f"{1000 / took:.0f} creates a second"
