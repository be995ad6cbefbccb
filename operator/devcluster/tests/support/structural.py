"""Whether the schema of a CustomResourceDefinition is structural: a lint for the repository's own, which a real
API server must take. It refuses what that refuses, with its words. The embedded server asks less (`enforceable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from devcluster.machinery import field_errors
from devcluster.machinery.builtin_schemas import builtin_definitions
from devcluster.machinery.defaulting import default_value, find_unknown_fields
from devcluster.machinery.enforceable import REFUSED_KEYWORDS, TYPES, shape_faults
from devcluster.machinery.field_errors import FieldError
from devcluster.machinery.schema_node import SchemaNode
from devcluster.machinery.validation import check_unique_items, check_value

Level = Literal["root", "item", "field"]

VALUE_KEYWORDS: Final = frozenset(
    {
        "format",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "maxProperties",
        "minProperties",
        "required",
        "enum",
        "allOf",
        "oneOf",
        "anyOf",
        "not",
        "properties",
        "items",
        "additionalProperties",
    }
)
SPINE_KEYWORDS: Final = VALUE_KEYWORDS | {
    "type",
    "description",
    "title",
    "default",
    "nullable",
    "example",
    "externalDocs",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
}
_MUST_BE_TYPED: Final[dict[Level, str]] = {
    "root": "must not be empty at the root",
    "item": "must not be empty for specified array items",
    "field": "must not be empty for specified object fields",
}
_INT_OR_STRING: Final = [{"type": "integer"}, {"type": "string"}]


def check_structural(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """The faults of the schema at `path` (``spec.validation.openAPIV3Schema``)."""
    yield from _check_spine(schema, "root", path, inside_embedded=True)


def _check_open_part(schema: Any, level: Level, path: str) -> Iterator[FieldError]:
    """``items`` and ``additionalProperties``: places where the CRD's own schema lets anything stand."""
    faults = shape_faults(schema, path)
    yield from faults
    if not faults:
        yield from _check_spine(schema, level, path)


def _check_spine(
    schema: Mapping[str, Any], level: Level, path: str, *, inside_embedded: bool = False
) -> Iterator[FieldError]:
    yield from _check_keywords(schema, SPINE_KEYWORDS, path)
    yield from _check_type(schema, level, path)
    yield from _check_extensions(schema, path)
    yield from _check_values(schema, path, is_spine=True)
    if "items" in schema:
        faults = list(_check_open_part(schema["items"], "item", f"{path}.items"))
        yield from faults or _check_list_type(schema, path)
    elif schema.get("type") == "array":
        yield field_errors.required(f"{path}.items", "must be specified")
    for name, part in schema.get("properties", {}).items():
        place = f"{path}.properties[{name}]"
        is_resource_field = inside_embedded or schema.get("x-kubernetes-embedded-resource", False)
        if is_resource_field and name == "metadata":
            yield from _check_metadata(part, level, place)
        elif is_resource_field and name in ("apiVersion", "kind") and part.get("type") != "string":
            yield field_errors.invalid(f"{place}.type", part.get("type", ""), "must be string")
        else:
            yield from _check_spine(part, "field", place)
    additional = schema.get("additionalProperties")
    if additional is not None:
        place = f"{path}.additionalProperties"
        if "properties" in schema:
            yield field_errors.forbidden(place, "additionalProperties and properties are mutual exclusive")
        if level == "root":
            yield field_errors.forbidden(place, "must not be used at the root")
        if additional is False:
            yield field_errors.forbidden(place, "additionalProperties cannot be set to false")
        elif additional is not True:
            yield from _check_open_part(additional, "field", place)


def _check_keywords(schema: Mapping[str, Any], allowed: frozenset[str], path: str) -> Iterator[FieldError]:
    for keyword in schema:
        if keyword in REFUSED_KEYWORDS:
            yield field_errors.forbidden(f"{path}.{keyword}", f"{keyword} is not supported")
        elif keyword not in allowed and keyword not in SPINE_KEYWORDS:
            yield field_errors.forbidden(f"{path}.{keyword}", "this keyword is unknown to the embedded API server")


