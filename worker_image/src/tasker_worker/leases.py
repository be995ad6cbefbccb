"""The lease thread: keeps a worker's leases alive whatever its handlers do, and watches the event loop for them.

It has its own thread and its own connection, so that a handler that blocks the loop costs the others their turn but
not their leases. About once a second it also asks the engine to sweep, in turn with every other worker.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from . import outcomes
from .claims import Settlement
from .errors import DatabaseError
from .exchange import Exchange
from .execution import Attempt, LoopWatch
from .gateway import Offer, Renewal
from .logging import with_fields
from .metrics import WorkerMetrics

logger = logging.getLogger("tasker_worker.leases")

_TICK_SECONDS = 0.25
_LAG_WARNING_SECONDS = 1.0
_STARVED_SECONDS = 10.0
_SWEEP_SECONDS = (0.7, 1.3)  # between two sweeps of one worker, drawn anew each time
_SWEEP_LIMIT = 500
_RETRY_SECONDS = 0.5  # after a renewal that failed


class LeaseEngine(Protocol):
    """The engine's functions that this thread needs; `SyncGateway` is them."""

    def register(self, offer: Offer) -> None: ...
    def renew(self, worker: str, held: Sequence[tuple[int, int]]) -> Renewal: ...
    def settle(self, worker: str, settlement: Settlement) -> None: ...
    def sweep(self, limit: int) -> dict[str, int]: ...
    def close(self) -> None: ...


class LeaseKeeper:
    """Renews, sweeps and watches. `tick` does what is due; the thread calls it until stopped."""

    def __init__(
        self,
        engine: LeaseEngine,
        *,
        offer: Callable[[], Offer],
        offered_revision: int,
        offer_revision: Callable[[], int],
        exchange: Exchange,
        watch: LoopWatch,
        loop: asyncio.AbstractEventLoop,
        on_repairs: Callable[[], None],
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._offer = offer
        self._offer_revision = offer_revision
        self._exchange = exchange
        self._watch = watch
        self._loop = loop
        self._on_repairs = on_repairs
        self._metrics = metrics
        self._clock = clock
        self._lease_seconds = offer().lease_seconds
        self._worker = offer().worker
        self._registered_revision = offered_revision
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        now = clock()
        #: Monotonic time at which the leases run out unless renewed. The worker has just been registered.
        self.valid_until = now + self._lease_seconds
        self._expired = False
        self._renewal_failing = False
        self._next_renewal = now + self._lease_seconds / 3
        self._next_sweep = now + random.uniform(0, _SWEEP_SECONDS[1])  # noqa: S311 - spreads load
        self._asked_at: float | None = None  # when the loop was asked to answer, while it has not
        self._warned = False
        self._settled_for_loop: Attempt | None = None
        #: How long the loop took to answer last time, or has not answered by now; seconds.
        self.loop_lag = 0.0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

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
        if self._clock() >= self._next_sweep:
            self._find_starved()
            self._sweep()

    # leases

    def _register(self) -> None:
        revision = self._offer_revision()
        try:
            self._engine.register(self._offer())
        except DatabaseError as error:
            logger.warning("the worker's offer could not be told", extra=with_fields(reason=str(error)))
        else:
            self._registered_revision = revision

    def _renew(self) -> None:
        held = [
            (attempt.claim.step_id, attempt.claim.fence)
            for attempt in tuple(self._exchange.held.values())
            if not attempt.lost
        ]
        sent = self._clock()
        self._metrics.renewals += 1
        try:
            renewal = self._engine.renew(self._worker, held)
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
        self.valid_until = sent + self._lease_seconds
        self._next_renewal = sent + self._lease_seconds / 3
        self._in_loop(self._exchange.set_draining, renewal.draining)
        if renewal.lost_fences:
            self._in_loop(self._exchange.lose, renewal.lost_fences)

    def _expire(self) -> None:
        """The leases ran out by this worker's clock: the steps may be in other hands now."""
        self._expired = True
        running = [attempt for attempt in tuple(self._exchange.held.values()) if attempt.outcome is None]
        for attempt in running:
            attempt.expired = True
            attempt.context.cancelled = True
        self._metrics.leases_lost += len(running)
        logger.error("the leases ran out before they could be renewed", extra=with_fields(running=len(running)))

    def _sweep(self) -> None:
        self._metrics.sweeps += 1
        try:
            repairs = self._engine.sweep(_SWEEP_LIMIT)
        except DatabaseError as error:
            logger.debug("no sweep", extra=with_fields(reason=str(error)))
            repairs = {}
        self._next_sweep = self._clock() + random.uniform(*_SWEEP_SECONDS)  # noqa: S311
        if repairs:
            for repair, count in repairs.items():
                self._metrics.repairs[repair] = self._metrics.repairs.get(repair, 0) + count
            logger.info("repaired", extra=with_fields(**repairs))
            self._in_loop(self._on_repairs)

    # the loop

    def _find_starved(self) -> None:
        """Warn of claims whose handler nobody came to call, once each."""
        now = self._clock()
        for attempt in tuple(self._exchange.held.values()):
            waiting = not attempt.begun and attempt.outcome is None and now - attempt.started > _STARVED_SECONDS
            if waiting and not attempt.starved:
                attempt.starved = True
                self._metrics.steps_starved += 1
                logger.warning(
                    "a claimed step waits for its handler to be called: the worker is too busy for its slots",
                    extra=with_fields(step=attempt.claim.step_name, seconds=round(now - attempt.started, 1)),
                )

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
        if (
            attempt is not None
            and attempt is not self._settled_for_loop
            and attempt.outcome is None
            and now - attempt.started > attempt.claim.timeout_ms / 1000
        ):
            self._settle_for_loop(attempt)

    def _answer(self, asked_at: float) -> None:
        """Runs in the loop."""
        self.loop_lag = self._clock() - asked_at
        self._asked_at = None
        self._warned = False

    def _settle_for_loop(self, attempt: Attempt) -> None:
        """A handler blocks the loop past its timeout, so no timer can end it and nobody else can tell the engine."""
        attempt.context.cancelled = True
        claim = attempt.claim
        outcome = outcomes.timeout(claim.step_name, claim.timeout_ms)
        try:
            self._engine.settle(self._worker, Settlement(claim.step_id, claim.fence, outcome))
        except DatabaseError as error:
            logger.warning("a blocked attempt could not be settled yet", extra=with_fields(reason=str(error)))
        else:
            self._settled_for_loop = attempt
            logger.warning("a step that blocks the event loop was timed out", extra=with_fields(step=claim.step_name))

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
