"""Whether the schema of a CustomResourceDefinition is one that this package can honour. Called by `crds`.

A real API server asks more of a schema, for the sake of its authors: that it is structural in every respect, that
defaults fit it, and so on. Here only what would otherwise be misread, or silently left unenforced, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from devcluster.machinery import field_errors
from devcluster.machinery.builtin_schemas import builtin_definitions
from devcluster.machinery.defaulting import find_unknown_fields
from devcluster.machinery.field_errors import FieldError
from devcluster.machinery.formats import UNSUPPORTED_FORMATS
from devcluster.machinery.go_values import UnsupportedPattern, compile_go_pattern
from devcluster.machinery.schema_node import SchemaNode
from devcluster.machinery.validation import check_value

Level = Literal["root", "item", "field"]

TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
REFUSED_KEYWORDS: Final = (
    "id",
    "$schema",
    "$ref",
    "additionalItems",
    "patternProperties",
    "definitions",
    "dependencies",
)
_MUST_BE_TYPED: Final[dict[Level, str]] = {
    "root": "must not be empty at the root",
    "item": "must not be empty for specified array items",
    "field": "must not be empty for specified object fields",
}
_SCHEMA_DEFINITION: Final = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"


def check_enforceable(schema: Mapping[str, Any], path: str, level: Level | None = "root") -> Iterator[FieldError]:
    """The faults of the schema at `path` (``spec.validation.openAPIV3Schema``). `level` is None in a value rule
    (allOf, anyOf, oneOf, not), which has no type of its own.
    """
    for keyword in REFUSED_KEYWORDS:
        if keyword in schema:
            yield field_errors.forbidden(f"{path}.{keyword}", f"{keyword} is not supported")
    if level is not None:
        yield from _check_type(schema, path, level)
    if pattern := schema.get("pattern"):
        try:
            compile_go_pattern(pattern)
        except UnsupportedPattern as error:
            detail = f"must be a valid regular expression, but isn't: {error}"
            yield field_errors.invalid(f"{path}.pattern", pattern, detail)
    if schema.get("format") in UNSUPPORTED_FORMATS:
        yield field_errors.forbidden(f"{path}.format", "this format is not enforced by the embedded API server")
    for name, part in schema.get("properties", {}).items():
        yield from check_enforceable(part, f"{path}.properties[{name}]", level and "field")
    if "items" in schema:
        yield from _check_open_part(schema["items"], f"{path}.items", level and "item")
    if not isinstance(schema.get("additionalProperties", True), bool):
        yield from _check_open_part(schema["additionalProperties"], f"{path}.additionalProperties", level and "field")
    for combinator in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(combinator, ())):
            yield from check_enforceable(part, f"{path}.{combinator}[{index}]", None)
    if "not" in schema:
        yield from check_enforceable(schema["not"], f"{path}.not", None)


def _check_open_part(schema: Any, path: str, level: Level | None) -> Iterator[FieldError]:
    """A place where the CRD's own schema lets anything stand."""
    faults = shape_faults(schema, path)
    yield from faults or check_enforceable(schema, path, level)


def shape_faults(schema: Any, path: str) -> list[FieldError]:
    """Whether it is a schema at all."""
    if not isinstance(schema, Mapping):
        return [field_errors.forbidden(path, "must be a schema object and not an array or a boolean")]
    props = SchemaNode({"$ref": _SCHEMA_DEFINITION}, builtin_definitions())
    faults = [field_errors.forbidden(place, "is not a keyword") for place in find_unknown_fields(props, schema, path)]
    faults.extend(check_value(props, schema, path))
    return faults


def _check_type(schema: Mapping[str, Any], path: str, level: Level) -> Iterator[FieldError]:
    kind = schema.get("type")
    if kind is None:
        if not schema.get("x-kubernetes-int-or-string") and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield field_errors.required(f"{path}.type", _MUST_BE_TYPED[level])
    elif kind not in TYPES:
        yield field_errors.not_supported(f"{path}.type", kind, TYPES)
    elif level == "root" and kind != "object":
        yield field_errors.invalid(f"{path}.type", kind, "must be object at the root")
    elif kind == "array" and "items" not in schema:
        yield field_errors.required(f"{path}.items", "must be specified")
    fields = (schema.get("items") or {}).get("properties", {}) if isinstance(schema.get("items"), Mapping) else {}
    keys = schema.get("x-kubernetes-list-map-keys", [])
    if schema.get("x-kubernetes-list-type") == "map" and not (keys and set(keys) <= set(fields)):
        place = f"{path}.x-kubernetes-list-map-keys"
        yield field_errors.invalid(place, keys, "entries must all be names of item properties")
