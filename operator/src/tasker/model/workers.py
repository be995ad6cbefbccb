"""Workers and the demand for them, as read from the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

NO_WORKER_SECONDS = 60.0
"""A ready step whose callable no live worker offers is said to have none after so long: a first worker may start till
then."""


@dataclass(frozen=True, kw_only=True)
class UnofferedCallable:
    """A callable that no live worker of the namespace offers, how many steps wait for it, and since when the oldest."""

    namespace: str
    callable: str
    steps: int
    since: datetime


@dataclass(frozen=True, kw_only=True)
class PoolDemand:
    """What waits for a pool and what it has in hand, in steps; `oldest_ready_seconds` is 0 when nothing waits.

    A step that the pool's workers are known not to offer does not wait for it.
    """

    namespace: str
    pool: str
    queued: int
    running: int
    oldest_ready_seconds: float
    live_workers: int
    draining_workers: int


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """One registered worker process. `running` counts the steps it holds."""

    name: str
    pool: str
    slots: int
    version: str
    running: int
    draining: bool
    lease_until: datetime
