"""The worker's conversation with the engine: one call in flight, which settles what has finished and claims what fits.

What finishes during a call goes with the next one, so batches grow with load by themselves and no timer adds latency.
When there is nothing to settle and a slot is free, it asks for work: at once after a hint, else at intervals that grow
from `poll_min` to `poll_max` while nothing comes.

Outcomes of runs that somebody else holds are taken out of the conversation and handed in beside it (`locked.py`), as
are those that make very many workers of a batch. Only a stale fence makes a result go away, and that is logged as an
error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .attempts import Attempt
from .claims import Answer, Claim
from .errors import DatabaseError
from .execution import Executor
from .gateway import Locked
from .held import HeldClaims
from .jitter import spread
from .locked import LockedTasks
from .logging import with_fields
from .metrics import WorkerMetrics
from .settling import RETRY_SECONDS, SettleEngine, Settler

logger = logging.getLogger("tasker_worker.exchange")

_MANY_BATCHES = 500  # a step that divides into more is settled beside the conversation, which would wait for it
_LOCKED_OUTCOMES = 1000  # so many may wait for runs that are held; above it nothing is claimed


class Engine(SettleEngine, Protocol):
    """The engine's functions that the exchange needs; `Gateway` is them, a test may play them."""

    async def claim(self, worker: str, limit: int) -> list[Claim]: ...


class Hinter(Protocol):
    """Tells others that something is there for them; returns at once."""

    def ready(self) -> None: ...
    def finished(self) -> None: ...


