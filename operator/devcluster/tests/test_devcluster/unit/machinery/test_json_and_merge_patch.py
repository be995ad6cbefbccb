"""JSON patch keeps RFC 6902, merge patch RFC 7386."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devcluster.machinery.go_values import equal_json
from devcluster.machinery.patch import PatchError, PatchTestFailed, json_patch, merge_patch

DOCUMENT: dict[str, Any] = {"a": {"b": [1, 2, 3]}, "c/d": 1, "e~f": {"": "x"}}


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([{"op": "add", "path": "/n", "value": {"x": 1}}], {**DOCUMENT, "n": {"x": 1}}),
        ([{"op": "add", "path": "/a/b/1", "value": 9}], {**DOCUMENT, "a": {"b": [1, 9, 2, 3]}}),
        ([{"op": "add", "path": "/a/b/-", "value": 9}], {**DOCUMENT, "a": {"b": [1, 2, 3, 9]}}),
        ([{"op": "add", "path": "/a", "value": 1}], {**DOCUMENT, "a": 1}),
        ([{"op": "remove", "path": "/c~1d"}], {"a": DOCUMENT["a"], "e~f": {"": "x"}}),
        ([{"op": "remove", "path": "/a/b/0"}], {**DOCUMENT, "a": {"b": [2, 3]}}),
        ([{"op": "replace", "path": "/e~0f/", "value": None}], {**DOCUMENT, "e~f": {"": None}}),
        ([{"op": "replace", "path": "", "value": {"new": 1}}], {"new": 1}),
        ([{"op": "move", "from": "/a/b", "path": "/z"}], {"a": {}, "c/d": 1, "e~f": {"": "x"}, "z": [1, 2, 3]}),
        ([{"op": "copy", "from": "/a/b/0", "path": "/a/b/-"}], {**DOCUMENT, "a": {"b": [1, 2, 3, 1]}}),
        ([{"op": "test", "path": "/a/b", "value": [1, 2, 3]}], DOCUMENT),
        ([{"op": "test", "path": "/missing", "value": None}], DOCUMENT),
        ([], DOCUMENT),
    ],
)
def test_an_operation_does_what_the_standard_says(operations: list[Any], expected: Any) -> None:
    before = copy.deepcopy(DOCUMENT)
    assert json_patch(DOCUMENT, operations) == expected
    assert before == DOCUMENT


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (
            {"op": "remove", "path": "/x"},
            'remove operation does not apply: doc is missing path: "/x": missing value',
        ),
        ({"op": "replace", "path": "/x", "value": 1}, "replace operation does not apply: doc is missing path"),
        ({"op": "add", "path": "/x/y", "value": 1}, "add operation does not apply: doc is missing path"),
        ({"op": "add", "path": "/a/b/7", "value": 1}, "index out of bounds"),
        ({"op": "add", "path": "/a/b/01", "value": 1}, "index out of bounds"),
        ({"op": "add", "path": "/c~1d/x", "value": 1}, "missing value"),
        ({"op": "move", "from": "/a", "path": "/a/b"}, "cannot be moved into itself"),
        ({"op": "copy", "from": "/x", "path": "/y"}, "copy operation does not apply"),
        ({"op": "add", "path": "/x"}, "it has no 'value'"),
        ({"op": "frob", "path": "/x"}, "Unexpected kind: frob"),
        ({"op": "add", "path": "x", "value": 1}, "must start with a slash"),
        ({"path": "/x"}, "Unexpected kind: unknown"),
        ("nonsense", "must be an object"),
        ({"op": "replace", "path": "", "value": 1}, "must leave an object"),
    ],
)
def test_an_operation_that_cannot_be_done_is_refused(operation: Any, words: str) -> None:
    with pytest.raises(PatchError, match=words):
        json_patch(DOCUMENT, [operation])


def test_a_patch_must_be_a_list() -> None:
    with pytest.raises(PatchError, match="must be a list"):
        json_patch(DOCUMENT, {"op": "remove"})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, 1.5, "1", None, {"b": [1, 2]}])
def test_a_failed_test_stops_the_whole_patch(value: Any) -> None:
    with pytest.raises(PatchTestFailed, match="testing value /a failed: test failed"):
        json_patch(DOCUMENT, [{"op": "remove", "path": "/c~1d"}, {"op": "test", "path": "/a", "value": value}])


def test_one_is_not_true() -> None:
    with pytest.raises(PatchTestFailed):
        json_patch({"a": 1}, [{"op": "test", "path": "/a", "value": True}])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=15,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


def pointers(value: Any, prefix: str = "") -> list[str]:
    """The pointer of every value inside a value, itself left out."""
    if isinstance(value, dict):
        steps = [(key.replace("~", "~0").replace("/", "~1"), item) for key, item in value.items()]
    elif isinstance(value, list):
        steps = [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    return [place for key, item in steps for place in (f"{prefix}/{key}", *pointers(item, f"{prefix}/{key}"))]


@given(OBJECTS, st.data())
def test_what_is_copied_away_removed_and_added_again_is_as_before(document: dict[str, Any], data: Any) -> None:
    places = pointers(document)
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    aside = "/aside-for-a-while"
    operations = [
        {"op": "copy", "from": place, "path": aside},
        {"op": "remove", "path": place},
        {"op": "move", "from": aside, "path": place},
    ]
    assert equal_json(json_patch(document, operations), document)


@given(OBJECTS, st.data())
def test_every_value_passes_its_own_test(document: dict[str, Any], data: Any) -> None:
    places = pointers(document)
    if places:
        place = data.draw(st.sampled_from(places))
        found = json_patch(document, [{"op": "copy", "from": place, "path": "/found"}])["found"]
        assert json_patch(document, [{"op": "test", "path": place, "value": found}]) == document


def difference(old: Any, new: Any) -> Any:
    """The merge patch from one object to another that holds no nulls."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch: dict[str, Any] = dict.fromkeys(key for key in old if key not in new)
    for key, value in new.items():
        if key not in old or not equal_json(old[key], value):
            patch[key] = difference(old.get(key), value)
    return patch


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_leads_from_any_object_to_any_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = without_nulls(old), without_nulls(new)
    before = copy.deepcopy(old)
    assert equal_json(merge_patch(old, difference(old, new)), new)
    assert equal_json(old, before)


@given(OBJECTS)
def test_an_empty_merge_patch_changes_nothing(document: dict[str, Any]) -> None:
    assert equal_json(merge_patch(document, {}), document)


def test_a_merge_patch_replaces_lists_and_takes_away_by_null() -> None:
    document = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    assert merge_patch(document, {"a": {"b": None, "c": [3]}, "d": {"e": {"f": None}}}) == {
        "a": {"c": [3]},
        "d": {"e": {}},
    }


def test_a_merge_patch_must_be_an_object() -> None:
    with pytest.raises(PatchError, match="must be an object"):
        merge_patch({}, [1])
