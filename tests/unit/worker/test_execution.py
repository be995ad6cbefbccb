"""Running handlers: sync and async, their ends of every kind, and that none of them harms the worker."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import pytest_asyncio

from support.waiting import eventually_async
from support.worker_engine import Collected, MemoryEngine, make_claim, told
from tasker_worker import HandlerRegistry, PermanentError, RetryableError, StepContext, StepHandler, execution
from tasker_worker.attempts import Attempt, AttemptState
from tasker_worker.claims import RELEASE, Outcome, OutcomeKind
from tasker_worker.execution import Executor
from tasker_worker.fetching import ResultFetcher
from tasker_worker.logging import current_step
from tasker_worker.metrics import WorkerMetrics
from tasker_worker.outcomes import from_exception, from_value, timeout
from tasker_worker.services import WorkerServices


class Bench:
    """An executor on its own, with what it reports."""

    def __init__(self, slots: int = 10) -> None:
        self.registry = HandlerRegistry()
        self.metrics = WorkerMetrics()
        self.engine = MemoryEngine()  # which has the results that claims left out
        self.finished = Collected()
        self.threads_back = asyncio.Event()
        self.executor = Executor(
            self.registry,
            slots=slots,
            metrics=self.metrics,
            fetcher=ResultFetcher(self.engine, worker="worker"),
            services=WorkerServices(self.engine, worker="worker"),
            on_finished=self.finished,
            on_threads_back=self.threads_back.set,
        )

    def start(self, *callables: str, **columns: Any) -> list[Attempt]:
        attempts = [Attempt(make_claim(name, **columns), time.monotonic()) for name in callables]
        self.executor.start(attempts)
        return attempts

    async def run(self, handler: Any, **columns: Any) -> dict[str, Any]:
        """One attempt of a handler: what its outcome tells."""
        self.registry.register("work", handler, replace=True)
        before = len(self.finished.attempts)
        self.start("work", **columns)
        attempt = (await self.finished.wait(before + 1))[before]
        return told(attempt.outcome)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.executor.close()


def _in_both_kinds(body: Callable[[StepContext], Any]) -> list[Any]:
    async def of_the_loop(context: StepContext) -> Any:
        return body(context)

    async def of_the_loop_after_waiting(context: StepContext) -> Any:
        await asyncio.sleep(0)
        return body(context)

    return [body, of_the_loop, of_the_loop_after_waiting]


async def test_what_a_handler_returns_is_the_result_in_a_thread_as_on_the_loop(bench: Bench) -> None:
    for handler in _in_both_kinds(lambda context: {"step": context.step_name}):
        assert await bench.run(handler) == {"kind": "complete", "result": {"step": "work"}}
    assert bench.executor.running == 0
    assert bench.metrics.succeeded == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermanentError("no stock"), ("PermanentError", "no stock", False, None)),
        (RetryableError("later", retry_after=2), ("RetryableError", "later", True, 2000)),
        (ValueError("wrong"), ("HandlerError", "ValueError: wrong", False, None)),
        (KeyError("wrong"), ("HandlerError", "KeyError: 'wrong'", False, None)),
        (OSError("gone"), ("HandlerError", "OSError: gone", True, None)),
        (RuntimeError(), ("HandlerError", "RuntimeError", True, None)),
        (SystemExit(3), ("HandlerError", "handler called sys.exit(3)", True, None)),
        (SystemExit(), ("HandlerError", "handler called sys.exit()", True, None)),
        (SystemExit("bye"), ("HandlerError", "handler called sys.exit('bye')", True, None)),
        (KeyboardInterrupt(), ("HandlerError", "handler raised KeyboardInterrupt", True, None)),
        (asyncio.CancelledError(), ("HandlerError", "handler raised CancelledError", True, None)),
        (GeneratorExit(), ("HandlerError", "handler raised GeneratorExit", True, None)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_whatever_a_handler_raises_fails_its_attempt_and_nothing_else(
    bench: Bench, error: BaseException, expected: tuple[object, ...]
) -> None:
    def handler(context: StepContext) -> Any:
        raise error

    for each in _in_both_kinds(handler):
        tells = await bench.run(each)
        assert (tells["error_type"], tells["message"], tells["retryable"], tells["retry_after_ms"]) == expected
        assert tells["kind"] == "fail"
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}
    assert bench.executor.running == 0


async def test_stop_iteration_is_an_error_like_any_other(bench: Bench) -> None:
    def handler(context: StepContext) -> Any:
        return next(iter([]))

    class Fails(StepHandler):
        def __init__(self) -> None:
            next(iter([]))

        async def call(self, context: StepContext) -> Any: ...

    for each in [*_in_both_kinds(handler), Fails]:
        assert "StopIteration" in (await bench.run(each))["message"]


async def test_an_unforeseen_error_keeps_its_traceback_from_the_handler_on(bench: Bench) -> None:
    def handler(context: StepContext) -> Any:
        return dict[str, int]()["missing"]

    for each in _in_both_kinds(handler):
        trace = (await bench.run(each))["traceback"]
        assert 'return dict[str, int]()["missing"]' in trace
        assert "tasker_worker" not in trace
    assert (await bench.run(_raising(PermanentError("said it all"))))["traceback"] is None


def _raising(error: BaseException) -> Callable[[StepContext], Any]:
    def handler(context: StepContext) -> Any:
        raise error

    return handler


async def test_errors_that_cannot_be_told_are_told_all_the_same(bench: Bench) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    tells = await bench.run(_raising(Mute()))
    assert tells["message"] == "Mute: (its text cannot be read)"
    assert (await bench.run(_raising(ValueError("a\0b\udc80"))))["message"] == "ValueError: a\\0b\\udc80"
    assert len((await bench.run(_raising(ValueError("x" * 100_000))))["message"]) == 8192


async def test_a_result_that_is_not_json_fails_for_good_with_its_place(bench: Bench) -> None:
    for handler in _in_both_kinds(lambda context: {"items": [0, 1, object()]}):
        tells = await bench.run(handler)
        assert tells["message"] == "result of step 'work' is not JSON: $.items[2] is an object"
        assert not tells["retryable"]


async def test_a_handler_that_waits_too_long_is_cancelled_and_timed_out(bench: Bench) -> None:
    cancelled = asyncio.Event()

    async def handler(context: StepContext) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            assert context.cancelled
            cancelled.set()

    tells = await bench.run(handler, timeout_ms=20)
    assert tells["error_type"] == "Timeout"
    assert tells["message"] == "step 'work' exceeded its timeout of 0.02 s"
    assert tells["retryable"]
    await asyncio.wait_for(cancelled.wait(), 5)
    assert bench.metrics.timed_out == 1
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}


async def test_a_handler_that_swallows_its_cancellation_costs_no_slot_and_its_result_is_not_kept(bench: Bench) -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    async def handler(context: StepContext) -> Any:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        ended.set()
        return "too late"

    tells = await bench.run(handler, timeout_ms=20)
    assert tells["error_type"] == "Timeout"
    assert bench.executor.running == 0
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}
    go.set()
    await asyncio.wait_for(ended.wait(), 5)
    assert len(bench.finished.attempts) == 2


async def test_a_sync_handler_that_never_returns_starves_nobody(bench: Bench) -> None:
    go = threading.Event()

    def stuck(context: StepContext) -> Any:
        go.wait(10)

    bench.registry.register("stuck", stuck)
    bench.start(*["stuck"] * 10, timeout_ms=20)
    for attempt in await bench.finished.wait(10):
        assert attempt.outcome is not None
        assert attempt.outcome.message == "step 'stuck' exceeded its timeout of 0.02 s"
        assert attempt.context.cancelled
    assert bench.executor.stuck_threads == 10
    assert bench.metrics.threads_given_up == 10
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}
    go.set()

    async def all_ended() -> bool:
        return bench.executor.stuck_threads == 0

    await eventually_async(all_ended)
    assert len(bench.finished.attempts) == 11


async def test_a_handler_that_keeps_the_loop_past_its_timeout_is_timed_out_in_the_end(bench: Bench) -> None:
    async def handler(context: StepContext) -> Any:
        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            pass
        return "late"

    assert (await bench.run(handler, timeout_ms=20))["error_type"] == "Timeout"


async def test_a_timeout_tells_whole_seconds_without_a_fraction(bench: Bench) -> None:
    bench.registry.register("work", _sleeping(asyncio.Event()))
    [attempt] = bench.start("work", timeout_ms=300_000)
    await asyncio.sleep(0)
    bench.executor._on_timeout(attempt)
    too_early = attempt.outcome
    assert attempt.began_at is not None
    attempt.began_at -= 300
    bench.executor._on_timeout(attempt)
    assert too_early is None
    assert attempt.outcome is not None
    assert attempt.outcome.message == "step 'work' exceeded its timeout of 300 s"


def _sleeping(event: asyncio.Event) -> Callable[[StepContext], Coroutine[Any, Any, Any]]:
    async def handler(context: StepContext) -> Any:
        await event.wait()
        return "woken"

    return handler


async def test_what_cannot_be_resolved_fails_for_good_with_the_reason(bench: Bench) -> None:
    bench.registry.register("work", lambda context: None)
    bench.start("unknown")
    bench.start("work", method="refund")
    bench.start("work", resolver="magic")
    messages = []
    for attempt in await bench.finished.wait(3):
        assert attempt.outcome is not None
        assert attempt.outcome.retryable is False
        messages.append(attempt.outcome.message)
    assert messages == [
        "no handler is registered for the callable 'unknown'",
        "the handler 'work' is a function and has no method 'refund'",
        "there is no resolver 'magic' for the callable 'work' (there are: explicit, registry, dotted_path)",
    ]


async def test_async_handlers_that_never_wait_share_a_few_turns_of_the_loop_and_no_task(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A turn ends by time too; on a machine that is busy with other things a hundred handlers can take that long.
    monkeypatch.setattr(execution, "_TURN_SECONDS", 60)
    tasks: list[asyncio.Task[Any] | None] = []

    async def handler(context: StepContext) -> Any:
        tasks.append(asyncio.current_task())

    bench.registry.register("work", handler)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.get_running_loop().create_task(count_turns())
    bench.start(*["work"] * 100)
    await bench.finished.wait(100)
    counter.cancel()
    assert turns <= 5
    assert len(set(tasks)) == 100
    assert None not in tasks


async def test_async_handlers_that_wait_run_beside_each_other(bench: Bench) -> None:
    everybody = asyncio.Barrier(10)

    async def handler(context: StepContext) -> Any:
        await everybody.wait()

    bench.registry.register("work", handler)
    bench.start(*["work"] * 10)
    await bench.finished.wait(10)
    assert bench.metrics.succeeded == 10


async def test_handlers_that_never_wait_let_others_have_their_turn(bench: Bench) -> None:
    bench.registry.register("work", _busy)
    bench.start(*["work"] * 20)
    await bench.finished.wait(1)
    assert len(bench.finished.attempts) < 20


async def _busy(context: StepContext) -> None:
    until = time.monotonic() + 0.002
    while time.monotonic() < until:
        pass


async def test_asyncio_timeouts_and_tasks_work_inside_a_handler(bench: Bench) -> None:
    async def handler(context: StepContext) -> Any:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(0, result=place)) for place in range(3)]
        return [child.result() for child in children]

    assert await bench.run(handler) == {"kind": "complete", "result": [0, 1, 2]}


_leaking: contextvars.ContextVar[int] = contextvars.ContextVar("leaking", default=0)


async def test_what_a_handler_leaves_in_its_context_reaches_no_other_and_what_the_program_has_reaches_none(
    bench: Bench,
) -> None:
    def handler(context: StepContext) -> Any:
        before = _leaking.get()
        _leaking.set(before + 1)
        return before

    outside = _leaking.set(7)
    try:
        for each in _in_both_kinds(handler):
            for _ in range(3):
                assert (await bench.run(each))["result"] == 0
    finally:
        _leaking.reset(outside)


_by_task: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()


async def test_what_a_library_keeps_by_task_reaches_no_other_attempt(bench: Bench) -> None:
    """Handlers that wait and handlers that do not: each has a task to itself."""

    async def handler(context: StepContext) -> Any:
        task = asyncio.current_task()
        assert task is not None
        found = _by_task.setdefault(task, context.step_uuid)
        if context.attempt % 2:
            await asyncio.sleep(0)
        return found == context.step_uuid

    bench.registry.register("work", handler)
    for number in range(20):
        bench.start("work", step_uuid=f"step-{number}", attempt=number)
    for attempt in await bench.finished.wait(20):
        assert attempt.outcome == Outcome(OutcomeKind.COMPLETE, "true")


async def test_cancelling_its_own_task_ends_the_attempt_and_no_other(bench: Bench) -> None:
    async def handler(context: StepContext) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    assert (await bench.run(handler))["message"] == "handler raised CancelledError"
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_claim_that_was_lost_before_its_turn_is_not_started(bench: Bench, kind: str) -> None:
    ran: list[str] = []

    async def on_the_loop(context: StepContext) -> None:
        ran.append(context.step_uuid)

    bench.registry.register("work", on_the_loop if kind == "loop" else lambda context: ran.append(context.step_uuid))
    attempts = [Attempt(make_claim("work", step_uuid=uuid), time.monotonic()) for uuid in ("lost", "expired", "held")]
    attempts[0].lose()
    attempts[1].expire()
    bench.executor.start(attempts)
    await bench.finished.wait(3)
    assert ran == ["held"]
    assert [(attempt.state, attempt.outcome and attempt.outcome.kind) for attempt in attempts[:2]] == [
        (AttemptState.LOST, OutcomeKind.RELEASE),
        (AttemptState.FINISHED, OutcomeKind.RELEASE),
    ]
    assert bench.executor.running == 0
    assert (bench.metrics.released, bench.metrics.succeeded) == (2, 1)


async def test_a_result_that_came_in_time_counts_though_the_loop_is_late_to_see_it(bench: Bench) -> None:
    ended = threading.Event()

    def handler(context: StepContext) -> str:
        return "in time"

    bench.registry.register("work", handler)
    call_soon = bench.executor._call_collect

    def told_later() -> None:  # the loop is busy with other things
        ended.set()

    bench.executor._call_collect = told_later  # type: ignore[method-assign]
    [attempt] = bench.start("work")
    assert await asyncio.to_thread(ended.wait, 5)
    bench.executor._on_timeout(attempt)
    assert attempt.outcome is not None
    assert (attempt.outcome.kind, attempt.state) == (OutcomeKind.COMPLETE, AttemptState.FINISHED)
    bench.executor._call_collect = call_soon  # type: ignore[method-assign]


async def test_an_attempt_timed_out_from_outside_is_handed_back_once_with_that_outcome(bench: Bench) -> None:
    """Its handler blocked the loop, and waits for something in the end."""
    entered = asyncio.Event()

    async def handler(context: StepContext) -> None:
        [attempt] = bench.executor._active
        attempt.time_out(timeout("work", 20))  # as the lease thread does meanwhile
        attempt.began_at = time.monotonic() - 1
        entered.set()
        await asyncio.Event().wait()

    bench.registry.register("work", handler)
    [attempt] = bench.start("work", timeout_ms=20)
    await asyncio.wait_for(entered.wait(), 5)
    await bench.finished.wait(1)
    assert attempt.task is not None
    await asyncio.wait([attempt.task], timeout=5)
    assert bench.finished.attempts == [attempt]
    assert (attempt.state, attempt.context.cancelled) == (AttemptState.UNSURE, True)
    assert bench.metrics.timed_out == 1


async def test_steps_for_which_there_is_no_thread_are_given_back_and_nothing_is_claimed_until_there_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "_THREAD_PAUSE_SECONDS", (0.001, 0.002))
    monkeypatch.setattr(bench.executor, "_thread_pause", 0.001)
    pauses: list[float] = []  # as they are at each start of a thread
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        pauses.append(bench.executor._thread_pause)
        if len(pauses) <= 4:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    bench.registry.register("work", lambda context: "done")
    attempts = bench.start("work", "work")
    await bench.finished.wait(2)
    assert [attempt.outcome for attempt in attempts] == [RELEASE, RELEASE]
    short = bench.executor.out_of_threads
    assert short
    assert bench.executor.running == 0
    assert "the system has no thread for a handler" in caplog.text
    await asyncio.wait_for(bench.threads_back.wait(), 5)
    assert not bench.executor.out_of_threads
    assert pauses == [0.001, 0.001, 0.001, 0.002, 0.002]
    assert bench.executor._thread_pause == 0.001
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}


async def test_a_step_to_which_no_thread_comes_in_all_its_time_is_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_START_SECONDS", 0.03)
    monkeypatch.setattr(bench.executor._threads, "_wake_one", lambda: None)
    bench.registry.register("work", lambda context: "done")
    [attempt] = bench.start("work", timeout_ms=20)
    await bench.finished.wait(1)
    assert (attempt.outcome, attempt.timer) == (RELEASE, None)
    monkeypatch.undo()
    assert await bench.run(lambda context: "alive") == {"kind": "complete", "result": "alive"}
    assert len(bench.finished.attempts) == 2


async def test_shares_of_async_handlers_grow_while_they_are_quick_and_shrink_when_they_are_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(context: StepContext) -> None: ...

    bench.registry.register("work", handler)
    monkeypatch.setattr(execution, "_TURN_SECONDS", 60)
    bench.start(*["work"] * 500)
    await bench.finished.wait(500)
    assert bench.executor._share == 64
    monkeypatch.setattr(execution, "_TURN_SECONDS", -1)
    bench.start(*["work"] * 500)
    await bench.finished.wait(1000)
    assert bench.executor._share == 1


async def test_the_current_step_is_known_wherever_the_handler_runs(bench: Bench) -> None:
    def handler(context: StepContext) -> Any:
        return current_step.get() is context

    async def in_a_child_task(context: StepContext) -> Any:
        return await asyncio.get_running_loop().create_task(_tells(context))

    async def _tells(context: StepContext) -> bool:
        return current_step.get() is context

    for each in [*_in_both_kinds(handler), in_a_child_task]:
        assert (await bench.run(each))["result"] is True
    assert current_step.get() is None


async def test_a_class_is_made_anew_for_every_attempt_and_an_instance_is_shared(bench: Bench) -> None:
    class Counts(StepHandler):
        def __init__(self) -> None:
            self.calls = 0

        def call(self, context: StepContext) -> Any:
            self.calls += 1
            return self.success(self.calls)

    assert [(await bench.run(Counts))["result"] for _ in range(2)] == [1, 1]
    shared = Counts()
    assert [(await bench.run(shared))["result"] for _ in range(2)] == [1, 2]


async def test_releasing_gives_back_what_runs_what_waits_and_what_has_not_begun(bench: Bench) -> None:
    go = threading.Event()
    began = threading.Semaphore(0)

    def in_thread(context: StepContext) -> None:
        began.release()
        go.wait(10)

    bench.registry.register_all({"loop": _sleeping(asyncio.Event()), "thread": in_thread})
    attempts = bench.start("loop", "loop", "thread")
    assert await asyncio.to_thread(began.acquire, timeout=5)
    late = bench.start("loop")
    for attempt in [*attempts, *late]:
        bench.executor.release(attempt)
    assert [attempt.outcome.kind for attempt in bench.finished.attempts if attempt.outcome] == [OutcomeKind.RELEASE] * 4
    assert all(attempt.context.cancelled for attempt in attempts)
    assert bench.executor.running == 0
    assert bench.metrics.released == 4
    go.set()


async def test_the_loop_knows_whose_code_it_runs(bench: Bench) -> None:
    seen: list[Attempt | None] = []

    async def handler(context: StepContext) -> None:
        seen.append(bench.executor.watch.stepping)
        await asyncio.sleep(0)
        seen.append(bench.executor.watch.stepping)

    bench.registry.register("work", handler)
    [attempt] = bench.start("work")
    await bench.finished.wait(1)
    assert seen == [attempt, attempt]
    assert bench.executor.watch.stepping is None
    assert bench.executor.watch.loop_thread == threading.get_ident()


async def test_no_code_is_run_while_a_handler_waits_nor_after_one_that_could_not_be_made(bench: Bench) -> None:
    class Fails(StepHandler):
        def __init__(self) -> None:
            raise OSError("no")

        async def call(self, context: StepContext) -> None: ...

    assert (await bench.run(Fails))["message"] == "OSError: no"
    assert bench.executor.watch.stepping is None
    go = asyncio.Event()
    bench.registry.register("work", _sleeping(go), replace=True)
    [attempt] = bench.start("work")
    await _until(lambda: attempt.state is AttemptState.RUNNING)
    assert bench.executor.watch.stepping is None
    go.set()
    await bench.finished.wait(2)


async def test_overhead_of_a_handler_is_far_below_a_tenth_of_a_millisecond(bench: Bench) -> None:
    """Five times what it was measured to be, so that only a change of kind makes it fail, not a busy machine: and the
    best of five, for in one of them the collector may go through all that other tests have left."""

    async def handler(context: StepContext) -> dict[str, int]:
        return {"value": 1}

    bench.registry.register("work", handler)
    bench.start(*["work"] * 200)
    await bench.finished.wait(200)
    took = []
    for done in range(600, 2600, 400):
        began = time.process_time()
        bench.start(*["work"] * 400)
        await bench.finished.wait(done)
        took.append((time.process_time() - began) / 400)
    assert min(took) < 100e-6


async def test_a_deep_recursion_fails_its_attempt(bench: Bench) -> None:
    def handler(context: StepContext) -> Any:
        def down(depth: int) -> int:
            return down(depth + 1)

        return down(0)

    tells = await bench.run(handler)
    assert tells["error_type"] == "HandlerError"
    assert "RecursionError" in tells["message"]
    assert sys.getrecursionlimit() > 0


async def _until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until something has come about that this process does."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition is any state, which tells nobody of its changes
            await asyncio.sleep(0.001)


class _StillLoop:
    """In place of the executor's loop: remembers what was to be called, and stands at second 1000."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []

    def time(self) -> float:
        return 1000.0

    def call_at(self, at: float, function: Callable[..., Any], *arguments: Any) -> Any:
        self.later.append((at, function, arguments))
        return SimpleNamespace(cancel=lambda: None)

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.call_at(1000.0 + seconds, function, *arguments)


