"""Results that did not fit a claim: there before the handler is called, or it is not called."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from support.worker_engine import Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext, fetching
from tasker_worker.attempts import Attempt
from tasker_worker.claims import OutcomeKind
from tasker_worker.gateway import Refused, Unavailable
from tasker_worker.testing import make_context


def registry_of(**handlers: Any) -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    return registry


async def given(context: StepContext) -> Any:
    return context.dependency_results


def given_in_thread(context: StepContext) -> Any:
    return context.dependency_results


@pytest.mark.parametrize("handler", [given, given_in_thread])
@pytest.mark.parametrize("there", ['{"small": 1}', ' { "small" : 1 } ', "{}", "{ }"])
async def test_a_handler_is_given_what_its_claim_left_out_one_name_a_call(handler: Any, there: str) -> None:
    async with Rig(registry_of(work=handler)) as rig:
        rig.engine_for_results.results |= {"large": '{"rows": [1, 2]}', 'odd "name"': "null"}
        claim = make_claim("work", dependency_results=there, results_left=["large", 'odd "name"'])
        await rig.work_off(claim)
        left = {"large": {"rows": [1, 2]}, 'odd "name"': None}
        assert rig.engine.result_of(claim) == {**json.loads(there), **left}
        assert rig.engine_for_results.reads == [(claim.fence, "large"), (claim.fence, 'odd "name"')]
        assert rig.engine_for_results.closed == 1


async def test_other_claims_do_not_wait_for_what_is_fetched_and_fetching_goes_one_call_at_a_time() -> None:
    async with Rig(registry_of(work=given)) as rig:
        engine = rig.engine_for_results
        engine.results["large"] = "[]"
        engine.gate.clear()
        waiting = [make_claim("work", results_left=["large", "large"]) for _ in range(3)]
        others = [make_claim("work") for _ in range(20)]
        await rig.work_off(*others, later_than=waiting)
        assert not any(claim.fence in rig.engine.settled for claim in waiting)
        engine.gate.set()
        await rig.until(lambda: all(claim.fence in rig.engine.settled for claim in waiting))
        assert all(rig.engine.result_of(claim) == {"large": []} for claim in waiting)
        assert (engine.most_concurrent, len(engine.reads)) == (1, 6)
        assert engine.closed == 1


async def test_a_handler_is_not_called_when_the_lease_is_gone_by_then() -> None:
    called: list[Any] = []
    async with Rig(registry_of(work=called.append)) as rig:
        claim = make_claim("work", results_left=["large"])
        rig.engine_for_results.lost.add(claim.fence)
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: rig.metrics.released == 1)
        await rig.until(lambda: not rig.exchange.held)
        assert (called, rig.executor.running, rig.metrics.results_discarded) == ([], 0, 0)


async def test_a_condition_sees_what_was_fetched() -> None:
    async with Rig(registry_of(work=given)) as rig:
        rig.engine_for_results.results["check"] = '{"score": 7}'
        more = {"results_left": ["check"], "attempt": 1}
        runs = make_claim("work", condition="results.check.score > 5", **more)
        skipped = make_claim("work", condition="results.check.score > 7", **more)
        await rig.work_off(runs, skipped)
        assert rig.engine.result_of(runs) == {"check": {"score": 7}}
        assert rig.engine.settled[skipped.fence].kind is OutcomeKind.SKIP


async def test_results_are_fetched_for_every_attempt() -> None:
    async with Rig(registry_of(work=given)) as rig:
        rig.engine_for_results.results["large"] = "5"
        claim = make_claim("work", results_left=["large"], attempt=3)
        await rig.work_off(claim)
        assert rig.engine.result_of(claim) == {"large": 5}


async def test_fetching_goes_on_when_the_database_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(registry_of(work=given)) as rig:
        engine = rig.engine_for_results
        engine.results["large"] = "5"
        engine.read_faults.extend([Unavailable("down"), Unavailable("down")])
        claim = make_claim("work", results_left=["large"])
        await rig.work_off(claim)
        assert rig.engine.result_of(claim) == {"large": 5}
        assert len(engine.reads) == 3
        assert caplog.text.count("a result that a step needs could not be fetched; trying again") == 2


async def test_a_step_is_given_back_when_its_results_cannot_be_fetched_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "_PATIENCE_SECONDS", 0.0)
    async with Rig(registry_of(work=given)) as rig:
        rig.engine_for_results.read_faults.append(Unavailable("no such function"))
        claim = make_claim("work", results_left=["large"])
        await rig.work_off(claim)
        assert rig.engine.settled[claim.fence].kind is OutcomeKind.RELEASE
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == "a result that a step needs could not be fetched; the step is given back"


async def test_what_the_database_refuses_to_tell_fails_the_attempt() -> None:
    async with Rig(registry_of(work=given)) as rig:
        rig.engine_for_results.read_faults.append(Refused("no such step"))
        claim = make_claim("work", results_left=["large"])
        await rig.work_off(claim)
        error = rig.engine.error_of(claim)
        assert (error.error_type, error.message, error.retryable) == ("DatabaseError", "no such step", True)


async def test_fetching_ends_when_the_lease_is_lost_meanwhile() -> None:
    called: list[Any] = []
    async with Rig(registry_of(work=called.append)) as rig:
        engine = rig.engine_for_results
        engine.read_faults.extend(Unavailable("down") for _ in range(1000))
        claim = make_claim("work", results_left=["large"])
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(lambda: len(engine.reads) >= 2)
        assert rig.exchange.held[claim.fence].lose()
        await rig.until(lambda: not rig.exchange.held)
        assert called == []
        assert len(engine.reads) < 10


async def test_a_step_that_is_released_while_it_is_fetched_for_stops_waiting() -> None:
    async with Rig(registry_of(work=given)) as rig:
        engine = rig.engine_for_results
        engine.gate.clear()
        claim = make_claim("work", results_left=["large"])
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        async with asyncio.timeout(5):
            await engine.called.wait()
        rig.executor.release(rig.exchange.held[claim.fence])
        await rig.until(lambda: not rig.exchange.held)
        assert rig.engine.settled[claim.fence].kind is OutcomeKind.RELEASE
        await rig.until(lambda: engine.closed == 1)
        assert rig.executor.running == 0


async def test_a_step_that_is_given_back_before_its_turn_is_not_prepared() -> None:
    """As the lease thread does when a handler blocks the loop that would begin it."""
    async with Rig(registry_of(work=given)) as rig:
        claim = make_claim("work", results_left=["large"])
        attempt = Attempt(claim, 0.0)
        assert attempt.give_back()
        rig.executor.start([attempt])
        await rig.until(lambda: rig.metrics.released == 1)
        assert rig.engine_for_results.reads == []
        await rig.until(lambda: claim.fence in rig.engine.settled)


async def test_the_time_that_preparing_takes_is_not_the_handler_s() -> None:
    async with Rig(registry_of(work=given_in_thread)) as rig:
        engine = rig.engine_for_results
        engine.results["large"] = "5"
        engine.gate.clear()
        claim = make_claim("work", results_left=["large"], timeout_ms=60_000)
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        async with asyncio.timeout(5):
            await engine.called.wait()
        rig.exchange.held[claim.fence].claimed_at -= 100
        engine.gate.set()
        await rig.until(lambda: claim.fence in rig.engine.settled)
        assert rig.engine.result_of(claim) == {"large": 5}


def test_a_context_has_the_texts_that_it_was_made_of_before_and_after_they_are_read() -> None:
    context = make_context(task_context={"a": 1}, dependency_results={"b": 2})
    assert context.json_texts() == ('{"a":1}', '{"b":2}')
    context.add_results({})
    assert (context.task_context, context.dependency_results) == ({"a": 1}, {"b": 2})
    assert [json.loads(text) for text in context.json_texts()] == [{"a": 1}, {"b": 2}]
