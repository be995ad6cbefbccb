"""The checker of invariants can fail: each kind of damage, done by hand, is found by the query that is there for it."""

from __future__ import annotations

import pytest

from support.engine import SOON, Lab, failure, release, step, success
from support.invariants import check_invariants, invariants

STEP_PASSAGE = "insert into tasker.step_log (step_id, passage, actor_id, at) values "
TASK_PASSAGE = "insert into tasker.task_log (task_id, passage, actor_id, at) values "


async def busy_database(lab: Lab) -> None:
    """Runs in many states, honestly come by: what the damage is done to."""
    await lab.clock.freeze()
    await lab.template(step("a", retry=SOON), step("b"), step("c", "a", "b"), step("d", retry={"retryable": False}))
    worker = await lab.worker()
    done = await lab.submit()
    await worker.run_all()
    failed = await lab.submit()
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(success(claims["a"]), failure(claims["d"], retryable=False), release(claims["b"]))
    await worker.run_all()
    await lab.submit()
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(failure(claims["a"]), release(claims["b"]))
    await lab.clock.advance(1)
    cancelled = await lab.submit()
    await worker.claim(1)
    await lab.engine.actions.cancel(cancelled, actor="ann", reason="x")
    await lab.submit(suspended=True)
    await lab.template(
        step("a"), step("b", "a"), name="narrow", identity={"strategy": "strict"}, concurrency={"maxTasks": 1}
    )
    for number in range(2):
        await lab.submit("narrow", context={"number": number})
    repaired = await lab.submit()
    await lab.engine.actions.resolve_step(repaired, "c", actor="ann", reason="x")
    await lab.submit(deadline_seconds=3600)
    await lab.submit()
    await lab.template(step("a"), name="limited", lifecycle={"maxStepsInProcessSeconds": 3600})
    await lab.submit("limited")
    assert await lab.state(done) == "complete" and await lab.state(failed) == "error"