def _waiting_in_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch, **columns: Any) -> tuple[_StillLoop, Attempt]:
    """An attempt claimed at second 1000 to which no thread comes."""
    loop = _StillLoop()
    bench.executor._loop = loop  # type: ignore[assignment]
    monkeypatch.setattr(bench.executor._threads, "_wake_one", lambda: None)
    bench.registry.register("work", lambda context: "done")
    attempt = Attempt(make_claim("work", **columns), 1000.0)
    bench.executor.start([attempt])
    return loop, attempt


def _outcome_of(attempt: Attempt) -> object:
    """Read through a call, since mypy does not expect that a later call sets it."""
    return attempt.outcome


async def test_a_step_has_at_least_five_seconds_to_be_begun_and_is_timed_by_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, attempt = _waiting_in_thread(bench, monkeypatch, timeout_ms=1500)
    assert [at for at, _, _ in loop.later] == [1001.5]
    _, on_timeout, arguments = loop.later[0]
    on_timeout(*arguments)
    assert [at for at, _, _ in loop.later] == [1001.5, 1005.0]
    assert bench.finished.attempts == []
    monkeypatch.setattr(loop, "time", lambda: 1005.0)
    on_timeout(*arguments)
    assert attempt.outcome == RELEASE
    assert attempt.context.cancelled
    assert bench.finished.attempts == [attempt]
    assert (bench.metrics.released, bench.metrics.threads_given_up) == (1, 0)


