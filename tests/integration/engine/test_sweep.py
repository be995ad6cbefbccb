"""The sweep repairs what time has broken: every kind of repair, each as often as it is called and no more than once."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from support.engine import SOON, Lab, connect, failure, release, step, success


async def test_with_nothing_to_repair_it_does_nothing(lab: Lab) -> None:
    assert await lab.engine.workers.sweep() == {}
    await lab.run(step("a"), step("b", "a"), deadline_seconds=60)
    await (await lab.worker()).claim_one()
    before = await lab.dump()
    assert await lab.engine.workers.sweep() == {}
    assert await lab.dump() == before


async def test_every_kind_of_repair_is_made_in_one_call_and_then_there_is_none_left(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a"), name="lost")
    await lab.template(step("a", retry=SOON), name="retried")
    await lab.template(step("a", scheduleTimeoutSeconds=5, callable="nobody"), name="never-taken")
    await lab.template(step("a", callable="nobody"), name="late")
    await lab.template(step("a", timeoutSeconds=1), name="hung")
    await lab.template(step("a", callable="nobody"), name="mislaid")
    await lab.template(step("a", callable="nobody"), name="unoffered", lifecycle={"maxWaitingForWorkerSeconds": 60})
    await lab.template(step("a", callable="nobody"), name="stale", lifecycle={"maxStepsInProcessSeconds": 60})
    lost = await lab.submit("lost")
    dead = await lab.worker("dead", lease_seconds=90)
    await dead.claim_one()
    retried = await lab.submit("retried")
    worker = await lab.worker("alive", lease_seconds=1000)
    await worker.settle(failure(await worker.claim_one()))
    never_taken = await lab.submit("never-taken")
    late = await lab.submit("late", deadline_seconds=60)
    hung = await lab.submit("hung")
    await worker.claim_one()
    mislaid = await lab.submit("mislaid")
    first = (await lab.steps(mislaid))["a"]["step_id"]
    assert await lab.execute("delete from tasker.ready_steps where step_id = %s", first) == 1
    unoffered = await lab.submit("unoffered")
    # As after the first of the two looks for a worker.
    await lab.execute("update tasker.timers set kind = 'worker_still_missing' where kind = 'worker_missing'")
    stale = await lab.submit("stale")
    await lab.clock.advance(91)
    assert await lab.engine.workers.sweep() == {
        "workers_expired": 1,
        "leases_expired": 1,
        "attempts_timed_out": 1,
        "retries_due": 1,
        "schedule_timeouts": 1,
        "workers_awaited": 1,
        "deadlines_passed": 1,
        "state_limits_passed": 1,
        "lost_steps_requeued": 1,
    }
    for task in (lost, hung, retried, mislaid):
        assert await lab.step_states(task) == {"a": "enqueued"}
    assert await lab.state(never_taken) == await lab.state(late) == await lab.state(unoffered) == "error"
    assert (await lab.engine.tasks.read(stale)).stale is not None
    after = await lab.dump()
    assert await lab.engine.workers.sweep() == {}
    assert await lab.dump() == after


async def test_only_one_sweep_works_at_a_time(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", retry=SOON))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one()))
    await lab.clock.advance(0.001)
    async with await connect(lab.url) as connection, connection.transaction():
        cursor = await connection.execute("select * from tasker.sweep(10)")
        assert await cursor.fetchall() == [{"repair": "retries_due", "repaired": 1}]
        assert await lab.engine.workers.sweep() == {}, "it must neither wait nor repeat"
    assert await lab.engine.workers.sweep() == {}
    assert await lab.queue() == ["a"]


async def test_a_run_that_somebody_holds_is_left_for_later_and_stops_no_other_repair(own_lab: Lab) -> None:
    lab = own_lab
    await _refuse_to_wait(lab)
    await lab.clock.freeze()
    await lab.template(step("a", retry=SOON, callable="fail"), name="retried")
    await lab.template(step("a", scheduleTimeoutSeconds=5, callable="nobody"), name="never-taken")
    await lab.template(step("a", callable="nobody"), name="late")
    await lab.template(step("a", timeoutSeconds=1, callable="hang"), name="hung")
    await lab.template(step("a", callable="lose"), name="lost")
    await lab.template(step("a", callable="nobody"), name="mislaid")
    names = ("retried", "hung", "lost", "never-taken", "late", "mislaid")
    requests: dict[str, dict[str, Any]] = {"late": {"deadline_seconds": 60}}
    held, free = [{name: await lab.submit(name, **requests.get(name, {})) for name in names} for _ in ("held", "free")]
    failing = await lab.worker("failing", callables=["fail"], lease_seconds=1000)
    await failing.settle(*(failure(claim) for claim in await failing.claim()))
    assert len(await (await lab.worker("hanging", callables=["hang"], lease_seconds=1000)).claim()) == 2
    assert len(await (await lab.worker("dead", callables=["lose"], lease_seconds=90)).claim()) == 2
    for tasks in (held, free):
        mislaid = (await lab.steps(tasks["mislaid"]))["a"]["step_id"]
        await lab.execute("delete from tasker.ready_steps where step_id = %s", mislaid)
    await lab.clock.advance(91)
    once = {
        "leases_expired": 1,
        "attempts_timed_out": 1,
        "retries_due": 1,
        "schedule_timeouts": 1,
        "deadlines_passed": 1,
        "lost_steps_requeued": 1,
    }
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.tasks where task_uuid = any (%s) for update", (list(held.values()),))
        assert await _sweep(lab) == once
        assert await _sweep(lab) == {}
        assert [await lab.state(free[name]) for name in ("never-taken", "late")] == ["error", "error"]
        assert await lab.value("select count(*) from tasker.workers where name = 'dead'") == 1
    assert await lab.engine.workers.sweep() == {**once, "workers_expired": 1}
    assert await lab.engine.workers.sweep() == {}
    assert [await lab.state(held[name]) for name in ("never-taken", "late")] == ["error", "error"]


async def _refuse_to_wait(lab: Lab) -> None:
    """Make any wait of a sweep for somebody's lock an error."""
    await lab.execute("alter function tasker.sweep(integer) reset lock_timeout")
    await lab.execute("set lock_timeout = '1ms'")


