"""What became of claimed steps is recorded once, under the current fence only, and the run goes on by it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from support.cut_proxy import Cut, cut_proxy
from support.engine import (
    NO_DELAY,
    SETTLE,
    SOON,
    Lab,
    Outcome,
    SimulatedWorker,
    connect,
    failure,
    release,
    settle_arguments,
    step,
    success,
)
from tasker.model.task import StepCounts

DIAMOND = [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]


async def test_success_records_the_result_and_completes_the_run(lab: Lab) -> None:
    now = await lab.clock.freeze()
    task = await lab.run(step("a"), deadline_seconds=60)
    worker = await lab.worker()
    claim = await worker.claim_one()
    await lab.clock.advance(2)
    settlement = await worker.settle(success(claim, {"sum": 3}, metadata={"rows": 7}))
    assert settlement.settled == [claim.step_id] and settlement.stale == []
    assert (settlement.ready_left, settlement.tasks_finished) == (0, 1)
    row = (await lab.steps(task))["a"]
    assert (row["state"], row["result"], row["metadata"], row["error"]) == ("complete", {"sum": 3}, {"rows": 7}, None)
    assert (row["completed_at"] - now).total_seconds() == 2
    assert await lab.step_log(task, "a") == [
        "pending -enqueue-> enqueued",
        "enqueued -start-> in_progress",
        "in_progress -submit_result-> enqueued_for_orchestration",
        "enqueued_for_orchestration -complete-> complete",
    ]
    assert (await lab.task_log(task))[3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -all_steps_successful-> complete",
    ]
    summary = await lab.engine.tasks.read(task)
    assert summary.finished and summary.state == "complete" and summary.error is None
    assert summary.leaf_results == {"a": {"sum": 3}} and not summary.leaf_results_truncated
    assert summary.completed_at is not None and (summary.completed_at - now).total_seconds() == 2
    for table in ("leases", "ready_steps", "timers"):
        assert await lab.value(f"select count(*) from tasker.{table}") == 0


async def test_a_dependent_becomes_ready_exactly_when_all_it_depends_on_is_done(lab: Lab) -> None:
    task = await lab.run(*DIAMOND)
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one()))
    assert await lab.queue() == ["b", "c"]
    b, c = await worker.claim()
    settlement = await worker.settle(success(b))
    assert (settlement.ready_left, await lab.queue()) == (0, [])
    assert (await lab.steps(task))["d"]["open_edges"] == 1
    settlement = await worker.settle(success(c))
    assert (settlement.ready_left, await lab.queue()) == (1, ["d"])
    assert (await lab.steps(task))["d"]["open_edges"] == 0
    await worker.settle(success(await worker.claim_one()))
    assert await lab.state(task) == "complete"


async def test_both_parents_in_one_call_make_their_child_ready_once(lab: Lab) -> None:
    task = await lab.run(*DIAMOND)
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one()))
    settlement = await worker.settle(*(success(claim) for claim in await worker.claim()))
    assert settlement.ready_left == 1 and await lab.queue() == ["d"]
    assert (await lab.step_log(task, "d")) == ["pending -enqueue-> enqueued"]


async def test_the_log_of_a_run_shows_every_hop(lab: Lab) -> None:
    task = await lab.run(*DIAMOND)
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one()))
    b, c = await worker.claim()
    await worker.settle(success(b))
    await worker.settle(success(c))
    await worker.settle(success(await worker.claim_one()))
    assert (await lab.task_log(task))[3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -ready_steps_found-> enqueuing_steps",
        "enqueuing_steps -steps_enqueued-> steps_in_process",
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -steps_running-> steps_in_process",
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -ready_steps_found-> enqueuing_steps",
        "enqueuing_steps -steps_enqueued-> steps_in_process",
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -all_steps_successful-> complete",
    ]


async def test_steps_that_became_ready_go_straight_into_the_hands_of_the_caller(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b", "a"), step("c", "b"))
    worker = await lab.worker()
    claims = await worker.claim()
    for name in ("b", "c"):
        settlement = await worker.settle(success(claims[0]), claim_limit=1)
        claims = settlement.claims
        assert [claim.step for claim in claims] == [name] and settlement.ready_left == 0
        assert await lab.queue() == []
    assert (await worker.settle(success(claims[0]), claim_limit=1)).tasks_finished == 1
    assert await lab.step_log(task, "c") == [
        "pending -enqueue-> enqueued",
        "enqueued -start-> in_progress",
        "in_progress -submit_result-> enqueued_for_orchestration",
        "enqueued_for_orchestration -complete-> complete",
    ]


async def test_what_the_caller_cannot_take_is_left_for_others_and_counted(lab: Lab) -> None:
    await lab.run(step("a"), *(step(f"mine-{n}", "a") for n in range(4)), step("theirs", "a", callable="other"))
    worker = await lab.worker()
    settlement = await worker.settle(success(await worker.claim_one()), claim_limit=2)
    assert [claim.step for claim in settlement.claims] == ["mine-0", "mine-1"]
    assert settlement.ready_left == 3
    assert sorted(await lab.queue()) == ["mine-2", "mine-3", "theirs"]


async def test_a_caller_with_hands_free_also_gets_what_was_in_the_queue(lab: Lab) -> None:
    await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    first = await worker.claim_one()
    await lab.submit()
    settlement = await worker.settle(success(first), claim_limit=5)
    assert [claim.step for claim in settlement.claims] == ["b", "a"]
    assert settlement.ready_left == 0
    await worker.settle(*(success(claim) for claim in settlement.claims))
    settlement = await worker.settle(claim_limit=5)  # nothing to hand in: only asks
    assert [claim.step for claim in settlement.claims] == ["b"]


async def test_a_call_may_mix_outcomes_runs_and_fences(lab: Lab) -> None:
    await lab.template(step("a", retry=SOON), step("b", retry={"retryable": False}), step("c"), step("d", "a"))
    first, second = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    claims = {(claim.task_uuid, claim.step): claim for claim in await worker.claim()}
    settlement = await worker.settle(
        success(claims[first, "a"]),
        failure(claims[first, "b"]),
        release(claims[first, "c"]),
        failure(claims[second, "a"]),
        success(claims[second, "b"]),
    )
    assert len(settlement.settled) == 5 and settlement.tasks_finished == 0
    assert await lab.step_states(first) == {"a": "complete", "b": "error", "c": "enqueued", "d": "enqueued"}
    assert await lab.step_states(second) == {
        "a": "waiting_for_retry",
        "b": "complete",
        "c": "in_progress",
        "d": "pending",
    }
    assert settlement.ready_left == 2
    assert (await lab.engine.tasks.read(first)).counts == StepCounts(
        total=4, pending=0, ready=2, running=0, waiting=0, complete=1, failed=1, cancelled=0
    )
    assert (await lab.engine.tasks.read(second)).counts == StepCounts(
        total=4, pending=1, ready=0, running=1, waiting=1, complete=1, failed=0, cancelled=0
    )


async def test_a_released_step_is_ready_again_and_its_attempt_is_given_back(lab: Lab) -> None:
    task = await lab.run(step("a", retry={"maxAttempts": 1}))
    worker = await lab.worker()
    for _ in range(3):
        claim = await worker.claim_one()
        assert claim.attempt == 1
        settlement = await worker.settle(release(claim))
        assert (settlement.settled, settlement.ready_left) == ([claim.step_id], 1)
        row = (await lab.steps(task))["a"]
        assert (row["state"], row["attempts"]) == ("enqueued", 0)
    assert await worker.run_all() == ["a"]
    assert await lab.state(task) == "complete"
    assert (await lab.step_log(task, "a"))[1:4] == [
        "enqueued -start-> in_progress",
        "in_progress -released-> enqueued",
        "enqueued -start-> in_progress",
    ]


async def test_a_released_step_may_come_straight_back_to_the_caller(lab: Lab) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    settlement = await worker.settle(release(claim), claim_limit=1)
    (again,) = settlement.claims
    assert again.step_id == claim.step_id and again.fence != claim.fence and again.attempt == 1
    assert settlement.ready_left == 0


async def outcome_of(lab: Lab, kind: str) -> tuple[SimulatedWorker, Outcome]:
    """A worker with a claim of the first of two steps, and an outcome of this kind for it."""
    await lab.run(step("a", retry={"backoff": "fibonacci", "jitter": 0.5}), step("b", "a"), step("c"))
    worker = await lab.worker()
    claim, _ = await worker.claim()
    outcomes = {
        "success": success(claim, {"n": 1}),
        "retryable error": failure(claim),
        "final error": failure(claim, retryable=False),
        "release": release(claim),
    }
    return worker, outcomes[kind]


KINDS = ["success", "retryable error", "final error", "release"]


@pytest.mark.parametrize("kind", KINDS)
async def test_settling_twice_leaves_the_same_rows_as_once(lab: Lab, kind: str) -> None:
    """What was recorded is known again; what was given back is nobody's any more."""
    worker, outcome = await outcome_of(lab, kind)
    assert (await worker.settle(outcome)).settled == [outcome.claim.step_id]
    before = await lab.dump()
    again = await worker.settle(outcome)
    told = again.stale if kind == "release" else again.settled
    assert told == [outcome.claim.step_id]
    assert (again.ready_left, again.tasks_finished) == (0, 0)
    assert await lab.dump() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_settling_again_when_the_answer_was_lost_leaves_the_same_rows_as_once(
    lab: Lab, kind: str, cut: Cut
) -> None:
    """The line is cut before the request reaches the server, or after the commit and before its answer."""
    worker, outcome = await outcome_of(lab, kind)
    untouched = await lab.dump()
    async with cut_proxy(lab.url) as proxy:
        async with await connect(proxy.url) as connection:
            await connection.execute("select 1")
            proxy.cut_next(cut)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute(SETTLE, settle_arguments(worker.name, [outcome], 0))
        assert proxy.cuts == 1
        committed = await lab.dump()
        assert (committed == untouched) == (cut == "before")
        async with await connect(proxy.url) as connection:
            again = await SimulatedWorker(connection, worker.name).settle(outcome)
    if cut == "after":
        assert (again.stale if kind == "release" else again.settled) == [outcome.claim.step_id]
        assert await lab.dump() == committed
    else:
        assert again.settled == [outcome.claim.step_id]
        assert await lab.dump() != committed


