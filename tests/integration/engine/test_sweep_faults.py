"""What goes wrong with one repair stops no other: rows that cannot be repaired, days without a sweep, a server away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import pytest

from support.engine import SOON, Lab, failure, step, success

POISON = """
create function tasker.fail() returns trigger language plpgsql as $$ begin raise exception 'this row is cursed'; end $$;
create trigger cursed_task before update on tasker.tasks for each row
    when (new.origin_uid = 'cursed') execute function tasker.fail();
"""


async def retries(lab: Lab) -> None:
    worker = await lab.worker()
    await worker.settle(*(failure(claim) for claim in await worker.claim()))


async def deadlines(lab: Lab) -> None:
    """Their time is over without more ado."""


async def workers(lab: Lab) -> None:
    for name in ("gone-0", "gone-1", "gone-2"):
        await (await lab.worker(name, lease_seconds=40)).claim_one()


async def timeouts(lab: Lab) -> None:
    await (await lab.worker(lease_seconds=100_000)).claim()


@pytest.mark.parametrize(
    ("prepare", "seconds", "repair", "state"),
    [
        (retries, 0.002, "retries_due", "steps_in_process"),
        (deadlines, 301, "deadlines_passed", "error"),
        (workers, 41, "leases_expired", "steps_in_process"),
        (timeouts, 131, "attempts_timed_out", "steps_in_process"),
        (deadlines, 201, "schedule_timeouts", "error"),
    ],
)
async def test_a_row_that_cannot_be_repaired_is_parked_and_keeps_no_other(
    own_lab: Lab, prepare: Callable[[Lab], Awaitable[None]], seconds: float, repair: str, state: str
) -> None:
    lab = own_lab
    await lab.clock.freeze()
    timeout = 70 if repair == "attempts_timed_out" else 10_000
    await lab.template(step("a", retry=SOON, timeoutSeconds=timeout, scheduleTimeoutSeconds=200), step("b", "a"))
    runs: dict[str, UUID] = {}
    for uid in ("one", "cursed", "two"):
        deadline = 300 if repair == "deadlines_passed" else None
        runs[uid] = await lab.submit(origin_uid=uid, deadline_seconds=deadline)
    if repair == "deadlines_passed":
        await lab.execute("delete from tasker.timers where kind = 'schedule_timeout'")
    await prepare(lab)
    await lab.clock.advance(seconds)
    await lab.connection.execute(POISON.encode())
    repaired = await lab.engine.workers.sweep()
    assert (repaired[repair], repaired["repairs_parked"]) == (2, 1)
    assert {uid: await lab.state(runs[uid]) for uid in ("one", "two")} == {"one": state, "two": state}
    (parked,) = await lab.rows("select kind, reason from tasker.parked_repairs")
    assert parked == {"kind": repair, "reason": "this row is cursed"}
    assert repair not in await lab.engine.workers.sweep(), "it is left alone for a while"

    await lab.execute("drop trigger cursed_task on tasker.tasks")
    await lab.clock.advance(299)
    assert repair not in await lab.engine.workers.sweep()
    await lab.clock.advance(2)
    assert (await lab.engine.workers.sweep())[repair] == 1
    await lab.clock.advance(3601)
    await lab.engine.workers.sweep()
    assert await lab.rows("select * from tasker.parked_repairs") == []


async def test_a_kind_of_repair_that_finds_nothing_for_a_fault_stops_no_other(own_lab: Lab) -> None:
    lab = own_lab
    await lab.clock.freeze()
    await lab.template(step("a"))
    task = await lab.submit(deadline_seconds=10)
    await lab.clock.advance(11)
    await lab.execute(
        "create or replace function tasker.due_leases_expired(p_limit integer, p_now timestamptz) returns bigint[]"
        " language plpgsql as $$ begin raise exception 'broken'; end $$"
    )
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    assert await lab.state(task) == "error"


async def test_history_of_a_day_for_which_nobody_had_made_a_partition_is_moved_into_one(own_lab: Lab) -> None:
    lab = own_lab
    task = await lab.run(step("a"))
    before = await lab.task_log(task)
    in_a_week = await lab.value("select now() + interval '7 days'")
    days = [in_a_week, in_a_week + timedelta(days=30), in_a_week - timedelta(days=90)]
    names = [f"tasker.task_log_{day:%Y%m%d}" for day in days]
    for name in (names[0], names[0].replace("task_log", "step_log")):
        await lab.execute(f"drop table {name}")
    for day in days:
        await lab.execute(
            "insert into tasker.task_log (task_id, at, passage, actor_id)"
            " select task_id, %s, 'kept_running', 1 from tasker.tasks",
            day,
        )
    assert await lab.value("select count(*) from tasker.task_log_default") == 3
    assert (await lab.engine.workers.sweep())["partitions_created"] >= 3
    assert await lab.value("select count(*) from tasker.task_log_default") == 0
    assert [await lab.value(f"select count(*) from {name}") for name in names] == [1, 1, 1]
    assert len(await lab.task_log(task)) == len(before) + 6
    assert await lab.value("select tasker.ensure_partitions()") == 0
    assert await lab.execute(
        "insert into tasker.task_log (task_id, at, passage, actor_id) values (1, now(), 'failed', 1)"
    )


async def test_after_the_server_was_away_nobody_is_late_for_half_a_lease(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a", retry={"maxAttempts": 1}), step("b", retry={"maxAttempts": 1}))
    task = await lab.submit()
    back, gone = await lab.worker("back-0", lease_seconds=30), await lab.worker("gone-0", lease_seconds=30)
    await lab.worker("idle-0", lease_seconds=30)
    claim, _ = await back.claim_one(), await gone.claim_one()
    await no_sweeps(lab, 600)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(14)
    assert (await back.renew(claim)).known
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(2)
    assert await lab.engine.workers.sweep() == {"leases_expired": 1, "workers_expired": 2}
    assert (await back.settle(success(claim))).settled == [claim.step_id]
    assert await lab.state(task) == "error"


async def test_a_server_that_was_just_started_gives_workers_their_time_too(lab: Lab) -> None:
    started = await lab.value("select pg_postmaster_start_time()")
    assert await lab.value("select tasker.reachable_since()") == started
    await lab.clock.set(started + timedelta(seconds=1))
    await lab.worker("late-0", lease_seconds=2)
    await lab.execute("update tasker.workers set lease_until = tasker.now() - interval '1 minute'")
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(0.1)
    assert await lab.engine.workers.sweep() == {"workers_expired": 1}


async def test_that_sweeps_take_place_is_written_down_every_few_seconds_only(lab: Lab) -> None:
    began = await lab.clock.freeze()
    noted = "select (value #>> '{}')::timestamptz from tasker.settings where key = 'swept_at'"
    for seconds, expected in ((4, 0), (0.9, 0), (0.2, 5.1), (4, 5.1)):
        moment = await lab.clock.now() + timedelta(seconds=seconds)
        await lab.execute(
            "update tasker.settings set value = jsonb_build_object('now', %s::text) where key = 'test_clock'",
            moment.isoformat(),
        )
        await lab.engine.workers.sweep()
        assert await lab.value(noted) == began + timedelta(seconds=expected)


async def no_sweeps(lab: Lab, seconds: float) -> None:
    """Time passes in which nobody reaches the database."""
    swept_at = await lab.clock.now()
    await lab.clock.advance(seconds)
    await lab.execute(
        "update tasker.settings set value = to_jsonb(%s::text) where key = 'swept_at'", swept_at.isoformat()
    )


async def test_a_step_s_wait_in_the_queue_is_measured_by_its_own_limit(lab: Lab) -> None:
    """Not by that of another step of its template: it came into the queue anew while an older timer went on."""
    await lab.clock.freeze()
    task = await lab.run(
        step("a", callable="nobody", scheduleTimeoutSeconds=100), step("b", "a", scheduleTimeoutSeconds=10)
    )
    await lab.clock.advance(50)
    assert await lab.engine.actions.suspend(task, actor="ann", reason="x")
    await lab.clock.advance(10)
    assert await lab.engine.actions.resume(task, actor="ann", reason="x")
    await lab.clock.advance(41)
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(59)
    assert await lab.engine.workers.sweep() == {"schedule_timeouts": 1}
    assert await lab.state(task) == "error"


async def test_what_was_found_due_is_looked_at_again_under_the_lock(lab: Lab) -> None:
    """It may have ended, and begun anew, before its run was locked."""
    await lab.clock.freeze()
    await lab.run(step("a"), step("b", callable="nobody", scheduleTimeoutSeconds=100))
    claim = await (await lab.worker()).claim_one()
    before = await lab.dump()
    for repair, found in (
        ("attempts_timed_out", claim.step_id),
        ("leases_expired", await lab.value("select worker_id from tasker.workers")),
        ("workers_expired", await lab.value("select worker_id from tasker.workers")),
        ("lost_steps_requeued", claim.step_id),
    ):
        done = await lab.value(f"select tasker.repair_{repair}(array[%s]::bigint[], 'me')", found)
        assert not done, repair
    assert await lab.dump() == before
