"""Runs claimed steps: async handlers on the event loop, sync ones in threads, each under its timeout.

The exchange hands claims to `Executor.start` and gets every attempt back, once, through `on_finished`, with an outcome.
Most begin at once; one whose claim left results out, or whose step has a `when`, is prepared first, beside the others.

Every async attempt is a task of its own, in a context of its own, so that nothing that a library keeps by task or by
context goes from step to step. The tasks are begun a share at a time: handlers that never wait would else keep the loop
to themselves for as long as a whole batch of claims takes.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, TypeVar

from . import conditions, outcomes, schemas
from .attempts import Attempt, AttemptState, log_fields
from .claims import RELEASE, SKIP, Claim, Outcome, OutcomeKind
from .errors import ErrorType
from .fetching import ResultFetcher
from .logging import current_step, with_fields
from .metrics import WorkerMetrics
from .registry import HandlerRegistry, Invocation
from .services import WorkerServices
from .threads import HandlerThreads

logger = logging.getLogger("tasker_worker.execution")

_TURN_SECONDS = 0.005  # a share of async attempts that takes the loop for longer is followed by a smaller one
_SHARE = (1, 8, 64)  # attempts begun in one turn of the loop: fewest, first, most
_START_SECONDS = 5.0  # for a thread to come to a handler, should its timeout be shorter than that
_THREAD_PAUSE_SECONDS = (1.0, 30.0)  # until a thread is tried again after the system had none, first and longest


Value = TypeVar("Value")


class NoThread(Exception):
    """The system has no thread."""


class LoopWatch:
    """What the lease thread reads to tell whether, and by which attempt, the event loop is blocked."""

    def __init__(self) -> None:
        self.stepping: Attempt | None = None  # the attempt whose code the loop runs right now
        self.loop_thread = threading.get_ident()


class Executor:
    """All running attempts of a worker. Belongs to the loop's thread."""

    def __init__(
        self,
        registry: HandlerRegistry,
        *,
        slots: int,
        metrics: WorkerMetrics,
        fetcher: ResultFetcher,
        services: WorkerServices,
        on_finished: Callable[[Attempt], None],
        on_threads_back: Callable[[], None],
    ) -> None:
        """`on_finished` gets every attempt with its outcome; `on_threads_back` is called when `out_of_threads` ends."""
        self._registry = registry
        self._metrics = metrics
        self._fetcher = fetcher
        self._services = services
        self._on_finished = on_finished
        self._on_threads_back = on_threads_back
        self._loop = asyncio.get_running_loop()
        self._active: set[Attempt] = set()  # those that have a slot
        self._queue: deque[tuple[Attempt, Invocation]] = deque()  # of async attempts, without a task yet
        self._share = _SHARE[1]
        self._share_began: float | None = None  # None while no share is under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = HandlerThreads(slots)
        # What threads have to say, and whether the loop was called to hear it.
        self._thread_results: deque[tuple[Attempt, Outcome, float]] = deque()
        self._refused: deque[Attempt] = deque()
        self._collecting = False
        self._thread_pause = _THREAD_PAUSE_SECONDS[0]
        self._closed = False
        #: The system had no thread for a handler, last time one was wanted. Nothing new should be claimed.
        self.out_of_threads = False
        self.watch = LoopWatch()

    @property
    def running(self) -> int:
        """Attempts that have a slot: their handlers run, or their last checkpoint is on its way."""
        return len(self._active) + self._services.holding

    @property
    def stuck_threads(self) -> int:
        return self._threads.stuck

    def start(self, attempts: Iterable[Attempt]) -> None:
        """Begin to run attempts. Those that cannot be run are finished at once, with the reason as their outcome."""
        for attempt in attempts:
            attempt.services = self._services
            self._active.add(attempt)
            if _needs_preparation(attempt.claim):
                self._start_task(attempt, self._prepare(attempt), name="preparation")
            else:
                self._begin(attempt)
        self._begin_queued()

    def release(self, attempt: Attempt) -> None:
        """Stop waiting for a running attempt and give its claim back; its handler is cancelled."""
        if attempt in self._active:
            self._finish(attempt, RELEASE)
            self._abandon(attempt)

    async def close(self) -> None:
        """End tasks and idle threads. What still runs was released before."""
        self._closed = True
        self._threads.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            # A handler that swallows its cancellation is left behind.
            await asyncio.wait(self._tasks, timeout=0.2)

    # before a handler

    async def _prepare(self, attempt: Attempt) -> None:
        """Find out whether an attempt's handler is to be called, with all it needs, and see to it."""
        try:
            outcome = await self._prepared(attempt) if attempt.prepare() else RELEASE
        except NoThread:
            self._refuse(attempt)
            return
        except Exception as error:
            outcome = outcomes.from_exception(error)
        if attempt not in self._active:
            return
        attempt.task = None
        if outcome is None and attempt.prepared():
            self._begin(attempt)
            self._begin_queued()
        else:
            self._finish(attempt, outcome or RELEASE)

    async def _prepared(self, attempt: Attempt) -> Outcome | None:
        """What became of the attempt already, None when its handler is to be called."""
        claim = attempt.claim
        if claim.results_left and not await self._fetcher.fetch(attempt):
            return RELEASE
        if claim.condition is None or claim.attempt > 1:
            return None
        texts = attempt.context.json_texts()
        judge = functools.partial(conditions.judge, claim.step_name, claim.condition, *texts)
        quick = conditions.is_quick(claim.condition, *texts)
        return None if (judge() if quick else await self._in_thread(attempt, judge)) else SKIP

    def _begin(self, attempt: Attempt) -> None:
        """Have an attempt's handler called: in a thread, or on the loop by `_begin_queued`."""
        claim = attempt.claim
        try:
            invocation = self._registry.invocation(claim.callable, claim.method, claim.resolver)
        except Exception as error:  # a custom resolver's, or an import's, too
            self._finish(attempt, outcomes.from_exception(error))
            return
        if invocation.is_async:
            self._queue.append((attempt, invocation))
        else:
            self._start_in_thread(attempt, invocation)

    def _begin_queued(self) -> None:
        if self._queue and self._share_began is None:
            self._begin_share()

    def _start_task(self, attempt: Attempt, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name, context=contextvars.Context())
        attempt.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, attempt: Attempt, function: Callable[[], Value]) -> Value:
        """Call something that may take long for an attempt, in one of the handlers' threads; there is one a slot.

        Raises what the function raises, and NoThread when the system has none.
        """
        done: asyncio.Future[tuple[Value | None, BaseException | None]] = self._loop.create_future()

        def tell(value: Value | None, error: BaseException | None) -> None:
            if not done.done():
                done.set_result((value, error))

        def call_tell(value: Value | None, error: BaseException | None) -> None:
            try:
                self._loop.call_soon_threadsafe(tell, value, error)
            except RuntimeError:
                logger.debug("what was done for a step ended after its worker had stopped")

        def work() -> None:
            try:
                value = function()
            except BaseException as error:
                call_tell(None, error)
            else:
                call_tell(value, None)

        attempt.job = self._threads.submit(work, lambda: call_tell(None, NoThread()))
        value, error = await done
        attempt.job = None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # there is one without an error

    # async handlers

    def _begin_share(self) -> None:
        """Begin some of what is queued, as many as the last share shows to be right, and come back for the rest."""
        if self._share_began is not None:
            slow = time.monotonic() - self._share_began > _TURN_SECONDS
            self._share = max(self._share // 2, _SHARE[0]) if slow else min(self._share * 2, _SHARE[2])
        for _ in range(min(self._share, len(self._queue))):
            self._begin_task(*self._queue.popleft())
        if self._queue:
            self._share_began = time.monotonic()
            # Behind the first steps of the tasks just made, in the same turn of the loop.
            self._loop.call_soon(self._begin_share)
        else:
            self._share_began = None

    def _begin_task(self, attempt: Attempt, invocation: Invocation) -> None:
        if attempt not in self._active or self._closed:
            return
        self._start_task(attempt, self._run_async(attempt, invocation), name="handler")

    async def _run_async(self, attempt: Attempt, invocation: Invocation) -> None:
        if not attempt.begin():  # its lease was lost before its turn came
            self._finish(attempt, RELEASE)
            return
        current_step.set(attempt.context)
        try:
            value = await self._steps_of(attempt, invocation)
        except BaseException as error:
            if attempt not in self._active:  # timed out or released: this is the end of its cancellation
                return
            if self._closed and isinstance(error, asyncio.CancelledError | GeneratorExit):
                raise
            outcome = outcomes.from_exception(error)
        else:
            outcome = outcomes.from_value(attempt.claim, value)
        ended = time.monotonic()
        if attempt.claim.result_schema is not None:
            outcome = await self._checked(attempt, outcome)
        self._finish(attempt, outcome, ended)

    async def _checked(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """An outcome with its result held to the step's schema, which takes a thread when it may take long."""
        check = functools.partial(outcomes.checked, attempt.claim, outcome)
        if outcome.result is None or schemas.is_quick(outcome.result):
            return check()
        if attempt.timer is None and attempt in self._active:
            self._set_timer(attempt)
        try:
            return await self._in_thread(attempt, check)
        except NoThread:
            return check()

    @types.coroutine
    def _steps_of(self, attempt: Attempt, invocation: Invocation) -> Generator[Any, Any, Any]:
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
        if attempt in self._active:
            self._set_timer(attempt)
        while True:
            error: BaseException | None = None
            try:
                yield waiting_for
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
        self._set_timer(attempt)
        attempt.job = self._threads.submit(
            lambda: self._run_in_thread(attempt, invocation), lambda: self._refuse(attempt)
        )

    def _run_in_thread(self, attempt: Attempt, invocation: Invocation) -> None:
        outcome = contextvars.Context().run(_call, attempt, invocation)
        self._thread_results.append((attempt, outcome, time.monotonic()))
        self._call_collect()

    def _refuse(self, attempt: Attempt) -> None:
        """The system has no thread for it. In any thread."""
        self._refused.append(attempt)
        self._call_collect()

    def _call_collect(self) -> None:
        if not self._collecting:
            self._collecting = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                logger.debug("a handler ended after its worker had stopped")

    def _collect(self) -> None:
        self._collecting = False  # before looking, so that a result put in from now on calls again
        while self._thread_results:
            self._finish(*self._thread_results.popleft())
        if self._refused:
            self._give_back_refused()

    def _give_back_refused(self) -> None:
        count = len(self._refused)
        while self._refused:
            self.release(self._refused.popleft())
        if not self.out_of_threads:
            self.out_of_threads = True
            logger.error(
                "the system has no thread for a handler: steps are given back and none is claimed until it has",
                extra=with_fields(steps=count),
            )
            self._loop.call_later(self._thread_pause, self._try_thread)

    def _try_thread(self) -> None:
        if self._closed:
            return
        if not self._threads.can_start():
            self._thread_pause = min(self._thread_pause * 2, _THREAD_PAUSE_SECONDS[1])
            self._loop.call_later(self._thread_pause, self._try_thread)
            return
        self._thread_pause = _THREAD_PAUSE_SECONDS[0]
        self.out_of_threads = False
        logger.info("the system has threads again")
        self._on_threads_back()

    # the end of an attempt

    def _set_timer(self, attempt: Attempt) -> None:
        at = attempt.since + attempt.claim.timeout_ms / 1000
        attempt.timer = self._loop.call_at(at, self._on_timeout, attempt)

    def _on_timeout(self, attempt: Attempt) -> None:
        self._collect()  # it may have ended in time, and the loop been late
        if attempt not in self._active:
            return
        now = self._loop.time()
        if attempt.state is AttemptState.WAITING and now < attempt.claimed_at + _START_SECONDS:
            attempt.timer = self._loop.call_at(attempt.claimed_at + _START_SECONDS, self._on_timeout, attempt)
            return
        if attempt.give_back():
            # No thread has come to it in all this time: another worker may have one.
            self._free_slot(attempt, now)
        elif attempt.since + attempt.claim.timeout_ms / 1000 > now:
            self._set_timer(attempt)  # its time began later than its claim
            return
        else:
            self._finish(attempt, outcomes.timeout(attempt.claim.step_name, attempt.claim.timeout_ms))
        self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """Tell a handler whose attempt is over, and go on without it."""
        attempt.context.cancelled = True
        if attempt.job is not None:
            stuck_before = self._threads.stuck
            self._threads.give_up(attempt.job)
            self._metrics.threads_given_up += self._threads.stuck - stuck_before
        if attempt.task is not None:
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
        """An attempt has come to this end, at the monotonic time `ended` (now). Does nothing once its slot is free."""
        if attempt not in self._active:
            return
        if ended is None:
            ended = time.monotonic()
        claim = attempt.claim
        if outcome.succeeded and (ended - attempt.since) * 1000 > claim.timeout_ms:
            # It kept the loop or the interpreter to itself past its time, so that no timer could say so.
            outcome = outcomes.timeout(claim.step_name, claim.timeout_ms)
        attempt.finish(outcome)
        self._free_slot(attempt, ended)

    def _free_slot(self, attempt: Attempt, ended: float) -> None:
        """An attempt has its outcome, and its slot is free."""
        self._active.discard(attempt)
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        outcome = attempt.outcome
        assert outcome is not None
        seconds = ended - attempt.since
        metrics = self._metrics
        metrics.run_seconds.observe(seconds)
        if outcome.succeeded:
            metrics.succeeded += 1
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("step done", extra=with_fields(**log_fields(attempt), seconds=round(seconds, 6)))
        elif outcome.kind is OutcomeKind.FAIL:
            metrics.failed += 1
            metrics.timed_out += outcome.error_type == ErrorType.TIMEOUT
            logger.warning(
                "step failed",
                extra=with_fields(
                    **log_fields(attempt),
                    seconds=round(seconds, 6),
                    error_type=outcome.error_type,
                    error=outcome.message,
                ),
            )
        elif outcome.kind is OutcomeKind.SKIP:
            metrics.skipped += 1
        else:
            metrics.released += 1
        self._services.finish(attempt, self._on_finished)


def _needs_preparation(claim: Claim) -> bool:
    return bool(claim.results_left) or (claim.condition is not None and claim.attempt == 1)


def _call(attempt: Attempt, invocation: Invocation) -> Outcome:
    """Run a sync handler, in its thread and in a context of its own."""
    if not attempt.begin():  # its lease was lost, or it was given back, before a thread came to it
        return RELEASE
    current_step.set(attempt.context)
    try:
        return outcomes.checked(attempt.claim, outcomes.from_value(attempt.claim, invocation.run(attempt.context)))
    except BaseException as error:
        return outcomes.from_exception(error)


def _as_coroutine(value: Any) -> Coroutine[Any, Any, Any]:
    if isinstance(value, types.CoroutineType):
        return value
    return _wait(value)


async def _wait(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
