"""Threads for sync handlers: never more than the slots, one for many short jobs, a new one for one that is stuck."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from support.waiting import eventually
from tasker_worker.threads import HandlerThreads, Job


@pytest.fixture
def threads() -> Iterator[HandlerThreads]:
    pool = HandlerThreads(2)
    yield pool
    pool.close()


def unexpected() -> None:
    raise AssertionError("there is a thread for it")


class Held:
    """Jobs that say when they began, and end when they are let go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self.ended = threading.Semaphore(0)
        self.where: list[threading.Thread] = []

    def __call__(self) -> None:
        self.where.append(threading.current_thread())
        self.began.release()
        self.go.wait(10)
        self.ended.release()

    def wait_begun(self, count: int) -> bool:
        return all(self.began.acquire(timeout=5) for _ in range(count))

    def wait_ended(self, count: int) -> bool:
        return all(self.ended.acquire(timeout=5) for _ in range(count))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Every thread that is started."""
    found: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        found.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return found


def test_jobs_that_block_run_beside_each_other_up_to_the_size(
    threads: HandlerThreads, started: list[threading.Thread]
) -> None:
    held = Held()
    for _ in range(3):
        threads.submit(held, unexpected)
    assert held.wait_begun(2)
    assert len(started) == 2, "the last to begin would have started another for the job behind its own"
    assert not held.began.acquire(blocking=False)
    held.go.set()
    assert held.wait_begun(1)
    assert held.wait_ended(3)
    assert len(set(held.where)) == 2


def test_a_thread_that_is_stuck_is_replaced_and_ends_when_it_is_let_go(
    threads: HandlerThreads, started: list[threading.Thread]
) -> None:
    stuck, next_ones = Held(), Held()
    jobs = [threads.submit(stuck, unexpected) for _ in range(2)]
    assert stuck.wait_begun(2)
    for _ in range(3):
        threads.submit(next_ones, unexpected)
    for job in jobs:
        threads.give_up(job)
        threads.give_up(job)  # once is enough
    assert next_ones.wait_begun(2)
    assert threads.stuck == 2
    assert len(started) == 4, "one in the place of each, and not more"
    assert not set(stuck.where) & set(next_ones.where)
    stuck.go.set()
    eventually(lambda: threads.stuck == 0)
    eventually(lambda: not any(thread.is_alive() for thread in stuck.where))
    next_ones.go.set()
    assert next_ones.wait_ended(3)


def test_a_thread_goes_on_behind_a_job_that_was_given_up_before_it_began() -> None:
    pool = HandlerThreads(1)
    held, never, after = Held(), Held(), Held()
    pool.submit(held, unexpected)
    assert held.wait_begun(1)
    given_up = pool.submit(never, unexpected)
    pool.submit(after, unexpected)
    pool.give_up(given_up)
    for jobs in (held, after):
        jobs.go.set()
        assert jobs.wait_ended(1)
    assert not never.where
    pool.close()


def test_a_job_given_up_before_it_began_never_runs(threads: HandlerThreads) -> None:
    held, never, after = Held(), Held(), Held()
    for _ in range(2):
        threads.submit(held, unexpected)
    assert held.wait_begun(2)
    given_up = threads.submit(never, unexpected)
    threads.submit(after, unexpected)
    threads.give_up(given_up)
    assert threads.stuck == 0
    held.go.set()
    after.go.set()
    assert after.wait_ended(1)
    assert not never.where


def test_giving_up_a_job_that_has_ended_changes_nothing(threads: HandlerThreads) -> None:
    held = Held()
    held.go.set()
    job = threads.submit(held, unexpected)
    eventually(lambda: job.ended)
    threads.give_up(job)
    assert threads.stuck == 0
    again = Held()
    again.go.set()
    threads.submit(again, unexpected)
    assert again.wait_ended(1)


def test_a_batch_of_short_jobs_loses_none(threads: HandlerThreads) -> None:
    done = threading.Semaphore(0)
    for _ in range(2000):
        threads.submit(done.release, unexpected)
    assert all(done.acquire(timeout=5) for _ in range(2000))


def test_what_has_not_begun_when_it_is_closed_never_does() -> None:
    pool = HandlerThreads(1)
    held = Held()
    for _ in range(2):
        pool.submit(held, unexpected)
    assert held.wait_begun(1)
    pool.close()
    held.go.set()
    eventually(lambda: not held.where[0].is_alive())
    assert len(held.where) == 1


def test_closing_ends_idle_threads_at_once_and_the_others_after_their_job() -> None:
    pool = HandlerThreads(2)
    held, short = Held(), Held()
    short.go.set()
    pool.submit(short, unexpected)
    assert short.wait_ended(1)
    pool.submit(held, unexpected)
    assert held.wait_begun(1)
    pool.close()
    held.go.set()
    eventually(lambda: not any(thread.is_alive() for thread in (*held.where, *short.where)))


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event: while it is set, the system has no thread to give, as `Thread.start` tells it."""
    missing = threading.Event()
    start = threading.Thread.start

    def start_if_there_is_one(thread: threading.Thread) -> None:
        if missing.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_one)
    yield missing
    missing.clear()


