"""A part that ends or no longer moves is logged, counted, told to the probes, and ends the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from support.virtual_time import run_in_virtual_time, settle, virtual_now
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import ROUND_SECONDS, Loop, Pacer
from tasker.controller.runtime.supervision import (
    CHECK_SECONDS,
    Breakdown,
    Part,
    Progress,
    Supervisor,
    Waiter,
)
from tasker.controller.runtime.work_queue import STALL_SECONDS, WorkQueue

KEY = ObjectKey(namespace="default", name="a")


async def for_ever() -> None:
    await asyncio.Event().wait()


class FakePart:
    """Runs what it is given; the test says how far it is."""

    stall = "has done nothing"

    def __init__(self, run: Callable[[], Awaitable[None]] = for_ever, *, name: str = "fake") -> None:
        self.name = name
        self._run = run
        self.count = 0
        self.allowed_seconds: float | None = None

    async def run(self) -> None:
        await self._run()

    def progress(self) -> Progress:
        return Progress(count=self.count, allowed_seconds=self.allowed_seconds)


class Supervised:
    """A supervisor on virtual time, and what it did."""

    def __init__(self) -> None:
        self.metrics = OperatorMetrics()
        self.faults: list[str] = []
        self.frozen_seconds = 0.0
        """Added to the clock, as if the process had stood still for so long."""
        self.supervisor = Supervisor(
            self.metrics, on_fault=self.faults.append, clock=lambda: virtual_now() + self.frozen_seconds
        )

    def count(self, part: str) -> float | None:
        return self.metrics.registry.get_sample_value("tasker_operator_breakdowns_total", {"part": part})

    async def broken_by(self, *parts: Part) -> str:
        """Why running these parts ended."""
        with pytest.raises(Breakdown) as caught:
            await self.supervisor.run(parts)
        return str(caught.value)

    @asynccontextmanager
    async def running(self, *parts: Part) -> AsyncIterator[asyncio.Task[None]]:
        task: asyncio.Task[None] = asyncio.ensure_future(self.supervisor.run(parts))
        await settle()
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_in_virtual_time(test)

    return run


async def raise_an_error() -> None:
    await asyncio.sleep(5)
    raise KeyError("spec")


async def raise_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raise_an_error())


async def raise_two_at_once() -> None:
    raise ExceptionGroup("two", [KeyError("the first"), ValueError("the second")])


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def return_at_once() -> None:
    return


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (return_at_once, "part 'fake' ended by itself"),
        (raise_an_error, "part 'fake' ended: KeyError: 'spec'"),
        (raise_a_group, "part 'fake' ended: KeyError: 'spec'"),
        (raise_two_at_once, "part 'fake' ended: KeyError: 'the first'"),
        (cancel_itself, "part 'fake' was cancelled, and not by the operator's end"),
    ],
)
def test_a_part_that_ends_ends_all(
    run: Callable[[], Awaitable[None]], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def other() -> None:
            try:
                await for_ever()
            finally:
                ended.set()

        supervised = Supervised()
        assert await supervised.broken_by(FakePart(other, name="other"), Waiter("fake", run)) == fault
        assert ended.is_set()
        assert supervised.supervisor.check() == supervised.supervisor.fault == fault
        assert supervised.faults == [fault]
        assert (supervised.count("fake"), supervised.count("other")) == (1, None)

    run_in_virtual_time(main)
    [record] = [record for record in caplog.records if record.name.startswith("tasker")]
    assert (record.levelno, record.getMessage()) == (logging.CRITICAL, fault)
    assert bool(record.exc_info) == ("KeyError" in fault)


@in_virtual_time
async def test_a_part_that_stands_still_for_longer_than_it_may_ends_all() -> None:
    supervised, part = Supervised(), FakePart()
    part.allowed_seconds = 10.0
    start = virtual_now()
    fault = await supervised.broken_by(part)
    assert fault == "part 'fake' has done nothing for 11 s"
    assert virtual_now() - start == pytest.approx(11.0), "ten seconds are right, and the next check is one later"
    assert supervised.count("fake") == 1
    assert supervised.faults == [fault]


@in_virtual_time
async def test_a_part_that_moves_or_has_nothing_to_do_goes_on() -> None:
    supervised, moving, idle = Supervised(), FakePart(name="moving"), FakePart(name="idle")
    moving.allowed_seconds = 10.0
    async with supervised.running(moving, idle, Waiter("waiter", for_ever)) as task:
        for _ in range(100):
            await asyncio.sleep(9.0)
            moving.count += 1
        assert not task.done()
        assert supervised.supervisor.fault is None


@in_virtual_time
async def test_another_allowance_begins_another_wait() -> None:
    """The last slot of a queue has just become free: that no key has been taken for long says nothing."""
    supervised, part = Supervised(), FakePart()
    part.allowed_seconds = 100.0
    async with supervised.running(part):
        await asyncio.sleep(90.0)
        part.allowed_seconds = 10.0
        await asyncio.sleep(9.5)
        assert supervised.supervisor.check() is None
        await asyncio.sleep(2.0)
        assert supervised.supervisor.check() == "part 'fake' has done nothing for 11 s"


@in_virtual_time
async def test_a_process_that_was_frozen_does_not_blame_its_parts() -> None:
    supervised, part = Supervised(), FakePart()
    part.allowed_seconds = 6.0
    async with supervised.running(part) as task:
        supervised.frozen_seconds = 3600.0
        assert supervised.supervisor.check() is None
        supervised.frozen_seconds += 3600.0
        assert supervised.supervisor.check() is None
        supervised.frozen_seconds += 3600.0
        assert supervised.supervisor.check() is None, "three times the most that the time between two checks counts"
        await asyncio.sleep(2 * CHECK_SECONDS)
        assert task.done(), "from then on it counts again"


@in_virtual_time
async def test_nothing_is_checked_before_the_beginning_and_after_the_end() -> None:
    supervised, part = Supervised(), FakePart()
    part.allowed_seconds = 1.0
    for _ in range(10):
        await asyncio.sleep(1.0)
        assert supervised.supervisor.check() is None
    async with supervised.running(part):
        assert supervised.supervisor.check() is None
    for _ in range(10):
        await asyncio.sleep(1.0)
        assert supervised.supervisor.check() is None
    assert (supervised.faults, supervised.count("fake")) == ([], None)


@in_virtual_time
async def test_the_end_by_cancellation_is_no_fault() -> None:
    ended: list[str] = []

    async def part() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(3.0)
            ended.append("part")

    async def that_fails_in_the_end() -> None:
        try:
            await for_ever()
        finally:
            raise KeyError("too late")

    supervised = Supervised()
    async with supervised.running(Waiter("slow", part), Waiter("failing", that_fails_in_the_end)) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["part"], "the end is waited for"
    assert (supervised.supervisor.fault, supervised.faults) == (None, [])


@in_virtual_time
async def test_a_part_that_swallows_a_cancellation_ends_all_the_same() -> None:
    """As one does in Python 3.11 when what it waits for in `asyncio.wait_for` comes at that moment."""
    swallowed = 0

    async def swallow_two() -> None:
        nonlocal swallowed
        while True:
            try:
                await for_ever()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    async with Supervised().running(FakePart(swallow_two)) as task:
        start = virtual_now()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert swallowed == 2
    assert virtual_now() - start == 10.0, "twice five seconds, of the thirty that a pod has to end"


@in_virtual_time
async def test_what_broke_first_is_the_reason() -> None:
    supervised, first, second = Supervised(), FakePart(name="first"), FakePart(name="second")
    first.allowed_seconds, second.allowed_seconds = 5.0, 5.5
    assert await supervised.broken_by(second, first) == "part 'second' has done nothing for 6 s"
    assert (supervised.count("first"), supervised.count("second")) == (None, 1)
    assert len(supervised.faults) == 1


@in_virtual_time
async def test_a_part_that_sees_itself_broken_is_believed() -> None:
    class Torn(FakePart):
        def progress(self) -> Progress:
            raise Breakdown("it is torn")

    supervised = Supervised()
    assert await supervised.broken_by(Torn()) == "it is torn"
    assert supervised.count("fake") == 1


@in_virtual_time
async def test_supervision_that_ends_is_seen_too() -> None:
    class Faulty(FakePart):
        def progress(self) -> Progress:
            raise ZeroDivisionError("a bug")

    supervised = Supervised()
    assert await supervised.broken_by(Faulty()) == "part 'supervision' ended: ZeroDivisionError: a bug"


# The real parts.


@in_virtual_time
async def test_a_queue_whose_wake_up_was_lost_is_seen() -> None:
    """A key is there and nobody was woken: what a call from a foreign thread did."""
    supervised = Supervised()

    async def reconcile(_: ObjectKey) -> float | None:
        return None

    queue = WorkQueue("Thing", reconcile, concurrency=1, metrics=supervised.metrics, clock=virtual_now)
    async with supervised.running(queue) as task:
        await asyncio.sleep(3600.0)
        assert supervised.supervisor.fault is None, "a queue without keys may stand for ever"
        queue._queue.add(KEY)
        await asyncio.sleep(STALL_SECONDS - CHECK_SECONDS)
        assert supervised.supervisor.fault is None
        await asyncio.sleep(3 * CHECK_SECONDS)
        assert task.done()
    assert supervised.faults == ["part 'queue Thing' has taken no key, although some are ready, for 31 s"]


@in_virtual_time
async def test_a_queue_under_load_has_not_stalled() -> None:
    supervised = Supervised()

    async def reconcile(_: ObjectKey) -> float | None:
        await asyncio.sleep(4 * STALL_SECONDS)
        return None

    queue = WorkQueue("Thing", reconcile, concurrency=2, metrics=supervised.metrics, clock=virtual_now)
    async with supervised.running(queue):
        for number in range(20):
            queue.add(ObjectKey(namespace="default", name=f"k{number}"))
        await asyncio.sleep(41 * STALL_SECONDS)
        assert queue.idle()
        assert supervised.supervisor.fault is None


@in_virtual_time
async def test_a_loop_that_does_not_come_round_is_seen() -> None:
    supervised, rounds = Supervised(), 0

    async def once() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            await for_ever()

    loop = Loop("sweep", once, Pacer(5.0), metrics=supervised.metrics, clock=virtual_now)
    start = virtual_now()
    fault = await supervised.broken_by(loop)
    assert fault == f"part 'sweep' has not come round for {5 + ROUND_SECONDS + 1:.0f} s"
    assert virtual_now() - start == pytest.approx(5 + 5 + ROUND_SECONDS + 1, abs=1.0)


@in_virtual_time
async def test_a_loop_whose_rounds_are_slow_but_right_goes_on() -> None:
    supervised = Supervised()

    async def once() -> None:
        await asyncio.sleep(ROUND_SECONDS - 1)

    loop = Loop("resync", once, Pacer(600.0), metrics=supervised.metrics, first_wait_seconds=600.0, clock=virtual_now)
    async with supervised.running(loop):
        await asyncio.sleep(5 * 3600.0)
        assert supervised.supervisor.fault is None