PICK = {
    "done": "(select min(step_id) from tasker.steps where state = 'complete')",
    "held": "(select min(step_id) from tasker.leases)",
    "queued": "(select min(step_id) from tasker.ready_steps)",
    "waiting": "(select min(step_id) from tasker.steps where state = 'waiting_for_retry')",
    "pending": "(select min(step_id) from tasker.steps where state = 'pending')",
    "failed": "(select min(step_id) from tasker.steps where state = 'error')",
    "open": "(select max(task_id) from tasker.tasks where completed_at is null)",
    "ended": "(select min(task_id) from tasker.tasks where completed_at is not null)",
}


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        ("delete from tasker.ready_steps where tasker.task_of_step(step_id) = {open}", "I1_an_open_run_has"),
        ("delete from tasker.ready_steps where step_id = {queued}", "I1_a_step_is_where"),
        ("delete from tasker.leases where step_id = {held}", "I1_a_step_is_where"),
        ("delete from tasker.timers where step_id = {waiting}", "I1_a_step_is_where"),
        (
            "insert into tasker.ready_steps select step_id, 'shop', 'do', now(), now() from tasker.steps"
            " where step_id = {held}",
            "I1_a_step_is_where",
        ),
        ("update tasker.tasks set active_steps = active_steps - 1 where task_id = {open}", "I1_the_counts_of_a_run"),
        ("update tasker.tasks set cancelled_steps = 1 where task_id = {ended}", "I1_the_counts_of_a_run"),
        ("update tasker.tasks set state = 'blocked_by_failures' where task_id = {open}", "I1_the_counts_of_a_run"),
        ("delete from tasker.dead_letters where step_id = {failed}", "I1_every_failed_step"),
        ("update tasker.dead_letters set state = 'put_back' where step_id = {failed}", "I1_every_failed_step"),
        ("update tasker.dead_letters set step_id = {done}", "I1_every_failed_step"),
        ("delete from tasker.dead_letter_changes", "I1_every_failed_step"),
        ("delete from tasker.timers where kind = 'state_limit'", "I1_a_limited_state"),
        (
            "insert into tasker.timers (due_at, kind, task_id) select now(), 'state_limit', task_id"
            " from tasker.timers where kind = 'state_limit'",
            "I1_a_limited_state",
        ),
        ("update tasker.steps set open_edges = 1 where step_id = {pending}", "I1_a_step_waits_for"),
        ("update tasker.steps set void_edges = 1 where step_id = {pending}", "I1_a_step_waits_for"),
        ("update tasker.steps set open_edges = 1 where state = 'resolved_manually'", "I1_a_step_waits_for"),
        ("delete from tasker.timers where kind = 'deadline'", "I1_an_open_run_with_a_deadline"),
        ("update tasker.timers set due_at = now() where kind = 'deadline'", "I1_an_open_run_with_a_deadline"),
        (STEP_PASSAGE + "({done}, 'completed', 1, now())", "I2_an_attempt"),
        (STEP_PASSAGE + "({done}, 'completed', 1, now())", "I2_a_result_is_recorded"),
        ("delete from tasker.step_failures where step_id = {failed}", "I2_a_result_is_recorded"),
        ("update tasker.step_failures set final = true where step_id = {waiting}", "I2_a_result_is_recorded"),
        ("update tasker.step_failures set attempt = 2 where step_id = {waiting}", "I2_a_result_is_recorded"),
        (STEP_PASSAGE + "({pending}, 'queued', 1, now())", "I3_no_step_starts"),
        ("update tasker.steps set attempts = attempts + 1 where step_id = {done}", "I4_attempts_are"),
        ("update tasker.steps set attempts = 0 where step_id = {held}", "I4_attempts_are"),
        ("update tasker.leases set fence = (select max(fence) from tasker.leases)", "I5_a_lease_is"),
        ("update tasker.leases set attempt = 9 where step_id = {held}", "I5_a_lease_is"),
        ("delete from tasker.workers", "I5_a_lease_is"),
        (TASK_PASSAGE + "({open}, 'submitted', 1, now())", "I12_the_log_of_every_task"),
        ("delete from tasker.task_log where task_id = {ended} and passage = 'submitted'", "I12_the_log_of_every_task"),
        ("delete from tasker.step_log where step_id = {done} and passage = 'completed'", "I12_the_log_of_every_step"),
        (
            "update tasker.steps set state = 'error', completed_at = null where step_id = {done}",
            "I12_the_log_of_every_step",
        ),
        ("delete from tasker.steps where step_id = {pending}", "I1_the_counts_of_a_run"),
        ("update tasker.tasks set total_steps = 9 where task_id = {open}", "I12_every_row_belongs"),
        (
            "insert into tasker.timers (due_at, kind, task_id) values (now(), 'deadline', {ended})",
            "I12_every_row_belongs",
        ),
        (
            "insert into tasker.leases select 5, worker_id, 1, 1, now(), now(), 1, 'claimed', 1 from tasker.workers"
            " limit 1",
            "I12_every_row_belongs",
        ),
        ("delete from tasker.concurrency_limits", "I1_an_open_run_has"),
        ("update tasker.tasks set active_steps = 1 where state = 'pending'", "I1_the_counts_of_a_run"),
        ("update tasker.tasks set started_at = now() where state = 'pending'", "I1_the_counts_of_a_run"),
        (
            "update tasker.steps set state = 'enqueued' where open_edges = 0 and tasker.task_of_step(step_id) ="
            " (select task_id from tasker.tasks where state = 'pending')",
            "I1_a_step_waits_for",
        ),
        (
            "update tasker.task_log set metadata = '{{\"max_tasks\": 0}}' where passage = 'admitted'",
            "I8_no_run_was_admitted_beyond",
        ),
        ("delete from tasker.task_log where passage = 'admitted'", "I8_a_run_of_a_limited"),
        (
            "insert into tasker.task_log (task_id, passage, actor_id, at) select task_id, 'admitted', 1, now()"
            " from tasker.tasks where state = 'pending'",
            "I8_a_run_of_a_limited",
        ),
        ("delete from tasker.tasks where limited_as is not null", "I8_a_key_is_held"),
        ("update tasker.limited_tasks set admitted = not admitted", "I8_the_runs_of_limited"),
        ("delete from tasker.limited_tasks where admitted", "I8_the_runs_of_limited"),
        (
            "update tasker.steps set void_edges = 1 where step_id = (select min(step_id) from tasker.steps"
            " where state = 'complete' and definition_id in (select to_definition_id from tasker.definition_edges))",
            "I3_a_step_runs_or_is_skipped",
        ),
    ],
)
async def test_damage_is_found(lab: Lab, damage: str, invariant: str) -> None:
    await busy_database(lab)
    assert await check_invariants(lab.connection) == []
    async with lab.connection.transaction(force_rollback=True):
        await without_triggers(lab)
        assert await lab.execute(damage.format(**PICK)) > 0
        violations = await check_invariants(lab.connection)
    assert [found for found in violations if found.startswith(invariant)], violations


async def test_a_maximum_that_was_passed_is_found(lab: Lab) -> None:
    await busy_database(lab)
    async with lab.connection.transaction(force_rollback=True):
        await without_triggers(lab)
        await lab.execute("alter table tasker.steps drop constraint steps_attempts_check")
        await lab.execute(
            "update tasker.steps set attempts_allowed = 1, attempts = 2 where state = 'waiting_for_retry'"
        )
        assert [found for found in await check_invariants(lab.connection) if found.startswith("I4_")]


async def without_triggers(lab: Lab) -> None:
    """Lets the damage through that the database would refuse."""
    for table in ("tasks", "steps", "leases", "task_log", "step_log"):
        await lab.execute(f"alter table tasker.{table} disable trigger all")


def test_every_invariant_is_named_for_its_number_in_the_design() -> None:
    assert {name.split("_")[0] for name in invariants()} == {"I1", "I2", "I3", "I4", "I5", "I8", "I12"}
