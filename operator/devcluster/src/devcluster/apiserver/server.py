"""The embedded API server as one object, to embed, and for `python -m devcluster.apiserver`.

    async with ApiServer(folder) as server:
        server.write_kubeconfig(path)
        ...

It listens on the loopback only, with TLS and a bearer token, and keeps everything under its data folder.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from devcluster.apiserver.bodies import MAX_BODY_BYTES
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.credentials import USER_SEPARATOR, Credentials, load_credentials, write_kubeconfig
from devcluster.apiserver.deleting import Deleter
from devcluster.apiserver.dispatch import Dispatcher
from devcluster.apiserver.documents import Documents
from devcluster.apiserver.garbage import Collector
from devcluster.apiserver.interception import Interceptor
from devcluster.apiserver.operations import Operations
from devcluster.apiserver.registry import NAMESPACES
from devcluster.apiserver.storage import Storage
from devcluster.apiserver.watching import BOOKMARK_SECONDS
from devcluster.errors import EmbeddedError
from devcluster.loops import Loops

HOST = "127.0.0.1"
FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
SHUTDOWN_SECONDS = 1.0


def utc_now() -> datetime:
    return datetime.now(UTC)


class ApiServer:
    """One server over one data folder. `port` 0 takes a free one.

    The folder gets `cluster.sqlite3` (all objects), `credentials/` and `logs/<namespace>/<pod>/<container>.log`, which
    the node writes and ``kubectl logs`` reads. A second server on the same folder raises `EmbeddedError`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        token: str | None = None,
        interceptor: Interceptor | None = None,
        clock: Callable[[], datetime] = utc_now,
        bookmark_seconds: float = BOOKMARK_SECONDS,
    ) -> None:
        self.folder = folder
        self._interceptor = interceptor or Interceptor()
        self._port = port
        self._given_token = token
        self._clock = clock
        self._bookmark_seconds = bookmark_seconds
        self._credentials: Credentials | None = None
        self._storage: Storage | None = None
        self._collector: Collector | None = None
        self._runner: web.ServerRunner | None = None
        self._dispatcher: Dispatcher | None = None
        self._loops = Loops()
        self.health_checks: dict[str, Callable[[], Sequence[str]]] = {}
        """More that ``/healthz`` is to ask, by name: each gives a line for everything that is wrong."""

    @property
    def url(self) -> str:
        """`https://127.0.0.1:<port>`; the port is known once the server has started."""
        return f"https://{HOST}:{self._port}"

    @property
    def token(self) -> str:
        return self._started().token

    @property
    def authority(self) -> bytes:
        """The PEM of the CA that clients must trust."""
        return self._started().authority

    @property
    def logs_folder(self) -> Path:
        return self.folder / "logs"

    def write_kubeconfig(self, path: Path, *, user: str | None = None) -> None:
        """Writes a kubeconfig (0600) for this server.

        All its users may do everything; `user` names one of them, so that the log of calls can tell them apart.
        """
        credentials = self._started()
        token = credentials.token if user is None else f"{credentials.token}{USER_SEPARATOR}{user}"
        write_kubeconfig(path, url=self.url, authority=credentials.authority, token=token)

    def compact(self) -> None:
        """Forgets all past changes, as a real server does after some minutes: older watches and lists get 410."""
        assert self._storage is not None, "the server has not been started"
        self._storage.compact()

    def _started(self) -> Credentials:
        if self._credentials is None:
            raise EmbeddedError("the embedded API server has not been started")
        return self._credentials

    async def start(self) -> None:
        """Raises EmbeddedError when the folder is in use or the port is taken."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._storage = storage = Storage(self.folder / "cluster.sqlite3")
        try:
            self._credentials = load_credentials(
                self.folder / "credentials", now=self._clock(), token=self._given_token
            )
            cluster = Cluster(storage, self._clock)
            deleter = Deleter(cluster)
            self._collector = collector = Collector(cluster, deleter)
            _create_first_namespaces(cluster)
            operations = Operations(
                cluster, deleter, logs_folder=self.logs_folder, bookmark_seconds=self._bookmark_seconds
            )
            documents = Documents(cluster.registry, lambda: f"{HOST}:{self._port}", self._faults_of_health)
            dispatcher = Dispatcher(operations, documents, self._interceptor, self._credentials.token)
            self._dispatcher = dispatcher
            await self._listen(dispatcher, self._credentials.ssl_context())
            self._loops = Loops()
            self._loops.start("apiserver-collector", collector.run, collector.heart)
        except BaseException:
            await self.stop()
            raise

    def _faults_of_health(self) -> list[str]:
        others = (f"{name}: {line}" for name, check in self.health_checks.items() for line in check())
        return [*self._loops.late(), *others]

    async def _listen(self, dispatcher: Dispatcher, context: ssl.SSLContext) -> None:
        server = web.Server(
            dispatcher.handle, request_factory=_make_request, handler_cancellation=True, access_log=None
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, self._port, ssl_context=context, backlog=512)
        try:
            await site.start()
        except OSError as error:
            raise EmbeddedError(f"cannot listen on {HOST}:{self._port}: {error.strerror or error}") from error
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Ends all watches and closes the folder. May be called more than once."""
        await self._loops.stop()
        if self._dispatcher is not None:
            self._dispatcher.end_streams()
            self._dispatcher = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._collector is not None:
            self._collector.close()
            self._collector = None
        if self._storage is not None:
            self._storage.close()
            self._storage = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    """aiohttp's own factory, with Kubernetes' limit on bodies in place of 1 MiB."""
    return web.BaseRequest(
        message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=MAX_BODY_BYTES
    )


def _create_first_namespaces(cluster: Cluster) -> None:
    for name in FIRST_NAMESPACES:
        if cluster.storage.get(NAMESPACES, "", name) is not None:
            continue
        metadata = {
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": cluster.now(),
            "labels": {"kubernetes.io/metadata.name": name},
        }
        namespace = {
            "kind": "Namespace",
            "apiVersion": "v1",
            "metadata": metadata,
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }
        cluster.storage.put(NAMESPACES, namespace)