async def test_a_settle_repeated_with_a_claim_limit_hands_the_lost_claims_out_no_second_time(lab: Lab) -> None:
    """The claims in an answer that was lost stay the worker's until renew finds that it does not know of them."""
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("b", "a", retry=NO_DELAY))
    worker = await lab.worker()
    outcome = success(await worker.claim_one())
    lost = await worker.settle(outcome, claim_limit=1)
    again = await worker.settle(outcome, claim_limit=1)
    assert len(lost.claims) == 1 and again.claims == [] and again.settled == [outcome.claim.step_id]
    await lab.clock.advance(1)
    told = await worker.renew()
    unknown = await worker.renew(claiming_since=told.renewed_at)
    assert unknown.unknown_fences == [lost.claims[0].fence]
    await worker.settle(release(lost.claims[0]))
    (found,) = await worker.claim()
    assert (found.step, found.attempt) == ("b", 1)
    await worker.settle(success(found))
    assert await lab.state(task) == "complete"


async def test_a_settlement_waits_for_the_disk_and_what_can_be_had_again_does_not(lab: Lab) -> None:
    await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()

    async def durable() -> bool:
        return bool(await lab.value("select current_setting('synchronous_commit') = 'on'"))

    async with lab.connection.transaction():
        claim = await worker.claim_one()
        assert not await durable()
    async with lab.connection.transaction():
        await worker.renew(claim)
        assert not await durable()
    async with lab.connection.transaction():
        assert len((await worker.settle(success(claim), claim_limit=1)).claims) == 1
        assert await durable()
    await worker.claim()
    await worker.renew()
    assert await durable(), "only the transaction of the claim or the renewal does not wait"


