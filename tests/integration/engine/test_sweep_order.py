"""In what order and portions a sweep works, and that it leaves nothing behind that is done."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from support.engine import Lab, connect, failure, release, step
from support.waiting import eventually_async
from tasker.model.task import TaskRequest


async def due_timers(lab: Lab) -> int:
    """Timers that no later sweep need see."""
    return int(await lab.value("select count(*) from tasker.timers where due_at <= tasker.now()"))


async def in_reverse(lab: Lab, kind: str) -> list[UUID]:
    """Three runs, of which the one that was made last has the timer of this kind that is due first."""
    tasks: list[UUID] = []
    for wait in (50, 40, 30):
        retry = {"backoff": "linear", "baseMs": wait * 1000, "maxMs": 99_000, "jitter": 0}
        timeouts: dict[str, Any] = {"scheduleTimeoutSeconds": wait} if kind == "schedule_timeout" else {}
        await lab.template(step("a", retry=retry, **timeouts), name=f"t{wait}")
        tasks.append(await lab.submit(f"t{wait}", deadline_seconds=wait if kind == "deadline" else None))
    if kind == "retry":
        worker = await lab.worker(lease_seconds=1000)
        await worker.settle(*map(failure, await worker.claim()))
    return tasks[::-1]


@pytest.mark.parametrize("kind", ["retry", "schedule_timeout", "deadline"])
async def test_what_has_been_due_for_longest_is_repaired_first(lab: Lab, kind: str) -> None:
    await lab.clock.freeze()
    tasks = await in_reverse(lab, kind)
    await lab.clock.advance(60)
    before = [await lab.state(task) for task in tasks]
    await lab.execute("set enable_indexscan = off")  # of the timers, which would bring them in order by chance
    for done in range(1, 4):
        assert [row["repaired"] for row in await lab.rows("select * from tasker.sweep(1)")] == [1]
        changed = [await lab.state(task) != was for task, was in zip(tasks, before, strict=True)]
        assert changed == [True] * done + [False] * (3 - done)
        assert await due_timers(lab) == 3 - done
    assert await lab.engine.workers.sweep(1) == {}


async def test_a_timer_that_says_nothing_any_more_is_removed(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", scheduleTimeoutSeconds=60))
    worker = await lab.worker(lease_seconds=1000)
    await lab.clock.advance(50)
    await worker.settle(release(await worker.claim_one()))
    assert await lab.value("select count(*) from tasker.timers") == 2
    await lab.clock.advance(10)
    assert await lab.engine.workers.sweep() == {}
    assert await lab.rows("select due_at - tasker.now() as left from tasker.timers") == [
        {"left": timedelta(seconds=50)}
    ]


async def test_steps_that_are_not_due_are_not_tried_again_whoever_asks(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"backoff": "linear", "baseMs": 1000, "jitter": 0}), step("b"))
    worker = await lab.worker()
    claims = await worker.claim()
    await worker.settle(failure(claims[0]))
    ids = [row["step_id"] for row in (await lab.steps(task)).values()]
    before = await lab.dump()
    query = "select tasker.retry_steps(%s, 1, tasker.now() + %s)"
    assert await lab.value(query, ids, timedelta(seconds=0.999)) == 0
    assert await lab.dump() == before
    assert await lab.value(query, ids, timedelta(seconds=1)) == 1
    assert await lab.step_states(task) == {"a": "enqueued", "b": "in_progress"}


async def test_a_hundred_open_runs_are_looked_at_each_time_and_the_very_first_every_time_around(own_lab: Lab) -> None:
    lab = own_lab
    await lab.clock.freeze()
    await lab.template(step("a"))
    await lab.engine.tasks.submit("shop", [TaskRequest(template_name="order")] * 250)
    ids = [row["task_id"] for row in await lab.rows("select task_id from tasker.tasks order by task_id")]
    assert ids[0] == 1
    await lab.clock.advance(6)

    async def lose(*places: int) -> None:
        lost = [ids[place] << 20 for place in places]
        assert await lab.execute("delete from tasker.ready_steps where step_id = any (%s)", lost) == len(places)

    await lose(0, 99, 100, 199)
    for _ in range(2):
        cursors: list[object] = []
        for repaired in (2, 2, 0):
            assert (await lab.engine.workers.sweep()).get("lost_steps_requeued", 0) == repaired
            cursors.append(await lab.value("select value from tasker.settings where key = 'sweep_cursor'"))
        assert cursors == [ids[99], ids[199], 0]
        await lose(0, 99, 100, 199)


async def test_a_sweep_with_nothing_to_do_writes_nothing(lab: Lab) -> None:
    await lab.run(step("a"))
    await lab.engine.workers.sweep()
    version = "select xmin::text from tasker.settings where key = 'sweep_cursor'"
    before = await lab.value(version)
    await lab.engine.workers.sweep()
    assert await lab.value(version) == before


async def test_an_attempt_whose_worker_is_gone_without_a_trace_is_taken_back_all_the_same(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", timeoutSeconds=1))
    await (await lab.worker()).claim_one()
    await lab.execute("delete from tasker.workers")
    await lab.clock.advance(61.001)
    assert await lab.engine.workers.sweep() == {"attempts_timed_out": 1}
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "worker unknown was lost during attempt 1: the attempt is far over its timeout"
    assert failed.error_type == "worker_crash_loop"


async def test_a_lease_that_is_gone_takes_no_reason_from_one_that_expires_with_it(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b"))
    a, b = await (await lab.worker()).claim()
    await lab.execute("delete from tasker.leases where step_id = %s", a.step_id)
    arguments = [a.step_id, b.step_id], [a.fence, b.fence]
    assert await lab.value("select tasker.expire_leases('me', %s, %s, 'why')", *arguments) == 1
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert (failed.step, failed.message) == ("b", "worker worker-1 was lost during attempt 1: why")


async def test_partitions_cover_each_a_day_of_utc_whatever_the_session_calls_a_day(own_lab: Lab) -> None:
    lab = own_lab
    bounds = """select inhrelid::regclass::text as name, pg_get_expr(c.relpartbound, c.oid) as bound
        from pg_inherits join pg_class c on c.oid = inhrelid
        where inhparent in ('tasker.task_log'::regclass, 'tasker.step_log'::regclass)
            and pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT' order by 1"""
    await lab.execute("set timezone = 'UTC'")
    made = await lab.rows(bounds)
    assert len(made) == 18, "today and the eight days that follow, for each of the two logs"
    today = datetime.strptime(made[0]["name"][-8:], "%Y%m%d").replace(tzinfo=UTC)
    days = [today + timedelta(days=day) for day in range(10)]
    assert made == [
        {
            "name": f"tasker.{log}_{day:%Y%m%d}",
            "bound": f"FOR VALUES FROM ('{day:%Y-%m-%d} 00:00:00+00') TO ('{following:%Y-%m-%d} 00:00:00+00')",
        }
        for log in ("step_log", "task_log")
        for day, following in pairwise(days)
    ]
    for partition in made:
        await lab.execute(f"drop table {partition['name']}")
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12"):  # where it is tomorrow, or yesterday, most of the time
        await lab.execute(f"set timezone = '{zone}'")
        assert await lab.value("select tasker.ensure_partitions()") == (18 if zone.startswith("P") else 0)
    await lab.execute("set timezone = 'UTC'")
    assert await lab.rows(bounds) == made


async def test_two_that_make_partitions_wait_for_each_other(own_lab: Lab) -> None:
    lab = own_lab
    await lab.execute("alter function tasker.ensure_partitions() reset lock_timeout")  # however slow this machine is
    newest = await lab.value(
        "select max(inhrelid::regclass::text) from pg_inherits where inhparent = 'tasker.task_log'::regclass"
        " and inhrelid::regclass::text not like '%%default'"
    )
    await lab.execute(f"drop table {newest}")
    async with await connect(lab.url) as first, await connect(lab.url) as second:
        await first.execute("begin")
        assert await (await first.execute("select tasker.ensure_partitions()")).fetchone() == {"ensure_partitions": 1}
        waiting = asyncio.ensure_future(second.execute("select tasker.ensure_partitions()"))
        await eventually_async(partial(_waits, lab, second.info.backend_pid))
        await first.execute("commit")
        assert await (await waiting).fetchone() == {"ensure_partitions": 0}


async def _waits(lab: Lab, pid: int) -> bool:
    """Whether a session's statement waits for a lock."""
    return bool(
        await lab.value("select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", pid)
    )
