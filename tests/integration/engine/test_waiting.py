"""Who must see what another is just doing waits for it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from support.engine import Lab, Outcome, SimulatedWorker, connect, failure, step, success
from support.invariants import check_invariants
from support.waiting import eventually_async


async def waits(lab: Lab, connection: AsyncConnection[DictRow]) -> bool:
    """Whether a connection's statement waits for a lock."""
    query = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    return bool(await lab.value(query, connection.info.backend_pid))


ENDINGS = {
    "started anew": "tasker.expire_predecessor('shop', 'worker-1')",
    "leaves": "tasker.deregister_worker('shop', 'worker-1')",
    "is gone": "tasker.expire_workers('me', array(select worker_id from tasker.workers), 'gone')",
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_who_ends_a_worker_waits_for_the_claim_that_it_is_just_making(own_lab: Lab, how: str) -> None:
    """Else what it claimed would be held by nobody until the lease runs out."""
    lab = own_lab
    for function in ("expire_predecessor", "deregister_worker"):
        await lab.execute(
            f"alter function tasker.{function}(text, text) reset lock_timeout"
        )  # however slow this machine is
    await lab.run(step("a"))
    await lab.worker()
    async with await connect(lab.url) as claiming, await connect(lab.url) as ending:
        await claiming.execute("begin")
        (claim,) = await SimulatedWorker(claiming, "worker-1").claim()
        ended = asyncio.ensure_future(ending.execute(f"select {ENDINGS[how]} as steps".encode()))
        await eventually_async(partial(waits, lab, ending))
        await claiming.execute("commit")
        assert await (await ended).fetchone() == {"steps": 1}
        assert (await SimulatedWorker(claiming, "worker-1").settle(success(claim))).stale == [claim.step_id]


async def test_whatever_a_worker_calls_gives_up_on_a_held_row_after_two_seconds(lab: Lab) -> None:
    rows = await lab.rows(
        "select proname from pg_proc where pronamespace = 'tasker'::regnamespace"
        " and 'lock_timeout=2s' = any (proconfig)"
    )
    assert {row["proname"] for row in rows} == {
        "claim_steps",
        "create_batches",
        "deregister_worker",
        "ensure_partitions",
        "expire_predecessor",
        "register_worker",
        "renew_worker",
        "save_checkpoint",
        "settle_steps",
        "sweep",
    }


@pytest.mark.parametrize("action", ["cancel_task(%s, 'ann', 'x')", "fail_task(%s, 'sweep', 'late', 'late')"])
async def test_who_ends_a_run_sees_first_what_is_just_being_settled(lab: Lab, action: str) -> None:
    task = await lab.run(step("a"))
    task_id = await lab.value("select task_id from tasker.tasks")
    claim = await (await lab.worker()).claim_one()
    async with await connect(lab.url) as settling, await connect(lab.url) as ending:
        await settling.execute("begin")
        await SimulatedWorker(settling, "worker-1").settle(success(claim))
        ended = asyncio.ensure_future(ending.execute(f"select tasker.{action} as ended".encode(), (task_id,)))
        await eventually_async(partial(waits, lab, ending))
        await settling.execute("commit")
        assert await (await ended).fetchone() == {"ended": False}
    assert await lab.state(task) == "complete"


async def test_two_that_register_a_template_wait_for_each_other(lab: Lab) -> None:
    query = """select created from tasker.register_template('shop', 'order', '1.0.0', 'r1', '{}', '[{"name": "a",
        "callable": "do", "method": "call", "configuration": {}, "dependency_count": 0, "is_leaf": true,
        "result_positions": [], "max_attempts": 1, "backoff": "none", "base_ms": 0, "max_ms": 0, "jitter": 0,
        "timeout_ms": 1}]', '[]')"""
    async with await connect(lab.url) as first, await connect(lab.url) as second:
        await first.execute("begin")
        assert await (await first.execute(query.encode())).fetchone() == {"created": True}
        waiting = asyncio.ensure_future(second.execute(query.encode()))
        await eventually_async(partial(waits, lab, second))
        await first.execute("commit")
        assert await (await waiting).fetchone() == {"created": False}


async def test_workers_of_a_pool_that_register_at_once_never_wait_in_a_circle(own_lab: Lab) -> None:
    """Each drops the callable that the other brings: without a common order each would hold what the other wants."""
    lab = own_lab
    register = "tasker.register_worker(text, text, text, integer, text, text[], double precision, text)"
    await lab.execute(f"alter function {register} reset lock_timeout")  # however slow this machine is
    await lab.worker("worker-0", callables=["x", "y"])
    async with (
        await connect(lab.url) as holder,
        await connect(lab.url) as first,
        await connect(lab.url) as second,
    ):
        await holder.execute("begin")
        await holder.execute("select from tasker.pool_callables where callable = 'x' for update")
        registering: list[asyncio.Task[None]] = []
        for connection, offered in (first, "y"), (second, "x"):
            worker = SimulatedWorker(connection, f"worker-{offered}")
            registering.append(asyncio.create_task(worker.register([offered])))
            await eventually_async(partial(waits, lab, connection))
        await holder.execute("rollback")
        await asyncio.gather(*registering)
    assert await lab.rows("select callable from tasker.pool_callables") == [{"callable": "x"}]


REPAIRS = {
    "resolve_step(%s, 'a', 'ann', 'x')": "resolved_manually",
    "complete_step(%s, 'a', '7', null, 'ann', 'x')": "complete",
    "skip_step(%s, 'a', 'ann', 'x')": "skipped",
    "rerun_from(%s, 'a', 'ann', 'x')": "enqueued",
}


@pytest.mark.parametrize("action", REPAIRS)
async def test_who_repairs_a_step_waits_for_the_claim_that_is_just_made_of_it_and_voids_it(
    lab: Lab, action: str
) -> None:
    """Else the worker would work on what is not in its hands any more, and nobody would tell it."""
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("other"))
    task_id = await lab.value("select task_id from tasker.tasks")
    worker = await lab.worker()
    async with await connect(lab.url) as claiming, await connect(lab.url) as repairing:
        await claiming.execute("begin")
        claims = {claim.step: claim for claim in await SimulatedWorker(claiming, "worker-1").claim()}
        done = asyncio.ensure_future(repairing.execute(f"select tasker.{action} as done".encode(), (task_id,)))
        await eventually_async(partial(waits, lab, repairing))
        await claiming.execute("commit")
        await done
    assert (await lab.step_states(task))["a"] == REPAIRS[action]
    assert (await worker.renew(*claims.values())).lost_fences == [claims["a"].fence]
    assert (await worker.settle(success(claims["a"]))).stale == [claims["a"].step_id]
    assert await check_invariants(lab.connection) == []


@pytest.mark.parametrize("outcome", [success, failure])
async def test_who_resets_a_step_sees_first_what_is_just_being_settled(
    lab: Lab, outcome: Callable[..., Outcome]
) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"retryable": False}), step("other"))
    task_id = await lab.value("select task_id from tasker.tasks")
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    async with await connect(lab.url) as settling, await connect(lab.url) as repairing:
        await settling.execute("begin")
        await SimulatedWorker(settling, "worker-1").settle(outcome(claims["a"]))
        done = asyncio.ensure_future(
            repairing.execute("select tasker.reset_step(%s, 'a', 'ann', 'x') as done", (task_id,))
        )
        await eventually_async(partial(waits, lab, repairing))
        await settling.execute("commit")
        if outcome is success:
            with pytest.raises(psycopg.Error, match="is complete"):
                await done
        else:
            assert await (await done).fetchone() == {"done": True}
    assert (await lab.step_states(task))["a"] == ("complete" if outcome is success else "enqueued")
    assert await check_invariants(lab.connection) == []
