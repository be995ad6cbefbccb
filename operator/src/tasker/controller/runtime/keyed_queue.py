"""The work queue's rules, without a loop or a clock: which key is worked on next, and when.

An event names a key; the queue remembers that the key needs work until somebody has worked on it after that moment.
A key is in exactly one place: *ready* (take it now), *waiting* (not before a time) or *active* (taken). A key that is
added while active is taken again afterwards, because the work under way may not have seen what the event was about.
A failed key waits longer each time, with jitter, and keeps its place in the world until it succeeds: no key is lost.

Called by `work_queue.WorkQueue`, which adds the coroutines. Times are seconds of any clock that does not go back.

Waiting keys are in a heap, from which none can be taken but the first: a key that is hurried or given another time
leaves a stale entry behind. Stale entries are dropped when they come up, and all at once when they are too many.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

STALE_ENTRIES = 64
"""The heap holds at most twice as many entries as keys wait, and these more. Dropping the stale is a pass over all that
wait, so it is done only when at least half of the heap goes: a constant cost for each entry."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long a failing key waits: `base_seconds` doubled with each failure in a row, at most `max_seconds`."""

    base_seconds: float = 0.2
    max_seconds: float = 60.0

    def delay(self, failures: int, uniform: float) -> float:
        """The wait after so many failures in a row: between half of it and all of it, by `uniform` (0 to 1)."""
        full: float = self.base_seconds * min(2 ** (failures - 1), self.max_seconds / self.base_seconds)
        return full * (0.5 + 0.5 * uniform)


class KeyedQueue(Generic[Key]):
    """Coalescing set of keys that need work. Not safe for threads; every method returns at once."""

    def __init__(self, *, backoff: Backoff | None = None, uniform: Callable[[], float] = random.random) -> None:
        self._backoff = backoff or Backoff()
        self._uniform = uniform
        self._ready: OrderedDict[Key, None] = OrderedDict()
        self._due: dict[Key, tuple[float, int]] = {}
        """Of each waiting key, when it is due, and the number of its one entry of the heap that is not stale."""
        self._heap: list[tuple[float, int, Key]] = []
        self._numbers = itertools.count()
        self._active: set[Key] = set()
        self._added_while_active: set[Key] = set()
        self._due_while_active: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Keys that need work now or later, those being worked on not counted."""
        return len(self._ready) + len(self._due)

    @property
    def ready(self) -> int:
        """Keys that could be taken now."""
        return len(self._ready)

    @property
    def entries(self) -> int:
        """How many entries the heap holds, the stale included: what waiting keys cost in memory."""
        return len(self._heap)

    @property
    def active(self) -> int:
        """Keys that are being worked on."""
        return len(self._active)

    def add(self, key: Key) -> None:
        """The key needs work as soon as possible.

        A failing key that waits for its next try is not hurried: events must not defeat the back-off.
        """
        if key in self._active:
            self._added_while_active.add(key)
        elif not self._backs_off(key):
            if self._due.pop(key, None) is not None:
                self._drop_stale()
            self._ready.setdefault(key)

    def add_at(self, key: Key, due: float) -> None:
        """The key needs work at `due`, or earlier when it is already to be worked on earlier.

        Nor does this hurry a failing key that waits for its next try.
        """
        if key in self._active:
            known = self._due_while_active.get(key)
            self._due_while_active[key] = due if known is None else min(known, due)
        elif key not in self._ready and not self._backs_off(key):
            waits = self._due.get(key)
            if waits is None or due < waits[0]:
                self._wait(key, due)

    def take(self, now: float) -> Key | None:
        """The next key to work on, or None. The caller ends with `done` or `failed`."""
        self._promote(now)
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._active.add(key)
        return key

    def done(self, key: Key, now: float, *, again_after: float | None = None) -> None:
        """The work on the key succeeded; it is worked on again after so many seconds when given."""
        self._failures.pop(key, None)
        self._release(key)
        if again_after is not None:
            self.add_at(key, now + again_after)

    def failed(self, key: Key, now: float, *, at_least: float | None = None) -> float:
        """The work on the key failed; returns the seconds until it is tried again, never below `at_least`."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        delay = self._backoff.delay(failures, self._uniform())
        if at_least is not None:
            delay = max(delay, at_least)
        self._active.discard(key)
        self._added_while_active.discard(key)
        self._due_while_active.pop(key, None)
        self._wait(key, now + delay)
        return delay

    def next_due(self) -> float | None:
        """When the next waiting key becomes ready, or None."""
        while self._heap:
            due, sequence, key = self._heap[0]
            if self._due.get(key) == (due, sequence):
                return due
            heapq.heappop(self._heap)
        return None

    def _backs_off(self, key: Key) -> bool:
        return key in self._failures and key in self._due

    def _release(self, key: Key) -> None:
        self._active.discard(key)
        due = self._due_while_active.pop(key, None)
        if key in self._added_while_active:
            self._added_while_active.discard(key)
            self._ready.setdefault(key)
        elif due is not None:
            self._wait(key, due)

    def _wait(self, key: Key, due: float) -> None:
        number = next(self._numbers)
        self._due[key] = (due, number)
        heapq.heappush(self._heap, (due, number, key))
        self._drop_stale()

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._due) + STALE_ENTRIES:
            self._heap = [(due, sequence, key) for key, (due, sequence) in self._due.items()]
            heapq.heapify(self._heap)

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self._ready.setdefault(key)
        self._drop_stale()
