"""Which kinds exist: the built-in ones, and those that a CustomResourceDefinition adds.

The HTTP server builds its routes and discovery from `ResourceInfo`; everything else here works on one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from devcluster.machinery.builtin_checks import EXTRA_CHECKS
from devcluster.machinery.builtin_defaults import COMPLETIONS
from devcluster.machinery.builtin_kinds import BUILTIN_KINDS, BuiltinKind
from devcluster.machinery.builtin_schemas import builtin_definitions
from devcluster.machinery.crds import InvalidDefinition, check_definition
from devcluster.machinery.schema import StructuralSchema
from devcluster.machinery.schema_node import SchemaNode, resource_root

__all__ = [
    "InvalidDefinition",
    "PrinterColumn",
    "ResourceInfo",
    "ScaleSpec",
    "builtin_definitions",
    "builtin_resources",
    "from_crd",
]

ColumnType = Literal["integer", "number", "string", "boolean", "date"]


@dataclass(frozen=True, kw_only=True)
class PrinterColumn:
    """One column of ``kubectl get``. A column of priority above 0 shows with ``-o wide`` only."""

    name: str
    type: ColumnType
    json_path: str
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class ScaleSpec:
    """Where the ``scale`` subresource finds its numbers in an object; paths like ``.spec.replicas``."""

    spec_replicas_path: str
    status_replicas_path: str
    label_selector_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResourceInfo:
    """One kind in one version, as the API serves it."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    list_kind: str
    namespaced: bool
    schema: StructuralSchema
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    printer_columns: tuple[PrinterColumn, ...] = ()
    scale: ScaleSpec | None = None
    selectable_fields: tuple[str, ...] = ()
    storage_group_version: str
    is_builtin: bool = False
    deprecated: bool = False
    deprecation_warning: str | None = None

    @property
    def api_version(self) -> str:
        """``v1`` or ``tasker.dev/v1alpha1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """``pods`` or ``tasks.tasker.dev``, the way error messages name a resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources


def builtin_resources() -> list[ResourceInfo]:
    """The kinds that are there before any CustomResourceDefinition."""
    return [_builtin(kind) for kind in BUILTIN_KINDS]


def _builtin(kind: BuiltinKind) -> ResourceInfo:
    definitions = builtin_definitions()
    key = (kind.group, kind.kind)
    scale = None
    if "scale" in kind.subresources:
        scale = ScaleSpec(
            spec_replicas_path=".spec.replicas",
            status_replicas_path=".status.replicas",
            label_selector_path=".spec.selector",
        )
    return ResourceInfo(
        group=kind.group,
        version=kind.version,
        kind=kind.kind,
        plural=kind.plural,
        singular=kind.kind.lower(),
        list_kind=f"{kind.kind}List",
        namespaced=kind.namespaced,
        short_names=kind.short_names,
        categories=kind.categories,
        subresources=kind.subresources,
        schema=StructuralSchema(
            SchemaNode({"$ref": kind.definition}, definitions),
            complete=COMPLETIONS.get(key),
            extra_check=EXTRA_CHECKS.get(key),
        ),
        printer_columns=(),
        scale=scale,
        selectable_fields=BUILTIN_SELECTABLE_FIELDS.get(key, ()),
        storage_group_version=f"{kind.group}/{kind.version}" if kind.group else kind.version,
        is_builtin=True,
    )


BUILTIN_SELECTABLE_FIELDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "Namespace"): ("status.phase",),
    ("", "Pod"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "Secret"): ("type",),
    ("", "Node"): ("spec.unschedulable",),
    ("", "Event"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("events.k8s.io", "Event"): (
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "reason",
        "reportingController",
        "type",
    ),
    ("apps", "ReplicaSet"): ("status.replicas",),
}


def from_crd(crd: dict[str, Any]) -> list[ResourceInfo]:
    """The kinds that a CustomResourceDefinition adds, one a served version.

    `crd` must have its defaults (see the built-in kind's `StructuralSchema.default`). Raises `InvalidDefinition`, which
    carries every fault with its path.
    """
    errors = check_definition(crd, builtin_definitions())
    if errors:
        raise InvalidDefinition(crd.get("metadata", {}).get("name", ""), errors)
    spec = crd["spec"]
    names = spec["names"]
    storage = next(version["name"] for version in spec["versions"] if version["storage"])
    found: list[ResourceInfo] = []
    for version in spec["versions"]:
        if not version["served"]:
            continue
        subresources = version.get("subresources", {})
        root = resource_root(version["schema"]["openAPIV3Schema"], builtin_definitions())
        found.append(
            ResourceInfo(
                group=spec["group"],
                version=version["name"],
                kind=names["kind"],
                plural=names["plural"],
                singular=names.get("singular") or names["kind"].lower(),
                list_kind=names.get("listKind") or f"{names['kind']}List",
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(names.get("shortNames", ())),
                categories=tuple(names.get("categories", ())),
                subresources=frozenset(subresources),
                schema=StructuralSchema(root),
                printer_columns=tuple(_column(item) for item in version.get("additionalPrinterColumns", ())),
                scale=_scale(subresources["scale"]) if "scale" in subresources else None,
                selectable_fields=tuple(
                    item["jsonPath"].removeprefix(".") for item in version.get("selectableFields", ())
                ),
                storage_group_version=f"{spec['group']}/{storage}",
                deprecated=version.get("deprecated", False),
                deprecation_warning=version.get("deprecationWarning"),
            )
        )
    return found


def _column(item: Mapping[str, Any]) -> PrinterColumn:
    return PrinterColumn(
        name=item["name"],
        type=item["type"],
        json_path=item["jsonPath"],
        format=item.get("format", ""),
        description=item.get("description", ""),
        priority=item.get("priority", 0),
    )


def _scale(item: Mapping[str, Any]) -> ScaleSpec:
    return ScaleSpec(
        spec_replicas_path=item["specReplicasPath"],
        status_replicas_path=item["statusReplicasPath"],
        label_selector_path=item.get("labelSelectorPath"),
    )
