"""One `tasker dev`: the embedded database, API server, node and the operator, started in order and stopped together.

Everything is kept in one data folder, so that the next session there goes on where this one ended::

    .tasker/
      kubeconfig      for kubectl; the same address and token in every session, unless the port is taken
      postgres/       the database (not with DATABASE_URL)
      apiserver/      the cluster's objects, its credentials, the pods' logs
      node/           what the local node keeps for its pods
      operator.log
      session.lock    held while a session runs; session.json says by whom
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from devcluster.apiserver import ApiServer
from devcluster.errors import EmbeddedError
from devcluster.kubectl import Kubectl
from devcluster.locks import FileLock
from devcluster.node import Node
from devcluster.node.client import ApiClient, ApiError, Resource, read_kubeconfig
from devcluster.postgres import EmbeddedPostgres
from tasker.errors import SchemaMismatch
from tasker.factory import migrate
from tasker_dev.crd_files import crd_folder
from tasker_dev.operator_process import OperatorProcess

Result = TypeVar("Result")

DATABASE = "tasker"
NODE = "tasker-dev"
IMAGES = {
    "tasker-worker": ("env", "TASKER_TERMINATION_LOG=$(TERMINATION_LOG)", sys.executable, "-m", "tasker_worker"),
}
"""The programs of the node, by the ending of an image's repository."""

LOOPBACK = "127.0.0.1,localhost"
WORKER_POOLS = Resource(group="tasker.dev", version="v1alpha1", plural="workerpools", kind="WorkerPool")

_POOLS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What a session is started with."""

    data_folder: Path
    port: int | None
    """Of the API server; None: the one of the session before, or a free one."""
    kubectl: Path
    database_url: str | None
    """A database in place of the embedded one."""


class DevSession:
    """``async with DevSession(settings, say=print) as session: …``. `say` gets a line for each thing worth telling."""

    def __init__(self, settings: SessionSettings, *, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._folder = settings.data_folder.absolute()
        self._stack = AsyncExitStack()
        self._server = ApiServer(self._folder / "apiserver")
        self._client: ApiClient | None = None
        self._operator: OperatorProcess | None = None

    @property
    def kubeconfig(self) -> Path:
        return self._folder / "kubeconfig"

    @property
    def url(self) -> str:
        """Of the API server."""
        return self._server.url

    @property
    def operator(self) -> OperatorProcess:
        assert self._operator is not None, "the session has not been started"
        return self._operator

    async def summary(self) -> str:
        """How the session is in one line: the operator, and each pool's ready workers and open steps."""
        assert self._client is not None, "the session has not been started"
        process = self.operator.pid
        parts = ["operator starting again" if process is None else f"operator {process}"]
        try:
            pools = (await self._client.list(WORKER_POOLS, limit=_POOLS_SHOWN))["items"]
        except ApiError as error:
            return "; ".join([*parts, str(error)])
        for pool in pools:
            status = pool.get("status") or {}
            ready, desired = status.get("readyReplicas", 0), status.get("desiredReplicas", 0)
            steps = status.get("queued", 0) + status.get("running", 0)
            parts.append(f"{pool['metadata']['name']}: {ready}/{desired} workers, {steps} steps")
        return "; ".join(parts)

    async def __aenter__(self) -> Self:
        """Start everything. When it cannot, raises a `ClusterError` or `TaskerError`, leaving nothing running."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        database_url = await self._start_database()
        await self._start_server()
        kubectl = Kubectl(executable=self._settings.kubectl, kubeconfig=self.kubeconfig)
        await kubectl.run(
            "apply", "--server-side", "--force-conflicts", "--field-manager=tasker-dev", "-f", str(crd_folder())
        )
        self._client = ApiClient(read_kubeconfig(self.kubeconfig))
        self._stack.push_async_callback(self._client.close)
        node = Node(self.kubeconfig, self._folder / "node", self._server.logs_folder, images=IMAGES, name=NODE)
        await self._stack.enter_async_context(node)
        self._server.health_checks["node"] = node.late
        await self._start_operator(database_url)

    def _take_folder(self) -> None:
        lock, facts = FileLock(self._folder / "session.lock"), self._folder / "session.json"
        if not lock.try_lock("exclusive"):
            lock.release()
            raise EmbeddedError(
                f"another `tasker dev`{_told(facts)} runs in {self._folder}: use its KUBECONFIG={self.kubeconfig}, "
                f"end it first, or give another folder with --data"
            )
        self._stack.callback(lock.release)
        facts.write_text(json.dumps({"process": os.getpid()}), encoding="utf-8")

    async def _start_database(self) -> str:
        if self._settings.database_url:
            await migrate(self._settings.database_url)
            return self._settings.database_url
        server = EmbeddedPostgres(self._folder / "postgres")
        self._stack.push_async_callback(_to_its_end, server.stop)
        await _to_its_end(server.start)
        url = await _to_its_end(lambda: server.ensure_database(DATABASE))
        try:
            await migrate(url)
        except SchemaMismatch as error:
            raise EmbeddedError(
                f"{error}. What is in {self._folder} is of another release: remove it, or give another folder "
                f"with --data"
            ) from error
        return url

    async def _start_server(self) -> None:
        remembered = self._folder / "apiserver" / "port"
        wanted = self._settings.port
        if wanted is None:
            wanted = _read_port(remembered)
        try:
            await self._listen(wanted)
        except EmbeddedError:
            if self._settings.port is not None or wanted == 0:
                raise
            self._say(f"port {wanted} of the session before is taken now, so the kubeconfig gets another one")
            await self._listen(0)
        self._stack.push_async_callback(self._server.stop)
        remembered.write_text(self._server.url.rpartition(":")[2], encoding="utf-8")
        self._server.write_kubeconfig(self.kubeconfig)

    async def _listen(self, port: int) -> None:
        self._server = ApiServer(self._folder / "apiserver", port=port)
        await self._server.start()

    async def _start_operator(self, database_url: str) -> None:
        without_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), LOOPBACK)))
        environment = {
            "DATABASE_URL": database_url,
            "KUBECONFIG": str(self.kubeconfig),
            "TASKER_ENV": "development",
            "TASKER_HEALTH_HOST": "127.0.0.1",
            "TASKER_HEALTH_PORT": "0",
            "TASKER_LOG_FORMAT": "text",
            "NO_PROXY": without_proxy,
            "no_proxy": without_proxy,
        }
        self._operator = OperatorProcess(environment, self._folder / "operator.log", self._say)
        self._stack.push_async_callback(self._operator.stop)
        await self._operator.start()


async def _to_its_end(function: Callable[[], Result]) -> Result:
    """Run what blocks in a thread. Even when cancelled this waits for it, for a thread cannot be stopped half-way."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def _read_port(file: Path) -> int:
    try:
        port = int(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def _told(facts: Path) -> str:
    try:
        content: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f" (process {content.get('process')})"
