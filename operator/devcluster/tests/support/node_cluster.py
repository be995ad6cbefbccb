"""An embedded API server and a node in the test's own process, with `pod_program` as the one image there is."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from devcluster.apiserver import ApiServer
from devcluster.node import Node
from devcluster.node.client import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    PODS,
    ApiClient,
    ApiError,
    Resource,
    read_kubeconfig,
)
from devcluster.node.objects import Key, is_deleting, is_true
from support.debug_switch import debug_api_server
from support.waiting import eventually_async

_PROGRAM = (sys.executable, "-I", "-S", str(Path(__file__).with_name("pod_program.py")))
IMAGES = {"tester": _PROGRAM, "messenger": ("env", "LAST_WORDS=$(TERMINATION_LOG)", "WHO=$(HOSTNAME)", *_PROGRAM)}
NAMESPACE = "default"

Probe = Callable[[dict[str, Any]], object]


class NodeCluster:
    """What the tests of the node use: the server, a client, and ways to wait."""

    def __init__(self, server: ApiServer, client: ApiClient, folder: Path) -> None:
        self.server = server
        self.client = client
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"

    def make_node(self, **options: Any) -> Node:
        return Node(self.kubeconfig, self.folder / "node", self.server.logs_folder, images=IMAGES, **options)

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of a kubectl command that must succeed."""
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("kubectl")),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.folder / 'kubectl-cache'}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode() if stdin else None)
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def create(self, resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self.client.create(resource, NAMESPACE, dict(body))

    async def patch(self, resource: Resource, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        return await self.client.patch(resource, Key(NAMESPACE, name), changes)

    async def get(self, resource: Resource, name: str) -> dict[str, Any]:
        return await self.client.get(resource, Key(NAMESPACE, name))

    async def all(self, resource: Resource, selector: str = "") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.client.list(resource, label_selector=selector))["items"]
        return items

    async def gone(self, resource: Resource, name: str) -> None:
        """Wait until there is no such object."""

        async def probe() -> bool:
            try:
                await self.get(resource, name)
            except ApiError as error:
                return error.is_not_found
            return False

        await eventually_async(probe, what=f"{resource.kind} {name} is gone")

    async def until(self, resource: Resource, name: str, fits: Probe, *, timeout: float = 10.0) -> dict[str, Any]:
        """The object once it fits."""

        async def probe() -> dict[str, Any]:
            found = await self.get(resource, name)
            assert fits(found), json.dumps(found.get("status"), indent=1)
            return found

        return await eventually_async(probe, timeout=timeout)

    async def until_ready(self, name: str) -> dict[str, Any]:
        """The pod once it is ready."""
        return await self.until(PODS, name, lambda pod: is_true(pod, "Ready"))

    async def until_available(self, name: str, replicas: int, *, timeout: float = 10.0) -> dict[str, Any]:
        """The Deployment once its rollout is complete, as `kubectl rollout status` sees it."""

        def fits(deployment: dict[str, Any]) -> bool:
            status = deployment.get("status") or {}
            counts = [status.get(field) for field in ("replicas", "updatedReplicas", "availableReplicas")]
            return status.get("observedGeneration") == deployment["metadata"]["generation"] and counts == [replicas] * 3

        return await self.until(DEPLOYMENTS, name, fits, timeout=timeout)

    async def running_pods(self, deployment: str) -> list[dict[str, Any]]:
        """Its pods that are not on their way out."""
        return [pod for pod in await self.all(PODS, f"app={deployment}") if not is_deleting(pod)]

    async def event_of(self, name: str, reason: str) -> str:
        """The message of an Event about an object of that name, once it is there."""

        async def probe() -> str:
            for event in await self.all(EVENTS):
                if event["involvedObject"]["name"] == name and event["reason"] == reason:
                    return str(event["message"])
            return ""

        return await eventually_async(probe, what=f"an event {reason} about {name}")

    async def ask(self, pod: Mapping[str, Any], path: str = "/") -> Any:
        """What the pod's program answers on its port; parsed when it is JSON."""
        started = await self.event_of(pod["metadata"]["name"], "Started")
        port = int(started.rpartition(":")[2].rstrip(")"))

        async def probe() -> tuple[str]:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
                    return (await answer.text(),)
            except aiohttp.ClientConnectorError as error:  # without a probe it counts as ready before it listens
                raise AssertionError(str(error)) from error

        (text,) = await eventually_async(probe)
        return json.loads(text) if text.startswith("{") else text

    def log(self, pod: str, container: str = "worker") -> str:
        return (self.server.logs_folder / NAMESPACE / pod / f"{container}.log").read_text()


@asynccontextmanager
async def api_and_client(folder: Path) -> AsyncIterator[NodeCluster]:
    """A cluster without a node."""
    async with debug_api_server(folder / "apiserver") as server:
        server.write_kubeconfig(folder / "kubeconfig")
        client = ApiClient(read_kubeconfig(folder / "kubeconfig"))
        try:
            yield NodeCluster(server, client, folder)
        finally:
            await client.close()


def container(*arguments: str, **fields: Any) -> dict[str, Any]:
    """A container that runs `pod_program` with these arguments."""
    return {
        "name": "worker",
        "image": "registry.example/team/tester:1.0",
        "args": list(arguments or ("serve",)),
        "ports": [{"name": "http", "containerPort": 8081}],
        **fields,
    }


def pod(name: str, *containers: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod; by default of one serving container."""
    return {"metadata": {"name": name}, "spec": {"containers": list(containers or (container(),)), **spec}}


def deployment(name: str, replicas: int, *containers: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """A Deployment whose pods have the label app=<name>."""
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": list(containers or (container(),)), "terminationGracePeriodSeconds": 5},
    }
    selector = {"matchLabels": {"app": name}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": selector, "template": template, **spec},
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    """A ConfigMap."""
    return {"metadata": {"name": name}, "data": data}


async def make_config_map(cluster: NodeCluster, name: str, **data: str) -> None:
    """Create one."""
    await cluster.create(CONFIG_MAPS, config_map(name, **data))


def is_alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
