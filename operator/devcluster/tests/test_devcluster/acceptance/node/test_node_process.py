"""The node as a process of its own: what it leaves behind when it ends, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from devcluster.errors import ConfigurationError, EmbeddedError
from devcluster.node import Node
from devcluster.node.client import DEPLOYMENTS, NODES, PODS
from devcluster.node.objects import Key, is_true
from support.node_cluster import IMAGES, NodeCluster, container, deployment, is_alive, pod
from support.waiting import eventually_async

PROGRAM = """
import asyncio, signal, sys
from pathlib import Path
from typing import Any
from devcluster.node import Node

async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    folder, logs, *command = sys.argv[1:]
    async with Node(Path(folder) / "kubeconfig", Path(folder) / "node", Path(logs), images={"tester": command}):
        print("ready", flush=True)
        await stopped.wait()

asyncio.run(main())
"""


async def start_node(api: NodeCluster, *arguments: str) -> asyncio.subprocess.Process:
    """A node with the tests' image as a process that leads a group of its own; back when it is ready."""
    command: Sequence[str] = arguments or (
        "-c",
        PROGRAM,
        str(api.folder),
        str(api.server.logs_folder),
        *IMAGES["tester"],
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert "ready" in line
    return process


async def test_killed_node_takes_its_processes_along_and_the_next_runs_the_pods_again(api: NodeCluster) -> None:
    first = await start_node(api)
    await api.create(PODS, pod("stays", container("stubborn")))
    told = await api.ask(await api.until_ready("stays"))
    first.kill()
    await first.communicate()

    async def ended() -> bool:
        return not is_alive(told["pid"])

    await eventually_async(ended, what="the pod's process ends with its node")
    async with api.make_node():
        found = await api.until(
            PODS,
            "stays",
            lambda pod: is_true(pod, "Ready") and pod["status"]["containerStatuses"][0]["restartCount"] == 1,
        )
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137


async def test_interrupt_reaches_pods_only_through_the_node(api: NodeCluster) -> None:
    node = await start_node(api)
    await api.create(PODS, pod("one"))
    told = await api.ask(await api.until_ready("one"))
    assert told["session"] == told["pid"]
    assert os.getpgid(told["pid"]) != os.getpgid(node.pid)
    # As a terminal does it: to the whole group in the foreground.
    os.killpg(node.pid, signal.SIGINT)
    await node.communicate()
    assert node.returncode == 0
    assert not is_alive(told["pid"])


async def test_stop_is_quick_even_when_pods_are_not(api: NodeCluster) -> None:
    node = api.make_node()
    await node.start()
    await api.create(PODS, pod("deaf", container("stubborn"), terminationGracePeriodSeconds=300))
    told = await api.ask(await api.until_ready("deaf"))
    began = time.monotonic()
    await node.stop(grace_seconds=0.5)
    assert time.monotonic() - began < 3
    assert not is_alive(told["pid"])
    assert "not yet" in api.log("deaf")
    # It is still there for the next node.
    assert (await api.get(PODS, "deaf"))["metadata"].get("deletionTimestamp") is None


async def test_pod_deleted_while_no_node_ran_is_gone_when_one_comes(api: NodeCluster) -> None:
    async with api.make_node():
        await api.create(PODS, pod("late"))
        await api.until_ready("late")
    await api.kubectl("delete", "pod", "late", "--wait=false")
    assert (await api.get(PODS, "late"))["metadata"]["deletionTimestamp"]
    async with api.make_node():
        await api.gone(PODS, "late")


async def test_deployment_made_while_no_node_ran_is_brought_in_line(api: NodeCluster) -> None:
    await api.create(DEPLOYMENTS, deployment("web", 2))
    async with api.make_node():
        await api.until_available("web", 2)


async def test_restarted_node_makes_no_pod_twice(api: NodeCluster) -> None:
    async with api.make_node():
        await api.create(DEPLOYMENTS, deployment("web", 3))
        await api.until_available("web", 3)
        before = {found["metadata"]["uid"] for found in await api.running_pods("web")}
    async with api.make_node():
        await api.create(PODS, pod("marker"))
        await api.until_ready("marker")
        await api.until_available("web", 3)
        assert {found["metadata"]["uid"] for found in await api.running_pods("web")} == before


async def test_command_line_starts_and_ends_a_node(api: NodeCluster, tmp_path: Path) -> None:
    node = await start_node(
        api, "-m", "devcluster.node", "--kubeconfig", str(api.kubeconfig), "--data", str(tmp_path / "own")
    )
    node.send_signal(signal.SIGTERM)
    await node.communicate()
    assert node.returncode == 0


async def test_two_nodes_in_one_folder_are_refused(cluster: NodeCluster) -> None:
    with pytest.raises(EmbeddedError, match="another node runs in"):
        await cluster.make_node(name="second").start()


async def test_node_without_a_server_says_so(api: NodeCluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="this kubeconfig cannot be used"):
        Node(tmp_path / "none", tmp_path / "node", images=IMAGES)


async def test_the_node_tells_whether_its_loops_come_round(api: NodeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api.make_node() as node, aiohttp.ClientSession() as session:
        found = await api.client.get(NODES, Key("", "devcluster"))
        port = found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        assert node.health_url == f"http://127.0.0.1:{port}/healthz"
        async with session.get(node.health_url) as answer:
            assert (answer.status, await answer.text()) == (200, "ok")
        monkeypatch.setattr("devcluster.loops.Heartbeat.late_seconds", lambda _heart: 99.0)
        async with session.get(node.health_url) as answer:
            assert answer.status == 500
            assert "watch pods has not come round for 99 s" in (await answer.text()).splitlines()


async def test_whatever_loop_is_cancelled_is_logged_and_the_node_goes_on(
    cluster: NodeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"watch deployments", "watch replicasets", "watch pods", "reconcile", "events", "resync"}
    loops = {task.get_name(): task for task in asyncio.all_tasks() if task.get_name() in names}
    assert set(loops) == names
    for task in loops.values():
        task.cancel()
    await cluster.create(DEPLOYMENTS, deployment("web", 1))
    await cluster.until_available("web", 1, timeout=30)
    assert "Started container" in await cluster.event_of(
        (await cluster.running_pods("web"))[0]["metadata"]["name"], "Started"
    )
    for name in names:
        assert f"{name} was cancelled; it begins again" in caplog.text
