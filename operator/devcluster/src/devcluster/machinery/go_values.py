"""Small differences between Go's and Python's idea of a value that show in an API: patterns, JSON equality, copies."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_GROUP_START = re.compile(r"\(\?(?!:|P<|<[A-Za-z_]|[a-zA-Z-]+[:)])|\(\?<[=!]")
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


class UnsupportedPattern(ValueError):
    """A regular expression that Go's engine refuses, or that cannot be carried over to Python's."""


@lru_cache(maxsize=1024)
def compile_go_pattern(pattern: str) -> re.Pattern[str]:
    """`pattern` in Go's syntax (RE2) as a Python pattern for ``search``.

    ``$`` means the end of the text (not also before a last newline), classes are ASCII. What Go lacks (look-around,
    back-references, possessive quantifiers) and what Python lacks (``\\p{..}``, ``\\Q..\\E``) raises
    `UnsupportedPattern`.
    """
    try:
        return re.compile(_translate(pattern), re.ASCII)
    except (re.error, OverflowError) as error:
        raise UnsupportedPattern(f"error parsing regexp: {error}") from error


def _translate(pattern: str) -> str:
    out: list[str] = []
    position = 0
    in_class = False
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            escaped = pattern[position + 1 : position + 2]
            if not escaped:
                raise UnsupportedPattern("error parsing regexp: trailing backslash at end of expression: ``")
            if escaped in "123456789":
                raise UnsupportedPattern(f"error parsing regexp: invalid escape sequence: `\\{escaped}`")
            if escaped in "pPQECZ":
                raise UnsupportedPattern(f"error parsing regexp: escape sequence not supported here: `\\{escaped}`")
            out.append(r"\Z" if escaped == "z" else char + escaped)
            position += 2
            continue
        if in_class:
            if char == "[" and (end := pattern.find(":]", position)) > 0 and pattern[position + 1] == ":":
                name = pattern[position + 2 : end]
                if name not in _POSIX_CLASSES:
                    raise UnsupportedPattern(f"error parsing regexp: invalid character class range: `[:{name}:]`")
                out.append(_POSIX_CLASSES[name])
                position = end + 2
                continue
            out.append("\\[" if char == "[" else char)
            in_class = char != "]"
            position += 1
            continue
        if char == "[":
            in_class = True
            opening = re.match(r"\[\^?\]?", pattern[position:])
            assert opening is not None
            out.append(opening.group().replace("]", "\\]"))
            position += opening.end()
            continue
        if char == "(" and _GROUP_START.match(pattern, position):
            raise UnsupportedPattern(
                f"error parsing regexp: invalid or unsupported Perl syntax: `{pattern[position : position + 3]}`"
            )
        if char in "*+?}" and pattern[position + 1 : position + 2] == "+":
            raise UnsupportedPattern(f"error parsing regexp: invalid nested repetition operator: `{char}+`")
        out.append(r"\Z" if char == "$" else char)
        position += 1
    return "".join(out).replace("(?<", "(?P<")


def copy_json(value: Any) -> Any:
    """A deep copy of a JSON value; several times faster than `copy.deepcopy`."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    return value


def equal_json(left: Any, right: Any) -> bool:
    """Equality of JSON values: ``1`` equals ``1.0`` but not ``true``."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(equal_json(item, right[key]) for key, item in left.items())
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(equal_json, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def type_name(value: Any) -> str:
    """The JSON schema type of a value, as error messages name it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
