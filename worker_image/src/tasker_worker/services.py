"""What running handlers ask of the worker: to keep a checkpoint, and the results of a batch's workers.

Both go over one connection of their own, which is opened when the first handler asks. A checkpoint is taken at once and
written beside the handler: of several that follow each other quickly the newest is enough. An attempt that did not
succeed is settled after its last checkpoint was written, so that the next one goes on from there; but it is not kept
waiting for long, and what its fence forbids is never written.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .attempts import Attempt, AttemptState, log_fields
from .batch_pages import Row
from .errors import ConfigurationError, DatabaseError, RetryableError
from .gateway import Locked, Refused, Unavailable
from .jitter import spread
from .logging import with_fields

logger = logging.getLogger("tasker_worker.services")

_RETRY_SECONDS = (0.05, 2.0)  # first and longest wait before a call is repeated
_LOCKED_PAUSE_SECONDS = 0.1  # after a call that has met a run which somebody holds: the call itself has waited
_HOLD_SECONDS = 5.0  # so long an attempt that has ended waits for its last checkpoint
_PATIENCE_SECONDS = 30.0  # of failing calls for one page of results
_HAS_HANDLER = (AttemptState.RUNNING, AttemptState.EXPIRED)
_IS_OVER = (AttemptState.SETTLED, AttemptState.LOST)


class ServicesEngine(Protocol):
    """The engine's functions that this needs; `Gateway` has them. One call at a time."""

    async def save_checkpoint(self, worker: str, step_id: int, fence: int, checkpoint: str) -> bool: ...
    async def read_batch_results(
        self, worker: str, step_id: int, fence: int, node: str, after: int, limit: int
    ) -> list[Row]: ...


