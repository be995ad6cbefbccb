"""The conversation with the engine: one call at a time, nothing lost, nothing told twice."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from support.worker_engine import NOTHING_LOST, Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext, settling
from tasker_worker import exchange as exchange_module
from tasker_worker.attempts import AttemptState
from tasker_worker.claims import Claim, OutcomeKind
from tasker_worker.gateway import Refused, Unavailable


def registry_of(**handlers: Any) -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    return registry


async def quick(context: StepContext) -> Any:
    return {"step": context.step_name}


class Gated:
    """An async handler that waits until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.began = 0
        self.contexts: list[StepContext] = []

    async def __call__(self, context: StepContext) -> Any:
        self.began += 1
        self.contexts.append(context)
        await self.go.wait()
        if context.cancelled:
            raise RuntimeError("told to stop")
        return "done"


async def test_claims_are_run_and_their_results_settled() -> None:
    async with Rig(registry_of(work=quick)) as rig:
        claims = [make_claim("work") for _ in range(25)]
        await rig.work_off(*claims)
        assert all(rig.engine.result_of(claim) == {"step": "work"} for claim in claims)
        assert rig.metrics.claimed == rig.metrics.succeeded == 25
        assert not rig.exchange.held


async def test_one_call_is_in_flight_at_a_time_and_what_ends_meanwhile_goes_with_the_next() -> None:
    gated = Gated()
    async with Rig(registry_of(quick=quick, gated=gated)) as rig:
        rig.engine.queue.extend([make_claim("quick"), make_claim("gated"), make_claim("gated")])
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 2)
        rig.engine.gate.clear()
        rig.engine.called.clear()
        await asyncio.wait_for(rig.engine.called.wait(), 5)
        gated.go.set()
        await rig.until(lambda: rig.exchange.outcomes_waiting >= 2)
        rig.engine.gate.set()
        await rig.until(lambda: not rig.exchange.held)
        assert rig.engine.most_concurrent == 1
        assert max(outcomes for _, outcomes, _ in rig.engine.calls) >= 2


async def test_no_more_is_claimed_than_there_are_free_slots() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated, quick=quick), slots=3) as rig:
        rig.engine.queue.extend([make_claim("gated"), make_claim("gated"), *[make_claim("quick") for _ in range(10)]])
        rig.exchange.hint()
        await rig.until(lambda: rig.metrics.succeeded == 10)
        assert rig.executor.running == 2
        limits = [limit for _, _, limit in rig.engine.calls]
        assert max(limits) == 3
        assert limits[-1] <= 1


async def test_a_settle_claims_in_the_same_call() -> None:
    async with Rig(registry_of(work=quick), slots=1, poll_max=60) as rig:
        await rig.work_off(*[make_claim("work") for _ in range(5)])
        assert [name for name, _, _ in rig.engine.calls].count("claim") <= 2
        assert [call for call in rig.engine.calls if call[0] == "settle"] == [("settle", 1, 1)] * 5


async def test_an_idle_worker_asks_less_and_less_often_until_a_hint_comes() -> None:
    async with Rig(registry_of(work=quick), poll_max=0.064) as rig:
        exchange = rig.exchange
        delays = []
        for _ in range(10):
            exchange._poll_later()
            delays.append(exchange._poll_delay)
        assert delays[:7] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.064]
        exchange.hint()
        assert exchange._next_poll == 0.0
        assert exchange._poll_delay == 0.001


async def test_a_hint_during_a_call_is_not_lost() -> None:
    async with Rig(registry_of(work=quick), poll_min=3600, poll_max=3600) as rig:
        engine = rig.engine
        await rig.until(lambda: len(engine.calls) == 1 and not engine.concurrent)
        engine.gate.clear()
        rig.exchange.hint()
        await rig.until(lambda: len(engine.calls) == 2)
        rig.exchange.hint()
        engine.gate.set()
        await rig.until(lambda: len(engine.calls) == 3)


