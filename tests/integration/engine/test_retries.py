"""A failed step is tried again when its template says so, at the time it says, and never more often."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from support.engine import NO_DELAY, SOON, Lab, failure, step, success
from tasker.model.retry import RETRY_AFTER_CAP_MS, Backoff, retry_delay_ms


@pytest.mark.parametrize("backoff", Backoff)
async def test_the_database_computes_the_delays_of_the_model(lab: Lab, backoff: Backoff) -> None:
    """For every number of failures there can be, with maxima low, high and in the way."""
    rows = await lab.rows(
        """select base, maximum, failures,
            extract(epoch from tasker.retry_delay(%s::text::tasker.backoff, base, maximum, 0, failures, null))::float8
                * 1000 as ms
        from unnest(array[0, 1, 1000, 86400000]) base, unnest(array[0, 1, 30000, 86400000]) maximum,
            generate_series(1, 100) failures""",
        backoff,
    )
    assert len(rows) == 1600
    for row in rows:
        expected = retry_delay_ms(
            backoff, base_ms=row["base"], max_ms=row["maximum"], failures=row["failures"], jitter=0
        )
        assert row["ms"] == pytest.approx(expected, abs=0.001), row


async def test_the_database_moves_delays_by_at_most_the_jitter_and_by_all_of_it(lab: Lab) -> None:
    rows = await lab.rows(
        "select extract(epoch from tasker.retry_delay('linear', 1000, 100000, 0.25, 4, null))::float8 as seconds"
        " from generate_series(1, 400)"
    )
    delays = [row["seconds"] for row in rows]
    assert 3.0 <= min(delays) < 3.2 and 4.8 < max(delays) <= 5.0


@pytest.mark.parametrize(
    ("given", "expected_ms"),
    [(0, 0), (1500, 1500), (10**9, RETRY_AFTER_CAP_MS), (-5, 0), (0.5, 0.5)],
)
async def test_retry_after_is_the_same_in_the_database(lab: Lab, given: float, expected_ms: float) -> None:
    delay = await lab.value("select tasker.retry_delay('exponential', 1000, 2000, 0.5, 3, %s::numeric)", given)
    assert delay == timedelta(milliseconds=expected_ms)
    assert expected_ms == retry_delay_ms(
        Backoff.EXPONENTIAL, base_ms=1000, max_ms=2000, failures=3, retry_after_ms=given
    )


async def test_the_cap_of_retry_after_is_a_setting(lab: Lab) -> None:
    await lab.put_setting("retry_after_cap_ms", 250)
    assert await lab.value("select tasker.retry_delay('none', 0, 0, 0, 1, 10000)") == timedelta(milliseconds=250)


@pytest.mark.parametrize("backoff", [backoff for backoff in Backoff if backoff is not Backoff.NONE])
async def test_a_step_waits_for_its_backoff_and_is_then_tried_again(lab: Lab, backoff: Backoff) -> None:
    now = await lab.clock.freeze()
    retry = {"backoff": backoff.value, "baseMs": 500, "maxMs": 1200, "jitter": 0, "maxAttempts": 5}
    task = await lab.run(step("a", retry=retry))
    worker = await lab.worker()
    for attempt in range(1, 5):
        claim = await worker.claim_one()
        assert claim.attempt == attempt
        settlement = await worker.settle(failure(claim))
        assert (settlement.ready_left, settlement.tasks_finished) == (0, 0)
        wait = timedelta(milliseconds=retry_delay_ms(backoff, base_ms=500, max_ms=1200, failures=attempt))
        assert (await lab.steps(task))["a"]["next_attempt_at"] == now + wait
        assert await lab.state(task) == "waiting_for_retry"
        await lab.clock.set(now + wait - timedelta(milliseconds=1))
        assert await lab.engine.workers.sweep() == {} and await worker.claim() == []
        now = await lab.clock.set(now + wait)
        assert await lab.engine.workers.sweep() == {"retries_due": 1}
        assert await lab.state(task) == "steps_in_process"
        assert (await lab.steps(task))["a"]["enqueued_at"] == now
    settlement = await worker.settle(success(await worker.claim_one(), "at last"))
    assert settlement.tasks_finished == 1
    row = (await lab.steps(task))["a"]
    assert (row["state"], row["attempts"], row["result"], row["error"]) == ("complete", 5, "at last", None)
    assert await lab.value("select count(*) from tasker.timers") == 0


async def test_a_retry_without_delay_is_ready_in_the_call_that_settles_the_failure(lab: Lab) -> None:
    task = await lab.run(step("a", retry=NO_DELAY))
    worker = await lab.worker()
    settlement = await worker.settle(failure(await worker.claim_one()))
    assert (settlement.ready_left, settlement.tasks_finished) == (1, 0)
    assert (await lab.step_states(task), await lab.queue()) == ({"a": "enqueued"}, ["a"])
    assert await lab.value("select count(*) from tasker.timers") == 0
    settlement = await worker.settle(failure(await worker.claim_one()), claim_limit=1)
    assert [(claim.step, claim.attempt) for claim in settlement.claims] == [("a", 3)]


async def test_the_log_shows_a_retry_hop_by_hop(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=NO_DELAY))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), error_type="Timeout"))
    await lab.engine.workers.sweep()
    assert (await lab.step_log(task, "a"))[2:] == [
        "in_progress -submit_error-> enqueued_as_error_for_orchestration",
        "enqueued_as_error_for_orchestration -wait_for_retry-> waiting_for_retry",
        "waiting_for_retry -retry-> enqueued",
    ]
    assert (await lab.task_log(task))[3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -retry_pending-> waiting_for_retry",
        "waiting_for_retry -retry_ready-> enqueuing_steps",
        "enqueuing_steps -steps_enqueued-> steps_in_process",
    ]
    (failed,) = await lab.rows("select attempt, metadata from tasker.step_transitions where event = 'submit_error'")
    assert failed == {"attempt": 1, "metadata": {"error_type": "Timeout"}}


async def test_a_retry_beside_running_steps_does_not_move_the_task_twice(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=SOON), step("b"))
    worker = await lab.worker()
    a, b = await worker.claim()
    await worker.settle(failure(a))
    assert await lab.state(task) == "steps_in_process"
    await lab.clock.advance(0.001)
    assert await lab.engine.workers.sweep() == {"retries_due": 1}
    assert (await lab.task_log(task))[3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -steps_running-> steps_in_process",
    ]
    await worker.settle(success(b), success(await worker.claim_one()))
    assert await lab.state(task) == "complete"


async def test_when_the_attempts_are_spent_the_step_is_in_error(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"maxAttempts": 2, **NO_DELAY}))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), "first"))
    await lab.engine.workers.sweep()
    settlement = await worker.settle(failure(await worker.claim_one(), "second"))
    assert settlement.tasks_finished == 1
    assert await lab.step_states(task) == {"a": "error"}
    summary = await lab.engine.tasks.read(task)
    assert summary.state == "error" and summary.error is not None and summary.error["message"] == "second"
    assert [(each.attempt, each.message, each.final) for each in summary.failures] == [
        (2, "second", True),
        (1, "first", False),
    ]
    await lab.clock.advance(100_000)
    assert await lab.engine.workers.sweep() == {"workers_expired": 1}
    assert await lab.queue() == []


@pytest.mark.parametrize(
    ("retry", "payload"),
    [
        pytest.param({"maxAttempts": 9}, {"retryable": False}, id="the handler says so"),
        pytest.param({"maxAttempts": 9, "retryable": False}, {"retryable": True}, id="the template says so"),
        pytest.param({"maxAttempts": 1}, {"retryable": True}, id="one attempt is all"),
        pytest.param({"maxAttempts": 9}, {"retryable": False, "retry_after_ms": 5}, id="whatever Retry-After asks for"),
    ],
)
async def test_what_is_not_retryable_is_in_error_at_once(
    lab: Lab, retry: dict[str, Any], payload: dict[str, Any]
) -> None:
    task = await lab.run(step("a", retry=retry))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), **payload))
    assert (await lab.step_states(task), await lab.state(task)) == ({"a": "error"}, "error")
    assert await lab.value("select count(*) from tasker.timers") == 0


async def test_retry_after_wins_over_the_backoff_and_is_capped(lab: Lab) -> None:
    now = await lab.clock.freeze()
    retry = {"backoff": "exponential", "baseMs": 1000, "maxMs": 2000, "jitter": 1, "maxAttempts": 9}
    task = await lab.run(step("a", retry=retry))
    worker = await lab.worker()
    for asked, granted in ((90_000, 90_000), (1, 1), (86_400_000, RETRY_AFTER_CAP_MS)):
        await worker.settle(failure(await worker.claim_one(), retry_after_ms=asked))
        assert (await lab.steps(task))["a"]["next_attempt_at"] == now + timedelta(milliseconds=granted)
        now = await lab.clock.set(now + timedelta(milliseconds=granted))
        await worker.register()
        await lab.engine.workers.sweep()


async def test_a_failure_that_says_nothing_else_is_retryable(lab: Lab) -> None:
    task = await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    await lab.execute(
        "select * from tasker.settle_steps('shop', 'worker-1', array[%s]::bigint[], array[%s]::bigint[],"
        " array['fail'], null, null, null, null, null, null, null, null, 0)",
        claim.step_id,
        claim.fence,
    )
    assert await lab.step_states(task) == {"a": "waiting_for_retry"}
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert (failed.error_type, failed.message) == ("HandlerError", "")
