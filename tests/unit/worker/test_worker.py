"""What a worker tells of itself, and when it calls itself live and ready, without a database."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from support.worker_engine import Hints, MemoryEngine, make_claim
from tasker_worker import HandlerRegistry, StepHandler, Worker
from tasker_worker import worker as worker_module
from tasker_worker._version import __version__
from tasker_worker.attempts import Attempt
from tasker_worker.claims import Outcome, OutcomeKind
from tasker_worker.errors import DatabaseError, WorkerError
from tasker_worker.gateway import Offer, SchemaMissing, Unavailable
from tasker_worker.held import HeldClaims
from tasker_worker.hints import HintReceiver, HintSender
from tasker_worker.leases import LeaseKeeper
from tasker_worker.sweeping import Sweeper

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
    attempts[0].finish(Outcome(OutcomeKind.COMPLETE, "null"))
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
    exchange, leases = _parts(worker)
    exchange.held.attempts()[1].began_at, leases.valid_until = 1000.0, 1020.98765
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: 1007.12345))
    told = worker.status()
    assert told["steps_running"][0]["seconds"] == 7.123
    assert told["lease_seconds_left"] == 13.864


def _parts(worker: Worker) -> tuple[Any, Any]:
    return worker._exchange, worker._leases


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
        ({"lag": 60.0}, False),
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


@pytest.mark.parametrize(("now", "live"), [(1300.0, True), (1300.1, False)])
def test_a_handler_has_all_of_its_time_before_the_loop_that_it_blocks_is_dead(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, now: float, live: bool
) -> None:
    running(worker, lag=300, stepping_for=0)
    assert worker._executor is not None
    worker._executor.watch.stepping = Attempt(make_claim(timeout_ms=300_000), 1000.0)
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    assert worker.is_live() is live


@pytest.mark.parametrize(("now", "ready"), [(999.9, True), (1000.0, False)])
def test_it_is_ready_until_the_moment_its_leases_run_out(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, now: float, ready: bool
) -> None:
    running(worker)
    _parts(worker)[1].valid_until = 1000.0
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    assert worker.is_ready() is ready


@pytest.mark.parametrize("missing", ["_exchange", "_executor", "_leases"])
def test_while_a_part_of_it_is_not_there_it_is_live_and_not_ready(worker: Worker, missing: str) -> None:
    running(worker)
    setattr(worker, missing, None)
    assert (worker.is_live(), worker.is_ready()) == (True, False)


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
    may_end = threading.Event()
    asyncio.get_running_loop().call_later(0.02, may_end.set)

    def work() -> None:
        may_end.wait(10)
        threads.append(threading.current_thread())

    async with asyncio.timeout(5):
        await worker_module._in_own_thread(work, 10)
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


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError()], ids=repr)
async def test_where_no_thread_is_left_the_work_is_done_at_once(
    monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise fault

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


async def test_work_of_its_own_that_ends_or_is_cancelled_is_no_failure(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def ends() -> None: ...

    loop = asyncio.get_running_loop()
    tasks = [worker._spawn_hints("hints-out", ends())]
    for work in (ends(), asyncio.Event().wait()):
        tasks.append(loop.create_task(work))  # type: ignore[arg-type]
        tasks[-1].add_done_callback(worker._on_conversation_end)
    tasks[-1].cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert worker._failure is None


# The start


class Database:
    """Plays the gateway: remembers what was asked, and raises what was put into its faults."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.asked: list[Any] = []
        self.left_behind = 0
        self.released = 0
        self.unhandled: list[str] = []

    def _ask(self, question: Any) -> None:
        self.asked.append(question)
        if self.faults:
            raise self.faults.pop(0)

    async def require_contract(self) -> None:
        self._ask("contract")

    async def expire_predecessor(self, worker: str) -> int:
        self._ask(("expire", worker))
        return self.left_behind

    async def register(self, offer: Offer) -> None:
        self._ask(("register", offer.worker))

    async def unhandled_callables(self, worker: str) -> list[str]:
        self._ask(("unhandled", worker))
        return self.unhandled

    async def deregister(self, worker: str) -> int:
        self._ask(("deregister", worker))
        return self.released

    async def close(self) -> None:
        self.asked.append("close")


