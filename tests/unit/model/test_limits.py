"""Sizes, depths, and what can be stored as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tasker.model.limits import JSON_DEPTH, json_fault, json_size

JSON_TEXT = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
JSON_VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | JSON_TEXT,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(JSON_TEXT, inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    """Lists and objects around the innermost value."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON_VALUES)
def test_the_size_is_that_of_the_shortest_text_in_utf_8(value: Any) -> None:
    assert json_size(value) == len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


@given(JSON_VALUES, some.integers(0, 6))
def test_json_is_faultless_up_to_the_depth_and_not_beyond(value: Any, depth: int) -> None:
    fault = json_fault(value, "$", depth=depth)
    assert (fault is None) == (depth_of(value) <= depth)


def test_depth_counts_lists_and_objects_alike() -> None:
    value: Any = "x"
    for level in range(JSON_DEPTH):
        value = [value] if level % 2 else {"in": value}
    assert json_fault(value, "$") is None
    fault = json_fault([value], "$")
    assert fault is not None and fault[1] == "is nested deeper than 32 levels"


def test_a_hundred_thousand_levels_are_refused_without_exhausting_the_stack() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    fault = json_fault(value, "$")
    assert fault == ("$" + "[0]" * 32, "is nested deeper than 32 levels")
    while value:  # taken apart by hand: the interpreter's own clean-up of such a list recurses
        value = value.pop()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "\0", "\udfff", b"", object(), {None: 1}])
def test_what_json_or_postgres_does_not_have_is_found(value: Any) -> None:
    fault = json_fault({"a": [value]}, "$")
    assert fault is not None and fault[0] == "$.a[0]"