class Exchange:
    """Belongs to the loop's thread, except for `held`, which says so itself."""

    def __init__(
        self,
        engine: Engine,
        engine_for_locked: SettleEngine,
        *,
        worker: str,
        slots: int,
        poll_min: float,
        poll_max: float,
        metrics: WorkerMetrics,
        hinter: Hinter,
    ) -> None:
        """`engine_for_locked` is another connection of the engine's, for the outcomes of runs that somebody holds."""
        self._engine = engine
        self._worker = worker
        self._slots = slots
        self._poll_min = poll_min
        self._poll_max = poll_max
        self._metrics = metrics
        self._hinter = hinter
        self._loop = asyncio.get_running_loop()
        self._executor: Executor | None = None
        self._finished: deque[Attempt] = deque()
        #: Claims not settled yet.
        self.held = HeldClaims()
        self._locked = LockedTasks(self._wake)
        self._settler = self._settler_on(engine, self._locked.add)
        self._settler_of_locked = self._settler_on(engine_for_locked, self._locked.put_back)
        self._waiter: asyncio.Future[None] | None = None
        self._poll_delay = poll_min
        self._next_poll = self._loop.time()
        self._hinted = False  # since the last call began
        self._stopping = False
        self._give_up_at = float("inf")
        #: Whether the engine has marked this worker as draining.
        self.draining = False

    def _settler_on(self, engine: SettleEngine, on_locked: Callable[[list[Attempt]], None]) -> Settler:
        return Settler(
            engine,
            worker=self._worker,
            held=self.held,
            metrics=self._metrics,
            on_answer=self._take_answer,
            on_locked=on_locked,
        )

    def attach(self, executor: Executor) -> None:
        """Say who runs the claims; it reports back through `finished`."""
        self._executor = executor

    @property
    def connected(self) -> bool:
        """Whether the last call was answered."""
        return self._settler.connected

    @property
    def outcomes_waiting(self) -> int:
        sending = len(self._settler.sending) + len(self._settler_of_locked.sending)
        return len(self._finished) + sending + self._locked.waiting()

    def finished(self, attempt: Attempt) -> None:
        """An attempt has its outcome."""
        batches = attempt.outcome.batches if attempt.outcome is not None else None
        if attempt.claim.task_uuid in self._locked or (batches is not None and len(batches.ids) > _MANY_BATCHES):
            self._locked.add([attempt])
        else:
            self._finished.append(attempt)
        self._wake()

    def hint(self) -> None:
        """Steps may have become ready."""
        self._hinted = True
        self._poll_soon()
        self._wake()

    def set_draining(self, draining: bool) -> None:
        if draining != self.draining:
            self.draining = draining
            logger.info("draining: no new work is taken" if draining else "taking work again")
            self._wake()

    def stop(self, give_up_at: float) -> None:
        """Claim no more. `run` ends when nothing runs and everything is settled.

        From the monotonic time `give_up_at` on, it ends even with outcomes that could not be settled.
        """
        self._stopping = True
        self._give_up_at = self._settler.give_up_at = self._settler_of_locked.give_up_at = give_up_at
        self._wake()

    async def run(self) -> None:
        """Converse until stopped."""
        locked = self._loop.create_task(self._locked.run(self._settler_of_locked), name="locked")
        locked.add_done_callback(lambda _: self._wake())
        try:
            await self._converse(locked)
        finally:
            locked.cancel()
            await asyncio.wait([locked])

    async def _converse(self, locked: asyncio.Task[None]) -> None:
        assert self._executor is not None
        executor = self._executor
        while True:
            if locked.done():
                locked.result()  # if it broke, so does this
                if not self._stopping:
                    raise RuntimeError("outcomes of tasks that were held are not handed in any more")
            limit = self._free_slots(executor)
            if self._finished:
                batch = self._settler.take_batch(self._finished)
                if batch and not await self._settle(batch, limit):
                    return
            elif self._stopping and not executor.running and self._nothing_is_locked(locked):
                return
            elif limit and self._loop.time() >= self._next_poll:
                await self._claim(limit)
            else:
                await self._wait(self._next_poll if limit else self._idle_until(executor))
                continue
            # Handlers that do not wait have ended after one turn; what they return goes with the very next call.
            await asyncio.sleep(0)

    def _free_slots(self, executor: Executor) -> int:
        """How many steps to ask for."""
        if self._stopping or self.draining or executor.out_of_threads or self._locked.waiting() >= _LOCKED_OUTCOMES:
            return 0
        if self._leases_ran_out():
            return 0  # what it claimed would be given back unrun
        return self._slots - executor.running

    def _nothing_is_locked(self, locked: asyncio.Task[None]) -> bool:
        """Whether there is nothing left to wait for of the runs that are held; or no time."""
        nothing = not self._locked.waiting() and not self._settler_of_locked.sending
        return nothing or locked.done() or time.monotonic() >= self._give_up_at

    def _leases_ran_out(self) -> bool:
        return time.monotonic() >= self.held.valid_until

    def _idle_until(self, executor: Executor) -> float | None:
        """When to go on although nothing is to be claimed now, a time of the loop's clock; None: when woken."""
        if self._stopping:
            # With nothing running, only the outcomes of runs that are held are left to wait for.
            return None if executor.running or self._give_up_at == float("inf") else self._give_up_at
        return self._loop.time() + self._poll_max if self._leases_ran_out() else None

    async def _settle(self, batch: list[Attempt], limit: int) -> bool:
        if limit:
            self._hinted = False
        return await self._settler.settle(batch, limit)

    async def _claim(self, limit: int) -> None:
        self._metrics.calls += 1
        self._hinted = False
        self.held.call_begins(time.monotonic())
        try:
            claims = await self._engine.claim(self._worker, limit)
        except DatabaseError as error:
            self.held.call_fails()
            self._metrics.call_failures += 1
            if self.connected and not isinstance(error, Locked):
                logger.warning("no work can be claimed; polling goes on", extra=with_fields(reason=str(error)))
                self._settler.connected = False
            self._hinted = False
            self._poll_delay = max(self._poll_delay, RETRY_SECONDS[0])
            self._poll_later()
            return
        except BaseException:
            self.held.call_fails()
            raise
        self._settler.answered()
        if claims:
            self._begin(claims, limit)
        else:
            self.held.call_ends((), time.monotonic())
            self._poll_later()

    def _poll_soon(self) -> None:
        """Work is about: start over with the shortest interval, or ask at once when hinted since the last call."""
        self._poll_delay = self._poll_min
        self._next_poll = 0.0 if self._hinted else self._loop.time() + self._poll_min

    def _poll_later(self) -> None:
        """Nothing came: ask again after the interval, and less often from then on."""
        if self._hinted:
            self._poll_soon()
            return
        self._next_poll = self._loop.time() + spread(self._poll_delay)
        self._poll_delay = min(self._poll_delay * 2, self._poll_max)

    def _take_answer(self, answer: Answer, limit: int) -> None:
        if answer.claims:
            self._begin(answer.claims, limit)
        else:
            if limit:
                self.held.call_ends((), time.monotonic())
            self._poll_soon()
        if answer.ready_left:
            self._hinter.ready()
        if answer.tasks_finished:
            self._hinter.finished()
        self._wake()

    def _begin(self, claims: list[Claim], limit: int) -> None:
        assert self._executor is not None
        attempts, late = self.held.call_ends(claims, time.monotonic())
        self._metrics.claimed += len(claims)
        if late:
            self._metrics.claims_late += len(late)
            logger.warning("claims came too late and are given back unrun", extra=with_fields(count=len(late)))
            for attempt in late:
                self.finished(attempt)
        self._hinted = self._hinted or len(claims) >= limit  # as many as asked for: there may be more
        self._poll_soon()
        self._executor.start(attempts)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, until: float | None) -> None:
        """Sleep until woken, or until a time of the loop's clock."""
        self._waiter = self._loop.create_future()
        timer = None if until is None else self._loop.call_at(until, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
