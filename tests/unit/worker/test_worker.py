"""What a worker tells of itself, and when it calls itself live and ready, without a database."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from support.worker_engine import make_claim
from tasker_worker import HandlerRegistry, StepHandler, Worker
from tasker_worker import worker as worker_module
from tasker_worker._version import __version__
from tasker_worker.attempts import Attempt
from tasker_worker.claims import Outcome, OutcomeKind
from tasker_worker.errors import WorkerError
from tasker_worker.held import HeldClaims

URL = "postgresql://localhost/x"


class Order(StepHandler):
    handler_name = "order"
    handler_version = "2.1.0"


@pytest.fixture
def worker() -> Worker:
    registry = HandlerRegistry()
    registry.register("order", Order)
    return Worker(
        registry,
        database_url=URL,
        namespace="shop",
        pool="big",
        name="w-1",
        slots=7,
        environment="test",
        lease_seconds=30,
        template_hash="5f2a",
    )


def running(worker: Worker, **changes: Any) -> Worker:
    """The worker as if it ran, with parts that say what a test wants; `changes` by what they are called below."""
    parts: dict[str, Any] = {
        "draining": True,
        "connected": True,
        "stuck": 2,
        "out_of_threads": False,
        "alive": True,
        "lag": 0.1234,
    }
    parts |= changes
    held = HeldClaims()
    attempts = []
    for _ in range(2):
        held.call_begins(time.monotonic())
        attempts += held.call_ends([make_claim("order", attempt=3)], time.monotonic())[0]
    attempts[0].finish(Outcome(OutcomeKind.SUCCESS, "{}"))
    attempts[1].begin()
    attempts[1].context.heartbeat({"done": 5})
    stepping = None
    if "stepping_for" in parts:
        stepping = Attempt(make_claim(timeout_ms=300_000), time.monotonic() - parts["stepping_for"])
    exchange = SimpleNamespace(
        held=held, draining=parts["draining"], connected=parts["connected"], outcomes_waiting=4, hint=None
    )
    executor = SimpleNamespace(
        running=1,
        stuck_threads=parts["stuck"],
        out_of_threads=parts["out_of_threads"],
        watch=SimpleNamespace(stepping=stepping),
    )
    leases = SimpleNamespace(
        alive=parts["alive"], loop_lag=parts["lag"], valid_until=time.monotonic() + parts.get("valid", 20)
    )
    worker._exchange, worker._executor, worker._leases = exchange, executor, leases  # type: ignore[assignment]
    worker._state = parts.get("state", "running")
    return worker


def test_a_worker_that_has_not_begun_tells_what_it_is(worker: Worker) -> None:
    assert worker.status() == {
        "running": False,
        "state": "new",
        "live": True,
        "ready": False,
        "draining": False,
        "worker": "w-1",
        "namespace": "shop",
        "pool": "big",
        "environment": "test",
        "version": __version__,
        "slots": 7,
        "handlers": {"order": "2.1.0"},
        "steps_running": [],
        "outcomes_waiting": 0,
        "threads_stuck": 0,
        "out_of_threads": False,
        "loop_lag_seconds": 0.0,
        "lease_seconds_left": None,
        "steps_succeeded": 0,
        "steps_failed": 0,
    }
    assert worker._gauges() == {
        "slots": 7,
        "steps_running": 0,
        "outcomes_waiting": 0,
        "threads_stuck": 0,
        "loop_lag_seconds": 0,
        "lease_seconds_left": 0,
        "ready": False,
        "draining": 0,
    }
    assert (worker.name, worker.state, worker.web_port) == ("w-1", "new", None)


def test_a_worker_that_runs_tells_how_it_is(worker: Worker) -> None:
    running(worker)
    worker.metrics.succeeded, worker.metrics.failed = 11, 12
    told = worker.status()
    [step] = told.pop("steps_running")
    left = told.pop("lease_seconds_left")
    assert 19 < left <= 20
    assert left == round(left, 3)
    assert 0 <= step.pop("seconds") < 5
    assert step == {
        "task_uuid": make_claim().task_uuid,
        "step": "order",
        "attempt": 3,
        "cancelled": False,
        "heartbeat": {"done": 5},
    }
    assert told == {
        "running": True,
        "state": "running",
        "live": True,
        "ready": True,
        "draining": True,
        "worker": "w-1",
        "namespace": "shop",
        "pool": "big",
        "environment": "test",
        "version": __version__,
        "slots": 7,
        "handlers": {"order": "2.1.0"},
        "outcomes_waiting": 4,
        "threads_stuck": 2,
        "out_of_threads": False,
        "loop_lag_seconds": 0.123,
        "steps_succeeded": 11,
        "steps_failed": 12,
    }
    gauges = worker._gauges()
    assert 19 < gauges.pop("lease_seconds_left") <= 20
    assert gauges == {
        "slots": 7,
        "steps_running": 1,
        "outcomes_waiting": 4,
        "threads_stuck": 2,
        "loop_lag_seconds": 0.1234,
        "ready": True,
        "draining": True,
    }


def test_seconds_in_the_status_are_since_the_handler_was_called(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(worker)
    now = time.monotonic() + 7
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    told = worker.status()
    assert 7 <= told["steps_running"][0]["seconds"] < 12
    assert told["steps_running"][0]["seconds"] == round(told["steps_running"][0]["seconds"], 3)
    assert 8 < told["lease_seconds_left"] <= 13


def test_the_metrics_name_the_worker(worker: Worker) -> None:
    lines = running(worker).metrics_text().decode().splitlines()
    assert (
        f'tasker_worker_info{{environment="test",namespace="shop",pool="big",version="{__version__}",worker="w-1"}} 1.0'
        in {_sorted_labels(line) for line in lines}
    )
    assert "tasker_worker_slots 7.0" in lines


def _sorted_labels(line: str) -> str:
    name, brace, rest = line.partition("{")
    labels, _, value = rest.partition("}")
    return f"{name}{{{','.join(sorted(labels.split(',')))}}}{value}" if brace else line


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({}, True),
        ({"state": "starting"}, False),
        ({"state": "stopping"}, False),
        ({"connected": False}, False),
        ({"out_of_threads": True}, False),
        ({"valid": -0.01}, False),
    ],
)
def test_it_is_ready_while_it_can_take_work(worker: Worker, changes: dict[str, Any], ready: bool) -> None:
    assert running(worker, **changes).is_ready() is ready
    assert worker.status()["running"] is (worker.state != "starting")


@pytest.mark.parametrize(
    ("changes", "live"),
    [
        ({"lag": 59.9}, True),
        ({"lag": 60.1}, False),
        ({"lag": 60.1, "state": "stopping"}, True),
        ({"alive": False}, False),
        ({"alive": False, "state": "starting"}, True),
        ({"lag": 70, "stepping_for": 0}, True),
        ({"lag": 70, "stepping_for": 301}, False),
    ],
)
def test_it_is_live_unless_its_loop_or_its_leases_are_dead(worker: Worker, changes: dict[str, Any], live: bool) -> None:
    assert running(worker, **changes).is_live() is live


def test_what_it_offers_is_what_it_is(worker: Worker) -> None:
    assert worker._offer()._asdict() == {
        "worker": "w-1",
        "namespace": "shop",
        "pool": "big",
        "slots": 7,
        "version": __version__,
        "callables": worker.registry.callables(),
        "lease_seconds": 30,
        "template_hash": "5f2a",
    }


def test_settings_given_whole_may_be_overridden_too(worker: Worker) -> None:
    made = Worker(settings=worker.settings, slots=3)
    assert (made.settings.slots, made.settings.namespace) == (3, "shop")


async def test_one_that_was_not_started_stops_at_once_and_may_be_asked_before_there_is_a_loop(worker: Worker) -> None:
    await worker.stop()
    assert worker.state == "new"
    worker.request_stop()
    worker._stop_wanted, worker._loop = asyncio.Event(), asyncio.new_event_loop()
    worker._loop.close()
    worker.request_stop()  # a loop that is closed has nothing to be told


async def test_work_in_a_thread_of_its_own_is_waited_for_and_no_longer_than_its_time() -> None:
    threads: list[threading.Thread] = []
    await worker_module._in_own_thread(lambda: threads.append(threading.current_thread()), 10)
    assert threads[0].daemon
    assert threads[0] is not threading.main_thread()
    go = threading.Event()

    def wait() -> None:
        threads.append(threading.current_thread())
        go.wait(10)

    began = time.monotonic()
    try:
        await worker_module._in_own_thread(wait, 0.01)
    finally:
        go.set()
    assert time.monotonic() - began < 5
    await asyncio.to_thread(threads[1].join)  # the loop that it would wake is open, or closed by then


async def test_where_no_thread_is_left_the_work_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    done: list[threading.Thread] = []
    await worker_module._in_own_thread(lambda: done.append(threading.current_thread()), 10)
    assert done == [threading.main_thread()]


async def test_hints_that_break_are_reported_and_those_that_are_cancelled_are_not(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("a fault of ours")

    tasks = [worker._spawn_hints("hints-out", broken()), worker._spawn_hints("hints-in", asyncio.Event().wait())]  # type: ignore[arg-type]
    tasks[1].cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "hints-out broke; polling goes on"
    ]


async def test_an_exchange_that_breaks_ends_the_worker_with_the_reason(worker: Worker) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("a fault of ours")

    worker._loop, worker._stop_wanted = asyncio.get_running_loop(), asyncio.Event()
    worker._state = "stopped"  # nothing to stop
    task = asyncio.get_running_loop().create_task(broken())
    task.add_done_callback(worker._on_conversation_end)
    with pytest.raises(WorkerError, match=r"^the worker broke: ZeroDivisionError\('a fault of ours'\)$") as raised:
        await asyncio.wait_for(worker.run_started(), 5)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
