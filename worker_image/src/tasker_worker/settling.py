"""Handing outcomes in: a call is repeated until the engine has answered, whatever its trouble is.

A call whose effect is unknown is repeated with the same outcomes, and without claiming, until the database answers:
the engine ignores what it has recorded before. Outcomes that the database refuses to store go one by one, so that
the one at fault fails its own attempt and holds up no other. Those of a run that somebody else holds are left to the
caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from . import outcomes
from .attempts import Attempt, log_fields
from .claims import Answer, OutcomeKind, Settlement
from .errors import DatabaseError, ErrorType
from .gateway import Locked, Refused
from .held import HeldClaims
from .jitter import spread
from .logging import with_fields
from .metrics import WorkerMetrics

logger = logging.getLogger("tasker_worker.settling")

_BATCH_OUTCOMES = 1000  # settled by one call at most
_BATCH_CHARACTERS = 16 * 1024 * 1024  # of their texts together
RETRY_SECONDS = (0.05, 2.0)  # first and longest wait before a failed call is repeated


class SettleEngine(Protocol):
    """The engine's functions that settling needs; `Gateway` has them."""

    async def settle(self, worker: str, settlements: Sequence[Settlement], claim_limit: int) -> Answer: ...
    async def create_batches(self, worker: str, settlement: Settlement, claim_limit: int) -> Answer: ...


class Settler:
    """Hands in one batch at a time over one connection. Belongs to the loop's thread."""

    def __init__(
        self,
        engine: SettleEngine,
        *,
        worker: str,
        held: HeldClaims,
        metrics: WorkerMetrics,
        on_answer: Callable[[Answer, int], None],
        on_locked: Callable[[list[Attempt]], None],
    ) -> None:
        """`on_answer` gets the engine's answers and how many steps were asked for; what they claim is its to hold.
        `on_locked` gets the attempts of which nothing was recorded, since somebody holds one of their runs.
        """
        self._engine = engine
        self._worker = worker
        self._held = held
        self._metrics = metrics
        self._on_answer = on_answer
        self._on_locked = on_locked
        #: The attempts whose outcomes are under way.
        self.sending: list[Attempt] = []
        #: Whether the last call was answered.
        self.connected = True
        #: From this monotonic time on, a call that fails is not repeated.
        self.give_up_at = float("inf")

    def take_batch(self, finished: deque[Attempt]) -> list[Attempt]:
        """As many attempts as one call takes, from the front; those whose lease is lost are discarded on the way.

        One that divides its work into batches is settled by a call of its own.
        """
        batch: list[Attempt] = []
        characters = 0
        while finished and len(batch) < _BATCH_OUTCOMES and characters < _BATCH_CHARACTERS:
            attempt = finished[0]
            outcome = attempt.outcome
            assert outcome is not None
            if outcome.batches is not None and batch:
                break
            finished.popleft()
            if not attempt.send():
                self.discard(attempt)
                continue
            batch.append(attempt)
            if outcome.batches is not None:
                break
            characters += outcome.characters
        return batch

    async def settle(self, batch: list[Attempt], limit: int) -> bool:
        """Settle what `take_batch` gave, claiming up to `limit` steps, however long that takes; False: given up."""
        self.sending = batch
        delay = RETRY_SECONDS[0]
        replaced = False
        while True:
            self._metrics.calls += 1
            try:
                answer = await self._call(batch, limit)
            except Locked:
                self._metrics.lock_timeouts += 1
                for attempt in batch:
                    attempt.not_sent()
                self.sending = []
                self._on_locked(batch)
                return True
            except Refused as error:
                self._metrics.call_failures += 1
                logger.error(
                    "the database refuses to record outcomes",
                    extra=with_fields(count=len(batch), reason=str(error)),
                )
                if len(batch) > 1:
                    # One of them is at fault. Each on its own shows which, and the others go through.
                    return await self._settle_one_by_one(batch)
                [attempt] = batch
                if replaced:
                    self.discard(attempt)
                    self.sending = []
                    return True
                replaced = True
                self._replace_refused(attempt, error)
            except DatabaseError as error:
                self._metrics.call_failures += 1
                self.connected = False
                for attempt in batch:
                    attempt.doubt()
                logger.warning(
                    "outcomes could not be settled; trying again",
                    extra=with_fields(count=len(batch), reason=str(error), seconds=delay),
                )
            else:
                self.sending = []
                self._take_answer(batch, answer, limit)
                return True
            limit = 0
            if time.monotonic() >= self.give_up_at:
                logger.error(
                    "outcomes are left unsettled; their leases will expire", extra=with_fields(count=len(batch))
                )
                return False
            await asyncio.sleep(spread(delay))
            delay = min(delay * 2, RETRY_SECONDS[1])

    async def _call(self, batch: list[Attempt], limit: int) -> Answer:
        settlements = [
            Settlement(attempt.claim.step_id, attempt.claim.fence, attempt.outcome)
            for attempt in batch
            if attempt.outcome is not None
        ]
        if not limit:
            return await self._tell(settlements, 0)
        self._held.call_begins(time.monotonic())
        try:
            return await self._tell(settlements, limit)
        except BaseException:
            self._held.call_fails()
            raise

    async def _tell(self, settlements: list[Settlement], limit: int) -> Answer:
        if len(settlements) == 1 and settlements[0].outcome.batches is not None:
            return await self._engine.create_batches(self._worker, settlements[0], limit)
        return await self._engine.settle(self._worker, settlements, limit)

    async def _settle_one_by_one(self, batch: list[Attempt]) -> bool:
        for index, attempt in enumerate(batch):
            if not await self.settle([attempt], 0):
                self.sending = batch[index:]
                return False
        return True

    def _replace_refused(self, attempt: Attempt, error: Refused) -> None:
        """Fail the attempt whose outcome the database will not store."""
        self._metrics.results_refused += 1
        attempt.replace(
            outcomes.failure(
                ErrorType.PERMANENT_ERROR,
                f"the database refuses the result of step {attempt.claim.step_name!r}: {error}",
                retryable=False,
            )
        )

    def _take_answer(self, batch: list[Attempt], answer: Answer, limit: int) -> None:
        self.answered()
        for attempt in batch:
            self._held.drop(attempt)
            doubted = attempt.settle()
            if attempt.claim.fence not in answer.stale:
                continue
            if doubted:
                self._metrics.outcomes_unsure += 1
                logger.info(
                    "an outcome was recorded and the step has gone on since, or its lease is lost",
                    extra=with_fields(**log_fields(attempt)),
                )
            else:
                self.discard(attempt)
        self._on_answer(answer, limit)

    def answered(self) -> None:
        """The database has answered, this or another call over the same connection."""
        if not self.connected:
            self.connected = True
            logger.info("the database answers again")

    def discard(self, attempt: Attempt) -> None:
        """The lease of an attempt was lost, so its outcome is nobody's concern."""
        self._held.drop(attempt)
        if attempt.outcome is not None and attempt.outcome.kind not in (OutcomeKind.RELEASE, OutcomeKind.SKIP):
            self._metrics.results_discarded += 1
            logger.warning(
                "a result is discarded: the lease was lost, the step is not ours",
                extra=with_fields(**log_fields(attempt)),
            )
