"""A worker's claims live by one row that it renews; when it goes, well or badly, they go elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from support.engine import NO_DELAY, Lab, SimulatedWorker, connect, failure, release, step, success
from support.waiting import eventually_async


async def test_renewing_moves_the_lease_on_and_loses_nothing(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await lab.run(step("a"))
    worker = await lab.worker(lease_seconds=30)
    claim = await worker.claim_one()
    for _ in range(5):
        now = await lab.clock.advance(29)
        renewal = await worker.renew(claim)
        assert (renewal.known, renewal.draining, renewal.lost_fences) == (True, False, [])
        assert await lab.engine.workers.sweep() == {}
        (info,) = await lab.engine.workers.read("shop")
        assert (info.lease_until, info.running) == (now + timedelta(seconds=30), 1)
    assert (await worker.settle(success(claim))).settled == [claim.step_id]


async def test_renewing_tells_which_claims_are_lost(lab: Lab) -> None:
    task = await lab.run(step("a"), step("b"))
    await lab.template(step("c"), name="other")
    other = await lab.submit("other")
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    assert (await worker.renew(*claims.values())).lost_fences == []
    await lab.engine.actions.cancel(task, actor="me", reason="x")
    renewal = await worker.renew(*claims.values())
    assert renewal.known and sorted(renewal.lost_fences) == sorted([claims["a"].fence, claims["b"].fence])
    assert (await worker.renew(claims["c"])).lost_fences == []
    assert (await lab.engine.tasks.read(other)).counts.running == 1


async def test_a_worker_whose_row_is_gone_is_told_so_and_has_lost_everything(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a"), step("b"))
    worker = await lab.worker(lease_seconds=10)
    claims = await worker.claim()
    await lab.clock.advance(10)
    assert await lab.engine.workers.sweep() == {}, "a lease ends after its time, not at it"
    await lab.clock.advance(0.001)
    assert await lab.engine.workers.sweep() == {"workers_expired": 1, "leases_expired": 2}
    renewal = await worker.renew(*claims)
    assert not renewal.known and sorted(renewal.lost_fences) == sorted(claim.fence for claim in claims)
    assert not (await SimulatedWorker(lab.connection, "never-seen").renew()).known
    await worker.register()
    assert (await worker.renew()).known


async def test_claims_that_the_worker_does_not_know_of_are_told_to_it_and_cost_no_attempt_when_given_back(
    lab: Lab,
) -> None:
    """The answer to its claim was lost."""
    before = await lab.clock.freeze()
    task = await lab.run(step("a", retry={"maxAttempts": 1}), step("b"))
    worker = await lab.worker(lease_seconds=30)
    assert (await worker.renew()).renewed_at == before
    await lab.clock.advance(1)
    lost, known = await worker.claim()
    await lab.clock.advance(1)
    for moment in (None, before, before + timedelta(seconds=1)):
        renewal = await worker.renew(known, claiming_since=moment)
        assert renewal.unknown_fences == [], "it may just be on its way"
    renewal = await worker.renew(known, claiming_since=renewal.renewed_at)
    assert (renewal.unknown_step_ids, renewal.unknown_fences) == ([lost.step_id], [lost.fence])
    assert renewal.lost_fences == []
    assert await lab.step_states(task) == {"a": "in_progress", "b": "in_progress"}, "to renew changes no step"
    assert (await worker.settle(release(lost), success(known))).settled == [lost.step_id, known.step_id]
    assert (await lab.step_log(task, "a"))[-1] == "in_progress -released-> enqueued"
    assert (await worker.settle(success(lost))).stale == [lost.step_id]
    again = await worker.claim_one()
    assert (again.step, again.attempt) == ("a", 1)
    await worker.settle(success(again))
    assert await lab.state(task) == "complete"
    assert (await lab.engine.tasks.read(task)).failures == ()


async def test_other_workers_claims_are_not_unknown_to_this_one(lab: Lab) -> None:
    await lab.run(step("a"), step("b"))
    worker, other = await lab.worker("worker-1"), await lab.worker("worker-2")
    await other.claim(1)
    renewal = await worker.renew(claiming_since=datetime.now(UTC) + timedelta(days=1))
    assert renewal.unknown_fences == []
    assert (await worker.renew()).unknown_fences == []


async def test_renewing_waits_neither_for_a_settlement_nor_for_who_waits_for_one(own_lab: Lab) -> None:
    """A settlement that claims holds its worker's row for as long as it waits for a run that somebody else holds."""
    lab = own_lab
    # Here the one waits as long as it takes, and any wait of the other is an error.
    settle = "tasker.settle_steps"
    renew = "tasker.renew_worker(text, text, bigint[], bigint[], timestamptz)"
    for function in (settle, renew):
        await lab.execute(f"alter function {function} reset lock_timeout")
    await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    async with AsyncExitStack() as stack:
        # Closed in the other order: who holds first, then who waits for it.
        renewing, draining, settling, holder = [await stack.enter_async_context(await connect(lab.url)) for _ in "1234"]
        await holder.execute("begin")
        await holder.execute("select from tasker.tasks for update")
        await settling.execute("begin")
        settled = asyncio.ensure_future(SimulatedWorker(settling, "worker-1").settle(success(claim), claim_limit=5))
        await eventually_async(partial(_waits, lab, settling))
        drained = asyncio.ensure_future(draining.execute("select tasker.drain_worker('shop', 'worker-1')"))
        await eventually_async(partial(_waits, lab, draining))
        await renewing.execute("set lock_timeout = '1ms'")
        assert (await SimulatedWorker(renewing, "worker-1").renew(claim)).lost_fences == []
        assert not settled.done() and not drained.done()
        async with asyncio.timeout(20):
            assert await lab.engine.workers.drain("shop", ["worker-1"]) == [], "it is not idle, nor waited for"
        await holder.execute("rollback")
        assert (await settled).settled == [claim.step_id]
        assert not drained.done(), "who marks it as draining knows all that it will ever claim"
        await settling.execute("commit")
        await drained
    assert (await worker.renew()).draining


