"""Which resources the embedded API server serves now: the built-in ones and those of installed CRDs.

`ResourceRegistry` is asked by the dispatcher (what does this path mean?), by discovery and by OpenAPI. It follows the
CRDs that are stored: `install` and `remove` are called when one is established, changed or gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from devcluster.apiserver.errors import qualified
from devcluster.machinery.resources import ResourceInfo, builtin_resources, from_crd

CRDS = "customresourcedefinitions.apiextensions.k8s.io"
NAMESPACES = "namespaces"
PODS = "pods"
SERVICE_ACCOUNTS = "serviceaccounts"
EVENTS = "events"

# Events of both groups are one resource in storage, kept in the form of the first.
_SHARED_STORAGE: Mapping[str, tuple[str, str]] = {"events.events.k8s.io": (EVENTS, "v1")}


def group_version(group: str, version: str) -> str:
    """`apps/v1`, or `v1` for the core group."""
    return f"{group}/{version}" if group else version


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One resource in one of its versions, and how it is stored."""

    info: ResourceInfo
    storage: str
    stored_as: str
    crd: str = ""
    terminating: bool = False

    @property
    def api_version(self) -> str:
        return group_version(self.info.group, self.info.version)

    @property
    def qualified(self) -> str:
        return qualified(self.info.group, self.info.plural)


class ResourceRegistry:
    """The resources by group, version and plural. `revision` changes whenever what is served does."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], Served] = {}
        self._by_storage: dict[str, Served] = {}
        self.revision = 0
        for info in builtin_resources():
            name = qualified(info.group, info.plural)
            storage, stored_as = _SHARED_STORAGE.get(name, (name, group_version(info.group, info.version)))
            self._add(Served(info=info, storage=storage, stored_as=stored_as))

    def lookup(self, group: str, version: str, plural: str) -> Served | None:
        return self._served.get((group, version, plural))

    def for_storage(self, storage: str) -> Served | None:
        """The resource in the version that it is stored in; None for instances of a CRD that is gone."""
        return self._by_storage.get(storage)

    def for_kind(self, api_version: str, kind: str) -> Served | None:
        """What an ownerReference points to."""
        group, _, version = api_version.rpartition("/")
        for served in self._served.values():
            info = served.info
            if (info.group, info.version, info.kind) == (group, version, kind):
                return served
        return None

    def all(self) -> list[Served]:
        return list(self._served.values())

    def stored(self) -> list[Served]:
        """Each stored resource once, in its storage version."""
        return list(self._by_storage.values())

    def of_group_version(self, group: str, version: str) -> list[Served]:
        return [
            served for served in self._served.values() if (served.info.group, served.info.version) == (group, version)
        ]

    def groups(self) -> dict[str, list[str]]:
        """The versions of each group, the preferred one first; the core group is the empty string."""
        groups: dict[str, list[str]] = {}
        for group, version, _ in self._served:
            versions = groups.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return {group: sorted(versions, key=version_priority, reverse=True) for group, versions in groups.items()}

    def install(self, crd: Mapping[str, Any]) -> None:
        """Serves what an established CRD defines, instead of what it defined before."""
        self._drop(crd["metadata"]["name"])
        spec = crd["spec"]
        name = qualified(spec["group"], spec["names"]["plural"])
        storage_version = next(version["name"] for version in spec["versions"] if version.get("storage"))
        terminating = "deletionTimestamp" in crd["metadata"]
        for info in from_crd(dict(crd)):
            self._add(
                Served(
                    info=info,
                    storage=name,
                    stored_as=group_version(info.group, storage_version),
                    crd=crd["metadata"]["name"],
                    terminating=terminating,
                )
            )
        self.revision += 1

    def remove(self, crd_name: str) -> None:
        self._drop(crd_name)
        self.revision += 1

    def names_taken(self, crd: Mapping[str, Any]) -> Iterable[str]:
        """The sentences that say why a CRD's names cannot be accepted: another resource of its group has them."""
        spec, own = crd["spec"], crd["metadata"]["name"]
        names = spec["names"]
        for served in self._served.values():
            if served.info.group != spec["group"] or served.crd == own:
                continue
            if names["plural"] == served.info.plural:
                yield f'"{names["plural"]}" is already in use'
            if names["kind"] == served.info.kind:
                yield f'"{names["kind"]}" is already in use'

    def _add(self, served: Served) -> None:
        info = served.info
        self._served[info.group, info.version, info.plural] = served
        if served.api_version == served.stored_as or (served.storage not in self._by_storage and served.crd):
            self._by_storage[served.storage] = served

    def _drop(self, crd_name: str) -> None:
        self._served = {key: served for key, served in self._served.items() if served.crd != crd_name}
        self._by_storage = {key: served for key, served in self._by_storage.items() if served.crd != crd_name}


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Orders versions as Kubernetes does: `v2 > v1 > v1beta2 > v1beta1 > v1alpha1 > anything else`."""
    stage, major, minor = 0, 0, 0
    if version.startswith("v") and version[1:].isdigit():
        return (3, int(version[1:]), 0, "")
    if version.startswith("v"):
        for word, rank in (("beta", 2), ("alpha", 1)):
            digits, found, rest = version[1:].partition(word)
            if found and digits.isdigit() and (rest.isdigit() or not rest):
                stage, major, minor = rank, int(digits), int(rest or 0)
    return (stage, major, minor, "" if stage else version)
