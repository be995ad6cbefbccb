"""A status as a JSON patch: what changed, with its nulls, and nothing when nothing did."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from devcluster.machinery.patch import json_patch
from tasker.controller.kube.status_writer import status_operations

json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
statuses = st.dictionaries(st.text("ab~/", max_size=3), json_values, max_size=4)


@given(statuses, statuses)
def test_the_operations_make_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    live = {"status": old} if old else {}
    assert json_patch(live, status_operations(old, new)).get("status", {}) == new


@given(statuses)
def test_an_equal_status_needs_no_operation(status: dict[str, Any]) -> None:
    assert status_operations(status, status) == []


@given(statuses, st.dictionaries(st.text("xyz", min_size=1, max_size=3), json_values, max_size=3))
def test_what_is_not_named_stays(status: dict[str, Any], unknown: dict[str, Any]) -> None:
    """The writer may know less of an object than the server holds."""
    changed = {**status, "phase": "Running"}
    patched = json_patch({"status": {**unknown, **status}}, status_operations(status, changed) if status else [])
    assert patched["status"].items() >= unknown.items()
