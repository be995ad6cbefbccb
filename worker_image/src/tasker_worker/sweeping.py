"""The sweep thread: about once a second it asks the engine to repair what time has broken, in turn with all others.

It also settles what the event loop cannot: an attempt that blocks the loop past its timeout, and claims that the loop
never got. Its calls may wait for rows that others hold, so it has a thread and a connection of its own: renewing leases
never waits behind them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from .claims import Settlement
from .errors import DatabaseError
from .gateway import Locked, Refused
from .logging import with_fields
from .metrics import WorkerMetrics

logger = logging.getLogger("tasker_worker.sweeping")

_SWEEP_SECONDS = (0.7, 1.3)  # between two sweeps of one worker, drawn anew each time
_SWEEP_LIMIT = 500


class SweepEngine(Protocol):
    """The engine's functions that this thread needs; `SyncGateway` has them."""

    def settle(self, worker: str, settlement: Settlement) -> None: ...
    def sweep(self, limit: int) -> dict[str, int]: ...
    def close(self) -> None: ...


class Sweeper:
    """Sweeps and settles. `tick` does what is due; the thread calls it until stopped."""

    def __init__(
        self,
        engine: SweepEngine,
        *,
        worker: str,
        on_repairs: Callable[[], None],
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_repairs` is called from the thread when a sweep has repaired something."""
        self._engine = engine
        self._worker = worker
        self._on_repairs = on_repairs
        self._metrics = metrics
        self._clock = clock
        self._next_sweep = clock() + random.uniform(0, _SWEEP_SECONDS[1])  # noqa: S311 - spreads load
        self._lock = threading.Lock()
        self._settlements: dict[int, Settlement] = {}  # by fence, guarded by the lock
        self._wanted = threading.Event()  # there is something to do, or to stop for
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def settle(self, settlements: Iterable[Settlement]) -> None:
        """Have outcomes recorded soon, each by a call of its own that is repeated until it is answered. Any thread."""
        with self._lock:
            self._settlements.update((settlement.fence, settlement) for settlement in settlements)
        self._wanted.set()

    def start(self) -> None:
        """RuntimeError when the system has no thread left."""
        thread = threading.Thread(target=self._run, name="sweeps", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self, timeout: float) -> None:
        """End the thread, waiting for it no longer than `timeout` seconds: it may be inside a call."""
        self._stopping.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while True:
                self._wanted.wait(self._next_sweep - self._clock())
                self._wanted.clear()
                if self._stopping.is_set():
                    return
                try:
                    self.tick()
                except Exception:
                    # Whatever it was, others need what comes after.
                    logger.exception("the sweep thread met something unforeseen and goes on")
        finally:
            self._engine.close()

    def tick(self) -> None:
        """Do what is due now."""
        self._settle_all()
        if self._clock() >= self._next_sweep:
            self._sweep()

    def _settle_all(self) -> None:
        with self._lock:
            settlements = list(self._settlements.values())
        for settlement in settlements:
            try:
                self._engine.settle(self._worker, settlement)
            except Locked:
                continue  # its run is held; the others' are not
            except Refused as error:
                logger.error("the database refuses to record an outcome", extra=with_fields(reason=str(error)))
            except DatabaseError as error:
                logger.warning("outcomes could not be settled; trying again", extra=with_fields(reason=str(error)))
                return
            with self._lock:
                self._settlements.pop(settlement.fence, None)

    def _sweep(self) -> None:
        self._metrics.sweeps += 1
        try:
            repairs = self._engine.sweep(_SWEEP_LIMIT)
        except DatabaseError as error:
            logger.debug("no sweep", extra=with_fields(reason=str(error)))
            repairs = {}
        finally:
            self._next_sweep = self._clock() + random.uniform(*_SWEEP_SECONDS)  # noqa: S311
        if repairs:
            for repair, count in repairs.items():
                self._metrics.repairs[repair] = self._metrics.repairs.get(repair, 0) + count
            logger.info("repaired", extra=with_fields(**repairs))
            self._on_repairs()
