"""Objects seen through their schema, as field ownership needs it: what are the fields, what changed, how to merge.

The unit of ownership is a leaf: a scalar, or a list or map that the schema calls atomic. Where the schema says nothing,
maps are taken apart and lists are atomic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from devcluster.errors import EmbeddedError
from devcluster.machinery.field_sets import (
    FieldSet,
    Path,
    field_element,
    key_element,
    value_element,
)
from devcluster.machinery.go_values import copy_json, equal_json
from devcluster.machinery.schema_node import SchemaNode

Shape = Literal["leaf", "map", "list"]
ABSENT: Final[Any] = object()


class InvalidApplyConfiguration(EmbeddedError):
    """An applied object cannot be read through its schema: a keyed list has items without key, or twice the same."""


def shape_of(node: SchemaNode | None, value: Any) -> Shape:
    """How ownership sees this value."""
    if isinstance(value, dict):
        return "leaf" if node is not None and node.map_atomic else "map"
    if isinstance(value, list):
        return "list" if node is not None and node.list_type != "atomic" else "leaf"
    return "leaf"


def _child(node: SchemaNode | None, name: str) -> SchemaNode | None:
    return None if node is None else node.field(name)


def _is_named(node: SchemaNode | None, name: str) -> bool:
    return node is not None and name in node.properties


def item_element(node: SchemaNode, item: Any) -> str:
    """The path element of a list's item. Raises `InvalidApplyConfiguration` when it has no key."""
    if node.list_type == "set":
        return value_element(item)
    pairs = node.key_of(item) if isinstance(item, dict) else None
    if pairs is None:
        keys = ", ".join(node.list_map_keys)
        raise InvalidApplyConfiguration(
            f"associative list with keys has an element that omits all of its keys ({keys})"
        )
    return key_element(pairs)


def fields_of(node: SchemaNode | None, value: Any) -> FieldSet:
    """Every field of a value."""
    found = FieldSet()
    match shape_of(node, value):
        case "map":
            for name, item in value.items():
                child = _child(node, name)
                element = field_element(name)
                if shape_of(child, item) == "leaf" or item == {} or not _is_named(node, name):
                    found.members.add(element)
                if below := fields_of(child, item):
                    found.children[element] = below
        case "list":
            assert node is not None
            seen: set[str] = set()
            for item in value:
                element = item_element(node, item)
                found.members.add(element)
                if element in seen:
                    found.children.pop(element, None)
                elif below := fields_of(node.items, item):
                    found.children[element] = below
                seen.add(element)
        case "leaf":
            pass
    return found


def check_keys(node: SchemaNode | None, value: Any, path: str = "") -> None:
    """Raises `InvalidApplyConfiguration` when a set or keyed list names the same item twice."""
    match shape_of(node, value):
        case "map":
            for name, item in value.items():
                check_keys(_child(node, name), item, f"{path}.{name}")
        case "list":
            assert node is not None
            seen: set[str] = set()
            for item in value:
                element = item_element(node, item)
                if element in seen:
                    raise InvalidApplyConfiguration(f"{path}: duplicate entries for key {element.partition(':')[2]}")
                seen.add(element)
                check_keys(node.items, item, path)
        case "leaf":
            pass


@dataclass(kw_only=True)
class Comparison:
    """What one object has and another has not. No field is in more than one of the sets."""

    added: FieldSet = field(default_factory=FieldSet)
    removed: FieldSet = field(default_factory=FieldSet)
    modified: FieldSet = field(default_factory=FieldSet)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)


def compare(node: SchemaNode | None, before: Any, after: Any) -> Comparison:
    """The change from one value to the other."""
    result = Comparison()
    _compare(node, before, after, (), result)
    return result


def _compare(node: SchemaNode | None, before: Any, after: Any, path: Path, result: Comparison) -> None:
    if before is not ABSENT and after is not ABSENT and before is not None and before is after:
        return
    shapes: list[Shape] = []
    if before is not ABSENT:
        shapes.append(shape_of(node, before))
    if after is not ABSENT and shape_of(node, after) not in shapes:
        shapes.append(shape_of(node, after))
    is_leaf = False
    for shape in shapes:
        is_leaf = _compare_as(shape, node, before, after, path, result)
    if not is_leaf:
        if before is ABSENT:
            result.added.insert(path)
        elif after is ABSENT:
            result.removed.insert(path)


def _compare_as(shape: Shape, node: SchemaNode | None, before: Any, after: Any, path: Path, result: Comparison) -> bool:
    """Compares both values as if they had this shape; True when they were taken as one leaf."""
    if shape != "leaf" and (before if before is not ABSENT else None) in ({}, [], None) and after in ({}, [], None):
        shape = "leaf"
    if shape == "leaf":
        if before is ABSENT:
            result.added.insert(path)
        elif after is ABSENT:
            result.removed.insert(path)
        elif not equal_json(before, after):
            result.modified.insert(path)
        return True
    if shape == "map":
        left = before if isinstance(before, dict) else {}
        right = after if isinstance(after, dict) else {}
        for name in [*left, *(name for name in right if name not in left)]:
            _compare(
                _child(node, name),
                left.get(name, ABSENT),
                right.get(name, ABSENT),
                (*path, field_element(name)),
                result,
            )
        return False
    assert node is not None
    _compare_lists(
        node, before if isinstance(before, list) else [], after if isinstance(after, list) else [], path, result
    )
    return False


