"""The sweep thread: sweeps at its pace, and settles what others cannot, each outcome until it is answered."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from support.waiting import eventually
from support.worker_engine import MemoryLeaseEngine, make_claim
from tasker_worker import sweeping
from tasker_worker.claims import RELEASE, Settlement
from tasker_worker.gateway import Locked, Refused, Unavailable
from tasker_worker.metrics import WorkerMetrics
from tasker_worker.sweeping import Sweeper


class Bench:
    """A sweeper on a clock of its own."""

    def __init__(self) -> None:
        self.engine = MemoryLeaseEngine()
        self.metrics = WorkerMetrics()
        self.now = 0.0
        self.repaired = threading.Semaphore(0)
        self.sweeper = Sweeper(
            self.engine,
            worker="worker",
            on_repairs=self.repaired.release,
            metrics=self.metrics,
            clock=lambda: self.now,
        )

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.sweeper.tick()


def _releases(count: int) -> list[Settlement]:
    return [Settlement(claim.step_id, claim.fence, RELEASE) for claim in (make_claim() for _ in range(count))]


def _fences(settlements: Sequence[Settlement]) -> list[int]:
    return [settlement.fence for settlement in settlements]


def test_it_sweeps_about_once_a_second_and_tells_of_repairs() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.tick(0.1)
    assert 75 <= bench.engine.sweeps <= 145
    assert not bench.repaired.acquire(blocking=False)
    bench.engine.repairs = {"retries_due": 2}
    for _ in range(2):
        bench.tick(1.4)
    assert [bench.repaired.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    assert bench.metrics.repairs == {"retries_due": 4}


def test_a_sweep_that_fails_is_followed_by_the_next_one() -> None:
    bench = Bench()
    bench.engine.faults.append(Unavailable("down"))
    bench.tick(2)
    assert (bench.engine.sweeps, bench.metrics.sweeps) == (0, 1)
    bench.tick(0.1)
    assert bench.metrics.sweeps == 1, "not at once"
    bench.tick(2)
    assert bench.engine.sweeps == 1


def test_outcomes_are_settled_once_each_and_one_that_waits_for_a_lock_holds_up_no_other() -> None:
    bench = Bench()
    settlements = _releases(3)
    bench.sweeper.settle(settlements)
    bench.sweeper.settle(settlements[:1])
    bench.engine.faults.append(Locked("held"))
    bench.tick()
    assert _fences(bench.engine.settlements) == _fences(settlements[1:])
    bench.tick()
    assert _fences(bench.engine.settlements) == _fences([*settlements[1:], settlements[0]])
    bench.tick()
    assert len(bench.engine.settlements) == 3


def test_a_database_that_is_away_is_asked_again_later_and_one_that_refuses_is_not() -> None:
    bench = Bench()
    settlements = _releases(2)
    bench.sweeper.settle(settlements)
    bench.engine.faults.append(Unavailable("down"))
    bench.tick()
    assert bench.engine.settlements == []
    bench.engine.faults.append(Refused("no"))
    bench.tick()
    bench.tick()
    assert _fences(bench.engine.settlements) == _fences(settlements[1:])


def test_the_thread_does_what_it_is_asked_lives_through_anything_and_closes_its_connection() -> None:
    bench = Bench()
    bench.engine.faults.append(ValueError("unforeseen"))
    bench.sweeper.start()
    [first, second] = _releases(2)
    bench.sweeper.settle([first])
    eventually(lambda: not bench.engine.faults)
    bench.sweeper.settle([second])
    eventually(lambda: len(bench.engine.settlements) == 2)
    bench.sweeper.stop(5)
    assert bench.engine.closed


def test_sweeps_are_spread_and_each_asks_for_a_bounded_number_of_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr(sweeping, "random", SimpleNamespace(uniform=uniform))
    bench = Bench()
    limits: list[int] = []

    def sweep(limit: int) -> dict[str, int]:
        limits.append(limit)
        return {}

    bench.engine.sweep = sweep  # type: ignore[method-assign]
    bench.tick(1.29)
    assert limits == []
    bench.now = 1.3
    bench.tick()
    assert (limits, bench.metrics.sweeps) == ([500], 1)
    assert drawn == [(0, 1.3), (0.7, 1.3)]
    bench.tick(1.2)
    assert len(limits) == 1
    bench.tick(0.11)
    assert len(limits) == 2


def test_a_thread_that_cannot_be_started_need_not_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench = Bench()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            bench.sweeper.start()
    bench.sweeper.stop(5)


def test_the_thread_wakes_for_a_sweep_by_itself_and_keeps_no_program_from_ending() -> None:
    bench = Bench()
    swept = threading.Event()

    def sweep(limit: int) -> dict[str, int]:
        swept.set()
        return {}

    bench.engine.sweep = sweep  # type: ignore[method-assign]
    waits: list[float | None] = []

    class Wanted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            bench.now = bench.sweeper._next_sweep
            return super().wait(0)

    bench.now, bench.sweeper._next_sweep = 5.0, 6.0
    bench.sweeper._wanted = Wanted()
    bench.sweeper.start()
    try:
        assert swept.wait(5)
        assert bench.sweeper._thread is not None
        assert bench.sweeper._thread.daemon
    finally:
        bench.sweeper.stop(5)
    assert waits[0] == 1.0
    assert bench.sweeper._thread is not None
    assert not bench.sweeper._thread.is_alive()


def test_the_thread_wakes_for_what_it_is_asked_and_sleeps_again_until_it_is_asked_to_stop() -> None:
    bench = Bench()
    bench.sweeper._next_sweep = 1e9
    bench.sweeper.start()
    bench.sweeper.settle(_releases(1))
    eventually(lambda: bench.engine.settlements and not bench.sweeper._wanted.is_set())
    bench.sweeper.stop(5)
    assert bench.engine.closed


def test_one_that_is_asked_to_stop_does_nothing_more() -> None:
    bench = Bench()
    bench.sweeper._next_sweep = 1e9
    bench.sweeper.start()
    bench.sweeper._stopping.set()
    bench.sweeper.settle(_releases(1))
    bench.sweeper.stop(5)
    assert bench.engine.settlements == []
    assert bench.engine.closed


def test_stopping_waits_for_the_thread_and_no_longer_than_was_said() -> None:
    bench = Bench()
    waited: list[float] = []
    bench.sweeper._thread = SimpleNamespace(join=waited.append)  # type: ignore[assignment]
    bench.sweeper.stop(5)
    assert waited == [5]
