"""How often a running Task's status may be written: once a second, and more seldom when very many Tasks are open."""

from __future__ import annotations

import time
from collections.abc import Callable

PROGRESS_SECONDS = 1.0
"""A running Task's status is written at most this often, in seconds."""


class ProgressPace:
    """When the status of each open Task was last written. Losing it costs a write, never a status."""

    def __init__(self, writes_per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._writes_per_second = writes_per_second
        self._clock = clock
        self._written: dict[str, float] = {}

    @property
    def pause_seconds(self) -> float:
        """Seconds between two writes of one Task's progress."""
        return max(PROGRESS_SECONDS, len(self._written) / self._writes_per_second)

    def wait_seconds(self, uid: str) -> float:
        """Seconds until the progress of this Task may be written; 0 or less when it may be now. It counts as open."""
        return self._written.setdefault(uid, float("-inf")) + self.pause_seconds - self._clock()

    def note_write(self, uid: str) -> None:
        """The status of this Task was written now."""
        self._written[uid] = self._clock()

    def forget(self, uid: str) -> None:
        """The Task is no longer open."""
        self._written.pop(uid, None)
