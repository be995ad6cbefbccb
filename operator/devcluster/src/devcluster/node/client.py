"""An HTTP client of the Kubernetes API, as small as the node needs: requests, errors, watches. Used by all of the node.

The node is an ordinary client of the API server, with nothing but a URL, a certificate and a token.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from devcluster.errors import ConfigurationError, EmbeddedError
from devcluster.node.objects import Key, KubeObject

MERGE_PATCH = "application/merge-patch+json"

_REQUEST_SECONDS = 15.0
_CONNECT_SECONDS = 5.0


class ApiError(EmbeddedError):
    """The API server refused a request, or could not be reached (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(f"{message} ({status} {reason})" if status else message)

    @property
    def is_not_found(self) -> bool:
        """The object is not there."""
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        """The object was changed, replaced or made by somebody else meanwhile."""
        return self.status == 409

    @property
    def is_expired(self) -> bool:
        """The resource version asked for is too old: list again."""
        return self.status == 410


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A kind of the API by its path."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As in an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, key: Key | None = None, subresource: str = "") -> str:
        """The path of all objects, of those of a namespace (a key without a name), or of one and its subresource."""
        path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if key is not None and key.namespace:
            path += f"/namespaces/{key.namespace}"
        path += f"/{self.plural}"
        if key is not None and key.name:
            path += f"/{key.name}"
        return f"{path}/{subresource}" if subresource else path


DEPLOYMENTS = Resource(group="apps", version="v1", plural="deployments", kind="Deployment")
REPLICA_SETS = Resource(group="apps", version="v1", plural="replicasets", kind="ReplicaSet")
PODS = Resource(group="", version="v1", plural="pods", kind="Pod")
NODES = Resource(group="", version="v1", plural="nodes", kind="Node")
CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap")
SECRETS = Resource(group="", version="v1", plural="secrets", kind="Secret")
EVENTS = Resource(group="", version="v1", plural="events", kind="Event")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach an API server. `authority` is the PEM text of the certificate to trust; None: the system's own."""

    server_url: str
    token: str
    authority: bytes | None = None


def read_kubeconfig(path: Path) -> Connection:
    """The current context of a kubeconfig, with a bearer token. Raises ``ConfigurationError`` when it has none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(content["contexts"], content["current-context"])["context"]
        cluster = _named(content["clusters"], context["cluster"])["cluster"]
        user = _named(content["users"], context["user"])["user"]
        data = cluster.get("certificate-authority-data")
        file = cluster.get("certificate-authority")
        authority = base64.b64decode(data) if data else (path.parent / file).read_bytes() if file else None
        return Connection(server_url=cluster["server"], token=user["token"], authority=authority)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: this kubeconfig cannot be used: {type(error).__name__}: {error}") from error


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


class ApiClient:
    """Requests to one API server. To be opened and closed within a running event loop."""

    def __init__(self, connection: Connection) -> None:
        self._base = connection.server_url.rstrip("/")
        trust: ssl.SSLContext | bool = True
        if connection.authority is not None:
            trust = ssl.create_default_context(cadata=connection.authority.decode())
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trust),
            headers={"Authorization": f"Bearer {connection.token}", "Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS, sock_connect=_CONNECT_SECONDS),
            json_serialize=lambda value: json.dumps(value, separators=(",", ":")),
        )

    async def close(self) -> None:
        """Drop the connections."""
        await self._session.close()

    async def get(self, resource: Resource, key: Key) -> KubeObject:
        """Read one object."""
        return await self._request("GET", resource.path(key))

    async def list(
        self, resource: Resource, *, limit: int = 500, continue_token: str = "", label_selector: str = ""
    ) -> KubeObject:
        """One page of all objects of a kind, as the list object."""
        query = {"limit": str(limit)}
        if continue_token:
            query["continue"] = continue_token
        if label_selector:
            query["labelSelector"] = label_selector
        return await self._request("GET", resource.path(), query=query)

    async def create(self, resource: Resource, namespace: str, body: KubeObject) -> KubeObject:
        """Make an object."""
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self._request("POST", resource.path(Key(namespace, "")), body=full)

    async def patch(
        self, resource: Resource, key: Key, changes: Mapping[str, Any], *, subresource: str = ""
    ) -> KubeObject:
        """Change an object by a JSON merge patch; with `metadata.uid` in it, only that very one."""
        return await self._request("PATCH", resource.path(key, subresource), body=changes, content_type=MERGE_PATCH)

    async def delete(
        self, resource: Resource, key: Key, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> KubeObject:
        """Ask for an object's removal, of this very one when `uid` is given."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self._request("DELETE", resource.path(key), body=options)

    async def watch(
        self, resource: Resource, resource_version: str, *, timeout_seconds: int, silence_seconds: float
    ) -> AsyncGenerator[tuple[str, KubeObject]]:
        """Changes since a version as (type, object), until the server ends it. Silence for so long is an error."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        try:
            async with self._session.get(self._base + resource.path(), params=query, timeout=timeout) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                pending = b""
                async for chunk in response.content.iter_any():
                    pending += chunk
                    *lines, pending = pending.split(b"\n")
                    for line in lines:
                        if line.strip():
                            event = json.loads(line)
                            yield event["type"], event["object"]
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            raise ApiError(0, "Unreachable", f"the watch of {resource.plural} broke: {error!r}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> KubeObject:
        headers = {"Content-Type": content_type} if body is not None else None
        try:
            async with self._session.request(
                method, self._base + path, params=query, json=body, headers=headers
            ) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                answer: KubeObject = await response.json(content_type=None)
                return answer
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path} failed: {error!r}") from error


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """The error that a Status answer describes."""
    text = await response.text()
    reason, message, wait = response.reason or "", text[:500], None
    try:
        status = json.loads(text)
        reason, message = status.get("reason", reason), status.get("message", message)
        wait = (status.get("details") or {}).get("retryAfterSeconds")
    except (ValueError, AttributeError):
        pass  # not a Status: the text is all there is
    header = response.headers.get("Retry-After", "")
    if wait is None and header.isdigit():
        wait = float(header)
    return ApiError(response.status, reason, message, retry_after=wait)
