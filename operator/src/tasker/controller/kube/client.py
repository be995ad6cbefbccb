"""The operator's client of the Kubernetes API: a few verbs on plain dictionaries.

Reconcilers, the scaler and the resync call it; watching is kopf's. It stands on the aio side of the official client for
configuration, authentication and connections, and speaks to paths itself, because the resources here are ours and the
generated models add only cost. What the server refuses comes out as `ClusterError`, which the work queue knows; so does
every answer that is not what was asked for (no JSON, another kind, half a list), for what is taken for an empty list or
for an absent object ends runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from tasker.errors import ConfigurationError, TaskerError

logger = logging.getLogger(__name__)

Manifest = dict[str, Any]
"""A Kubernetes object as JSON gives it."""

Query = Mapping[str, str]
Renew = Callable[[kubernetes_client.Configuration], Awaitable[None]]
"""Puts the credentials as they are now into a configuration. Raises `ConfigurationError`."""

FIELD_MANAGER = "tasker-operator"
LIST_CHUNK = 500
LIST_ATTEMPTS = 3
"""How often a list is begun before it fails, when the server has forgotten the one that was being read."""
REQUEST_TIMEOUT_SECONDS = 30.0
"""For a request and its whole answer: a connection that went silent is given up after so long."""
RETRY_AFTER_LIMIT_SECONDS = 300.0
"""A server that asks to wait for longer is asked again all the same, as often as a resync would."""

_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """A kind of object and where the API serves it. The core group is the empty string."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(quote(part, safe="") for part in parts)


TASK_TEMPLATE = Resource(group="tasker.dev", version="v1alpha1", kind="TaskTemplate", plural="tasktemplates")
TASK = Resource(group="tasker.dev", version="v1alpha1", kind="Task", plural="tasks")
WORKER_POOL = Resource(group="tasker.dev", version="v1alpha1", kind="WorkerPool", plural="workerpools")
NAMESPACE = Resource(group="", version="v1", kind="Namespace", plural="namespaces", namespaced=False)
CONFIG_MAP = Resource(group="", version="v1", kind="ConfigMap", plural="configmaps")
SECRET = Resource(group="", version="v1", kind="Secret", plural="secrets")
SERVICE_ACCOUNT = Resource(group="", version="v1", kind="ServiceAccount", plural="serviceaccounts")
POD = Resource(group="", version="v1", kind="Pod", plural="pods")
DEPLOYMENT = Resource(group="apps", version="v1", kind="Deployment", plural="deployments")
DISRUPTION_BUDGET = Resource(group="policy", version="v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")
NETWORK_POLICY = Resource(group="networking.k8s.io", version="v1", kind="NetworkPolicy", plural="networkpolicies")


class ClusterError(TaskerError):
    """The Kubernetes API did not do what was asked."""

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", about: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; 0 when there was no answer."""
        self.reason = reason
        """The API's machine-readable reason, like AlreadyExists."""
        self.about = about
        """The name of the object that the refusal is about, when it is about one."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait, when it did."""

    @property
    def is_not_found(self) -> bool:
        """The server looked for an object and there is none. A path that it does not serve (no CRD) is not that."""
        return self.status == 404 and bool(self.about)

    @property
    def is_expired(self) -> bool:
        """The server no longer has the state that the rest of a list was to be read from."""
        return self.status == 410

    @property
    def is_conflict(self) -> bool:
        return self.status == 409

    @property
    def label(self) -> str:
        """A short word for metrics."""
        return f"api_{self.status}" if self.status else "api_unreachable"


class Listing:
    """Every object of one list, in pages of `LIST_CHUNK`, all from one state of the cluster.

    When the server forgets that state before the last page, the list is begun again: objects then come twice, and what
    was deleted between the two may have come once. A list that cannot be read to its end raises `ClusterError`.
    """

    def __init__(self, resource: Resource, read: Callable[[Query], Awaitable[Manifest]], label_selector: str) -> None:
        self._resource = resource
        self._read = read
        self._label_selector = label_selector
        self.version: str
        """The resourceVersion of the state that was listed; there is none before the first object has come."""

    async def __aiter__(self) -> AsyncIterator[Manifest]:
        query = {"limit": str(LIST_CHUNK)}
        if self._label_selector:
            query["labelSelector"] = self._label_selector
        more, attempts = "", 1
        while True:
            try:
                page = await self._read({**query, "continue": more} if more else query)
            except ClusterError as error:
                if not (error.is_expired and more) or attempts == LIST_ATTEMPTS:
                    raise
                logger.warning("the list of %s is begun again: %s", self._resource.plural, error)
                more, attempts = "", attempts + 1
                continue
            self.version = page["metadata"]["resourceVersion"]
            for item in page["items"] or ():
                yield {"apiVersion": self._resource.api_version, "kind": self._resource.kind, **item}
            more = page["metadata"].get("continue") or ""
            if not more:
                return


