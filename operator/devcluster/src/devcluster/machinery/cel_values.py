"""How the fields of an object appear to CEL rules.

An object's fields are reached under escaped names (``a-b`` as ``a__dash__b``), numbers of type ``number`` are doubles
even when written as ``1``, and strings of some formats are times or durations. A value that needs none of this is
handed over as it is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from devcluster.machinery.schema_node import SchemaNode

Converter = Callable[[Any], Any]

_RESERVED: Final = frozenset(
    {
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
    }
)
_ESCAPES: Final = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}
_ESCAPED: Final = re.compile(r"__|[.\-/]")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def escape_name(name: str) -> str | None:
    """The name under which rules reach a field, or None for a field that they cannot reach."""
    if name in _RESERVED:
        return f"__{name}__"
    escaped = _ESCAPED.sub(lambda match: _ESCAPES[match.group()], name)
    return escaped if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", escaped) else None


def converter_of(node: SchemaNode, *, is_root: bool = False) -> Converter | None:
    """The function that makes a value ready for rules; None when values of this schema need no change."""
    if is_root:
        return _root_converter(node)
    match node.type:
        case "object" if node.additional is not None:
            return _map_converter(converter_of(node.additional))
        case "object":
            return _object_converter(node)
        case "array" if node.items is not None:
            return _list_converter(converter_of(node.items))
        case "number":
            return lambda value: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        case "string" if node.format in _FORMATS:
            return _guarded(_FORMATS[node.format])
        case _:
            return None


def _root_converter(node: SchemaNode) -> Converter:
    inner = _object_converter(node, skip="metadata")

    def convert(value: Any) -> Any:
        metadata = value.get("metadata", {})
        reachable = {name: metadata[name] for name in ("name", "generateName") if name in metadata}
        return {**(inner(value) if inner else value), "metadata": reachable}

    return convert


def _object_converter(node: SchemaNode, skip: str = "") -> Converter | None:
    fields: dict[str, tuple[str, Converter | None]] = {}
    is_plain = True
    for name, child in node.properties.items():
        if name == skip:
            continue
        escaped = escape_name(name) or name
        convert = converter_of(child)
        is_plain = is_plain and escaped == name and convert is None
        fields[name] = (escaped, convert)
    if is_plain:
        return None

    def convert_object(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        result = {}
        for name, item in value.items():
            escaped, change = fields.get(name, (name, None))
            result[escaped] = change(item) if change else item
        return result

    return convert_object


def _map_converter(inner: Converter | None) -> Converter | None:
    if inner is None:
        return None
    return lambda value: {name: inner(item) for name, item in value.items()} if isinstance(value, dict) else value


def _list_converter(inner: Converter | None) -> Converter | None:
    if inner is None:
        return None
    return lambda value: [inner(item) for item in value] if isinstance(value, list) else value


def _guarded(parse: Callable[[str], Any]) -> Converter:
    def convert(value: Any) -> Any:
        try:
            return parse(value)
        except (TypeError, ValueError):
            return value

    return convert


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _parse_date(text: str) -> datetime:
    day = date.fromisoformat(text)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _parse_duration(text: str) -> timedelta:
    unsigned = text.lstrip("+-")
    parts = _DURATION_PART.findall(unsigned)
    if unsigned != "0" and "".join(number + unit for number, unit in parts) != unsigned:
        raise ValueError(text)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return timedelta(seconds=-seconds if text.startswith("-") else seconds)


_FORMATS: Final[dict[str | None, Callable[[str], Any]]] = {
    "date-time": _parse_time,
    "datetime": _parse_time,
    "date": _parse_date,
    "duration": _parse_duration,
    "byte": base64.b64decode,
}


def align_order(node: SchemaNode, old: Any, new: Any) -> Any:
    """`old` with the items of sets and keyed lists in the order of `new`.

    CEL compares such lists without regard to order; the library does not know that they are sets.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        result = {}
        for name, item in old.items():
            child = node.field(name)
            result[name] = item if child is None or name not in new else align_order(child, item, new[name])
        return result
    if isinstance(old, list) and isinstance(new, list) and node.items is not None:
        if node.list_type == "set":
            places = {repr(item): index for index, item in enumerate(new)}
            return sorted(old, key=lambda item: places.get(repr(item), len(places)))
        if node.list_type == "map":
            keys = {repr(node.key_of(item)): (index, item) for index, item in enumerate(new) if isinstance(item, dict)}
            last = (len(keys), None)
            ordered = sorted(old, key=lambda item: keys.get(repr(node.key_of(item)), last)[0])
            return [align_order(node.items, item, keys.get(repr(node.key_of(item)), (0, item))[1]) for item in ordered]
    return old


def is_ascii(value: Any) -> bool:
    """Whether all text in a value is ASCII."""
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, dict):
        return all(name.isascii() and is_ascii(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(is_ascii, value))
    return True
