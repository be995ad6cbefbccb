"""JSON as the engine accepts it: what a handler returned becomes text, or a refusal that names the place of the fault.

Values that JSON has no type for are encoded as pydantic encodes them: dates and times in ISO 8601, UUIDs, decimals and
paths as text, enumerations as their value, sets as arrays, models and dataclasses as objects.

The text is stored as it is. What its readers may refuse is refused here: no NaN, no NUL character, no lone surrogate.
One walk finds all of that with its path before anything is sent, so that one bad result can never hold up a batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

MAX_BYTES = 1024 * 1024  # of a result's JSON text in UTF-8
MAX_DEPTH = 32  # containers within each other

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_INTEGER_DIGITS = 4300  # Python neither writes nor reads longer ones
INTEGER_LIMIT = 10**_INTEGER_DIGITS
#: Put before a type's name by pydantic in place of a value that it cannot encode; no text that is stored can hold it.
_UNKNOWN_TYPE = "\0of the type "


class NotJson(ValueError):
    """A value that cannot be stored as JSON; the message holds the path and the reason."""


class _Fault(Exception):
    """An inner signal that collects the path on its way up; the path stands between the two texts."""

    def __init__(self, before: str, after: str = "") -> None:
        self.before = before
        self.after = after
        self.path: list[str] = []


def encode(value: Any) -> str:
    """The JSON text of a result.

    Raises NotJson with a text like ``is not JSON: $.items[2] is an object`` or ``is 2097154 bytes of JSON, the limit is
    1048576``, to be put behind whose value it was.
    """
    try:
        text = _encode(_checked(value, 0))
    except _Fault as fault:
        path = "$" + "".join(reversed(fault.path))
        raise NotJson(fault.before + path + fault.after) from None
    size = len(text.encode())
    if size > MAX_BYTES:
        raise NotJson(f"is {size} bytes of JSON, the limit is {MAX_BYTES}")
    return text


def as_plain(value: Any, fallback: Callable[[Any], str]) -> Any:
    """A value of a type that JSON has no counterpart for, brought nearer to JSON by pydantic's rules.

    What comes back is JSON, or for a dataclass of the standard library an object of fields as they are. `fallback`
    gives the text for a value, or one inside it, that pydantic does not know. Raises whatever the value's own code
    raises, and UnicodeDecodeError for bytes that are no UTF-8 text.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", fallback=fallback, warnings=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        serializer = getattr(value, "__pydantic_serializer__", None)
        if serializer is not None:
            return serializer.to_python(value, mode="json", fallback=fallback, warnings=False)
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Iterator):  # reading one has effects, and may have no end
        return fallback(value)
    return to_jsonable_python(value, fallback=fallback)


def _checked(value: Any, depth: int) -> Any:
    """The value as plain JSON types; `depth` is the number of containers around it."""
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is str:
        return _checked_text(value)
    if kind is int:
        return _checked_integer(value)
    if kind is dict:
        return _checked_object(value, depth + 1)
    if kind is list:
        return _checked_array(value, depth + 1)
    if kind is float:
        if not math.isfinite(value):
            raise _Fault("is not JSON: ", f" is {value}")
        return value
    return _checked_other(value, depth)


def _checked_other(value: Any, depth: int) -> Any:
    """The same for types that are not JSON's own: their relatives first, for pydantic would not tell a fault's path."""
    if isinstance(value, Enum):
        return _checked(value.value, depth)
    if isinstance(value, BaseModel):
        return _checked(_encoded(value), depth)
    if isinstance(value, Mapping):
        return _checked_object(value, depth + 1)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return _checked_array(value, depth + 1)
    if isinstance(value, str):
        return _checked_text(str.__str__(value))
    if isinstance(value, int):
        return _checked_integer(int(value))
    if isinstance(value, float):
        return _checked(float(value), depth)
    return _checked(_encoded(value), depth)


def _encoded(value: Any) -> Any:
    name = type(value).__name__
    try:
        return as_plain(value, _unknown)
    except UnicodeDecodeError:
        raise _Fault("is not JSON: ", f" is {an(name)} that is not UTF-8 text") from None
    except Exception as error:  # of the value's own code, as far as it has any
        raise _Fault("is not JSON: ", f" is {an(name)}, which raises {type(error).__name__}: {error}") from error


def _unknown(value: Any) -> str:
    return f"{_UNKNOWN_TYPE}{type(value).__name__}"


def _checked_object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise _too_deep()
    checked: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise _Fault("is not JSON: ", f" has the key {key!r}, which is not text")
        name = _checked_text(str.__str__(key))
        if name in checked:
            raise _Fault("is not JSON: ", f" has the key {name!r} twice")
        try:
            checked[name] = _checked(item, depth)
        except _Fault as fault:
            fault.path.append(f".{name}")
            raise
    return checked


def _checked_array(
    value: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any] | deque[Any], depth: int
) -> list[Any]:
    if depth > MAX_DEPTH:
        raise _too_deep()
    checked = []
    for index, item in enumerate(value):
        try:
            checked.append(_checked(item, depth))
        except _Fault as fault:
            fault.path.append(f"[{index}]")
            raise
    return checked


def _too_deep() -> _Fault:
    return _Fault(f"is nested deeper than {MAX_DEPTH} levels at ")


def _checked_integer(value: int) -> int:
    if not -INTEGER_LIMIT < value < INTEGER_LIMIT:
        raise _Fault("is not JSON: ", f" is an integer of more than {_INTEGER_DIGITS} digits")
    return value


def _checked_text(text: str) -> str:
    if "\0" in text:
        if text.startswith(_UNKNOWN_TYPE):
            raise _Fault("is not JSON: ", f" is {an(text.removeprefix(_UNKNOWN_TYPE))}")
        raise _Fault("is not JSON that Postgres can store: ", " holds the character U+0000")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(text[error.start])
            raise _Fault("is not JSON that Postgres can store: ", f" holds half a character, U+{half:04X}") from None
    return text


def an(name: str) -> str:
    """A noun behind its article."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def clean_text(text: str, limit: int) -> str:
    """Text that is safe to store whatever it came from, cut to `limit` characters."""
    cleaned = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"
