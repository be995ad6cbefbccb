"""What a template says of its runs' lives: whether a failed one waits for a person, and how long each may last."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from support.engine import Lab, SimulatedWorker, failure, step, success
from support.invariants import check_invariants
from tasker.model.dead_letters import DeadLetter, DeadLetterReason

LATER = {"backoff": "linear", "baseMs": 3_600_000, "maxMs": 3_600_000, "jitter": 0}
"""Tried again in an hour."""


async def started(lab: Lab, *steps: Any, request: dict[str, Any] | None = None, **spec: Any) -> UUID:
    """A run of a template that says `spec` beside its steps, with the clock standing still."""
    await lab.clock.freeze()
    await lab.template(*(steps or (step("a"),)), **spec)
    return await lab.submit(**(request or {}))


async def patient_worker(lab: Lab, **registration: Any) -> SimulatedWorker:
    """One whose lease outlives every test here."""
    return await lab.worker(**{"lease_seconds": 1_000_000, **registration})


async def entries(lab: Lab) -> list[DeadLetter]:
    return list((await lab.engine.dead_letters.read_page(states=None)).items)


async def error_of(lab: Lab, task: UUID) -> dict[str, Any]:
    error = (await lab.engine.tasks.read(task)).error
    assert error is not None
    return error


async def timers(lab: Lab) -> list[str]:
    return [row["kind"] for row in await lab.rows("select kind from tasker.timers order by kind")]


# onFailure: block


async def blocked(lab: Lab, **spec: Any) -> tuple[UUID, SimulatedWorker]:
    """A run that waits for a person."""
    task = await started(lab, step("a"), step("b", "a"), onFailure="block", **spec)
    worker = await patient_worker(lab)
    settlement = await worker.settle(failure(await worker.claim_one(), "a bad card", retryable=False))
    assert settlement.tasks_finished == 0
    return task, worker


async def test_a_failed_run_waits_for_a_person_where_its_template_says_so(lab: Lab) -> None:
    task, worker = await blocked(lab)
    assert await lab.state(task) == "blocked_by_failures"
    assert (await lab.task_log(task))[-2:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -permanent_failure-> blocked_by_failures",
    ]
    summary = await lab.engine.tasks.read(task)
    assert not summary.finished
    assert summary.error == {
        "reason": "steps_failed",
        "step": "a",
        "error_type": "HandlerError",
        "message": "a bad card",
    }
    (entry,) = await entries(lab)
    assert await timers(lab) == []
    await lab.clock.advance(1_000_000)
    assert await lab.engine.workers.sweep() == {}
    assert await check_invariants(lab.connection) == []
    assert await lab.engine.dead_letters.put_back(entry.entry_uuid, actor="ann")
    assert await lab.state(task) == "steps_in_process"
    assert "blocked_by_failures -step_resolved-> evaluating_results" in await lab.task_log(task)
    await worker.register(lease_seconds=1_000_000)
    assert await worker.run_all() == ["a", "b"]
    assert await lab.state(task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_it_is_blocked_only_when_nothing_else_can_go_on(lab: Lab) -> None:
    task = await started(lab, step("a"), step("b"), step("c", retry=LATER), onFailure="block")
    worker = await patient_worker(lab)
    a, b, c = sorted(await worker.claim(), key=lambda claim: claim.step)
    await worker.settle(failure(a, retryable=False))
    assert await lab.state(task) == "steps_in_process"
    await worker.settle(success(b), failure(c))
    assert await lab.state(task) == "waiting_for_retry"
    await lab.clock.advance(3600)
    assert await lab.engine.workers.sweep() == {"retries_due": 1}
    await worker.settle(success(await worker.claim_one()))
    assert await lab.state(task) == "blocked_by_failures"
    assert await check_invariants(lab.connection) == []


async def test_a_blocked_run_can_be_cancelled(lab: Lab) -> None:
    task, _ = await blocked(lab)
    assert await lab.engine.actions.cancel(task, actor="ann", reason="x")
    assert await lab.state(task) == "cancelled"
    assert await check_invariants(lab.connection) == []


async def test_a_blocked_run_ends_after_the_longest_time_that_it_may_be(lab: Lab) -> None:
    task, _ = await blocked(lab, lifecycle={"maxBlockedSeconds": 60})
    assert await timers(lab) == ["state_limit"]
    await lab.clock.advance(59.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    assert await lab.state(task) == "error"
    assert (await lab.task_log(task))[-1] == "blocked_by_failures -give_up-> error"
    assert await error_of(lab, task) == {
        "reason": "blocked_too_long",
        "message": "nobody has helped it for 60 s (lifecycle.maxBlockedSeconds):"
        " step a failed: HandlerError: a bad card",
    }
    assert [entry.step for entry in await entries(lab)] == ["a"]
    assert await check_invariants(lab.connection) == []


async def test_a_deadline_ends_a_blocked_run_too(lab: Lab) -> None:
    task, _ = await blocked(lab, lifecycle={"maxDurationSeconds": 60})
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    assert (await lab.task_log(task))[-1] == "blocked_by_failures -give_up-> error"
    assert {(entry.step, str(entry.reason)) for entry in await entries(lab)} == {
        ("a", "permanent_failure"),
        (None, "staleness_timeout"),
    }
    assert await check_invariants(lab.connection) == []


async def test_a_blocked_run_that_is_suspended_waits_on(lab: Lab) -> None:
    task, _ = await blocked(lab, lifecycle={"maxBlockedSeconds": 60})
    await lab.engine.actions.suspend(task, actor="ann", reason="on holiday")
    await lab.clock.advance(1000)
    assert await lab.engine.workers.sweep() == {}
    await lab.engine.actions.resume(task, actor="ann", reason="back")
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    assert await lab.state(task) == "error"


async def test_a_blocked_run_that_was_put_back_has_no_time_running(lab: Lab) -> None:
    task, _ = await blocked(lab, lifecycle={"maxBlockedSeconds": 60})
    (entry,) = await entries(lab)
    await lab.engine.dead_letters.put_back(entry.entry_uuid, actor="ann")
    assert await timers(lab) == []
    await lab.clock.advance(61)
    assert await lab.engine.workers.sweep() == {}
    assert await lab.state(task) == "steps_in_process"


# maxDurationSeconds


@pytest.mark.parametrize(
    ("limit", "deadline", "ends_after"), [(60, None, 60), (60, 90, 60), (60, 30, 30)], ids=["alone", "earlier", "later"]
)
async def test_a_run_may_last_until_the_earlier_of_limit_and_deadline(
    lab: Lab, limit: int, deadline: int | None, ends_after: int
) -> None:
    task = await started(lab, lifecycle={"maxDurationSeconds": limit}, request={"deadline_seconds": deadline})
    await lab.clock.advance(ends_after - 0.1)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    error = await error_of(lab, task)
    found = [(entry.step, entry.reason) for entry in await entries(lab)]
    if ends_after == limit:
        assert error["message"] == "the task took longer than 60 s (lifecycle.maxDurationSeconds)"
        assert found == [(None, DeadLetterReason.STALENESS_TIMEOUT)]
    else:
        assert error["message"] == "the task passed its deadline"
        assert found == []
    assert error["reason"] == "deadline_exceeded"
    assert await check_invariants(lab.connection) == []


async def test_a_run_that_lasted_too_long_has_a_dead_letter_only_where_stale_runs_have(lab: Lab) -> None:
    await started(lab, lifecycle={"maxDurationSeconds": 60, "stalenessAction": "error"})
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    assert await entries(lab) == []


# How long a run may be in one state


async def in_state(lab: Lab, state: str, action: str) -> UUID:
    """A run that is in a state, in which it may be for a minute."""
    limits = {"waiting_for_retry": "maxWaitingForRetrySeconds", "steps_in_process": "maxStepsInProcessSeconds"}
    limits["waiting_for_dependencies"] = "maxWaitingForDependenciesSeconds"
    task = await started(
        lab, step("a", retry=LATER), step("b", "a"), lifecycle={limits[state]: 60, "stalenessAction": action}
    )
    if state == "waiting_for_retry":
        worker = await patient_worker(lab)
        await worker.settle(failure(await worker.claim_one()))
    elif state == "waiting_for_dependencies":
        # As after a hand has been laid on its rows: the engine itself leaves nothing to wait for.
        await lab.execute("delete from tasker.ready_steps")
        await lab.execute("update tasker.steps set state = 'cancelled', completed_at = now() where state = 'enqueued'")
        await lab.execute("update tasker.tasks set state = 'waiting_for_dependencies', active_steps = 0")
    assert await lab.state(task) == state
    return task


STATES = {
    "steps_in_process": "lifecycle.maxStepsInProcessSeconds",
    "waiting_for_retry": "lifecycle.maxWaitingForRetrySeconds",
    "waiting_for_dependencies": "lifecycle.maxWaitingForDependenciesSeconds",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ["dlq", "error", "none"])
async def test_a_state_that_lasts_too_long_is_dealt_with_as_the_template_says(
    lab: Lab, state: str, action: str
) -> None:
    task = await in_state(lab, state, action)
    await lab.clock.advance(59.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    told = f"nothing has happened for 60 s in {state} ({STATES[state]})"
    if action == "error":
        assert await lab.state(task) == "error"
        assert await error_of(lab, task) == {"reason": "staleness_timeout", "message": told}
        assert await entries(lab) == []
        assert await timers(lab) == []
    else:
        summary = await lab.engine.tasks.read(task)
        assert (summary.state, summary.stale) == (state, told)
        found = [(entry.task_uuid, entry.step, entry.reason) for entry in await entries(lab)]
        assert found == ([(task, None, DeadLetterReason.STALENESS_TIMEOUT)] if action == "dlq" else [])
        passages = await lab.rows("select passage::text as passage, metadata from tasker.task_log order by log_id desc")
        assert passages[0] == {"passage": "found_stale", "metadata": {"message": told}}
        # It is told once, however long it lasts.
        await lab.clock.advance(60)
        assert await lab.engine.workers.sweep() == {}
        assert len(await entries(lab)) == len(found)
    if state != "waiting_for_dependencies":
        assert await check_invariants(lab.connection) == []


async def test_a_stale_run_that_moves_is_not_stale_and_may_become_so_again(lab: Lab) -> None:
    task = await in_state(lab, "steps_in_process", "dlq")
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    worker = await patient_worker(lab)
    await worker.settle(success(await worker.claim_one()))
    assert (await lab.engine.tasks.read(task)).stale is None
    await lab.clock.advance(59.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(60.1)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    assert (await lab.engine.tasks.read(task)).stale is not None
    (entry,) = await entries(lab)
    assert len((await lab.engine.dead_letters.read(entry.entry_uuid)).changes) == 2
    assert await worker.run_all() == ["b"]
    assert await lab.state(task) == "complete"
    assert await timers(lab) == []
    assert await check_invariants(lab.connection) == []


async def test_every_outcome_begins_the_time_in_process_anew(lab: Lab) -> None:
    await started(lab, step("a"), step("b", "a"), lifecycle={"maxStepsInProcessSeconds": 60})
    worker = await patient_worker(lab)
    claim = await worker.claim_one()
    await lab.clock.advance(50)
    await worker.settle(success(claim))
    await lab.clock.advance(10)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(49.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}


async def test_the_time_of_a_suspended_run_stands_still(lab: Lab) -> None:
    task = await in_state(lab, "steps_in_process", "error")
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    await lab.clock.advance(1000)
    assert await lab.engine.workers.sweep() == {}
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    await lab.clock.advance(59.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1}
    assert await lab.state(task) == "error"
    assert await check_invariants(lab.connection) == []


async def test_a_stale_run_that_cannot_be_dealt_with_stops_no_other(own_lab: Lab) -> None:
    lab = own_lab
    broken = await in_state(lab, "steps_in_process", "dlq")
    fine = await lab.submit()
    await lab.execute(
        "create function tasker.refuse_one() returns trigger language plpgsql as"
        " $$ begin raise exception 'no room'; end $$"
    )
    task_id = await lab.value("select task_id from tasker.tasks where task_uuid = %s", broken)
    await lab.execute(
        "create trigger refuse_one before insert on tasker.dead_letters for each row"
        f" when (new.task_id = {task_id}) execute function tasker.refuse_one()"
    )
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {"state_limits_passed": 1, "repairs_parked": 1}
    assert [entry.task_uuid for entry in await entries(lab)] == [fine]
    assert (await lab.engine.tasks.read(broken)).stale is None, "nothing is left half done"
    await lab.execute("drop trigger refuse_one on tasker.dead_letters")
    await lab.clock.advance(301)
    assert (await lab.engine.workers.sweep())["state_limits_passed"] == 1
    assert {entry.task_uuid for entry in await entries(lab)} == {broken, fine}


# maxWaitingForWorkerSeconds


async def test_a_step_without_any_worker_fails_when_it_has_waited_too_long(lab: Lab) -> None:
    task = await started(lab, lifecycle={"maxWaitingForWorkerSeconds": 60})
    await patient_worker(lab, callables=["other"])
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(29.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"workers_awaited": 1}
    assert await lab.state(task) == "error"
    (entry,) = await entries(lab)
    assert (entry.step, entry.reason) == ("a", DeadLetterReason.WORKER_UNAVAILABLE)
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert (failed.error_type, failed.message) == (
        "worker_unavailable",
        "no worker offered its callable for lifecycle.maxWaitingForWorkerSeconds",
    )
    assert await check_invariants(lab.connection) == []


async def test_a_step_waits_as_long_as_it_takes_for_a_worker_that_is_busy(lab: Lab) -> None:
    task = await started(lab, lifecycle={"maxWaitingForWorkerSeconds": 60})
    worker = await patient_worker(lab)
    for _ in range(5):
        await lab.clock.advance(60)
        assert await lab.engine.workers.sweep() == {}
    # Workers that are replaced at the moment are not yet missing for long.
    await worker.deregister()
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {}
    await worker.register(lease_seconds=1_000_000)
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {}
    await worker.deregister()
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {}
    assert await lab.state(task) == "steps_in_process"
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {"workers_awaited": 1}
    assert await lab.state(task) == "error"


async def test_a_draining_worker_is_none_to_wait_for(lab: Lab) -> None:
    await started(lab, lifecycle={"maxWaitingForWorkerSeconds": 60})
    worker = await patient_worker(lab)
    await lab.engine.workers.drain("shop", [worker.name])
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(30)
    assert await lab.engine.workers.sweep() == {"workers_awaited": 1}


async def test_a_step_that_left_the_queue_begins_to_wait_anew(lab: Lab) -> None:
    task = await started(lab, lifecycle={"maxWaitingForWorkerSeconds": 60})
    await lab.clock.advance(29)
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    await lab.clock.advance(31)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(28.9)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1 + 1)
    assert await lab.engine.workers.sweep() == {"workers_awaited": 1}
    assert await check_invariants(lab.connection) == []


async def test_a_step_that_a_worker_took_is_not_looked_for_again(lab: Lab) -> None:
    task = await started(lab, lifecycle={"maxWaitingForWorkerSeconds": 60})
    worker = await patient_worker(lab)
    claim = await worker.claim_one()
    await lab.clock.advance(60)
    assert await lab.engine.workers.sweep() == {}
    assert await timers(lab) == []
    await worker.settle(success(claim))
    assert await lab.state(task) == "complete"


async def test_a_template_without_limits_arms_no_timer(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    while claims := await worker.claim():
        assert await timers(lab) == []
        await worker.settle(*map(success, claims))
    assert await lab.state(task) == "complete"
    assert await timers(lab) == []
