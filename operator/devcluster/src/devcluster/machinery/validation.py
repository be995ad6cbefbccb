"""Checking a value against a schema: types, bounds, patterns, combinations, unique list keys.

Messages have the wording of a Kubernetes API server, since kubectl shows them as they are. Rules in CEL are checked
elsewhere (`cel`), and only when what is found here does not stand in the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from devcluster.machinery import field_errors, formats
from devcluster.machinery.field_errors import FieldError, Reason, go_quote, render_number
from devcluster.machinery.go_values import equal_json, type_name
from devcluster.machinery.quantities import InvalidQuantity, parse_quantity
from devcluster.machinery.schema_node import SchemaNode

ABSENT: Final[Any] = object()
"""No old value to compare with: everything is checked."""

WHOLE_OBJECT: Final = "<nil>"
"""The path that an API server prints for faults that it cannot place at one field."""

BLOCKING_REASONS: Final = frozenset(
    {Reason.NOT_SUPPORTED, Reason.REQUIRED, Reason.TOO_LONG, Reason.TOO_MANY, Reason.TYPE_INVALID}
)
"""While an object has a fault of these, its CEL rules are not evaluated."""


def check_value(node: SchemaNode, value: Any, path: str, old: Any = ABSENT) -> Iterator[FieldError]:
    """The faults of `value`. Parts that equal their counterpart in `old` are taken as they are (ratcheting)."""
    if old is not ABSENT and equal_json(value, old):
        return
    if value is None:
        if not node.nullable and (node.type is not None or node.int_or_string):
            yield _wrong_type(node, value, path)
        yield from _check_enum(node, value, path)
        return
    if not _has_type(node, value):
        yield _wrong_type(node, value, path)
    yield from _check_combinations(node, value, path)
    match value:
        case str():
            yield from _check_string(node, value, path)
        case bool():
            pass
        case int() | float():
            yield from _check_number(node, value, path)
        case list():
            yield from _check_list(node, value, path, old)
    yield from _check_enum(node, value, path)
    if isinstance(value, dict):
        yield from _check_object(node, value, path, old)


def _has_type(node: SchemaNode, value: Any) -> bool:
    if node.int_or_string:
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    match node.type:
        case None:
            return True
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def _wrong_type(node: SchemaNode, value: Any, path: str) -> FieldError:
    wanted = "integer,string" if node.int_or_string else node.type
    found = type_name(value)
    return field_errors.type_invalid(path, found, f"{path} in body must be of type {wanted}: {go_quote(found)}")


def _check_enum(node: SchemaNode, value: Any, path: str) -> Iterator[FieldError]:
    if node.enum is None or any(equal_json(value, allowed) for allowed in node.enum):
        return
    yield field_errors.not_supported(path, value, node.enum)


def _check_string(node: SchemaNode, value: str, path: str) -> Iterator[FieldError]:
    length = len(value)
    if node.max_length is not None and length > node.max_length:
        yield field_errors.too_long(path, node.max_length)
    elif node.min_length is not None and length < node.min_length:
        detail = f"{path} in body should be at least {node.min_length} chars long"
        yield field_errors.invalid(path, value, detail)
    elif node.pattern is not None and not node.pattern.search(value):
        yield field_errors.invalid(path, value, f"{path} in body should match '{node.raw['pattern']}'")
    if node.is_quantity:
        try:
            parse_quantity(value)
        except InvalidQuantity as error:
            yield field_errors.invalid(path, value, str(error))
    if node.format is not None and not formats.is_valid(node.format, value):
        detail = f"{path} in body must be of type {node.format}: {go_quote(value)}"
        yield field_errors.type_invalid(path, value, detail)


def _check_number(node: SchemaNode, value: float, path: str) -> Iterator[FieldError]:
    if node.format in formats.INTEGER_RANGES and node.type == "integer":
        low, high = formats.INTEGER_RANGES[node.format]
        if not low <= value <= high:
            detail = f"Checked value must be of type integer with format {node.format} in {path}"
            yield field_errors.invalid(WHOLE_OBJECT, "", detail)
    if node.multiple_of is not None and not float(value / node.multiple_of).is_integer():
        detail = f"{path} in body should be a multiple of {render_number(node.multiple_of)}"
        yield field_errors.invalid(path, value, detail)
    if node.minimum is not None and (value < node.minimum or (node.exclusive_minimum and value == node.minimum)):
        words = "greater than" if node.exclusive_minimum else "greater than or equal to"
        detail = f"{path} in body should be {words} {render_number(node.minimum)}"
        yield field_errors.invalid(path, value, detail)
    if node.maximum is not None and (value > node.maximum or (node.exclusive_maximum and value == node.maximum)):
        words = "less than" if node.exclusive_maximum else "less than or equal to"
        detail = f"{path} in body should be {words} {render_number(node.maximum)}"
        yield field_errors.invalid(path, value, detail)


def _check_list(node: SchemaNode, value: list[Any], path: str, old: Any) -> Iterator[FieldError]:
    if node.items is not None:
        counterparts = _old_items(node, old)
        for index, item in enumerate(value):
            before = ABSENT
            if counterparts is not None and isinstance(item, dict):
                before = counterparts.get(node.key_of(item), ABSENT)
            yield from check_value(node.items, item, f"{path}[{index}]", before)
    if node.min_items is not None and len(value) < node.min_items:
        detail = f"{path} in body should have at least {node.min_items} items"
        yield field_errors.invalid(path, len(value), detail)
    if node.max_items is not None and len(value) > node.max_items:
        yield field_errors.too_many(path, len(value), node.max_items)


def _old_items(node: SchemaNode, old: Any) -> dict[Any, Any] | None:
    if node.list_type != "map" or not isinstance(old, list):
        return None
    return {node.key_of(item): item for item in old if isinstance(item, dict)}


def _check_object(node: SchemaNode, value: dict[str, Any], path: str, old: Any) -> Iterator[FieldError]:
    prefix = f"{path}." if path else ""
    if node.min_properties is not None and len(value) < node.min_properties:
        detail = f"{path} in body should have at least {node.min_properties} properties"
        yield field_errors.invalid(path, len(value), detail)
    if node.max_properties is not None and len(value) > node.max_properties:
        yield field_errors.too_many(path, len(value), node.max_properties)
    for field, item in value.items():
        child = node.field(field)
        if child is not None:
            before = old.get(field, ABSENT) if isinstance(old, dict) else ABSENT
            yield from check_value(child, item, f"{prefix}{field}", before)
    for field in node.required:
        if field not in value:
            yield field_errors.required(f"{prefix}{field}")


def _check_combinations(node: SchemaNode, value: Any, path: str) -> Iterator[FieldError]:
    place = go_quote(path)
    if node.any_of:
        results = [list(check_value(part, value, path)) for part in node.any_of]
        if all(results):
            yield _unplaced(f"{place} must validate at least one schema (anyOf)")
            yield from results[0]
    if node.one_of:
        results = [list(check_value(part, value, path)) for part in node.one_of]
        valid = sum(not faults for faults in results)
        if valid != 1:
            found = f"Found {valid} valid alternatives" if valid else "Found none valid"
            yield _unplaced(f"{place} must validate one and only one schema (oneOf). {found}")
            if not valid:
                yield from results[0]
    if node.all_of:
        results = [list(check_value(part, value, path)) for part in node.all_of]
        for faults in results:
            yield from faults
        if any(results):
            suffix = ". None validated" if all(results) else ""
            yield _unplaced(f"{place} must validate all the schemas (allOf){suffix}")
    if node.not_ is not None and not any(True for _fault in check_value(node.not_, value, path)):
        yield _unplaced(f"{place} must not validate the schema (not)")


def _unplaced(detail: str) -> FieldError:
    return field_errors.invalid(WHOLE_OBJECT, "", detail)


def check_unique_items(node: SchemaNode, value: Any, path: str) -> Iterator[FieldError]:
    """Duplicates in lists of type ``set``, and items with the same keys in lists of type ``map``."""
    if isinstance(value, dict):
        for field, item in value.items():
            if isinstance(item, (dict, list)) and (child := node.field(field)) is not None:
                free = field not in node.properties
                yield from check_unique_items(child, item, _join(path, field, free_key=free))
    elif isinstance(value, list):
        if node.list_type == "set":
            yield from (field_errors.duplicate(f"{path}[{index}]", value[index]) for index in _repeated(value))
        elif node.list_type == "map":
            yield from _check_map_list(node, value, path)
        if node.items is not None:
            for index, item in enumerate(value):
                if isinstance(item, (dict, list)):
                    yield from check_unique_items(node.items, item, f"{path}[{index}]")


def _check_map_list(node: SchemaNode, value: list[Any], path: str) -> Iterator[FieldError]:
    for index, item in enumerate(value):
        if item is not None and not isinstance(item, dict):
            detail = "must be an object for an array of list-type map"
            yield field_errors.invalid(f"{path}[{index}]", item, detail)
            return
    keys = [{name: item[name] for name in node.list_map_keys if name in item} if item else {} for item in value]
    for index in _repeated(keys):
        yield field_errors.duplicate(f"{path}[{index}]", keys[index])


def _repeated(items: list[Any]) -> Iterator[int]:
    """The index of the second of every value that occurs more than once."""
    times: dict[str, int] = {}
    for index, item in enumerate(items):
        text = json.dumps(item, sort_keys=True)
        times[text] = times.get(text, 0) + 1
        if times[text] == 2:
            yield index


def _join(path: str, field: str, *, free_key: bool) -> str:
    if free_key:
        return f"{path}[{field}]"
    return f"{path}.{field}" if path else field
