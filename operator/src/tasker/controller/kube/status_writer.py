"""Writing a status: only when it differs, only what differs, and only on the version that the decision was made from.

Called by reconcilers. A conflict means that the object moved on: the newest one is fetched, so that the
retry, which is the work queue's, decides again from it.

It is a JSON patch, because a status holds what people's handlers returned, nulls included. In a merge patch null means
"take away". Server-side apply takes null for a value in some versions of Kubernetes and for nothing in others. To
replace the status takes the whole of it, of which the operator keeps only a part. A JSON patch carries values as they
are, the server stores them so where the schema leaves unknown fields alone, and what is not named stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasker.controller.kube.client import Cluster, ClusterError, Manifest, Resource
from tasker.controller.runtime.metrics import OperatorMetrics

Operation = Mapping[str, Any]
"""One operation of a JSON patch (RFC 6902)."""

_ABSENT = object()


class StatusWriter:
    """Writes statuses through the status subresource. `newest` gets the object after a write or a conflict."""

    def __init__(
        self, cluster: Cluster, metrics: OperatorMetrics, *, newest: Callable[[Resource, Manifest], None]
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._newest = newest

    async def write(self, resource: Resource, current: Manifest, status: Mapping[str, Any]) -> Manifest | None:
        """The object after the write, or None when nothing had to be written. Raises `ClusterError`."""
        operations = status_operations(current.get("status") or {}, status)
        if not operations:
            return None
        metadata = current["metadata"]
        namespace, name, version = metadata["namespace"], metadata["name"], metadata["resourceVersion"]
        try:
            written = await self._cluster.patch_status(
                resource, namespace, name, resource_version=version, operations=operations
            )
        except ClusterError as error:
            if error.is_not_found:
                return None
            # A patch that does not fit the object as it is now is refused as invalid before its version is compared.
            if not error.is_conflict and error.status != 422:
                raise
            newest = await self._cluster.get(resource, namespace, name)
            if newest is None:
                return None
            if not error.is_conflict and newest["metadata"]["resourceVersion"] == version:
                raise
            self._metrics.status_writes.labels(resource.kind, "conflict").inc()
            self._newest(resource, newest)
            raise ClusterError(str(error), status=409, about=name) from error
        self._metrics.status_writes.labels(resource.kind, "written").inc()
        self._newest(resource, written)
        return written


def status_operations(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Operation]:
    """The operations of a JSON patch that make the status `new` of `old`; none when they are equal."""
    if old == new:
        return []
    if not old:
        return [{"op": "add", "path": "/status", "value": new}]
    gone: list[Operation] = [{"op": "remove", "path": _pointer(name)} for name in old if name not in new]
    # To add a member that is there already is to replace it.
    changed: list[Operation] = [
        {"op": "add", "path": _pointer(name), "value": value}
        for name, value in new.items()
        if old.get(name, _ABSENT) != value
    ]
    return gone + changed


def _pointer(name: str) -> str:
    """The JSON pointer (RFC 6901) of a member of the status."""
    return "/status/" + name.replace("~", "~0").replace("/", "~1")
