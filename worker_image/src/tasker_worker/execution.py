"""Runs claimed steps: async handlers on the event loop, sync ones in threads, each under its timeout.

The exchange hands claims to `Executor.start` and gets every attempt back, once, through `on_finished`, with an outcome.

Async handlers run in a few long-lived tasks, the runners, which take attempts from a queue. A handler that finishes
without ever waiting costs no turn of the loop and no task: its runner just goes on with the next attempt. As soon as a
handler waits, another runner, woken beforehand, takes over the queue. That is what eager tasks give on Python 3.12, at
3.11 and with the current task set, so that `asyncio.timeout` and its like work in the handler.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any

from . import outcomes
from .claims import RELEASE, Claim, Outcome, OutcomeKind
from .context import StepContext
from .errors import ConfigurationError, ErrorType
from .logging import current_step, with_fields
from .metrics import WorkerMetrics
from .registry import HandlerRegistry, Invocation
from .threads import HandlerThreads, Job

logger = logging.getLogger("tasker_worker.execution")

# A runner that has kept the loop for this long, with handlers that never wait, lets others have a turn.
_TURN_SECONDS = 0.005


class Attempt:
    """A claim in this worker's hands, from the claim to its settling."""

    __slots__ = (
        "begun",
        "claim",
        "context",
        "detail",
        "expired",
        "job",
        "lost",
        "outcome",
        "refused",
        "started",
        "starved",
        "task",
        "timer",
        "unsure",
    )

    def __init__(self, claim: Claim, started: float) -> None:
        self.claim = claim
        self.context = StepContext(claim, on_heartbeat=self._heartbeat)
        self.started = started  # monotonic seconds: of the claim, then of the handler's beginning
        self.begun = False  # its handler was called
        self.outcome: Outcome | None = None  # None while the handler runs
        self.lost = False  # the engine says that the lease is no longer this worker's
        self.expired = False  # it ran out by the local clock, and the handler was told
        self.unsure = False  # its outcome was sent once, with an effect that is not known
        self.starved = False  # it was warned of
        self.refused = False  # by the database, which got an error in its place
        self.detail: object = None  # of the last heartbeat
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None  # the runner, once the handler has waited for something
        self.job: Job | None = None

    def begin(self) -> None:
        """Its handler is about to be called: from here its time counts."""
        self.begun = True
        self.started = time.monotonic()
        self.context.begin()

    def _heartbeat(self, detail: object) -> None:
        self.detail = detail


class LoopWatch:
    """What the lease thread reads to tell whether, and by which attempt, the event loop is blocked."""

    def __init__(self) -> None:
        self.stepping: Attempt | None = None  # the attempt whose code the loop runs right now
        self.loop_thread = threading.get_ident()