async def test_a_step_that_was_begun_late_has_all_of_its_time_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, attempt = _waiting_in_thread(bench, monkeypatch, timeout_ms=1500)
    assert attempt.begin()
    attempt.began_at = 1000.5
    monkeypatch.setattr(loop, "time", lambda: 1001.5)
    bench.executor._on_timeout(attempt)
    assert bench.finished.attempts == []
    monkeypatch.setattr(loop, "time", lambda: 1001.999)
    bench.executor._on_timeout(attempt)
    assert bench.finished.attempts == []
    assert [at for at, _, _ in loop.later] == [1001.5, 1002.0, 1002.0]
    monkeypatch.setattr(loop, "time", lambda: 1002.0)
    bench.executor._on_timeout(attempt)
    assert attempt.outcome is not None
    assert attempt.outcome.error_type == "Timeout"
    assert (bench.metrics.timed_out, bench.metrics.failed, bench.executor.running) == (1, 1, 0)
    bench.executor._on_timeout(attempt)
    assert bench.finished.attempts == [attempt]


@pytest.mark.parametrize(("seconds", "kind"), [(1.5, OutcomeKind.COMPLETE), (1.501, OutcomeKind.FAIL)])
async def test_a_result_counts_up_to_the_end_of_its_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, kind: OutcomeKind
) -> None:
    _, attempt = _waiting_in_thread(bench, monkeypatch, timeout_ms=1500)
    assert attempt.begin()
    attempt.began_at = 1024.0
    bench.executor._finish(attempt, from_value(attempt.claim, 1), 1024.0 + seconds)
    assert attempt.outcome is not None
    assert attempt.outcome.kind is kind
    assert bench.metrics.run_seconds.total == pytest.approx(seconds)
    assert sum(bench.metrics.run_seconds.counts) == 1


