"""The lease thread: keeps a worker's leases alive whatever its handlers do, and watches the event loop for them.

It has its own thread and its own connection, so that a handler that blocks the loop costs the others their turn but not
their leases. What it calls waits for no row that settling holds or waits for; all else is the sweep thread's.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from . import outcomes
from .attempts import Attempt, AttemptState, log_fields
from .claims import RELEASE, Settlement
from .errors import DatabaseError
from .execution import LoopWatch
from .gateway import Offer, Renewal
from .held import HeldClaims
from .logging import with_fields
from .metrics import WorkerMetrics

logger = logging.getLogger("tasker_worker.leases")

_TICK_SECONDS = 0.25
_LAG_WARNING_SECONDS = 1.0
_STARVED_SECONDS = 10.0
_STARVED_CHECK_SECONDS = 1.0  # between two searches for starved attempts
_RETRY_SECONDS = 0.5  # after a renewal that failed


class LeaseEngine(Protocol):
    """The engine's functions that this thread needs; `SyncGateway` has them."""

    def register(self, offer: Offer) -> None: ...
    def renew(self, worker: str, claims: Sequence[tuple[int, int]], claiming_since: datetime | None) -> Renewal: ...
    def close(self) -> None: ...


class LeaseKeeper:
    """Renews and watches. `tick` does what is due; the thread calls it until stopped."""

    def __init__(
        self,
        engine: LeaseEngine,
        *,
        offer: Callable[[], Offer],
        offered_revision: int,
        offer_revision: Callable[[], int],
        held: HeldClaims,
        settle: Callable[[Iterable[Settlement]], None],
        on_draining: Callable[[bool], None],
        watch: LoopWatch,
        loop: asyncio.AbstractEventLoop,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settle` gets outcomes that the loop cannot settle, from this thread; `on_draining` is called in the loop."""
        self._engine = engine
        self._offer = offer
        self._offer_revision = offer_revision
        self._held = held
        self._settle = settle
        self._on_draining = on_draining
        self._watch = watch
        self._loop = loop
        self._metrics = metrics
        self._clock = clock
        self._lease_seconds = offer().lease_seconds
        self._worker = offer().worker
        self._registered_revision = offered_revision
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        now = clock()
        held.valid_until = now + self._lease_seconds  # the worker has just been registered
        self._expired = False
        self._renewal_failing = False
        self._next_renewal = now + self._lease_seconds / 3
        self._next_starved_check = now
        self._starved: set[int] = set()  # fences of attempts that were warned of
        self._asked_at: float | None = None  # when the loop was asked to answer, while it has not
        self._warned = False
        #: How long the loop took to answer last time, or has not answered by now; seconds.
        self.loop_lag = 0.0

    @property
    def valid_until(self) -> float:
        """Monotonic time at which the leases run out unless renewed."""
        return self._held.valid_until

    def start(self) -> None:
        """RuntimeError when the system has no thread left."""
        thread = threading.Thread(target=self._run, name="leases", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self, timeout: float) -> None:
        """End the thread, waiting for it no longer than `timeout` seconds: it may be inside a call."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_TICK_SECONDS):
                try:
                    self.tick()
                except Exception:
                    # Whatever it was, the leases must go on.
                    logger.exception("the lease thread met something unforeseen and goes on")
        finally:
            self._engine.close()

    def tick(self) -> None:
        """Do what is due now."""
        self._watch_loop()
        if self._offer_revision() != self._registered_revision:
            self._register()
        if self._clock() >= self._next_renewal:
            self._renew()
        if not self._expired and self._clock() >= self.valid_until:
            self._expire()
        if self._clock() >= self._next_starved_check:
            self._find_starved()

    # leases

    def _register(self) -> None:
        revision = self._offer_revision()
        try:
            self._engine.register(self._offer())
        except DatabaseError as error:
            logger.warning("the worker's offer could not be registered", extra=with_fields(reason=str(error)))
        else:
            self._registered_revision = revision

    def _renew(self) -> None:
        sent = self._clock()
        claims, claiming_since = self._held.to_renew(sent, self._lease_seconds / 2)
        self._metrics.renewals += 1
        try:
            renewal = self._engine.renew(self._worker, claims, claiming_since)
            if not renewal.known:
                logger.warning("the database does not know this worker (any more); registering again")
                self._engine.register(self._offer())
        except DatabaseError as error:
            self._metrics.renewal_failures += 1
            if not self._renewal_failing:
                logger.warning("leases could not be renewed; trying again", extra=with_fields(reason=str(error)))
            self._renewal_failing = True
            self._next_renewal = self._clock() + min(_RETRY_SECONDS, self._lease_seconds / 10)
            return
        if self._renewal_failing:
            logger.info("leases are renewed again")
        self._renewal_failing = self._expired = False
        self._next_renewal = sent + self._lease_seconds / 3
        # From the time before the call on, for the database may have renewed at once and been slow to say so.
        lost, unknown = self._held.renewed(renewal, sent + self._lease_seconds)
        self._in_loop(self._on_draining, renewal.draining)
        self._log_lost(lost)
        if unknown:
            logger.warning("claims that never arrived here are given back", extra=with_fields(count=len(unknown)))
            self._settle(Settlement(step_id, fence, RELEASE) for step_id, fence in unknown)

    def _log_lost(self, lost: list[Attempt]) -> None:
        self._metrics.leases_lost += len(lost)
        for attempt in lost:
            if attempt.outcome is None:
                logger.warning(
                    "the lease of a running step is lost; its handler is cancelled",
                    extra=with_fields(**log_fields(attempt)),
                )

    def _expire(self) -> None:
        """The leases ran out by this worker's clock: others may hold the steps now."""
        self._expired = True
        running = self._held.expire()
        self._metrics.leases_lost += len(running)
        logger.error("the leases ran out before they could be renewed", extra=with_fields(running=len(running)))

    # the loop

    def _find_starved(self) -> None:
        """Warn of claims whose handler nobody came to call, once each."""
        now = self._clock()
        self._next_starved_check = now + _STARVED_CHECK_SECONDS
        waiting = {
            attempt.claim.fence: attempt
            for attempt in self._held.attempts()
            if attempt.state is AttemptState.WAITING and now - attempt.claimed_at > _STARVED_SECONDS
        }
        for fence in waiting.keys() - self._starved:
            attempt = waiting[fence]
            self._metrics.steps_starved += 1
            logger.warning(
                "a claimed step waits for its handler to be called: the worker is too busy for its slots",
                extra=with_fields(step=attempt.claim.step_name, seconds=round(now - attempt.claimed_at, 1)),
            )
        self._starved = set(waiting)

    def _watch_loop(self) -> None:
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
            self._in_loop(self._answer, now)
            return
        self.loop_lag = now - self._asked_at
        attempt = self._watch.stepping
        if self.loop_lag > _LAG_WARNING_SECONDS and not self._warned:
            self._warned = True
            self._metrics.loop_blocked += 1
            logger.warning(
                "the event loop is blocked: use a plain function for blocking work, it gets a thread",
                extra=with_fields(
                    seconds=round(self.loop_lag, 1),
                    step=attempt.claim.step_name if attempt else None,
                    at=_place_of(self._watch.loop_thread),
                ),
            )
        if attempt is not None and now - attempt.since > attempt.claim.timeout_ms / 1000:
            self._time_out(attempt)
        if self.loop_lag > self._lease_seconds / 2:
            self._give_back_waiting()

    def _answer(self, asked_at: float) -> None:
        """Runs in the loop."""
        self.loop_lag = self._clock() - asked_at
        self._asked_at = None
        self._warned = False

    def _time_out(self, attempt: Attempt) -> None:
        """A handler blocks the loop past its timeout, so no timer can end it and nobody else can tell the engine."""
        claim = attempt.claim
        outcome = outcomes.timeout(claim.step_name, claim.timeout_ms)
        if attempt.time_out(outcome):
            logger.warning("a step that blocks the event loop is timed out", extra=with_fields(step=claim.step_name))
            self._settle([Settlement(claim.step_id, claim.fence, outcome)])

    def _give_back_waiting(self) -> None:
        """A loop that is blocked for so long calls no handler: what waits for one goes back, to run elsewhere."""
        waiting = [attempt for attempt in self._held.attempts() if attempt.give_back()]
        if waiting:
            logger.warning(
                "steps that wait for a blocked event loop are given back", extra=with_fields(count=len(waiting))
            )
            self._settle(Settlement(each.claim.step_id, each.claim.fence, RELEASE) for each in waiting)

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("the event loop is closed")


def _place_of(thread_id: int) -> str | None:
    """Where a thread's code is right now, ``file:line in function``."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return None
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"
