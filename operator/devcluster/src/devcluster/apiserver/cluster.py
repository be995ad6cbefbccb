"""The state that every part of the embedded API server shares: storage, what is served, and the clock.

`Cluster` keeps the registry in step with the stored CRDs and turns stored objects into the version a request names.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.event_versions import core_event, new_event
from devcluster.apiserver.kinds import is_established
from devcluster.apiserver.object_meta import timestamp
from devcluster.apiserver.registry import CRDS, EVENTS, ResourceRegistry, Served
from devcluster.apiserver.storage import Change, ChangeKind, Storage, Stored, encode

Clock = Callable[[], datetime]


class Cluster:
    """`clock` gives the time in UTC."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self.storage = storage
        self.registry = ResourceRegistry()
        self.clock = clock
        for stored in storage.objects(CRDS):
            crd = stored.load()
            if is_established(crd):
                self.registry.install(crd)
        storage.subscribe(CRDS, self._follow_crd)

    def _follow_crd(self, change: Change) -> None:
        crd = change.new.load()
        if change.kind is ChangeKind.DELETED:
            self.registry.remove(change.new.name)
        elif is_established(crd):
            self.registry.install(crd)

    def now(self) -> str:
        """The time as an object's timestamp."""
        return timestamp(self.clock())

    def find(self, served: Served, namespace: str, name: str) -> Stored:
        """The newest state of an object. Raises ApiError 404."""
        stored = self.storage.get(served.storage, namespace, name)
        if stored is None:
            raise errors.not_found(served.info.group, served.info.plural, name)
        return stored

    def load(self, served: Served, stored: Stored) -> dict[str, Any]:
        """The object in the version of `served`; the caller may change it."""
        return self.from_storage(served, stored.load())

    def render(self, served: Served, stored: Stored) -> bytes:
        """The same as JSON."""
        if served.api_version == served.stored_as:
            return stored.data
        return encode(self.load(served, stored))

    def from_storage(self, served: Served, obj: dict[str, Any]) -> dict[str, Any]:
        """Converts from the version that the resource is stored in to that of `served`."""
        if served.api_version == served.stored_as:
            return obj
        if served.storage == EVENTS:
            return new_event(obj)
        obj["apiVersion"] = served.api_version
        return served.info.schema.default(served.info.schema.prune(obj))

    def to_storage(self, served: Served, obj: dict[str, Any]) -> dict[str, Any]:
        """The other way round."""
        if served.api_version == served.stored_as:
            return obj
        if served.storage == EVENTS:
            return core_event(obj)
        return {**obj, "apiVersion": served.stored_as}
