"""The operator's client of the Kubernetes API: a few verbs on plain dictionaries.

Reconcilers, the scaler and the resync call it; watching is kopf's. It stands on the aio side of the official client for
configuration, authentication and connections, and speaks to paths itself, because the resources here are ours and the
generated models add only cost. What the server refuses comes out as `ClusterError`, which the work queue knows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client

from tasker.errors import TaskerError

logger = logging.getLogger(__name__)

Manifest = dict[str, Any]
"""A Kubernetes object as JSON gives it."""

FIELD_MANAGER = "tasker-operator"
LIST_CHUNK = 500
REQUEST_TIMEOUT_SECONDS = 30.0

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

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; 0 when there was no answer."""
        self.reason = reason
        """The API's machine-readable reason, like AlreadyExists."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait, when it did."""

    @property
    def is_not_found(self) -> bool:
        return self.status in (404, 410)

    @property
    def is_conflict(self) -> bool:
        return self.status == 409

    @property
    def label(self) -> str:
        """A short word for metrics."""
        return f"api_{self.status}" if self.status else "api_unreachable"


class Cluster:
    """An open connection pool to one API server. Every method raises `ClusterError` when the server does not comply."""

    def __init__(self, api: kubernetes_client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls, configuration: kubernetes_client.Configuration, *, connections: int = 64) -> Cluster:
        configuration.connection_pool_maxsize = connections
        return cls(kubernetes_client.ApiClient(configuration))

    async def close(self) -> None:
        await self._api.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        """The object, or None when there is none."""
        try:
            return await self._request("GET", resource.path(namespace, name))
        except ClusterError as error:
            if error.is_not_found:
                return None
            raise

    async def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = ""
    ) -> AsyncIterator[Manifest]:
        """Every object, read in chunks; `namespace` None means all namespaces."""
        query = {"limit": str(LIST_CHUNK)}
        if label_selector:
            query["labelSelector"] = label_selector
        while True:
            page = await self._request("GET", resource.path(namespace), query=query)
            for item in page.get("items") or ():
                yield {"apiVersion": resource.api_version, "kind": resource.kind, **item}
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return
            query["continue"] = more

    async def apply(self, resource: Resource, manifest: Mapping[str, Any], *, force: bool = True) -> Manifest:
        """Server-side apply of what we own. What another manager wrote into those fields is put back; without `force`
        it is a conflict."""
        metadata = manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return await self._request("PATCH", path, query=query, body=manifest, content_type=_APPLY_PATCH)

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Manifest:
        """JSON merge patch of the object itself."""
        path = resource.path(namespace, name)
        return await self._request(
            "PATCH", path, query={"fieldManager": FIELD_MANAGER}, body=patch, content_type=_MERGE_PATCH
        )

    async def merge_status(
        self, resource: Resource, namespace: str, name: str, *, resource_version: str, status: Mapping[str, Any]
    ) -> Manifest:
        """JSON merge patch of the status, refused as a conflict unless the object is still at that version."""
        patch = {"metadata": {"resourceVersion": resource_version}, "status": status}
        path = resource.path(namespace, name, "status")
        return await self._request(
            "PATCH", path, query={"fieldManager": FIELD_MANAGER}, body=patch, content_type=_MERGE_PATCH
        )

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        path = resource.path(manifest["metadata"].get("namespace"))
        return await self._request("POST", path, query={"fieldManager": FIELD_MANAGER}, body=manifest)

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

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        url = f"{self._api.configuration.host}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        try:
            response = await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error
        if response.status >= 400:
            raise _refusal(method, path, response.status, response.headers, data)
        decoded: Manifest = json.loads(data)
        return decoded


def _refusal(method: str, path: str, status: int, headers: Mapping[str, str], data: bytes) -> ClusterError:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    fields = answer if isinstance(answer, dict) else {}
    message = fields.get("message") or data[:200].decode("utf-8", "replace")
    retry_after = (fields.get("details") or {}).get("retryAfterSeconds") or headers.get("Retry-After")
    try:
        seconds = float(retry_after) if retry_after is not None else None
    except ValueError:
        seconds = None
    return ClusterError(
        f"{method} {path}: {status} {message}", status=status, reason=str(fields.get("reason", "")), retry_after=seconds
    )
