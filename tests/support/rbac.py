"""What rendered roles allow: the tests hold it against the calls that the operator makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class Call:
    """One kind of API call. `resource` may be `name/subresource`; `name` is the object's, when the call has one."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None
    """None for the whole cluster: objects outside of namespaces, and lists and watches over all of them."""
    name: str | None = None


@dataclass(frozen=True, kw_only=True, order=True)
class Grant:
    """One verb on one resource that a role allows, in one namespace or (None) everywhere."""

    verb: str
    group: str
    resource: str
    namespace: str | None
    names: tuple[str, ...] = ()

    def allows(self, call: Call) -> bool:
        return (
            (call.verb, call.group, call.resource) == (self.verb, self.group, self.resource)
            and (self.namespace is None or self.namespace == call.namespace)
            and (not self.names or call.name in self.names)
        )


def grants_of(manifests: Iterable[Mapping[str, Any]], *, account: str) -> set[Grant]:
    """Everything that the bindings among the manifests give to the ServiceAccount of this name."""
    every = list(manifests)
    roles = {
        (role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]): role
        for role in every
        if role["kind"] in ("Role", "ClusterRole")
    }
    found: set[Grant] = set()
    for binding in every:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if account not in [subject["name"] for subject in binding["subjects"]]:
            continue
        namespace = binding["metadata"].get("namespace")
        reference = binding["roleRef"]
        role_namespace = namespace if reference["kind"] == "Role" else None
        role = roles[reference["kind"], role_namespace, reference["name"]]
        found.update(_grants(role, namespace))
    return found


def _grants(role: Mapping[str, Any], namespace: str | None) -> Iterator[Grant]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    names = tuple(rule.get("resourceNames") or ())
                    yield Grant(verb=verb, group=group, resource=resource, namespace=namespace, names=names)
