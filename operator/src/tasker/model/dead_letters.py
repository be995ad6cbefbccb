"""Dead letters: what a person should look at, why, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

COUNTED_UP_TO = 10_000
"""Entries of one state and reason are counted up to this many."""


class DeadLetterReason(StrEnum):
    """What went wrong. Values are the names stored in the database."""

    STALENESS_TIMEOUT = "staleness_timeout"
    """The run was in one state, or took, longer than its template allows."""
    MAX_RETRIES_EXCEEDED = "max_retries_exceeded"
    """The step failed as often as it may."""
    PERMANENT_FAILURE = "permanent_failure"
    """Its handler said that trying again is of no use."""
    WORKER_CRASH_LOOP = "worker_crash_loop"
    """Its workers were lost as often as it may be tried."""
    WORKER_UNAVAILABLE = "worker_unavailable"
    """No worker took it, or offered its callable, in the time it may wait."""
    MANUAL = "manual"
    """Somebody wanted it to be looked at."""
    DEPENDENCY_CYCLE_DETECTED = "dependency_cycle_detected"
    """Never made: templates with cycles are refused. Clients of other engines know the name."""


class DeadLetterState(StrEnum):
    """What people have made of it. Values are the names stored in the database."""

    OPEN = "open"
    INVESTIGATING = "investigating"
    RESOLVED = "resolved"
    DISCARDED = "discarded"
    PUT_BACK = "put_back"
    """Its step was made to run again."""


UNFINISHED_STATES = (DeadLetterState.OPEN, DeadLetterState.INVESTIGATING)
"""A step, or a run as itself, has at most one entry in these."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One entry of a list. `step` is None for one of the run itself."""

    entry_uuid: UUID
    namespace: str
    task_uuid: UUID
    template_name: str
    template_version: str
    step: str | None
    reason: DeadLetterReason
    state: DeadLetterState
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeadLetterChange:
    """What somebody found, did or noted, and what the entry was after it."""

    at: datetime
    actor: str
    state: DeadLetterState
    notes: str | None


@dataclass(frozen=True, kw_only=True)
class DeadLetterDetails:
    """One entry with all that is known of it.

    `snapshot` holds ``task`` and ``step`` as they were when the entry was made, or its step failed again, and up to
    five ``failures``, newest first. `changes` are in order of time.
    """

    entry: DeadLetter
    snapshot: dict[str, Any]
    changes: tuple[DeadLetterChange, ...]


@dataclass(frozen=True, kw_only=True)
class DeadLetterPage:
    """Entries, newest first. `next_cursor` gets the page after it; None when there is none."""

    items: tuple[DeadLetter, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class DeadLetterCount:
    """How many entries are in a state for a reason, and since when the oldest."""

    state: DeadLetterState
    reason: DeadLetterReason
    entries: int
    oldest: datetime

    @property
    def capped(self) -> bool:
        """Whether there may be more than were counted."""
        return self.entries >= COUNTED_UP_TO