@pytest.mark.parametrize("took_effect", [False, True], ids=["lost before", "lost after it took effect"])
async def test_an_outcome_is_repeated_until_the_engine_answers(took_effect: bool) -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated") for _ in range(3)]
        rig.engine.queue.extend(claims)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 3)
        faults = rig.engine.late_settle_faults if took_effect else rig.engine.settle_faults
        faults.append(Unavailable("the connection is lost"))
        before = len(rig.engine.calls)
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert all(rig.engine.result_of(claim) == "done" for claim in claims)
        assert rig.metrics.results_discarded == 0
        assert rig.metrics.outcomes_unsure == (3 if took_effect else 0)
        assert rig.exchange.connected
        # The repeated call asks for no new work: what the lost answer claimed is not known.
        repeated = [call for call in rig.engine.calls[before:] if call[0] == "settle" and call[1] == 3]
        assert repeated[-1] == ("settle", 3, 0)


async def test_nothing_is_claimed_while_outcomes_are_stuck() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated, quick=quick)) as rig:
        rig.engine.queue.append(make_claim("gated"))
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        rig.engine.settle_faults.extend(Unavailable("down") for _ in range(3))
        gated.go.set()
        await rig.until(lambda: rig.metrics.call_failures >= 1)
        stuck_from = len(rig.engine.calls)
        waiting = make_claim("quick")
        rig.engine.queue.append(waiting)
        rig.exchange.hint()
        await rig.until(lambda: waiting.fence in rig.engine.settled)
        during = rig.engine.calls[stuck_from : stuck_from + 2]
        assert [limit for _, _, limit in during] == [0, 0]


async def test_the_database_lost_at_a_claim_only_makes_it_ask_again() -> None:
    async with Rig(registry_of(work=quick)) as rig:
        rig.engine.claim_faults.extend(Unavailable("down") for _ in range(3))
        claim = make_claim("work")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: rig.metrics.call_failures == 1)
        assert not rig.exchange.connected
        await rig.until(lambda: claim.fence in rig.engine.settled)
        assert rig.metrics.call_failures == 3
        assert rig.exchange.connected


async def test_a_stale_fence_discards_the_result_loudly(caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        rig.engine.lost.add(claim.fence)
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert rig.metrics.results_discarded == 1
        assert "a result is discarded: the lease was lost" in caplog.text


async def test_a_lost_lease_tells_the_handler_and_its_result_is_not_even_sent(caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        attempt = rig.exchange.held[claim.fence]
        assert [attempt.lose(), attempt.lose()] == [True, False]
        assert gated.contexts[0].cancelled
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert claim.fence not in rig.engine.settled
        assert rig.metrics.results_discarded == 1
        assert "a result is discarded: the lease was lost" in caplog.text


async def test_a_handler_told_to_stop_by_the_local_clock_gives_its_step_back_rather_than_failing_it() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        assert rig.exchange.held[claim.fence].expire()
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert rig.engine.settled[claim.fence].kind is OutcomeKind.RELEASE


async def test_a_result_that_the_database_refuses_fails_its_own_attempt_and_holds_up_no_other() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated") for _ in range(4)]
        rig.engine.queue.extend(claims)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 4)
        rig.engine.refused[claims[2].fence] = Refused("no such character")
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        for place in (0, 1, 3):
            assert rig.engine.result_of(claims[place]) == "done"
        told = rig.engine.error_of(claims[2])
        assert told["message"] == "the database refuses the result of step 'gated': no such character"
        assert not told["retryable"]
        assert rig.metrics.results_refused == 1


async def test_an_outcome_refused_in_every_shape_is_dropped_loudly_and_work_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig(registry_of(work=quick)) as rig:
        bad, good = make_claim("work"), make_claim("work")
        rig.engine.queue.append(bad)
        rig.exchange.hint()
        rig.engine.refused[bad.fence] = Refused("no")
        original = rig.engine.settle

        async def settle(worker: str, settlements: Any, claim_limit: int) -> Any:
            if any(each.fence == bad.fence for each in settlements):
                raise Refused("never")
            return await original(worker, settlements, claim_limit)

        rig.engine.settle = settle  # type: ignore[method-assign]
        await rig.work_off(good)
        assert bad.fence not in rig.exchange.held
        assert rig.metrics.results_discarded == 1
        assert "the database refuses to record outcomes" in caplog.text


async def _claimed(rig: Rig, gated: Gated, *claims: Claim) -> None:
    """Wait until the handlers of these claims have begun."""
    expected = gated.began + len(claims)
    rig.engine.queue.extend(claims)
    rig.exchange.hint()
    await rig.until(lambda: gated.began == expected)


async def test_a_task_that_somebody_holds_keeps_its_own_outcomes_waiting_and_no_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated, quick=quick)) as rig:
        held, beside = make_claim("gated", task_uuid="held"), make_claim("gated", task_uuid="free")
        await _claimed(rig, gated, held, beside)
        rig.engine.locked.add(held.fence)
        gated.go.set()
        await rig.until(lambda: beside.fence in rig.engine.settled)
        later, others = make_claim("quick", task_uuid="held"), [make_claim("quick") for _ in range(5)]
        rig.engine.locked.add(later.fence)
        await rig.work_off(*others, later_than=(later,))
        assert rig.exchange.outcomes_waiting == 2
        assert rig.exchange.connected
        await rig.until(lambda: rig.engine_for_locked.lock_timeouts >= 2)
        assert rig.engine.lock_timeouts == 1, "the conversation meets it once"
        assert not any(claim.fence in rig.engine.settled for claim in (held, later))
        rig.engine.locked.clear()
        await rig.until(lambda: not rig.exchange.held)
        assert rig.engine.result_of(held) == "done"
        assert rig.engine.result_of(later) == {"step": "quick"}
        assert rig.metrics.results_discarded == rig.metrics.outcomes_unsure == 0
        assert caplog.text.count("a task is held by another session of the database; its outcomes wait") == 1


