"""Deletion: preconditions, grace, finalizers, propagation; who is still in the way, and the end of an object.

The dispatcher calls `delete`; the collector (`garbage`) calls it too, and `release` when it has done what a finalizer
waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

from devcluster.apiserver import errors
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.object_meta import FOREGROUND, ORPHAN, timestamp
from devcluster.apiserver.registry import NAMESPACES, PODS, Served
from devcluster.apiserver.requests import read_bool, read_dry_run
from devcluster.apiserver.storage import Stored

Propagation = Literal["Background", "Foreground", "Orphan"]
PROPAGATIONS = ("Background", "Foreground", "Orphan")
DEFAULT_GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class DeleteOptions:
    """`propagation` None: the kind's default, which is Background unless a finalizer on the object says otherwise."""

    propagation: Propagation | None = None
    grace_seconds: int | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False


def read_delete_options(body: Mapping[str, Any] | None, query: Mapping[str, str]) -> DeleteOptions:
    """From the body, or, when there is none, from the query. Raises ApiError 400."""
    given: dict[str, Any] = dict(body or {})
    if not given:
        given = {key: query[key] for key in ("propagationPolicy", "gracePeriodSeconds") if key in query}
        if (orphans := read_bool(query, "orphanDependents")) is not None:
            given["orphanDependents"] = orphans
    if given.get("kind", "DeleteOptions") != "DeleteOptions":
        raise errors.bad_request(f"expected a DeleteOptions object, not a {given['kind']}")
    propagation = given.get("propagationPolicy")
    if given.get("orphanDependents") is not None:
        if propagation:
            raise errors.bad_request("orphanDependents and deletionPropagation cannot be both set")
        propagation = "Orphan" if given["orphanDependents"] else "Background"
    if propagation and propagation not in PROPAGATIONS:
        listed = ", ".join(f'"{item}"' for item in (*PROPAGATIONS, "nil"))
        raise errors.bad_request(f'propagationPolicy: Unsupported value: "{propagation}": supported values: {listed}')
    grace = given.get("gracePeriodSeconds")
    try:
        grace_seconds = None if grace is None else int(grace)
    except (TypeError, ValueError):
        raise errors.bad_request(f"gracePeriodSeconds: Invalid value: {grace!r}: must be a number") from None
    dry_run = given.get("dryRun") or ([query["dryRun"]] if query.get("dryRun") else [])
    preconditions = given.get("preconditions") or {}
    return DeleteOptions(
        propagation=cast("Propagation | None", propagation or None),
        grace_seconds=grace_seconds,
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        dry_run=any(read_dry_run(item) for item in dry_run),
    )


class Deleter:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def delete(self, served: Served, stored: Stored, options: DeleteOptions) -> tuple[bool, dict[str, Any]]:
        """Deletes an object, or marks it when something is still in the way.

        Returns whether it is gone, and its last state in the version it is stored in.
        """
        self._check_preconditions(served, stored, options)
        obj = stored.load()
        metadata = obj["metadata"]
        finalizers = self._finalizers(obj, options)
        grace = self._grace(served, obj, options)
        if not finalizers and not grace and not self._holds_content(served, obj):
            if not options.dry_run:
                self.remove(stored, obj)
            return True, obj
        now = self._cluster.clock()
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = timestamp(now + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
            if "generation" in metadata:
                metadata["generation"] += 1
        elif grace < metadata.get("deletionGracePeriodSeconds", 0):
            metadata["deletionTimestamp"] = timestamp(now + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
        metadata.pop("finalizers", None)
        if finalizers:
            metadata["finalizers"] = finalizers
        if served.storage == NAMESPACES:
            obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        if obj != stored.load() and not options.dry_run:
            self._cluster.storage.put(stored.resource, obj)
        return False, obj

    def remove(self, stored: Stored, obj: dict[str, Any]) -> None:
        """Takes the object out of storage for good."""
        self._cluster.storage.delete(stored, obj)

    def release(self, stored: Stored, finalizer: str) -> None:
        """Takes one finalizer away, and the object with the last of them."""
        obj = stored.load()
        metadata = obj["metadata"]
        finalizers = [name for name in metadata.get("finalizers", []) if name != finalizer]
        metadata.pop("finalizers", None)
        if finalizers:
            metadata["finalizers"] = finalizers
        self.settle(stored, obj)

    def settle(self, stored: Stored, obj: dict[str, Any]) -> None:
        """Stores a changed object that is being deleted, or removes it when nothing is in the way any more."""
        metadata = obj["metadata"]
        waits = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds")
        if waits or (stored.resource == NAMESPACES and obj.get("spec", {}).get("finalizers")):
            self._cluster.storage.put(stored.resource, obj)
        else:
            self.remove(stored, obj)

    def _check_preconditions(self, served: Served, stored: Stored, options: DeleteOptions) -> None:
        info = served.info
        if options.uid is not None and options.uid != stored.uid:
            why = f"Precondition failed: UID in precondition: {options.uid}, UID in object meta: {stored.uid}"
            raise errors.conflict(info.group, info.plural, stored.name, why)
        version = str(stored.resource_version)
        if options.resource_version is not None and options.resource_version != version:
            why = (
                f"Precondition failed: ResourceVersion in precondition: {options.resource_version}, "
                f"ResourceVersion in object meta: {version}"
            )
            raise errors.conflict(info.group, info.plural, stored.name, why)

    def _finalizers(self, obj: Mapping[str, Any], options: DeleteOptions) -> list[str]:
        """The finalizers after this request: propagation adds or takes away the collector's own two."""
        before: list[str] = list(obj["metadata"].get("finalizers", []))
        if options.propagation is None:
            return before
        kept = [name for name in before if name not in (FOREGROUND, ORPHAN)]
        match options.propagation:
            case "Foreground":
                return [*kept, FOREGROUND]
            case "Orphan":
                return [*kept, ORPHAN]
            case "Background":
                return kept

    def _grace(self, served: Served, obj: Mapping[str, Any], options: DeleteOptions) -> int:
        """Seconds that a pod has to end; everything else goes at once."""
        if served.storage != PODS:
            return 0
        spec, metadata = obj.get("spec", {}), obj["metadata"]
        if not spec.get("nodeName") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        grace = options.grace_seconds
        if grace is None:
            grace = spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        if "deletionTimestamp" in metadata:
            grace = min(grace, metadata.get("deletionGracePeriodSeconds", grace))
        return max(int(grace), 0)

    def _holds_content(self, served: Served, obj: Mapping[str, Any]) -> bool:
        """A namespace goes only after the collector has emptied it."""
        return served.storage == NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))
