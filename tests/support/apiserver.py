"""A running embedded API server for a test module, the real kubectl, and a bare HTTP client.

`cluster` tests use `Kubectl` only, so that they also run against another cluster (TASKER_TEST_KUBECONFIG).
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from support.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[2]
KUBECTL = Path(sys.executable).with_name("kubectl")
START_SECONDS = 20.0
DEBUG_SERVER = REPOSITORY / "operator" / "devcluster" / "tests" / "support" / "debug_switch.py"
"""The server with a switch for faults and a log of calls."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a kubectl command printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Kubectl:
    """The real kubectl with a kubeconfig and, when given, a namespace. Its waits are multiplied by `PATIENCE`."""

    kubeconfig: Path
    namespace: str = ""

    def command(self, *arguments: str) -> list[str]:
        namespace = ["--namespace", self.namespace] if self.namespace else []
        return [str(KUBECTL), *namespace, *map(_patient, arguments)]

    def environment(self) -> dict[str, str]:
        # Discovery is cached under HOME; a server of its own has its own cache folder beside the kubeconfig.
        return {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.kubeconfig.parent / "kubectl-cache"),
        }

    def run(
        self,
        *arguments: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Output:
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
            check=False,
            env={**self.environment(), **(env or {})},
        )
        return Output(code=done.returncode, out=done.stdout, err=done.stderr)

    def __call__(
        self,
        *arguments: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> str:
        """The output of a command that must succeed."""
        done = self.run(*arguments, stdin=stdin, env=env, timeout=timeout)
        assert done.code == 0, f"kubectl {' '.join(arguments)}: {done.err}{done.out}"
        return done.out

    def fails(self, *arguments: str, stdin: str | None = None) -> str:
        """The error text of a command that must fail."""
        done = self.run(*arguments, stdin=stdin)
        assert done.code != 0, f"kubectl {' '.join(arguments)} succeeded: {done.out}"
        return done.err

    def apply(self, *objects: Mapping[str, Any], options: tuple[str, ...] = ()) -> str:
        return self("apply", *options, "-f", "-", stdin=as_yaml(*objects))

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on while the test does something; it is ended with the block."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _patient(argument: str) -> str:
    found = re.fullmatch(r"--timeout=(\d+)s", argument)
    return argument if found is None else f"--timeout={int(found[1]) * PATIENCE:.0f}s"


def as_yaml(*objects: Mapping[str, Any]) -> str:
    return yaml.safe_dump_all(objects, sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    code: int
    body: bytes
    headers: Mapping[str, str]
    warnings: list[str] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Api:
    """Requests as a client library would make them, without one in the way."""

    host: str
    port: int
    token: str
    authority: str

    def _connection(self, timeout: float) -> HTTPSConnection:
        context = ssl.create_default_context(cadata=self.authority)
        return HTTPSConnection(self.host, self.port, context=context, timeout=timeout)

    def _headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **(headers or {})}

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Reply:
        connection = self._connection(30)
        sent = self._headers(headers)
        data = body
        if body is not None:
            sent["Content-Type"] = content_type
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, _url(path, query), data, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        warnings = response.headers.get_all("Warning") or []
        return Reply(code=response.status, body=content, headers=dict(response.headers), warnings=warnings)

    def get(self, path: str, **query: Any) -> Reply:
        return self.request("GET", path, **query)

    def create(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """The object created; fails unless the answer is 201."""
        reply = self.request("POST", path, body, **query)
        assert reply.code == 201, reply.body
        created: dict[str, Any] = reply.json
        return created

    def merge(self, path: str, patch: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        reply = self.request("PATCH", path, patch, content_type="application/merge-patch+json", **query)
        assert reply.code == 200, reply.body
        patched: dict[str, Any] = reply.json
        return patched

    @contextmanager
    def watch(
        self, path: str, *, timeout: float = 10.0, headers: Mapping[str, str] | None = None, **query: Any
    ) -> Iterator[Watch]:
        """A watch; each event must come within `timeout` seconds of the one before."""
        connection = self._connection(timeout)
        try:
            connection.request("GET", _url(path, {"watch": "true", **query}), headers=self._headers(headers))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield Watch(response)
        finally:
            connection.close()


class Watch:
    def __init__(self, response: HTTPResponse) -> None:
        self._response = response

    def next(self) -> dict[str, Any]:
        line = self._response.readline()
        assert line, "the watch has ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def take(self, count: int) -> list[tuple[str, str]]:
        """Kind and object name of the next events."""
        events = [self.next() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]

    def rest(self) -> list[dict[str, Any]]:
        """All events until the server ends the watch."""
        return [json.loads(line) for line in self._response]


def _url(path: str, query: Mapping[str, Any]) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def api_of(kubeconfig: Path) -> Api:
    """The server that a kubeconfig of the embedded one leads to, as its user."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    host, _, port = cluster["server"].removeprefix("https://").partition(":")
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return Api(host=host, port=int(port), token=user["token"], authority=authority)


@dataclass(frozen=True, kw_only=True)
class RunningApiServer:
    """A server process over `folder`."""

    folder: Path
    kubeconfig: Path
    process: subprocess.Popen[str]

    @property
    def api(self) -> Api:
        return api_of(self.kubeconfig)

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(kubeconfig=self.kubeconfig)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and waits; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=10 * PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def start_api_server(folder: Path) -> RunningApiServer:
    """Starts a server; it is serving when this returns. The caller stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    kubeconfig = folder / "kubeconfig"
    log = (folder / "server.log").open("a")
    process = subprocess.Popen(
        [sys.executable, str(DEBUG_SERVER), "--data", str(folder), "--kubeconfig", str(kubeconfig)],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    log.close()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving "), (folder / "server.log").read_text()
    return RunningApiServer(folder=folder, kubeconfig=kubeconfig, process=process)


@contextmanager
def api_server(folder: Path) -> Iterator[RunningApiServer]:
    server = start_api_server(folder)
    try:
        yield server
    finally:
        server.stop()
