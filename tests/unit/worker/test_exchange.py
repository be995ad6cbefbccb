"""The conversation with the engine: one call at a time, nothing lost, nothing told twice."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from support.worker_engine import NOTHING_LOST, MemoryEngine, Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext, settling
from tasker_worker import exchange as exchange_module
from tasker_worker import locked as locked_module
from tasker_worker.attempts import Attempt, AttemptState
from tasker_worker.claims import Answer, Claim, Outcome, OutcomeKind
from tasker_worker.gateway import Locked, Refused, Unavailable
from tasker_worker.held import HeldClaims
from tasker_worker.jitter import spread
from tasker_worker.locked import LockedTasks
from tasker_worker.metrics import WorkerMetrics


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
        assert rig.metrics.results_discarded == rig.metrics.outcomes_unsure == 0
        assert rig.exchange.connected
        # The repeated call asks for no new work: what the lost answer claimed is not known.
        repeated = [call for call in rig.engine.calls[before:] if call[0] == "settle" and call[1] == 3]
        assert repeated[-1] == ("settle", 3, 0)


async def test_an_outcome_of_unknown_effect_that_is_stale_when_repeated_is_counted_as_neither_kept_nor_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was recorded as a failure and another worker has had the step since, or its lease was lost before."""
    caplog.set_level("INFO")
    gated = Gated()
    async with Rig(registry_of(gated=gated)) as rig:
        claim = make_claim("gated")
        await _claimed(rig, gated, claim)
        rig.engine.settle_faults.append(Unavailable("the connection is lost"))
        rig.engine.lost.add(claim.fence)
        gated.go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert (rig.metrics.results_discarded, rig.metrics.outcomes_unsure) == (0, 1)
        assert "an outcome was recorded and the step has gone on since, or its lease is lost" in caplog.text


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
        assert told.message == "the database refuses the result of step 'gated': no such character"
        assert told.retryable is False
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
        assert rig.metrics.results_discarded == rig.metrics.outcomes_unsure == 0


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
        assert (rig.engine.error_of(claims[3]).message or "").endswith("no such character")
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
        assert rig.metrics.results_discarded == rig.metrics.outcomes_unsure == 0


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


class _StillClock:
    """In place of the loop's clock."""

    def time(self) -> float:
        return 100.0

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