def _without_port(worker: Worker) -> Worker:
    return Worker(worker.registry, settings=worker.settings, web_enabled=False)


@pytest.mark.parametrize(
    ("left_behind", "unhandled", "told"),
    [
        (0, [], []),
        (2, [], ["an earlier process of this name was lost in the middle of its work"]),
        (0, ["of_others"], ["templates of this namespace need handlers that this worker does not have"]),
    ],
)
async def test_the_start_clears_up_after_an_earlier_process_registers_and_tells_what_is_left_to_others(
    worker: Worker, caplog: pytest.LogCaptureFixture, left_behind: int, unhandled: list[str], told: list[str]
) -> None:
    database: Any = Database()
    database.left_behind, database.unhandled = left_behind, unhandled
    worker._stop_wanted = asyncio.Event()
    await worker._register(database)
    assert database.asked == ["contract", ("expire", "w-1"), ("register", "w-1"), ("unhandled", "w-1")]
    assert [record.getMessage() for record in caplog.records] == told


@pytest.mark.parametrize(
    ("fault", "what"),
    [(Unavailable("down"), "cannot be reached"), (SchemaMissing("none"), "has no schema for this worker")],
)
async def test_a_database_that_is_away_is_asked_after_pauses_that_double_up_to_two_seconds_until_time_is_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, fault: Exception, what: str
) -> None:
    database: Any = Database(*[fault] * 1000)
    now = 1000.0
    pauses: list[float] = []

    def spread(seconds: float) -> float:
        """Each pause takes a second of the worker's time, and none of the test's."""
        nonlocal now
        pauses.append(seconds)
        now += 1
        return 0.0

    monkeypatch.setattr(worker_module, "spread", spread)
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    worker._stop_wanted = asyncio.Event()
    async with asyncio.timeout(5):
        with pytest.raises(DatabaseError, match=rf"^the database {what} after 30 s: (down|none)$"):
            await worker._register(database)
    assert now == 1030.0
    assert len(database.asked) == 31
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * 25]


