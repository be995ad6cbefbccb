"""Sets of fields of an object, and their encoding in ``metadata.managedFields`` (FieldsV1).

An element of a path is written as FieldsV1 writes it: ``f:spec`` a field, ``k:{"name":"app"}`` the item of a keyed
list, ``v:"x"`` the item of a set, ``i:0`` an index. A `FieldSet` holds the elements that are members at its level and,
below each element, the set that lies under it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from devcluster.errors import EmbeddedError

Path = tuple[str, ...]


class InvalidFieldSet(EmbeddedError):
    """Not FieldsV1."""


class FieldSet:
    """A set of paths. Methods give new sets; only `insert` changes one."""

    __slots__ = ("children", "members")

    def __init__(self, members: Iterable[str] = (), children: Mapping[str, FieldSet] | None = None) -> None:
        self.members: set[str] = set(members)
        self.children: dict[str, FieldSet] = dict(children or {})

    def __bool__(self) -> bool:
        return bool(self.members) or bool(self.children)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSet) and self.members == other.members and self.children == other.children

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FieldSet({', '.join(format_path(path) for path in self.paths())})"

    def insert(self, path: Sequence[str]) -> None:
        """Adds a path; the empty one (the object itself) is never a member."""
        if not path:
            return
        level = self
        for element in path[:-1]:
            level = level.children.setdefault(element, FieldSet())
        level.members.add(path[-1])

    def has(self, path: Sequence[str]) -> bool:
        level = self
        for element in path[:-1]:
            if element not in level.children:
                return False
            level = level.children[element]
        return bool(path) and path[-1] in level.members

    def under(self, element: str) -> FieldSet:
        """What lies below an element; empty when nothing does."""
        return self.children.get(element, EMPTY)

    def union(self, other: FieldSet) -> FieldSet:
        children = dict(self.children)
        for element, below in other.children.items():
            children[element] = children[element].union(below) if element in children else below
        return FieldSet(self.members | other.members, children)

    def difference(self, other: FieldSet) -> FieldSet:
        children: dict[str, FieldSet] = {}
        for element, below in self.children.items():
            rest = below.difference(other.children[element]) if element in other.children else below
            if rest:
                children[element] = rest
        return FieldSet(self.members - other.members, children)

    def intersection(self, other: FieldSet) -> FieldSet:
        children: dict[str, FieldSet] = {}
        for element, below in self.children.items():
            if element in other.children and (common := below.intersection(other.children[element])):
                children[element] = common
        return FieldSet(self.members & other.members, children)

    def paths(self, prefix: Path = ()) -> Iterator[Path]:
        """Every path, sorted."""
        for element in sorted(self.members | set(self.children)):
            if element in self.members:
                yield (*prefix, element)
            if element in self.children:
                yield from self.children[element].paths((*prefix, element))

    def encode(self) -> dict[str, Any]:
        """As FieldsV1."""
        encoded: dict[str, Any] = {}
        for element in sorted(self.members | set(self.children)):
            if element not in self.children:
                encoded[element] = {}
            else:
                below = self.children[element].encode()
                encoded[element] = {".": {}, **below} if element in self.members else below
        return encoded


EMPTY = FieldSet()


def decode_fields(encoded: Any) -> FieldSet:
    """A FieldsV1 value as a set. Elements of a kind that is not known are left out. Raises `InvalidFieldSet`."""
    if not isinstance(encoded, dict):
        raise InvalidFieldSet("fieldsV1 must be an object")
    result = FieldSet()
    for key, below in encoded.items():
        if key == ".":
            continue
        element = _normalise(key)
        if element is None:
            continue
        if not isinstance(below, dict):
            raise InvalidFieldSet(f"fieldsV1 must hold objects only, not {below!r}")
        inner = decode_fields(below)
        if not inner or "." in below:
            result.members.add(element)
        if inner:
            result.children[element] = inner
    return result


def _normalise(key: str) -> str | None:
    kind, _, content = key.partition(":")
    try:
        match kind:
            case "f" | "i":
                return key
            case "v":
                return value_element(json.loads(content))
            case "k":
                return key_element(json.loads(content).items())
            case _:
                return None
    except (ValueError, AttributeError) as error:
        raise InvalidFieldSet(f"invalid path element {key!r}") from error


def field_element(name: str) -> str:
    return f"f:{name}"


def value_element(value: Any) -> str:
    return f"v:{_compact(value)}"


def key_element(pairs: Iterable[tuple[str, Any]]) -> str:
    return f"k:{_compact(dict(sorted(pairs)))}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def format_path(path: Sequence[str]) -> str:
    """A path as messages show it: ``.spec.template.spec.containers[name="app"].image``."""
    return "".join(_format(element) for element in path)


def _format(element: str) -> str:
    kind, _, content = element.partition(":")
    match kind:
        case "f":
            return f".{content}"
        case "k":
            pairs = json.loads(content).items()
            return "[" + ",".join(f"{name}={_compact(value)}" for name, value in pairs) + "]"
        case "v":
            return f"[={content}]"
        case _:
            return f"[{content}]"
