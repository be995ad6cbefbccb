"""When the status of a running Task may be written: a second after its run began, then once a second, and more seldom
when very many Tasks are open. An end is written at once, so a run that ends within a second costs one write."""

from __future__ import annotations

import time
from collections.abc import Callable

PROGRESS_SECONDS = 1.0
"""A running Task's status is written at most this often, and first this long after its run began, in seconds."""


class ProgressPace:
    """When the status of each open Task may be written next. Losing it costs a write, never a status."""

    def __init__(self, writes_per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._writes_per_second = writes_per_second
        self._clock = clock
        self._due: dict[str, float] = {}

    @property
    def pause_seconds(self) -> float:
        """Seconds between two writes of one Task's progress."""
        return max(PROGRESS_SECONDS, len(self._due) / self._writes_per_second)

    def wait_seconds(self, uid: str) -> float:
        """Seconds until the progress of this Task may be written; 0 or less when it may be now. It counts as open."""
        return self._due.setdefault(uid, float("-inf")) - self._clock()

    def note_start(self, uid: str) -> None:
        """The run of this Task began now. However many others are open, its first status is not kept back longer."""
        self._due[uid] = self._clock() + PROGRESS_SECONDS

    def note_write(self, uid: str) -> None:
        """The status of this Task was written now."""
        self._due[uid] = self._clock() + self.pause_seconds

    def forget(self, uid: str) -> None:
        """The Task is no longer open."""
        self._due.pop(uid, None)
