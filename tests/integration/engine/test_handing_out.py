"""Whom a settlement hands what became ready to, in what order and how much of it."""

from __future__ import annotations

import pytest

from support.engine import (
    NO_DELAY,
    SETTLE,
    SOON,
    Lab,
    connect,
    failure,
    release,
    settle_arguments,
    step,
    success,
)


async def test_the_run_of_higher_priority_goes_first_into_the_callers_hands(lab: Lab) -> None:
    await lab.template(step("a"), step("b", "a"), step("c", "a"))
    tasks = {priority: await lab.submit(priority=priority) for priority in (1, 3, 2)}
    worker = await lab.worker()
    settlement = await worker.settle(*map(success, await worker.claim()), claim_limit=3)
    assert [(claim.task_uuid, claim.step) for claim in settlement.claims] == [
        (tasks[3], "b"),
        (tasks[3], "c"),
        (tasks[2], "b"),
    ]


async def test_no_more_than_asked_for_comes_from_what_became_ready_and_from_the_queue_together(lab: Lab) -> None:
    await lab.template(step("a"), step("b", "a"))
    for _ in range(5):
        await lab.submit()
    worker = await lab.worker()
    (first,) = await worker.claim(1)
    settlement = await worker.settle(success(first), claim_limit=3)
    assert [claim.step for claim in settlement.claims] == ["b", "a", "a"]
    assert len((await worker.settle(release(settlement.claims[1]), claim_limit=1)).claims) == 1
    assert len((await worker.settle(claim_limit=1)).claims) == 1
    assert len(await lab.queue()) == 1


@pytest.mark.parametrize("limit", [None, 0, -1, -5])
async def test_who_asks_for_nothing_gets_nothing(lab: Lab, limit: int | None) -> None:
    await lab.template(step("a"), step("b", "a"))
    for _ in range(2):
        await lab.submit()
    worker = await lab.worker()
    (claim,) = await worker.claim(1)
    arguments = {**settle_arguments("worker-1", [success(claim)], 0), "claim_limit": limit}
    rows = await (await lab.connection.execute(SETTLE, arguments)).fetchall()
    assert [row["kind"] for row in rows] == ["summary"]
    assert len(await lab.queue()) == 2


async def test_a_settlement_that_claims_nothing_does_not_wait_for_who_holds_its_worker(lab: Lab) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.workers for update")
        await lab.execute("set lock_timeout = '1ms'")
        assert (await worker.settle(success(claim))).settled == [claim.step_id]


async def test_a_worker_that_went_to_another_namespace_is_handed_nothing_of_the_first(lab: Lab) -> None:
    await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    await worker.register(namespace="other")
    settlement = await worker.settle(success(claim), claim_limit=5)
    assert (settlement.settled, settlement.claims, settlement.ready_left) == ([claim.step_id], [], 1)
    assert await lab.queue() == ["b"]


async def test_a_retry_without_delay_that_is_handed_out_at_once_is_not_left_over(lab: Lab) -> None:
    await lab.run(step("a", retry=NO_DELAY), step("b", retry=NO_DELAY))
    worker = await lab.worker()
    settlement = await worker.settle(*map(failure, await worker.claim()), claim_limit=1)
    assert len(settlement.claims) == 1 and settlement.ready_left == 1


async def test_a_released_step_waits_from_then_on_and_keeps_its_last_error(lab: Lab) -> None:
    began = await lab.clock.freeze()
    task = await lab.run(step("a", retry=NO_DELAY), step("b"), step("c"))
    worker = await lab.worker()
    a, b, c = await worker.claim()
    await worker.settle(failure(a, "no luck"))
    (again,) = await worker.claim()
    log = await lab.task_log(task)
    now = await lab.clock.advance(5)
    await worker.settle(release(again))
    assert await lab.task_log(task) == log, "the run has not moved"
    await worker.settle(success(b), failure(c))
    rows = await lab.steps(task)
    assert (rows["a"]["enqueued_at"], rows["a"]["error"]["message"]) == (now, "no luck")
    assert rows["b"]["enqueued_at"] == rows["c"]["enqueued_at"] == began
    assert (await worker.claim_one()).row["ready_at"] == now


async def test_a_success_without_a_result_has_null_for_one(lab: Lab) -> None:
    task = await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    arguments = {**settle_arguments("worker-1", [success(claim)], 0), "results": None}
    await lab.connection.execute(SETTLE, arguments)
    summary = await lab.engine.tasks.read(task)
    assert summary.leaf_results == {"a": None} and not summary.leaf_results_truncated
    assert await lab.value("select result::text from tasker.steps") == "null"


async def test_a_run_tells_of_the_failure_that_was_final_and_came_last(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("other"), name="other")
    other = await lab.submit("other")
    task = await lab.run(step("first"), step("second"), step("third", retry=SOON), step("late"))
    worker = await lab.worker()
    claims = {(claim.task_uuid, claim.step): claim for claim in await worker.claim()}
    await worker.settle(failure(claims[task, "first"], "one", retryable=False))
    await worker.settle(failure(claims[task, "second"], "two", retryable=False, error_type="Second"))
    await worker.settle(failure(claims[task, "third"], "three"))
    await worker.settle(failure(claims[other, "other"], "four", retryable=False))
    await lab.clock.advance(1)
    await lab.engine.workers.sweep()
    await worker.settle(success(claims[task, "late"]), success(await worker.claim_one()))
    summary = await lab.engine.tasks.read(task)
    assert summary.error == {"reason": "steps_failed", "step": "second", "error_type": "Second", "message": "two"}
    assert [(each.step, each.attempt, each.message, each.final) for each in summary.failures] == [
        ("third", 1, "three", False),
        ("second", 1, "two", True),
        ("first", 1, "one", True),
    ]
