"""A loop that ends is logged and begins again, however it ended; one that does not come round is told of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from devcluster.loops import Heartbeat, Loops
from support.waiting import eventually_async


@pytest_asyncio.fixture
async def loops() -> AsyncIterator[Loops]:
    found = Loops()
    yield found
    await found.stop()


async def until_run_twice(loops: Loops, ending: str) -> None:
    """Start a loop that ends in some way the first time; back when it has begun again."""
    again = asyncio.Event()
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            again.set()
            await asyncio.Event().wait()
        if ending == "broke":
            raise LookupError("what it was")
        if ending == "was cancelled":
            raise asyncio.CancelledError

    loops.start("the loop", work, Heartbeat(60))
    async with asyncio.timeout(10):
        await again.wait()


@pytest.mark.parametrize("ending", ["broke", "ended", "was cancelled"])
async def test_a_loop_that_ends_is_logged_and_begins_again(
    loops: Loops, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        await until_run_twice(loops, ending)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the loop {ending}; it begins again in")
    assert (record.exc_info is not None) == (ending == "broke")


async def test_stopping_ends_all_and_is_not_told_as_a_failure(loops: Loops, caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loops.start("the loop", work, Heartbeat(60))
    await asyncio.sleep(0)
    await loops.stop()
    assert ended.is_set()
    assert caplog.records == []


async def test_a_loop_that_does_not_come_round_is_late_and_logged_once(
    loops: Loops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("devcluster.loops.CHECK_SECONDS", 0.001)
    now = 0.0
    heart = Heartbeat(10, clock=lambda: now)
    loops.start("the loop", asyncio.Event().wait, heart)  # type: ignore[arg-type]  # what it gives does not matter
    assert loops.late() == []
    now = 11.0
    assert loops.late() == ["the loop has not come round for 11 s"]

    async def logged() -> bool:
        return bool(caplog.records)

    await eventually_async(logged, what="the watchdog's word")
    await asyncio.sleep(0.01)  # several more of its looks
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("CRITICAL", "the loop has not come round for 11 s")
    ]
    heart.beat()
    assert loops.late() == []


def test_a_heart_at_rest_is_never_late_until_something_is_expected() -> None:
    now = 0.0
    heart = Heartbeat(10, clock=lambda: now)
    now = 100.0
    assert heart.late_seconds() is None
    heart.expect()
    now = 105.0
    heart.expect()  # waits already
    now = 111.0
    assert heart.late_seconds() == 11.0
    heart.rest()
    assert heart.late_seconds() is None
