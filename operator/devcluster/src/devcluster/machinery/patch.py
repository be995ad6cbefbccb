"""The three patches that change an object as it stands: JSON patch, merge patch, strategic merge patch.

(Server-side apply, the fourth content type of a PATCH, is in `managed_fields`.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from devcluster.machinery.go_values import copy_json, equal_json
from devcluster.machinery.patch_errors import PatchError, PatchTestFailed
from devcluster.machinery.strategic_merge import strategic_merge_patch

__all__ = ["PatchError", "PatchTestFailed", "json_patch", "merge_patch", "strategic_merge_patch"]

_MISSING: Any = object()
_ARRAY_INDEX = re.compile(r"0|[1-9]\d*")


def json_patch(obj: dict[str, Any], ops: Sequence[Any]) -> dict[str, Any]:
    """`obj` after the operations of an RFC 6902 patch, all or none.

    Raises `PatchTestFailed` when a ``test`` does not hold, `PatchError` when an operation cannot be carried out.
    """
    if isinstance(ops, (str, bytes)) or not isinstance(ops, Sequence):
        raise PatchError("a JSON patch must be a list of operations")
    document: Any = copy_json(obj)
    for operation in ops:
        document = _apply(document, operation)
    if not isinstance(document, dict):
        raise PatchError("a JSON patch must leave an object")
    return document


def _apply(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise PatchError("an operation of a JSON patch must be an object")
    name = operation.get("op")
    path = _member(operation, "path", name)
    tokens = _parse_pointer(path)
    match name:
        case "add":
            return _add(document, tokens, copy_json(_member(operation, "value", name)), name, path)
        case "remove":
            return _remove(document, tokens, name, path)[0]
        case "replace":
            if not tokens:
                return copy_json(_member(operation, "value", name))
            _find(document, tokens, name, path)
            return _set(document, tokens, copy_json(_member(operation, "value", name)))
        case "move":
            source = _member(operation, "from", name)
            origin = _parse_pointer(source)
            if tokens[: len(origin)] == origin and len(tokens) > len(origin):
                raise PatchError(f"move operation does not apply: {source} cannot be moved into itself")
            document, value = _remove(document, origin, name, source)
            return _add(document, tokens, value, name, path)
        case "copy":
            source = _member(operation, "from", name)
            value = copy_json(_find(document, _parse_pointer(source), name, source))
            return _add(document, tokens, value, name, path)
        case "test":
            wanted = operation.get("value")
            found = _lookup(document, tokens)
            if (found is _MISSING and wanted is not None) or (found is not _MISSING and not equal_json(found, wanted)):
                raise PatchTestFailed(f"testing value {path} failed: test failed")
            return document
        case _:
            raise PatchError(f"Unexpected kind: {name if name is not None else 'unknown'}")


def _member(operation: dict[str, Any], member: str, name: Any) -> Any:
    if member not in operation:
        raise PatchError(f"{name} operation does not apply: it has no {member!r}")
    return operation[member]


def _parse_pointer(pointer: Any) -> list[str]:
    if not isinstance(pointer, str):
        raise PatchError("a path of a JSON patch must be a string")
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise PatchError(f"a path of a JSON patch must start with a slash: {pointer!r}")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def _step(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token, _MISSING)
    if isinstance(value, list) and _ARRAY_INDEX.fullmatch(token) and int(token) < len(value):
        return value[int(token)]
    return _MISSING


def _lookup(document: Any, tokens: Sequence[str]) -> Any:
    value = document
    for token in tokens:
        value = _step(value, token)
        if value is _MISSING:
            return _MISSING
    return value


def _find(document: Any, tokens: Sequence[str], name: str, path: str) -> Any:
    value = _lookup(document, tokens)
    if value is _MISSING:
        raise PatchError(f'{name} operation does not apply: doc is missing path: "{path}": missing value')
    return value


def _set(document: Any, tokens: Sequence[str], value: Any) -> Any:
    parent = _lookup(document, tokens[:-1])
    if isinstance(parent, list):
        parent[int(tokens[-1])] = value
    else:
        parent[tokens[-1]] = value
    return document


def _add(document: Any, tokens: Sequence[str], value: Any, name: str, path: str) -> Any:
    if not tokens:
        return value
    parent = _find(document, tokens[:-1], name, path)
    key = tokens[-1]
    if isinstance(parent, dict):
        parent[key] = value
    elif isinstance(parent, list):
        if key == "-":
            parent.append(value)
        elif _ARRAY_INDEX.fullmatch(key) and int(key) <= len(parent):
            parent.insert(int(key), value)
        else:
            raise PatchError(f'{name} operation does not apply: doc is missing path: "{path}": index out of bounds')
    else:
        raise PatchError(f'{name} operation does not apply: doc is missing path: "{path}": missing value')
    return document


def _remove(document: Any, tokens: Sequence[str], name: str, path: str) -> tuple[Any, Any]:
    value = _find(document, tokens, name, path)
    if not tokens:
        return None, value
    parent = _lookup(document, tokens[:-1])
    if isinstance(parent, list):
        del parent[int(tokens[-1])]
    else:
        del parent[tokens[-1]]
    return document, value


def merge_patch(obj: dict[str, Any], patch: Any) -> dict[str, Any]:
    """`obj` after an RFC 7386 merge patch: null takes a field away, lists are replaced whole.

    Raises `PatchError` when the patch is no object.
    """
    if not isinstance(patch, dict):
        raise PatchError("a merge patch must be an object")
    merged: dict[str, Any] = _merge(obj, patch)
    return merged


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy_json(patch)
    base = target if isinstance(target, dict) else {}
    result = {key: copy_json(value) for key, value in base.items() if key not in patch}
    merged = {key: _merge(base.get(key), value) for key, value in patch.items() if value is not None}
    return {key: merged.get(key, result.get(key)) for key in [*base, *patch] if key in merged or key in result}
