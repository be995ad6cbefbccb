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
    bodies: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                self.bodies.append(await reader.readexactly(int(headers.get("content-length", "0"))))
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
        ([("Retry-After", "0")], {}, 0.0),
        ([("Retry-After", "-0.5")], {}, None),
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


@pytest.mark.parametrize(("page", "code", "requests"), [("first", 410, 1), ("second", 500, 2)])
async def test_only_a_list_whose_rest_was_forgotten_is_begun_again(
    server: Server, cluster: Cluster, page: str, code: int, requests: int
) -> None:
    begun = {**EMPTY, "metadata": {"resourceVersion": "1", "continue": "more"}, "items": [A_CONFIG_MAP]}
    refusal = Reply(code=code, body={"kind": "Status", "code": code})
    server.answer = lambda line, token: refusal if page == "first" or "continue=more" in line else Reply(body=begun)
    with pytest.raises(ClusterError) as failed:
        await listed(cluster)
    assert failed.value.status == code
    assert len(server.requests) == requests, "the retry is the caller's"


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
    asked = "GET /api/v1/configmaps?limit=500 HTTP/1.1"
    assert server.requests == [(asked, "first"), (asked, "second")]


# What is asked, and what a refusal says.


async def test_a_list_is_asked_for_in_pages_and_by_its_labels(server: Server, cluster: Cluster) -> None:
    assert await listed(cluster) == []
    assert [found async for found in cluster.list(CONFIG_MAP, "default", label_selector="a=b,c")] == []
    assert [line for line, _ in server.requests] == [
        "GET /api/v1/configmaps?limit=500 HTTP/1.1",
        "GET /api/v1/namespaces/default/configmaps?limit=500&labelSelector=a%3Db,c HTTP/1.1",
    ]


async def test_the_rest_of_a_list_is_asked_for_until_there_is_none(server: Server, cluster: Cluster) -> None:
    def answer(line: str, token: str) -> Reply:
        more = "" if "continue=2" in line else "2" if "continue=1" in line else "1"
        return Reply(body={**EMPTY, "metadata": {"resourceVersion": "7", "continue": more}, "items": [A_CONFIG_MAP]})

    server.answer = answer
    listing = cluster.list(CONFIG_MAP)
    assert len([found async for found in listing]) == 3
    assert listing.version == "7"
    assert [line.partition("?")[2] for line, _ in server.requests] == [
        "limit=500 HTTP/1.1",
        "limit=500&continue=1 HTTP/1.1",
        "limit=500&continue=2 HTTP/1.1",
    ]


async def test_writes_are_made_in_our_name_and_by_force_unless_told(server: Server, cluster: Cluster) -> None:
    server.answer = lambda line, token: Reply(body=A_CONFIG_MAP)
    manifest = {"metadata": {"name": "a/b", "namespace": "default"}}
    await cluster.apply(CONFIG_MAP, manifest)
    await cluster.apply(CONFIG_MAP, manifest, force=False)
    await cluster.merge(CONFIG_MAP, "default", "a", {})
    await cluster.create(CONFIG_MAP, manifest)
    await cluster.patch_status(CONFIG_MAP, "default", "a", resource_version="1", operations=[])
    await cluster.delete(CONFIG_MAP, "default", "a", uid="u")
    written, _, _, made, _, deleted = map(json.loads, server.bodies)
    assert written == made == manifest
    assert deleted["preconditions"] == {"uid": "u"}
    base = "/api/v1/namespaces/default/configmaps"
    assert [line.removesuffix(" HTTP/1.1") for line, _ in server.requests] == [
        f"PATCH {base}/a%2Fb?fieldManager=tasker-operator&force=true",
        f"PATCH {base}/a%2Fb?fieldManager=tasker-operator&force=false",
        f"PATCH {base}/a?fieldManager=tasker-operator",
        f"POST {base}?fieldManager=tasker-operator",
        f"PATCH {base}/a/status?fieldManager=tasker-operator",
        f"DELETE {base}/a",
    ]


def test_every_kind_is_where_the_api_serves_it() -> None:
    namespaced, cluster_wide = TASK, client.NAMESPACE
    assert namespaced.path("n", "a", "status") == "/apis/tasker.dev/v1alpha1/namespaces/n/tasks/a/status"
    assert namespaced.path(None) == "/apis/tasker.dev/v1alpha1/tasks"
    assert cluster_wide.path("ignored", "a") == "/api/v1/namespaces/a"
    assert (namespaced.api_version, cluster_wide.api_version) == ("tasker.dev/v1alpha1", "v1")


