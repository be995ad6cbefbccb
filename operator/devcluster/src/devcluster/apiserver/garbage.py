"""The collector: does what follows from deletions, as Kubernetes' controllers do, in the background.

- Dependents of an owner that is gone are deleted; an owner deleted in the foreground waits for them; one deleted with
  `Orphan` lets go of them.
- A terminating namespace, and a CRD that is being deleted, are emptied, then go.
- Every namespace gets its `default` ServiceAccount, and Events leave after an hour.

It hears every change, sweeps over everything now and then, and keeps a set of what to look at; looking twice does no
harm. `ApiServer` runs it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.deleting import DeleteOptions, Deleter, Propagation
from devcluster.apiserver.kinds import CRD_FINALIZER
from devcluster.apiserver.object_meta import FOREGROUND, ORPHAN, parse_timestamp
from devcluster.apiserver.registry import CRDS, EVENTS, NAMESPACES, SERVICE_ACCOUNTS, Served
from devcluster.apiserver.storage import Change, ChangeKind, Stored
from devcluster.loops import Heartbeat

EVENT_LIFETIME = timedelta(hours=1)
SWEEP_SECONDS = 60.0
LATE_SECONDS = 3 * SWEEP_SECONDS
_BATCH = 100
_DRAINED_AT_ONCE = 200

ObjectKey = tuple[str, str, str]
"""Resource in storage, namespace, name."""

_logger = logging.getLogger(__name__)


class Collector:
    def __init__(self, cluster: Cluster, deleter: Deleter) -> None:
        self._cluster = cluster
        self._storage = cluster.storage
        self._deleter = deleter
        self._pending: dict[ObjectKey, None] = {}
        self._wake = asyncio.Event()
        self.heart = Heartbeat(LATE_SECONDS)
        self._consider_all()
        self._unsubscribe = self._storage.subscribe(None, self._hear)

    def close(self) -> None:
        self._unsubscribe()

    async def run(self) -> None:
        """Works until cancelled; a failure is logged, and its object looked at again with the next change or sweep."""
        sweep_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            self.heart.beat()
            if loop.time() >= sweep_at:
                self._expire_events()
                self._consider_all()
                sweep_at = loop.time() + SWEEP_SECONDS
            self._wake.clear()
            self.work(_BATCH)
            if self._pending:
                await asyncio.sleep(0)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), max(sweep_at - loop.time(), 0.01))
            except TimeoutError:
                continue

    def work(self, limit: int) -> None:
        """Looks at up to `limit` of the objects that wait."""
        for key in list(self._pending)[:limit]:
            self._pending.pop(key, None)
            try:
                self._look_at(key)
            except Exception:
                _logger.exception("cannot collect %s", "/".join(key))

    def _hear(self, change: Change) -> None:
        if change.kind is not ChangeKind.DELETED:
            self._consider(change.new)
            return
        gone = change.new
        for dependent in self._storage.dependents(gone.uid):
            self._later(dependent)
        for owner in gone.owners:
            if (stored := self._storage.by_uid(owner)) is not None:
                self._later(stored)
        if gone.namespace and (namespace := self._storage.get(NAMESPACES, "", gone.namespace)) is not None:
            self._later(namespace)
        served = self._cluster.registry.for_storage(gone.resource)
        if served is not None and served.terminating and (crd := self._storage.get(CRDS, "", served.crd)) is not None:
            self._later(crd)

    def _consider(self, stored: Stored) -> None:
        if stored.owners or stored.resource == NAMESPACES or b'"deletionTimestamp"' in stored.data:
            self._later(stored)

    def _consider_all(self) -> None:
        for resource in self._storage.resources():
            for stored in self._storage.objects(resource):
                self._consider(stored)

    def _later(self, stored: Stored) -> None:
        self._pending[stored.resource, stored.namespace, stored.name] = None
        self._wake.set()

    def _look_at(self, key: ObjectKey) -> None:
        resource, namespace, name = key
        stored = self._storage.get(resource, namespace, name)
        if stored is None:
            return
        obj = stored.load()
        metadata = obj["metadata"]
        if "deletionTimestamp" not in metadata:
            if resource == NAMESPACES:
                self._give_service_account(name)
            if stored.owners:
                self._check_owners(stored, metadata)
            return
        finalizers = metadata.get("finalizers", [])
        if resource == NAMESPACES:
            self._drain_namespace(stored, obj)
        elif resource == CRDS and CRD_FINALIZER in finalizers:
            self._drain_crd(stored)
        elif ORPHAN in finalizers:
            self._let_go(stored)
        elif FOREGROUND in finalizers:
            self._delete_dependents(stored)

    def _check_owners(self, stored: Stored, metadata: Mapping[str, Any]) -> None:
        """Deletes the object when none of its owners is left; forgets those that are gone when some are."""
        absent = [reference["uid"] for reference in metadata["ownerReferences"] if self._is_absent(reference, stored)]
        waiting = [uid for uid in stored.owners if uid not in absent and self._is_going_in_foreground(uid)]
        if len(absent) == len(stored.owners) or (waiting and len(absent) + len(waiting) == len(stored.owners)):
            served = self._cluster.registry.for_storage(stored.resource)
            if served is not None:
                propagation: Propagation = "Foreground" if waiting else "Background"
                self._delete(served, stored, DeleteOptions(propagation=propagation, uid=stored.uid))
        elif absent:
            self._drop_owners(stored, frozenset(absent))

    def _is_absent(self, reference: Mapping[str, Any], dependent: Stored) -> bool:
        served = self._cluster.registry.for_kind(reference["apiVersion"], reference["kind"])
        if served is None:
            return False  # an owner of a kind that is not known here cannot be looked up
        owner = self._storage.by_uid(reference["uid"])
        return owner is None or owner.namespace not in ("", dependent.namespace)

    def _is_going_in_foreground(self, uid: str) -> bool:
        owner = self._storage.by_uid(uid)
        if owner is None or b'"deletionTimestamp"' not in owner.data:
            return False
        metadata = owner.load()["metadata"]
        return "deletionTimestamp" in metadata and FOREGROUND in metadata.get("finalizers", [])

    def _delete_dependents(self, owner: Stored) -> None:
        blocking = 0
        for dependent in self._storage.dependents(owner.uid):
            references = dependent.load()["metadata"].get("ownerReferences", [])
            blocking += any(
                reference["uid"] == owner.uid and reference.get("blockOwnerDeletion") for reference in references
            )
            self._later(dependent)
        if not blocking:
            self._deleter.release(owner, FOREGROUND)

    def _let_go(self, owner: Stored) -> None:
        for dependent in self._storage.dependents(owner.uid):
            self._drop_owners(dependent, frozenset({owner.uid}))
        self._deleter.release(owner, ORPHAN)

    def _drop_owners(self, dependent: Stored, uids: frozenset[str]) -> None:
        obj = dependent.load()
        kept = [item for item in obj["metadata"].get("ownerReferences", []) if item["uid"] not in uids]
        obj["metadata"].pop("ownerReferences", None)
        if kept:
            obj["metadata"]["ownerReferences"] = kept
        self._storage.put(dependent.resource, obj)

    def _drain_namespace(self, namespace: Stored, obj: dict[str, Any]) -> None:
        left = sum(
            self._drain(served, namespace.name, namespace)
            for served in self._cluster.registry.stored()
            if served.info.namespaced
        )
        if not left and obj.get("spec", {}).get("finalizers"):
            obj["spec"] = {key: value for key, value in obj["spec"].items() if key != "finalizers"}
            self._deleter.settle(namespace, obj)

    def _drain_crd(self, crd: Stored) -> None:
        served = self._cluster.registry.for_storage(crd.name)
        if served is None or not self._drain(served, None, crd):
            self._deleter.release(crd, CRD_FINALIZER)

    def _drain(self, served: Served, namespace: str | None, container: Stored) -> int:
        """Deletes the objects of a resource; the number of those that are left.

        Some wait for a finalizer or for grace. When there are many, the rest is left for another look at `container`,
        so that requests are served in between.
        """
        left = deleted = 0
        for stored in self._storage.objects(served.storage, namespace):
            if b'"deletionTimestamp"' in stored.data and "deletionTimestamp" in stored.load()["metadata"]:
                left += 1
            elif deleted == _DRAINED_AT_ONCE:
                self._later(container)
                return left + 1
            else:
                deleted += 1
                left += not self._delete(served, stored, DeleteOptions(propagation="Background"))
        return left

    def _delete(self, served: Served, stored: Stored, options: DeleteOptions) -> bool:
        gone, _ = self._deleter.delete(served, stored, options)
        return gone

    def _give_service_account(self, namespace: str) -> None:
        if self._storage.get(SERVICE_ACCOUNTS, namespace, "default") is None:
            metadata = {
                "name": "default",
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": self._cluster.now(),
            }
            self._storage.put(SERVICE_ACCOUNTS, {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata})

    def _expire_events(self) -> None:
        before = self._cluster.clock() - EVENT_LIFETIME
        for stored in list(self._storage.objects(EVENTS)):
            try:
                event = stored.load()
                last = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
                if parse_timestamp(last) < before:
                    self._deleter.remove(stored, event)
            except Exception:
                _logger.exception("cannot expire the event %s/%s", stored.namespace, stored.name)