async def _sweep(lab: Lab) -> dict[str, int]:
    """A sweep over the connection that refuses to wait."""
    return {row["repair"]: row["repaired"] for row in await lab.rows("select * from tasker.sweep(500)")}


async def test_a_lost_worker_whose_row_is_held_is_left_for_later(own_lab: Lab) -> None:
    """A claim or settlement of its own holds it: that is not waited for, and others go on."""
    lab = own_lab
    await _refuse_to_wait(lab)
    await lab.clock.freeze()
    await lab.run(step("a"), step("b"))
    for name in ("held", "free"):
        await (await lab.worker(name)).claim_one()
    await lab.clock.advance(31)
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.workers where name = 'held' for key share")
        assert await _sweep(lab) == {"workers_expired": 1, "leases_expired": 1}
    assert await lab.engine.workers.sweep() == {"workers_expired": 1, "leases_expired": 1}


async def test_a_long_read_of_the_history_keeps_partitions_from_being_made_and_nothing_else(own_lab: Lab) -> None:
    lab = own_lab
    await lab.clock.freeze()
    await lab.template(step("a", callable="nobody"), name="late")
    task = await lab.submit("late", deadline_seconds=10)
    await lab.clock.advance(11)
    last = "tasker.step_log" + await lab.value(
        "select to_char((now() + interval '8 days') at time zone 'UTC', '_YYYYMMDD')"
    )
    await lab.execute(f"drop table {last}")
    before = "tasker.step_log" + await lab.value(
        "select to_char((now() + interval '7 days') at time zone 'UTC', '_YYYYMMDD')"
    )
    await lab.execute(f"drop table {before}")
    async with await connect(lab.url) as reader, reader.transaction():
        await reader.execute("select from tasker.step_log")
        async with asyncio.timeout(20):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await lab.execute("select tasker.ensure_partitions()")
            assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    assert await lab.state(task) == "error"
    assert (await lab.engine.workers.sweep())["partitions_created"] >= 2