def _check_type(schema: Mapping[str, Any], level: Level, path: str) -> Iterator[FieldError]:
    kind = schema.get("type")
    embedded = schema.get("x-kubernetes-embedded-resource", False)
    if kind is not None and kind not in TYPES:
        yield field_errors.not_supported(f"{path}.type", kind, TYPES)
    elif level == "root" and kind is not None and kind != "object":
        yield field_errors.invalid(f"{path}.type", kind, "must be object at the root")
    elif embedded and kind != "object":
        detail = "must be object if x-kubernetes-embedded-resource is true"
        yield (
            field_errors.required(f"{path}.type", detail)
            if kind is None
            else field_errors.invalid(f"{path}.type", kind, detail)
        )
    elif (
        kind is None
        and not schema.get("x-kubernetes-int-or-string")
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        yield field_errors.required(f"{path}.type", _MUST_BE_TYPED[level])
    if level == "root" and schema.get("nullable"):
        yield field_errors.forbidden(f"{path}.nullable", "nullable cannot be true at the root")


def _check_metadata(schema: Mapping[str, Any], level: Level, path: str) -> Iterator[FieldError]:
    if schema.get("type") != "object":
        yield field_errors.invalid(f"{path}.type", schema.get("type", ""), "must be object")
    named = set(schema.get("properties", {})) - {"name", "generateName"}
    extra = set(schema) - {"type", "properties", "description"}
    if level == "root" and (named or extra):
        detail = "must not specify anything other than name and generateName, but metadata is implicitly specified"
        yield field_errors.forbidden(path, detail)


def _check_extensions(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        yield field_errors.invalid(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true or undefined")
    if schema.get("x-kubernetes-int-or-string"):
        for other in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"):
            if schema.get(other):
                detail = "must be false if x-kubernetes-int-or-string is true"
                yield field_errors.invalid(f"{path}.{other}", True, detail)
    if schema.get("x-kubernetes-embedded-resource") and not (
        schema.get("properties") or schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        detail = (
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        )
        yield field_errors.required(f"{path}.properties", detail)
    map_type = schema.get("x-kubernetes-map-type")
    if map_type is not None:
        if map_type not in ("atomic", "granular"):
            yield field_errors.not_supported(f"{path}.x-kubernetes-map-type", map_type, ("atomic", "granular"))
        if schema.get("type") != "object":
            detail = "must be object if x-kubernetes-map-type is specified"
            yield field_errors.invalid(f"{path}.type", schema.get("type", ""), detail)
    if "x-kubernetes-list-type" in schema and "items" not in schema:
        yield from _check_list_type(schema, path)


def _check_list_type(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    list_type = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys", [])
    items = schema.get("items", {})
    if list_type is not None:
        if list_type not in ("atomic", "set", "map"):
            yield field_errors.not_supported(f"{path}.x-kubernetes-list-type", list_type, ("atomic", "set", "map"))
        if schema.get("type") != "array":
            detail = "must be array if x-kubernetes-list-type is specified"
            yield field_errors.invalid(f"{path}.type", schema.get("type", ""), detail)
        if list_type in ("set", "map") and items.get("nullable"):
            detail = f"cannot be nullable when x-kubernetes-list-type is {list_type}"
            yield field_errors.forbidden(f"{path}.items.nullable", detail)
    if list_type == "set":
        detail = "must be atomic as item of a list with x-kubernetes-list-type=set"
        if items.get("type") == "array" and items.get("x-kubernetes-list-type", "atomic") != "atomic":
            yield field_errors.invalid(f"{path}.items.x-kubernetes-list-type", items["x-kubernetes-list-type"], detail)
        if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
            yield field_errors.invalid(
                f"{path}.items.x-kubernetes-map-type", items.get("x-kubernetes-map-type"), detail
            )
    if keys and list_type != "map":
        detail = "must be map if x-kubernetes-list-map-keys is non-empty"
        yield field_errors.invalid(f"{path}.x-kubernetes-list-type", list_type or "", detail)
    if list_type == "map":
        yield from _check_map_keys(keys, items, path)


def _check_map_keys(keys: list[str], items: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    place = f"{path}.x-kubernetes-list-map-keys"
    if not keys:
        yield field_errors.required(place, "must not be empty if x-kubernetes-list-type is map")
    if items.get("type") != "object":
        detail = "must be object if parent array's x-kubernetes-list-type is map"
        yield field_errors.invalid(f"{path}.items.type", items.get("type", ""), detail)
    if len(set(keys)) != len(keys):
        yield field_errors.invalid(place, keys, "must not contain duplicate entries")
    fields = items.get("properties", {})
    for key in keys:
        field = f"{path}.items.properties[{key}]"
        if key not in fields:
            yield field_errors.invalid(place, keys, "entries must all be names of item properties")
            continue
        if fields[key].get("type") in ("array", "object"):
            detail = "must be a scalar type if parent array's x-kubernetes-list-type is map"
            yield field_errors.invalid(f"{field}.type", fields[key]["type"], detail)
        if key not in items.get("required", ()) and "default" not in fields[key]:
            detail = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            yield field_errors.required(f"{field}.default", detail)
        if fields[key].get("nullable"):
            detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"
            yield field_errors.forbidden(f"{field}.nullable", detail)


def _check_values(schema: Mapping[str, Any], path: str, *, is_spine: bool) -> Iterator[FieldError]:
    if schema.get("uniqueItems"):
        detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield field_errors.forbidden(f"{path}.uniqueItems", detail)
    for combinator in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(combinator, ())):
            place = f"{path}.{combinator}[{index}]"
            if is_spine and schema.get("x-kubernetes-int-or-string") and _is_int_or_string(schema, combinator, index):
                continue
            yield from _check_nested(part, place)
    if "not" in schema:
        yield from _check_nested(schema["not"], f"{path}.not")


def _is_int_or_string(schema: Mapping[str, Any], combinator: str, index: int) -> bool:
    if combinator == "anyOf":
        return bool(schema["anyOf"] == _INT_OR_STRING)
    return combinator == "allOf" and index == 0 and bool(schema["allOf"][0].get("anyOf") == _INT_OR_STRING)


def _check_nested(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    yield from _check_keywords(schema, VALUE_KEYWORDS, path)
    words = {"type": "must be empty", "title": "must be empty", "description": "must be empty"}
    words |= {"nullable": "must be false", "default": "must be undefined", "additionalProperties": "must be undefined"}
    for keyword in schema:
        if keyword in words:
            yield field_errors.forbidden(f"{path}.{keyword}", f"{words[keyword]} to be structural")
        elif keyword.startswith("x-kubernetes-"):
            yield field_errors.forbidden(f"{path}.{keyword}", "must be empty to be structural")
    if "metadata" in schema.get("properties", {}):
        yield field_errors.forbidden(f"{path}.properties[metadata]", "must not be specified in a nested context")
    yield from _check_values(schema, path, is_spine=False)
    if "items" in schema:
        faults = shape_faults(schema["items"], f"{path}.items")
        yield from faults or _check_nested(schema["items"], f"{path}.items")
    for name, part in schema.get("properties", {}).items():
        yield from _check_nested(part, f"{path}.properties[{name}]")


def check_defaults(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Defaults that the schema itself would refuse. The schema must be structural."""
    if "default" in schema:
        yield from _check_default(schema, path)
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), Mapping):
            yield from check_defaults(schema[keyword], f"{path}.{keyword}")
    for name, part in schema.get("properties", {}).items():
        yield from check_defaults(part, f"{path}.properties[{name}]")


def check_completeness(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Value rules about fields that the structure does not have: they would never see a value."""
    for combinator in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(combinator, ())):
            yield from _check_covered(part, schema, f"{path}.{combinator}[{index}]", path)
    if "not" in schema:
        yield from _check_covered(schema["not"], schema, f"{path}.not", path)
    if isinstance(schema.get("items"), Mapping):
        yield from check_completeness(schema["items"], f"{path}.items")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from check_completeness(schema["additionalProperties"], f"{path}.additionalProperties")
    for name, part in schema.get("properties", {}).items():
        yield from check_completeness(part, f"{path}.properties[{name}]")


def _check_covered(
    nested: Mapping[str, Any], spine: Mapping[str, Any], path: str, spine_path: str
) -> Iterator[FieldError]:
    for name, part in nested.get("properties", {}).items():
        place = f"{spine_path}.properties[{name}]"
        if name not in spine.get("properties", {}):
            if not isinstance(spine.get("additionalProperties"), Mapping):
                detail = f"because it is defined in {path}.properties[{name}]"
                yield field_errors.required(place, detail)
        else:
            yield from _check_covered(part, spine["properties"][name], f"{path}.properties[{name}]", place)
    if isinstance(nested.get("items"), Mapping):
        if not isinstance(spine.get("items"), Mapping):
            yield field_errors.required(f"{spine_path}.items", f"because it is defined in {path}.items")
        else:
            yield from _check_covered(nested["items"], spine["items"], f"{path}.items", f"{spine_path}.items")
    for combinator in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(nested.get(combinator, ())):
            yield from _check_covered(part, spine, f"{path}.{combinator}[{index}]", spine_path)


def _check_default(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    place = f"{path}.default"
    value = schema["default"]
    node = SchemaNode(schema, builtin_definitions())
    for unknown in find_unknown_fields(node, value):
        yield field_errors.invalid(place, value, f"must not have unknown fields: {unknown}")
    completed = default_value(node, value)
    yield from check_value(node, completed, place)
    yield from check_unique_items(node, completed, place)


def lint(schema: Mapping[str, Any], path: str) -> list[FieldError]:
    """All of it, for a schema that the embedded server can honour."""
    faults = list(check_structural(schema, path))
    return faults or [*check_completeness(schema, path), *check_defaults(schema, path)]
