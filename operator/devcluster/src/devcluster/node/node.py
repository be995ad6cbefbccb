"""The local node of the embedded cluster: Deployments to ReplicaSets to pods to processes on this machine.

Callers embed `Node`, or run ``python -m devcluster.node``. It is an ordinary client of the API server and keeps nothing
that it could not find out again. Its loops are watched over (`loops`): the port in the Node object's
``daemonEndpoints`` answers at ``/healthz`` whether each comes round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from devcluster.errors import EmbeddedError
from devcluster.locks import FileLock
from devcluster.loops import Heartbeat, Loops
from devcluster.node.client import (
    DEPLOYMENTS,
    NODES,
    PODS,
    REPLICA_SETS,
    ApiClient,
    ApiError,
    read_kubeconfig,
)
from devcluster.node.deployments import DeploymentController
from devcluster.node.environment import HOST_ADDRESS
from devcluster.node.events import EventRecorder
from devcluster.node.health import HealthServer
from devcluster.node.informer import Informer
from devcluster.node.kubelet import Kubelet
from devcluster.node.objects import Key, KubeObject, controller_of, format_time, key_of
from devcluster.node.replica_sets import ReplicaSetController
from devcluster.node.work_queue import WorkQueue

logger = logging.getLogger(__name__)

DEFAULT_NAME = "devcluster"
STOP_GRACE_SECONDS = 3.0  # whatever the pods' own grace is: Ctrl-C is to end everything soon

_WORKERS = 16
_RESYNC_SECONDS = 60.0
_RESYNC_LATE_SECONDS = 180.0
_START_SECONDS = 30.0
_MAX_PODS = 110


class WorkKey(NamedTuple):
    """An object to bring in line."""

    kind: Literal["Deployment", "ReplicaSet", "Pod"]
    key: Key


class Node:
    """One node and the controllers that a cluster needs to give it work; ``async with`` starts and stops it.

    `kubeconfig` says how to reach the API server, with a bearer token. `data_folder` gets the pods' volumes and working
    folders; `logs_folder` gets ``<namespace>/<pod>/<container>.log`` and is the API server's own when `kubectl logs`
    is to find them (default: ``logs`` in the data folder). `images` maps the ending of an image's repository to the
    command that stands for it; a pod's args are appended. Nothing else is ever run. ``$(NAME)`` in a command is the
    container's variable of that name, ``$(TERMINATION_LOG)`` the file for its termination message.

    Processes do not outlive the node, however it ends; for that it must run on a thread that lasts as long as it does.
    Raises ``ConfigurationError`` when the kubeconfig cannot be used.
    """

    def __init__(
        self,
        kubeconfig: Path,
        data_folder: Path,
        logs_folder: Path | None = None,
        *,
        images: Mapping[str, Sequence[str]],
        name: str = DEFAULT_NAME,
    ) -> None:
        self._connection = read_kubeconfig(kubeconfig)
        self._data_folder = data_folder.absolute()
        self._logs_folder = (logs_folder or data_folder / "logs").absolute()
        self._images = images
        self._name = name
        self._lock = FileLock(self._data_folder / "node.lock")
        self._client: ApiClient | None = None
        self._kubelet: Kubelet | None = None
        self._loops = Loops()
        self._health = HealthServer(self.late)
        self._is_running = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def late(self) -> list[str]:
        """One line for each of the node's loops that has not come round in time; empty when all is well."""
        return self._loops.late()

    @property
    def health_url(self) -> str:
        """Answers whether the node's loops come round: 200 ``ok``, or 500 with a line for each that does not."""
        return self._health.url

    async def start(self) -> None:
        """Register the node and begin to work; back when it has seen all there is.

        Raises ``EmbeddedError`` when the API server does not answer for half a minute, or another node has the folder.
        """
        self._data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._lock.try_lock("exclusive"):
            self._lock.release()
            raise EmbeddedError(f"another node runs in {self._data_folder}")
        self._client = client = ApiClient(self._connection)
        try:
            self._loops = Loops()
            await self._health.start()
            async with asyncio.timeout(_START_SECONDS):
                labels = await self._register(client)
                await self._begin(client, labels)
        except TimeoutError:
            await self.stop()
            raise EmbeddedError(f"the API server at {self._connection.server_url} does not answer") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """End all work and all processes: SIGTERM, then SIGKILL after the grace. Pods stay in the API as they are."""
        await self._health.stop()
        await self._loops.stop()
        self._is_running = False
        if self._kubelet is not None:
            await self._kubelet.stop(grace_seconds)
            self._kubelet = None
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._lock.release()

    async def _begin(self, client: ApiClient, labels: Mapping[str, str]) -> None:
        queue: WorkQueue[WorkKey] = WorkQueue()
        events = EventRecorder(client, self._name, _now)

        def on_deployment(obj: KubeObject) -> None:
            queue.add(WorkKey("Deployment", key_of(obj)))

        def on_owned(obj: KubeObject) -> None:
            kind: Literal["ReplicaSet", "Pod"] = "Pod" if "containers" in obj["spec"] else "ReplicaSet"
            key = key_of(obj)
            queue.add(WorkKey(kind, key))
            owner = controller_of(obj)
            while owner is not None:
                parent = Key(key.namespace, owner["name"])
                match owner["kind"]:
                    case "ReplicaSet":
                        queue.add(WorkKey("ReplicaSet", parent))
                        # A Deployment that waits for old pods to be gone hears of them through their ReplicaSet.
                        found = replica_sets.get(parent)
                        owner = controller_of(found) if found is not None else None
                    case "Deployment":
                        queue.add(WorkKey("Deployment", parent))
                        owner = None
                    case _:
                        owner = None

        deployments = Informer(client, DEPLOYMENTS, on_deployment)
        replica_sets = Informer(client, REPLICA_SETS, on_owned)
        pods = Informer(client, PODS, on_owned)
        deployment_controller = DeploymentController(client, deployments, replica_sets, pods, events, _now)
        replica_set_controller = ReplicaSetController(client, replica_sets, pods, events, _now)
        self._kubelet = kubelet = Kubelet(
            client,
            pods,
            events,
            node_name=self._name,
            labels=labels,
            images=self._images,
            data_folder=self._data_folder,
            logs_folder=self._logs_folder,
            requeue=lambda key: queue.add(WorkKey("Pod", key)),
            now=_now,
        )

        async def reconcile(work: WorkKey) -> None:
            match work.kind:
                case "Deployment":
                    await deployment_controller.reconcile(work.key)
                case "ReplicaSet":
                    await replica_set_controller.reconcile(work.key)
                case "Pod":
                    await kubelet.reconcile(work.key)

        async def resync() -> None:
            while True:
                await asyncio.sleep(_RESYNC_SECONDS)
                resync_heart.beat()
                for informer in informers:
                    informer.notify_all()
                try:
                    await self._register(client)
                except ApiError as error:
                    logger.warning("the node's status could not be written: %s", error)

        informers = (deployments, replica_sets, pods)
        resync_heart = Heartbeat(_RESYNC_LATE_SECONDS)
        for informer in informers:
            self._loops.start(f"watch {informer.resource.plural}", informer.run, informer.heart)
        for informer in informers:
            await informer.synced.wait()
        # Only now: a controller that knows half of the pods would make the other half again.
        self._loops.start("reconcile", lambda: queue.run(reconcile, workers=_WORKERS), queue.heart)
        self._loops.start("events", events.run, events.heart)
        self._loops.start("resync", resync, resync_heart)
        self._is_running = True

    async def _register(self, client: ApiClient) -> Mapping[str, str]:
        """Make the Node object or refresh its status. The node's labels, those that people added included."""
        key = Key("", self._name)
        while True:
            try:
                try:
                    known = await client.get(NODES, key)
                except ApiError as error:
                    if not error.is_not_found:
                        raise
                    metadata = {"name": self._name, "labels": _labels(self._name)}
                    known = await client.create(NODES, "", {"metadata": metadata, "spec": {}})
                status = _status(self._name, known, _now(), health_port=self._health.port)
                written = await client.patch(NODES, key, {"status": status}, subresource="status")
            except ApiError as error:
                if self._is_running:  # the next resync does it
                    raise
                logger.debug("the node could not be registered: %s", error)
                await asyncio.sleep(error.retry_after or 0.2)
            else:
                labels: Mapping[str, str] = written["metadata"].get("labels") or {}
                return labels


def _labels(name: str) -> dict[str, str]:
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": platform.system().lower(),
        "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
    }


def _status(name: str, known: KubeObject, now: datetime, *, health_port: int) -> KubeObject:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    capacity = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": str(_MAX_PODS)}
    before = ((known.get("status") or {}).get("conditions") or [{}])[0]
    architecture = _labels(name)["kubernetes.io/arch"]
    return {
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [{"type": "InternalIP", "address": HOST_ADDRESS}, {"type": "Hostname", "address": name}],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "NodeReady",
                "message": "the embedded node runs pods as processes of this machine",
                "lastHeartbeatTime": format_time(now),
                "lastTransitionTime": before.get("lastTransitionTime") or format_time(now),
            }
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": health_port}},
        "nodeInfo": {
            "architecture": architecture,
            "bootID": "",
            "containerRuntimeVersion": "process://1",
            "kernelVersion": platform.release(),
            "kubeProxyVersion": "",
            "kubeletVersion": "v1.37.0-devcluster",
            "machineID": "",
            "operatingSystem": platform.system().lower(),
            "osImage": "this machine",
            "systemUUID": "",
        },
    }


def _now() -> datetime:
    return datetime.now(UTC)