async def test_a_sweep_repairs_no_more_than_its_limit_of_each_kind(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(*(step(f"s{n}", retry=SOON) for n in range(5)))
    await lab.template(step("a", callable="nobody"), name="late")
    await lab.submit()
    for _ in range(5):
        await lab.submit("late", deadline_seconds=10)
    worker = await lab.worker("dead-0")
    await worker.settle(*(failure(claim) for claim in await worker.claim()))
    for n in range(1, 5):
        await lab.worker(f"dead-{n}")
    await lab.clock.advance(31)
    for count in (2, 2, 1):
        assert await lab.engine.workers.sweep(2) == {
            "retries_due": count,
            "deadlines_passed": count,
            "workers_expired": count,
        }
    assert await lab.engine.workers.sweep(2) == {}


async def test_a_lost_step_goes_elsewhere_and_its_attempt_counts(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("b", "a"))
    dead = await lab.worker("dead", lease_seconds=30)
    await dead.claim_one()
    await lab.clock.advance(31)
    assert await lab.engine.workers.sweep() == {"workers_expired": 1, "leases_expired": 1}
    worker = await lab.worker("alive")
    assert (await worker.claim_one()).attempt == 2
    assert (await lab.step_log(task, "a"))[1:] == [
        "enqueued -start-> in_progress",
        "in_progress -lease_expired-> waiting_for_retry",
        "waiting_for_retry -retry-> enqueued",
        "enqueued -start-> in_progress",
    ]
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert (failed.error_type, failed.message, failed.final) == (
        "worker_crash_loop",
        "worker dead was lost during attempt 1: its lease was not renewed in time",
        False,
    )


async def test_a_step_whose_workers_keep_dying_ends_in_error_with_that_reason(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"maxAttempts": 3}))
    for attempt in range(1, 4):
        worker = await lab.worker(f"worker-{attempt}")
        assert (await worker.claim_one()).attempt == attempt
        await lab.clock.advance(31)
        assert (await lab.engine.workers.sweep())["leases_expired"] == 1
        await lab.engine.workers.sweep()
    assert (await lab.state(task), await lab.step_states(task)) == ("error", {"a": "error"})
    summary = await lab.engine.tasks.read(task)
    assert summary.error == {
        "reason": "steps_failed",
        "step": "a",
        "error_type": "worker_crash_loop",
        "message": "worker worker-3 was lost during attempt 3: its lease was not renewed in time",
    }
    assert (await lab.step_log(task, "a"))[-3:] == [
        "enqueued -start-> in_progress",
        "in_progress -submit_error-> enqueued_as_error_for_orchestration",
        "enqueued_as_error_for_orchestration -fail-> error",
    ]
    assert await (await lab.worker("worker-4")).claim() == []


async def test_a_step_that_must_not_be_repeated_is_not_run_again_when_it_was_lost_once(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"retryable": False, "maxAttempts": 9}))
    worker = await lab.worker("dead")
    await worker.claim_one()
    await lab.clock.advance(31)
    await lab.engine.workers.sweep()
    await lab.clock.advance(10_000)
    await lab.engine.workers.sweep()
    assert await (await lab.worker("alive")).claim() == []
    assert await lab.state(task) == "error"
    assert (await lab.engine.tasks.read(task)).failures[0].error_type == "worker_crash_loop"


async def test_an_attempt_that_never_ends_is_taken_from_a_worker_that_lives(lab: Lab) -> None:
    """The worker itself should have ended it; a minute later the sweep does."""
    await lab.clock.freeze()
    task = await lab.run(step("a", timeoutSeconds=10))
    worker = await lab.worker(lease_seconds=1000)
    claim = await worker.claim_one()
    await lab.clock.advance(70)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.001)
    assert await lab.engine.workers.sweep() == {"attempts_timed_out": 1}
    renewal = await worker.renew(claim)
    assert renewal.known and renewal.lost_fences == [claim.fence]
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "worker worker-1 was lost during attempt 1: the attempt is far over its timeout"
    await lab.put_setting("timeout_grace_seconds", 0)
    claim = await worker.claim_one()
    await lab.clock.advance(10.001)
    assert await lab.engine.workers.sweep() == {"attempts_timed_out": 1}


