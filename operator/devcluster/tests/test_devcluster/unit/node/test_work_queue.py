"""The work queue loses no key, works on none twice at once, and never loops hot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from devcluster.loops import Heartbeat
from devcluster.node.client import ApiError
from devcluster.node.work_queue import RetryLater, WorkQueue
from support.waiting import eventually_async


@asynccontextmanager
async def working(queue: WorkQueue[str], reconcile: Callable[[str], Awaitable[None]]) -> AsyncIterator[None]:
    """The queue is being emptied meanwhile."""
    task = asyncio.create_task(queue.run(reconcile, workers=4))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""

    async def probe() -> bool:
        return condition()

    await eventually_async(probe, interval=0.002, timeout=5)


async def test_key_named_many_times_is_done_once() -> None:
    queue, done = WorkQueue[str](), list[str]()

    async def reconcile(key: str) -> None:
        done.append(key)

    for _ in range(10):
        queue.add("a")
    queue.add("b")
    async with working(queue, reconcile):
        await until(lambda: len(done) >= 2)
    assert done == ["a", "b"]


async def test_key_named_during_its_work_is_done_once_more_and_never_twice_at_once() -> None:
    queue = WorkQueue[str]()
    runs, at_once = 0, 0

    async def reconcile(key: str) -> None:
        nonlocal runs, at_once
        at_once += 1
        assert at_once == 1
        runs += 1
        if runs == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0)
        at_once -= 1

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: runs == 2)
        await asyncio.sleep(0.02)
    assert runs == 2


async def test_failure_is_tried_again_with_growing_delays_even_if_it_names_itself() -> None:
    queue = WorkQueue[str]()
    times: list[float] = []

    async def reconcile(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        queue.add(key)
        raise ApiError(500, "InternalError", "no")

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: len(times) == 4)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 0.015
    assert gaps[1] >= 0.03
    assert gaps[2] >= 0.06


async def test_server_that_asks_for_patience_gets_it() -> None:
    queue = WorkQueue[str]()
    times: list[float] = []

    async def reconcile(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise ApiError(429, "TooManyRequests", "later", retry_after=0.2)

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.19


async def test_retry_later_waits_unless_the_key_is_named_earlier() -> None:
    queue = WorkQueue[str]()
    runs = 0

    async def reconcile(key: str) -> None:
        nonlocal runs
        runs += 1
        raise RetryLater(60)

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: runs == 1)
        queue.add_after("a", 30)
        queue.add("a")
        await until(lambda: runs == 2)


async def test_earlier_of_two_times_counts() -> None:
    queue, done = WorkQueue[str](), list[str]()

    async def reconcile(key: str) -> None:
        done.append(key)

    queue.add_after("a", 0.02)
    queue.add_after("a", 60)
    queue.add_after("b", 60)
    queue.add_after("b", 0.02)
    async with working(queue, reconcile):
        await until(lambda: sorted(done) == ["a", "b"])


async def test_a_key_that_waits_for_something_cancelled_is_tried_again_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, done = WorkQueue[str](), list[str]()
    refused = 0

    async def reconcile(key: str) -> None:
        nonlocal refused
        if key == "bad" and refused < 5:
            refused += 1
            waited_for = asyncio.get_running_loop().create_future()
            waited_for.cancel()
            await waited_for
        done.append(key)

    queue.add("bad")
    async with working(queue, reconcile):
        await until(lambda: refused == 5)  # more often than there are workers
        queue.add("good")
        await until(lambda: "good" in done)
        queue.add("bad")
        await until(lambda: "bad" in done)
    assert "bad: CancelledError()" in caplog.text


async def test_a_worker_that_is_cancelled_is_replaced_and_its_key_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    queue, done = WorkQueue[str](), list[str]()
    cancelled = 0

    async def reconcile(key: str) -> None:
        nonlocal cancelled
        if cancelled < 5:  # more than there are workers
            cancelled += 1
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        done.append(key)

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: done == ["a"])
    assert "of the queue was cancelled; it begins again" in caplog.text


async def test_a_key_that_takes_for_ever_is_given_up_for_now_and_named(caplog: pytest.LogCaptureFixture) -> None:
    queue, runs = WorkQueue[str](key_seconds=0.01), list[str]()

    async def reconcile(key: str) -> None:
        runs.append(key)
        await asyncio.Event().wait()

    queue.add("a")
    async with working(queue, reconcile):
        await until(lambda: len(runs) >= 3)
    assert "a: TimeoutError()" in caplog.text


async def test_stopping_with_a_key_in_hand_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    queue, began = WorkQueue[str](), asyncio.Event()

    async def reconcile(_key: str) -> None:
        began.set()
        await asyncio.Event().wait()

    queue.add("a")
    async with working(queue, reconcile):
        await began.wait()
    assert caplog.records == []


async def test_the_queue_is_late_when_keys_wait_and_nobody_takes_one() -> None:
    queue, free = WorkQueue[str](), asyncio.Event()
    done: list[str] = []
    now = 0.0
    queue.heart = Heartbeat(10, clock=lambda: now)

    async def reconcile(key: str) -> None:
        await free.wait()
        done.append(key)

    async with working(queue, reconcile):
        await asyncio.sleep(0)
        now = 100.0
        assert queue.heart.late_seconds() is None  # nothing to do
        for number in range(6):  # two more than there are workers
            queue.add(str(number))
        await asyncio.sleep(0.01)
        now = 111.0
        assert queue.heart.late_seconds() == 11.0
        free.set()
        await until(lambda: len(done) == 6)
        assert queue.heart.late_seconds() is None


async def test_a_queue_that_is_run_again_has_forgotten_nothing() -> None:
    queue, done = WorkQueue[str](), list[str]()
    in_hand = asyncio.Event()

    async def hang(_key: str) -> None:
        in_hand.set()
        await asyncio.Event().wait()

    async def reconcile(key: str) -> None:
        done.append(key)

    queue.add("in hand")
    async with working(queue, hang):
        await in_hand.wait()
        queue.add_after("later", 3600)
    async with working(queue, reconcile):
        await until(lambda: sorted(done) == ["in hand", "later"])