async def test_a_worker_with_a_claim_under_way_is_not_idle_though_nobody_sees_the_claim_yet(lab: Lab) -> None:
    await lab.run(step("a"))
    await lab.worker()
    async with await connect(lab.url) as claiming:
        worker = SimulatedWorker(claiming, "worker-1")
        async with claiming.transaction():
            claim = await worker.claim_one()
            assert await lab.value("select count(*) from tasker.leases") == 0
            async with asyncio.timeout(20):
                assert await lab.engine.workers.drain("shop", ["worker-1"]) == []
        assert await lab.engine.workers.drain("shop", ["worker-1"]) == []
        await worker.settle(success(claim))
        assert await lab.engine.workers.drain("shop", ["worker-1"]) == ["worker-1"]


async def _waits(lab: Lab, connection: AsyncConnection[DictRow]) -> bool:
    """Whether a connection's statement waits for a lock."""
    return bool(
        await lab.value(
            "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
            connection.info.backend_pid,
        )
    )


async def test_a_process_started_anew_under_a_name_gives_up_at_once_what_the_one_before_left(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=NO_DELAY), step("b", retry={"maxAttempts": 1}))
    worker, other = await lab.worker("same-name"), await lab.worker("other-name")
    (left,) = await worker.claim(1)
    (others,) = await other.claim(1)
    assert (left.step, others.step) == ("a", "b")
    fresh = SimulatedWorker(lab.connection, "same-name")
    assert await fresh.expire_predecessor() == 1
    await fresh.register()
    assert await lab.step_states(task) == {"a": "enqueued", "b": "in_progress"}
    assert (await worker.settle(success(left))).stale == [left.step_id]
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "worker same-name was lost during attempt 1: its process ended and was started anew"
    again = await fresh.claim_one()
    assert (again.step, again.attempt) == ("a", 2)
    assert await SimulatedWorker(lab.connection, "first-of-its-name").expire_predecessor() == 0


async def test_leaving_in_good_order_releases_what_is_held(lab: Lab) -> None:
    task = await lab.run(step("a", retry={"maxAttempts": 1}), step("b"), step("c"))
    worker = await lab.worker()
    a, b, c = await worker.claim()
    await worker.settle(success(c))
    assert await worker.deregister() == 2
    assert await worker.deregister() == 0
    assert await lab.engine.workers.read("shop") == []
    assert await lab.queue() == ["a", "b"]
    assert {name: row["attempts"] for name, row in (await lab.steps(task)).items()} == {"a": 0, "b": 0, "c": 1}
    assert (await worker.settle(success(a), failure(b))).stale == [a.step_id, b.step_id]
    assert await (await lab.worker("worker-2")).run_all() == ["a", "b"]
    assert await lab.state(task) == "complete"