def test_a_job_for_which_there_is_no_thread_is_refused_once_and_the_next_one_runs(
    threads: HandlerThreads, no_thread: threading.Event
) -> None:
    refused, held = threading.Semaphore(0), Held()
    no_thread.set()
    assert threads.can_start() is False
    threads.submit(held, refused.release)
    assert [refused.acquire(blocking=False) for _ in range(2)] == [True, False]
    no_thread.clear()
    assert threads.can_start()
    held.go.set()
    threads.submit(held, unexpected)
    assert held.wait_ended(1)
    assert len(held.where) == 1


def test_a_thread_that_finds_no_neighbour_for_the_jobs_behind_its_own_runs_its_own(
    threads: HandlerThreads, no_thread: threading.Event
) -> None:
    """The job in hand is the one that must not be lost."""
    first, behind = Held(), Held()
    refused = threading.Semaphore(0)
    first.go.set()
    with threads._lock:  # so that the thread begins when both are there
        no_thread.clear()
        threads._jobs.extend([Job(first, unexpected), Job(behind, refused.release), Job(behind, refused.release)])
        threads._wake_one()
        no_thread.set()
    assert first.wait_ended(1)
    assert all(refused.acquire(timeout=5) for _ in range(2))
    assert not behind.where
    behind.go.set()
    threads.submit(behind, unexpected)  # by the thread that is there
    assert behind.wait_ended(1)
    assert behind.where == first.where


def test_jobs_that_wait_for_a_stuck_thread_are_refused_when_it_cannot_be_replaced(
    threads: HandlerThreads, no_thread: threading.Event
) -> None:
    stuck, waiting = Held(), Held()
    refused = threading.Semaphore(0)
    jobs = [threads.submit(stuck, unexpected) for _ in range(2)]
    assert stuck.wait_begun(2)
    given_up = threads.submit(waiting, unexpected)
    threads.submit(waiting, refused.release)
    threads.give_up(given_up)
    no_thread.set()
    threads.give_up(jobs[0])
    assert [refused.acquire(blocking=False) for _ in range(2)] == [True, False]
    stuck.go.set()
    eventually(lambda: threads.stuck == 0)
    waiting.go.set()
    no_thread.clear()
    threads.submit(waiting, unexpected)
    assert waiting.wait_ended(1)


def test_no_thread_of_a_handler_keeps_the_process_from_ending(threads: HandlerThreads) -> None:
    held = Held()
    held.go.set()
    threads.submit(held, unexpected)
    assert held.wait_ended(1)
    assert held.where[0].daemon


def test_threads_that_waited_for_a_job_work_beside_each_other_again(threads: HandlerThreads) -> None:
    for _ in range(3):
        held = Held()
        for _ in range(2):
            threads.submit(held, unexpected)
        assert held.wait_begun(2)
        held.go.set()
        assert held.wait_ended(2)
        eventually(lambda: threads._idle == 2)


def test_no_memory_for_a_thread_is_no_thread(threads: HandlerThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(thread: threading.Thread) -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", no_memory)
    assert threads.can_start() is False


def test_a_job_that_was_given_up_is_not_refused_any_more(threads: HandlerThreads) -> None:
    job = Job(unexpected, unexpected)
    job.given_up = True
    threads._refused.append(job)
    threads._notify_refused()
    assert not threads._refused
