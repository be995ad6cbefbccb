"""Dead letters: every step that fails for good makes one, and what people make of it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from support.engine import NO_DELAY, SOON, Lab, SimulatedWorker, connect, decision, failure, step, success
from support.invariants import check_invariants
from tasker.errors import ActionRefused, DeadLetterNotFound, InvalidInput, TaskNotFound
from tasker.model.dead_letters import DeadLetter, DeadLetterDetails, DeadLetterReason, DeadLetterState


async def only_entry(lab: Lab) -> DeadLetter:
    """The one entry that there is, in whatever state."""
    (entry,) = (await lab.engine.dead_letters.read_page(states=None)).items
    return entry


async def details(lab: Lab) -> DeadLetterDetails:
    return await lab.engine.dead_letters.read((await only_entry(lab)).entry_uuid)


async def history(lab: Lab, entry_uuid: UUID) -> list[tuple[str, str, str | None]]:
    changes = (await lab.engine.dead_letters.read(entry_uuid)).changes
    return [(str(change.state), change.actor, change.notes) for change in changes]


async def failed_run(lab: Lab, *steps: Any, **request: Any) -> tuple[UUID, SimulatedWorker, UUID]:
    """A run whose first step has failed for good, a worker, and the dead letter."""
    task = await lab.run(*(steps or (step("a"), step("b", "a"))), **request)
    worker = await lab.worker(lease_seconds=1000)
    await worker.settle(failure(await worker.claim_one(), "a bad card", retryable=False))
    return task, worker, (await only_entry(lab)).entry_uuid


async def test_retries_that_are_used_up_make_one_and_those_before_make_none(lab: Lab) -> None:
    task = await lab.run(step("a", retry={"maxAttempts": 2, **NO_DELAY}))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one()))
    assert (await lab.engine.dead_letters.read_page(states=None)).items == ()
    await worker.settle(failure(await worker.claim_one(), "still no"))
    entry = await only_entry(lab)
    assert (entry.task_uuid, entry.step, entry.namespace) == (task, "a", "shop")
    assert (entry.template_name, entry.template_version) == ("order", "1.0.0")
    assert (entry.reason, entry.state) == (DeadLetterReason.MAX_RETRIES_EXCEEDED, DeadLetterState.OPEN)
    snapshot = (await details(lab)).snapshot
    assert snapshot["task"]["state"] == "error"
    assert (snapshot["task"]["total_steps"], snapshot["task"]["failed_steps"]) == (1, 1)
    assert (snapshot["step"]["name"], snapshot["step"]["attempts"], snapshot["step"]["attempts_allowed"]) == ("a", 2, 2)
    assert [(each["attempt"], each["message"], each["final"]) for each in snapshot["failures"]] == [
        (2, "still no", True),
        (1, "no", False),
    ]
    assert await history(lab, entry.entry_uuid) == [("open", "worker-1", None)]
    assert await check_invariants(lab.connection) == []


async def test_a_failure_that_is_not_to_be_tried_again_says_so(lab: Lab) -> None:
    await failed_run(lab)
    assert (await only_entry(lab)).reason is DeadLetterReason.PERMANENT_FAILURE
    assert await check_invariants(lab.connection) == []


async def test_a_decision_that_cannot_be_is_a_permanent_failure(lab: Lab) -> None:
    await lab.run(step("a", type="decision"), step("b", "a"))
    worker = await lab.worker()
    await worker.settle(decision(await worker.claim_one(), "nobody"))
    assert (await only_entry(lab)).reason is DeadLetterReason.PERMANENT_FAILURE


async def test_workers_that_are_lost_too_often_are_a_crash_loop(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", retry={"maxAttempts": 1}))
    await (await lab.worker(lease_seconds=10)).claim_one()
    await lab.clock.advance(11)
    assert (await lab.engine.workers.sweep())["leases_expired"] == 1
    found = await details(lab)
    assert found.entry.reason is DeadLetterReason.WORKER_CRASH_LOOP
    assert "worker-1 was lost" in found.snapshot["failures"][0]["message"]
    assert [change.actor for change in found.changes] == ["sweep"]
    assert await check_invariants(lab.connection) == []


async def test_a_step_that_no_worker_took_in_time_had_none_available(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", scheduleTimeoutSeconds=5))
    await lab.clock.advance(5)
    assert await lab.engine.workers.sweep() == {"schedule_timeouts": 1}
    assert (await only_entry(lab)).reason is DeadLetterReason.WORKER_UNAVAILABLE
    assert await check_invariants(lab.connection) == []


async def test_what_fails_together_makes_one_each_and_what_succeeds_makes_none(lab: Lab) -> None:
    task = await lab.run(*(step(f"step-{n}") for n in range(4)), step("fine"))
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(
        success(claims["fine"]),
        failure(claims["step-0"], retryable=False),
        failure(claims["step-1"], retryable=False),
        failure(claims["step-2"]),
        failure(claims["step-3"], retryable=False),
    )
    page = await lab.engine.dead_letters.read_page(task_uuid=task)
    assert sorted(str(entry.step) for entry in page.items) == ["step-0", "step-1", "step-3"]
    assert await check_invariants(lab.connection) == []


async def test_an_outcome_that_is_said_twice_in_one_call_makes_one(lab: Lab) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    outcome = failure(await worker.claim_one(), retryable=False)
    await worker.settle(outcome, outcome)
    await worker.settle(outcome)
    await only_entry(lab)


async def test_success_makes_no_call_for_dead_letters(own_lab: Lab) -> None:
    lab = own_lab
    await lab.execute("drop function tasker.bury_failed_steps, tasker.close_dead_letter")
    task = await lab.run(step("a"), step("b", "a"))
    await (await lab.worker()).run_all()
    assert await lab.state(task) == "complete"


@pytest.mark.parametrize(
    ("strategy", "state", "made"),
    [("continue_on_failure", "steps_in_process", []), ("isolate", "steps_in_process", ["work_002"])],
)
async def test_a_batch_that_goes_on_without_a_worker_makes_one_only_where_somebody_is_to_look(
    lab: Lab, strategy: str, state: str, made: list[str]
) -> None:
    task, worker = await failed_batch(lab, strategy)
    assert await lab.state(task) == state
    assert [entry.step for entry in (await lab.engine.dead_letters.read_page()).items] == made
    assert await check_invariants(lab.connection) == []
    assert await worker.run_all() == ["end"]
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_a_batch_that_fails_with_a_worker_makes_one_of_that(lab: Lab) -> None:
    task, _ = await failed_batch(lab, "fail_fast")
    assert await lab.state(task) == "error"
    found = await details(lab)
    assert (found.entry.step, found.snapshot["step"]["name"]) == ("work_002", "work_002")
    assert found.snapshot["failures"][0]["step"] == "work_002"
    with pytest.raises(ActionRefused, match="step work_002 is a worker of a batch, which does not run again by it"):
        await lab.engine.dead_letters.put_back(found.entry.entry_uuid, actor="ann")
    assert await check_invariants(lab.connection) == []


async def failed_batch(lab: Lab, strategy: str) -> tuple[UUID, SimulatedWorker]:
    """A run of two batches, the second of which has failed for good."""
    task = await lab.run(
        step("divide", type="batchable", batch={"failureStrategy": strategy}),
        step("work", "divide", type="batch_worker"),
        step("end", "work", type="deferred_convergence"),
    )
    worker = await lab.worker()
    first, second = (await worker.create_batches(await worker.claim_one(), 2, claim_limit=2)).claims
    await worker.settle(success(first), failure(second, retryable=False))
    return task, worker


async def test_somebody_takes_one_up_notes_and_resolves_it_and_the_run_stays_as_it_is(lab: Lab) -> None:
    task, _, entry = await failed_run(lab)
    letters = lab.engine.dead_letters
    assert await letters.investigate(entry, actor="ann", notes="looks like the gateway")
    await letters.annotate(entry, actor="ben", notes="it was down")
    assert await letters.lay_back(entry, actor="ann")
    assert await letters.resolve(entry, actor="ben", notes="paid by hand")
    assert not await letters.discard(entry, actor="ann")
    assert not await letters.put_back(entry, actor="ann")
    await letters.annotate(entry, actor="ann", notes="thanks")
    assert await history(lab, entry) == [
        ("open", "worker-1", None),
        ("investigating", "ann", "looks like the gateway"),
        ("investigating", "ben", "it was down"),
        ("open", "ann", None),
        ("resolved", "ben", "paid by hand"),
        ("resolved", "ann", "thanks"),
    ]
    assert await lab.state(task) == "error"
    assert (await letters.read_page()).items == ()
    assert await check_invariants(lab.connection) == []


async def test_what_is_put_back_runs_again_and_the_run_goes_on_to_its_end(lab: Lab) -> None:
    task, worker, entry = await failed_run(lab)
    assert await lab.engine.dead_letters.put_back(entry, actor="ann", notes="a new card")
    assert await lab.state(task) == "steps_in_process"
    assert await history(lab, entry) == [("open", "worker-1", None), ("put_back", "ann", "a new card")]
    assert await check_invariants(lab.connection) == []
    claim = await worker.claim_one()
    assert (claim.step, claim.attempt, claim.row["max_attempts"]) == ("a", 2, 6)
    await worker.settle(success(claim))
    await worker.run_all()
    assert await lab.state(task) == "complete"
    assert "error -step_resolved-> evaluating_results" in await lab.task_log(task)
    assert await check_invariants(lab.connection) == []


async def test_what_fails_again_after_it_was_put_back_makes_a_new_one(lab: Lab) -> None:
    _, worker, first = await failed_run(lab)
    await lab.engine.dead_letters.put_back(first, actor="ann")
    await worker.settle(failure(await worker.claim_one(), retryable=False))
    (second,) = (await lab.engine.dead_letters.read_page()).items
    assert second.entry_uuid != first
    assert len((await lab.engine.dead_letters.read_page(states=None)).items) == 2
    assert await check_invariants(lab.connection) == []


async def test_what_fails_again_under_an_open_one_is_told_in_it(lab: Lab) -> None:
    task, worker, entry = await failed_run(lab, step("a", retry=SOON), step("b"))
    await lab.engine.dead_letters.investigate(entry, actor="ann")
    async with await connect(lab.url) as connection, connection.transaction():
        # Made to run again and failed within one transaction: nothing has dealt with it in between.
        await connection.execute(
            "select tasker.reset_step(task_id, 'a', 'ann', 'x') from tasker.tasks where task_uuid = %s",
            (task,),
        )
        other = SimulatedWorker(connection, worker.name)
        (claim,) = [claim for claim in await other.claim() if claim.step == "a"]
        await other.settle(failure(claim, "worse", retryable=False))
    found = await details(lab)
    assert (found.entry.entry_uuid, found.entry.state) == (entry, DeadLetterState.INVESTIGATING)
    assert found.snapshot["failures"][0]["message"] == "worse"


async def test_a_put_back_step_of_an_open_run_leaves_the_others_alone(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b"), step("c", "a", "b"))
    worker = await lab.worker()
    a, b = sorted(await worker.claim(), key=lambda claim: claim.step)
    await worker.settle(failure(a, retryable=False))
    entry = await only_entry(lab)
    assert await lab.engine.dead_letters.put_back(entry.entry_uuid, actor="ann")
    assert await lab.step_states(task) == {"a": "enqueued", "b": "in_progress", "c": "pending"}
    await worker.settle(success(b))
    await worker.run_all()
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_a_put_back_step_is_put_back_beside_a_retry_and_in_a_suspended_run(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("b", retry=SOON))
    worker = await lab.worker()
    a, b = sorted(await worker.claim(), key=lambda claim: claim.step)
    await worker.settle(failure(a, retryable=False), failure(b))
    assert await lab.state(task) == "waiting_for_retry"
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    assert await lab.engine.dead_letters.put_back((await only_entry(lab)).entry_uuid, actor="ann")
    assert await lab.queue() == []
    assert await check_invariants(lab.connection) == []
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    assert await lab.queue() == ["a"]
    assert await check_invariants(lab.connection) == []


async def test_a_deadline_holds_for_a_run_that_goes_on(lab: Lab) -> None:
    await lab.clock.freeze()
    task, _, entry = await failed_run(lab, deadline_seconds=60)
    await lab.engine.dead_letters.put_back(entry, actor="ann")
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    assert await lab.state(task) == "error"
    assert await check_invariants(lab.connection) == []


async def test_what_cannot_run_again_is_not_put_back(lab: Lab) -> None:
    await lab.clock.freeze()
    letters = lab.engine.dead_letters
    task, worker, entry = await failed_run(lab, step("a"), step("b"), deadline_seconds=60)
    of_run = await letters.add(task, actor="ann", notes="odd")
    of_other = await letters.add(task, step="b", actor="ann")
    for refused, told in (
        (of_run, "the entry is of the whole run, which has no step to put back"),
        (of_other, "step b is in the queue or runs already"),
    ):
        with pytest.raises(ActionRefused, match=told):
            await letters.put_back(refused, actor="ann")
    await lab.clock.advance(60)
    with pytest.raises(ActionRefused, match=r"the deadline of task .* it needs a new one"):
        await letters.put_back(entry, actor="ann")
    await lab.engine.workers.sweep()
    with pytest.raises(ActionRefused, match=r"the deadline of task .* it needs a new one"):
        await letters.put_back(entry, actor="ann")
    assert await lab.state(task) == "error"
    cancelled = await lab.run(step("c"), step("d"))
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(failure(claims["c"], retryable=False))
    await lab.engine.actions.cancel(cancelled, actor="ann", reason="x")
    (entry_of_cancelled,) = (await letters.read_page(task_uuid=cancelled)).items
    with pytest.raises(ActionRefused, match="is cancelled: it can only be run again from one of its steps"):
        await letters.put_back(entry_of_cancelled.entry_uuid, actor="ann")
    assert await check_invariants(lab.connection) == []


@pytest.mark.parametrize(
    ("made", "state"),
    [
        ("state = 'resolved_manually', completed_at = now()", "resolved"),
        ("state = 'skipped', completed_at = now()", "resolved"),
        ("state = 'cancelled', completed_at = now()", "discarded"),
        ("state = 'enqueued'", "put_back"),
    ],
)
async def test_whatever_else_deals_with_a_step_deals_with_its_dead_letter(lab: Lab, made: str, state: str) -> None:
    task, _, entry = await failed_run(lab)
    step_id = (await lab.steps(task))["a"]["step_id"]
    await lab.execute(f"update tasker.steps set {made} where step_id = %s", step_id)
    assert (await only_entry(lab)).state == state
    assert (await history(lab, entry))[-1] == (state, "worker-1", "its step was dealt with")


async def test_one_that_a_person_wants_is_manual_and_one_that_is_open_keeps_its_reason(lab: Lab) -> None:
    letters = lab.engine.dead_letters
    task, _, entry = await failed_run(lab)
    assert await letters.add(task, step="a", actor="ann", notes="mine") == entry
    assert (await letters.read(entry)).entry.reason is DeadLetterReason.PERMANENT_FAILURE
    run = await letters.add(task, actor="ann", notes="odd")
    assert (await letters.read(run)).entry.reason is DeadLetterReason.MANUAL
    assert (await letters.read(run)).entry.step is None
    assert await letters.add(task, actor="ben") == run
    assert await history(lab, run) == [("open", "ann", "odd"), ("open", "ben", None)]
    assert len((await letters.read(run)).snapshot["failures"]) == 1
    with pytest.raises(InvalidInput, match="step: the run has no step 'z'"):
        await letters.add(task, step="z", actor="ann")
    with pytest.raises(TaskNotFound):
        await letters.add(uuid4(), actor="ann")


async def test_a_step_that_fails_after_somebody_noted_it_says_why(lab: Lab) -> None:
    letters = lab.engine.dead_letters
    task = await lab.run(step("a"))
    entry = await letters.add(task, step="a", actor="ann", notes="odd")
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), retryable=False))
    found = await details(lab)
    assert (found.entry.entry_uuid, found.entry.reason) == (entry, DeadLetterReason.PERMANENT_FAILURE)
    assert found.snapshot["step"]["state"] == "error"
    assert await history(lab, entry) == [("open", "ann", "odd"), ("open", "worker-1", None)]
    assert await check_invariants(lab.connection) == []


async def test_one_that_a_person_wants_of_a_step_outlives_its_success(lab: Lab) -> None:
    task = await lab.run(step("a"))
    entry = await lab.engine.dead_letters.add(task, step="a", actor="ann", notes="odd")
    await (await lab.worker()).run_all()
    assert (await only_entry(lab)).state is DeadLetterState.OPEN
    assert await lab.engine.dead_letters.resolve(entry, actor="ann")
    assert await check_invariants(lab.connection) == []


async def test_entries_are_read_page_by_page_and_by_what_they_are(lab: Lab) -> None:
    letters = lab.engine.dead_letters
    tasks = [await lab.run(step("a")) for _ in range(5)]
    worker = await lab.worker()
    await worker.settle(*(failure(claim, retryable=False) for claim in await worker.claim()))
    first = await letters.read_page(limit=2)
    second = await letters.read_page(limit=2, cursor=first.next_cursor)
    third = await letters.read_page(limit=2, cursor=second.next_cursor)
    assert third.next_cursor is None
    found = [entry.task_uuid for page in (first, second, third) for entry in page.items]
    assert len(found) == 5 and set(found) == set(tasks)
    await letters.discard(first.items[0].entry_uuid, actor="ann")
    assert len((await letters.read_page()).items) == 4
    (discarded,) = (await letters.read_page(states=[DeadLetterState.DISCARDED])).items
    assert discarded.entry_uuid == first.items[0].entry_uuid
    assert (await letters.read_page(reason=DeadLetterReason.MANUAL)).items == ()
    assert (await letters.read_page(namespace="elsewhere")).items == ()
    assert [(str(each.state), str(each.reason), each.entries, each.capped) for each in await letters.counts()] == [
        ("open", "permanent_failure", 4, False),
        ("discarded", "permanent_failure", 1, False),
    ]
    assert await letters.counts("elsewhere") == []


async def test_what_is_not_there_or_not_readable_is_refused(lab: Lab) -> None:
    letters = lab.engine.dead_letters
    unknown = uuid4()
    with pytest.raises(DeadLetterNotFound, match=f"no dead letter {unknown}"):
        await letters.read(unknown)
    for change in (letters.investigate, letters.lay_back, letters.resolve, letters.discard, letters.put_back):
        with pytest.raises(DeadLetterNotFound, match=f"no dead letter {unknown}"):
            await change(unknown, actor="ann")
    with pytest.raises(InvalidInput, match="limit: 201 is not between 1 and 200"):
        await letters.read_page(limit=201)
    with pytest.raises(InvalidInput, match="cursor: 'x' is not one that a list has given"):
        await letters.read_page(cursor="x")
    with pytest.raises(InvalidInput, match="notes: holds the character U\\+0000"):
        await letters.annotate(unknown, actor="ann", notes="\0")
    with pytest.raises(InvalidInput, match="notes: has 8193 characters; at most 8192 are allowed"):
        await letters.annotate(unknown, actor="ann", notes="x" * 8193)
    with pytest.raises(TaskNotFound):
        await letters.read_page(task_uuid=unknown)
