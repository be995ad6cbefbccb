"""Batches: a batchable step's work divided among workers, their places, failures, retries and end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from support.engine import (
    NO_DELAY,
    SOON,
    Claim,
    Lab,
    Outcome,
    SimulatedWorker,
    decision,
    failure,
    release,
    skip,
    step,
    success,
)
from support.invariants import check_invariants


def batch_steps(retry: Any = None, **batch: Any) -> list[Any]:
    return [
        step("divide", type="batchable", batch=batch),
        step("work", "divide", type="batch_worker", retry=retry or {"maxAttempts": 1}),
        step("end", "work", type="deferred_convergence"),
    ]


async def divided(
    lab: Lab, count: int, *, claim_limit: int = 100, **batch: Any
) -> tuple[UUID, SimulatedWorker, list[Claim]]:
    """A run whose work is divided into so many batches, a worker, and what that got in the same call."""
    task = await lab.run(*batch_steps(**batch))
    worker = await lab.worker()
    divide = await worker.claim_one()
    return task, worker, (await worker.create_batches(divide, count, claim_limit=claim_limit)).claims


def names(claims: Sequence[Claim]) -> list[str]:
    return [claim.step for claim in claims]


async def test_a_batchable_step_is_told_how_to_divide(lab: Lab) -> None:
    await lab.run(*batch_steps(batchSize=50, parallelism=2, cursorField="created_at", failureStrategy="isolate"))
    claim = await (await lab.worker()).claim_one()
    assert (claim.row["step_type"], claim.row["batch"]) == (
        "batchable",
        {
            "batch_size": 50,
            "parallelism": 2,
            "cursor_field": "created_at",
            "worker_template": "work",
            "failure_strategy": "isolate",
        },
    )


async def test_each_batch_has_a_worker_and_what_comes_after_waits_for_all(lab: Lab) -> None:
    task, worker, workers = await divided(lab, 3)
    assert names(workers) == ["work_001", "work_002", "work_003"]
    assert [claim.row["inputs"] for claim in workers] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert {claim.row["step_type"] for claim in workers} == {"batch_worker"}
    counts = (await lab.engine.tasks.read(task)).counts
    assert (counts.total, counts.complete, counts.running, counts.pending) == (5, 1, 3, 1)
    assert await check_invariants(lab.connection) == []
    assert (await worker.settle(*(success(claim, claim.step) for claim in workers[1:]), claim_limit=9)).claims == []
    (end,) = (await worker.settle(success(workers[0], "first"), claim_limit=9)).claims
    results = end.row["dependency_results"]
    assert {name: result for name, result in results.items() if name != "divide"} == {
        "work_001": "first",
        "work_002": "work_002",
        "work_003": "work_003",
    }
    await worker.settle(success(end, "all"))
    assert await lab.state(task) == "complete"
    assert (await lab.engine.tasks.read(task)).leaf_results == {"end": "all"}
    assert await check_invariants(lab.connection) == []


async def test_no_work_is_one_worker_that_stands_for_it(lab: Lab) -> None:
    task = await lab.run(*batch_steps())
    worker = await lab.worker()
    (nothing,) = (await worker.create_batches(await worker.claim_one(), 1, is_no_op=True, claim_limit=9)).claims
    assert nothing.step == "work_000"
    assert (await worker.settle(success(nothing), claim_limit=9)).stale == []
    assert list(await lab.step_states(task)) == ["divide", "end", "work_000"]


async def test_no_more_than_parallelism_are_queued_or_held_at_once(lab: Lab) -> None:
    task, worker, workers = await divided(lab, 7, claim_limit=0, parallelism=3)
    assert workers == []
    assert await lab.queue() == ["work_001", "work_002", "work_003"]
    first, second, third = await worker.claim()
    assert await worker.claim() == []
    assert names((await worker.settle(success(second), claim_limit=9)).claims) == ["work_004"]
    settlement = await worker.settle(success(first), success(third))
    assert (settlement.ready_left, await lab.queue()) == (2, ["work_005", "work_006"])
    assert await check_invariants(lab.connection) == []
    states = await lab.step_states(task)
    assert (states["work_004"], states["work_007"], states["end"]) == ("in_progress", "pending", "pending")
    await worker.deregister()
    assert await (await lab.worker("worker-2")).run_all() == ["work_004", "work_005", "work_006", "work_007", "end"]
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_one_that_waits_for_its_retry_holds_no_place_and_gets_one_when_it_is_due(lab: Lab) -> None:
    await lab.clock.freeze()
    retry = {"maxAttempts": 2, "backoff": "linear", "baseMs": 5000, "jitter": 0}
    task, worker, (first, second) = await divided(lab, 5, parallelism=2, retry=retry)
    (third,) = (await worker.settle(failure(first), claim_limit=9)).claims
    assert third.step == "work_003"
    await lab.clock.advance(6)
    await worker.register()
    await lab.engine.workers.sweep()
    assert await lab.queue() == [], "both places are held"
    assert (await lab.step_states(task))["work_001"] == "waiting_for_retry"
    assert await check_invariants(lab.connection) == []
    (again,) = (await worker.settle(success(second), claim_limit=9)).claims
    assert (again.step, again.attempt) == ("work_001", 2), "before what was never in the queue"
    assert await check_invariants(lab.connection) == []
    settlement = await worker.settle(success(again), success(third), claim_limit=9)
    assert names(settlement.claims) == ["work_004", "work_005"]
    (end,) = (await worker.settle(*map(success, settlement.claims), claim_limit=9)).claims
    await worker.settle(success(end))
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_a_retry_without_delay_waits_for_a_place_too(lab: Lab) -> None:
    task, worker, (first,) = await divided(lab, 2, parallelism=1, retry={"maxAttempts": 2, **NO_DELAY})
    (second,) = (await worker.settle(failure(first), claim_limit=9)).claims
    assert second.step == "work_002"
    assert await check_invariants(lab.connection) == []
    (again,) = (await worker.settle(success(second), claim_limit=9)).claims
    assert (again.step, again.attempt) == ("work_001", 2)
    (end,) = (await worker.settle(success(again), claim_limit=9)).claims
    await worker.settle(success(end))
    assert await lab.state(task) == "complete"


@pytest.mark.parametrize("strategy", ["continue_on_failure", "isolate"])
async def test_a_worker_that_failed_for_good_is_put_up_with(lab: Lab, strategy: str) -> None:
    task, worker, (first, second) = await divided(lab, 2, failureStrategy=strategy)
    assert (await worker.settle(failure(first, "poisoned"), claim_limit=9)).claims == []
    assert await lab.state(task) == "steps_in_process"
    (end,) = (await worker.settle(success(second, 2), claim_limit=9)).claims
    assert "work_001" not in end.row["dependency_results"]
    assert await check_invariants(lab.connection) == []
    assert (await worker.settle(success(end))).tasks_finished == 1
    summary = await lab.engine.tasks.read(task)
    assert (summary.state, summary.counts.failed, summary.counts.complete) == ("complete", 1, 3)
    assert [(failed.step, failed.message, failed.final) for failed in summary.failures] == [
        ("work_001", "poisoned", True)
    ]
    assert await check_invariants(lab.connection) == []


async def test_a_batch_of_which_every_worker_failed_still_goes_on(lab: Lab) -> None:
    task, worker, workers = await divided(lab, 2)
    (end,) = (await worker.settle(*map(failure, workers), claim_limit=9)).claims
    assert end.step == "end"
    await worker.settle(success(end))
    assert await lab.state(task) == "complete"


async def test_fail_fast_cancels_the_other_workers_and_fails_the_run(lab: Lab) -> None:
    task, worker, (first, second, third) = await divided(
        lab, 6, parallelism=3, failureStrategy="fail_fast", retry={"maxAttempts": 2, "backoff": "linear"}
    )
    await worker.settle(success(first), failure(second))
    (fourth,) = await worker.claim(1)
    settlement = await worker.settle(failure(third, "fatal", retryable=False), claim_limit=9)
    assert (settlement.claims, settlement.tasks_finished) == ([], 1)
    assert await lab.step_states(task) == {
        "divide": "complete",
        "end": "pending",
        "work_001": "complete",
        "work_002": "cancelled",
        "work_003": "error",
        "work_004": "cancelled",
        "work_005": "cancelled",
        "work_006": "cancelled",
    }
    assert await lab.step_log(task, "work_004") == [
        "pending -enqueue-> enqueued",
        "enqueued -start-> in_progress",
        "in_progress -cancel-> cancelled",
    ]
    assert (await worker.settle(success(fourth))).stale == [fourth.step_id]
    summary = await lab.engine.tasks.read(task)
    assert (summary.state, summary.error and summary.error["step"]) == ("error", "work_003")
    assert await check_invariants(lab.connection) == []


async def test_fail_fast_spares_what_is_not_of_the_batch(lab: Lab) -> None:
    task = await lab.run(*batch_steps(failureStrategy="fail_fast"), step("beside"))
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    workers = (await worker.create_batches(claims["divide"], 3, claim_limit=9)).claims
    await worker.settle(failure(workers[0]), failure(workers[1]))
    assert await lab.state(task) == "steps_in_process"
    assert await check_invariants(lab.connection) == []
    await worker.settle(success(claims["beside"]))
    assert await lab.state(task) == "error"
    assert await check_invariants(lab.connection) == []


@pytest.mark.parametrize("how", ["cancelled", "past its deadline"])
async def test_a_run_that_is_ended_counts_what_its_batch_had_cancelled_as_well(lab: Lab, how: str) -> None:
    await lab.clock.freeze()
    task = await lab.run(*batch_steps(failureStrategy="fail_fast"), step("beside"), deadline_seconds=60)
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    workers = (await worker.create_batches(claims["divide"], 3, claim_limit=9)).claims
    await worker.settle(failure(workers[0]))
    if how == "cancelled":
        await lab.engine.actions.cancel(task, actor="ann", reason="x")
    else:
        await lab.clock.advance(60)
        await lab.engine.workers.sweep()
    assert await lab.state(task) == ("cancelled" if how == "cancelled" else "error")
    assert (await lab.engine.tasks.read(task)).counts.cancelled == 4, "two workers, the end, and that beside"
    assert await check_invariants(lab.connection) == []


async def test_a_released_worker_keeps_its_place(lab: Lab) -> None:
    _, worker, (first,) = await divided(lab, 2, parallelism=1)
    assert (await worker.settle(release(first))).ready_left == 1
    assert await lab.queue() == ["work_001"]
    assert await check_invariants(lab.connection) == []


async def test_lost_workers_of_a_batch_are_counted_like_failed_ones(lab: Lab) -> None:
    task, worker, (first, _) = await divided(lab, 3, parallelism=2)
    await lab.engine.workers.expire("shop", ["worker-1"], actor="operator", reason="gone")
    assert await lab.queue() == ["work_003"]
    assert await check_invariants(lab.connection) == []
    assert await (await lab.worker("worker-2")).run_all() == ["work_003", "end"]
    assert (await worker.settle(success(first))).stale == [first.step_id]
    assert await lab.state(task) == "complete"


async def test_a_cancelled_run_ends_its_batches(lab: Lab) -> None:
    task, *_ = await divided(lab, 5, parallelism=2)
    await lab.engine.actions.cancel(task, actor="ann", reason="x")
    assert set((await lab.step_states(task)).values()) == {"complete", "cancelled"}
    assert await check_invariants(lab.connection) == []


@pytest.mark.parametrize("how", ["skipped", "completed without batches"])
async def test_without_batches_there_is_nothing_to_wait_for(lab: Lab, how: str) -> None:
    task = await lab.run(step("a"), *batch_steps(), step("last", "a", "work", type="deferred_convergence"))
    worker = await lab.worker()
    a, divide = sorted(await worker.claim(), key=lambda claim: claim.step)
    await worker.settle(skip(divide) if how == "skipped" else success(divide))
    states = await lab.step_states(task)
    assert (states["end"], states["last"]) == ("skipped", "pending")
    (last,) = (await worker.settle(success(a), claim_limit=9)).claims
    await worker.settle(success(last))
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_a_branch_that_is_not_taken_may_be_a_batch(lab: Lab) -> None:
    steps = [
        step("route", type="decision"),
        step("divide", "route", type="batchable"),
        step("work", "divide", type="batch_worker"),
        step("simple", "route"),
        step("end", "work", "simple", type="deferred_convergence"),
    ]
    await lab.template(*steps)
    simple, batch = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    first, second = await worker.claim()
    (taken,) = (await worker.settle(decision(first, "simple"), claim_limit=1)).claims
    (end,) = (await worker.settle(success(taken), claim_limit=1)).claims
    await worker.settle(success(end))
    assert await lab.state(simple) == "complete"
    (divide,) = (await worker.settle(decision(second, "divide"), claim_limit=1)).claims
    workers = (await worker.create_batches(divide, 2, claim_limit=9)).claims
    (end,) = (await worker.settle(*map(success, workers), claim_limit=9)).claims
    await worker.settle(success(end))
    assert await lab.state(batch) == "complete"
    assert await check_invariants(lab.connection) == []


@pytest.mark.parametrize(
    ("count", "more", "message"),
    [
        (2, {"ids": ["a", "a"]}, "step divide made more than one batch a"),
        (2, {"ids": ["a", None]}, "step divide made a batch without an id"),
        (3, {"ranges": [(0, 10), (20, 30), (5, 12)]}, "step divide made batches 001 and 003 overlap"),
        (0, {}, "step divide made 0 batches; there is at least one, and just one without work"),
        (
            2,
            {"is_no_op": True},
            "step divide made 2 batches; there is at least one, and just one without work",
        ),
        (10_001, {}, "step divide made 10001 batches; 10000 are the most"),
    ],
)
async def test_a_division_that_cannot_be_is_the_failure_of_the_step(
    lab: Lab, count: int, more: dict[str, Any], message: str
) -> None:
    task = await lab.run(*batch_steps())
    worker = await lab.worker()
    assert (await worker.create_batches(await worker.claim_one(), count, claim_limit=9, **more)).claims == []
    summary = await lab.engine.tasks.read(task)
    (failed,) = summary.failures
    assert (summary.state, failed.error_type, failed.message, failed.final) == ("error", "BatchError", message, True)
    assert await check_invariants(lab.connection) == []


async def test_cursors_that_are_no_integers_or_only_touch_do_not_overlap(lab: Lab) -> None:
    task = await lab.run(*batch_steps())
    worker = await lab.worker()
    ranges = [(0, 10), (None, None), (10, 20), (None, None)]
    assert len((await worker.create_batches(await worker.claim_one(), 4, ranges=ranges, claim_limit=9)).claims) == 4
    assert await lab.state(task) == "steps_in_process"


async def test_a_step_that_is_not_batchable_makes_no_batches(lab: Lab) -> None:
    task = await lab.run(step("a"))
    worker = await lab.worker()
    await worker.create_batches(await worker.claim_one(), 2)
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "step a is not batchable"


async def test_batches_said_again_are_made_once(lab: Lab) -> None:
    await lab.run(*batch_steps())
    worker = await lab.worker()
    divide = await worker.claim_one()
    await worker.create_batches(divide, 3)
    before = await lab.dump()
    assert (await worker.create_batches(divide, 3)).stale == []
    assert await lab.dump() == before


async def test_a_task_has_no_more_steps_than_the_limit(lab: Lab) -> None:
    await lab.put_setting("steps_a_task", 10)
    task = await lab.run(*batch_steps())
    worker = await lab.worker()
    await worker.create_batches(await worker.claim_one(), 8)
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "step divide made 8 batches, and its task would have more than 10 steps"


async def test_a_checkpoint_is_seen_by_the_next_attempt_and_kept_for_who_holds_the_step_alone(lab: Lab) -> None:
    await lab.run(step("a", retry={"maxAttempts": 3, **NO_DELAY}))
    worker = await lab.worker()
    claim = await worker.claim_one()
    assert claim.row["checkpoint"] is None

    async def save(fence: int, checkpoint: str) -> bool:
        return bool(
            await lab.value(
                "select tasker.save_checkpoint('shop', 'worker-1', %s, %s, %s)", claim.step_id, fence, checkpoint
            )
        )

    assert await save(claim.fence, '{"cursor": 500, "rate": 1e23}')
    assert not await save(claim.fence + 1, '{"cursor": 1}')
    assert not await lab.value(
        "select tasker.save_checkpoint('other', 'worker-1', %s, %s, '1')", claim.step_id, claim.fence
    )
    with pytest.raises(psycopg.Error) as caught:
        await save(claim.fence, f'"{"x" * 65_536}"')
    assert caught.value.sqlstate == "TK005"
    (again,) = (await worker.settle(failure(claim), claim_limit=1)).claims
    assert again.row["checkpoint"] == {"cursor": 500, "rate": 1e23}
    assert not await save(claim.fence, '{"cursor": 2}')


async def test_results_of_many_workers_are_read_in_pages(lab: Lab) -> None:
    _, worker, workers = await divided(lab, 250, claim_limit=1000)
    outcomes: list[Outcome] = [
        failure(claim) if claim.step == "work_007" else success(claim, claim.step) for claim in workers
    ]
    (end,) = (await worker.settle(*outcomes, claim_limit=1)).claims
    assert len(end.row["dependency_results"]) == 101, "of the workers the first hundred"
    read: list[str] = []
    place = 0
    while True:
        page = await lab.rows(
            "select * from tasker.read_batch_results('shop', 'worker-1', %s, %s, 'work', %s, 90)",
            end.step_id,
            end.fence,
            place,
        )
        if not page:
            break
        assert all(row["step_name"] == row["result"] for row in page) and len(page) <= 90
        read += [row["step_name"] for row in page]
        place = page[-1]["place"]
    assert read == [f"work_{n:03}" for n in range(1, 251) if n != 7]
    stale = "select * from tasker.read_batch_results('shop', 'worker-1', %s, %s, 'work', 0, 90)"
    assert await lab.rows(stale, end.step_id, end.fence + 1) == []
    unknown = stale.replace("'work'", "'divide'")
    assert await lab.rows(unknown, end.step_id, end.fence + 1) == []
    with pytest.raises(psycopg.Error, match="there is no batch_worker divide before this step") as refused:
        await lab.rows(unknown, end.step_id, end.fence)
    assert refused.value.sqlstate == "TK005"


async def test_ten_thousand_workers_are_numbered_and_made_in_one_call(lab: Lab) -> None:
    task, worker, _ = await divided(lab, 10_000, claim_limit=0, parallelism=5)
    assert await lab.queue() == [f"work_{n:03}" for n in range(1, 6)]
    assert list(await lab.step_states(task))[-1] == "work_10000"
    assert len(await worker.claim(100)) == 5


@pytest.mark.parametrize("seed", range(10))
async def test_random_batches_end_as_they_should(lab: Lab, seed: int) -> None:
    """Failures, retries, releases and lost workers in any order: nothing is lost, and places are kept to."""
    chance = random.Random(seed)
    strategy = chance.choice(["continue_on_failure", "isolate"])
    count, parallelism = chance.randint(1, 30), chance.randint(1, 6)
    await lab.clock.freeze()
    retry = {"maxAttempts": chance.randint(1, 3), **chance.choice([NO_DELAY, SOON])}
    task = await lab.run(*batch_steps(retry, parallelism=parallelism, failureStrategy=strategy))
    worker = await lab.worker()
    held = (await worker.create_batches(await worker.claim_one(), count, claim_limit=chance.randint(0, 3))).claims
    ends = 0
    while await lab.state(task) != "complete":
        held += await worker.claim(chance.randint(1, 4))
        handed_in = chance.sample(held, chance.randint(0, len(held)))
        held = [claim for claim in held if claim not in handed_in]
        outcomes = [
            success(claim) if claim.step == "end" else chance.choice([success, success, failure, release])(claim)  # type: ignore[operator]
            for claim in handed_in
        ]
        ends += sum(claim.step == "end" for claim in handed_in)
        held += (await worker.settle(*outcomes, claim_limit=chance.randint(0, 2))).claims
        if chance.random() < 0.1:
            await lab.engine.workers.expire("shop", ["worker-1"], actor="operator", reason="gone")
            await worker.register()
            held = []
        await lab.clock.advance(0.002)
        await lab.engine.workers.sweep()
        assert await check_invariants(lab.connection) == []
    states = await lab.step_states(task)
    assert (len(states), ends, states["end"]) == (count + 2, 1, "complete")
    assert set(states.values()) <= {"complete", "error"}