@pytest.mark.parametrize("what", ["task", "worker"])
async def test_a_settlement_waits_two_seconds_for_who_holds_a_row_and_has_then_recorded_nothing(
    lab: Lab, what: str
) -> None:
    held = await lab.run(step("a"))
    await lab.submit()
    worker = await lab.worker()
    claims = await worker.claim()
    before = await lab.dump()
    async with await connect(lab.url) as holder, holder.transaction():
        if what == "task":
            await holder.execute("select from tasker.tasks where task_uuid = %s for update", (held,))
        else:
            await holder.execute("select from tasker.workers for update")
        async with asyncio.timeout(20):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await worker.settle(*map(success, claims), claim_limit=1)
    assert await lab.dump() == before
    assert len((await worker.settle(*map(success, claims))).settled) == 2


async def test_an_outcome_with_an_old_fence_changes_nothing(lab: Lab) -> None:
    """The lease expired and the step is in another worker's hands."""
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=NO_DELAY), step("b", "a"))
    slow = await lab.worker("slow", lease_seconds=10)
    old = await slow.claim_one()
    await lab.clock.advance(11)
    assert await lab.engine.workers.sweep() == {"workers_expired": 1, "leases_expired": 1}
    quick = await lab.worker("quick")
    new = await quick.claim_one()
    assert new.step_id == old.step_id and new.fence != old.fence and (old.attempt, new.attempt) == (1, 2)
    before = await lab.dump()
    for outcome in (success(old, "late"), failure(old, "late"), failure(old, retryable=False), release(old)):
        assert (await slow.settle(outcome, claim_limit=3)).stale == [old.step_id]
    assert await lab.dump() == before
    await quick.settle(success(new, "in time"))
    assert (await slow.settle(success(old, "later still"))).stale == [old.step_id]
    row = (await lab.steps(task))["a"]
    assert (row["state"], row["result"], row["attempts"]) == ("complete", "in time", 2)