async def test_tasks_that_are_held_are_tried_in_turn_and_each_goes_through_when_it_is_let_go() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated", task_uuid=f"task-{place}") for place in range(3)]
        await _claimed(rig, gated, *claims)
        rig.engine.locked.update(claim.fence for claim in claims)
        gated.go.set()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 4)
        for claim in reversed(claims):
            rig.engine.locked.discard(claim.fence)
            await rig.until(lambda fence=claim.fence: fence in rig.engine.settled)
        await rig.until(lambda: not rig.exchange.held)


async def test_what_was_sent_with_an_unknown_effect_before_its_task_was_held_is_not_called_discarded() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        await _claimed(rig, gated, claim)
        rig.engine.late_settle_faults.append(Unavailable("the connection is lost"))
        rig.engine.locked_after.add(claim.fence)
        gated.go.set()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 1)
        rig.engine.locked.clear()
        await rig.until(lambda: not rig.exchange.held)
        assert rig.engine.result_of(claim) == "done"
        assert (rig.metrics.results_discarded, rig.metrics.outcomes_unsure) == (0, 1)


async def test_nothing_is_claimed_while_too_much_waits_for_tasks_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "_LOCKED_OUTCOMES", 2)
    gated = Gated()
    async with Rig(registry_of(gated=gated, quick=quick)) as rig:
        claims = [make_claim("gated", task_uuid=f"task-{place}") for place in range(3)]
        await _claimed(rig, gated, *claims)
        rig.engine.locked.update(claim.fence for claim in claims)
        gated.go.set()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 1)
        unclaimed = make_claim("quick")
        rig.engine.queue.append(unclaimed)
        before = len(rig.engine.calls)
        rig.exchange.hint()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 5)
        assert len(rig.engine.calls) == before
        rig.engine.locked.clear()
        await rig.until(lambda: unclaimed.fence in rig.engine.settled)


async def test_a_large_group_of_a_task_that_is_held_goes_in_bounded_calls_and_a_refused_one_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settling, "_BATCH_OUTCOMES", 2)
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated") for _ in range(5)]
        await _claimed(rig, gated, *claims)
        rig.engine.locked.update(claim.fence for claim in claims)
        rig.engine.refused[claims[3].fence] = Refused("no such character")
        gated.go.set()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 2)
        rig.engine.locked.clear()
        await rig.until(lambda: not rig.exchange.held)
        assert [rig.engine.result_of(claims[place]) for place in (0, 1, 2, 4)] == ["done"] * 4
        assert rig.engine.error_of(claims[3])["message"].endswith("no such character")
        assert max(outcomes for _, outcomes, _ in rig.engine_for_locked.calls) == 2


