"""What the embedded API server remembers: every object, the counter of resourceVersions, and the recent changes.

Objects are kept as JSON bytes in memory (a list or a watch is mostly a concatenation of them) and written through to
sqlite, one transaction a change, so that a killed server loses nothing that it has acknowledged. All calls are made
from the event loop's thread and never wait; a read followed by a write in one call is therefore atomic.

Changes are kept for a while, per resource, so that a watch can begin at a resourceVersion of the past; older ones are
compacted, and a watch from before them gets `Compacted` (410 Gone). After a restart everything earlier is compacted.
"""

from __future__ import annotations

import enum
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from devcluster.errors import EmbeddedError

KEPT_CHANGES = 4_000
KEPT_BYTES = 8 * 1024 * 1024

Key = tuple[str, str]


class ChangeKind(enum.StrEnum):
    """What happened to an object, in a watch's words."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One state of one object. `data` is its JSON; the other fields are read from it once, for selection."""

    resource: str
    namespace: str
    name: str
    uid: str
    resource_version: int
    data: bytes
    labels: Mapping[str, str]
    owners: tuple[str, ...]

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    def load(self) -> dict[str, Any]:
        """A fresh copy of the object that the caller may change."""
        loaded: dict[str, Any] = json.loads(self.data)
        return loaded


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """`new` is the state after the change (for a deletion: the last state, with the deletion's resourceVersion)."""

    kind: ChangeKind
    new: Stored
    old: Stored | None


class Compacted(EmbeddedError):
    """The changes asked for are no longer kept."""

    def __init__(self, asked: int, oldest: int) -> None:
        self.asked = asked
        self.oldest = oldest
        super().__init__(f"too old resource version: {asked} ({oldest})")


@dataclass(kw_only=True, slots=True)
class _Log:
    """A resource's recent changes; everything up to `compacted` has been dropped."""

    compacted: int
    changes: deque[Change] = field(default_factory=deque)
    size: int = 0

    def append(self, change: Change) -> None:
        self.changes.append(change)
        self.size += len(change.new.data)
        while len(self.changes) > KEPT_CHANGES or (self.size > KEPT_BYTES and len(self.changes) > 1):
            self._drop()

    def compact(self) -> None:
        while self.changes:
            self._drop()

    def _drop(self) -> None:
        dropped = self.changes.popleft()
        self.size -= len(dropped.new.data)
        self.compacted = dropped.new.resource_version


def encode(obj: Mapping[str, Any]) -> bytes:
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def load_queries() -> dict[str, str]:
    """The statements of `storage.sql` by name."""
    text = files(__package__).joinpath("storage.sql").read_text(encoding="utf-8")
    blocks = text.split("-- name: ")[1:]
    return {name.strip(): body.strip() for name, _, body in (block.partition("\n") for block in blocks)}