async def test_a_step_that_nobody_takes_in_time_fails_without_being_run(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(
        step("a", scheduleTimeoutSeconds=60, callable="nobody", retry={"maxAttempts": 5}), step("b", "a")
    )
    await lab.clock.advance(59)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(1)
    assert await lab.engine.workers.sweep() == {"schedule_timeouts": 1}
    summary = await lab.engine.tasks.read(task)
    assert summary.state == "error"
    (failed,) = summary.failures
    assert (failed.error_type, failed.message, failed.final) == (
        "schedule_timeout",
        "no worker took the step within its scheduleTimeoutSeconds",
        True,
    )
    assert await lab.queue() == []
    assert await lab.value("select count(*) from tasker.leases") == 0


async def test_a_step_that_was_taken_in_time_does_not_fail_later(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(
        step("a", scheduleTimeoutSeconds=60, retry={"backoff": "linear", "baseMs": 30_000, "jitter": 0})
    )
    worker = await lab.worker(lease_seconds=1000)
    await lab.clock.advance(59)
    claim = await worker.claim_one()
    await lab.clock.advance(2)
    assert await lab.engine.workers.sweep() == {}
    await worker.settle(failure(claim))
    await lab.clock.advance(31)
    assert await lab.engine.workers.sweep() == {"retries_due": 1}
    await lab.clock.advance(59)
    assert await lab.engine.workers.sweep() == {}, "it waits anew for its second attempt"
    await lab.clock.advance(1)
    assert await lab.engine.workers.sweep() == {"schedule_timeouts": 1}
    assert await lab.state(task) == "error"


@pytest.mark.parametrize("how", ["released", "suspended"])
async def test_waiting_counts_anew_for_a_step_that_comes_back_to_the_queue(lab: Lab, how: str) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", scheduleTimeoutSeconds=60))
    worker = await lab.worker(lease_seconds=1000)
    await lab.clock.advance(50)
    if how == "released":
        await worker.settle(release(await worker.claim_one()))
    else:
        await lab.engine.actions.suspend(task, actor="ann", reason="x")
        await lab.clock.advance(5)
        await lab.engine.actions.resume(task, actor="ann", reason="x")
    await lab.clock.advance(55)
    assert await lab.engine.workers.sweep() == {}
    assert await lab.step_states(task) == {"a": "enqueued"}
    await lab.clock.advance(5)
    assert await lab.engine.workers.sweep() == {"schedule_timeouts": 1}


async def test_a_suspended_run_does_not_fail_for_want_of_a_worker(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", scheduleTimeoutSeconds=60), suspended=True)
    await lab.clock.advance(1000)
    assert await lab.engine.workers.sweep() == {}
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    await lab.clock.advance(59)
    assert await lab.engine.workers.sweep() == {}
    assert await (await lab.worker()).run_all() == ["a"]


async def test_a_retry_that_falls_due_while_the_run_is_suspended_waits_for_its_resumption(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=SOON))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one()))
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    await lab.clock.advance(0.001)
    assert await lab.engine.workers.sweep() == {"retries_due": 1}
    assert await lab.queue() == [] and await worker.claim() == []
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    assert await worker.run_all() == ["a"]
    assert await lab.state(task) == "complete"


async def test_a_step_that_should_be_queued_and_is_not_is_queued_again_after_a_while(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("b"), step("c"))
    ids = {name: row["step_id"] for name, row in (await lab.steps(task)).items()}
    worker = await lab.worker(lease_seconds=1000)
    running = await worker.claim_one()
    await lab.execute("delete from tasker.ready_steps where step_id = %s", ids["b"])
    await lab.clock.advance(5)
    assert await lab.engine.workers.sweep() == {}, "it may just be on its way"
    await lab.clock.advance(0.001)
    assert await lab.engine.workers.sweep() == {"lost_steps_requeued": 1}
    assert await lab.engine.workers.sweep() == {}
    assert await lab.queue() == ["b", "c"]
    await worker.settle(success(running))
    assert sorted(await worker.run_all()) == ["b", "c"]
    assert await lab.state(task) == "complete"


async def test_lost_steps_are_found_in_any_of_many_runs_within_a_few_sweeps(lab: Lab) -> None:
    """Each sweep looks at a hundred open runs and goes on from there the next time."""
    await lab.clock.freeze()
    await lab.template(step("a"))
    tasks = [await lab.submit() for _ in range(5)]
    first = (await lab.rows("select max(task_id) as id from tasker.tasks"))[0]["id"]
    assert first is not None
    await lab.execute(
        "select tasker.submit_tasks('shop', (select json_agg(json_build_object('template_name', 'order'))"
        " from generate_series(1, 250)))"
    )
    last = await lab.value("select max(step_id) from tasker.ready_steps")
    early = (await lab.steps(tasks[0]))["a"]["step_id"]
    await lab.clock.advance(6)
    await lab.execute("delete from tasker.ready_steps where step_id in (%s, %s)", last, early)
    repaired = [(await lab.engine.workers.sweep()).get("lost_steps_requeued", 0) for _ in range(4)]
    assert repaired == [1, 0, 1, 0]
    await lab.execute("delete from tasker.ready_steps where step_id in (%s, %s)", last, early)
    repaired = [(await lab.engine.workers.sweep()).get("lost_steps_requeued", 0) for _ in range(4)]
    assert sum(repaired) == 2, "it begins anew after the last run"