async def test_stopping_waits_for_tasks_that_are_held_until_its_time_is_up() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated", task_uuid=uuid) for uuid in ("first", "second")]
        await _claimed(rig, gated, *claims)
        rig.engine.locked.update(claim.fence for claim in claims)
        gated.go.set()
        await rig.until(lambda: len(rig.engine_for_locked.calls) >= 1)
        rig.exchange.stop(give_up_at=float("inf"))
        rig.engine.locked.discard(claims[0].fence)
        await rig.until(lambda: claims[0].fence in rig.engine.settled)
        assert rig.task is not None
        assert not rig.task.done()
        rig.exchange.stop(give_up_at=time.monotonic() + 0.05)
        await asyncio.wait_for(rig.task, 5)
        assert rig.exchange.outcomes_waiting == 1
        assert claims[1].fence not in rig.engine.settled


async def test_stopping_ends_when_the_leases_of_what_was_held_are_lost() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        await _claimed(rig, gated, claim)
        attempt = rig.exchange.held[claim.fence]
        rig.engine.locked.add(claim.fence)
        gated.go.set()
        await rig.until(lambda: rig.engine_for_locked.lock_timeouts >= 1)
        rig.exchange.stop(give_up_at=float("inf"))
        await rig.until(attempt.lose)  # between two calls
        assert rig.task is not None
        await asyncio.wait_for(rig.task, 5)
        assert rig.metrics.results_discarded == 1


async def test_a_fault_in_handing_in_what_was_held_ends_the_exchange_rather_than_lose_it() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        await _claimed(rig, gated, claim)
        rig.engine.locked.add(claim.fence)
        rig.engine_for_locked.settle_faults.append(ZeroDivisionError("a fault of ours"))
        gated.go.set()
        assert rig.task is not None
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(rig.task, 5)
        rig.task = asyncio.get_running_loop().create_task(asyncio.sleep(0))


async def test_a_lease_called_lost_while_its_outcome_is_under_way_is_not_lost() -> None:
    """It is gone because it was settled: the answer to that says so, and may come later than the renewal's."""
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        sending, unsure = make_claim("gated"), make_claim("gated")
        await _claimed(rig, gated, sending, unsure)
        rig.engine.late_settle_faults.append(Unavailable("the connection is lost"))
        gated.go.set()
        attempts = [rig.exchange.held[claim.fence] for claim in (sending, unsure)]
        await rig.until(lambda: all(attempt.state is AttemptState.UNSURE for attempt in attempts))
        assert [attempt.lose() for attempt in attempts] == [False, False]
        await rig.until(lambda: not rig.exchange.held)
        assert not any(attempt.context.cancelled for attempt in attempts)
        assert (rig.metrics.results_discarded, rig.metrics.outcomes_unsure) == (0, 2)


@pytest.mark.parametrize("characters", [100, 10_000], ids=["one too many", "together"])
async def test_large_results_are_settled_in_calls_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    monkeypatch.setattr(settling, "_BATCH_CHARACTERS", characters)

    class Large(Gated):
        async def __call__(self, context: StepContext) -> Any:
            return {"text": "x" * 150, "step": await super().__call__(context)}

    gated = Large()
    async with Rig(registry_of(gated=gated)) as rig:
        claims = [make_claim("gated") for _ in range(4)]
        await _claimed(rig, gated, *claims)
        before = len(rig.engine.calls)
        rig.engine.gate.clear()
        gated.go.set()
        await rig.until(lambda: rig.exchange.outcomes_waiting == 4)
        rig.engine.gate.set()
        await rig.until(lambda: not rig.exchange.held)
        settled = [outcomes for name, outcomes, _ in rig.engine.calls[before:] if name == "settle"]
        assert sum(settled) == 4
        assert max(settled) == (1 if characters == 100 else 4)


