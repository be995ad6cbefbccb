"""No more runs of a template are under way than it allows; the others wait in order, and none longer than it must."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest

from support.engine import NAMESPACE, NO_DELAY, SOON, Lab, SimulatedWorker, connect, failure, step, success
from support.invariants import check_invariants
from tasker.errors import ActionRefused
from tasker.model.task import StepCounts, TaskRequest, WaitingForPlace

TWO_STEPS = [step("a", retry=SOON), step("b", "a")]


async def limited(lab: Lab, max_tasks: int | None, *steps: Any, **more: Any) -> None:
    concurrency = {} if max_tasks is None else {"maxTasks": max_tasks}
    await lab.template(*(steps or TWO_STEPS), concurrency=concurrency, **more)


async def states(lab: Lab, *tasks: UUID) -> list[str]:
    return [await lab.state(task) for task in tasks]


async def sound(lab: Lab) -> bool:
    return await check_invariants(lab.connection) == []


async def test_a_run_beyond_the_limit_waits_with_all_its_steps(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await limited(lab, 2)
    first, second, third = [await lab.submit() for _ in range(3)]
    assert await states(lab, first, second, third) == ["steps_in_process", "steps_in_process", "pending"]
    assert await lab.step_states(third) == {"a": "pending", "b": "pending"}
    assert await lab.queue() == ["a", "a"]
    summary = await lab.engine.tasks.read(third)
    assert summary.counts == StepCounts(
        total=2, pending=2, ready=0, running=0, waiting=0, complete=0, failed=0, cancelled=0
    )
    assert (summary.created_at, summary.started_at) == (now, None)
    assert summary.waiting_for_place == WaitingForPlace(max_tasks=2, taken=2)
    assert (await lab.engine.tasks.read(first)).waiting_for_place is None
    counts = await lab.engine.templates.counts(NAMESPACE, "order")
    assert (counts.running, counts.waiting) == (2, 1)
    assert await lab.task_log(third) == []
    assert await lab.engine.workers.sweep() == {}
    assert await sound(lab)


async def test_the_end_of_a_run_lets_the_next_one_in_and_hands_it_to_the_worker_that_ended_it(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await limited(lab, 1, step("a"))
    first, second = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    claim = await worker.claim_one()
    assert claim.task_uuid == first
    later = await lab.clock.advance(5)
    settlement = await worker.settle(success(claim), claim_limit=1)
    assert [each.task_uuid for each in settlement.claims] == [second]
    assert await lab.task_log(second) == [
        "pending -start-> initializing",
        "initializing -ready_steps_found-> enqueuing_steps",
        "enqueuing_steps -steps_enqueued-> steps_in_process",
    ]
    summary = await lab.engine.tasks.read(second)
    assert (summary.created_at, summary.started_at) == (now, later)
    await worker.settle(success(settlement.claims[0]))
    assert await states(lab, first, second) == ["complete", "complete"]
    assert await sound(lab)


async def test_those_that_wait_come_oldest_first_and_priority_is_worth_six_seconds_a_point(lab: Lab) -> None:
    await lab.clock.freeze()
    await limited(lab, 1, step("a"))
    await lab.submit(reason="first")
    for seconds, priority, reason in [(0, 0, "old"), (7, 0, "young"), (1, 1, "young with a point"), (1, 2, "with two")]:
        await lab.clock.advance(seconds)
        await lab.submit(priority=priority, reason=reason)
    worker = await lab.worker()
    order = []
    for _ in range(5):
        claim = await worker.claim_one()
        order.append(await lab.value("select reason from tasker.tasks where task_uuid = %s", claim.task_uuid))
        await worker.settle(success(claim))
        await lab.clock.advance(1)
    assert order == ["first", "with two", "old", "young with a point", "young"]
    assert await sound(lab)


async def test_a_new_run_does_not_pass_one_that_waits(lab: Lab) -> None:
    await limited(lab, 1, step("a"))
    running, waiting = await lab.submit(), await lab.submit()
    async with lab.connection.transaction():  # so that nobody takes the place at once
        await lab.execute("select from tasker.concurrency_limits for update")
        async with await connect(lab.url) as other:
            await other.execute(
                "select tasker.cancel_task(task_id, 'ann', 'x') from tasker.tasks where task_uuid = %s", (running,)
            )
    assert await lab.state(waiting) == "pending"
    newest = await lab.submit()
    assert await states(lab, waiting, newest) == ["steps_in_process", "pending"]


async def test_a_set_that_is_larger_than_the_places_fills_them(lab: Lab) -> None:
    await limited(lab, 3)
    await lab.template(step("x"), name="other")
    names = ["order", "other"] * 5
    submitted = await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name=name) for name in names])
    assert await states(lab, *(each.task_uuid for each in submitted)) == [
        "pending" if name == "order" and place >= 6 else "steps_in_process" for place, name in enumerate(names)
    ]
    assert all(each.created for each in submitted)
    assert await sound(lab)


async def test_a_limit_is_of_one_template_in_one_namespace(lab: Lab) -> None:
    await limited(lab, 1)
    await limited(lab, 1, namespace="elsewhere")
    await limited(lab, 1, name="other")
    tasks = [await lab.submit(), await lab.submit(namespace="elsewhere"), await lab.submit("other")]
    assert set(await states(lab, *tasks)) == {"steps_in_process"}


@pytest.mark.parametrize("end", ["failed", "cancelled", "deadline", "resolved"])
async def test_every_end_of_a_run_gives_its_place_up(lab: Lab, end: str) -> None:
    await lab.clock.freeze()
    await limited(lab, 1, step("a", retry={"retryable": False}), step("b", "a"))
    first = await lab.submit(deadline_seconds=10)
    second = await lab.submit()
    worker = await lab.worker()
    match end:
        case "failed":
            await worker.settle(failure(await worker.claim_one(), retryable=False))
        case "cancelled":
            await lab.engine.actions.cancel(first, actor="ann", reason="x")
        case "deadline":
            await lab.clock.advance(11)
            assert (await lab.engine.workers.sweep())["deadlines_passed"] == 1
        case _:
            await lab.execute(
                "update tasker.tasks set state = 'resolved_manually', completed_at = tasker.now() where task_uuid = %s",
                first,
            )
    assert (await lab.engine.tasks.read(first)).finished
    assert await lab.state(second) == "steps_in_process"


async def test_a_run_that_waits_for_a_retry_keeps_its_place(lab: Lab) -> None:
    await lab.clock.freeze()
    await limited(lab, 1)
    first, second = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one()))
    assert await states(lab, first, second) == ["waiting_for_retry", "pending"]
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(1)
    await lab.engine.workers.sweep()
    assert await worker.run_all() == ["a", "b", "a", "b"]
    assert await sound(lab)


async def test_a_suspended_run_keeps_its_place_and_one_that_waits_suspended_is_passed_over(lab: Lab) -> None:
    await limited(lab, 1)
    running, held, third = [await lab.submit() for _ in range(3)]
    assert await lab.engine.actions.suspend(running, actor="ann", reason="x")
    assert await lab.engine.actions.suspend(held, actor="ann", reason="x")
    assert await lab.engine.workers.sweep() == {}
    assert await states(lab, running, held, third) == ["steps_in_process", "pending", "pending"]
    assert await lab.engine.actions.cancel(running, actor="ann", reason="x")
    assert await states(lab, held, third) == ["pending", "steps_in_process"]
    assert await lab.engine.actions.cancel(third, actor="ann", reason="x")
    assert await lab.state(held) == "pending"
    assert await lab.engine.actions.resume(held, actor="ann", reason="x")
    assert await lab.engine.workers.sweep() == {"admissions": 1}
    assert await lab.state(held) == "steps_in_process"
    assert await sound(lab)


async def test_a_run_that_is_submitted_suspended_takes_no_place(lab: Lab) -> None:
    await limited(lab, 1)
    held = await lab.submit(suspended=True)
    assert await lab.state(held) == "pending"
    assert await lab.state(await lab.submit()) == "steps_in_process"
    assert await sound(lab)


async def test_a_run_that_waits_can_be_cancelled_and_its_deadline_ends_it(lab: Lab) -> None:
    await lab.clock.freeze()
    await limited(lab, 1)
    await lab.submit()
    cancelled, late = await lab.submit(), await lab.submit(deadline_seconds=10)
    assert await lab.engine.actions.cancel(cancelled, actor="ann", reason="x")
    assert await lab.task_log(cancelled) == ["pending -cancel-> cancelled"]
    assert set((await lab.step_states(cancelled)).values()) == {"cancelled"}
    await lab.clock.advance(11)
    assert await lab.engine.workers.sweep() == {"deadlines_passed": 1}
    summary = await lab.engine.tasks.read(late)
    assert (str(summary.state), summary.error) == (
        "error",
        {"reason": "deadline_exceeded", "message": "the task passed its deadline"},
    )
    assert (await lab.task_log(late))[-1] == "enqueuing_steps -enqueue_failed-> error"
    assert await sound(lab)


async def test_a_run_that_is_taken_up_again_does_not_wait_and_counts(lab: Lab) -> None:
    await limited(lab, 1, step("a", retry={"retryable": False}))
    first, second, third = [await lab.submit() for _ in range(3)]
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), retryable=False))
    assert await states(lab, first, second, third) == ["error", "steps_in_process", "pending"]
    await lab.rows("select tasker.put_back_dead_letter(entry_uuid, 'ann', 'x') from tasker.dead_letters")
    assert await states(lab, first, second, third) == ["steps_in_process", "steps_in_process", "pending"]
    assert (await lab.engine.tasks.read(third)).waiting_for_place == WaitingForPlace(max_tasks=1, taken=2)
    await lab.engine.actions.cancel(second, actor="ann", reason="x")
    assert await lab.state(third) == "pending"
    await worker.settle(success(await worker.claim_one()))
    assert await states(lab, first, third) == ["complete", "steps_in_process"]
    assert await sound(lab)


async def test_nothing_is_done_to_the_steps_of_a_run_that_waits_but_one_that_was_cancelled_may_be_run_again(
    lab: Lab,
) -> None:
    await limited(lab, 1)
    first, waiting = await lab.submit(), await lab.submit()
    with pytest.raises(ActionRefused, match="is pending"):
        await lab.engine.actions.resolve_step(waiting, "a", actor="ann", reason="x")
    assert await lab.step_states(waiting) == {"a": "pending", "b": "pending"}
    await lab.engine.actions.cancel(waiting, actor="ann", reason="x")
    await lab.engine.actions.rerun(waiting, "a", actor="ann", reason="x")
    assert await states(lab, first, waiting) == ["steps_in_process", "steps_in_process"]
    assert await check_invariants(lab.connection) == []


async def test_a_changed_limit_holds_for_those_that_wait(lab: Lab) -> None:
    await limited(lab, 1)
    tasks = [await lab.submit() for _ in range(6)]

    async def under_way() -> int:
        return (await states(lab, *tasks)).count("steps_in_process")

    await limited(lab, 3)
    assert await under_way() == 1
    assert await lab.engine.workers.sweep() == {"admissions": 2}
    assert await under_way() == 3
    await limited(lab, 2)
    await lab.engine.actions.cancel(tasks[0], actor="ann", reason="x")
    assert await lab.engine.workers.sweep() == {}
    assert await under_way() == 2
    await lab.engine.actions.cancel(tasks[1], actor="ann", reason="x")
    assert await under_way() == 2
    assert (await lab.engine.tasks.read(tasks[4])).waiting_for_place == WaitingForPlace(max_tasks=2, taken=2)
    await limited(lab, None)
    assert (await lab.engine.tasks.read(tasks[4])).waiting_for_place == WaitingForPlace(max_tasks=None, taken=2)
    assert await lab.engine.workers.sweep() == {"admissions": 2}
    assert await states(lab, *tasks[2:]) == ["steps_in_process"] * 4
    assert await lab.state(await lab.submit()) == "steps_in_process"
    assert await sound(lab)


async def test_going_back_to_an_earlier_revision_brings_its_limit_back(lab: Lab) -> None:
    await limited(lab, 1)
    await limited(lab, 2)
    await limited(lab, 1)
    assert await states(lab, await lab.submit(), await lab.submit()) == ["steps_in_process", "pending"]


async def test_a_template_that_is_limited_later_counts_what_is_under_way(lab: Lab) -> None:
    await lab.template(*TWO_STEPS)
    first = await lab.submit()
    ended = await lab.submit()
    await lab.engine.actions.cancel(ended, actor="ann", reason="x")
    await lab.template(step("c"), name="other")
    await lab.submit("other")
    await limited(lab, 1)
    second = await lab.submit()
    assert await states(lab, first, second) == ["steps_in_process", "pending"]
    worker = await lab.worker()
    assert await worker.run_all() == ["a", "c", "b", "a", "b"]
    assert await states(lab, first, second) == ["complete", "complete"]
    assert await sound(lab)


async def test_a_template_that_was_never_limited_has_nothing_to_do_with_limits(lab: Lab) -> None:
    await lab.run(*TWO_STEPS)
    await (await lab.worker()).run_all()
    assert await lab.rows("select limited_as from tasker.tasks") == [{"limited_as": None}]
    assert await lab.value("select count(*) from tasker.concurrency_limits") == 0


async def test_whoever_ends_a_run_does_not_wait_for_whoever_admits(lab: Lab) -> None:
    """The place is then given by the next sweep."""
    await limited(lab, 1)
    first, second = await lab.submit(), await lab.submit()
    async with await connect(lab.url) as other, other.transaction():
        await other.execute("select from tasker.concurrency_limits for update")
        await lab.execute("set lock_timeout = '1ms'")
        assert await lab.engine.actions.cancel(first, actor="ann", reason="x")
        assert await lab.engine.workers.sweep() == {}
        assert await lab.state(second) == "pending"
    assert await lab.engine.workers.sweep() == {"admissions": 1}
    assert await lab.state(second) == "steps_in_process"


async def test_a_run_that_cannot_be_admitted_is_parked_and_holds_up_nobody(own_lab: Lab) -> None:
    lab = own_lab
    await limited(lab, 1, step("a"))
    first, broken, third = [await lab.submit() for _ in range(3)]
    broken_id = await lab.value("select task_id from tasker.tasks where task_uuid = %s", broken)
    await lab.execute(
        "create function tasker.break_one() returns trigger language plpgsql as"
        " $$ begin raise exception 'broken'; end $$"
    )
    await lab.execute(
        "create trigger break_one before update on tasker.tasks for each row"
        f" when (new.task_id = {broken_id} and new.state = 'steps_in_process') execute function tasker.break_one()"
    )
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one()))
    newest = await lab.submit()
    assert await states(lab, first, broken, third, newest) == ["complete", "pending", "pending", "pending"]
    assert await lab.engine.workers.sweep() == {"repairs_parked": 1}
    assert await lab.engine.workers.sweep() == {"admissions": 1}
    assert await states(lab, broken, third, newest) == ["pending", "steps_in_process", "pending"]
    await worker.settle(success(await worker.claim_one()))
    assert await states(lab, broken, third, newest) == ["pending", "complete", "steps_in_process"]


async def test_submitters_and_workers_at_once_never_have_more_under_way_than_allowed(lab: Lab) -> None:
    """Somebody who only looks never sees more, and when all is done nothing waits."""
    await lab.template(step("a", retry={"maxAttempts": 20, **NO_DELAY}), step("b", "a"), concurrency={"maxTasks": 3})
    finished = asyncio.Event()
    most = 0

    async def watch() -> None:
        nonlocal most
        async with await connect(lab.url) as connection:
            while not finished.is_set():
                cursor = await connection.execute(
                    "select count(*) as runs from tasker.tasks where state <> 'pending' and completed_at is null"
                )
                row = await cursor.fetchone()
                assert row is not None
                most = max(most, row["runs"])

    async def submit(size: int) -> None:
        for _ in range(6):
            await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="order")] * size)

    async with AsyncExitStack() as stack:
        workers = []
        for number in range(4):
            connection = await stack.enter_async_context(await connect(lab.url))
            worker = SimulatedWorker(connection, f"worker-{number}")
            await worker.register()
            workers.append(worker)

        async def work(worker: SimulatedWorker) -> None:
            claims = await worker.claim(3)
            while await lab.open_runs() or claims:
                outcomes = [
                    failure(each) if each.attempt == 1 and each.step_id % 3 == 0 else success(each) for each in claims
                ]
                claims = (await worker.settle(*outcomes, claim_limit=3)).claims or await worker.claim(3)
                await worker.connection.execute("select tasker.sweep(10)")

        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(submit(size) for size in (1, 2, 5)))
            assert await lab.open_runs() == 48
            await asyncio.gather(submit(1), *map(work, workers))
        finally:
            finished.set()
            await watching
    assert most == 3
    assert await lab.value("select count(*) from tasker.tasks where state = 'complete'") == 54
    assert await sound(lab)