async def test_the_wait_for_a_database_ends_when_the_worker_is_asked_to_stop(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Any = Database(Unavailable("down"))
    stop_wanted = worker._stop_wanted = asyncio.Event()

    def spread(seconds: float) -> float:
        asyncio.get_running_loop().call_soon(stop_wanted.set)
        return 1000.0

    monkeypatch.setattr(worker_module, "spread", spread)
    async with asyncio.timeout(5):
        await worker._register(database)
    assert database.asked == ["contract"]


async def test_a_worker_that_was_asked_to_stop_before_its_start_asks_the_database_for_no_work(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database()
    monkeypatch.setattr(worker_module, "Gateway", lambda url, *, namespace, lease_seconds, role: database)
    worker = _without_port(worker)
    worker.request_stop()
    async with asyncio.timeout(5):
        await worker.start()
        assert (worker.state, worker.is_live(), worker.is_ready()) == ("running", True, False)
        await worker.run_started()
    assert worker.state == "stopped"
    assert database.asked == [("deregister", "w-1"), "close"]


async def test_a_worker_whose_start_fails_was_starting_and_has_stopped(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database()
    states: list[str] = []

    async def fails(worker: Worker, gateway: Database) -> None:
        states.append(worker.state)
        raise DatabaseError("away")

    monkeypatch.setattr(worker_module, "Gateway", lambda url, *, namespace, lease_seconds, role: database)
    monkeypatch.setattr(Worker, "_register", fails)
    worker = _without_port(worker)
    with pytest.raises(DatabaseError, match=r"^away$"):
        await worker.start()
    assert (states, worker.state) == (["starting"], "stopped")
    assert database.asked == ["close"], "what has not registered does not sign off"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that a worker has started; none of them runs."""
    names: list[str] = []
    monkeypatch.setattr(LeaseKeeper, "start", lambda keeper: names.append("leases"))
    monkeypatch.setattr(Sweeper, "start", lambda sweeper: names.append("sweeps"))
    return names


async def test_its_parts_are_made_as_the_settings_say_each_with_a_connection_of_its_own(
    worker: Worker, started: list[str]
) -> None:
    worker.settings = dataclasses.replace(worker.settings, notifications=False, poll_min_ms=15, poll_max_ms=750)
    worker._begin(MemoryEngine(), 1)  # type: ignore[arg-type]
    conversation, exchange, parts = worker._conversation, worker._exchange, _Private(worker)
    assert conversation is not None
    assert exchange is not None
    conversation.cancel()
    await asyncio.wait([conversation])
    assert started == ["leases", "sweeps"]
    assert (exchange._poll_min, exchange._poll_max) == (0.015, 0.75)
    for connection, role in (
        (parts.gateway_for_locked, "locked"),
        (parts.leases._engine, "leases"),
        (parts.sweeper._engine, "sweeps"),
    ):
        assert connection._settings["application_name"] == f"tasker-worker {role}"
        assert connection._settings["keepalives_idle"] == 10
    assert worker._hint_tasks == []


@pytest.mark.parametrize(("listen_url", "database"), [(None, "x"), ("postgresql://localhost/direct", "direct")])
async def test_hints_are_sent_to_the_database_and_heard_where_sessions_are_kept(
    worker: Worker, started: list[str], monkeypatch: pytest.MonkeyPatch, listen_url: str | None, database: str
) -> None:
    parts: list[Any] = []

    async def run(part: HintSender | HintReceiver) -> None:
        parts.append(part)
        await asyncio.Event().wait()

    monkeypatch.setattr(HintSender, "run", run)
    monkeypatch.setattr(HintReceiver, "run", run)
    worker.settings = dataclasses.replace(worker.settings, listen_database_url=listen_url)
    worker._begin(MemoryEngine(), 1)  # type: ignore[arg-type]
    exchange, conversation = worker._exchange, worker._conversation
    assert exchange is not None
    assert conversation is not None
    await asyncio.sleep(0)
    sender, receiver = parts
    assert (sender._gateway._settings["dbname"], receiver._settings["dbname"]) == ("x", database)
    assert exchange._hinter is sender
    assert receiver._on_ready == exchange.hint
    tasks = [*worker._hint_tasks, conversation]
    for task in tasks:
        task.cancel()
    assert len(tasks) == 3
    await asyncio.wait(tasks)


class _Private:
    """A worker's parts, whatever they are."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, f"_{name}")


async def test_what_a_sweep_has_repaired_is_asked_for_at_once_and_told_to_others(
    worker: Worker, started: list[str]
) -> None:
    hints = Hints()
    exchange: Any = SimpleNamespace(held=HeldClaims(), set_draining=None, hint=lambda: hints.told.append("here"))
    executor: Any = SimpleNamespace(watch=None)
    worker._begin_threads(exchange, executor, hints, 1)
    assert worker._sweeper is not None
    await asyncio.to_thread(worker._sweeper._on_repairs)
    assert hints.told == ["here", "ready", "finished"]


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError("no stack")], ids=repr)
async def test_without_a_thread_for_its_leases_it_does_not_begin(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def none_left(keeper: LeaseKeeper) -> None:
        raise fault

    monkeypatch.setattr(LeaseKeeper, "start", none_left)
    exchange: Any = SimpleNamespace(held=HeldClaims(), set_draining=None)
    executor: Any = SimpleNamespace(watch=None)
    with pytest.raises(WorkerError, match=rf"^the system has no thread for the worker's leases: {fault}$"):
        worker._begin_threads(exchange, executor, Hints(), 1)


# The end


class Waits:
    """In place of the worker's `asyncio`: notes how long it would wait for what, and waits for none of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, done: bool) -> None:
        self.seconds: list[float] = []
        self.done = done
        double = SimpleNamespace(**{**vars(asyncio), "wait": self.wait, "timeout": self.timeout})
        monkeypatch.setattr(worker_module, "asyncio", double)
        monkeypatch.setattr(worker_module, "_in_own_thread", self.in_own_thread)

    async def wait(self, tasks: list[asyncio.Task[None]], *, timeout: float) -> tuple[set[Any], set[Any]]:
        self.seconds.append(timeout)
        if self.done:
            return await asyncio.wait(tasks, timeout=5)
        return set(), set(tasks)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        self.seconds.append(seconds)
        return asyncio.timeout(5)

    async def in_own_thread(self, work: Any, seconds: float) -> None:
        self.seconds.append(seconds)
        work()


class Ended:
    """Any part of a worker, as it ends: remembers how."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.port = 8081

    def stop(self, timeout: float) -> None:
        self.told.append(timeout)

    def release(self, attempt: Attempt) -> None:
        self.told.append(attempt)

    running = 1

    async def close(self) -> None:
        self.told.append("closed")


class EndedServer(Ended):
    """The same, for a part that is closed in a thread."""

    def close(self) -> None:  # type: ignore[override]
        self.told.append("closed")


@pytest.mark.parametrize(("state", "signs_off"), [("stopping", True), ("starting", False)])
async def test_at_the_end_every_part_is_ended_and_none_is_waited_for_without_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, state: str, signs_off: bool
) -> None:
    async def ends_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)

    waits = Waits(monkeypatch, done=True)
    loop = asyncio.get_running_loop()
    parts: dict[str, Any] = {name: Ended() for name in ("leases", "sweeper", "executor", "gateway_for_locked")}
    parts |= {"web": EndedServer(), "gateway": Database()}
    parts["conversation"] = loop.create_task(ends_slowly())
    parts["hint_tasks"] = [loop.create_task(ends_slowly())]
    for name, part in parts.items():
        setattr(worker, f"_{name}", part)
    worker._state = state
    ports = [worker.web_port]
    await asyncio.sleep(0)
    await worker._close()
    ports.append(worker.web_port)
    assert parts["conversation"].cancelled()
    assert parts["hint_tasks"][0].cancelled()
    assert parts["leases"].told == parts["sweeper"].told == [2.0]
    assert parts["executor"].told == parts["gateway_for_locked"].told == parts["web"].told == ["closed"]
    assert parts["gateway"].asked == [*[("deregister", "w-1")] * signs_off, "close"]
    assert waits.seconds == [2.0, 2.0, 4.0, *[4.0] * signs_off, 2.0]
    assert (worker.state, ports) == ("stopped", [8081, None])


