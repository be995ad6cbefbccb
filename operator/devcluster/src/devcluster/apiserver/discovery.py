"""Discovery: what there is, in the legacy form (`/api`, `/apis`, one list a version) and the aggregated one.

kubectl and kopf ask for the aggregated form in the Accept header and fall back on the legacy one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from devcluster.apiserver.access import REVIEWS
from devcluster.apiserver.registry import ResourceRegistry, group_version
from devcluster.machinery.resources import ResourceInfo

AGGREGATED_TYPE = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_SUBRESOURCE_VERBS = {"log": ("get",)}
_DEFAULT_SUBRESOURCE_VERBS = ("get", "patch", "update")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One line of discovery; `subresource` is empty for the resource itself."""

    plural: str
    singular: str
    kind: str
    namespaced: bool
    verbs: tuple[str, ...]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresource: str = ""
    scope_group: str = ""
    scope_version: str = ""


def wants_aggregated(accept: str) -> bool:
    return any(
        "as=APIGroupDiscoveryList" in clause and "v=v2" in clause.replace("v=v2beta1", "")
        for clause in accept.split(",")
    )


class Discovery:
    def __init__(self, registry: ResourceRegistry) -> None:
        self._registry = registry

    def groups(self) -> dict[str, list[str]]:
        """Every group's versions, the reviews of authentication and authorization among them."""
        groups = self._registry.groups()
        for review in REVIEWS:
            groups.setdefault(review.group, [review.version])
        return groups

    def core_versions(self, address: str) -> dict[str, Any]:
        """`/api`."""
        servers = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": servers}

    def group_list(self) -> dict[str, Any]:
        """`/apis`."""
        groups = [self._group(group, versions) for group, versions in self.groups().items() if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def group(self, group: str) -> dict[str, Any] | None:
        """`/apis/<group>`."""
        versions = self.groups().get(group)
        if versions is None or not group:
            return None
        return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group, versions)}

    def resource_list(self, group: str, version: str) -> dict[str, Any] | None:
        """`/api/v1` or `/apis/<group>/<version>`."""
        entries = self._entries(group, version)
        if not entries:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": [self._legacy(entry) for entry in entries],
        }

    def aggregated(self, *, core: bool) -> dict[str, Any]:
        """`/api` (core) or `/apis` in the aggregated form."""
        items = []
        for group, versions in self.groups().items():
            if bool(group) == core:
                continue
            metadata = {"name": group} if group else {}
            described = [
                {
                    "version": version,
                    "resources": self._aggregated_resources(group, version),
                    "freshness": "Current",
                }
                for version in versions
            ]
            items.append({"metadata": metadata, "versions": described})
        return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}

    def _group(self, group: str, versions: Sequence[str]) -> dict[str, Any]:
        listed = [{"groupVersion": group_version(group, version), "version": version} for version in versions]
        return {"name": group, "versions": listed, "preferredVersion": listed[0]}

    def _entries(self, group: str, version: str) -> list[_Entry]:
        entries: list[_Entry] = []
        for served in self._registry.of_group_version(group, version):
            entries.extend(_resource_entries(served.info))
        entries.extend(
            _Entry(
                plural=review.plural,
                singular=review.kind.lower(),
                kind=review.kind,
                namespaced=False,
                verbs=("create",),
            )
            for review in REVIEWS
            if (review.group, review.version) == (group, version)
        )
        return entries

    def _legacy(self, entry: _Entry) -> dict[str, Any]:
        described: dict[str, Any] = {
            "name": f"{entry.plural}/{entry.subresource}" if entry.subresource else entry.plural,
            "singularName": "" if entry.subresource else entry.singular,
            "namespaced": entry.namespaced,
            "kind": entry.kind,
            "verbs": list(entry.verbs),
        }
        if entry.scope_group:
            described |= {"group": entry.scope_group, "version": entry.scope_version}
        if entry.short_names:
            described["shortNames"] = list(entry.short_names)
        if entry.categories:
            described["categories"] = list(entry.categories)
        return described

    def _aggregated_resources(self, group: str, version: str) -> list[dict[str, Any]]:
        described: list[dict[str, Any]] = []
        for entry in self._entries(group, version):
            kind = {
                "group": entry.scope_group or group,
                "version": entry.scope_version or version,
                "kind": entry.kind,
            }
            if entry.subresource:
                parent = described[-1].setdefault("subresources", [])
                parent.append({"subresource": entry.subresource, "responseKind": kind, "verbs": list(entry.verbs)})
                continue
            resource: dict[str, Any] = {
                "resource": entry.plural,
                "responseKind": kind,
                "scope": "Namespaced" if entry.namespaced else "Cluster",
                "singularResource": entry.singular,
                "verbs": list(entry.verbs),
            }
            if entry.short_names:
                resource["shortNames"] = list(entry.short_names)
            if entry.categories:
                resource["categories"] = list(entry.categories)
            described.append(resource)
        return described


def _resource_entries(info: ResourceInfo) -> Iterable[_Entry]:
    yield _Entry(
        plural=info.plural,
        singular=info.singular,
        kind=info.kind,
        namespaced=info.namespaced,
        verbs=_ALL_VERBS,
        short_names=info.short_names,
        categories=info.categories,
    )
    for subresource in sorted(info.subresources):
        is_scale = subresource == "scale"
        yield _Entry(
            plural=info.plural,
            singular=info.singular,
            kind="Scale" if is_scale else info.kind,
            namespaced=info.namespaced,
            verbs=_SUBRESOURCE_VERBS.get(subresource, _DEFAULT_SUBRESOURCE_VERBS),
            subresource=subresource,
            scope_group="autoscaling" if is_scale else "",
            scope_version="v1" if is_scale else "",
        )
