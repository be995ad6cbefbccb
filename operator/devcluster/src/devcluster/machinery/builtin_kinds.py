"""The built-in kinds that the embedded API server knows, as `kubectl api-resources` would list them."""

from __future__ import annotations

from dataclasses import dataclass

_CORE = "io.k8s.api.core.v1."
_APPS = "io.k8s.api.apps.v1."
_RBAC = "io.k8s.api.rbac.v1."


@dataclass(frozen=True, kw_only=True)
class BuiltinKind:
    """One built-in kind. `definition` is the name of its schema in ``builtin_schemas.json``."""

    group: str
    version: str
    kind: str
    plural: str
    definition: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()


def _core(
    kind: str,
    plural: str,
    *,
    namespaced: bool = True,
    short: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    sub: tuple[str, ...] = (),
) -> BuiltinKind:
    return BuiltinKind(
        group="",
        version="v1",
        kind=kind,
        plural=plural,
        definition=_CORE + kind,
        namespaced=namespaced,
        short_names=short,
        categories=categories,
        subresources=frozenset(sub),
    )


def _rbac(kind: str, plural: str, *, namespaced: bool) -> BuiltinKind:
    return BuiltinKind(
        group="rbac.authorization.k8s.io",
        version="v1",
        kind=kind,
        plural=plural,
        definition=_RBAC + kind,
        namespaced=namespaced,
    )


BUILTIN_KINDS: tuple[BuiltinKind, ...] = (
    _core("Namespace", "namespaces", namespaced=False, short=("ns",), sub=("status",)),
    _core("Node", "nodes", namespaced=False, short=("no",), sub=("status",)),
    _core("Pod", "pods", short=("po",), categories=("all",), sub=("status", "log")),
    _core("ConfigMap", "configmaps", short=("cm",)),
    _core("Secret", "secrets"),
    _core("ServiceAccount", "serviceaccounts", short=("sa",)),
    _core("Service", "services", short=("svc",), categories=("all",), sub=("status",)),
    _core("Endpoints", "endpoints", short=("ep",)),
    _core("Event", "events", short=("ev",)),
    BuiltinKind(
        group="apps",
        version="v1",
        kind="Deployment",
        plural="deployments",
        definition=_APPS + "Deployment",
        short_names=("deploy",),
        categories=("all",),
        subresources=frozenset({"status", "scale"}),
    ),
    BuiltinKind(
        group="apps",
        version="v1",
        kind="ReplicaSet",
        plural="replicasets",
        definition=_APPS + "ReplicaSet",
        short_names=("rs",),
        categories=("all",),
        subresources=frozenset({"status", "scale"}),
    ),
    BuiltinKind(
        group="coordination.k8s.io",
        version="v1",
        kind="Lease",
        plural="leases",
        definition="io.k8s.api.coordination.v1.Lease",
    ),
    BuiltinKind(
        group="events.k8s.io",
        version="v1",
        kind="Event",
        plural="events",
        definition="io.k8s.api.events.v1.Event",
        short_names=("ev",),
    ),
    BuiltinKind(
        group="policy",
        version="v1",
        kind="PodDisruptionBudget",
        plural="poddisruptionbudgets",
        definition="io.k8s.api.policy.v1.PodDisruptionBudget",
        short_names=("pdb",),
        subresources=frozenset({"status"}),
    ),
    BuiltinKind(
        group="networking.k8s.io",
        version="v1",
        kind="NetworkPolicy",
        plural="networkpolicies",
        definition="io.k8s.api.networking.v1.NetworkPolicy",
        short_names=("netpol",),
    ),
    _rbac("Role", "roles", namespaced=True),
    _rbac("RoleBinding", "rolebindings", namespaced=True),
    _rbac("ClusterRole", "clusterroles", namespaced=False),
    _rbac("ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    BuiltinKind(
        group="apiextensions.k8s.io",
        version="v1",
        kind="CustomResourceDefinition",
        plural="customresourcedefinitions",
        definition="io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        namespaced=False,
        short_names=("crd", "crds"),
        categories=("api-extensions",),
        subresources=frozenset({"status"}),
    ),
)

OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
SCALE = "io.k8s.api.autoscaling.v1.Scale"

ROOT_DEFINITIONS: tuple[str, ...] = (OBJECT_META, LIST_META, SCALE)
"""Definitions that no kind above leads to, but the server or the OpenAPI documents need."""
