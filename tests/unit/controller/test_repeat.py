"""A loop's pace, and that it goes on whatever fails."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from support.virtual_time import START_SECONDS, run_in_virtual_time, settle, virtual_now
from tasker.controller.kube.client import ClusterError
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import HINT_PAUSE_SECONDS, Loop, Pacer
from tasker.controller.runtime.supervision import Progress
from tasker.errors import StoreUnavailable


class Job:
    """Notes when it was done, and fails as it is told, one outcome a round; None is success."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self._outcomes = list(outcomes)
        self._start = virtual_now()
        self.times: list[float] = []

    async def __call__(self) -> None:
        self.times.append(round(virtual_now() - self._start, 3))
        outcome = self._outcomes.pop(0) if self._outcomes else None
        if outcome is not None:
            raise outcome


async def run_for(seconds: float, loop: Loop) -> None:
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_rounds_are_a_period_apart() -> None:
    async def main() -> None:
        job = Job()
        await run_for(3.5, Loop("job", job, Pacer(1.0), metrics=OperatorMetrics()))
        assert job.times == [0.0, 1.0, 2.0, 3.0]

    run_in_virtual_time(main)


def test_a_period_shorter_than_the_pause_is_kept() -> None:
    async def main() -> None:
        job = Job()
        await run_for(0.045, Loop("job", job, Pacer(0.02), metrics=OperatorMetrics()))
        assert job.times == [0.0, 0.02, 0.04]

    run_in_virtual_time(main)


def test_the_first_round_may_wait() -> None:
    async def main() -> None:
        job = Job()
        await run_for(13.5, Loop("job", job, Pacer(2.0), metrics=OperatorMetrics(), first_wait_seconds=10.0))
        assert job.times == [10.0, 12.0]

    run_in_virtual_time(main)


def test_a_hint_hurries_the_next_round_and_only_that() -> None:
    async def main() -> None:
        job, pacer = Job(), Pacer(10.0)
        task = asyncio.create_task(Loop("job", job, pacer, metrics=OperatorMetrics()).run())
        await asyncio.sleep(4.0)
        pacer.hurry()
        await asyncio.sleep(15.0)
        assert job.times == [0.0, 4.0, 14.0]
        task.cancel()

    run_in_virtual_time(main)


def test_hints_do_not_drive_a_loop_faster_than_its_pause() -> None:
    async def main() -> None:
        job, pacer = Job(), Pacer(10.0)
        task = asyncio.create_task(Loop("job", job, pacer, metrics=OperatorMetrics()).run())
        for _ in range(100):
            pacer.hurry()
            await asyncio.sleep(0.01)
        assert len(job.times) == pytest.approx(1.0 / HINT_PAUSE_SECONDS, abs=1)
        task.cancel()

    run_in_virtual_time(main)


def test_a_hint_during_a_round_brings_another_round() -> None:
    async def main() -> None:
        pacer = Pacer(10.0)
        times: list[float] = []
        start = virtual_now()

        async def once() -> None:
            times.append(round(virtual_now() - start, 3))
            if len(times) == 1:
                pacer.hurry()

        await run_for(5.0, Loop("job", once, pacer, metrics=OperatorMetrics()))
        assert times == [0.0, HINT_PAUSE_SECONDS]

    run_in_virtual_time(main)


async def test_a_thread_that_hurries_is_refused() -> None:
    pacer = Pacer(10.0)
    with pytest.raises(RuntimeError, match="a pacer was called from outside its event loop"):
        await asyncio.to_thread(pacer.hurry)
    pacer.hurry()


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("away"), ClusterError("away", status=500), KeyError("a bug"), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_a_round_that_fails_is_counted_and_the_loop_goes_on(error: BaseException) -> None:
    async def main() -> None:
        metrics = OperatorMetrics()
        job = Job(None, error, error, None)
        loop = Loop("job", job, Pacer(1.0), metrics=metrics, clock=virtual_now)
        sample = metrics.registry.get_sample_value
        task = asyncio.create_task(loop.run())
        await asyncio.sleep(2.5)
        assert sample("tasker_operator_loop_lag_seconds", {"loop": "job"}) == pytest.approx(2.5), "since the success"
        await asyncio.sleep(2.0)
        assert sample("tasker_operator_loop_lag_seconds", {"loop": "job"}) == pytest.approx(0.5)
        assert job.times == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert sample("tasker_operator_loop_failures_total", {"loop": "job"}) == 2
        assert loop.progress().count == 5, "a round that failed is a round"
        task.cancel()

    run_in_virtual_time(main)


