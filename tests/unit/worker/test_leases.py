"""The lease thread, driven by hand on a clock of its own."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from support.worker_engine import NOTHING_LOST, MemoryLeaseEngine, Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext
from tasker_worker.attempts import Attempt, AttemptState
from tasker_worker.claims import RELEASE, Outcome, OutcomeKind, Settlement
from tasker_worker.gateway import Offer, Unavailable
from tasker_worker.leases import LeaseKeeper, _place_of


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


class Keeper:
    """A lease keeper over a rig, ticking only when told to."""

    def __init__(self, rig: Rig, lease_seconds: float = 30.0, began: float | None = None) -> None:
        self.rig = rig
        self.engine = MemoryLeaseEngine()
        self.clock = Clock()
        if began is not None:
            self.clock.now = began
        self.revision = 1
        self.settlements: list[Settlement] = []
        offer = Offer("default", "worker", "pool", 10, "1.0.0", ["work"], lease_seconds)
        self.keeper = LeaseKeeper(
            self.engine,
            offer=lambda: offer,
            offered_revision=1,
            offer_revision=lambda: self.revision,
            held=rig.exchange.held,
            settle=self.settlements.extend,
            on_draining=rig.exchange.set_draining,
            watch=rig.executor.watch,
            loop=asyncio.get_running_loop(),
            metrics=rig.metrics,
            clock=self.clock,
        )

    async def tick(self, seconds: float = 0.0) -> None:
        """Move the clock, tick, and let the loop do what it was asked."""
        self.clock.now += seconds
        self.keeper.tick()
        await asyncio.sleep(0)


class Waiting:
    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.contexts: list[StepContext] = []

    async def __call__(self, context: StepContext) -> Any:
        self.contexts.append(context)
        await self.go.wait()
        return "done"


async def _holding(rig: Rig, handler: Waiting, count: int) -> list[Attempt]:
    claims = [make_claim("work") for _ in range(count)]
    rig.engine.queue.extend(claims)
    rig.exchange.hint()
    await rig.until(lambda: len(handler.contexts) == count)
    return [rig.exchange.held[claim.fence] for claim in claims]


def _registry(handler: Any) -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.register("work", handler)
    return registry


async def test_leases_are_renewed_every_third_of_their_time_with_all_that_is_held() -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        attempts = await _holding(rig, handler, 2)
        await keeper.tick(9.9)
        assert keeper.engine.renewals == []
        await keeper.tick(0.2)
        assert keeper.engine.renewals == [[(a.claim.step_id, a.claim.fence) for a in attempts]]
        assert keeper.keeper.valid_until == keeper.clock.now + 30
        await keeper.tick(10.1)
        assert len(keeper.engine.renewals) == 2


async def test_a_lease_counts_from_before_the_call_that_renewed_it() -> None:
    """The database may have renewed at once and been slow to say so."""
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)

        def answer_slowly() -> None:
            keeper.clock.now += 4

        keeper.engine.during_renewal = answer_slowly
        await keeper.tick(11)
        assert keeper.keeper.valid_until == keeper.clock.now - 4 + 30
        await keeper.tick(5.9)
        assert len(keeper.engine.renewals) == 1
        await keeper.tick(0.2)
        assert len(keeper.engine.renewals) == 2


async def test_claims_that_never_arrived_are_given_back_and_those_under_way_are_not_unknown() -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        [attempt] = await _holding(rig, handler, 1)
        lost = make_claim("work")
        keeper.engine.renewal = NOTHING_LOST._replace(unknown_step_ids=[lost.step_id], unknown_fences=[lost.fence])
        await keeper.tick(11)
        assert [(each.step_id, each.fence, each.outcome.kind) for each in keeper.settlements] == [
            (lost.step_id, lost.fence, OutcomeKind.RELEASE)
        ]
        await keeper.tick(11)
        assert keeper.engine.claiming_since == [None, NOTHING_LOST.renewed_at]
        assert attempt.state is AttemptState.RUNNING


async def test_a_claim_call_under_way_for_half_a_lease_is_given_up_by_the_next_renewal() -> None:
    handler = Waiting()
    async with Rig(_registry(handler), slots=1) as rig:
        keeper = Keeper(rig)
        rig.engine.gate.clear()
        rig.engine.called.clear()
        await asyncio.wait_for(rig.engine.called.wait(), 5)
        late = make_claim("work")
        rig.engine.queue.append(late)
        await keeper.tick(11)
        await keeper.tick(11)
        rig.engine.gate.set()
        await rig.until(lambda: late.fence in rig.engine.settled)
        assert rig.engine.settled[late.fence].kind is OutcomeKind.RELEASE
        assert handler.contexts == []


async def test_leases_that_run_out_while_a_renewal_hangs_let_no_claim_start_until_they_are_renewed() -> None:
    handler = Waiting()
    async with Rig(_registry(handler), slots=1) as rig:
        keeper = Keeper(rig)
        rig.engine.gate.clear()
        rig.engine.called.clear()
        await asyncio.wait_for(rig.engine.called.wait(), 5)
        late, later = make_claim("work"), make_claim("work")
        rig.engine.queue.append(late)
        rig.exchange.held.valid_until = 0.0  # as the clock has it; the lease thread has not come to see it
        rig.engine.gate.set()
        await rig.until(lambda: late.fence in rig.engine.settled)
        assert rig.engine.settled[late.fence].kind is OutcomeKind.RELEASE
        rig.engine.queue.append(later)
        rig.exchange.hint()
        before = len(rig.engine.calls)
        await rig.until(lambda: rig.exchange._waiter is not None)
        assert [limit for _, _, limit in rig.engine.calls[before:] if limit] == []
        assert handler.contexts == []
        await keeper.tick(11)
        await rig.until(lambda: len(handler.contexts) == 1)


async def test_results_that_are_not_settled_yet_are_renewed_too() -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        [attempt] = await _holding(rig, handler, 1)
        rig.engine.gate.clear()
        handler.go.set()
        await rig.until(lambda: rig.exchange.outcomes_waiting == 1)
        await keeper.tick(11)
        assert keeper.engine.renewals == [[(attempt.claim.step_id, attempt.claim.fence)]]


async def test_a_renewal_that_fails_is_tried_again_soon_and_leases_that_run_out_are_told_to_handlers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        [attempt] = await _holding(rig, handler, 1)
        keeper.engine.faults.extend(Unavailable("down") for _ in range(100))
        await keeper.tick(10.1)
        failures = rig.metrics.renewal_failures
        assert failures == 1
        await keeper.tick(0.6)
        assert rig.metrics.renewal_failures == 2
        assert not attempt.context.cancelled
        await keeper.tick(19.5)
        assert attempt.state is AttemptState.EXPIRED
        assert handler.contexts[0].cancelled
        assert rig.metrics.leases_lost == 1
        await keeper.tick(0.3)
        assert caplog.text.count("the leases ran out before they could be renewed") == 1
        keeper.engine.faults.clear()
        await keeper.tick(1)
        assert keeper.keeper.valid_until == keeper.clock.now + 30


async def test_fences_that_the_database_calls_lost_are_told_to_their_handlers(caplog: pytest.LogCaptureFixture) -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        first, second = await _holding(rig, handler, 2)
        keeper.engine.renewal = NOTHING_LOST._replace(lost_fences=[first.claim.fence])
        await keeper.tick(11)
        assert (first.state, second.state) == (AttemptState.LOST, AttemptState.RUNNING)
        assert first.context.cancelled
        assert rig.metrics.leases_lost == 1
        assert "the lease of a running step is lost; its handler is cancelled" in caplog.text
        keeper.engine.renewal = NOTHING_LOST
        await keeper.tick(11)
        assert keeper.engine.renewals[-1] == [(second.claim.step_id, second.claim.fence)]


async def test_an_unknown_worker_registers_again() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        keeper.engine.renewal = NOTHING_LOST._replace(known=False)
        await keeper.tick(11)
        assert [offer.worker for offer in keeper.engine.registered] == ["worker"]


async def test_a_changed_offer_is_told_within_a_tick_and_until_it_is_heard() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        await keeper.tick()
        assert keeper.engine.registered == []
        keeper.revision = 2
        keeper.engine.faults.append(Unavailable("down"))
        await keeper.tick()
        assert keeper.engine.registered == []
        await keeper.tick()
        await keeper.tick()
        assert len(keeper.engine.registered) == 1


async def test_draining_reaches_the_exchange_and_is_taken_back() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        for draining in (True, False):
            keeper.engine.renewal = NOTHING_LOST._replace(draining=draining)
            await keeper.tick(11)
            assert rig.exchange.draining is draining


async def test_a_blocked_loop_is_reported_once_with_the_step_at_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        attempt = Attempt(make_claim("work", timeout_ms=5_000), keeper.clock.now)
        keeper.keeper.tick()  # asks the loop, which gets no chance to answer
        rig.executor.watch.stepping = attempt
        for seconds in (0.9, 0.2, 0.5):
            keeper.clock.now += seconds
            keeper.keeper.tick()
        assert rig.metrics.loop_blocked == 1
        assert keeper.keeper.loop_lag == pytest.approx(1.6)
        [record] = [each for each in caplog.records if "the event loop is blocked" in each.message]
        assert record.tasker_fields["step"] == "work"  # type: ignore[attr-defined]
        assert ".py:" in record.tasker_fields["at"]  # type: ignore[attr-defined]
        assert keeper.settlements == []
        rig.executor.watch.stepping = None
        await asyncio.sleep(0)
        await keeper.tick()
        await keeper.tick()
        assert keeper.keeper.loop_lag == 0


async def test_a_handler_that_blocks_the_loop_past_its_timeout_is_timed_out_from_outside() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        attempt = Attempt(make_claim("work", timeout_ms=5_000), keeper.clock.now)
        assert attempt.begin()
        keeper.keeper.tick()
        rig.executor.watch.stepping = attempt
        for _ in range(4):
            keeper.clock.now += 2
            keeper.keeper.tick()
        [settlement] = keeper.settlements
        assert settlement.fence == attempt.claim.fence
        assert attempt.state is AttemptState.UNSURE
        assert settlement.outcome.message == "step 'work' exceeded its timeout of 5 s"
        assert attempt.context.cancelled
        rig.executor.watch.stepping = None


async def test_what_waits_for_a_loop_that_is_blocked_for_half_a_lease_is_given_back_and_never_started() -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        keeper.keeper.tick()  # asks the loop, which gets no chance to answer
        rig.exchange.held.call_begins(keeper.clock.now)
        attempts, _ = rig.exchange.held.call_ends([make_claim("work") for _ in range(2)], keeper.clock.now)
        assert attempts[0].begin()
        rig.executor.start(attempts[1:])
        for seconds in (9, 6, 0.1, 0.1):
            assert keeper.settlements == []
            keeper.clock.now += seconds
            keeper.keeper.tick()
            if keeper.keeper.loop_lag > 15:
                break
        assert [(each.fence, each.outcome) for each in keeper.settlements] == [(attempts[1].claim.fence, RELEASE)]
        keeper.keeper.tick()
        assert len(keeper.settlements) == 1
        await rig.until(lambda: attempts[1].claim.fence in rig.engine.settled)
        assert handler.contexts == []
        assert attempts[0].state is AttemptState.RUNNING
        rig.exchange.held.drop(attempts[0])


async def test_a_claim_that_nobody_comes_to_run_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        rig.exchange.held.call_begins(keeper.clock.now)
        [attempt], _ = rig.exchange.held.call_ends([make_claim("work")], keeper.clock.now)
        await keeper.tick(9)
        assert rig.metrics.steps_starved == 0
        await keeper.tick(2)
        await keeper.tick(2)
        assert rig.metrics.steps_starved == 1
        assert "a claimed step waits for its handler to be called" in caplog.text
        rig.exchange.held.drop(attempt)


async def test_the_thread_lives_through_anything_and_closes_its_connection() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        keeper.revision = 2
        keeper.engine.faults.append(ValueError("unforeseen"))
        keeper.keeper.start()
        await rig.until(lambda: len(keeper.engine.registered) == 1)
        alive = [keeper.keeper.alive]
        await asyncio.to_thread(keeper.keeper.stop, 5)
        alive.append(keeper.keeper.alive)
        assert alive == [True, False]
        assert keeper.engine.closed


async def test_a_renewal_that_fails_is_tried_again_after_half_a_second_or_a_tenth_of_a_short_lease() -> None:
    async with Rig(_registry(Waiting())) as rig:
        for lease_seconds, pause in ((30.0, 0.5), (2.0, 0.2)):
            keeper = Keeper(rig, lease_seconds)
            keeper.engine.faults.append(Unavailable("down"))
            await keeper.tick(lease_seconds / 3)
            assert keeper.engine.renewals == []
            await keeper.tick(pause - 0.01)
            assert keeper.engine.renewals == []
            await keeper.tick(0.02)
            assert keeper.engine.renewals == [[]]
        assert (rig.metrics.renewals, rig.metrics.renewal_failures) == (4, 2)


async def test_leases_run_out_at_the_moment_they_are_said_to_and_each_time_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Waiting()
    async with Rig(_registry(handler)) as rig:
        keeper = Keeper(rig)
        assert keeper.keeper.valid_until == keeper.clock.now + 30
        for times in (1, 2):
            [attempt] = await _holding(rig, handler, 1)
            handler.contexts.clear()
            keeper.engine.faults.extend(Unavailable("down") for _ in range(1000))
            keeper.clock.now = keeper.keeper.valid_until - 0.01
            await keeper.tick()
            states = [attempt.state]
            keeper.clock.now = keeper.keeper.valid_until
            await keeper.tick()
            states.append(attempt.state)
            assert states == [AttemptState.RUNNING, AttemptState.EXPIRED]
            await keeper.tick(5)
            assert caplog.text.count("the leases ran out before they could be renewed") == times
            keeper.engine.faults.clear()
            await keeper.tick(1)


async def test_a_renewal_that_fails_is_logged_once_until_one_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tasker_worker")
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        for _ in range(2):
            keeper.engine.faults.extend(Unavailable("down") for _ in range(3))
            for _ in range(5):
                await keeper.tick(10)
    failed, mended = "leases could not be renewed; trying again", "leases are renewed again"
    assert [text for text in caplog.messages if text in (failed, mended)] == [failed, mended] * 2


async def test_a_lease_that_is_lost_after_its_step_ended_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        rig.exchange.held.call_begins(keeper.clock.now)
        attempts, _ = rig.exchange.held.call_ends([make_claim("work") for _ in range(2)], keeper.clock.now)
        attempts[0].finish(Outcome(OutcomeKind.COMPLETE, "null"))
        keeper.engine.renewal = NOTHING_LOST._replace(lost_fences=[each.claim.fence for each in attempts])
        await keeper.tick(11)
        assert caplog.text.count("the lease of a running step is lost") == 1
        assert rig.metrics.leases_lost == 2
        for attempt in attempts:
            rig.exchange.held.drop(attempt)


async def test_the_loop_is_asked_once_at_a_time_and_its_lag_is_what_it_took() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        asked: list[Any] = []
        assert keeper.keeper.loop_lag == 0.0
        keeper.keeper._loop = SimpleNamespace(call_soon_threadsafe=lambda *call: asked.append(call))  # type: ignore[assignment]
        keeper.keeper.tick()
        keeper.clock.now += 1.0
        keeper.keeper.tick()
        assert (len(asked), rig.metrics.loop_blocked) == (1, 0)
        keeper.clock.now += 0.5
        for function, *arguments in asked:
            function(*arguments)
        assert keeper.keeper.loop_lag == pytest.approx(1.5)
        keeper.keeper.tick()
        assert (len(asked), rig.metrics.loop_blocked) == (2, 0)
        keeper.clock.now += 1.1
        keeper.keeper.tick()
        assert rig.metrics.loop_blocked == 1
        asked[1][0](*asked[1][1:])
        keeper.keeper.tick()
        keeper.clock.now += 1.1
        keeper.keeper.tick()
        assert rig.metrics.loop_blocked == 2, "each time that it is blocked counts"


async def test_a_loop_that_is_closed_is_told_nothing() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        closed = asyncio.new_event_loop()
        closed.close()
        keeper.keeper._loop = closed
        await keeper.tick(11)
        assert len(keeper.engine.renewals) == 1


@pytest.mark.parametrize(("seconds", "timed_out"), [(5.0, False), (5.001, True)])
async def test_a_step_that_blocks_the_loop_has_all_of_its_time(seconds: float, timed_out: bool) -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        attempt = Attempt(make_claim("work", timeout_ms=5_000), keeper.clock.now)
        assert attempt.begin()
        attempt.began_at = keeper.clock.now = 1000.0
        keeper.keeper.tick()
        rig.executor.watch.stepping = attempt
        keeper.clock.now += seconds
        keeper.keeper.tick()
        assert [each.outcome.error_type for each in keeper.settlements] == ["Timeout"] * timed_out
        rig.executor.watch.stepping = None


async def test_claims_are_looked_over_once_a_second_and_warned_of_after_ten() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig, began=1000.0)
        await keeper.tick()  # looks them over at 1000, 1001, …
        held = rig.exchange.held
        held.call_begins(1000.0)
        attempts, _ = held.call_ends([make_claim("work") for _ in range(3)], 1000.0)
        assert attempts[1].begin()
        assert attempts[2].prepare(), "what it waits for is no free slot"
        await keeper.tick(10.0)
        assert rig.metrics.steps_starved == 0, "ten seconds are not more than ten"
        await keeper.tick(0.9)
        assert rig.metrics.steps_starved == 0, "not looked at again before a second has passed"
        await keeper.tick(0.1)
        assert rig.metrics.steps_starved == 1
        for attempt in attempts:
            held.drop(attempt)


async def test_half_a_lease_is_how_long_a_claim_call_may_take() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        held = rig.exchange.held
        asked: list[float] = []
        to_renew = held.to_renew

        def noted(now: float, patience: float) -> Any:
            asked.append(patience)
            return to_renew(now, patience)

        held.to_renew = noted  # type: ignore[method-assign]
        await keeper.tick(11)
        assert asked == [15.0]


def test_where_a_thread_is_right_now_is_its_file_line_and_function() -> None:
    assert re.fullmatch(r".*leases\.py:\d+ in _place_of", _place_of(threading.get_ident()) or "")
    assert _place_of(-1) is None


async def test_a_thread_that_cannot_be_started_need_not_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)

        def none_left(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                keeper.keeper.start()
        keeper.keeper.stop(5)
        assert not keeper.keeper.alive


async def test_the_thread_ticks_four_times_a_second_and_keeps_no_program_from_ending() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        pauses: list[float] = []

        class Stopping(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                pauses.append(timeout)
                return super().wait(0)

        keeper.keeper._stopping = Stopping()
        ticked = threading.Event()
        keeper.keeper.tick = ticked.set  # type: ignore[method-assign]
        keeper.keeper.start()
        try:
            assert await asyncio.to_thread(ticked.wait, 5)
            assert keeper.keeper._thread is not None
            assert keeper.keeper._thread.daemon
        finally:
            await asyncio.to_thread(keeper.keeper.stop, 5)
        assert set(pauses) == {0.25}


async def test_stopping_waits_for_the_thread_and_no_longer_than_was_said() -> None:
    async with Rig(_registry(Waiting())) as rig:
        keeper = Keeper(rig)
        waited: list[float] = []
        keeper.keeper._thread = SimpleNamespace(join=waited.append)  # type: ignore[assignment]
        keeper.keeper.stop(5)
        assert waited == [5]
