"""In whatever order news of objects arrives, the newest is kept, and what is deleted stays so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasker.controller.kube import cache
from tasker.controller.kube.cache import ObjectCache
from tasker.controller.kube.keys import ObjectKey

KEY = ObjectKey(namespace="default", name="t")


def version(number: int, uid: str = "u", name: str = "t") -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name, "uid": uid, "resourceVersion": str(number)}}


def cache_of(*manifests: dict[str, Any]) -> ObjectCache:
    objects = ObjectCache()
    for manifest in manifests:
        assert objects.put(manifest)
    return objects


@pytest.mark.parametrize("late", [9, 10, 11, 12])
def test_a_late_answer_does_not_bring_a_deleted_object_back(late: int) -> None:
    objects = cache_of(version(10))
    objects.remove(version(12))
    assert not objects.put(version(late))
    assert KEY not in objects


def test_a_deletion_that_comes_before_the_object_is_remembered_too() -> None:
    objects = ObjectCache()
    assert objects.remove(version(12)) is None
    assert not objects.put(version(10))
    assert objects.put(version(13, uid="its successor"))


def test_the_predecessor_of_a_name_is_deleted_even_if_nobody_told() -> None:
    objects = cache_of(version(10, uid="old"), version(12, uid="new"))
    objects.remove(version(14, uid="new"))
    assert not objects.put(version(11, uid="old"))
    assert KEY not in objects


def test_an_object_that_left_the_selector_of_a_watch_may_come_back() -> None:
    objects = cache_of(version(10))
    objects.remove(version(12))
    assert objects.put(version(13))


@pytest.mark.parametrize("text", ["", "odd", None])
def test_an_object_whose_version_is_no_number_is_older_than_any(text: str | None) -> None:
    undated = version(0)
    undated["metadata"]["resourceVersion"] = text
    assert cache_of(version(1)).put(undated) is False
    assert cache_of(version(0)).put(undated), "0 is no object's version either"


def test_a_late_deletion_does_not_remove_what_came_back_after_it() -> None:
    objects = cache_of(version(13))
    assert objects.remove(version(12)) is None
    assert KEY in objects


def test_only_so_many_deletions_are_remembered_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "DELETIONS_REMEMBERED", 3)
    objects = ObjectCache()
    for number in range(4):
        objects.remove(version(10 + number, uid=f"u{number}", name=f"t{number}"))
    assert [objects.put(version(1, uid=f"u{number}", name=f"t{number}")) for number in range(4)] == [True, *[False] * 3]


def test_a_deletion_that_is_told_again_is_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "DELETIONS_REMEMBERED", 2)
    objects = ObjectCache()
    for uid in ("again", "once", "again", "last"):
        objects.remove(version(10, uid=uid, name=uid))
    kept = {uid: objects.put(version(1, uid=uid, name=uid)) for uid in ("again", "once", "last")}
    assert kept == {"again": False, "once": True, "last": False}


@st.composite
def news(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, str]]:
    """What happens to a few names, as it arrives (PUT or DELETED, object), and the uids that are there at last."""
    alive: dict[str, str] = {}
    history: list[tuple[str, dict[str, Any]]] = []
    for number, (name, deletes) in enumerate(draw(st.lists(st.tuples(st.sampled_from("ab"), st.booleans())))):
        uid = alive.get(name)
        if uid is not None and deletes:
            history.append(("DELETED", version(number, uid=alive.pop(name), name=name)))
        else:
            alive[name] = uid or f"{name}{number}"
            history.append(("PUT", version(number, uid=alive[name], name=name)))
    twice = draw(st.lists(st.sampled_from(history))) if history else []
    return draw(st.permutations([*history, *twice])), alive


@settings(deadline=None)
@given(news())
def test_in_whatever_order_news_comes_the_end_is_the_same(
    case: tuple[list[tuple[str, dict[str, Any]]], dict[str, str]],
) -> None:
    arriving, alive = case
    objects = ObjectCache()
    for kind, manifest in arriving:
        if kind == "PUT":
            objects.put(manifest)
        else:
            objects.remove(manifest)
    assert {found["metadata"]["name"]: found["metadata"]["uid"] for found in objects.all()} == alive
