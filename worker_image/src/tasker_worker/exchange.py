"""The worker's conversation with the engine: one call in flight, which settles what has finished and claims what fits.

What finishes during a call goes with the next one, so batches grow with load by themselves and no timer adds latency.
When there is nothing to settle and a slot is free, it asks for work: at once after a hint, else at intervals that grow
from `poll_min` to `poll_max` while nothing comes.

A call whose effect is unknown is repeated with the same outcomes, and without claiming, until the database answers:
the engine ignores what it has recorded before. Only a stale fence makes a result go away, and that is told loudly.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from . import outcomes
from .claims import RELEASE, Answer, Claim, OutcomeKind, Settlement
from .errors import DatabaseError, ErrorType
from .execution import Attempt, Executor
from .gateway import Refused
from .logging import with_fields
from .metrics import WorkerMetrics

logger = logging.getLogger("tasker_worker.exchange")

_BATCH_OUTCOMES = 1000  # settled by one call at most
_BATCH_CHARACTERS = 16 * 1024 * 1024  # of their payloads together
_RETRY_SECONDS = (0.05, 2.0)  # first and longest wait before a failed call is repeated


class Engine(Protocol):
    """The engine's functions that the exchange needs; `Gateway` is them, a test may play them."""

    async def claim(self, worker: str, limit: int) -> list[Claim]: ...
    async def settle(self, worker: str, settlements: Sequence[Settlement], claim_limit: int) -> Answer: ...


class Hinter(Protocol):
    """Tells others that something is there for them; returns at once."""

    def ready(self) -> None: ...
    def finished(self) -> None: ...