def _still_rig(**settings: Any) -> Rig:
    """A rig that does not run, whose exchange is called by hand at second 100; it has 3 slots and starts nothing."""
    rig = Rig(HandlerRegistry(), slots=3, **{"poll_min": 0.01, "poll_max": 10.0} | settings)
    rig.exchange._loop = _StillClock()  # type: ignore[assignment]
    rig.started = []  # type: ignore[attr-defined]
    executor = SimpleNamespace(running=0, out_of_threads=False, start=rig.started.extend)  # type: ignore[attr-defined]
    rig.exchange.attach(executor)  # type: ignore[arg-type]
    return rig


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are exactly as long as they are meant to be."""
    for module in (exchange_module, settling):
        monkeypatch.setattr(module, "spread", lambda seconds: seconds)


@pytest.mark.parametrize(("fault", "connected"), [(Locked("held"), True), (Unavailable("down"), False)])
async def test_a_claim_that_fails_is_tried_again_after_a_pause_though_a_hint_came(
    evenly: None, fault: Exception, connected: bool
) -> None:
    rig = _still_rig()
    rig.engine.claim_faults.append(fault)
    rig.engine.gate.clear()
    call = asyncio.ensure_future(rig.exchange._claim(3))
    await asyncio.wait_for(rig.engine.called.wait(), 5)
    assert rig.exchange.held.to_renew(time.monotonic() + 100, 15).claiming_since is None
    rig.exchange.hint()
    rig.engine.gate.set()
    await call
    assert rig.exchange.connected is connected
    assert (rig.metrics.calls, rig.metrics.call_failures) == (1, 1)
    assert (rig.exchange._next_poll, rig.exchange._poll_delay) == (100.05, 0.1)
    assert rig.exchange.held._call is None
    await rig.exchange._claim(3)
    assert rig.exchange.connected
    assert (rig.exchange._next_poll, rig.exchange._poll_delay) == (100.1, 0.2)


async def test_a_longer_pause_than_that_after_a_fault_is_kept(evenly: None) -> None:
    rig = _still_rig(poll_min=3.0)
    rig.engine.claim_faults.append(Unavailable("down"))
    await rig.exchange._claim(3)
    assert (rig.exchange._next_poll, rig.exchange._poll_delay) == (103.0, 6.0)


async def test_a_claim_call_that_is_cancelled_is_not_under_way_any_more() -> None:
    rig = _still_rig()
    exchange: Any = rig.exchange
    rig.engine.gate.clear()
    call = asyncio.ensure_future(exchange._claim(3))
    await asyncio.wait_for(rig.engine.called.wait(), 5)
    assert exchange.held._call is not None
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert exchange.held._call is None


@pytest.mark.parametrize(("count", "next_poll"), [(2, 100.01), (3, 0.0)])
@pytest.mark.parametrize("settles", [False, True])
async def test_as_many_claims_as_asked_for_mean_that_there_may_be_more(
    settles: bool, count: int, next_poll: float
) -> None:
    rig = _still_rig()
    rig.exchange._poll_delay = 5.0
    rig.engine.queue.extend(make_claim() for _ in range(count))
    if settles:
        rig.exchange._hinted = True
        assert await rig.exchange._settle([], 3)
    else:
        await rig.exchange._claim(3)
    assert len(rig.started) == rig.metrics.claimed == count  # type: ignore[attr-defined]
    assert (rig.exchange._next_poll, rig.exchange._poll_delay) == (next_poll, 0.01)
    assert rig.exchange.held._call is None


async def test_a_call_that_claims_nothing_leaves_a_hint_that_came_before_it_standing() -> None:
    rig = _still_rig()
    rig.exchange.hint()
    assert await rig.exchange._settle([], 0)
    assert rig.exchange._next_poll == 0.0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(frozenset(), [], 0, 0), []),
        (Answer(frozenset(), [], 1, 0), ["ready"]),
        (Answer(frozenset(), [], 0, 1), ["finished"]),
    ],
)
async def test_an_answer_without_claims_polls_soon_and_is_passed_on(answer: Answer, told: list[str]) -> None:
    rig = _still_rig()
    exchange: Any = rig.exchange
    exchange._poll_delay, exchange._next_poll = 5.0, 500.0
    exchange.held.call_begins(0)
    exchange._take_answer(answer, 0)
    assert exchange.held._call is not None  # one that asked for nothing says nothing about one that did
    exchange._take_answer(answer, 1)
    assert exchange.held._call is None
    assert (exchange._next_poll, exchange._poll_delay, rig.hints.told) == (100.01, 0.01, told * 2)


@pytest.mark.parametrize(
    "action",
    [
        lambda exchange: exchange.finished(Attempt(make_claim(), 0.0)),
        lambda exchange: exchange.hint(),
        lambda exchange: exchange.set_draining(True),
        lambda exchange: exchange.stop(0.0),
        lambda exchange: exchange._take_answer(Answer(frozenset(), [], 0, 0), 1),
        lambda exchange: exchange._locked._on_progress(),
    ],
    ids=["finished", "hint", "draining", "stop", "answer", "locked"],
)
async def test_whatever_there_is_to_do_wakes_the_conversation(action: Any) -> None:
    rig = _still_rig()
    exchange: Any = rig.exchange
    waiting = asyncio.ensure_future(exchange._wait(None))
    await asyncio.sleep(0)
    assert exchange._waiter is not None
    action(exchange)
    await asyncio.wait_for(waiting, 5)
    assert exchange._waiter is None
    exchange.hint()  # when nobody waits there is nobody to wake


async def test_what_changes_nothing_about_draining_wakes_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tasker_worker")
    rig = _still_rig()
    waiting = asyncio.ensure_future(rig.exchange._wait(None))
    await asyncio.sleep(0)
    rig.exchange.set_draining(False)
    assert rig.exchange._waiter is not None
    assert not rig.exchange._waiter.done()
    waiting.cancel()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("state", "slots"),
    [
        ({}, 3),
        ({"running": 2}, 1),
        ({"out_of_threads": True}, 0),
        ({"stopping": True}, 0),
        ({"draining": True}, 0),
        ({"valid": -1.0}, 0),
        ({"locked": 999}, 3),
        ({"locked": 1000}, 0),
    ],
    ids=str,
)
async def test_it_asks_for_no_more_than_it_can_run(state: dict[str, Any], slots: int) -> None:
    rig = _still_rig()
    exchange: Any = rig.exchange
    executor = SimpleNamespace(running=state.get("running", 0), out_of_threads=state.get("out_of_threads", False))
    exchange._stopping, exchange.draining = state.get("stopping", False), state.get("draining", False)
    exchange.held.valid_until = time.monotonic() + state.get("valid", 1000.0)
    exchange._locked.add(Attempt(make_claim(), 0.0) for _ in range(state.get("locked", 0)))
    assert exchange._free_slots(executor) == slots


@pytest.mark.parametrize(
    ("stopping", "running", "give_up_at", "valid", "until"),
    [
        (False, 0, float("inf"), True, None),
        (False, 0, float("inf"), False, 110.0),
        (True, 1, 500.0, True, None),
        (True, 0, 500.0, True, 500.0),
        (True, 0, float("inf"), False, None),
    ],
)
async def test_with_nothing_to_ask_for_it_sleeps_until_that_may_change(
    stopping: bool, running: int, give_up_at: float, valid: bool, until: float | None
) -> None:
    rig = _still_rig()
    rig.exchange._stopping, rig.exchange._give_up_at = stopping, give_up_at
    rig.exchange.held.valid_until = float("inf") if valid else 0.0
    executor: Any = SimpleNamespace(running=running)
    assert rig.exchange._idle_until(executor) == until


async def test_outcomes_are_counted_wherever_they_wait() -> None:
    rig = _still_rig()
    exchange = rig.exchange
    exchange.finished(Attempt(make_claim(task_uuid="a"), 0.0))
    exchange._locked.add([Attempt(make_claim(task_uuid="b"), 0.0) for _ in range(2)])
    exchange.finished(Attempt(make_claim(task_uuid="b"), 0.0))  # joins the others of its task
    assert (len(exchange._finished), exchange._locked.waiting()) == (1, 3)
    exchange._settler.sending = [Attempt(make_claim(), 0.0)] * 4
    exchange._settler_of_locked.sending = [Attempt(make_claim(), 0.0)] * 8
    assert exchange.outcomes_waiting == 16


async def _settler(engine: MemoryEngine) -> tuple[settling.Settler, WorkerMetrics, list[Any]]:
    metrics, locked = WorkerMetrics(), list[Any]()
    return (
        settling.Settler(
            engine,
            worker="worker",
            held=HeldClaims(),
            metrics=metrics,
            on_answer=lambda answer, limit: None,
            on_locked=locked.append,
        ),
        metrics,
        locked,
    )


def _ended(result: str = "{}") -> Attempt:
    attempt = Attempt(make_claim(), 0.0)
    attempt.finish(Outcome(OutcomeKind.COMPLETE, result))
    return attempt


async def test_a_call_that_fails_is_repeated_after_pauses_that_double_up_to_two_seconds(
    evenly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = MemoryEngine()
    settler, metrics, _ = await _settler(engine)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(settling, "asyncio", SimpleNamespace(sleep=sleep))
    engine.settle_faults.extend(Unavailable("down") for _ in range(8))
    batch = settler.take_batch(deque([_ended()]))
    assert await settler.settle(batch, 1)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert (metrics.calls, metrics.call_failures) == (9, 8)
    assert [limit for _, _, limit in engine.calls] == [1, *[0] * 8]


async def test_a_call_takes_at_most_a_thousand_outcomes() -> None:
    settler, _, _ = await _settler(MemoryEngine())
    finished = deque(_ended() for _ in range(1001))
    assert (len(settler.take_batch(finished)), len(finished)) == (1000, 1)


@pytest.mark.parametrize(("short_of", "taken"), [(1, 2), (0, 1)])
async def test_a_call_takes_outcomes_until_they_are_16_mebibytes(short_of: int, taken: int) -> None:
    settler, _, _ = await _settler(MemoryEngine())
    text = "x" * (16 * 1024 * 1024 - short_of)
    assert len(settler.take_batch(deque([_ended(text), _ended(), _ended()]))) == taken


async def test_giving_up_in_the_middle_of_a_refused_batch_keeps_the_rest_as_under_way() -> None:
    engine = MemoryEngine()
    settler, _, _ = await _settler(engine)
    batch = settler.take_batch(deque(_ended() for _ in range(3)))
    engine.settle_faults.extend([Refused("one of them"), Unavailable("down")])
    settler.give_up_at = 0.0
    assert await settler.settle(batch, 0) is False
    assert settler.sending == batch
    assert not settler.connected


async def test_what_met_a_lock_is_handed_back_with_nothing_under_way() -> None:
    engine = MemoryEngine()
    settler, metrics, locked = await _settler(engine)
    batch = settler.take_batch(deque([_ended()]))
    engine.settle_faults.append(Locked("held"))
    assert await settler.settle(batch, 0)
    assert (locked, settler.sending, settler.connected) == ([batch], [], True)
    assert (metrics.lock_timeouts, metrics.call_failures) == (1, 0)
    assert batch[0].state is AttemptState.FINISHED


async def test_a_task_that_is_held_again_is_logged_again_and_tried_again_after_a_pause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = MemoryEngine()
    pauses: list[float] = []
    locked = LockedTasks(lambda: None)
    settler, _, _ = await _settler(engine)
    settler._on_locked = locked.put_back

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(locked_module, "asyncio", SimpleNamespace(sleep=sleep))
    for _ in range(2):
        locked.add([_ended()])
        engine.settle_faults.extend(Locked("held") for _ in range(2))
        for _ in range(3):
            assert make_claim().task_uuid in locked
            assert await locked._settle_next(settler)
        assert locked.waiting() == 0
        assert make_claim().task_uuid not in locked
    assert pauses == [0.1] * 4
    assert caplog.text.count("a task is held by another session of the database; its outcomes wait") == 2


def test_pauses_are_spread_by_a_fifth_to_either_side() -> None:
    drawn = [spread(10.0) for _ in range(2000)]
    assert 8.0 <= min(drawn) < 8.4
    assert 11.6 < max(drawn) <= 12.0


@pytest.mark.parametrize(("seconds", "time_is_up"), [(-0.1, False), (0.0, True)])
async def test_time_is_up_at_the_moment_that_was_said(
    monkeypatch: pytest.MonkeyPatch, seconds: float, time_is_up: bool
) -> None:
    rig = _still_rig()
    monkeypatch.setattr(exchange_module, "time", SimpleNamespace(monotonic=lambda: 1000.0 + seconds))
    rig.exchange.held.valid_until = rig.exchange._give_up_at = 1000.0
    rig.exchange._locked.add([Attempt(make_claim(), 0.0)])
    locked: Any = SimpleNamespace(done=lambda: False)
    assert rig.exchange._leases_ran_out() is time_is_up
    assert rig.exchange._nothing_is_locked(locked) is time_is_up


@pytest.mark.parametrize(
    ("waiting", "sending", "done", "nothing"),
    [(0, 0, False, True), (1, 0, False, False), (0, 1, False, False), (1, 1, True, True), (1, 1, False, False)],
)
async def test_what_is_held_is_waited_for_as_long_as_somebody_hands_it_in(
    waiting: int, sending: int, done: bool, nothing: bool
) -> None:
    rig = _still_rig()
    rig.exchange._locked.add([Attempt(make_claim(), 0.0)] * waiting)
    rig.exchange._settler_of_locked.sending = [Attempt(make_claim(), 0.0)] * sending
    locked: Any = SimpleNamespace(done=lambda: done)
    assert rig.exchange._nothing_is_locked(locked) is nothing


async def test_one_that_is_woken_leaves_no_timer_behind() -> None:
    rig = _still_rig()
    exchange: Any = rig.exchange
    timers: list[Any] = []
    cancelled: list[float] = []

    def call_at(until: float, function: Any) -> Any:
        timers.append((until, function))
        return SimpleNamespace(cancel=lambda: cancelled.append(until))

    exchange._loop.call_at = call_at
    for until in (500.0, None):
        waiting = asyncio.ensure_future(exchange._wait(until))
        await asyncio.sleep(0)
        exchange.hint()
        await asyncio.wait_for(waiting, 5)
    assert (timers, cancelled) == ([(500.0, exchange._wake)], [500.0])


@pytest.mark.parametrize("fault", [ZeroDivisionError("a fault of ours"), None], ids=repr)
async def test_the_exchange_ends_at_once_when_what_is_held_is_not_handed_in_any_more(fault: Exception | None) -> None:
    rig = Rig(registry_of(work=quick), poll_min=3600, poll_max=3600)
    go = asyncio.Event()

    async def ends(settler: Any) -> None:
        await go.wait()
        if fault is not None:
            raise fault

    rig.exchange._locked.run = ends  # type: ignore[method-assign]
    async with rig:
        await rig.until(lambda: rig.exchange._waiter is not None)
        go.set()
        assert rig.task is not None
        with pytest.raises(type(fault) if fault else RuntimeError, match=r"^(a fault of ours|outcomes of tasks that)"):
            await asyncio.wait_for(rig.task, 5)
        rig.task = asyncio.get_running_loop().create_task(asyncio.sleep(0))


async def test_the_exchange_ends_no_sooner_than_what_hands_in_what_is_held() -> None:
    rig = Rig(registry_of(work=quick))
    ended = []

    async def ends_slowly(settler: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            ended.append(True)

    rig.exchange._locked.run = ends_slowly  # type: ignore[method-assign]
    run = asyncio.get_running_loop().create_task(rig.exchange.run())
    await asyncio.wait_for(rig.engine.called.wait(), 5)
    rig.exchange.stop(give_up_at=0)
    await asyncio.wait_for(run, 5)
    assert ended == [True]


async def test_of_two_outcomes_one_that_is_refused_in_every_shape_is_dropped_and_the_other_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def sleep(seconds: float) -> None: ...

    monkeypatch.setattr(settling, "asyncio", SimpleNamespace(sleep=sleep))
    engine = MemoryEngine()
    settler, metrics, _ = await _settler(engine)
    batch = settler.take_batch(deque(_ended() for _ in range(2)))
    engine.settle_faults.extend(Refused("no") for _ in range(3))
    assert await settler.settle(batch, 1) is True
    assert settler.sending == []
    assert engine.calls == [("settle", 2, 1), *[("settle", 1, 0)] * 3]
    assert list(engine.settled) == [batch[1].claim.fence]
    assert (metrics.calls, metrics.call_failures, metrics.results_refused, metrics.results_discarded) == (4, 3, 1, 1)


@pytest.mark.parametrize(("now", "calls"), [(1000.0, 1), (999.9, 2)])
async def test_a_call_that_fails_is_repeated_until_the_moment_to_give_up(
    monkeypatch: pytest.MonkeyPatch, now: float, calls: int
) -> None:
    async def sleep(seconds: float) -> None: ...

    monkeypatch.setattr(settling, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(settling, "time", SimpleNamespace(monotonic=lambda: now))
    engine = MemoryEngine()
    settler, _, _ = await _settler(engine)
    settler.give_up_at = 1000.0
    engine.settle_faults.append(Unavailable("down"))
    batch = settler.take_batch(deque([_ended()]))
    assert await settler.settle(batch, 0) is (calls == 2)
    assert len(engine.calls) == calls


async def test_what_was_held_is_handed_in_without_claiming_until_the_settler_gives_up() -> None:
    engine = MemoryEngine()
    left: list[int] = []
    locked = LockedTasks(lambda: left.append(locked.waiting()))
    settler, metrics, _ = await _settler(engine)
    lost = Attempt(make_claim(task_uuid="lost"), 0.0)
    lost.finish(Outcome(OutcomeKind.COMPLETE, "{}"))
    lost.lose()
    locked.add([lost])
    assert await locked._settle_next(settler) is True
    assert (engine.calls, metrics.results_discarded) == ([], 1)
    run = asyncio.get_running_loop().create_task(locked.run(settler))
    locked.add([_ended()])
    async with asyncio.timeout(5):
        while not left:  # noqa: ASYNC110 - whoever is told of progress tells nobody
            await asyncio.sleep(0.001)
    assert (engine.calls, left, run.done()) == ([("settle", 1, 0)], [0], False)
    settler.give_up_at = 0.0
    engine.settle_faults.append(Unavailable("down"))
    locked.add([_ended()])
    await asyncio.wait_for(run, 5)
    assert left == [0], "nothing has come of it"
    assert len(settler.sending) == 1
    engine.settle_faults.append(Unavailable("down"))
    locked.add([_ended()])
    assert await locked._settle_next(settler) is False


async def test_only_a_result_counts_as_discarded() -> None:
    settler, metrics, _ = await _settler(MemoryEngine())
    given_back = Attempt(make_claim(), 0.0)
    given_back.give_back()
    settler.discard(given_back)
    settler.discard(Attempt(make_claim(), 0.0))
    assert metrics.results_discarded == 0
    settler.discard(_ended())
    assert metrics.results_discarded == 1


async def test_between_two_calls_handlers_get_one_turn_and_what_they_return_goes_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[float] = []

    async def sleep(seconds: float) -> None:
        turns.append(seconds)
        await asyncio.sleep(seconds)

    monkeypatch.setattr(exchange_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    rig = Rig(registry_of(work=quick), slots=3, poll_min=3600, poll_max=3600)
    claim = make_claim("work")
    rig.engine.queue.append(claim)
    rig.engine.gate.clear()
    async with rig:
        await asyncio.wait_for(rig.engine.called.wait(), 5)
        rig.exchange.hint()  # so that there is a reason to ask again at once
        rig.engine.gate.set()
        await rig.until(lambda: claim.fence in rig.engine.settled)
        assert [name for name, _, _ in rig.engine.calls[:2]] == ["claim", "settle"]
    assert set(turns) == {0}


async def test_it_asks_at_the_moment_that_it_is_time_to() -> None:
    rig = _still_rig()
    rig.exchange._next_poll = 100.0
    locked: Any = SimpleNamespace(done=lambda: False)
    conversation = asyncio.ensure_future(rig.exchange._converse(locked))
    called = asyncio.ensure_future(rig.engine.called.wait())
    await asyncio.wait([conversation, called], timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert called.done()
    conversation.cancel()
    await asyncio.wait([conversation])