async def test_a_failure_that_comes_late_is_told_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _, attempt = _waiting_in_thread(bench, monkeypatch, timeout_ms=1500)
    assert attempt.begin()
    bench.executor._finish(attempt, from_exception(ValueError("wrong")), time.monotonic() + 9)
    assert attempt.outcome is not None
    assert attempt.outcome.message == "ValueError: wrong"
    assert (bench.metrics.failed, bench.metrics.timed_out) == (1, 0)


async def test_a_thread_is_tried_again_after_pauses_that_double_up_to_half_a_minute(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop, attempt = _waiting_in_thread(bench, monkeypatch)
    monkeypatch.setattr(bench.executor._threads, "can_start", lambda: False)
    for _ in range(2):
        bench.executor._refused.append(attempt)
        bench.executor._give_back_refused()
    tries = [later for later in loop.later if later[1] == bench.executor._try_thread]
    assert len(tries) == 1, "once, however many are refused"
    for _ in range(7):
        bench.executor._try_thread()
    tries = [later for later in loop.later if later[1] == bench.executor._try_thread]
    assert [at - 1000.0 for at, _, _ in tries] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert not bench.threads_back.is_set()
    monkeypatch.setattr(bench.executor._threads, "can_start", lambda: True)
    bench.executor._try_thread()
    assert bench.threads_back.is_set()
    assert (bench.executor.out_of_threads, bench.executor._thread_pause) == (False, 1.0)
    assert caplog.text.count("the system has no thread for a handler") == 1


async def test_an_executor_that_is_closed_tries_no_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.executor.close()
    monkeypatch.setattr(bench.executor._threads, "can_start", lambda: pytest.fail("it is closed"))
    bench.executor._try_thread()
    assert not bench.threads_back.is_set()


@pytest.mark.parametrize(("now", "share"), [(0.01, 16), (0.011, 4)])
async def test_a_share_that_takes_the_loop_for_more_than_five_milliseconds_is_halved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, now: float, share: int
) -> None:
    executor: Any = bench.executor
    assert executor._share == 8
    executor._share_began = 0.005
    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=lambda: now))
    executor._begin_share()
    assert (executor._share, executor._share_began) == (share, None)


