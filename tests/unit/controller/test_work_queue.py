"""The work queue's coroutines: bounded concurrency, one at a time a key, retries of what failed, one thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from support.virtual_time import run_in_virtual_time, settle, virtual_now
from support.waiting import eventually_async
from tasker.controller.kube.client import ClusterError
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime.keyed_queue import Backoff
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.supervision import Breakdown, Progress
from tasker.controller.runtime.work_queue import RECONCILE_SECONDS, STALL_SECONDS, Reconcile, WorkQueue
from tasker.errors import StoreUnavailable


async def until(condition: Callable[[], bool]) -> None:
    async def probe() -> bool:
        return condition()

    await eventually_async(probe, timeout=20, interval=0.002)


def key(name: str) -> ObjectKey:
    return ObjectKey(namespace="default", name=name)


class Recorder:
    """A reconcile that notes when it was called, and does what it is told, one outcome a call."""

    def __init__(self, *outcomes: BaseException | float | None) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[str, float]] = []
        """Name of the key, and seconds since the start."""
        self.started_at = virtual_now()

    async def __call__(self, current: ObjectKey) -> float | None:
        self.calls.append((current.name, round(virtual_now() - self.started_at, 3)))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @property
    def times(self) -> list[float]:
        return [moment for _, moment in self.calls]


def make_queue(
    reconcile: Reconcile, *, concurrency: int = 2, metrics: OperatorMetrics | None = None, base: float = 1.0
) -> WorkQueue:
    return WorkQueue(
        "Thing",
        reconcile,
        concurrency=concurrency,
        metrics=metrics or OperatorMetrics(),
        backoff=Backoff(base_seconds=base, max_seconds=4 * base),
        clock=virtual_now,
    )


@asynccontextmanager
async def started(queue: WorkQueue) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(queue.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def running(reconcile: Reconcile, *, concurrency: int = 2) -> AsyncIterator[tuple[WorkQueue, OperatorMetrics]]:
    metrics = OperatorMetrics()
    queue = make_queue(reconcile, concurrency=concurrency, metrics=metrics, base=0.01)
    async with started(queue):
        yield queue, metrics


def sample(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tasker_operator_{name}", {"kind": "Thing", **labels})


async def test_no_more_keys_than_allowed_are_worked_on_at_once_and_never_one_key_twice() -> None:
    under_way: list[ObjectKey] = []
    most, done = 0, 0

    async def reconcile(current: ObjectKey) -> float | None:
        nonlocal most, done
        assert current not in under_way
        under_way.append(current)
        most = max(most, len(under_way))
        await asyncio.sleep(0.002)
        under_way.remove(current)
        done += 1
        return None

    async with running(reconcile, concurrency=3) as (queue, _):
        for round_number in range(3):
            for number in range(10):
                queue.add(key(f"k{number}"))
            if round_number < 2:
                await asyncio.sleep(0.003)
        await until(lambda: queue.idle() and done >= 10)
    assert most == 3


async def test_a_key_that_fails_is_tried_until_it_succeeds_and_the_causes_are_counted() -> None:
    outcomes: list[Exception | None] = [
        ClusterError("no", status=409),
        ClusterError("no", status=500),
        StoreUnavailable(),
        ValueError("a bug"),
        None,
    ]
    reconcile = Recorder(*outcomes)
    async with running(reconcile) as (queue, metrics):
        queue.add(key("a"))
        await until(lambda: len(reconcile.calls) == len(outcomes) and queue.idle())
    for cause in ("api_409", "api_500", "database", "ValueError"):
        assert sample(metrics, "reconcile_errors_total", cause=cause) == 1
    assert sample(metrics, "reconciles_total", outcome="error") == 4
    assert sample(metrics, "reconciles_total", outcome="success") == 1
    assert sample(metrics, "reconcile_seconds_count") == 5


async def test_a_reconcile_that_asks_for_it_is_called_again() -> None:
    reconcile = Recorder(0.01, 0.01, None)
    async with running(reconcile) as (queue, _):
        queue.add(key("a"))
        await until(lambda: len(reconcile.calls) == 3)


def test_waits_are_kept_to_the_moment() -> None:
    async def main() -> None:
        reconcile = Recorder(None, 20.0, None)
        queue = make_queue(reconcile)
        async with started(queue):
            queue.add_after(key("a"), 10.0)
            await asyncio.sleep(9.9)
            assert reconcile.calls == []
            queue.add(key("b"))
            await asyncio.sleep(50)
        assert reconcile.calls == [("b", 9.9), ("a", 10.0), ("a", 30.0)]

    run_in_virtual_time(main)


def test_an_earlier_time_wakes_a_queue_that_waits_for_a_later_one() -> None:
    async def main() -> None:
        reconcile = Recorder()
        queue = make_queue(reconcile)
        async with started(queue):
            queue.add_after(key("late"), 100.0)
            await settle()
            queue.add_after(key("early"), 5.0)
            await asyncio.sleep(50)
            assert reconcile.calls == [("early", 5.0)]

    run_in_virtual_time(main)


def test_what_the_server_asks_to_wait_is_the_least_wait() -> None:
    async def main() -> None:
        reconcile = Recorder(ClusterError("busy", status=429, retry_after=30.0), ClusterError("no", status=500), None)
        queue = make_queue(reconcile, base=0.1)
        async with started(queue):
            queue.add(key("a"))
            await asyncio.sleep(29.9)
            queue.add(key("a"))
            queue.add_after(key("a"), 0.01)
            await settle()
            assert reconcile.times == [0.0], "no event hurries it"
            await asyncio.sleep(60)
        first, second, third = reconcile.times
        assert (first, second) == (0.0, 30.0)
        assert 30.1 <= third <= 30.2, "the second failure's own back-off, between half and all of it"

    run_in_virtual_time(main)


@pytest.mark.parametrize(
    ("error", "level", "text"),
    [
        (ClusterError("is old", status=409), logging.DEBUG, "Thing default/a: is old; again in"),
        (ClusterError("is ill", status=500), logging.WARNING, "Thing default/a: is ill; again in"),
        (StoreUnavailable("is away"), logging.WARNING, "Thing default/a: is away; again in"),
        (KeyError("spec"), logging.ERROR, "Thing default/a failed; again in"),
        (asyncio.CancelledError(), logging.ERROR, "Thing default/a failed; again in"),
    ],
)
def test_failures_are_logged_by_their_weight(
    error: BaseException, level: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        reconcile = Recorder(error)
        queue = make_queue(reconcile)
        async with started(queue):
            queue.add(key("a"))
            await asyncio.sleep(10)

    with caplog.at_level(logging.DEBUG, "tasker"):
        run_in_virtual_time(main)
    [record] = [record for record in caplog.records if record.name.startswith("tasker")]
    assert record.levelno == level
    assert record.getMessage().startswith(text)
    assert (record.exc_info is not None) == (level == logging.ERROR), "a traceback for what nobody foresaw"


def test_the_depth_and_the_time_are_shown() -> None:
    async def main() -> None:
        metrics = OperatorMetrics()

        async def reconcile(_: ObjectKey) -> float | None:
            await asyncio.sleep(4)
            return None

        queue = make_queue(reconcile, concurrency=1, metrics=metrics)
        for name in "abc":
            queue.add(key(name))
        assert sample(metrics, "queue_depth") == 3
        assert not queue.idle()
        async with started(queue):
            await asyncio.sleep(5)
            assert sample(metrics, "queue_depth") == 1
            assert not queue.idle()
            await asyncio.sleep(5)
            assert not queue.idle(), "nothing is ready, and one is still under way"
            await asyncio.sleep(5)
            assert queue.idle()
        assert sample(metrics, "reconcile_seconds_sum") == 12.0

    run_in_virtual_time(main)


# What could keep a key taken for ever.


async def test_a_stray_cancellation_is_a_failure_and_frees_the_key() -> None:
    """A library's own task was cancelled: awaiting it raises CancelledError, although nobody cancels the reconcile."""
    calls = 0

    async def reconcile(_: ObjectKey) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            other = asyncio.create_task(asyncio.sleep(60))
            other.cancel()
            await other
        return None

    async with running(reconcile) as (queue, metrics):
        queue.add(key("a"))
        await until(lambda: calls == 2 and queue.idle())
        queue.add(key("a"))
        await until(lambda: calls == 3 and queue.idle())
    assert sample(metrics, "reconcile_errors_total", cause="CancelledError") == 1
    assert sample(metrics, "reconciles_total", outcome="success") == 2


