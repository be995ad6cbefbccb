"""A cache whose objects come out typed.

Each object is validated when it enters. One that this release cannot read (a newer CRD's, an oddity) stays in the cache
as it is, is logged once for each new fault, and is counted; whoever reads it alone gets the fault as an exception, and
whoever reads many does not see it: it never stops others.

Of few kinds the typed values are kept beside the objects. Of Tasks, of which there may be ten thousand, they are made
anew at each read: 30 µs, less than a tenth of the query that follows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tasker.controller.kube.cache import ObjectCache
from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.base import KubernetesObject, ObjectMeta
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.errors import InvalidResource

logger = logging.getLogger(__name__)

Typed = TypeVar("Typed", bound=KubernetesObject)


class TypedCache(ObjectCache, Generic[Typed]):
    """Objects of one kind, read as values of `kind`."""

    def __init__(self, kind: type[Typed], metrics: OperatorMetrics, *, keep_values: bool = True) -> None:
        super().__init__()
        self._kind = kind
        self._keep_values = keep_values
        self._values: dict[ObjectKey, Typed] = {}
        self._faults: dict[ObjectKey, str] = {}
        metrics.invalid_objects.labels(kind.__name__).set_function(lambda: len(self._faults))

    def put(self, manifest: Manifest) -> bool:
        """Keeps the object; False when a newer one, or its successor of the same name, is already here."""
        key = key_of(manifest)
        known = self.get(key)
        if known is not None and _is_same(known, manifest):
            return True
        value, fault = self._parse(manifest)
        if not super().put(manifest if value is None else self._reduce(value)):
            return False
        if fault is None:
            self._faults.pop(key, None)
        else:
            self._report(key, fault)
        self._replace(known, manifest, value)
        return True

    def remove(self, last: Manifest) -> Manifest | None:
        removed = super().remove(last)
        if removed is not None:
            key = key_of(removed)
            self._values.pop(key, None)
            self._faults.pop(key, None)
        return removed

    def read(self, key: ObjectKey) -> Typed | None:
        """The object's value, or None when there is no such object. Raises `InvalidResource`."""
        manifest = self.get(key)
        if manifest is None:
            return None
        value = self._values.get(key)
        if value is None or value.manifest is not manifest:
            value = self._kind.parse(manifest)
            if self._keep_values:
                self._values[key] = value
        return value

    def read_valid(self, key: ObjectKey) -> Typed | None:
        """The object's value; None when there is no such object, or it cannot be read."""
        try:
            return self.read(key)
        except InvalidResource:
            return None

    def read_namespace(self, namespace: str) -> Iterator[Typed]:
        """The valid objects of a namespace, in the order of their names."""
        return self._read_each(key_of(manifest) for manifest in self.in_namespace(namespace))

    def read_all(self) -> Iterator[Typed]:
        """Every valid object."""
        return self._read_each(self.all_keys())

    def read_metadata(self, namespace: str) -> Iterator[ObjectMeta]:
        """The metadata of every object of a namespace, valid or not, in the order of their names."""
        return (ObjectMeta.of(manifest) for manifest in self.in_namespace(namespace))

    def _read_each(self, keys: Iterable[ObjectKey]) -> Iterator[Typed]:
        for key in keys:
            value = self.read_valid(key)
            if value is not None:
                yield value

    def _reduce(self, value: Typed) -> Manifest:
        """The object as it is kept; kinds of which there are many leave out what is no longer read."""
        return value.manifest

    def _replace(self, old: Manifest | None, new: Manifest, value: Typed | None) -> None:
        """Called when `new` has taken the place of `old`; `value` is None when it cannot be read. For indexes."""

    def _parse(self, manifest: Manifest) -> tuple[Typed | None, str | None]:
        """The value, or what is wrong."""
        try:
            return self._kind.parse(manifest), None
        except InvalidResource as error:
            return None, str(error)

    def _report(self, key: ObjectKey, fault: str) -> None:
        if self._faults.get(key) != fault:
            logger.warning("%s %s cannot be read and is left as it is: %s", self._kind.__name__, key, fault)
        self._faults[key] = fault


def _is_same(known: Manifest, manifest: Manifest) -> bool:
    """Whether both are one version of one object, as after most lists."""
    old, new = known["metadata"], manifest["metadata"]
    version = new.get("resourceVersion")
    return bool(version) and old.get("resourceVersion") == version and old.get("uid") == new.get("uid")
