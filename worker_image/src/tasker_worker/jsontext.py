"""JSON as the engine accepts it: what a handler returned becomes text, or a refusal that names the place of the fault.

Postgres stores the text as jsonb, which is stricter than Python's encoder: no NaN, no NUL character, no lone surrogate.
One walk finds all of that with its path before anything is sent, so that one bad result can never hold up a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

MAX_BYTES = 1024 * 1024  # of a result's JSON text in UTF-8
MAX_DEPTH = 32  # containers within each other

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
_INFINITY = float("inf")


class NotJson(ValueError):
    """A value that cannot be stored as JSON; the message holds the path and the reason."""


class _Fault(Exception):
    """An inner signal that collects the path on its way up."""

    def __init__(self, text: str) -> None:
        self.text = text  # holds {path}
        self.path: list[str] = []


def encode(value: Any) -> str:
    """The JSON text of a result. Pydantic models count as the objects they dump to, tuples as arrays.

    Raises NotJson with a text like ``is not JSON: $.items[2] is a set`` or ``is 2097154 bytes of JSON, the limit is
    1048576``, to be put behind whose value it was.
    """
    try:
        text = _encode(_checked(value, 0))
    except _Fault as fault:
        path = "$" + "".join(reversed(fault.path))
        raise NotJson(fault.text.replace("{path}", path)) from None
    # A character is at most four bytes, so most texts need not be encoded to be measured.
    if len(text) * 4 > MAX_BYTES:
        size = len(text.encode())
        if size > MAX_BYTES:
            raise NotJson(f"is {size} bytes of JSON, the limit is {MAX_BYTES}")
    return text


def _checked(value: Any, depth: int) -> Any:
    """The value as plain JSON types; `depth` is the number of containers around it."""
    kind = type(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is str:
        return _checked_text(value)
    if kind is dict:
        return _checked_object(value, depth + 1)
    if kind is list:
        return _checked_array(value, depth + 1)
    if kind is float:
        if value != value or value in (_INFINITY, -_INFINITY):
            raise _Fault(f"is not JSON: {{path}} is {value}")
        return value
    if isinstance(value, BaseModel):
        return _checked(value.model_dump(mode="json"), depth)
    if isinstance(value, Mapping):
        return _checked_object(value, depth + 1)
    if isinstance(value, list | tuple):
        return _checked_array(value, depth + 1)
    if isinstance(value, str):  # a StrEnum and its like
        return _checked_text(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _checked(float(value), depth)
    raise _Fault(f"is not JSON: {{path}} is {_article(kind.__name__)}")


def _checked_object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise _Fault(f"is nested deeper than {MAX_DEPTH} levels at {{path}}")
    checked = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise _Fault(f"is not JSON: {{path}} has the key {key!r}, which is not text")
        name = _checked_text(str.__str__(key))
        try:
            checked[name] = _checked(item, depth)
        except _Fault as fault:
            fault.path.append(f".{name}")
            raise
    return checked


def _checked_array(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth > MAX_DEPTH:
        raise _Fault(f"is nested deeper than {MAX_DEPTH} levels at {{path}}")
    checked = []
    for index, item in enumerate(value):
        try:
            checked.append(_checked(item, depth))
        except _Fault as fault:
            fault.path.append(f"[{index}]")
            raise
    return checked


def _checked_text(text: str) -> str:
    if "\0" in text:
        raise _Fault("is not JSON that Postgres can store: {path} holds the character U+0000")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(text[error.start])
            raise _Fault(
                f"is not JSON that Postgres can store: {{path}} holds half a character, U+{half:04X}"
            ) from None
    return text


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def clean_text(text: str, limit: int) -> str:
    """Text that is safe to store whatever it came from, cut to `limit` characters."""
    cleaned = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"