def test_an_interruption_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        away = StoreUnavailable("away")
        await run_for(9.5, Loop("job", Job(None, away, away, away, None, None, away), Pacer(1.0), metrics=metrics))

    metrics = OperatorMetrics()
    with caplog.at_level(logging.DEBUG, "tasker"):
        run_in_virtual_time(main)
    logged = [(record.levelname, record.getMessage()) for record in caplog.records if "tasker" in record.name]
    interrupted, again = ("WARNING", "job is interrupted: away"), ("INFO", "job goes on")
    assert logged == [interrupted, again, interrupted, again]


def test_what_nobody_foresaw_is_logged_each_time_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        errors = (KeyError("spec"), asyncio.CancelledError(), StoreUnavailable("away"))
        await run_for(3.5, Loop("job", Job(*errors), Pacer(1.0), metrics=OperatorMetrics()))

    with caplog.at_level(logging.DEBUG, "tasker"):
        run_in_virtual_time(main)
    records = [record for record in caplog.records if "tasker" in record.name]
    assert [(record.levelname, record.getMessage(), bool(record.exc_info)) for record in records] == [
        ("ERROR", "job failed", True),
        ("ERROR", "job was cancelled from within", True),
        ("INFO", "job goes on", False),
    ]


@pytest.mark.parametrize("where", ["in its round", "between its rounds"])
def test_a_loop_that_is_cancelled_ends(where: str) -> None:
    async def main() -> None:
        metrics = OperatorMetrics()

        async def once() -> None:
            await asyncio.sleep(10.0 if where == "in its round" else 0.0)

        task = asyncio.create_task(Loop("job", once, Pacer(10.0), metrics=metrics).run())
        await asyncio.sleep(5.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert metrics.registry.get_sample_value("tasker_operator_loop_failures_total", {"loop": "job"}) == 0

    run_in_virtual_time(main)


def test_the_longest_that_a_round_may_take_is_its_wait_and_its_work() -> None:
    async def main() -> None:
        job = Job()

        def longest(period_seconds: float, **arguments: Any) -> float | None:
            loop = Loop("job", job, Pacer(period_seconds), metrics=OperatorMetrics(), **arguments)
            assert loop.progress().count == 0
            return loop.progress().allowed_seconds

        assert longest(1.0) == 121.0
        assert longest(300.0, round_seconds=900.0, first_wait_seconds=300.0) == 1200.0
        assert longest(1.0, first_wait_seconds=5.0) == 125.0

    run_in_virtual_time(main)


def test_a_loop_shows_each_time_that_it_came_round() -> None:
    async def main() -> None:
        loop = Loop("job", Job(), Pacer(1.0), metrics=OperatorMetrics())
        task = asyncio.create_task(loop.run())
        for count in range(1, 5):
            await settle()
            assert loop.progress() == Progress(count=count, allowed_seconds=121.0)
            await asyncio.sleep(1.0)
        task.cancel()

    run_in_virtual_time(main)


def test_a_hint_is_never_lost_whenever_it_comes() -> None:
    """After any hint a round begins within the pause and the round under way."""

    async def main() -> None:
        pacer, times = Pacer(1000.0), list[float]()

        async def once() -> None:
            times.append(virtual_now())
            await asyncio.sleep(0.05)

        task = asyncio.create_task(Loop("job", once, pacer, metrics=OperatorMetrics()).run())
        chance = random.Random(7)
        for _ in range(500):
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            pacer.hurry()
            hinted = virtual_now()
            await asyncio.sleep(0.05 + HINT_PAUSE_SECONDS + 0.001)
            assert times[-1] >= hinted
        task.cancel()

    run_in_virtual_time(main)


def test_a_cancellation_that_a_round_swallowed_ends_the_loop_after_that_round() -> None:
    """As a round does in Python 3.11 when what it waits for in `asyncio.wait_for` comes at that moment."""

    async def main() -> None:
        async def once() -> None:
            try:
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                await asyncio.sleep(1.0)

        task = asyncio.create_task(Loop("job", once, Pacer(10.0), metrics=OperatorMetrics()).run())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert virtual_now() == START_SECONDS + 1.0

    run_in_virtual_time(main)
