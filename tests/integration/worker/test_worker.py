"""A worker in this process against a real engine: whole runs, and the failures that a worker lives through."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from support.cut_proxy import CutProxy, cut_proxy
from support.engine import NAMESPACE, Lab, step
from support.waiting import eventually_async
from tasker_worker import (
    HandlerRegistry,
    PermanentError,
    RetryableError,
    StepContext,
    StepHandler,
    Worker,
    depends_on,
    inputs,
)
from tasker_worker.errors import ConfigurationError, DatabaseError, WorkerError

NOW = {"retry": {"backoff": "none", "jitter": 0}}


@asynccontextmanager
async def worker_on(url: str, **handlers: Any) -> AsyncIterator[Worker]:
    """A worker with these handlers and settings; names of settings are settings."""
    settings: dict[str, Any] = {
        "database_url": url,
        "namespace": NAMESPACE,
        "name": "w-1",
        "web_enabled": False,
        "shutdown_grace_seconds": 10,
    }
    for name in (
        "slots",
        "name",
        "lease_seconds",
        "notifications",
        "poll_max_ms",
        "web_enabled",
        "web_port",
        "web_host",
    ):
        if name in handlers:
            settings[name] = handlers.pop(name)
    registry = HandlerRegistry()
    registry.register_all(handlers)
    async with Worker(registry, **settings) as worker:
        yield worker


@pytest_asyncio.fixture
async def ended(lab: Lab) -> Callable[..., Awaitable[dict[str, dict[str, Any]]]]:
    """Waits until a run ended in a state (complete); gives its steps."""

    async def wait(task: UUID, state: str = "complete") -> dict[str, dict[str, Any]]:
        async def there() -> bool:
            return await lab.state(task) == state

        await eventually_async(there, timeout=20, what=f"{task} ended as {state}")
        return await lab.steps(task)

    return wait


Ended = Callable[..., Awaitable[dict[str, dict[str, Any]]]]


async def test_a_run_of_every_kind_of_handler_ends_with_its_results(lab: Lab, ended: Ended) -> None:
    @inputs("value")
    async def square(value: int) -> Any:
        await asyncio.sleep(0)
        return {"value": value**2}

    def add(context: StepContext) -> Any:
        return context.get_dependency_field("square", "value") + context.get_config("amount")

    class Double(StepHandler):
        def twice(self, context: StepContext) -> Any:
            return self.success(context.get_dependency_field("square", "value") * 2, metadata={"how": "twice"})

    @depends_on(left="add", right="double")
    def average(left: int, right: int) -> Any:
        return (left + right) / 2

    task = await lab.run(
        step("square", callable="square"),
        step("add", "square", handler={"callable": "add", "initialization": {"amount": 25}}),
        step("double", "square", handler={"callable": "double", "method": "twice"}),
        step("average", "add", "double", callable="average"),
        context={"value": 4},
    )
    async with worker_on(lab.url, square=square, add=add, double=Double, average=average) as worker:
        steps = await ended(task)
        assert {name: row["result"] for name, row in steps.items()} == {
            "square": {"value": 16},
            "add": 41,
            "double": 32,
            "average": 36.5,
        }
        assert steps["double"]["metadata"] == {"how": "twice"}
        assert worker.status()["steps_succeeded"] == 4


async def test_what_handlers_do_wrong_is_recorded_with_its_exact_text(lab: Lab, ended: Ended) -> None:
    def raises(context: StepContext) -> Any:
        raise PermanentError("no stock")

    def exits(context: StepContext) -> Any:
        raise SystemExit(3)

    async def exits_in_a_task(context: StepContext) -> Any:
        raise SystemExit(4)

    def no_json(context: StepContext) -> Any:
        return {"items": [1, 2, object()]}

    def too_large(context: StepContext) -> Any:
        return "x" * 2_000_000

    async def never(context: StepContext) -> Any:
        await asyncio.Event().wait()

    go = threading.Event()

    def never_in_a_thread(context: StepContext) -> Any:
        go.wait(20)

    once = {"retry": {"maxAttempts": 1}}
    handlers: dict[str, Any] = {
        "raises": raises,
        "exits": exits,
        "exits_in_a_task": exits_in_a_task,
        "no_json": no_json,
        "too_large": too_large,
        "never": never,
        "never_in_a_thread": never_in_a_thread,
    }
    task = await lab.run(*(step(name, callable=name, timeoutSeconds=1, **once) for name in handlers))
    async with worker_on(lab.url, **handlers) as worker:
        await ended(task, "error")
        failures = await lab.rows(
            "select d.name, f.error_type, f.message from tasker.step_failures f join tasker.steps s using (step_id)"
            " join tasker.definitions d on d.definition_id = s.definition_id"
        )
        assert {row["name"]: (row["error_type"], row["message"]) for row in failures} == {
            "raises": ("PermanentError", "no stock"),
            "exits": ("HandlerError", "handler called sys.exit(3)"),
            "exits_in_a_task": ("HandlerError", "handler called sys.exit(4)"),
            "no_json": ("PermanentError", "result of step 'no_json' is not JSON: $.items[2] is an object"),
            "too_large": (
                "PermanentError",
                "result of step 'too_large' is 2000002 bytes of JSON, the limit is 1048576",
            ),
            "never": ("Timeout", "step 'never' exceeded its timeout of 1 s"),
            "never_in_a_thread": ("Timeout", "step 'never_in_a_thread' exceeded its timeout of 1 s"),
        }
        assert worker.status()["threads_stuck"] == 1
        go.set()


async def test_failed_steps_are_retried_as_often_as_they_may(lab: Lab, ended: Ended) -> None:
    seen: list[tuple[int, bool, bool]] = []

    async def flaky(context: StepContext) -> Any:
        seen.append((context.attempt, context.is_retry, context.is_last_retry))
        if context.attempt < 3:
            raise RetryableError("not yet", retry_after=0)
        return "at last"

    task = await lab.run(step("flaky", callable="flaky"))
    async with worker_on(lab.url, flaky=flaky):
        assert (await ended(task))["flaky"]["result"] == "at last"
    assert seen == [(1, False, False), (2, True, False), (3, True, True)]


async def test_dotted_paths_are_offered_and_resolved(lab: Lab, ended: Ended) -> None:
    task = await lab.run(step("a", callable=f"{__name__}.at_module_level"), step("b", callable=f"{__name__}:InModule"))
    async with worker_on(lab.url, some_name=at_module_level, other_name=InModule):
        steps = await ended(task)
        assert (steps["a"]["result"], steps["b"]["result"]) == ("function", "class")


def at_module_level(context: StepContext) -> Any:
    return "function"


class InModule(StepHandler):
    def call(self, context: StepContext) -> Any:
        return "class"


async def test_a_worker_takes_only_what_it_has_handlers_for_and_others_are_left_alone(lab: Lab, ended: Ended) -> None:
    task = await lab.run(step("mine", callable="mine"), step("theirs", callable="theirs"))
    async with worker_on(lab.url, mine=lambda context: 1) as worker:

        async def mine_is_done() -> bool:
            return (await lab.step_states(task))["mine"] == "complete"

        await eventually_async(mine_is_done)
        assert (await lab.step_states(task))["theirs"] == "enqueued"
        worker.registry.register("theirs", lambda context: 2)  # a running worker learns it
        assert (await ended(task))["theirs"]["result"] == 2


@pytest.mark.parametrize("notifications", [True, False])
async def test_work_is_found_with_hints_and_without(lab: Lab, ended: Ended, notifications: bool) -> None:
    async with worker_on(lab.url, do=lambda context: 1, notifications=notifications, poll_max_ms=200) as worker:
        await ended(await lab.run(step("a"), step("b", "a")))
        if notifications:
            await lab.engine.workers.hint_ready()
            await eventually_async(_true_when(lambda: worker.metrics.hints_received > 0))
        else:
            assert worker.metrics.hints_received == worker.metrics.hints_sent == 0


async def test_a_hint_wakes_an_idle_worker_at_once(lab: Lab, ended: Ended) -> None:
    async with worker_on(lab.url, do=lambda context: 1, poll_max_ms=600_000) as worker:
        await lab.template(step("a"))
        exchange = worker._exchange
        assert exchange is not None
        await eventually_async(_true_when(lambda: worker.metrics.hints_received >= 0 and exchange._poll_delay > 5))
        task = await lab.submit()
        await lab.engine.workers.hint_ready()
        await ended(task)


async def test_workers_hint_each_other_of_what_they_cannot_take(lab: Lab, ended: Ended) -> None:
    began = asyncio.Event()

    async def slow(context: StepContext) -> Any:
        began.set()
        await asyncio.sleep(0.01)
        return 1

    listening = asyncio.Event()
    heard: set[str] = set()

    async def listen() -> None:
        async with await psycopg.AsyncConnection.connect(lab.url, autocommit=True) as connection:
            await connection.execute("listen tasker_ready")
            await connection.execute("listen tasker_finished")
            listening.set()
            async for notify in connection.notifies():
                heard.add(notify.channel)

    listener = asyncio.get_running_loop().create_task(listen())
    await listening.wait()
    async with worker_on(lab.url, do=slow, slots=1):
        task = await lab.run(step("a"), *(step(f"b{place}", "a") for place in range(5)))
        await ended(task)
        await eventually_async(_true_when(lambda: {"tasker_ready", "tasker_finished"} <= heard))
    listener.cancel()


async def test_a_cancelled_task_tells_its_running_handler_and_drops_the_result(lab: Lab) -> None:
    told = asyncio.Event()
    began = asyncio.Event()

    async def patient(context: StepContext) -> Any:
        began.set()
        while context.heartbeat("waiting"):  # noqa: ASYNC110 - a handler is told by its context, not by an event
            await asyncio.sleep(0.005)
        told.set()
        return "ignored"

    task = await lab.run(step("a", callable="patient"))
    async with worker_on(lab.url, patient=patient, lease_seconds=0.6) as worker:
        await asyncio.wait_for(began.wait(), 10)
        assert worker.status()["steps_running"][0]["step"] == "a"
        await lab.engine.actions.cancel(task, actor="test", reason="no need")
        await asyncio.wait_for(told.wait(), 10)
        # Each is counted by its own thread.
        counted = worker.metrics
        await eventually_async(_true_when(lambda: (counted.results_discarded, counted.leases_lost) == (1, 1)))
    steps = await lab.steps(task)
    assert (steps["a"]["state"], steps["a"]["result"]) == ("cancelled", None)


async def test_a_worker_that_was_forgotten_registers_again_and_goes_on(
    lab: Lab, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with worker_on(lab.url, do=lambda context: 1, lease_seconds=0.6):
        await ended(await lab.run(step("a")))
        await lab.execute("delete from tasker.workers")

        async def known_again() -> bool:
            return bool(await lab.rows("select from tasker.workers where name = 'w-1'"))

        await eventually_async(known_again)
        assert "the database does not know this worker" in caplog.text
        await ended(await lab.submit())


async def test_a_draining_worker_ends_what_it_has_and_takes_no_more(lab: Lab, ended: Ended) -> None:
    go, began = asyncio.Event(), asyncio.Event()

    async def held(context: StepContext) -> Any:
        began.set()
        await go.wait()
        return 1

    first = await lab.run(step("a", callable="held"))
    async with worker_on(lab.url, held=held, lease_seconds=0.6) as worker:
        await asyncio.wait_for(began.wait(), 10)
        await lab.execute("select tasker.drain_worker('shop', 'w-1')")
        await eventually_async(_true_when(lambda: worker.status()["draining"]))
        second = await lab.submit()
        go.set()
        await ended(first)
        calls = worker.metrics.claimed
        await lab.engine.workers.hint_ready()
        assert await lab.step_states(second) == {"a": "enqueued"}
        await lab.engine.workers.undrain(NAMESPACE, ["w-1"])
        await ended(second)
        assert worker.metrics.claimed == calls + 1


async def test_stopping_lets_handlers_end_gives_back_the_rest_and_signs_off(lab: Lab) -> None:
    began = asyncio.Semaphore(0)
    told = asyncio.Event()
    quick_may_end = asyncio.Event()

    async def quick(context: StepContext) -> Any:
        began.release()
        await quick_may_end.wait()
        return "done"

    async def slow(context: StepContext) -> Any:
        began.release()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    task = await lab.run(step("quick", callable="quick"), step("slow", callable="slow"))
    async with worker_on(lab.url, quick=quick, slow=slow) as worker:
        for _ in range(2):
            await asyncio.wait_for(began.acquire(), 10)
        stopping = asyncio.get_running_loop().create_task(worker.stop(grace_seconds=0.3))
        await asyncio.sleep(0)
        quick_may_end.set()
        await stopping
        assert worker.state == "stopped"
    assert told.is_set()
    steps = await lab.steps(task)
    assert (steps["quick"]["state"], steps["quick"]["result"]) == ("complete", "done")
    assert (steps["slow"]["state"], steps["slow"]["attempts"]) == ("enqueued", 0)
    assert await lab.rows("select from tasker.workers") == []
    assert await lab.rows("select from tasker.leases") == []


async def test_a_worker_that_has_stopped_has_left_no_session_behind(lab: Lab, ended: Ended) -> None:
    async def roles() -> set[str]:
        sessions = await lab.rows(
            "select application_name from pg_stat_activity"
            " where starts_with(application_name, 'tasker-worker ') and datname = current_database()"
        )
        return {row["application_name"].removeprefix("tasker-worker ") for row in sessions}

    async def all_there() -> bool:
        return await roles() == {"exchange", "locked", "leases", "sweeps", "hints", "listen"}

    async def none_left() -> bool:
        return not await roles()

    async with worker_on(lab.url, do=lambda context: 1, lease_seconds=0.6) as worker:
        await ended(await lab.run(step("a")))
        assert worker._gateway_for_locked is not None
        await worker._gateway_for_locked.connect()
        await eventually_async(all_there)
    await eventually_async(none_left)


async def test_sessions_that_are_terminated_all_the_time_lose_and_double_nothing(lab: Lab, ended: Ended) -> None:
    ran: Counter[tuple[str, int]] = Counter()

    async def work(context: StepContext) -> Any:
        ran[(context.step_uuid, context.attempt)] += 1
        await asyncio.sleep(0.003)
        return {"attempt": context.attempt}

    await lab.template(step("a"), step("b", "a"), step("c", "b"), defaults={"retry": {"maxAttempts": 20}})
    tasks = [await lab.submit() for _ in range(60)]
    async with worker_on(lab.url, do=work, lease_seconds=1.2) as worker:
        for _ in range(8):
            await _claimed_more(worker, 10, unless_done=180)
            await lab.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'tasker-worker %%' and datname = current_database()"
            )
        for task in tasks:
            await ended(task)
        # The last session may have gone when all was done: the next poll finds it and opens another.
        await eventually_async(_true_when(lambda: worker.status()["ready"]))
        assert worker.metrics.results_discarded == 0
    assert max(ran.values()) == 1
    completions = await lab.value("select count(*) from tasker.step_transitions where to_state = 'complete'")
    assert completions == 180


async def test_answers_that_are_cut_off_lose_and_double_nothing(lab: Lab, ended: Ended) -> None:
    async def work(context: StepContext) -> Any:
        await asyncio.sleep(0.002)
        return {"attempt": context.attempt}

    await lab.template(step("a"), step("b", "a"), step("c", "b"), defaults={"retry": {"maxAttempts": 20}})
    tasks = [await lab.submit() for _ in range(30)]
    async with cut_proxy(lab.url) as proxy, worker_on(proxy.url, do=work, lease_seconds=1.2) as worker:
        for place in range(12):
            await _claimed_more(worker, 3, unless_done=90)
            proxy.cut_next("after" if place % 2 else "before")
            await _cut(proxy, place + 1)
        for task in tasks:
            await ended(task)
        assert proxy.cuts == 12
    completions = await lab.rows(
        "select step_id, count(*) from tasker.step_transitions where to_state = 'complete' group by 1"
    )
    assert len(completions) == 90
    assert {row["count"] for row in completions} == {1}


async def test_a_task_that_another_session_holds_stops_neither_its_worker_nor_other_tasks(
    lab: Lab, ended: Ended
) -> None:
    """Held for longer than a lease, with a handler running all the while and work coming in."""
    ran: Counter[str] = Counter()
    may_end, told_to_stop = asyncio.Event(), asyncio.Event()
    waiting = (
        "select from pg_stat_activity"
        " where wait_event_type = 'Lock' and application_name = %s and datname = current_database()"
    )

    async def work(context: StepContext) -> Any:
        ran[context.step_uuid] += 1
        await may_end.wait()
        return "done"

    async def patient(context: StepContext) -> Any:
        while context.heartbeat():  # noqa: ASYNC110 - a handler is told by its context, not by an event
            await asyncio.sleep(0.005)
        told_to_stop.set()

    long = await lab.run(step("long", callable="patient"))
    await lab.template(step("a"), step("b", "a"))
    held, beside = await lab.submit(), await lab.submit()
    async with worker_on(lab.url, do=work, patient=patient, lease_seconds=1.5, slots=4) as worker:
        await eventually_async(_true_when(lambda: len(ran) == 2))
        async with await psycopg.AsyncConnection.connect(lab.url) as holder:
            await holder.execute("select from tasker.tasks where task_uuid = %s for update", (held,))
            held_from, renewed = time.monotonic(), worker.metrics.renewals
            may_end.set()
            await ended(beside)  # it ended in the same call, and waited for that to fail
            while time.monotonic() < held_from + 2 * 1.5:
                await ended(await lab.submit())
                assert await lab.rows(waiting, "tasker-worker exchange") == []
                assert len(await lab.rows(waiting, "tasker-worker locked")) <= 1
            assert worker.metrics.renewals >= renewed + 4
            assert worker.metrics.lock_timeouts >= 1
            assert (await lab.step_states(held)) == {"a": "in_progress", "b": "pending"}
            assert worker.is_ready()
            assert worker.status()["outcomes_waiting"] == 1
            await holder.rollback()
        await ended(held)
        assert worker.metrics.leases_lost == worker.metrics.renewal_failures == 0
        assert worker.metrics.results_discarded == worker.metrics.outcomes_unsure == 0
        assert not told_to_stop.is_set()
        assert set(ran.values()) == {1}
        assert await lab.step_states(long) == {"long": "in_progress"}
        await lab.engine.actions.cancel(long, actor="test", reason="enough")
        await asyncio.wait_for(told_to_stop.wait(), 10)
    completions = await lab.rows(
        "select step_id, count(*) from tasker.step_transitions where to_state = 'complete' group by 1"
    )
    assert {row["count"] for row in completions} == {1}


async def test_a_worker_stops_though_handlers_have_filled_the_loops_own_pool_of_threads(lab: Lab) -> None:
    go, began = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go.wait(60)

    async def fill(context: StepContext) -> Any:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
        loop.run_in_executor(None, wait)
        return 1

    try:
        async with worker_on(lab.url, fill=fill, web_enabled=True, web_port=0, web_host="127.0.0.1") as worker:
            task = await lab.run(step("a", callable="fill"))
            await eventually_async(_true_when(began.is_set))
            async with asyncio.timeout(15):
                await worker.stop()
        assert worker.state == "stopped"
        assert await lab.state(task) == "complete"
        assert await lab.rows("select from tasker.workers") == []
        assert not {thread.name for thread in threading.enumerate()} & {"leases", "sweeps", "web"}
    finally:
        go.set()


async def test_steps_for_which_the_system_has_no_thread_cost_no_attempt_and_the_worker_says_it_is_not_ready(
    lab: Lab, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = threading.Event()
    start = threading.Thread.start

    def start_if_there_is_one(thread: threading.Thread) -> None:
        if missing.is_set() and thread.name.startswith("handler"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_one)
    missing.set()
    async with worker_on(lab.url, do=lambda context: context.attempt) as worker:
        task = await lab.run(step("a", retry={"maxAttempts": 1}))
        await eventually_async(_true_when(lambda: worker.status()["out_of_threads"]))
        assert not worker.is_ready()

        async def given_back() -> bool:
            steps = await lab.steps(task)
            return (steps["a"]["state"], steps["a"]["attempts"]) == ("enqueued", 0)

        await eventually_async(given_back)
        claimed = worker.metrics.claimed
        missing.clear()
        assert (await ended(task))["a"]["result"] == 1
        assert worker.is_ready()
        assert worker.metrics.claimed == claimed + 1


async def test_a_worker_for_whose_leases_there_is_no_thread_does_not_start_and_leaves_nothing_behind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse_leases(thread: threading.Thread) -> None:
        if thread.name == "leases":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_leases)
    with pytest.raises(
        WorkerError, match=r"^the system has no thread for the worker's leases: can't start new thread$"
    ):
        async with worker_on(lab.url, do=lambda context: 1, web_enabled=True, web_port=0, web_host="127.0.0.1"):
            raise AssertionError
    assert "web" not in {thread.name for thread in threading.enumerate()}


async def test_hundreds_of_slots_work(lab: Lab, ended: Ended) -> None:
    everybody = asyncio.Barrier(400)

    async def meet(context: StepContext) -> Any:
        await everybody.wait()
        return 1

    task = await lab.run(
        *(step(f"s{place}", callable="meet") for place in range(400)), step("join", "s0", callable="do")
    )
    async with worker_on(lab.url, meet=meet, do=lambda context: 2, slots=500):
        await ended(task)


async def test_a_worker_is_not_started_twice_and_not_after_it_stopped(lab: Lab) -> None:
    async with worker_on(lab.url, do=lambda context: 1) as worker:
        await worker.start()
        assert worker.state == "running"
    await worker.stop()
    with pytest.raises(WorkerError, match="cannot be started again"):
        await worker.start()


async def test_a_port_that_is_taken_fails_the_start_and_leaves_nothing_behind(lab: Lab) -> None:
    async with worker_on(lab.url, do=lambda context: 1, web_enabled=True, web_port=0, web_host="127.0.0.1") as first:
        with pytest.raises(WorkerError, match=rf"^port {first.web_port} on 127\.0\.0\.1 cannot be used"):
            async with worker_on(
                lab.url,
                name="w-2",
                do=lambda context: 1,
                web_enabled=True,
                web_port=first.web_port,
                web_host="127.0.0.1",
            ):
                raise AssertionError
    assert await lab.rows("select from tasker.workers") == []


async def test_a_database_that_is_not_there_is_waited_for_and_then_told(tmp_path: Path) -> None:
    registry = HandlerRegistry()
    registry.register("do", lambda context: 1)
    worker = Worker(
        registry,
        database_url=f"postgresql://nobody@/none?host={tmp_path}",
        web_enabled=False,
        startup_seconds=0.2,
    )
    began = time.monotonic()
    with pytest.raises(DatabaseError, match=r"^the database cannot be reached after 0\.2 s: connection is bad"):
        await worker.start()
    assert 0.2 <= time.monotonic() - began < 5


async def test_a_database_without_the_schema_is_waited_for_too(empty_database_url: str) -> None:
    registry = HandlerRegistry()
    registry.register("do", lambda context: 1)
    worker = Worker(registry, database_url=empty_database_url, web_enabled=False, startup_seconds=0.1)
    with pytest.raises(DatabaseError, match=r"^the database has no schema for this worker after 0\.1 s"):
        await worker.start()


async def test_a_worker_without_handlers_does_not_start(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="there are no handlers to run"):
        await Worker(HandlerRegistry(), database_url=lab.url, web_enabled=False).start()


async def _cut(proxy: CutProxy, count: int) -> None:
    await eventually_async(_true_when(lambda: proxy.cuts >= count))


async def _claimed_more(worker: Worker, count: int, *, unless_done: int) -> None:
    """Waits until the worker has claimed so many more steps, or all are done."""
    target = worker.metrics.claimed + count
    await eventually_async(
        _true_when(lambda: worker.metrics.claimed >= target or worker.metrics.succeeded >= unless_done)
    )


def _true_when(condition: Callable[[], Any]) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return bool(condition())

    return probe
