"""Any value as JSON for people to read, in log lines and in `/health/detailed`: never refused, secrets left out.

Unlike `jsontext`, which is for what is stored: here a value that cannot be encoded becomes a text that tells of it,
because the line it stands in matters more.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise
from numbers import Number
from typing import Any

from .jsontext import INTEGER_LIMIT, MAX_DEPTH, as_plain

HIDDEN = "***"

# A name tells of a secret when one of its words is one of these, or ends with one (`accesstoken`), or when two
# neighbours are one of the pairs. The plurals are told apart, for `input_tokens=1500` is a count.
_SECRET_WORDS = (
    "apikey",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "dsn",
    "jwt",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "secret",
    "token",
)
_SECRET_PAIRS = {
    ("access", "key"),
    ("api", "key"),
    ("basic", "auth"),
    ("connection", "string"),
    ("database", "url"),
    ("db", "url"),
    ("encryption", "key"),
    ("private", "key"),
    ("proxy", "auth"),
    ("signing", "key"),
    ("ssh", "key"),
}
# The last word of a name that tells about a secret, and not the secret: `token_type`, `password_changed_at`.
_ABOUT_WORDS = {
    "age",
    "at",
    "endpoint",
    "expiration",
    "expires",
    "expiry",
    "file",
    "kind",
    "length",
    "name",
    "names",
    "ms",
    "path",
    "policy",
    "seconds",
    "size",
    "state",
    "status",
    "ttl",
    "type",
    "types",
    "version",
}
# With these anywhere in its name, or those above, a number is none: `token_count`, `max_token`. Else it may be one:
# `password=1234`.
_COUNT_WORDS = {
    "budget",
    "count",
    "counts",
    "cost",
    "limit",
    "max",
    "min",
    "num",
    "number",
    "rate",
    "remaining",
    "total",
    "usage",
    "used",
}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")


def readable(value: Any, *, hide_secrets: bool = True) -> Any:
    """The value as plain JSON types, for `json.dumps` without any further option. Never raises an Exception.

    Fields of objects whose name tells of a secret are ``***`` unless `hide_secrets` is false. NaN and infinities become
    text, so does whatever pydantic cannot encode; keys that are not text are written as their text.
    """
    return _readable(value, hide_secrets, ())


def is_secret(name: str, value: Any) -> bool:
    """Whether a field is to be hidden: its name tells of a secret, and its value is not one that tells nothing.

    True, False and None never are hidden; numbers, also many of them, are shown where the name says that they count.
    """
    if value is None or isinstance(value, bool):
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    singular, plural = _kinds_of_secrets(words)
    if not singular and not plural:
        return False
    if words[-1] in _ABOUT_WORDS:
        return False
    if isinstance(value, Number) and not singular:
        return False  # that many of them
    counts = "tokens" in words or not (_COUNT_WORDS | _ABOUT_WORDS).isdisjoint(words)
    return not (counts and _only_numbers(value))


def _kinds_of_secrets(words: list[str]) -> tuple[bool, bool]:
    """Whether the words of a name tell of one secret, and whether of several."""
    neighbours = set(pairwise(words))
    singular = any(word.endswith(_SECRET_WORDS) for word in words) or not neighbours.isdisjoint(_SECRET_PAIRS)
    plurals = {(first, second.removesuffix("s")) for first, second in neighbours}
    plural = any(word.removesuffix("s").endswith(_SECRET_WORDS) for word in words)
    return singular, plural or not plurals.isdisjoint(_SECRET_PAIRS)


def _only_numbers(value: Any) -> bool:
    """A number, or a collection of such: what tokens were counted or numbered as."""
    if isinstance(value, Mapping):
        return all(_only_numbers(each) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_only_numbers(each) for each in value)
    return isinstance(value, Number)


def _readable(value: Any, hide_secrets: bool, around: tuple[int, ...]) -> Any:
    """`around` are the ids of the containers that the value stands in."""
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return _readable(value.value, hide_secrets, around)
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, int):
            return int(value) if -INTEGER_LIMIT < value < INTEGER_LIMIT else hex(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if id(value) in around or len(around) == MAX_DEPTH:
            return "…"
        around = (*around, id(value))
        if isinstance(value, Mapping):
            return _readable_object(value, hide_secrets, around)
        if isinstance(value, list | tuple | set | frozenset | deque):
            # A copy first: the handler may be at work on the value.
            return [_readable(each, hide_secrets, around) for each in list(value)]
        if isinstance(value, bytes | bytearray):
            return value.decode("utf-8", "backslashreplace")
        return _readable(as_plain(value, _description), hide_secrets, around)
    except Exception:  # of the value's own code; its text might hold what is to be hidden
        return _unreadable(value)


def _readable_object(value: Mapping[Any, Any], hide_secrets: bool, around: tuple[int, ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, item in list(value.items()):
        name = _name(key)
        shown[name] = HIDDEN if hide_secrets and _is_hidden(name, item) else _readable(item, hide_secrets, around)
    return shown


def _is_hidden(name: str, value: Any) -> bool:
    try:
        return is_secret(name, value)
    except Exception:  # of the value's own code; a secret that cannot be looked at may be one
        return True


def _name(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    return _text(str.__str__(key)) if isinstance(key, str) else _description(key)


def _text(text: str) -> str:
    """Without halves of characters, which no stream of UTF-8 takes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _description(value: Any) -> str:
    try:
        return _text(str(value))
    except Exception:
        return _unreadable(value)


def _unreadable(value: Any) -> str:
    return f"({type(value).__name__}, which cannot be read)"