async def test_a_worker_that_was_swept_still_settles_nothing_after_it_is_back(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a"))
    worker = await lab.worker(lease_seconds=10)
    claim = await worker.claim_one()
    await lab.clock.advance(11)
    await lab.engine.workers.sweep()
    assert not (await worker.renew(claim)).known
    await worker.register()
    before = await lab.dump()
    assert (await worker.settle(success(claim))).stale == [claim.step_id]
    assert await lab.dump() == before


async def test_a_fence_that_was_never_given_or_belongs_to_another_step_is_stale(lab: Lab) -> None:
    await lab.run(step("a"), step("b"))
    worker = await lab.worker()
    a, b = await worker.claim()
    before = await lab.dump()
    crossed = {**settle_arguments("worker-1", [success(a), success(b)], 0), "fences": [b.fence, a.fence]}
    rows = await (await lab.connection.execute(SETTLE, crossed)).fetchall()
    assert [row["kind"] for row in rows] == ["stale", "stale", "summary"]
    nowhere = {**settle_arguments("worker-1", [success(a)], 0), "step_ids": [1 << 50], "fences": [1]}
    rows = await (await lab.connection.execute(SETTLE, nowhere)).fetchall()
    assert [row["kind"] for row in rows] == ["stale", "summary"]
    assert await lab.dump() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcomes": ["done"]}, "settle_steps: unknown outcome done"),
        ({"outcomes": ["expire"]}, "settle_steps: unknown outcome expire"),
        ({"outcomes": [None]}, "settle_steps: unknown outcome null"),
        ({"fences": []}, "settle_steps: the arrays differ in length"),
        ({"outcomes": ["complete", "complete"]}, "settle_steps: the arrays differ in length"),
        *(
            ({each: []}, "settle_steps: the arrays differ in length")
            for each in ("results", "metadata", "branches", "error_types", "messages", "tracebacks", "retryable")
        ),
        ({"retry_after_ms": [1, 2]}, "settle_steps: the arrays differ in length"),
        ({"step_ids": None}, "settle_steps: the arrays differ in length"),
    ],
)
async def test_calls_that_make_no_sense_are_refused_as_a_whole(lab: Lab, change: dict[str, Any], message: str) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    before = await lab.dump()
    with pytest.raises(psycopg.Error) as caught:
        await lab.connection.execute(SETTLE, {**settle_arguments("worker-1", [success(claim)], 0), **change})
    assert (caught.value.sqlstate, caught.value.diag.message_primary) == ("TK005", message)
    assert await lab.dump() == before
    assert (await worker.settle(success(claim))).settled == [claim.step_id]


