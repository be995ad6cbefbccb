"""Strategic merge patch: a merge patch that knows which lists have keys.

What a field's list does comes from its schema (``x-kubernetes-patch-strategy``, ``x-kubernetes-patch-merge-key``); the
patch steers it with directives: ``$patch``, ``$setElementOrder/<list>``, ``$deleteFromPrimitiveList/<list>`` and
``$retainKeys``. Called by `kubectl apply`, `edit`, `patch`, `label` and others, on built-in kinds only: a custom
resource has no such schema, and the server answers 415.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from devcluster.machinery.go_values import copy_json, equal_json
from devcluster.machinery.patch_errors import PatchError
from devcluster.machinery.schema import StructuralSchema
from devcluster.machinery.schema_node import SchemaNode

_DIRECTIVE: Final = "$patch"
_RETAIN_KEYS: Final = "$retainKeys"
_ELEMENT_ORDER: Final = "$setElementOrder/"
_DELETE_FROM_LIST: Final = "$deleteFromPrimitiveList/"


def strategic_merge_patch(obj: dict[str, Any], patch: Any, schema: StructuralSchema) -> dict[str, Any]:
    """`obj` after the patch. Raises `PatchError` for a patch that is malformed or lacks a merge key."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch must be an object")
    return _merge_map(copy_json(obj), copy_json(patch), schema.root)


def _merge_map(original: dict[str, Any], patch: dict[str, Any], node: SchemaNode | None) -> dict[str, Any]:
    """Merges in place; both arguments belong to this module."""
    if _DIRECTIVE in patch:
        match patch.pop(_DIRECTIVE):
            case "replace":
                return patch
            case "delete":
                return {}
            case "merge":
                pass
            case other:
                raise PatchError(f"unknown patch type found: {other}")
    _retain_keys(original, patch)
    _apply_element_orders(original, patch, node)
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM_LIST):
            field = key.removeprefix(_DELETE_FROM_LIST)
            if isinstance(original.get(field), list):
                original[field] = _without(original[field], _as_list(value, key))
            continue
        if value is None:
            original.pop(key, None)
            continue
        original[key] = _merge_value(original.get(key), value, None if node is None else node.field(key), key)
    return original


def _merge_value(original: Any, value: Any, node: SchemaNode | None, key: str) -> Any:
    strategies = frozenset() if node is None else node.patch_strategies
    if isinstance(original, dict) and isinstance(value, dict):
        return _clean(value) if "replace" in strategies else _merge_map(original, value, node)
    if isinstance(original, list) and isinstance(value, list) and "merge" in strategies:
        assert node is not None
        return _merge_list(original, value, node, key)
    return _clean(value)


def _clean(value: Any) -> Any:
    """What a patch value becomes when there is nothing to merge it into: no nulls, no directives."""
    if isinstance(value, dict):
        if value.get(_DIRECTIVE) == "delete":
            return {}
        return {
            key: _clean(item)
            for key, item in value.items()
            if item is not None
            and key not in (_DIRECTIVE, _RETAIN_KEYS)
            and not key.startswith((_ELEMENT_ORDER, _DELETE_FROM_LIST))
        }
    if isinstance(value, list):
        kept = [item for item in value if not (isinstance(item, dict) and item.get(_DIRECTIVE) == "delete")]
        return [_clean(item) for item in kept]
    return value


def _as_list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise PatchError(f"{key} must be a list")
    return value


def _without(items: list[Any], unwanted: list[Any]) -> list[Any]:
    return [item for item in items if not any(equal_json(item, other) for other in unwanted)]


def _retain_keys(original: dict[str, Any], patch: dict[str, Any]) -> None:
    kept = patch.pop(_RETAIN_KEYS, None)
    if kept is None:
        return
    names = set(_as_list(kept, _RETAIN_KEYS))
    for key, value in patch.items():
        if value is not None and not key.startswith((_ELEMENT_ORDER, _DELETE_FROM_LIST)) and key not in names:
            raise PatchError(f"patch {key!r} is not among its {_RETAIN_KEYS}: {sorted(names)}")
    for key in [key for key in original if key not in names]:
        del original[key]


