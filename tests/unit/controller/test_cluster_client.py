"""The client and a server that misbehaves: no answer is taken for more than it says, none is waited for for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from tasker.controller.kube import client
from tasker.controller.kube.access import client_configuration, renew_credentials
from tasker.controller.kube.client import (
    CONFIG_MAP,
    LIST_ATTEMPTS,
    RETRY_AFTER_LIMIT_SECONDS,
    TASK,
    Cluster,
    ClusterError,
    Manifest,
)
from tasker.errors import ConfigurationError

EMPTY: Manifest = {"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"}, "items": []}
A_CONFIG_MAP: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "1"}}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `length` is what its head says, when that is more than there is; `ends` closes the connection."""

    code: int = 200
    body: Any = b""
    headers: Sequence[tuple[str, str]] = ()
    length: int | None = None
    ends: bool = False

    def encode(self) -> bytes:
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        length = len(data) if self.length is None else self.length
        lines = [f"HTTP/1.1 {self.code} X", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass
class Server:
    """Answers each request as `answer` says, by its first line and its token; None is silence."""

    answer: Callable[[str, str], Reply | None] = lambda line, token: Reply(body=EMPTY)
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                await reader.readexactly(int(headers.get("content-length", "0")))
                request = head[0], headers.get("authorization", "").partition(" ")[2]
                self.requests.append(request)
                reply = self.answer(*request)
                if reply is not None:
                    writer.write(reply.encode())
                    if reply.ends:
                        break
        writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    server = Server()
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        await asyncio.gather(*connections)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running() as made:
        yield made


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Cluster]:
    configuration = Configuration(host=server.url)
    configuration.api_key["BearerToken"] = "Bearer first"
    cluster = await Cluster.connect(configuration, **options)
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def cluster(server: Server) -> AsyncIterator[Cluster]:
    """Closed before its server, which waits for its connections to end."""
    async with connected(server) as made:
        yield made


async def listed(cluster: Cluster) -> list[Manifest]:
    return [found async for found in cluster.list(CONFIG_MAP)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad gateway</html>",
        b"[]",
        b"null",
        {},
        {"kind": "Status", "status": "Success"},
        A_CONFIG_MAP,
        {"kind": "ConfigMapList", "metadata": {"resourceVersion": "1"}},
        {"kind": "ConfigMapList", "metadata": {}, "items": []},
        {**EMPTY, "kind": "SecretList"},
    ],
)
async def test_only_a_list_is_a_list(server: Server, cluster: Cluster, body: Any) -> None:
    """What looks empty would delete everything that is known."""
    server.answer = lambda line, token: Reply(body=body)
    with pytest.raises(ClusterError) as failed:
        await listed(cluster)
    assert not failed.value.is_not_found


async def test_a_list_without_items_is_empty_the_way_go_writes_it(server: Server, cluster: Cluster) -> None:
    server.answer = lambda line, token: Reply(body={**EMPTY, "items": None})
    assert await listed(cluster) == []


@pytest.mark.parametrize("body", [b"", b"OK", {}, {"kind": "Status", "status": "Success"}, EMPTY])
async def test_only_the_object_is_the_object(server: Server, cluster: Cluster, body: Any) -> None:
    server.answer = lambda line, token: Reply(body=body)
    with pytest.raises(ClusterError):
        await cluster.get(CONFIG_MAP, "default", "a")
    with pytest.raises(ClusterError):
        await cluster.create(CONFIG_MAP, {"metadata": {"name": "a", "namespace": "default"}})


@pytest.mark.parametrize(
    ("body", "absent"),
    [
        ({"kind": "Status", "reason": "NotFound", "details": {"name": "a", "kind": "tasks"}}, True),
        ({"kind": "Status", "reason": "NotFound", "details": {}}, False),
        (b"404 page not found", False),
    ],
)
async def test_a_path_that_nobody_serves_is_no_absent_object(
    server: Server, cluster: Cluster, body: Any, absent: bool
) -> None:
    """So answers a server that does not know the kind (yet), or a proxy before it."""
    server.answer = lambda line, token: Reply(code=404, body=body)
    if absent:
        assert await cluster.get(TASK, "default", "a") is None
        return
    with pytest.raises(ClusterError) as refused:
        await cluster.get(TASK, "default", "a")
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ([("Retry-After", "7")], {}, 7.0),
        ([], {"retryAfterSeconds": 8}, 8.0),
        ([("Retry-After", "7")], {"retryAfterSeconds": 8}, 8.0),
        ([("Retry-After", "7")], {"retryAfterSeconds": 0}, 7.0),
        ([("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")], {}, None),
        ([("Retry-After", "nan")], {}, None),
        ([("Retry-After", "-3")], {}, None),
        ([("Retry-After", "1e9")], {}, RETRY_AFTER_LIMIT_SECONDS),
        ([], {}, None),
    ],
)
async def test_the_wait_is_read_from_the_header_or_the_details(
    server: Server, cluster: Cluster, headers: list[tuple[str, str]], details: Manifest, seconds: float | None
) -> None:
    body = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "details": details}
    server.answer = lambda line, token: Reply(code=429, body=body, headers=headers)
    with pytest.raises(ClusterError) as refused:
        await cluster.get(TASK, "default", "a")
    assert refused.value.retry_after == seconds
    assert refused.value.label == "api_429"