@pytest.mark.parametrize("settles", [False, True], ids=["claiming", "settling"])
async def test_a_call_that_has_brought_nothing_is_not_under_way_any_more(settles: bool) -> None:
    """A renewal says since when a claim call is under way: with none, all that it does not name is unknown."""
    async with Rig(registry_of(work=quick), poll_min=3600, poll_max=3600) as rig:
        if settles:
            await rig.work_off(make_claim("work"))
        await rig.until(lambda: rig.exchange._waiter is not None)
        assert rig.engine.calls[-1][0] == ("settle" if settles else "claim")
        rig.exchange.held.renewed(NOTHING_LOST, valid_until=float("inf"))
        assert rig.exchange.held.to_renew(time.monotonic(), 15).claiming_since == NOTHING_LOST.renewed_at


async def test_a_claim_whose_answer_comes_after_it_was_given_up_is_not_started_and_goes_back() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated, quick=quick), poll_min=0.001) as rig:
        late = make_claim("gated")
        rig.engine.queue.append(late)
        rig.engine.gate.clear()
        rig.engine.called.clear()
        await asyncio.wait_for(rig.engine.called.wait(), 5)
        rig.exchange.held.to_renew(time.monotonic() + 16, patience=15)
        rig.engine.gate.set()
        await rig.until(lambda: late.fence in rig.engine.settled)
        assert rig.engine.settled[late.fence].kind is OutcomeKind.RELEASE
        assert gated.began == rig.executor.running == 0
        assert rig.metrics.claims_late == 1
        await rig.work_off(make_claim("quick"))


async def test_draining_stops_claiming_until_it_is_taken_back() -> None:
    gated = Gated()
    async with Rig(registry_of(work=quick, gated=gated)) as rig:
        rig.engine.queue.append(make_claim("gated"))
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        rig.exchange.set_draining(True)
        await rig.until(lambda: rig.engine.concurrent == 0)
        claim = make_claim("work")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert claim.fence not in rig.engine.settled
        rig.exchange.set_draining(False)
        await rig.until(lambda: claim.fence in rig.engine.settled)


async def test_stopping_ends_when_all_is_settled() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim, unclaimed = make_claim("gated"), make_claim("gated")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        rig.exchange.stop(give_up_at=float("inf"))
        rig.engine.queue.append(unclaimed)
        assert rig.task is not None
        assert not rig.task.done()
        gated.go.set()
        await asyncio.wait_for(rig.task, 5)
        assert rig.engine.result_of(claim) == "done"
        assert unclaimed.fence not in rig.engine.settled


async def test_stopping_gives_up_on_a_database_that_stays_away() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        rig.engine.queue.append(make_claim("gated"))
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 1)
        rig.engine.settle_faults.extend(Unavailable("down") for _ in range(1000))
        gated.go.set()
        await rig.until(lambda: rig.metrics.call_failures > 0)
        rig.exchange.stop(give_up_at=0)
        assert rig.task is not None
        await asyncio.wait_for(rig.task, 5)
        assert rig.exchange.outcomes_waiting == 1
        rig.engine.settle_faults.clear()


async def test_others_are_told_of_what_this_worker_did_not_take() -> None:
    async with Rig(registry_of(work=quick)) as rig:
        original = rig.engine.settle

        async def settle(worker: str, settlements: Any, claim_limit: int) -> Any:
            answer = await original(worker, settlements, claim_limit)
            return answer._replace(ready_left=2, tasks_finished=1)

        rig.engine.settle = settle  # type: ignore[method-assign]
        await rig.work_off(make_claim("work"))
        await rig.until(lambda: rig.hints.told == ["ready", "finished"])


async def test_a_large_batch_is_settled_in_bounded_calls() -> None:
    gated = Gated()
    async with Rig(registry_of(gated=gated), slots=2500) as rig:
        claims = [make_claim("gated") for _ in range(2500)]
        rig.engine.queue.extend(claims)
        rig.exchange.hint()
        await rig.until(lambda: gated.began == 2500)
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert all(claim.fence in rig.engine.settled for claim in claims)
        assert max(outcomes for _, outcomes, _ in rig.engine.calls) <= 1000