@pytest.mark.parametrize(("share", "took", "following"), [(1, 1.0, 1), (64, 0.0, 64), (48, 0.0, 64)])
async def test_shares_stay_between_one_and_64(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, share: int, took: float, following: int
) -> None:
    bench.executor._share, bench.executor._share_began = share, 0.0
    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=lambda: took))
    bench.executor._begin_share()
    assert bench.executor._share == following


async def test_only_a_share_of_what_is_queued_is_begun_at_once_and_the_rest_in_its_turns(bench: Bench) -> None:
    began = 0

    async def handler(context: StepContext) -> None:
        nonlocal began
        began += 1
        await asyncio.Event().wait()

    bench.registry.register("work", handler)
    bench.start(*["work"] * 20)
    assert len(bench.executor._tasks) == 8
    assert began == 0
    more = bench.start("work")
    assert len(bench.executor._tasks) == 8, "what comes meanwhile waits for its turn"
    await _until(lambda: began == 21)
    for attempt in [*bench.executor._active]:
        bench.executor.release(attempt)
    assert more[0].outcome == RELEASE


async def test_a_handler_that_swallows_its_cancellation_is_reported_after_a_second(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def handler(context: StepContext) -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    bench.registry.register("work", handler)
    attempts = bench.start("work", "work")
    await _until(lambda: all(attempt.state is AttemptState.RUNNING for attempt in attempts))
    loop = _StillLoop()
    with monkeypatch.context() as patched:
        patched.setattr(bench.executor, "_loop", loop)
        for attempt in attempts:
            bench.executor.release(attempt)
    assert [at for at, _, _ in loop.later] == [1001.0] * 2
    await asyncio.sleep(0)
    _, report, arguments = loop.later[0]
    report(*arguments)
    assert bench.metrics.tasks_given_up == 1
    assert "the handler of step 'work' does not end although it was cancelled" in caplog.text
    go.set()
    assert attempts[1].task is not None
    await asyncio.wait([attempts[1].task], timeout=5)
    _, report, arguments = loop.later[1]
    report(*arguments)
    assert bench.metrics.tasks_given_up == 1, "one that has ended is no trouble"


async def test_closing_cancels_what_runs_and_does_not_wait_long_for_what_will_not_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def handler(context: StepContext) -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    bench.registry.register("work", handler)
    [attempt] = bench.start("work")
    await _until(lambda: attempt.state is AttemptState.RUNNING)
    waited: list[float | None] = []
    wait = asyncio.wait

    async def noted(tasks: Any, *, timeout: float | None = None) -> Any:
        waited.append(timeout)
        return await wait(tasks, timeout=0)

    monkeypatch.setattr(asyncio, "wait", noted)
    await bench.executor.close()
    monkeypatch.undo()
    assert waited == [0.2]
    bench.executor._report_stuck(attempt, attempt.task)  # type: ignore[arg-type]
    assert bench.metrics.tasks_given_up == 0
    go.set()
    await asyncio.wait(set(bench.executor._tasks), timeout=5)


async def test_an_awaitable_that_is_no_coroutine_is_awaited_and_a_plain_value_taken_as_it_is(bench: Bench) -> None:
    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "later"

    for value, result in ((Later(), "later"), ("plain", "plain")):
        assert await execution._as_coroutine(value) == result


async def test_a_result_of_a_thread_that_ends_after_the_loop_costs_nothing(bench: Bench) -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    bench.executor._loop = closed
    bench.executor._call_collect()
    assert bench.executor._collecting


async def test_what_cannot_be_resolved_keeps_nothing_that_was_claimed_with_it(bench: Bench) -> None:
    bench.registry.register("work", lambda context: None)
    bench.start("unknown", "work")
    await bench.finished.wait(2)
    assert (bench.metrics.failed, bench.metrics.succeeded) == (1, 1)


async def test_what_has_ended_leaves_no_task(bench: Bench) -> None:
    await bench.run(_returning)
    await _until(lambda: not bench.executor._tasks)


async def _returning(context: StepContext) -> None: ...


async def test_what_has_ended_leaves_no_timer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, attempt = _waiting_in_thread(bench, monkeypatch)
    cancelled: list[bool] = []
    attempt.timer = SimpleNamespace(cancel=lambda: cancelled.append(True))  # type: ignore[assignment]
    bench.executor.release(attempt)
    assert (cancelled, attempt.timer) == ([True], None)
    assert len(loop.later) == 1


async def test_closing_ends_the_threads_that_wait_for_work(bench: Bench) -> None:
    threads: list[threading.Thread] = []
    await bench.run(lambda context: threads.append(threading.current_thread()))
    await bench.executor.close()
    await asyncio.to_thread(threads[0].join, 5)
    assert not threads[0].is_alive()


async def test_every_end_is_told_in_a_line_of_its_own(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "tasker_worker.execution")
    await bench.run(lambda context: None)
    await bench.run(_raising(PermanentError("no stock")))
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("DEBUG", "step done"),
        ("WARNING", "step failed"),
    ]