async def test_a_wait_is_read_even_when_a_proxy_answers(server: Server, cluster: Cluster) -> None:
    server.answer = lambda line, token: Reply(code=503, body=b"busy", headers=[("Retry-After", "2")])
    with pytest.raises(ClusterError, match="503 busy") as refused:
        await cluster.get(TASK, "default", "a")
    assert refused.value.retry_after == 2


async def test_a_list_that_is_forgotten_again_and_again_fails(server: Server, cluster: Cluster) -> None:
    first = {**EMPTY, "metadata": {"resourceVersion": "1", "continue": "more"}, "items": [A_CONFIG_MAP]}

    def answer(line: str, token: str) -> Reply:
        if "continue=more" in line:
            return Reply(code=410, body={"kind": "Status", "code": 410, "reason": "Expired"})
        return Reply(body=first)

    server.answer = answer
    with pytest.raises(ClusterError) as failed:
        await listed(cluster)
    assert failed.value.is_expired
    assert not failed.value.is_not_found
    assert len(server.requests) == 2 * LIST_ATTEMPTS


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(None, id="nothing comes"),
        pytest.param(Reply(body=b"{", length=100), id="the rest does not come"),
        pytest.param(Reply(body=b"{", length=100, ends=True), id="the connection is closed in the middle"),
        pytest.param(Reply(body=b"", length=100, ends=True), id="only a head comes"),
    ],
)
async def test_a_connection_that_falls_silent_is_given_up(
    server: Server, cluster: Cluster, reply: Reply | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_SECONDS", 0.2)
    server.answer = lambda line, token: reply
    with pytest.raises(ClusterError) as failed:
        await listed(cluster)
    assert failed.value.label == "api_unreachable"
    server.answer = lambda line, token: Reply(body=EMPTY)
    assert await listed(cluster) == []


async def test_a_server_that_is_not_there_is_a_refusal_too() -> None:
    async with running() as gone:
        pass
    async with connected(gone) as cluster:
        with pytest.raises(ClusterError) as failed:
            await cluster.get(TASK, "default", "a")
    assert failed.value.status == 0


def only_second(line: str, token: str) -> Reply:
    """A server that has withdrawn the first token."""
    if token == "second":
        return Reply(body=EMPTY)
    return Reply(code=401, body={"kind": "Status", "code": 401, "reason": "Unauthorized"})


async def test_a_token_that_is_refused_is_renewed_once_for_all_who_met_it(server: Server) -> None:
    server.answer = only_second
    renewals = 0

    async def renew(configuration: Configuration) -> None:
        nonlocal renewals
        renewals += 1
        await asyncio.sleep(0)
        configuration.api_key["BearerToken"] = "Bearer second"

    async with connected(server, renew=renew) as cluster:
        assert await asyncio.gather(*(listed(cluster) for _ in range(10))) == [[]] * 10
    assert renewals == 1


async def test_a_token_that_cannot_be_renewed_is_a_refusal(server: Server) -> None:
    server.answer = only_second

    async def fail(configuration: Configuration) -> None:
        raise ConfigurationError("the file is gone")

    async def renew_nothing(configuration: Configuration) -> None:
        pass

    for renew, requests in ((fail, 1), (renew_nothing, 2), (None, 1)):
        server.requests.clear()
        async with connected(server, renew=renew) as cluster:
            with pytest.raises(ClusterError) as refused:
                await listed(cluster)
        assert (refused.value.status, len(server.requests)) == (401, requests), renew


async def test_a_renewal_that_hangs_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_SECONDS", 0.2)
    server.answer = only_second

    async def hang(configuration: Configuration) -> None:
        await asyncio.Event().wait()

    async with connected(server, renew=hang) as cluster:
        with pytest.raises(ClusterError, match="no credentials came in time"):
            await listed(cluster)


def kubeconfig(server: Server, token: str) -> str:
    return json.dumps(
        {
            "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": server.url}}],
            "users": [{"name": "a", "user": {"token": token}}],
        }
    )


async def test_a_kubeconfig_is_read_again_when_its_token_is_refused(server: Server, tmp_path: Path) -> None:
    server.answer = only_second
    file = tmp_path / "kubeconfig"
    environment = {"KUBECONFIG": str(file)}
    file.write_text(kubeconfig(server, "first"))
    configuration = await client_configuration(environment)
    cluster = await Cluster.connect(configuration, renew=lambda known: renew_credentials(known, environment))
    file.write_text(kubeconfig(server, "second"))
    try:
        assert await listed(cluster) == []
    finally:
        await cluster.close()
    assert [token for _, token in server.requests] == ["first", "second"]
