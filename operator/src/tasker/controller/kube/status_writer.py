"""Writing a status: only when it differs, only the difference, and only on the version that the decision was made from.

Called by reconcilers. A conflict means that the object moved on: the newest one is fetched, so that the
retry, which is the work queue's, decides again from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasker.controller.kube.client import Cluster, ClusterError, Manifest, Resource
from tasker.controller.runtime.metrics import OperatorMetrics

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
        patch = merge_difference(current.get("status") or {}, status)
        if not patch:
            return None
        metadata = current["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        try:
            written = await self._cluster.merge_status(
                resource, namespace, name, resource_version=metadata["resourceVersion"], status=patch
            )
        except ClusterError as error:
            if error.is_not_found:
                return None
            if error.is_conflict:
                self._metrics.status_writes.labels(resource.kind, "conflict").inc()
                newest = await self._cluster.get(resource, namespace, name)
                if newest is not None:
                    self._newest(resource, newest)
            raise
        self._metrics.status_writes.labels(resource.kind, "written").inc()
        self._newest(resource, written)
        return written


def merge_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch that makes `new` of `old`; empty when they are equal.

    Values of `new` must not be null: in a merge patch null removes.
    """
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key, _ABSENT)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_difference(before, value)
            if inner:
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