class Storage:
    """The objects of one data folder. Subscribers hear every change of their resource (or of all), in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._objects: dict[str, dict[Key, Stored]] = {}
        self._sorted: dict[str, list[Key]] = {}
        self._by_uid: dict[str, Stored] = {}
        self._dependents: dict[str, dict[tuple[str, str, str], Stored]] = {}
        self._logs: dict[str, _Log] = {}
        self._subscribers: dict[str | None, list[Callable[[Change], None]]] = {}
        self._sql = load_queries()
        self._connection = self._open()
        self._resource_version: int = self._connection.execute(self._sql["counter"]).fetchone()[0]
        self._loaded_at = self._resource_version
        for resource, namespace, name, version, data in self._connection.execute(self._sql["load"]):
            self._remember(_stored(resource, namespace, name, version, json.loads(data), data))

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.2)
        try:
            connection.execute("pragma locking_mode = exclusive")
            connection.execute("pragma journal_mode = wal")
            # A killed process loses nothing; only a machine that loses power can lose the last moments.
            connection.execute("pragma synchronous = normal")
            connection.executescript(self._sql["schema"])
        except sqlite3.OperationalError as error:
            connection.close()
            raise EmbeddedError(f"{self._path}: {error}; does another embedded cluster use this folder?") from error
        return connection

    def close(self) -> None:
        self._connection.close()

    @property
    def resource_version(self) -> int:
        """That of the newest change."""
        return self._resource_version

    def get(self, resource: str, namespace: str, name: str) -> Stored | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def by_uid(self, uid: str) -> Stored | None:
        return self._by_uid.get(uid)

    def dependents(self, uid: str) -> list[Stored]:
        """The objects that name `uid` as an owner."""
        return list(self._dependents.get(uid, {}).values())

    def objects(self, resource: str, namespace: str | None = None) -> Iterator[Stored]:
        """In the order of namespace and name; `None` means all namespaces. Safe against changes while it runs."""
        objects = self._objects.get(resource, {})
        keys = self._sorted.get(resource)
        if keys is None or len(keys) != len(objects):
            keys = self._sorted[resource] = sorted(objects)
        for key in keys:
            if (namespace is None or key[0] == namespace) and (found := objects.get(key)) is not None:
                yield found

    def resources(self) -> list[str]:
        """The resources of which there is at least one object."""
        return [resource for resource, objects in self._objects.items() if objects]

    def put(self, resource: str, obj: dict[str, Any]) -> Stored:
        """Stores a new state; sets its resourceVersion."""
        metadata = obj["metadata"]
        version = self._resource_version + 1
        metadata["resourceVersion"] = str(version)
        data = encode(obj)
        stored = _stored(resource, metadata.get("namespace", ""), metadata["name"], version, obj, data)
        old = self._objects.get(resource, {}).get(stored.key)
        self._write(version, "put", (resource, *stored.key, version, data))
        if old is not None:
            self._forget(old)
        else:
            self._sorted.pop(resource, None)
        self._remember(stored)
        self._publish(Change(kind=ChangeKind.MODIFIED if old else ChangeKind.ADDED, new=stored, old=old))
        return stored

    def delete(self, old: Stored, final: dict[str, Any]) -> Stored:
        """Removes the object; watches see `final` with the deletion's resourceVersion."""
        version = self._resource_version + 1
        final["metadata"]["resourceVersion"] = str(version)
        last = _stored(old.resource, old.namespace, old.name, version, final, encode(final))
        self._write(version, "delete", (old.resource, *old.key))
        self._forget(old)
        del self._objects[old.resource][old.key]
        self._sorted.pop(old.resource, None)
        self._publish(Change(kind=ChangeKind.DELETED, new=last, old=old))
        return last

    def changes_since(self, resource: str, version: int) -> list[Change]:
        """The changes after `version`. Raises `Compacted` when some of them are no longer kept."""
        log = self._log(resource)
        if version < log.compacted:
            raise Compacted(version, log.compacted)
        return [change for change in log.changes if change.new.resource_version > version]

    def compact(self) -> None:
        """Forgets all past changes."""
        for log in self._logs.values():
            log.compact()
            log.compacted = self._resource_version
        self._loaded_at = self._resource_version

    def subscribe(self, resource: str | None, subscriber: Callable[[Change], None]) -> Callable[[], None]:
        """Calls `subscriber` with each change of the resource (`None`: of any) until the result is called."""
        subscribers = self._subscribers.setdefault(resource, [])
        subscribers.append(subscriber)
        return lambda: subscribers.remove(subscriber)

    def _write(self, version: int, statement: str, parameters: tuple[Any, ...]) -> None:
        connection = self._connection
        connection.execute("begin")
        try:
            connection.execute(self._sql[statement], parameters)
            connection.execute(self._sql["advance"], (version,))
            connection.execute("commit")
        except BaseException:
            connection.execute("rollback")
            raise
        self._resource_version = version

    def _remember(self, stored: Stored) -> None:
        self._objects.setdefault(stored.resource, {})[stored.key] = stored
        self._by_uid[stored.uid] = stored
        for owner in stored.owners:
            self._dependents.setdefault(owner, {})[(stored.resource, *stored.key)] = stored

    def _forget(self, stored: Stored) -> None:
        self._by_uid.pop(stored.uid, None)
        for owner in stored.owners:
            dependents = self._dependents.get(owner, {})
            dependents.pop((stored.resource, *stored.key), None)
            if not dependents:
                self._dependents.pop(owner, None)

    def _log(self, resource: str) -> _Log:
        return self._logs.setdefault(resource, _Log(compacted=self._loaded_at))

    def _publish(self, change: Change) -> None:
        self._log(change.new.resource).append(change)
        for resource in (change.new.resource, None):
            for subscriber in tuple(self._subscribers.get(resource, ())):
                subscriber(change)


def _stored(resource: str, namespace: str, name: str, version: int, obj: Mapping[str, Any], data: bytes) -> Stored:
    metadata = obj["metadata"]
    return Stored(
        resource=resource,
        namespace=namespace,
        name=name,
        uid=metadata["uid"],
        resource_version=version,
        data=data,
        labels=metadata.get("labels") or {},
        owners=tuple(reference["uid"] for reference in metadata.get("ownerReferences") or ()),
    )