async def test_a_failed_step_blocks_its_dependents_while_the_rest_runs_to_its_end(lab: Lab) -> None:
    task = await lab.run(
        step("bad"), step("good"), step("below", "bad"), step("further", "below"), step("after-good", "good")
    )
    worker = await lab.worker()
    bad, good = await worker.claim()
    settlement = await worker.settle(failure(bad, "card declined", retryable=False, error_type="PermanentError"))
    assert settlement.tasks_finished == 0 and await lab.state(task) == "steps_in_process"
    settlement = await worker.settle(success(good), claim_limit=1)
    assert settlement.tasks_finished == 0
    settlement = await worker.settle(success(settlement.claims[0]))
    assert settlement.tasks_finished == 1
    assert await lab.step_states(task) == {
        "bad": "error",
        "good": "complete",
        "below": "pending",
        "further": "pending",
        "after-good": "complete",
    }
    summary = await lab.engine.tasks.read(task)
    assert summary.state == "error" and summary.finished and summary.leaf_results is None
    assert summary.error == {
        "reason": "steps_failed",
        "step": "bad",
        "error_type": "PermanentError",
        "message": "card declined",
    }
    assert (summary.counts.failed, summary.counts.pending, summary.counts.complete) == (1, 2, 2)
    assert (await lab.task_log(task))[-3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -permanent_failure-> blocked_by_failures",
        "blocked_by_failures -give_up-> error",
    ]
    assert (await lab.step_log(task, "bad"))[-2:] == [
        "in_progress -submit_error-> enqueued_as_error_for_orchestration",
        "enqueued_as_error_for_orchestration -fail-> error",
    ]


async def test_a_suspended_run_may_finish_what_runs_and_starts_nothing_new(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    assert await lab.engine.actions.suspend(task, actor="ann", reason="x")
    settlement = await worker.settle(success(claim), claim_limit=5)
    assert settlement.settled == [claim.step_id] and settlement.claims == []
    assert await lab.queue() == [] and await worker.claim() == []
    assert await lab.step_states(task) == {"a": "complete", "b": "enqueued"}
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    assert await worker.run_all() == ["b"]


async def test_failures_are_kept_newest_first_and_bounded(lab: Lab) -> None:
    task = await lab.run(step("a", retry={"maxAttempts": 30, **NO_DELAY}))
    worker = await lab.worker()
    await lab.clock.freeze()
    for attempt in range(1, 31):
        claim = await worker.claim_one()
        assert claim.attempt == attempt
        await worker.settle(failure(claim, f"{attempt} " + "x" * 9000, traceback="t" * 20_000))
        await lab.engine.workers.sweep()
    summary = await lab.engine.tasks.read(task)
    assert [each.attempt for each in summary.failures] == list(range(30, 10, -1))
    assert {len(each.message) for each in summary.failures} == {1024}
    assert [each.final for each in summary.failures] == [True] + [False] * 19
    kept = await lab.rows("select message, traceback from tasker.step_failures")
    assert len(kept) == 30
    assert {len(row["message"]) for row in kept} == {8192} and {len(row["traceback"]) for row in kept} == {16384}
    assert "traceback" not in (await lab.steps(task))["a"]["error"]


async def test_results_that_are_too_large_for_a_summary_are_left_out_and_it_says_so(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b"))
    await (await lab.worker()).run_all("x" * 5000)
    summary = await lab.engine.tasks.read(task)
    assert summary.state == "complete" and summary.leaf_results is None and summary.leaf_results_truncated