class Executor:
    """All running attempts of a worker. Everything but `live_attempts` belongs to the loop's thread."""

    def __init__(
        self,
        registry: HandlerRegistry,
        *,
        slots: int,
        metrics: WorkerMetrics,
        on_finished: Callable[[Attempt], None],
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._on_finished = on_finished
        self._loop = asyncio.get_running_loop()
        self._clean_context = contextvars.Context()
        self._queue: deque[tuple[Attempt, Invocation]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._runners: set[asyncio.Task[None]] = set()
        self._threads = HandlerThreads(slots)
        self._thread_results: deque[tuple[Attempt, Outcome, float]] = deque()
        self._collecting = False
        self._closed = False
        self.running = 0
        self.watch = LoopWatch()

    @property
    def stuck_threads(self) -> int:
        return self._threads.stuck

    def start(self, attempts: Iterable[Attempt]) -> None:
        """Begin to run attempts. Those that cannot be run are finished at once, with the reason as their outcome."""
        for attempt in attempts:
            claim = attempt.claim
            self.running += 1
            try:
                invocation = self._registry.invocation(claim.callable, claim.method, claim.resolver)
            except ConfigurationError as error:
                self._finish(attempt, outcomes.from_exception(error))
                continue
            except Exception as error:  # a custom resolver's, or an import's
                self._finish(attempt, outcomes.from_exception(error))
                continue
            if invocation.is_async:
                self._queue.append((attempt, invocation))
            else:
                self._start_in_thread(attempt, invocation)
        if self._queue:
            self._wake_runner()

    def release(self, attempt: Attempt) -> None:
        """Stop waiting for a running attempt and give its claim back; its handler is told and cancelled."""
        if attempt.outcome is None:
            self._finish(attempt, RELEASE)
            self._abandon(attempt)

    async def close(self) -> None:
        """End runners and idle threads. What still runs was released before."""
        self._closed = True
        self._threads.close()
        for runner in self._runners:
            runner.cancel()
        if self._runners:
            # A handler that swallows its cancellation is left behind.
            await asyncio.wait(self._runners, timeout=0.2)

    # async handlers

    def _wake_runner(self) -> None:
        if self._waking:
            return
        self._waking = True
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        runner = self._loop.create_task(self._run_queue(), name="handlers", context=self._clean_context.copy())
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _run_queue(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        clean = contextvars.copy_context()
        while not self._closed:
            self._waking = False
            turn_began = time.monotonic()
            while self._queue:
                attempt, invocation = self._queue.popleft()
                if attempt.outcome is not None:
                    continue
                if self._queue:
                    self._wake_runner()
                now = await self._run_async(attempt, invocation, task)
                if task.cancelling() or contextvars.copy_context() != clean:
                    # What a handler left in this task must not reach the next one.
                    if self._queue:
                        self._wake_runner()
                    return
                if now - turn_began > _TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn_began = time.monotonic()
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    async def _run_async(self, attempt: Attempt, invocation: Invocation, task: asyncio.Task[None]) -> float:
        token = current_step.set(attempt.context)
        attempt.begin()
        try:
            value = await self._steps_of(attempt, invocation, task)
        except BaseException as error:
            if attempt.outcome is not None:  # timed out or released: this is the end of its cancellation
                return time.monotonic()
            if self._closed and isinstance(error, asyncio.CancelledError | GeneratorExit):
                raise
            outcome = outcomes.from_exception(error)
        else:
            outcome = outcomes.from_value(attempt.claim.step_name, value)
        finally:
            current_step.reset(token)
        ended = time.monotonic()
        if attempt.outcome is None:
            self._finish(attempt, outcome, ended)
        return ended

    @types.coroutine
    def _steps_of(self, attempt: Attempt, invocation: Invocation, task: asyncio.Task[None]) -> Generator[Any, Any, Any]:
        """Step a handler's coroutine, noting whenever its code has the loop. The timer starts when it first waits."""
        watch = self.watch
        watch.stepping = attempt
        try:
            coroutine = _as_coroutine(invocation.run(attempt.context))
        except BaseException:
            watch.stepping = None
            raise
        try:
            waiting_for = coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            watch.stepping = None
        attempt.task = task
        attempt.timer = self._loop.call_at(attempt.started + attempt.claim.timeout_ms / 1000, self._on_timeout, attempt)
        while True:
            error: BaseException | None = None
            try:
                yield waiting_for
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as thrown:
                error = thrown
            watch.stepping = attempt
            try:
                waiting_for = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                watch.stepping = None

    # sync handlers

    def _start_in_thread(self, attempt: Attempt, invocation: Invocation) -> None:
        attempt.timer = self._loop.call_at(attempt.started + attempt.claim.timeout_ms / 1000, self._on_timeout, attempt)
        try:
            attempt.job = self._threads.submit(lambda: self._run_in_thread(attempt, invocation))
        except RuntimeError as error:  # the system is out of threads
            self._finish(attempt, outcomes.from_exception(OSError(str(error))))

    def _run_in_thread(self, attempt: Attempt, invocation: Invocation) -> None:
        outcome = contextvars.Context().run(_call, attempt, invocation)
        self._thread_results.append((attempt, outcome, time.monotonic()))
        if not self._collecting:
            self._collecting = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                logger.debug("a handler ended after its worker had stopped")

    def _collect(self) -> None:
        self._collecting = False  # before looking, so that a result put in from now on calls again
        while self._thread_results:
            attempt, outcome, ended = self._thread_results.popleft()
            if attempt.outcome is None:
                self._finish(attempt, outcome, ended)

    # the end of an attempt

    def _on_timeout(self, attempt: Attempt) -> None:
        self._collect()  # it may have ended in time, and the loop been late
        if attempt.outcome is not None:
            return
        if not attempt.begun:
            attempt.started = time.monotonic()  # no thread has come to it; its time has not begun
        ends = attempt.started + attempt.claim.timeout_ms / 1000
        if ends > self._loop.time():
            attempt.timer = self._loop.call_at(ends, self._on_timeout, attempt)
            return
        self._finish(attempt, outcomes.timeout(attempt.claim.step_name, attempt.claim.timeout_ms))
        self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """Tell a handler whose attempt is over, and go on without it."""
        attempt.context.cancelled = True
        if attempt.job is not None:
            stuck_before = self._threads.stuck
            self._threads.give_up(attempt.job)
            self._metrics.threads_given_up += self._threads.stuck - stuck_before
        elif attempt.task is not None:
            attempt.task.cancel()
            self._loop.call_later(1, self._report_stuck, attempt, attempt.task)

    def _report_stuck(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        if not task.done() and not self._closed:
            self._metrics.tasks_given_up += 1
            logger.warning(
                "the handler of step %r does not end although it was cancelled",
                attempt.claim.step_name,
                extra=with_fields(task_uuid=attempt.claim.task_uuid),
            )

    def _finish(self, attempt: Attempt, outcome: Outcome, ended: float | None = None) -> None:
        claim = attempt.claim
        seconds = (ended or time.monotonic()) - attempt.started
        if outcome.kind is OutcomeKind.SUCCESS and seconds * 1000 > claim.timeout_ms:
            # It kept the loop or the interpreter to itself past its time, so that no timer could say so.
            outcome = outcomes.timeout(claim.step_name, claim.timeout_ms)
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        attempt.outcome = outcome
        self.running -= 1
        metrics = self._metrics
        metrics.run_seconds.observe(seconds)
        if outcome.kind is OutcomeKind.SUCCESS:
            metrics.succeeded += 1
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("step done", extra=with_fields(**_ids(attempt), seconds=round(seconds, 6)))
        elif outcome.kind is OutcomeKind.ERROR:
            metrics.failed += 1
            metrics.timed_out += outcome.error_type == ErrorType.TIMEOUT
            told = with_fields(
                **_ids(attempt), seconds=round(seconds, 6), error_type=outcome.error_type, error=outcome.message
            )
            logger.warning("step failed", extra=told)
        else:
            metrics.released += 1
        self._on_finished(attempt)


def _ids(attempt: Attempt) -> dict[str, Any]:
    claim = attempt.claim
    return {
        "task_uuid": claim.task_uuid,
        "step_uuid": claim.step_uuid,
        "step": claim.step_name,
        "attempt": claim.attempt,
        "correlation_id": claim.correlation_id,
    }


def _call(attempt: Attempt, invocation: Invocation) -> Outcome:
    """Run a sync handler, in its thread and in a context of its own."""
    current_step.set(attempt.context)
    attempt.begin()
    try:
        return outcomes.from_value(attempt.claim.step_name, invocation.run(attempt.context))
    except BaseException as error:
        return outcomes.from_exception(error)


def _as_coroutine(value: Any) -> Coroutine[Any, Any, Any]:
    if isinstance(value, types.CoroutineType):
        return value
    return _wait(value)


async def _wait(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
