"""The newest known version of each object, by namespace and name, with the lookups that reconcilers need.

Filled by event handlers, by the resync and by the answers to our own writes. It is a cache of what the API server
holds: losing it costs a list, never a decision. Objects are kept without what nobody here reads (managed fields,
kubectl's copy of the last applied configuration).
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import ObjectKey, key_of

DELETIONS_REMEMBERED = 10_000
"""So many deletions of a kind are remembered, the newest: far more than happen while an answer is on its way, and below
3 MB. Forgetting one that is still needed costs what a missed event costs: the next resync notices."""

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def is_being_deleted(manifest: Mapping[str, Any]) -> bool:
    """Whether the object has been deleted and only waits for finalizers."""
    return bool(manifest["metadata"].get("deletionTimestamp"))


def without_unread_fields(manifest: Manifest) -> Manifest:
    """The object without the parts of its metadata that cost memory and are never read."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    return {**manifest, "metadata": metadata}


class ObjectCache:
    """Objects of one kind by namespace and name.

    What arrives may be old: answers to writes, events and entries of lists come in any order. The resourceVersion,
    which grows with every write to any object of the kind, says which of two is newer, and the uid whether they are
    the same object. Deletions are remembered by both: an object that left the selector of a watch counts as deleted
    too, and may come back with a greater version.
    """

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Manifest] = {}
        self._by_namespace: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._deleted: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def get(self, key: ObjectKey) -> Manifest | None:
        return self._objects.get(key)

    def put(self, manifest: Manifest) -> bool:
        """Keeps the object; False when a newer one, or its successor of the same name, is here, or it is deleted."""
        key, version = key_of(manifest), _version(manifest)
        deleted = self._deleted.get(_uid(manifest))
        if deleted is not None and version <= deleted:
            return False
        known = self._objects.get(key)
        if known is not None:
            if _version(known) > version:
                return False
            if _uid(known) != _uid(manifest):
                self._note_deletion(_uid(known), version)
        self._objects[key] = without_unread_fields(manifest)
        self._by_namespace[key.namespace].add(key)
        return True

    def remove(self, last: Manifest) -> Manifest | None:
        """Forgets the object and returns it; None when it, or an object of that uid, is not here.

        `last` is its last state, whose resourceVersion is that of the deletion: nothing older is kept from now on. The
        uid keeps a late DELETED event of an object from removing its successor of the same name.
        """
        self._note_deletion(_uid(last), _version(last))
        key = key_of(last)
        known = self._objects.get(key)
        if known is None or _uid(known) != _uid(last) or _version(known) > _version(last):
            return None
        del self._objects[key]
        self._by_namespace[key.namespace].discard(key)
        if not self._by_namespace[key.namespace]:
            del self._by_namespace[key.namespace]
        return known

    def _note_deletion(self, uid: str, version: int) -> None:
        self._deleted[uid] = max(version, self._deleted.get(uid, version))
        self._deleted.move_to_end(uid)
        if len(self._deleted) > DELETIONS_REMEMBERED:
            self._deleted.popitem(last=False)

    def all_keys(self) -> list[ObjectKey]:
        return list(self._objects)

    def in_namespace(self, namespace: str) -> Iterator[Manifest]:
        """The objects of a namespace, in the order of their names."""
        keys = sorted(self._by_namespace.get(namespace, ()), key=lambda key: key.name)
        return (self._objects[key] for key in keys)

    def namespaces(self) -> list[str]:
        """The namespaces that hold any."""
        return list(self._by_namespace)

    def all(self) -> Iterator[Manifest]:
        return iter(list(self._objects.values()))


def _uid(manifest: Mapping[str, Any]) -> str:
    uid: str = manifest["metadata"]["uid"]
    return uid


def _version(manifest: Mapping[str, Any]) -> int:
    text = manifest["metadata"].get("resourceVersion") or "0"
    return int(text) if text.isdecimal() else 0