class WorkerServices:
    """Belongs to the loop's thread, except for `save` and `read_from_thread`, which may be called from any."""

    def __init__(self, engine: ServicesEngine, *, worker: str) -> None:
        self._engine = engine
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turn = asyncio.Lock()  # of the connection
        self._lock = threading.Lock()
        self._newest: dict[Attempt, str] = {}  # checkpoints to write, JSON texts, in the order of their turns
        self._saving: Attempt | None = None
        self._saver: asyncio.Task[None] | None = None
        #: Of attempts that have ended: what to call once their checkpoint is written, and the timer that does not wait.
        self._held: dict[Attempt, tuple[Callable[[Attempt], None], asyncio.TimerHandle]] = {}
        self._failing = False

    # checkpoints

    @property
    def holding(self) -> int:
        """Attempts that have ended and wait for their last checkpoint."""
        return len(self._held)

    def save(self, attempt: Attempt, checkpoint: str) -> None:
        """Write a checkpoint, a JSON text, soon; it takes the place of one that has not been written yet."""
        with self._lock:
            waits = attempt in self._newest
            self._newest[attempt] = checkpoint
        if not waits or self._saver is None:
            try:
                self._loop.call_soon_threadsafe(self._begin_saving)
            except RuntimeError:
                logger.debug("a checkpoint came after its worker had stopped")

    def finish(self, attempt: Attempt, then: Callable[[Attempt], None]) -> None:
        """An attempt has ended: `then` is called at once, or when its last checkpoint is written or overdue."""
        if self._newest or self._saving is attempt:
            if attempt.outcome is not None and attempt.outcome.succeeded:
                with self._lock:
                    self._newest.pop(attempt, None)  # nobody goes on from there
            elif attempt in self._newest or self._saving is attempt:
                self._held[attempt] = then, self._loop.call_later(_HOLD_SECONDS, self._let_go, attempt)
                return
        then(attempt)

    def _let_go(self, attempt: Attempt) -> None:
        held = self._held.pop(attempt, None)
        if held is not None:
            then, timer = held
            timer.cancel()
            then(attempt)

    def _begin_saving(self) -> None:
        if self._saver is None:
            self._saver = self._loop.create_task(self._save_all(), name="checkpoints")

    async def _save_all(self) -> None:
        delay = _RETRY_SECONDS[0]
        try:
            while self._newest:
                with self._lock:
                    attempt = next(iter(self._newest))
                    checkpoint = self._newest.pop(attempt)
                    self._saving = attempt
                if attempt.state in _IS_OVER:
                    self._saved(attempt)
                    continue
                try:
                    async with self._turn:
                        kept = await self._engine.save_checkpoint(
                            self._worker, attempt.claim.step_id, attempt.claim.fence, checkpoint
                        )
                except Unavailable as error:
                    self._put_back(attempt, checkpoint, error)
                    is_locked = isinstance(error, Locked)
                    await asyncio.sleep(spread(_LOCKED_PAUSE_SECONDS if is_locked else delay))
                    delay = delay if is_locked else min(delay * 2, _RETRY_SECONDS[1])
                except DatabaseError as error:
                    logger.error(
                        "the database refuses a checkpoint",
                        extra=with_fields(**log_fields(attempt), reason=str(error)),
                    )
                    self._saved(attempt)
                else:
                    if self._failing:
                        logger.info("checkpoints are written again")
                    self._failing = False
                    delay = _RETRY_SECONDS[0]
                    if not kept and attempt.state not in _IS_OVER:
                        attempt.context.cancelled = True
                    self._saved(attempt)
        finally:
            self._saving = self._saver = None

    def _put_back(self, attempt: Attempt, checkpoint: str, error: Unavailable) -> None:
        """It is tried again after all others, unless a newer one has come."""
        with self._lock:
            self._newest.setdefault(attempt, checkpoint)
            self._saving = None
        if not self._failing:
            self._failing = True
            logger.warning(
                "a checkpoint could not be written; trying again",
                extra=with_fields(**log_fields(attempt), reason=str(error)),
            )

    def _saved(self, attempt: Attempt) -> None:
        with self._lock:
            self._saving = None
            if attempt.state in _IS_OVER:
                self._newest.pop(attempt, None)
            more = attempt in self._newest
        if not more:
            self._let_go(attempt)

    def close(self) -> None:
        """End what is under way; what waits is not written any more."""
        if self._saver is not None:
            self._saver.cancel()
        for _, timer in self._held.values():
            timer.cancel()

    # results of a batch's workers

    async def read(self, attempt: Attempt, node: str, after: int, limit: int) -> list[Row]:
        """Up to `limit` rows of places above `after`; none at the end. Raises what `BatchPages` says."""
        rows = await self._read(attempt, node, after, limit)
        # There are none for who has lost the lease either. The last one is still there for who has not.
        if not rows and (attempt.context.cancelled or (after and not await self._read(attempt, node, after - 1, 1))):
            raise _lost(attempt)
        return rows

    def read_from_thread(self, attempt: Attempt, node: str, after: int, limit: int) -> list[Row]:
        """`read` for a handler in a thread of its own, which waits for the answer."""
        if threading.get_ident() == self._loop_thread:
            raise ConfigurationError(
                f"step {attempt.claim.step_name!r} would block the event loop to read results: use `async for`"
            )
        reading = self.read(attempt, node, after, limit)
        try:
            asked = asyncio.run_coroutine_threadsafe(reading, self._loop)
        except RuntimeError:  # the loop is closed
            reading.close()
            raise _lost(attempt) from None
        return asked.result()

    async def _read(self, attempt: Attempt, node: str, after: int, limit: int) -> list[Row]:
        claim = attempt.claim
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        delay = _RETRY_SECONDS[0]
        while attempt.state in _HAS_HANDLER:
            try:
                async with self._turn:
                    return await self._engine.read_batch_results(
                        self._worker, claim.step_id, claim.fence, node, after, limit
                    )
            except Refused as error:
                raise ConfigurationError(
                    f"step {claim.step_name!r} cannot read the results of {node!r}: {error}"
                ) from error
            except Unavailable as error:
                if time.monotonic() >= give_up_at:
                    raise RetryableError(f"the results of {node!r} cannot be read: {error}") from error
                logger.warning(
                    "results of a batch could not be read; trying again",
                    extra=with_fields(**log_fields(attempt), results_of=node, reason=str(error), seconds=delay),
                )
            await asyncio.sleep(spread(delay))
            delay = min(delay * 2, _RETRY_SECONDS[1])
        raise _lost(attempt)


def _lost(attempt: Attempt) -> RetryableError:
    return RetryableError(f"this attempt of step {attempt.claim.step_name!r} is over, or its lease is lost")