async def test_a_refusal_says_what_was_asked_and_what_was_answered(server: Server, cluster: Cluster) -> None:
    path = "/apis/tasker.dev/v1alpha1/namespaces/default/tasks/a"
    body = {"kind": "Status", "message": "no", "reason": "Forbidden", "details": {"name": "a"}}
    cases: list[tuple[Any, str, str, str]] = [
        (body, "no", "Forbidden", "a"),
        ({"kind": "Status", "details": "odd"}, '{"kind": "Status", "details": "odd"}', "", ""),
        (b"x" * 999, "x" * 200, "", ""),
        (b"\xff", "\ufffd", "", ""),
    ]
    for answered, text, reason, about in cases:
        server.answer = lambda line, token, answered=answered: Reply(code=403, body=answered)  # type: ignore[misc]
        with pytest.raises(ClusterError) as refused:
            await cluster.get(TASK, "default", "a")
        error = refused.value
        assert str(error) == f"GET {path}: 403 {text}"
        assert (error.status, error.reason, error.about, error.retry_after) == (403, reason, about, None)
        assert (error.label, error.is_conflict, error.is_expired, error.is_not_found) == ("api_403", *[False] * 3)


@pytest.mark.parametrize("code", [300, 304, 399])
async def test_what_is_not_done_is_a_refusal(server: Server, cluster: Cluster, code: int) -> None:
    """A proxy may send one elsewhere."""
    server.answer = lambda line, token: Reply(code=code, body=b"" if code == 304 else {})
    with pytest.raises(ClusterError) as refused:
        await cluster.get(TASK, "default", "a")
    assert refused.value.status == code


@pytest.mark.parametrize("code", [200, 201, 299])
async def test_what_is_done_is_no_refusal(server: Server, cluster: Cluster, code: int) -> None:
    server.answer = lambda line, token: Reply(code=code, body=A_CONFIG_MAP)
    assert await cluster.get(CONFIG_MAP, "default", "a") == A_CONFIG_MAP


async def test_an_answer_that_is_something_else_is_described(server: Server, cluster: Cluster) -> None:
    async def told(body: Any) -> str:
        server.answer = lambda line, token: Reply(body=body)
        with pytest.raises(ClusterError) as failed:
            await cluster.get(TASK, "default", "a")
        return str(failed.value).partition("tasks/a: ")[2]

    assert await told(b"<html>") == "200, but the answer is no JSON object: <html>"
    assert await told({"kind": "Task"}) == "the answer is no Task"
    assert await told({"kind": "Task", "metadata": {"name": ""}}) == "the answer is no Task"
    assert await told({"kind": "Pod", "metadata": {"name": "a"}}) == "the answer is no Task"
    server.answer = lambda line, token: Reply(body={})
    with pytest.raises(ClusterError, match=r"^GET /api/v1/configmaps: the answer is no list of configmaps$"):
        await listed(cluster)


@pytest.mark.parametrize(("code", "name"), [(404, "a"), (409, "a"), (409, "")])
async def test_what_is_gone_or_another_by_now_need_not_be_deleted(
    server: Server, cluster: Cluster, code: int, name: str
) -> None:
    server.answer = lambda line, token: Reply(code=code, body={"details": {"name": name}})
    assert await cluster.delete(TASK, "default", "a", uid="u") is False


async def test_a_deletion_that_was_refused_is_no_deletion(server: Server, cluster: Cluster) -> None:
    for code, expected in ((404, "api_404"), (500, "api_500")):
        server.answer = lambda line, token, code=code: Reply(code=code, body=b"")  # type: ignore[misc]
        with pytest.raises(ClusterError) as refused:
            await cluster.delete(TASK, "default", "a", uid="u")
        assert refused.value.label == expected
    server.answer = lambda line, token: Reply(body={"kind": "Status"})
    assert await cluster.delete(TASK, "default", "a", uid="u") is True


async def test_so_many_requests_may_be_under_way_at_once() -> None:
    configuration = Configuration(host="http://127.0.0.1:1")
    cluster = await Cluster.connect(configuration)
    await cluster.close()
    assert configuration.connection_pool_maxsize == 64


async def test_a_refused_token_is_told_with_the_request(server: Server) -> None:
    server.answer = only_second

    async def fail(configuration: Configuration) -> None:
        raise ConfigurationError("the file is gone")

    async with connected(server, renew=fail) as cluster:
        with pytest.raises(ClusterError, match=r"^GET /api/v1/configmaps: 401, and the file is gone$"):
            await listed(cluster)
