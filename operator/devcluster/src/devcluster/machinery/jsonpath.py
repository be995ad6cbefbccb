"""The JSONPath of printer columns and selectable fields: what kubectl's dialect allows in a CRD.

Fields (``.spec.replicas``, ``['a.b']``), escaped dots (``\\.``), indices and slices, wildcards, unions, filters on one
comparison (``[?(@.type=="Ready")]``) and recursive descent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

Step = Callable[[Any], Iterator[Any]]
JsonPath = Callable[[Any], list[Any]]

_FIELD: Final = re.compile(r"(?:[^.\[\]\\]|\\.)+")
_FILTER: Final = re.compile(r"\?\(\s*@((?:\.[^=!<>\s)]+|\[[^\]]*\])*)\s*(?:(==|!=|<=|>=|<|>)\s*(.+?)\s*)?\)")
_SLICE: Final = re.compile(r"(-?\d*):(-?\d*)(?::(-?\d*))?")


class InvalidJsonPath(ValueError):
    """The path cannot be read, or uses what printer columns do not have."""


@lru_cache(maxsize=512)
def compile_json_path(path: str) -> JsonPath:
    """A function from an object to the list of values at `path`; none when the path leads nowhere.

    Raises `InvalidJsonPath`.
    """
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    steps = _parse(text.removeprefix("$"), path)

    def find(obj: Any) -> list[Any]:
        values = [obj]
        for step in steps:
            values = [result for value in values for result in step(value)]
        return values

    return find


def _parse(text: str, path: str) -> list[Step]:
    if not text.startswith((".", "[")):
        raise InvalidJsonPath(f"unexpected path {path!r}: it must start with a dot")
    steps: list[Step] = []
    position = 0
    while position < len(text):
        if text.startswith("..", position):
            steps.append(_descend)
            position += 1
        if text[position] == ".":
            position += 1
            if position == len(text):
                if position == 1:
                    break  # "." alone is the object itself
                raise InvalidJsonPath(f"unexpected end of {path!r}")
            if text[position] == "[":
                continue
            match = _FIELD.match(text, position)
            if match is None:
                raise InvalidJsonPath(f"unrecognized character in {path!r} at {position}")
            name = re.sub(r"\\(.)", r"\1", match.group())
            steps.append(_wildcard if name == "*" else _field(name))
            position = match.end()
        elif text[position] == "[":
            end = _closing(text, position, path)
            steps.append(_bracket(text[position + 1 : end].strip(), path))
            position = end + 1
        else:
            raise InvalidJsonPath(f"unrecognized character in {path!r} at {position}")
    return steps


def _closing(text: str, start: int, path: str) -> int:
    quote = ""
    depth = 0
    for position in range(start, len(text)):
        char = text[position]
        if quote:
            quote = "" if char == quote and text[position - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if depth == 0:
                return position
    raise InvalidJsonPath(f"unterminated array in {path!r}")


def _bracket(inside: str, path: str) -> Step:
    if inside == "*":
        return _wildcard
    if inside.startswith("?"):
        return _filter(inside, path)
    if match := _SLICE.fullmatch(inside):
        bounds = [int(part) if part else None for part in match.groups()]
        return _slice(slice(*bounds))
    choices: list[Step] = []
    for part in _split_union(inside):
        if re.fullmatch(r"-?\d+", part):
            choices.append(_index(int(part)))
        elif len(part) >= 2 and part[0] == part[-1] and part[0] in "'\"":
            choices.append(_field(part[1:-1].replace("\\'", "'").replace('\\"', '"')))
        else:
            raise InvalidJsonPath(f"invalid array index {part!r} in {path!r}")
    return choices[0] if len(choices) == 1 else _union(choices)


def _split_union(inside: str) -> list[str]:
    return [part.strip() for part in re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+", inside)]


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _index(index: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return step


def _slice(bounds: slice) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[bounds]

    return step


def _union(choices: list[Step]) -> Step:
    def step(value: Any) -> Iterator[Any]:
        for choice in choices:
            yield from choice(value)

    return step


def _wildcard(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _descend(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        for item in value.values():
            yield from _descend(item)
    elif isinstance(value, list):
        for item in value:
            yield from _descend(item)


def _filter(inside: str, path: str) -> Step:
    match = _FILTER.fullmatch(inside)
    if match is None:
        raise InvalidJsonPath(f"unsupported filter [{inside}] in {path!r}")
    inner, operator, literal = match.groups()
    steps = _parse(inner, path) if inner else []
    wanted = None if literal is None else _literal(literal, path)

    def matches(item: Any) -> bool:
        values = [item]
        for step in steps:
            values = [result for value in values for result in step(value)]
        if operator is None:
            return bool(values)
        return any(_compare(value, operator, wanted) for value in values)

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from (item for item in value if matches(item))

    return step


def _literal(text: str, path: str) -> Any:
    if text[0] == text[-1] == "'" and len(text) >= 2:
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidJsonPath(f"unsupported value {text} in a filter of {path!r}") from error


def _compare(value: Any, operator: str, wanted: Any) -> bool:
    if isinstance(value, bool) != isinstance(wanted, bool) or isinstance(value, str) != isinstance(wanted, str):
        return operator == "!="
    match operator:
        case "==":
            return bool(value == wanted)
        case "!=":
            return bool(value != wanted)
        case _ if isinstance(value, (dict, list)) or value is None or wanted is None:
            return False
        case "<":
            return bool(value < wanted)
        case "<=":
            return bool(value <= wanted)
        case ">":
            return bool(value > wanted)
        case _:
            return bool(value >= wanted)
