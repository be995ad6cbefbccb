"""Threads for sync handlers: as many as the worker has slots, replaced when one is stuck.

Unlike the standard pool a thread can be given up: a handler that outlives its timeout keeps its thread to itself, the
pool starts another in its place, and the stuck one ends by itself should its handler ever return. Handing over is cheap
for short handlers: a thread goes on with the next job by itself and wakes a neighbour only when jobs are left waiting,
so a batch of no-ops runs in one thread while handlers that block spread over all.

When the system has no thread left, the jobs that wait are refused: whoever runs goes on, and nothing waits for a thread
that may never come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Job:
    """One piece of work that was submitted."""

    __slots__ = ("ended", "given_up", "refuse", "started", "work")

    def __init__(self, work: Callable[[], None], refuse: Callable[[], None]) -> None:
        self.work = work
        self.refuse = refuse
        self.started = False
        self.ended = False
        self.given_up = False


class HandlerThreads:
    """Runs jobs in daemon threads, at most `size` at once, not counting threads that were given up."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: deque[Job] = deque()
        self._refused: deque[Job] = deque()  # taken from the jobs, their callers not notified yet
        self._lock = threading.Lock()
        self._available = threading.Condition(self._lock)
        self._threads = 0  # alive and counted
        self._idle = 0  # of those, waiting for a job
        self._waking = False  # one of them was notified or started and does not run yet
        self._stuck = 0
        self._closed = False

    @property
    def stuck(self) -> int:
        """Threads given up whose handler has not returned."""
        return self._stuck

    def submit(self, work: Callable[[], None], refuse: Callable[[], None]) -> Job:
        """Run `work` in a thread, or call `refuse` in any thread when the system has none for it. Neither may raise."""
        job = Job(work, refuse)
        with self._lock:
            self._jobs.append(job)
            self._wake_one()
        self._notify_refused()
        return job

    def give_up(self, job: Job) -> None:
        """Stop counting on a job: not started, it never will be; running, its thread is replaced."""
        with self._lock:
            if job.ended or job.given_up:
                return
            job.given_up = True
            if job.started:
                self._stuck += 1
                self._threads -= 1
                if self._jobs:
                    self._wake_one()
        self._notify_refused()

    def can_start(self) -> bool:
        """Whether the system has a thread to give, found out by starting one."""
        return _started(threading.Thread(name="handler-trial"))

    def close(self) -> None:
        """Let idle threads end, and the others after their job. Waits for none: they may be stuck.

        Nothing may be submitted from here on.
        """
        with self._lock:
            self._closed = True
            self._jobs.clear()
            self._available.notify_all()

    def _wake_one(self) -> None:
        """See to it that somebody takes from the queue soon. One at a time: who wakes up wakes the next if need be."""
        if self._waking:
            return
        if self._idle:
            self._waking = True
            self._available.notify()
        elif self._threads < self._size:
            if _started(threading.Thread(target=self._work, name="handler", daemon=True)):
                self._waking = True
                self._threads += 1
            else:
                self._refused.extend(self._jobs)
                self._jobs.clear()

    def _notify_refused(self) -> None:
        """Without the lock, since whoever is notified may submit again."""
        while True:
            try:
                job = self._refused.popleft()
            except IndexError:
                return
            if not job.given_up:
                job.refuse()

    def _end(self, job: Job) -> bool:
        """Whether the thread that ran `job` is to end, because it was replaced meanwhile."""
        job.ended = True
        self._stuck -= job.given_up
        return job.given_up

    def _work(self) -> None:
        with self._lock:
            self._waking = False
            while True:
                if self._jobs:
                    job = self._jobs.popleft()
                    if self._jobs:
                        self._wake_one()
                    if job.given_up:
                        continue
                    job.started = True
                    self._lock.release()
                    try:
                        self._notify_refused()
                        job.work()
                    finally:
                        self._lock.acquire()
                    if self._end(job):
                        return
                elif self._closed:
                    return
                else:
                    self._idle += 1
                    self._available.wait()
                    self._idle -= 1
                    self._waking = False


def _started(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # the limit of threads, or the memory for a stack
        return False
    return True
