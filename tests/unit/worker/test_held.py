"""What a worker holds, seen by the loop and the lease thread: a claim is held or void, whoever comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from support.worker_engine import NOTHING_LOST, make_claim
from tasker_worker.attempts import Attempt, AttemptState
from tasker_worker.claims import RELEASE, Claim
from tasker_worker.gateway import Renewal
from tasker_worker.held import HeldClaims

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PATIENCE = 15.0


def answer(at: datetime = NOON, *unknown: Claim, **changes: object) -> Renewal:
    """A renewal's answer at a time of the database's, which names claims that it was not told."""
    told: dict[str, object] = {
        "renewed_at": at,
        "unknown_step_ids": [claim.step_id for claim in unknown],
        "unknown_fences": [claim.fence for claim in unknown],
    }
    return NOTHING_LOST._replace(**told | changes)  # type: ignore[arg-type]


def held_by_one_call(*claims: Claim) -> tuple[HeldClaims, list[Attempt]]:
    held = HeldClaims()
    held.call_begins(0.0)
    attempts, late = held.call_ends(claims, 0.1)
    assert late == []
    return held, attempts


def test_a_renewal_names_all_that_is_held_and_may_still_be_settled() -> None:
    claims = [make_claim() for _ in range(3)]
    held, attempts = held_by_one_call(*claims)
    attempts[0].lose()
    held.drop(attempts[1])
    assert held.to_renew(1.0, PATIENCE).claims == [(claims[2].step_id, claims[2].fence)]
    assert len(held) == 2
    assert claims[1].fence not in held


def test_it_says_since_when_a_claim_call_has_been_under_way_by_the_databases_clock() -> None:
    held = HeldClaims()
    assert held.to_renew(0.0, PATIENCE).claiming_since is None
    held.renewed(answer(NOON), 30.0)
    assert held.to_renew(1.0, PATIENCE).claiming_since == NOON
    held.call_begins(2.0)
    later = NOON + timedelta(seconds=10)
    held.renewed(answer(later), 40.0)
    assert held.to_renew(11.0, PATIENCE).claiming_since == NOON, "what this call brings is not unknown"
    held.call_ends([], 11.0)
    assert held.to_renew(12.0, PATIENCE).claiming_since == later
    held.call_begins(13.0)
    held.call_fails()
    held.renewed(answer(later + timedelta(seconds=10)), 50.0)
    assert held.to_renew(21.0, PATIENCE).claiming_since == later + timedelta(seconds=10)


def test_a_call_that_takes_too_long_is_given_up_and_what_it_brings_is_not_started() -> None:
    held = HeldClaims()
    held.renewed(answer(NOON), 1000.0)
    held.call_begins(0.0)
    later = NOON + timedelta(seconds=10)
    held.renewed(answer(later), 1000.0)
    assert held.to_renew(PATIENCE, PATIENCE).claiming_since == NOON
    assert held.to_renew(PATIENCE + 0.1, PATIENCE).claiming_since == later
    to_run, late = held.call_ends([make_claim()], PATIENCE + 1)
    assert to_run == []
    assert [(attempt.state, attempt.outcome) for attempt in late] == [(AttemptState.FINISHED, RELEASE)]
    assert len(held) == 1, "until the engine has heard that it goes back"
    held.call_begins(20.0)
    assert held.call_ends([make_claim()], 20.1)[1] == [], "the next call is not given up"


def test_what_was_unknown_and_arrives_after_all_is_not_started() -> None:
    held = HeldClaims()
    lost, other = make_claim(), make_claim()
    held.call_begins(0.0)
    assert held.renewed(answer(NOON, lost), 30.0)[1] == [(lost.step_id, lost.fence)]
    to_run, late = held.call_ends([lost, other], 1.0)
    assert [attempt.claim for attempt in to_run] == [other]
    assert [attempt.claim for attempt in late] == [lost]
    held.call_begins(2.0)
    assert held.call_ends([lost], 2.1)[1] == [], "it can only come with the call that was under way"


def test_what_the_lease_thread_gives_back_as_soon_as_it_is_held_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is to run it finds that it went back, and reports so."""
    held = HeldClaims()
    held.call_begins(0.0)
    monkeypatch.setattr(held, "_end_call", lambda: [attempt.give_back() for attempt in held._attempts.values()])
    to_run, late = held.call_ends([make_claim()], 0.1)
    assert (len(to_run), late) == (1, [])
    assert not to_run[0].begin()


def test_what_arrives_while_a_renewal_is_under_way_is_not_given_back() -> None:
    held = HeldClaims()
    claim, gone = make_claim(), make_claim()
    held.call_begins(0.0)
    held.to_renew(0.1, PATIENCE)
    held.call_ends([claim], 0.2)
    assert held.renewed(answer(NOON, claim, gone), 30.0)[1] == [(gone.step_id, gone.fence)]


def test_leases_that_ran_out_stop_what_runs_and_void_what_is_under_way() -> None:
    ended, running = make_claim(), make_claim()
    held, (first, second) = held_by_one_call(ended, running)
    first.finish(RELEASE)
    second.begin()
    held.call_begins(1.0)
    assert held.expire() == [second]
    assert (first.state, second.state) == (AttemptState.FINISHED, AttemptState.EXPIRED)
    assert held.expire() == []
    assert len(held.call_ends([make_claim()], 2.0)[1]) == 1


def test_what_arrives_after_the_leases_ran_out_is_not_started_though_nobody_has_noticed_yet() -> None:
    held = HeldClaims()
    held.renewed(answer(), 30.0)
    for now, late in ((29.9, 0), (30.0, 1)):
        held.call_begins(20.0)
        assert len(held.call_ends([make_claim()], now)[1]) == late


def test_a_worker_that_the_database_does_not_know_has_lost_what_is_under_way() -> None:
    held = HeldClaims()
    held.call_begins(0.0)
    held.renewed(answer(known=False), 30.0)
    assert len(held.call_ends([make_claim()], 1.0)[1]) == 1


def test_lost_claims_are_told_once_and_only_those_that_are_held() -> None:
    claim = make_claim()
    held, [attempt] = held_by_one_call(claim)
    lost = answer(lost_fences=[claim.fence, 999_999])
    assert held.renewed(lost, 30.0)[0] == [attempt]
    assert held.renewed(lost, 30.0)[0] == []
    assert attempt.state is AttemptState.LOST


def test_an_answer_that_makes_no_sense_is_not_half_understood() -> None:
    with pytest.raises(ValueError, match="longer than"):
        HeldClaims().renewed(answer(unknown_fences=[1]), 30.0)