async def test_a_handler_that_is_left_behind_with_its_loop_may_clean_up(bench: Bench) -> None:
    """As when a loop is thrown away: nothing runs the handler any more, and Python closes it."""
    cleaned: list[str] = []

    async def handler(context: StepContext) -> None:
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            cleaned.append("cleaned")
            raise

    bench.registry.register("work", handler)
    invocation = bench.registry.invocation("work")
    attempt = Attempt(make_claim("work"), time.monotonic())
    steps = bench.executor._steps_of(attempt, invocation)
    steps.send(None)
    steps.close()
    assert cleaned == ["cleaned"]
    assert bench.executor.watch.stepping is None


async def test_closing_cancels_a_handler_that_waits_and_is_done_when_it_has_ended(bench: Bench) -> None:
    ended: list[str] = []

    async def handler(context: StepContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    bench.registry.register("work", handler)
    [attempt] = bench.start("work")
    await _until(lambda: attempt.state is AttemptState.RUNNING)
    await bench.executor.close()
    assert ended == ["ended"]
    assert attempt.task is not None
    assert attempt.task.cancelled()
    assert bench.finished.attempts == []


async def test_no_task_is_made_for_what_was_given_back_in_the_queue_nor_after_the_end(bench: Bench) -> None:
    bench.registry.register("work", _returning)
    attempts = bench.start(*["work"] * 20)
    bench.executor.release(attempts[8])
    await bench.finished.wait(20)
    assert [attempts.index(attempt) for attempt in attempts if attempt.task is None] == [8]
    bench.executor._share = 8
    late = bench.start(*["work"] * 20)
    await bench.executor.close()
    await _until(lambda: not bench.executor._queue)
    assert [attempt.task is not None for attempt in late] == [True] * 8 + [False] * 12
