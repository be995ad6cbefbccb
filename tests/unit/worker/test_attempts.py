"""An attempt is in one state, whoever moves it: what each move may follow, and that of two at once one wins."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.worker_engine import make_claim
from tasker_worker.attempts import Attempt, AttemptState
from tasker_worker.claims import RELEASE, Outcome, OutcomeKind

DONE = Outcome(OutcomeKind.COMPLETE, "1")
FAILED = Outcome(OutcomeKind.FAIL)

WAYS: dict[AttemptState, list[Callable[[Attempt], Any]]] = {
    AttemptState.WAITING: [],
    AttemptState.PREPARING: [Attempt.prepare],
    AttemptState.RUNNING: [Attempt.begin],
    AttemptState.EXPIRED: [Attempt.begin, Attempt.expire],
    AttemptState.FINISHED: [Attempt.begin, lambda attempt: attempt.finish(DONE)],
    AttemptState.SENDING: [Attempt.begin, lambda attempt: attempt.finish(DONE), Attempt.send],
    AttemptState.UNSURE: [Attempt.begin, lambda attempt: attempt.finish(DONE), Attempt.send, Attempt.doubt],
    AttemptState.SETTLED: [Attempt.begin, lambda attempt: attempt.finish(DONE), Attempt.send, Attempt.settle],
    AttemptState.LOST: [Attempt.begin, Attempt.lose],
}
"""How to come to each state."""

MOVES: dict[str, tuple[Callable[[Attempt], Any], dict[AttemptState, AttemptState]]] = {
    "begin": (Attempt.begin, {AttemptState.WAITING: AttemptState.RUNNING}),
    "prepare": (Attempt.prepare, {AttemptState.WAITING: AttemptState.PREPARING}),
    "prepared": (Attempt.prepared, {AttemptState.PREPARING: AttemptState.WAITING}),
    "give_back": (
        Attempt.give_back,
        {AttemptState.WAITING: AttemptState.FINISHED, AttemptState.PREPARING: AttemptState.FINISHED},
    ),
    "finish": (
        lambda attempt: attempt.finish(DONE),
        {
            AttemptState.WAITING: AttemptState.FINISHED,
            AttemptState.PREPARING: AttemptState.FINISHED,
            AttemptState.RUNNING: AttemptState.FINISHED,
            AttemptState.EXPIRED: AttemptState.FINISHED,
        },
    ),
    "time_out": (lambda attempt: attempt.time_out(FAILED), {AttemptState.RUNNING: AttemptState.UNSURE}),
    "expire": (
        Attempt.expire,
        dict.fromkeys(
            (AttemptState.WAITING, AttemptState.PREPARING, AttemptState.RUNNING),
            AttemptState.EXPIRED,
        ),
    ),
    "lose": (
        Attempt.lose,
        dict.fromkeys(
            (
                AttemptState.WAITING,
                AttemptState.PREPARING,
                AttemptState.RUNNING,
                AttemptState.EXPIRED,
                AttemptState.FINISHED,
            ),
            AttemptState.LOST,
        ),
    ),
    "send": (Attempt.send, {AttemptState.FINISHED: AttemptState.SENDING, AttemptState.UNSURE: AttemptState.UNSURE}),
    "not_sent": (Attempt.not_sent, {AttemptState.SENDING: AttemptState.FINISHED}),
    "doubt": (Attempt.doubt, {AttemptState.SENDING: AttemptState.UNSURE}),
    "settle": (
        Attempt.settle,
        {AttemptState.SENDING: AttemptState.SETTLED, AttemptState.UNSURE: AttemptState.SETTLED},
    ),
}
"""Each move, and what it makes of the states that it may follow; any other it leaves alone."""


def attempt_in(state: AttemptState) -> Attempt:
    attempt = Attempt(make_claim(), 0.0)
    for way in WAYS[state]:
        way(attempt)
    assert attempt.state is state
    return attempt


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", AttemptState)
def test_every_move_from_every_state(move: str, state: AttemptState) -> None:
    make, targets = MOVES[move]
    attempt = attempt_in(state)
    moved = make(attempt)
    assert attempt.state is targets.get(state, state)
    if move not in ("not_sent", "doubt", "settle"):
        assert moved is (state in targets)


def test_settling_tells_whether_an_earlier_call_may_have_had_an_effect() -> None:
    assert attempt_in(AttemptState.SENDING).settle() is False
    assert attempt_in(AttemptState.UNSURE).settle() is True


def test_only_who_loses_the_right_to_settle_is_told_to_stop() -> None:
    told = {state for state in AttemptState if attempt_in(state).context.cancelled}
    assert told == {AttemptState.EXPIRED, AttemptState.LOST}
    attempt = attempt_in(AttemptState.RUNNING)
    attempt.time_out(FAILED)
    assert attempt.context.cancelled


def test_an_attempt_waits_from_the_moment_when_it_was_prepared() -> None:
    attempt = Attempt(make_claim(), 5.0)
    assert attempt.prepare()
    assert attempt.since == 5.0
    assert attempt.prepared()
    assert attempt.since == attempt.claimed_at > 5.0


def test_the_time_of_an_attempt_counts_from_its_handlers_call() -> None:
    attempt = Attempt(make_claim(), 5.0)
    assert (attempt.since, attempt.began_at) == (5.0, None)
    attempt.begin()
    assert attempt.since == attempt.began_at != 5.0


@pytest.mark.parametrize(("outcome", "kept"), [(DONE, DONE), (FAILED, RELEASE), (RELEASE, RELEASE)])
def test_an_error_of_a_handler_that_was_told_to_stop_is_no_failure_of_the_step(outcome: Outcome, kept: Outcome) -> None:
    attempt = attempt_in(AttemptState.EXPIRED)
    assert attempt.finish(outcome)
    assert attempt.outcome == kept


def test_a_lost_attempt_keeps_its_outcome_for_the_log_and_the_first_one() -> None:
    attempt = attempt_in(AttemptState.LOST)
    assert not attempt.finish(DONE)
    assert not attempt.finish(FAILED)
    assert (attempt.state, attempt.outcome) == (AttemptState.LOST, DONE)


def test_the_first_end_is_the_end() -> None:
    attempt = attempt_in(AttemptState.RUNNING)
    assert attempt.time_out(FAILED)
    assert not attempt.finish(DONE)
    assert attempt.outcome == FAILED


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_of_moves_made_at_once_by_two_threads_one_wins() -> None:
    """Ends of one attempt: its handler is called or it is lost, and it is recorded as one of them."""
    attempts = [Attempt(make_claim(), 0.0) for _ in range(3000)]
    together = threading.Barrier(3)
    won: dict[str, list[bool]] = {}

    def move_all(name: str, move: Callable[[Attempt], bool]) -> None:
        together.wait()
        won[name] = [move(attempt) for attempt in attempts]

    moves: dict[str, Callable[[Attempt], bool]] = {
        "begin": Attempt.begin,
        "give_back": Attempt.give_back,
        "finish": lambda attempt: attempt.finish(DONE),
    }
    threads = [threading.Thread(target=move_all, args=item) for item in moves.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for began, gave_back, finished, attempt in zip(
        won["begin"], won["give_back"], won["finish"], attempts, strict=True
    ):
        assert not (began and gave_back), "a handler was called for what was given back"
        assert gave_back + finished == 1
        assert attempt.outcome is (RELEASE if gave_back else DONE)


def test_a_heartbeat_is_kept_for_who_asks_how_far_it_is() -> None:
    attempt = attempt_in(AttemptState.RUNNING)
    assert attempt.detail is None
    assert attempt.context.heartbeat({"rows": 10})
    assert attempt.detail == {"rows": 10}


def test_an_attempt_that_is_begun_has_a_deadline() -> None:
    attempt = attempt_in(AttemptState.WAITING)
    assert attempt.context.deadline is None
    attempt.begin()
    assert attempt.context.deadline is not None


def test_an_outcome_that_cannot_be_stored_gives_way_to_another() -> None:
    attempt = attempt_in(AttemptState.FINISHED)
    attempt.replace(FAILED)
    assert (attempt.state, attempt.outcome) == (AttemptState.FINISHED, FAILED)
