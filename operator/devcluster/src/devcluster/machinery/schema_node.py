"""One place of a schema, read once from JSON: what validation, defaulting, patching and field ownership look at.

Nodes are made lazily, so that recursive definitions (a CRD's own schema) cost nothing until an object goes there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal

from devcluster.machinery.go_values import compile_go_pattern

ListType = Literal["atomic", "set", "map"]
NO_DEFAULT: Final = object()
QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"

_RESOURCE_FIELDS: Final[Mapping[str, Any]] = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {"$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
}


class SchemaNode:
    """A read-only view of one schema object. Absent keywords read as their neutral value."""

    def __init__(self, raw: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> None:
        reference = raw.get("$ref")
        if isinstance(reference, str):
            raw = {**definitions[reference], **{key: value for key, value in raw.items() if key != "$ref"}}
        self.raw = raw
        self._definitions = definitions
        self.definition: str | None = reference
        self.is_quantity = reference == QUANTITY
        self.type: str | None = raw.get("type")
        self.format: str | None = raw.get("format")
        self.nullable: bool = raw.get("nullable", False)
        self.default: Any = raw.get("default", NO_DEFAULT)
        self.enum: list[Any] | None = raw.get("enum")
        self.required: tuple[str, ...] = tuple(raw.get("required", ()))
        self.minimum: float | None = raw.get("minimum")
        self.maximum: float | None = raw.get("maximum")
        self.exclusive_minimum: bool = raw.get("exclusiveMinimum", False)
        self.exclusive_maximum: bool = raw.get("exclusiveMaximum", False)
        self.multiple_of: float | None = raw.get("multipleOf")
        self.min_length: int | None = raw.get("minLength")
        self.max_length: int | None = raw.get("maxLength")
        self.min_items: int | None = raw.get("minItems")
        self.max_items: int | None = raw.get("maxItems")
        self.min_properties: int | None = raw.get("minProperties")
        self.max_properties: int | None = raw.get("maxProperties")
        self.int_or_string: bool = raw.get("x-kubernetes-int-or-string", False)
        self.preserve_unknown: bool = raw.get("x-kubernetes-preserve-unknown-fields", False)
        self.embedded_resource: bool = raw.get("x-kubernetes-embedded-resource", False)
        self.list_type: ListType = raw.get("x-kubernetes-list-type", "atomic")
        self.list_map_keys: tuple[str, ...] = tuple(raw.get("x-kubernetes-list-map-keys", ()))
        self.map_atomic: bool = raw.get("x-kubernetes-map-type") == "atomic"
        self.rules: list[dict[str, Any]] = raw.get("x-kubernetes-validations", [])
        self.patch_merge_key: str | None = raw.get("x-kubernetes-patch-merge-key")
        self.patch_strategies: frozenset[str] = frozenset(
            part for part in raw.get("x-kubernetes-patch-strategy", "").split(",") if part
        )

    def _child(self, raw: Mapping[str, Any]) -> SchemaNode:
        return SchemaNode(raw, self._definitions)

    @cached_property
    def properties(self) -> dict[str, SchemaNode]:
        fields = dict(self.raw.get("properties", {}))
        if self.embedded_resource:
            fields |= _RESOURCE_FIELDS
        return {field: self._child(schema) for field, schema in fields.items()}

    @cached_property
    def items(self) -> SchemaNode | None:
        items = self.raw.get("items")
        return None if items is None else self._child(items)

    @cached_property
    def additional(self) -> SchemaNode | None:
        """The schema of values under free keys; an open node when they may be anything; None when there are none."""
        additional = self.raw.get("additionalProperties")
        if additional is True:
            return self._child({"x-kubernetes-preserve-unknown-fields": True})
        return self._child(additional) if isinstance(additional, Mapping) else None

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        pattern = self.raw.get("pattern")
        return compile_go_pattern(pattern) if pattern else None

    @cached_property
    def all_of(self) -> list[SchemaNode]:
        return [self._child(part) for part in self.raw.get("allOf", ())]

    @cached_property
    def any_of(self) -> list[SchemaNode]:
        return [self._child(part) for part in self.raw.get("anyOf", ())]

    @cached_property
    def one_of(self) -> list[SchemaNode]:
        return [self._child(part) for part in self.raw.get("oneOf", ())]

    @cached_property
    def not_(self) -> SchemaNode | None:
        part = self.raw.get("not")
        return None if part is None else self._child(part)

    @cached_property
    def defaulted(self) -> dict[str, SchemaNode]:
        """The properties that have a default."""
        return {field: node for field, node in self.properties.items() if node.default is not NO_DEFAULT}

    @property
    def is_open(self) -> bool:
        """True when nothing is said about the fields of an object here, so that any may stand."""
        return self.preserve_unknown or (self.type is None and not self.int_or_string)

    def field(self, name: str) -> SchemaNode | None:
        """The node of the field `name` of an object, or None when the schema says nothing about it."""
        return self.properties.get(name) or self.additional

    def key_of(self, item: Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
        """The key of a list item (list type ``map``) as sorted pairs, defaults filled in; None when it has none."""
        pairs: list[tuple[str, Any]] = []
        fields = self.items.properties if self.items is not None else {}
        for name in self.list_map_keys:
            if name in item:
                pairs.append((name, item[name]))
            elif name in fields and fields[name].default is not NO_DEFAULT:
                pairs.append((name, fields[name].default))
        return tuple(sorted(pairs)) if pairs else None


def resource_root(raw: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> SchemaNode:
    """The root node of a custom resource: `raw` with the fields that every resource has.

    What the schema itself demands of ``metadata.name`` and ``metadata.generateName`` is kept.
    """
    fields = dict(raw.get("properties", {}))
    own_metadata = fields.get("metadata", {}).get("properties", {})
    meta = dict(definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"])
    meta["properties"] = {
        **meta["properties"],
        **{name: {**meta["properties"][name], **rules} for name, rules in own_metadata.items()},
    }
    return SchemaNode({**raw, "properties": {**_RESOURCE_FIELDS, **fields, "metadata": meta}}, definitions)