async def test_a_reconcile_that_somebody_else_cancels_is_tried_again() -> None:
    calls = 0
    begun = asyncio.Event()

    async def reconcile(_: ObjectKey) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            begun.set()
            await asyncio.Event().wait()
        return None

    async with running(reconcile) as (queue, _):
        queue.add(key("a"))
        await begun.wait()
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "reconcile Thing default/a"]
        task.cancel()
        await until(lambda: calls == 2 and queue.idle())


async def test_the_end_of_the_queue_ends_its_reconciles_and_counts_no_failure() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def reconcile(_: ObjectKey) -> float | None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    metrics = OperatorMetrics()
    queue = make_queue(reconcile, metrics=metrics)
    task = asyncio.create_task(queue.run())
    queue.add(key("a"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert sample(metrics, "reconciles_total", outcome="error") is None


def test_a_reconcile_that_waits_for_what_never_comes_is_cut_off_and_tried_again() -> None:
    async def main() -> None:
        calls: list[float] = []
        start = virtual_now()

        async def reconcile(_: ObjectKey) -> float | None:
            calls.append(virtual_now() - start)
            if len(calls) == 1:
                await asyncio.Event().wait()
            return None

        metrics = OperatorMetrics()
        queue = make_queue(reconcile, metrics=metrics)
        async with started(queue):
            queue.add(key("a"))
            await asyncio.sleep(RECONCILE_SECONDS + 2)
            assert len(calls) == 2
            assert RECONCILE_SECONDS < calls[1] <= RECONCILE_SECONDS + 1
            assert queue.idle()
        assert sample(metrics, "reconcile_errors_total", cause="TimeoutError") == 1

    run_in_virtual_time(main)


# What supervision sees.


def test_a_queue_shows_whether_it_should_be_taking_keys() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def reconcile(_: ObjectKey) -> float | None:
            await go_on.wait()
            return None

        def progress(count: int, allowed_seconds: float | None) -> Progress:
            return Progress(count=count, allowed_seconds=allowed_seconds)

        queue = make_queue(reconcile, concurrency=1)
        assert queue.name == "queue Thing"
        assert queue.progress() == progress(0, None)
        queue.add_after(key("a"), 10.0)
        assert queue.progress() == progress(0, None), "it waits for its time"
        await asyncio.sleep(10.0)
        assert queue.progress() == progress(0, STALL_SECONDS), "its time has come, and nobody takes it"
        async with started(queue):
            await settle()
            assert queue.progress() == progress(1, None), "taken"
            queue.add(key("b"))
            assert queue.progress() == progress(1, STALL_SECONDS + RECONCILE_SECONDS), "no slot is free"
            go_on.set()
            await settle()
            assert queue.progress() == progress(2, None)

    run_in_virtual_time(main)


def test_a_key_that_counts_as_worked_on_and_is_not_is_seen() -> None:
    """Nobody can see a task's end that never began: its own code did not run."""

    async def main() -> None:
        reconcile = Recorder()
        queue = make_queue(reconcile)
        async with started(queue):
            await settle()
            queue.add(key("a"))
            while not (
                found := [task for task in asyncio.all_tasks() if task.get_name() == "reconcile Thing default/a"]
            ):
                queue.progress()
                await asyncio.sleep(0)
            found[0].cancel()
            await settle()
            assert reconcile.calls == []
            with pytest.raises(Breakdown, match=r"^part 'queue Thing' holds a key that nobody works on"):
                queue.progress()

    run_in_virtual_time(main)


# One thread.


@pytest.fixture
def threads_switch_all_the_time() -> Iterator[None]:
    """A thread may lose the processor after every few instructions, and a race that is there shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("call", ["add", "add_after"])
async def test_a_thread_that_adds_is_refused(call: str) -> None:
    reconcile = Recorder()
    async with running(reconcile) as (queue, _):
        calls = {"add": lambda: queue.add(key("a")), "add_after": lambda: queue.add_after(key("a"), 0.0)}
        with pytest.raises(RuntimeError, match="the work queue of Thing was called from outside its event loop"):
            await asyncio.to_thread(calls[call])
        assert queue.idle()
        calls[call]()
        await until(lambda: len(reconcile.calls) == 1)


async def test_another_loop_that_adds_is_refused() -> None:
    queue = make_queue(Recorder())

    async def elsewhere() -> None:
        queue.add(key("a"))

    with pytest.raises(RuntimeError, match="in the thread 'elsewhere'"):
        await in_a_thread_called("elsewhere", lambda: asyncio.run(elsewhere()))
    assert queue.idle()


async def in_a_thread_called(name: str, call: Callable[[], None]) -> None:
    """Raises what the call raises."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            loop.call_soon_threadsafe(outcome.set_exception, error)
        else:
            loop.call_soon_threadsafe(outcome.set_result, None)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    try:
        await outcome
    finally:
        thread.join()


async def never_called(_: ObjectKey) -> float | None:
    raise AssertionError


def test_a_queue_is_made_in_its_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        WorkQueue("Thing", never_called, concurrency=1, metrics=OperatorMetrics())


@pytest.mark.usefixtures("threads_switch_all_the_time")
async def test_no_key_is_lost_however_adding_and_working_interleave() -> None:
    """Coroutines add while others work, and foreign threads that try all the time to add are refused each time."""
    wanted = 400
    seen: dict[str, int] = {}
    over = threading.Event()
    refusals, strays = 0, 0

    async def reconcile(current: ObjectKey) -> float | None:
        seen[current.name] = seen.get(current.name, 0) + 1
        await asyncio.sleep(0)
        return None

    async with running(reconcile, concurrency=4) as (queue, _):

        def intrude() -> None:
            nonlocal refusals, strays
            while not over.is_set():
                try:
                    queue.add(key("stray"))
                    strays += 1
                except RuntimeError:
                    refusals += 1

        async def add_all(first: int) -> None:
            for number in range(first, wanted, 4):
                queue.add(key(f"k{number}"))
                await asyncio.sleep(0)

        intruders = [threading.Thread(target=intrude) for _ in range(2)]
        for intruder in intruders:
            intruder.start()
        try:
            await asyncio.gather(*(add_all(first) for first in range(4)))
            await until(lambda: len(seen) == wanted and queue.idle())
        finally:
            over.set()
            for intruder in intruders:
                intruder.join()
    assert (strays, refusals > 0) == (0, True)
    assert set(seen.values()) == {1}
