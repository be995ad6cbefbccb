"""Filling in defaults, spelling quantities in one way, taking away what a schema does not know.

Called through `schema.StructuralSchema`, and by `managed_fields` for what is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from devcluster.machinery.go_values import copy_json
from devcluster.machinery.quantities import canonical
from devcluster.machinery.schema_node import NO_DEFAULT, SchemaNode


def default_value(node: SchemaNode, value: Any) -> Any:
    """A copy of `value` with every default filled in and quantities in their stored spelling.

    A null where the schema does not allow one counts as absent: it becomes the default, or goes when there is none.
    """
    if isinstance(value, dict):
        filled: dict[str, Any] = {}
        for field, item in value.items():
            child = node.field(field)
            if child is None:
                filled[field] = copy_json(item)
            elif item is None and not child.nullable and not child.is_open:
                if child.default is not NO_DEFAULT:
                    filled[field] = default_value(child, child.default)
            else:
                filled[field] = default_value(child, item)
        for field, child in node.defaulted.items():
            if field not in value:
                filled[field] = default_value(child, child.default)
        return filled
    if isinstance(value, list):
        items = node.items
        if items is None:
            return copy_json(value)
        has_default = items.default is not NO_DEFAULT and not items.nullable
        return [default_value(items, items.default if item is None and has_default else item) for item in value]
    return canonical(value) if node.is_quantity else value


def spell_quantities(node: SchemaNode | None, value: Any) -> Any:
    """A copy of `value` with quantities in their stored spelling (``1000m`` as ``1``)."""
    if node is None:
        return copy_json(value)
    if isinstance(value, dict):
        return {field: spell_quantities(node.field(field), item) for field, item in value.items()}
    if isinstance(value, list):
        return [spell_quantities(node.items, item) for item in value]
    return canonical(value) if node.is_quantity else value


def prune_value(node: SchemaNode | None, value: Any) -> Any:
    """A copy of `value` without the fields that `node` does not know; `node` None knows none."""
    if isinstance(value, dict):
        if node is None:
            return {}
        kept: dict[str, Any] = {}
        for field, item in value.items():
            child = node.field(field)
            if child is not None:
                kept[field] = prune_value(child, item)
            elif node.is_open:
                kept[field] = copy_json(item)
        return kept
    if isinstance(value, list):
        if node is not None and node.is_open and node.items is None:
            return copy_json(value)
        items = None if node is None else node.items
        return [prune_value(items, item) for item in value]
    return value


def find_unknown_fields(node: SchemaNode | None, value: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that `prune_value` would take away, in the order of the object."""
    if isinstance(value, dict):
        for field, item in value.items():
            place = f"{path}.{field}" if path else field
            child = None if node is None else node.field(field)
            if child is not None:
                yield from find_unknown_fields(child, item, place)
            elif node is None or not node.is_open:
                yield place
    elif isinstance(value, list):
        if node is not None and node.is_open and node.items is None:
            return
        items = None if node is None else node.items
        for index, item in enumerate(value):
            yield from find_unknown_fields(items, item, f"{path}[{index}]")
