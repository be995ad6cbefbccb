"""The hashes of the ConfigMaps that bring handlers: read once, and again after an event of theirs.

`reconcile` asks for them at every change of a pool; `event_router` and the resync say when one may have changed.
"""

from __future__ import annotations

from tasker.controller.kube.client import CONFIG_MAP, Cluster
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import hash_handlers


class HandlersHashes:
    """Hashes by ConfigMap. Only of those that are there: one that is missing is asked for each time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hashes: dict[ObjectKey, str] = {}
        self._state = object()
        """Another one after each change."""

    async def read(self, key: ObjectKey) -> str | None:
        """The hash of the ConfigMap's content; None when there is none. Raises `ClusterError`."""
        known = self._hashes.get(key)
        if known is not None:
            return known
        before = self._state
        found = await self._cluster.get(CONFIG_MAP, key.namespace, key.name)
        if found is None:
            return None
        content = hash_handlers(found)
        # What an event announced during the read may not be in it: such an answer serves once and is not kept.
        if self._state is before:
            self._hashes[key] = content
        return content

    def forget(self, key: ObjectKey) -> None:
        """The ConfigMap may have changed."""
        self._state = object()
        self._hashes.pop(key, None)

    def forget_all(self) -> None:
        """Any of them may have changed unobserved."""
        self._state = object()
        self._hashes.clear()
