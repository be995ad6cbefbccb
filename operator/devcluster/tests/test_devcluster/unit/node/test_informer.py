"""The local copy follows the server through lost, late and disordered words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from devcluster.node.client import PODS, ApiClient, ApiError
from devcluster.node.informer import Informer
from devcluster.node.objects import Key, KubeObject
from support.waiting import eventually_async

Words = list[tuple[str, KubeObject] | Exception | None]
"""What a watch says; None: no more, but it stays open."""


def pod(name: str, version: int, uid: str | None = None) -> KubeObject:
    """A pod at a version."""
    return {"metadata": {"name": name, "namespace": "ns", "uid": uid or name, "resourceVersion": str(version)}}


class Script:
    """A server that gives these lists and then these watches, one after the other; the last watch stays open."""

    def __init__(self, lists: list[tuple[int, list[KubeObject]]], watches: list[Words]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[str] = []

    async def list(self, _resource: object, **_options: Any) -> KubeObject:
        version, items = self.lists.pop(0)
        self.asked.append("list")
        return {"metadata": {"resourceVersion": str(version)}, "items": items}

    async def watch(self, _resource: object, version: str, **_options: Any) -> AsyncIterator[tuple[str, KubeObject]]:
        self.asked.append(f"watch {version}")
        words = self.watches.pop(0)
        for word in words:
            if word is None:
                await asyncio.Event().wait()
            elif isinstance(word, Exception):
                raise word
            else:
                yield word
        if not self.watches:
            await asyncio.Event().wait()


@asynccontextmanager
async def following(script: Script, relist_seconds: float = 300.0) -> AsyncIterator[tuple[Informer, list[str]]]:
    """An informer on the script, and the names it told of; whoever is told cannot deal with the object "bad"."""
    told: list[str] = []

    def tell(obj: KubeObject) -> None:
        if obj["metadata"]["name"] == "bad":
            raise LookupError("bad")
        told.append(obj["metadata"]["name"])

    informer = Informer(cast("ApiClient", script), PODS, tell, relist_seconds=relist_seconds)
    task = asyncio.create_task(informer.run())
    try:
        yield informer, told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_asked(script: Script, what: str) -> None:
    """Wait until the informer has come that far."""

    async def probe() -> bool:
        return script.asked[-1:] == [what]

    await eventually_async(probe, what=f"{what} in {script.asked}")
    await asyncio.sleep(0.01)  # what that watch has to say is said by then


def versions(informer: Informer) -> dict[str, str]:
    """Name → version of what it knows."""
    return {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in informer.all()}


async def test_list_then_changes() -> None:
    script = Script(
        [(10, [pod("a", 5), pod("b", 6)])],
        [[("MODIFIED", pod("a", 11)), ("DELETED", pod("b", 12)), ("ADDED", pod("c", 13))]],
    )
    async with following(script) as (informer, told):
        await until_asked(script, "watch 10")
        assert versions(informer) == {"a": "11", "c": "13"}
        assert told == ["a", "b", "a", "b", "c"]


async def test_watch_that_ends_goes_on_where_it_stopped() -> None:
    script = Script([(10, [])], [[("ADDED", pod("a", 12))], [("ADDED", pod("b", 13))]])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 12")
        assert versions(informer) == {"a": "12", "b": "13"}


@pytest.mark.parametrize("fault", [ApiError(0, "Unreachable", "x"), RuntimeError("what nobody thought of")])
async def test_watch_that_breaks_means_a_new_list_for_what_was_missed(fault: Exception) -> None:
    missed = [pod("a", 12), pod("missed", 13)]
    script = Script([(10, []), (20, missed)], [[("ADDED", pod("a", 12)), fault], [("ADDED", pod("b", 21))]])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 20")
        assert versions(informer) == {"a": "12", "missed": "13", "b": "21"}


async def test_everything_is_listed_anew_now_and_then_although_the_watch_goes_on() -> None:
    """The watch lost a word without a sign of it."""
    bookmark = {"metadata": {"resourceVersion": "11"}}
    script = Script([(10, []), (20, [pod("missed", 12)])], [[("BOOKMARK", bookmark), None], []])
    async with following(script, relist_seconds=0.0) as (informer, _):
        await until_asked(script, "watch 20")
        assert versions(informer) == {"missed": "12"}


async def test_an_object_that_its_reader_cannot_take_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    script = Script([(10, [pod("bad", 4), pod("a", 5)])], [[("MODIFIED", pod("bad", 11)), ("ADDED", pod("b", 12))]])
    async with following(script) as (informer, told):
        await until_asked(script, "watch 10")
        assert versions(informer) == {"bad": "11", "a": "5", "b": "12"}
        assert told == ["a", "b"]
    assert "Pod Key(namespace='ns', name='bad'): the change could not be taken in" in caplog.text


async def test_an_object_that_cannot_be_read_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    nameless: KubeObject = {"metadata": {"uid": "x", "resourceVersion": "11"}}
    script = Script([(10, [nameless, pod("a", 5)])], [[("ADDED", nameless), ("ADDED", pod("b", 12))]])
    async with following(script) as (informer, told):
        await until_asked(script, "watch 10")
        assert told == ["a", "b"]
        assert versions(informer) == {"a": "5", "b": "12"}
    assert "Pod None: what the server says of it cannot be read" in caplog.text


async def test_told_of_everything_again_when_asked() -> None:
    script = Script([(10, [pod("bad", 4), pod("a", 5), pod("b", 6)])], [[]])
    async with following(script) as (informer, told):
        await until_asked(script, "watch 10")
        informer.notify_all()
        assert told == ["a", "b", "a", "b"]


async def test_bookmark_moves_the_place_to_go_on_from() -> None:
    bookmark = {"metadata": {"resourceVersion": "99"}}
    script = Script([(10, [])], [[("BOOKMARK", bookmark)], []])
    async with following(script):
        await until_asked(script, "watch 99")


async def test_version_too_old_means_a_new_list_which_removes_what_is_gone() -> None:
    expired = {"code": 410, "reason": "Expired", "message": "too old"}
    script = Script([(10, [pod("a", 5), pod("b", 6)]), (50, [pod("b", 40)])], [[("ERROR", expired)], []])
    async with following(script) as (informer, told):
        await until_asked(script, "watch 50")
        assert versions(informer) == {"b": "40"}
        assert told[-1] == "a"


async def test_older_word_does_not_undo_a_newer_one() -> None:
    script = Script([(10, [pod("a", 5)])], [[("MODIFIED", pod("a", 20)), ("MODIFIED", pod("a", 15))]])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 10")
        assert versions(informer) == {"a": "20"}


async def test_late_word_about_what_is_gone_does_not_bring_it_back() -> None:
    script = Script([(10, [pod("a", 5)])], [[("DELETED", pod("a", 20)), ("MODIFIED", pod("a", 19))]])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 10")
        assert versions(informer) == {}


async def test_another_object_of_the_same_name_is_another_object() -> None:
    words: Words = [("DELETED", pod("a", 20)), ("ADDED", pod("a", 21, uid="second")), ("DELETED", pod("a", 20))]
    script = Script([(10, [pod("a", 5)])], [words])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 10")
        found = informer.get(Key("ns", "a"))
        assert found is not None
        assert found["metadata"]["uid"] == "second"


async def test_own_write_is_known_before_the_watch_tells_and_survives_an_older_list() -> None:
    expired = {"code": 410, "reason": "Expired", "message": "too old"}
    script = Script([(10, []), (30, [])], [[("ADDED", pod("x", 11)), ("ERROR", expired)], []])
    async with following(script) as (informer, _):
        await informer.synced.wait()
        informer.observe(pod("mine", 31))
        await until_asked(script, "watch 30")
        assert versions(informer) == {"mine": "31"}


async def test_server_that_always_fails_is_asked_ever_more_slowly() -> None:
    watches: list[Words] = [[ApiError(500, "InternalError", "no")] for _ in range(50)]
    script = Script([(10, [])] * 50, watches)
    async with following(script):
        await asyncio.sleep(0.5)
    assert 2 <= script.asked.count("list") <= 8