async def test_workers_known_to_be_gone_are_expired_at_once(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"maxAttempts": 3, "backoff": "linear", "baseMs": 30_000}), step("b"))
    gone, stays = await lab.worker("gone"), await lab.worker("stays")
    await lab.worker("gone-elsewhere", namespace="other")
    held = await gone.claim_one()
    await stays.claim_one()
    expired = await lab.engine.workers.expire(
        "shop",
        ["gone", "never-seen", "gone-elsewhere"],
        actor="operator",
        reason="its pod is gone",
        error_type="pod_deleted",
    )
    assert expired == 1
    assert [info.name for info in await lab.engine.workers.read("shop")] == ["stays"]
    assert [info.name for info in await lab.engine.workers.read("other")] == ["gone-elsewhere"]
    # The worker was at fault, not the step: it does not wait for its backoff, nor for a sweep.
    assert (await stays.claim_one()).step_id == held.step_id
    (failed,) = (await lab.engine.tasks.read(task)).failures
    assert failed.message == "worker gone was lost during attempt 1: its pod is gone"
    assert failed.error_type == "pod_deleted"
    actors = {
        row["actor"]
        for row in await lab.rows("select actor from tasker.step_transitions where event = 'lease_expired'")
    }
    assert actors == {"operator"}


async def test_registering_again_changes_the_row_and_keeps_the_claims(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await lab.run(step("a"))
    worker = await lab.worker(slots=1)
    claim = await worker.claim_one()
    await worker.register(["do", "other"], pool="second", slots=4, lease_seconds=60)
    (info,) = await lab.engine.workers.read("shop")
    assert (info.pool, info.slots, info.running, info.draining) == ("second", 4, 1, False)
    assert info.lease_until == now + timedelta(seconds=60)
    assert (await worker.settle(success(claim))).settled == [claim.step_id]


async def test_workers_are_listed_by_namespace_with_what_they_hold(lab: Lab) -> None:
    await lab.run(step("a"), step("b"), step("c"))
    worker = await lab.worker("w-b", slots=3)
    await lab.worker("w-a", pool="gpu")
    await lab.worker("w-c", namespace="other")
    await worker.claim(2)
    assert [(info.name, info.pool, info.slots, info.running) for info in await lab.engine.workers.read("shop")] == [
        ("w-a", "gpu", 10, 0),
        ("w-b", "default", 3, 2),
    ]
    assert await lab.engine.workers.read("nowhere") == []


async def test_only_idle_workers_of_the_namespace_are_drained_and_the_mark_can_be_taken_back(lab: Lab) -> None:
    await lab.run(step("a"))
    busy, idle = await lab.worker("busy"), await lab.worker("idle")
    await lab.worker("elsewhere", namespace="other")
    claim = await busy.claim_one()
    names = ["busy", "idle", "elsewhere", "never-seen"]
    assert await lab.engine.workers.drain("shop", names) == ["idle"]
    assert await lab.engine.workers.drain("shop", names) == ["idle"], "asking again gives the same answer"
    assert (await idle.renew()).draining and not (await busy.renew(claim)).draining
    assert await lab.engine.workers.undrain("shop", names) == ["idle"]
    assert await lab.engine.workers.undrain("shop", names) == []
    await busy.settle(success(claim))
    assert sorted(await lab.engine.workers.drain("shop", names)) == ["busy", "idle"]


async def test_a_worker_can_ask_what_its_namespace_needs_and_it_does_not_offer(lab: Lab) -> None:
    await lab.template(step("a", callable="old"), name="order")
    await lab.template(step("a", callable="do"), step("b", callable="missing"), name="order")
    await lab.template(
        step("a", callable="absent"), step("b", callable="do"), step("c", callable="missing"), name="other"
    )
    await lab.template(step("a", callable="elsewhere"), namespace="other")
    await lab.worker(callables=["do", "more"])
    rows = await lab.rows("select * from tasker.unhandled_callables('shop', 'worker-1')")
    assert [row["unhandled_callables"] for row in rows] == ["absent", "missing"]
    assert await lab.rows("select * from tasker.unhandled_callables('shop', 'never-seen')") == []
