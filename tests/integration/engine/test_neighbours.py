"""What is done to one run touches no other, not even those whose steps have the ids right before and after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from support.engine import Lab, step, success

# Two roots: the first step of a run is the one that an off-by-one of its neighbour's range would reach.
GRAPH = [step("a"), step("b"), step("below", "a", "b")]

Act = Callable[[Lab, UUID], Awaitable[object]]


async def cancel(lab: Lab, task: UUID) -> None:
    assert await lab.engine.actions.cancel(task, actor="ann", reason="x")


async def pass_deadline(lab: Lab, task: UUID) -> None:
    task_id = await lab.value("select task_id from tasker.tasks where task_uuid = %s", task)
    assert await lab.value("select tasker.fail_task(%s, 'sweep', 'deadline_exceeded', 'late')", task_id)


async def suspend(lab: Lab, task: UUID) -> None:
    assert await lab.engine.actions.suspend(task, actor="ann", reason="x")


async def suspend_and_resume(lab: Lab, task: UUID) -> None:
    await suspend(lab, task)
    assert await lab.engine.actions.resume(task, actor="ann", reason="x")


async def rows_of_others(lab: Lab, task: UUID) -> dict[str, list[dict[str, Any]]]:
    """All rows but those of a run."""
    task_id = await lab.value("select task_id from tasker.tasks where task_uuid = %s", task)
    return {
        table: [row for row in rows if (row["task_id"] if row.get("task_id") else row["step_id"] >> 20) != task_id]
        for table, rows in (await lab.dump()).items()
    }


async def three_runs(lab: Lab, claimed: str) -> tuple[UUID, UUID, UUID]:
    """Three runs with ids in a row; of each a worker has the step `claimed` and the other root is in the queue."""
    other = "b" if claimed == "a" else "a"
    await lab.clock.freeze()
    await lab.template(*(step(name, callable=name, scheduleTimeoutSeconds=900) for name in ("a", "b")), GRAPH[2])
    before, task, after = [await lab.submit(deadline_seconds=900) for _ in range(3)]
    assert len(await (await lab.worker(callables=[claimed])).claim()) == 3
    assert await lab.queue() == [other] * 3
    return before, task, after


@pytest.mark.parametrize("claimed", ["a", "b"])
@pytest.mark.parametrize("act", [cancel, pass_deadline, suspend, suspend_and_resume])
async def test_what_happens_to_a_run_changes_no_row_of_its_neighbours(lab: Lab, act: Act, claimed: str) -> None:
    _, task, _ = await three_runs(lab, claimed)
    others = await rows_of_others(lab, task)
    await act(lab, task)
    assert await rows_of_others(lab, task) == others


@pytest.mark.parametrize("claimed", ["a", "b"])
async def test_a_summary_shows_only_what_its_run_holds(lab: Lab, claimed: str) -> None:
    before, task, after = await three_runs(lab, claimed)
    await lab.clock.advance(61)
    for each in (
        await lab.engine.tasks.read(task),
        await lab.engine.tasks.read(before),
        await lab.engine.tasks.read(after),
    ):
        assert (each.counts.running, each.counts.ready, each.counts.pending) == (1, 1, 1)
        assert [missing.steps for missing in each.waiting_for_worker] == [1]


@pytest.mark.parametrize("claimed", ["a", "b"])
async def test_lost_steps_are_missed_by_their_runs_own_account(lab: Lab, claimed: str) -> None:
    """What the neighbours have in the queue and in hand makes up for none, and two runs may miss steps at once."""
    before, task, after = await three_runs(lab, claimed)
    other = "b" if claimed == "a" else "a"
    await lab.clock.advance(6)
    for lost in ([task], [before, task], [task, after]):
        for each in lost:
            step_id = (await lab.steps(each))[other]["step_id"]
            assert await lab.execute("delete from tasker.ready_steps where step_id = %s", step_id) == 1
        assert await lab.engine.workers.sweep() == {"lost_steps_requeued": len(lost)}
        assert await lab.queue() == [other] * 3


async def test_all_lost_steps_of_a_run_are_found_at_once(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(*GRAPH)
    await lab.execute("delete from tasker.ready_steps")
    await lab.clock.advance(6)
    assert await lab.engine.workers.sweep() == {"lost_steps_requeued": 2}


async def test_steps_of_a_suspended_run_are_not_lost(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(*GRAPH)
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    await lab.clock.advance(6)
    assert await lab.engine.workers.sweep() == {}


async def test_the_end_of_one_run_takes_no_timer_of_another_settled_in_the_same_call(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a"), name="short")
    await lab.template(step("a"), step("b", "a"), name="long")
    await lab.submit("short", deadline_seconds=60)
    goes_on = await lab.submit("long", deadline_seconds=60)
    worker = await lab.worker()
    await worker.settle(*map(success, await worker.claim()))
    rows = await lab.rows("select t.task_uuid, x.kind from tasker.timers x join tasker.tasks t using (task_id)")
    assert rows == [{"task_uuid": goes_on, "kind": "deadline"}]