@pytest.mark.parametrize(
    ("faults", "released", "told"),
    [
        ([], 0, []),
        ([], 2, ["claims were given back unrun"]),
        ([Unavailable("down")], 0, ["the worker could not sign off"]),
        ([TimeoutError()], 0, ["the worker could not sign off"]),
    ],
)
async def test_what_is_worth_knowing_of_signing_off_is_told(
    worker: Worker, caplog: pytest.LogCaptureFixture, faults: list[Exception], released: int, told: list[str]
) -> None:
    database: Any = Database(*faults)
    database.released = released
    await worker._sign_off(database)
    assert [record.getMessage() for record in caplog.records] == told


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("unsettled", [0, 3])
async def test_after_the_grace_what_runs_is_given_back_and_seconds_are_left_to_settle_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, done: bool, unsettled: int
) -> None:
    waits = Waits(monkeypatch, done=done)
    running(worker)
    exchange, executor, _ = worker._exchange, Ended(), worker._leases
    attempts = exchange.held.attempts()  # type: ignore[union-attr]
    stopped: list[float] = []
    exchange.stop, exchange.outcomes_waiting = stopped.append, unsettled  # type: ignore[union-attr, method-assign, misc]
    worker._executor, worker._leases = executor, None  # type: ignore[assignment]

    async def converse() -> None:
        if not done:
            await asyncio.Event().wait()

    worker._conversation = asyncio.get_running_loop().create_task(converse())
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    if unsettled:
        with pytest.raises(DatabaseError, match=r"^3 outcomes could not be settled before the worker had to stop$"):
            await worker.stop()
    else:
        await worker.stop()
    assert worker.state == "stopped"
    assert stopped == [1029.0], "25 of grace and 4 to settle"
    assert executor.told == ([] if done else [attempts[1]]) + ["closed"]
    assert waits.seconds == ([25.0] if done else [25.0, 8.0]) + [4.0]
