"""Hints are few: one at a time, with a pause between, and what is wanted meanwhile goes together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tasker.errors import StoreUnavailable
from tasker.messaging import postgres
from tasker.messaging.postgres import _Hints


@pytest.fixture
def sent() -> list[list[str]]:
    return []


@pytest.fixture
def hints(sent: list[list[str]]) -> _Hints:
    async def send(queues: Sequence[str]) -> None:
        sent.append(list(queues))

    return _Hints(send)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_the_next_after_a_pause(
    hints: _Hints, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds == 0:
            await real_sleep(0)
            return
        pauses.append(seconds)
        await released.wait()

    monkeypatch.setattr("tasker.messaging.postgres.asyncio.sleep", sleep)
    hints.want(["a"])
    await turns()
    assert sent == [["a"]]
    for _ in range(100):
        hints.want(["c", "b"])
        hints.want(["a"])
    await turns()
    assert (sent, pauses) == ([["a"]], [postgres.HINT_PAUSE_SECONDS])
    released.set()
    await hints.close()
    assert sent == [["a"], ["a", "b", "c"]]


async def test_what_is_wanted_after_a_rest_goes_at_once_again(
    hints: _Hints, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "HINT_PAUSE_SECONDS", 0)
    for name in ("a", "b"):
        hints.want([name])
        await turns()
    assert sent == [["a"], ["b"]]
    await hints.close()


async def test_one_that_cannot_be_sent_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "HINT_PAUSE_SECONDS", 0)
    tried: list[Sequence[str]] = []

    async def refuse(queues: Sequence[str]) -> None:
        tried.append(queues)
        raise StoreUnavailable

    hints = _Hints(refuse)
    hints.want(["a"])
    await turns()
    hints.want(["b"])
    await hints.close()
    assert tried == [["a"], ["b"]]
