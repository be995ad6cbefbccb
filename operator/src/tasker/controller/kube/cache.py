"""The newest known version of each object, by namespace and name, with the lookups that reconcilers need.

Filled by event handlers, by the resync and by the answers to our own writes. It is a cache of what the API server
holds: losing it costs a list, never a decision. Objects are kept without what nobody here reads (managed fields,
kubectl's copy of the last applied configuration).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import ObjectKey, key_of

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
    """Objects of one kind by namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Manifest] = {}
        self._by_namespace: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def get(self, key: ObjectKey) -> Manifest | None:
        return self._objects.get(key)

    def put(self, manifest: Manifest) -> bool:
        """Keeps the object; False when a newer one, or its successor of the same name, is already here."""
        key = key_of(manifest)
        known = self._objects.get(key)
        if known is not None and _version(known) > _version(manifest):
            return False
        self._objects[key] = without_unread_fields(manifest)
        self._by_namespace[key.namespace].add(key)
        return True

    def remove(self, last: Manifest) -> Manifest | None:
        """Forgets the object and returns it; None when it, or an object of that uid, is not here.

        `last` is its last state. Its uid keeps a late DELETED event of an object from removing its successor of the
        same name.
        """
        key = key_of(last)
        known = self._objects.get(key)
        if known is None or known["metadata"]["uid"] != last["metadata"]["uid"]:
            return None
        del self._objects[key]
        self._by_namespace[key.namespace].discard(key)
        if not self._by_namespace[key.namespace]:
            del self._by_namespace[key.namespace]
        return known

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


def _version(manifest: Mapping[str, Any]) -> int:
    text = manifest["metadata"].get("resourceVersion") or "0"
    return int(text) if text.isdecimal() else 0