def _apply_element_orders(original: dict[str, Any], patch: dict[str, Any], node: SchemaNode | None) -> None:
    """Merges the lists that come with an order, and takes list and order out of the patch."""
    for directive in [key for key in patch if key.startswith(_ELEMENT_ORDER)]:
        order = _as_list(patch.pop(directive), directive)
        field = directive.removeprefix(_ELEMENT_ORDER)
        child = None if node is None else node.field(field)
        before = original.get(field)
        change = patch.pop(field, None) if isinstance(patch.get(field), list) else None
        if change is None and before is None:
            continue
        if change is None:
            merged = before
        elif before is None:
            merged = _clean(change)
        else:
            merged = _merge_value(copy_json(before), change, child, field)
        if not isinstance(merged, list):
            continue
        identify = _identity(child, merged)
        named = {identify(item) for item in order}
        patch_items = [item for item in merged if identify(item) in named]
        server_items = [item for item in merged if identify(item) not in named]
        original[field] = _in_order(patch_items, server_items, order, before or [], identify)


def _identity(node: SchemaNode | None, items: list[Any]) -> Callable[[Any], Any]:
    merge_key = None if node is None else node.patch_merge_key
    if merge_key is None or not all(isinstance(item, dict) for item in items):
        return repr
    return lambda item: repr(item.get(merge_key)) if isinstance(item, dict) else repr(item)


def _merge_list(original: list[Any], patch: list[Any], node: SchemaNode, key: str) -> list[Any]:
    if not original and not patch:
        return original
    if not all(isinstance(item, dict) for item in [*original, *patch]):
        merged = list({repr(item): item for item in [*original, *patch]}.values())
        return _in_order(*_partition(merged, patch, repr), patch, original, repr)
    merge_key = node.patch_merge_key
    if merge_key is None:
        raise PatchError(f"cannot merge lists without merge key for {key}")
    before, changes = _list_directives(copy_json(original), patch, merge_key, key)
    merged = before
    for change in changes:
        if merge_key not in change:
            raise PatchError(f"map: {change} does not contain declared merge key: {merge_key}")
        position = next(
            (i for i, item in enumerate(merged) if equal_json(item.get(merge_key), change[merge_key])), None
        )
        if position is None:
            merged.append(_clean(change))
        else:
            merged[position] = _merge_map(merged[position], change, node.items)
    identify = _identity(node, merged)
    return _in_order(*_partition(merged, changes, identify), changes, original, identify)


def _list_directives(
    original: list[Any], patch: list[Any], merge_key: str, key: str
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Carries out ``$patch`` items: the list that remains, and the items of the patch that are plain."""
    plain: list[dict[str, Any]] = []
    replace = False
    for item in patch:
        directive = item.get(_DIRECTIVE)
        match directive:
            case None:
                plain.append(item)
            case "delete":
                if merge_key not in item:
                    raise PatchError(f"delete patch type with no merge key defined in {key}")
                original = [old for old in original if not equal_json(old.get(merge_key), item[merge_key])]
            case "replace":
                replace = True
            case "merge":
                raise PatchError(f"merging lists cannot yet be specified in the patch of {key}")
            case _:
                raise PatchError(f"unknown patch type found: {directive}")
    if replace:
        return [_clean(item) for item in plain], []
    return original, plain


def _partition(items: list[Any], reference: list[Any], identify: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
    known = {identify(item) for item in reference}
    return [i for i in items if identify(i) in known], [i for i in items if identify(i) not in known]


def _in_order(
    patch_items: list[Any],
    server_items: list[Any],
    patch_order: list[Any],
    server_order: list[Any],
    identify: Callable[[Any], Any],
) -> list[Any]:
    """The patch's items in the patch's order, the others woven in where they stood on the server."""
    wanted = {identify(item): index for index, item in reversed(list(enumerate(patch_order)))}
    stood = {identify(item): index for index, item in reversed(list(enumerate(server_order)))}
    right = sorted(patch_items, key=lambda item: wanted.get(identify(item), len(wanted)))
    left = sorted(server_items, key=lambda item: stood.get(identify(item), len(stood)))
    result: list[Any] = []
    while left and right:
        ours, theirs = stood.get(identify(left[0])), stood.get(identify(right[0]))
        first = left if ours is not None and theirs is not None and ours < theirs else right
        result.append(first.pop(0))
    return [*result, *left, *right]