class Cluster:
    """An open connection pool to one API server. Every method raises `ClusterError` when the server does not comply."""

    def __init__(self, api: kubernetes_client.ApiClient, *, renew: Renew | None = None) -> None:
        self._api = api
        self._renew = renew
        self._renewing = asyncio.Lock()

    @classmethod
    async def connect(
        cls, configuration: kubernetes_client.Configuration, *, connections: int = 64, renew: Renew | None = None
    ) -> Cluster:
        """`renew` is called when the server no longer takes our credentials, before the request is made once more."""
        configuration.connection_pool_maxsize = connections
        return cls(kubernetes_client.ApiClient(configuration), renew=renew)

    async def close(self) -> None:
        await self._api.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        """The object, or None when there is none."""
        try:
            return await self._object("GET", resource, namespace, name)
        except ClusterError as error:
            if error.is_not_found:
                return None
            raise

    def list(self, resource: Resource, namespace: str | None = None, *, label_selector: str = "") -> Listing:
        """Every object; `namespace` None means all namespaces. Nothing is asked before the first is awaited."""

        async def read(query: Query) -> Manifest:
            path = resource.path(namespace)
            page = await self._request("GET", path, query=query)
            metadata = page.get("metadata")
            # What is not listed counts as deleted, so nothing but a list may pass for one.
            is_list = page.get("kind") == f"{resource.kind}List" and "items" in page
            if not is_list or not isinstance(metadata, dict) or not metadata.get("resourceVersion"):
                raise ClusterError(f"GET {path}: the answer is no list of {resource.plural}")
            return page

        return Listing(resource, read, label_selector)

    async def apply(self, resource: Resource, manifest: Mapping[str, Any], *, force: bool = True) -> Manifest:
        """Server-side apply. With a uid or resourceVersion in its metadata, of that very object or version only.

        `force`: what another manager wrote into these fields is put back. That is right for what is ours alone, all
        that a pool is made of, and the default. What a person may own as well is applied without: a field that
        somebody else has set to another value then refuses the whole, as a conflict.
        """
        metadata = manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        namespace, name = metadata.get("namespace"), metadata["name"]
        return await self._object("PATCH", resource, namespace, name, query, manifest, _APPLY_PATCH)

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Manifest:
        """JSON merge patch of the object itself: null takes a field away."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._object("PATCH", resource, namespace, name, query, patch, _MERGE_PATCH)

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        resource_version: str,
        operations: Sequence[Mapping[str, Any]],
    ) -> Manifest:
        """JSON patch of the status, refused as a conflict unless the object is still at that version.

        Operations that do not fit the object as it is now (an older version lacks what is removed) are refused as
        invalid, with 422, before its version is looked at.
        """
        # Not a `test`: one that fails is refused as invalid, which nobody can tell from a patch that is wrong.
        version = {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version}
        query, path = {"fieldManager": FIELD_MANAGER}, resource.path(namespace, name, "status")
        patched = await self._request("PATCH", path, query=query, body=[version, *operations], content_type=_JSON_PATCH)
        return _expect(resource, f"PATCH {path}", patched)

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        namespace = manifest["metadata"].get("namespace")
        return await self._object("POST", resource, namespace, None, {"fieldManager": FIELD_MANAGER}, manifest)

    async def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str) -> bool:
        """Deletes exactly that object; False when it, or an object of that name with that uid, is not there."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._request("DELETE", resource.path(namespace, name), body=body)
        except ClusterError as error:
            if error.is_not_found or error.is_conflict:
                return False
            raise
        return True

    async def _object(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """A request that is answered by the object itself."""
        path = resource.path(namespace, name)
        answer = await self._request(method, path, query=query, body=body, content_type=content_type)
        return _expect(resource, f"{method} {path}", answer)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        before = self._credentials() if self._renew is not None else None
        send = partial(self._send, method, path, query or {}, body, content_type)
        status, headers, data = await send()
        if status == 401 and self._renew is not None:
            await self._renew_credentials(f"{method} {path}", refused=before)
            # It was refused before anybody looked at what it asks for, so whatever it is may be asked again.
            status, headers, data = await send()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if status // 100 != 2:
            raise _refusal(method, path, status, headers, answer, data)
        if not isinstance(answer, dict):
            raise ClusterError(f"{method} {path}: {status}, but the answer is no JSON object: {_beginning(data)}")
        return answer

    async def _send(
        self, method: str, path: str, query: Query, body: Any, content_type: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The answer's status, headers and whole body. Raises `ClusterError` when there is none."""
        url = f"{self._api.configuration.host}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
            response = await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, kubernetes_config.ConfigException, TimeoutError, OSError) as error:
            raise ClusterError(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error

    def _credentials(self) -> str | None:
        token: str | None = self._api.configuration.api_key.get("BearerToken")
        return token

    async def _renew_credentials(self, request: str, *, refused: str | None) -> None:
        """One renewal for all requests that were refused with the same credentials. Raises `ClusterError`."""
        assert self._renew is not None
        async with self._renewing:
            if self._credentials() != refused:
                return
            try:
                # A kubeconfig may name a program that asks somebody else for a token.
                async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                    await self._renew(self._api.configuration)
            except (ConfigurationError, TimeoutError) as error:
                why = str(error) or "no credentials came in time"
                raise ClusterError(f"{request}: 401, and {why}", status=401) from error


def _expect(resource: Resource, request: str, answer: Manifest) -> Manifest:
    """The answer, which must be such an object. Raises `ClusterError`."""
    metadata = answer.get("metadata")
    if answer.get("kind") != resource.kind or not isinstance(metadata, dict) or not metadata.get("name"):
        raise ClusterError(f"{request}: the answer is no {resource.kind}")
    return answer


def _refusal(method: str, path: str, status: int, headers: Mapping[str, str], answer: Any, data: bytes) -> ClusterError:
    fields = answer if isinstance(answer, dict) else {}
    given = fields.get("details")
    details = given if isinstance(given, dict) else {}
    return ClusterError(
        f"{method} {path}: {status} {fields.get('message') or _beginning(data)}",
        status=status,
        reason=str(fields.get("reason") or ""),
        about=str(details.get("name") or ""),
        retry_after=_seconds(details.get("retryAfterSeconds") or headers.get("Retry-After")),
    )


def _seconds(given: Any) -> float | None:
    """The seconds to wait, whether a number or its text; None for a date or nonsense."""
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        return None
    return min(seconds, RETRY_AFTER_LIMIT_SECONDS) if math.isfinite(seconds) and seconds >= 0 else None


def _beginning(data: bytes) -> str:
    return data[:200].decode("utf-8", "replace")