def _compare_lists(node: SchemaNode, before: list[Any], after: list[Any], path: Path, result: Comparison) -> None:
    left = _by_element(node, before)
    right = _by_element(node, after)
    for element in [*left, *(element for element in right if element not in left)]:
        old, new = left.get(element, []), right.get(element, [])
        place = (*path, element)
        if len(old) <= 1 and len(new) <= 1:
            _compare(node.items, old[0] if old else ABSENT, new[0] if new else ABSENT, place, result)
        elif len(old) >= 2 and len(new) >= 2:
            if not equal_json(old, new):
                result.modified.insert(place)
        elif len(old) >= 2:
            if new:
                _compare(node.items, ABSENT, new[0], place, result)
            result.removed.insert(place)
        else:
            if old:
                _compare(node.items, old[0], ABSENT, place, result)
            result.added.insert(place)


def _by_element(node: SchemaNode, items: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(item_element(node, item), []).append(item)
    return found


def merge(node: SchemaNode | None, live: Any, config: Any) -> Any:
    """`config` laid over `live`: leaves of the configuration win, everything else stays."""
    shape = shape_of(node, config)
    if live is ABSENT or shape != shape_of(node, live) or shape == "leaf":
        return copy_json(config)
    if shape == "map":
        if not live and not config:
            return {}
        merged = {
            name: merge(_child(node, name), item, config[name]) if name in config else copy_json(item)
            for name, item in live.items()
        }
        merged.update({name: copy_json(item) for name, item in config.items() if name not in live})
        return merged
    assert node is not None
    return _merge_lists(node, live, config)


def _merge_lists(node: SchemaNode, live: list[Any], config: list[Any]) -> list[Any]:
    """Items of both lists, those of the configuration in its order, the others where they stood."""
    left = [item_element(node, item) for item in live]
    right = [item_element(node, item) for item in config]
    ours: dict[str, Any] = {}
    for element, item in zip(left, live, strict=True):
        ours[element] = ABSENT if element in ours else item  # duplicates are not merged into
    theirs = dict(zip(right, config, strict=True))
    shared = iter([element for element in right if element in ours])
    next_shared = next(shared, None)
    done: set[str] = set()
    merged: list[Any] = []
    l_index = r_index = 0
    while l_index < len(left) or r_index < len(right):
        if l_index < len(left) and r_index < len(right):
            element = left[l_index]
            if element == right[r_index]:
                done.add(element)
                merged.append(merge(node.items, ours[element], theirs[element]))
                l_index += 1
                r_index += 1
                next_shared = next(shared, None)
                continue
            if element in theirs and next_shared is not None and next_shared != element:
                l_index += 1
                continue
        if l_index < len(left):
            element = left[l_index]
            if element not in theirs:
                merged.append(copy_json(live[l_index]))
                l_index += 1
                continue
            if element in done:
                l_index += 1
        if r_index < len(right):
            element = right[r_index]
            done.add(element)
            merged.append(merge(node.items, ours.get(element, ABSENT), theirs[element]))
            r_index += 1
            if next_shared == element:
                next_shared = next(shared, None)
    return merged


def remove_fields(node: SchemaNode | None, value: Any, unwanted: FieldSet) -> Any:
    """A copy of `value` without the fields of a set; ABSENT when a map or list has nothing left."""
    shape = shape_of(node, value)
    if not unwanted or shape == "leaf":
        return copy_json(value)
    if shape == "map":
        kept: dict[str, Any] = {}
        for name, item in value.items():
            element = field_element(name)
            if element in unwanted.members:
                continue
            rest = remove_fields(_child(node, name), item, unwanted.under(element))
            if rest is not ABSENT:
                kept[name] = rest
        return kept if kept or not value else ABSENT
    assert node is not None
    items = [
        remove_fields(node.items, item, unwanted.under(element))
        for item, element in ((item, item_element(node, item)) for item in value)
        if element not in unwanted.members
    ]
    rest = [item for item in items if item is not ABSENT]
    return rest if rest or not value else ABSENT


def with_named_fields(node: SchemaNode | None, fields: FieldSet) -> FieldSet:
    """The set, and with every path also the named fields on the way to it."""
    members = set(fields.members)
    children: dict[str, FieldSet] = {}
    for element, below in fields.children.items():
        kind, _, name = element.partition(":")
        if kind == "f":
            if _is_named(node, name):
                members.add(element)
            child = _child(node, name)
        else:
            child = None if node is None else node.items
        children[element] = with_named_fields(child, below)
    return FieldSet(members, children)


def iterate_conflicts(fields: FieldSet) -> Iterator[Path]:
    yield from fields.paths()
