"""The local copy follows the server through lost, late and disordered words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from devcluster.node.client import PODS, ApiClient, ApiError
from devcluster.node.informer import Informer
from devcluster.node.objects import Key, KubeObject
from support.waiting import eventually_async

Words = list[tuple[str, KubeObject] | ApiError]


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
            if isinstance(word, ApiError):
                raise word
            yield word
        if not self.watches:
            await asyncio.Event().wait()


@asynccontextmanager
async def following(script: Script) -> AsyncIterator[tuple[Informer, list[str]]]:
    """An informer on the script, and the names it told of."""
    told: list[str] = []
    informer = Informer(cast("ApiClient", script), PODS, lambda obj: told.append(obj["metadata"]["name"]))
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


async def test_broken_watch_goes_on_where_it_stopped() -> None:
    script = Script([(10, [])], [[("ADDED", pod("a", 12)), ApiError(0, "Unreachable", "x")], [("ADDED", pod("b", 13))]])
    async with following(script) as (informer, _):
        await until_asked(script, "watch 12")
        assert versions(informer) == {"a": "12", "b": "13"}


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
    script = Script([(10, [])], watches)
    async with following(script):
        await asyncio.sleep(0.5)
    assert 2 <= len(script.asked) <= 8