class Exchange:
    """Belongs to the loop's thread, except for what its docstring says otherwise."""

    def __init__(
        self,
        engine: Engine,
        *,
        worker: str,
        slots: int,
        poll_min: float,
        poll_max: float,
        metrics: WorkerMetrics,
        hinter: Hinter,
    ) -> None:
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
        self._sending: list[Attempt] = []
        self._waiter: asyncio.Future[None] | None = None
        self._poll_delay = poll_min
        self._next_poll = 0.0
        self._hinted = False  # since the last call began
        self._stopping = False
        self._give_up_at = float("inf")
        #: Claims not settled yet, by fence. Other threads may read a copy of its values.
        self.held: dict[int, Attempt] = {}
        #: Whether the engine has marked this worker as draining.
        self.draining = False
        #: Whether the last call was answered.
        self.connected = True

    def attach(self, executor: Executor) -> None:
        """Say who runs the claims; it reports back through `finished`."""
        self._executor = executor

    @property
    def outcomes_waiting(self) -> int:
        return len(self._finished) + len(self._sending)

    def finished(self, attempt: Attempt) -> None:
        """An attempt has its outcome."""
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

    def lose(self, fences: Iterable[int]) -> None:
        """The engine says that these leases are not this worker's any more."""
        for fence in fences:
            attempt = self.held.get(fence)
            # While its outcome is under way, the engine's answer to that tells more than this.
            if attempt is not None and not attempt.lost and not attempt.unsure and attempt not in self._sending:
                attempt.lost = True
                attempt.context.cancelled = True
                self._metrics.leases_lost += 1
                if attempt.outcome is None:
                    logger.warning("the lease of a running step is lost; its handler is told", extra=_ids(attempt))

    def stop(self, give_up_at: float) -> None:
        """Claim no more. `run` ends when nothing runs and everything is settled.

        From the monotonic time `give_up_at` on, it ends even with outcomes that could not be settled.
        """
        self._stopping = True
        self._give_up_at = give_up_at
        self._wake()

    async def run(self) -> None:
        """Converse until stopped."""
        assert self._executor is not None
        executor = self._executor
        while True:
            limit = 0 if self._stopping or self.draining else max(0, self._slots - executor.running)
            if self._finished:
                batch = self._take_finished()
                if batch and not await self._settle(batch, limit):
                    return
            elif self._stopping and not executor.running:
                return
            elif limit and self._loop.time() >= self._next_poll:
                await self._claim(limit)
            else:
                await self._wait(self._next_poll if limit else None)
                continue
            # Handlers that do not wait have ended after one turn; what they return goes with the very next call.
            await asyncio.sleep(0)

    def _take_finished(self) -> list[Attempt]:
        batch: list[Attempt] = []
        characters = 0
        finished = self._finished
        while finished and len(batch) < _BATCH_OUTCOMES and characters < _BATCH_CHARACTERS:
            attempt = finished.popleft()
            if attempt.lost:
                self._discard(attempt)
                continue
            assert attempt.outcome is not None
            if attempt.expired and attempt.outcome.kind is OutcomeKind.ERROR:
                # It was told to stop, which is no failure of the step. If the lease is current after all, it goes back.
                attempt.outcome = RELEASE
            characters += len(attempt.outcome.payload or "")
            batch.append(attempt)
        return batch

    async def _settle(self, batch: list[Attempt], limit: int) -> bool:
        """Settle a batch, however long that takes; False when told to give up before it was."""
        self._sending = batch
        delay = _RETRY_SECONDS[0]
        while True:
            self._metrics.calls += 1
            if limit:
                self._hinted = False
            try:
                answer = await self._engine.settle(self._worker, _settlements(batch), limit)
            except Refused as error:
                self._metrics.call_failures += 1
                told = with_fields(count=len(batch), reason=str(error))
                logger.error("the database refuses to record outcomes", extra=told)
                if len(batch) > 1:
                    # One of them is at fault. Each on its own shows which, and the others go through.
                    return await self._settle_one_by_one(batch)
                if not self._replace_refused(batch[0], error):
                    self._discard(batch[0])
                    self._sending = []
                    return True
            except DatabaseError as error:
                self._metrics.call_failures += 1
                self.connected = False
                for attempt in batch:
                    attempt.unsure = True
                told = with_fields(count=len(batch), reason=str(error), seconds=delay)
                logger.warning("outcomes could not be settled; trying again", extra=told)
            else:
                self._take_answer(batch, answer, limit)
                self._sending = []
                return True
            limit = 0
            if time.monotonic() >= self._give_up_at:
                told = with_fields(count=len(batch))
                logger.error("outcomes are left unsettled; their leases will expire", extra=told)
                return False
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
            delay = min(delay * 2, _RETRY_SECONDS[1])

    async def _settle_one_by_one(self, batch: list[Attempt]) -> bool:
        for index, attempt in enumerate(batch):
            if not await self._settle([attempt], 0):
                self._sending = batch[index:]
                return False
        return True

    def _replace_refused(self, attempt: Attempt, error: Refused) -> bool:
        """Fail the attempt whose outcome the database will not store; False when even that was refused."""
        assert attempt.outcome is not None
        if attempt.refused:
            return False
        attempt.refused = True
        self._metrics.results_refused += 1
        attempt.outcome = outcomes.failure(
            ErrorType.PERMANENT_ERROR,
            f"the database refuses the result of step {attempt.claim.step_name!r}: {error}",
            retryable=False,
        )
        return True

    async def _claim(self, limit: int) -> None:
        self._metrics.calls += 1
        self._hinted = False
        try:
            claims = await self._engine.claim(self._worker, limit)
        except DatabaseError as error:
            self._metrics.call_failures += 1
            if self.connected:
                logger.warning("no work can be claimed; polling goes on", extra=with_fields(reason=str(error)))
            self.connected = False
            self._hinted = False
            self._poll_delay = max(self._poll_delay, _RETRY_SECONDS[0])
            self._poll_later()
            return
        self._told_connected()
        if claims:
            self._begin(claims, limit)
        else:
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
        self._next_poll = self._loop.time() + self._poll_delay * random.uniform(0.8, 1.2)  # noqa: S311
        self._poll_delay = min(self._poll_delay * 2, self._poll_max)

    def _take_answer(self, batch: list[Attempt], answer: Answer, limit: int) -> None:
        self._told_connected()
        for attempt in batch:
            self.held.pop(attempt.claim.fence, None)
            if attempt.claim.fence not in answer.settled:
                if attempt.unsure:
                    self._metrics.outcomes_unsure += 1
                    logger.info("an outcome was recorded before, or its lease is lost", extra=_ids(attempt))
                else:
                    self._discard(attempt)
        if answer.claims:
            self._begin(answer.claims, limit)
        else:
            self._poll_soon()
        if answer.ready_left:
            self._hinter.ready()
        if answer.tasks_finished:
            self._hinter.finished()

    def _begin(self, claims: list[Claim], limit: int) -> None:
        assert self._executor is not None
        now = time.monotonic()
        attempts = [Attempt(claim, now) for claim in claims]
        for attempt in attempts:
            self.held[attempt.claim.fence] = attempt
        self._metrics.claimed += len(attempts)
        self._hinted = self._hinted or len(claims) >= limit  # as many as asked for: there may be more
        self._poll_soon()
        self._executor.start(attempts)

    def _discard(self, attempt: Attempt) -> None:
        self.held.pop(attempt.claim.fence, None)
        if attempt.outcome is not None and attempt.outcome.kind is not OutcomeKind.RELEASE:
            self._metrics.results_discarded += 1
            logger.warning("a result is discarded: the lease was lost, the step is not ours", extra=_ids(attempt))

    def _told_connected(self) -> None:
        if not self.connected:
            self.connected = True
            logger.info("the database answers again")

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


def _settlements(batch: list[Attempt]) -> list[Settlement]:
    return [
        Settlement(attempt.claim.step_id, attempt.claim.fence, attempt.outcome)
        for attempt in batch
        if attempt.outcome is not None
    ]


def _ids(attempt: Attempt) -> dict[str, object]:
    claim = attempt.claim
    return with_fields(
        task_uuid=claim.task_uuid,
        step=claim.step_name,
        attempt=claim.attempt,
        fence=claim.fence,
        correlation_id=claim.correlation_id,
    )
