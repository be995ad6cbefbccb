"""Which step is next: runs that began earlier end earlier, and what a worker cannot run stands in nobody's way."""

from __future__ import annotations

import asyncio
from functools import partial

from support.engine import Lab, SimulatedWorker, connect, step, success
from support.waiting import eventually_async


async def test_a_worker_that_goes_on_with_its_own_run_takes_no_turn_before_one_that_waits(lab: Lab) -> None:
    await lab.template(*(step(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(5)), name="chain")
    await lab.template(step("urgent"), name="one")
    worker = await lab.worker()
    await lab.submit("chain", priority=-100)
    claim = await worker.claim_one()
    await lab.submit("one", priority=100)
    answer = await worker.settle(success(claim), claim_limit=1)
    assert [each.step for each in answer.claims] == ["urgent"]
    assert answer.ready_left == 1 and await lab.queue() == ["s1"]
    answer = await worker.settle(success(answer.claims[0]), claim_limit=5)
    assert [each.step for each in answer.claims] == ["s1"]


async def test_its_turn_comes_after_the_oldest_of_all_its_callables(lab: Lab) -> None:
    await lab.template(step("a", callable="one"), step("b", "a", callable="one"), name="chain")
    await lab.template(step("late", callable="first"), name="late")
    await lab.template(step("early", callable="last"), name="early")
    worker = await lab.worker(callables=["first", "one", "last"])
    await lab.submit("chain")
    claim = await worker.claim_one()
    await lab.submit("late", priority=-50)
    await lab.submit("early", priority=50)
    answer = await worker.settle(success(claim), claim_limit=1)
    assert [each.step for each in answer.claims] == ["early"]


async def test_the_next_steps_of_an_older_run_go_before_first_steps_that_wait(lab: Lab) -> None:
    await lab.template(step("a"), step("b", "a"), name="chain")
    worker = await lab.worker()
    await lab.submit("chain")
    claim = await worker.claim_one()
    await lab.submit("chain")
    answer = await worker.settle(success(claim), claim_limit=1)
    assert [(each.step, each.task_uuid) for each in answer.claims] == [("b", claim.task_uuid)]


async def test_a_claim_takes_the_oldest_of_all_its_callables(lab: Lab) -> None:
    await lab.template(step("a", callable="one"), name="of-one")
    await lab.template(step("b", callable="two"), name="of-two")
    for template, priority in (("of-one", 0), ("of-two", 0), ("of-two", 50), ("of-one", 20), ("of-two", -50)):
        await lab.submit(template, priority=priority)
    worker = await lab.worker(callables=["two", "one", "three"])
    assert [claim.step for claim in await worker.claim(2)] == ["b", "a"]
    assert [claim.step for claim in await worker.claim(1)] == ["a"]
    assert [claim.step for claim in await worker.claim(9)] == ["b", "b"]


async def test_what_others_are_about_to_take_is_passed_over_however_much_it_is(lab: Lab) -> None:
    await lab.template(*(step(f"s{n:02}") for n in range(12)))
    await lab.submit()
    await lab.worker()
    async with await connect(lab.url) as other:
        first = SimulatedWorker(other, "other")
        await first.register()
        async with other.transaction():
            assert len(await first.claim(7)) == 7
            taken = await SimulatedWorker(lab.connection, "worker-1").claim(2)
            assert [claim.step for claim in taken] == ["s07", "s08"]
            assert len(await SimulatedWorker(lab.connection, "worker-1").claim(10)) == 3


async def test_steps_of_foreign_callables_at_the_head_are_not_read(lab: Lab) -> None:
    await lab.template(*(step(f"s{n}", callable="nobody") for n in range(900)), name="foreign")
    await lab.template(step("mine"), name="own")
    await lab.submit("foreign", priority=100)
    await lab.submit("own")
    worker = await lab.worker()
    async with lab.connection.transaction():
        claims = await worker.claim(10)
        read = await lab.value(
            "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables"
            " where schemaname = 'tasker' and relname = 'ready_steps'"
        )
    assert [claim.step for claim in claims] == ["mine"]
    assert read < 10


async def test_what_had_to_wait_for_a_lock_is_recorded_after_what_it_waited_for(lab: Lab) -> None:
    began = await lab.clock.freeze()
    task = await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    async with await connect(lab.url) as holder, await connect(lab.url) as settling:
        async with holder.transaction():
            await holder.execute("select from tasker.tasks for update")
            settlement = asyncio.ensure_future(
                SimulatedWorker(settling, "worker-1").settle(success(claim), claim_limit=1)
            )
            await eventually_async(partial(waits_for_a_lock, lab, settling.info.backend_pid))
            later = await lab.clock.advance(1)
        await settlement
    steps = await lab.steps(task)
    assert steps["a"]["started_at"] == began
    assert steps["a"]["completed_at"] == steps["b"]["started_at"] == later
    log = await lab.rows("select at from tasker.task_transitions where event = 'step_settled'")
    assert log == [{"at": later}]


async def waits_for_a_lock(lab: Lab, pid: int) -> bool:
    return bool(await lab.value("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", pid))
