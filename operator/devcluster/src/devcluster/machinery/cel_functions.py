"""The functions that CEL rules may call, beyond what the CEL library brings by itself.

They are those of Kubernetes' CEL environment that rules of custom resources commonly use: strings, lists, sets, math
and regular expressions. Left out, and refused when a definition is written: URLs, IP addresses, quantities, semantic
versions, named formats, optional field syntax, macros with two variables.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from cel.stdlib import EXTENSIONS

from devcluster.machinery.go_values import compile_go_pattern, equal_json

UNICODE_SIZE: Final = "unicode_size"
"""Stands in for ``size`` when text beyond ASCII is about: the library counts bytes, CEL counts characters."""

_NATIVE: Final = frozenset(
    {
        "size",
        "contains",
        "startsWith",
        "endsWith",
        "matches",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "timestamp",
        "duration",
        "type",
        "dyn",
        "getFullYear",
        "getMonth",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
        "hasValue",
        "value",
        "of",
        "none",
        "ofNonZeroValue",
        "orValue",
        "or",
        "optMap",
        "optFlatMap",
    }
)


def _is_sorted(items: list[Any]) -> bool:
    return all(left <= right for left, right in pairwise(items))


def _index_of(text_or_items: Any, wanted: Any, offset: int = 0) -> int:
    if isinstance(text_or_items, str):
        return text_or_items.find(wanted, offset)
    return next((index for index, item in enumerate(text_or_items) if equal_json(item, wanted)), -1)


def _last_index_of(text_or_items: Any, wanted: Any, offset: int | None = None) -> int:
    if isinstance(text_or_items, str):
        return text_or_items.rfind(wanted) if offset is None else text_or_items.rfind(wanted, 0, offset + len(wanted))
    places = [index for index, item in enumerate(text_or_items) if equal_json(item, wanted)]
    return places[-1] if places else -1


def _find(text: str, pattern: str) -> str:
    match = compile_go_pattern(pattern).search(text)
    return match.group() if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match.group() for match in compile_go_pattern(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _only_item(pick: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def call(items: list[Any]) -> Any:
        if not items:
            raise ValueError("min/max called on empty list")
        return pick(items)

    return call


def _library() -> dict[str, Callable[..., Any]]:
    strings = {name: call for name, call in EXTENSIONS["strings"].items() if "." not in name and name != "reverse"}
    lists = {name: EXTENSIONS["lists"][name] for name in ("distinct", "flatten", "slice", "sort", "lists.range")}
    return {
        **strings,
        **lists,
        **EXTENSIONS["math"],
        **EXTENSIONS["sets"],
        **EXTENSIONS["encoders"],
        "bool": EXTENSIONS["core"]["bool"],
        "sum": EXTENSIONS["core"]["sum"],
        "min": _only_item(min),
        "max": _only_item(max),
        "isSorted": _is_sorted,
        "indexOf": _index_of,
        "lastIndexOf": _last_index_of,
        "find": _find,
        "findAll": _find_all,
        UNICODE_SIZE: len,
    }


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = _library()
KNOWN_FUNCTIONS: Final = _NATIVE | {name.rpartition(".")[2] for name in FUNCTIONS}
