"""What is shown of runs, templates, pools and workers: what concerns them and nothing else, in order, bounded."""

from __future__ import annotations

from datetime import timedelta

import pytest

from support.engine import Lab, failure, step, success
from tasker.engine import tasks
from tasker.model.task import TemplateCounts
from tasker.model.workers import NO_WORKER_SECONDS, PoolDemand, UnofferedCallable


async def test_callables_without_a_worker_are_listed_by_their_wait_and_then_by_name_and_only_twenty(lab: Lab) -> None:
    """Two wait for longer than the others, though made last; of those that began together the names decide."""
    now = await lab.clock.freeze()
    task = await lab.run(*(step(f"s{n}", callable=f"c{n:02}") for n in range(29, -1, -1)))
    earlier = {"c07": now - timedelta(seconds=1), "c29": now - timedelta(seconds=2)}
    for name, moment in earlier.items():
        await lab.execute("update tasker.ready_steps set ready_at = %s where callable = %s", moment, name)
    await lab.clock.advance(NO_WORKER_SECONDS + 0.001)
    names = ["c29", "c07", *sorted({f"c{n:02}" for n in range(29)} - {"c07"})]
    waiting = [
        UnofferedCallable(namespace="shop", callable=name, steps=1, since=earlier.get(name, now)) for name in names
    ]
    assert list((await lab.engine.tasks.read(task)).waiting_for_worker) == waiting[:20]
    assert await lab.engine.workers.unoffered_callables() == waiting


async def test_waiting_callables_are_listed_by_namespace_when_they_began_together(lab: Lab) -> None:
    await lab.clock.freeze()
    for namespace in ("b", "c", "a"):
        await lab.template(step("x", callable="do"), step("y", callable="be"), namespace=namespace)
        await lab.submit(namespace=namespace)
    await lab.clock.advance(NO_WORKER_SECONDS + 1)
    found = await lab.engine.workers.unoffered_callables()
    assert [(each.namespace, each.callable) for each in found] == [(n, c) for n in "abc" for c in ("be", "do")]


async def test_of_runs_that_wait_for_a_worker_those_are_told_that_wait_and_the_longest_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.clock.freeze()
    await lab.template(step("a", callable="missing"))
    await lab.template(step("a", callable="missing"), namespace="served")
    await lab.worker(namespace="served", callables=["missing"], lease_seconds=9999)
    await lab.submit(namespace="served", origin_uid="has a worker")
    for uid in ("old", "older", None, "young"):
        if uid == "young":
            await lab.clock.advance(NO_WORKER_SECONDS + 1)
        await lab.submit(origin_uid=uid)
    await lab.execute(
        "update tasker.ready_steps r set ready_at = ready_at - interval '1 second' from tasker.tasks t"
        " where t.task_id = tasker.task_of_step(r.step_id) and t.origin_uid = 'older'"
    )
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"old", "older"}
    monkeypatch.setattr(tasks, "WAITING_AT_ONCE", 1)
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"older"}


async def test_a_worker_offers_until_its_lease_ends_and_not_a_moment_longer(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", callable="missing"), origin_uid="uid-1")
    await lab.clock.advance(NO_WORKER_SECONDS + 1)
    await lab.worker(callables=["missing"], lease_seconds=30)
    for seconds, waits in ((30, False), (0.001, True)):
        await lab.clock.advance(seconds)
        assert bool((await lab.engine.tasks.read(task)).waiting_for_worker) is waits
        assert bool(await lab.engine.workers.unoffered_callables()) is waits
        assert bool(await lab.engine.tasks.origins_waiting_for_worker()) is waits


@pytest.mark.parametrize(("size", "shown"), [(8190, True), (8191, False)])
async def test_results_of_the_last_steps_are_shown_as_long_as_they_fit(lab: Lab, size: int, shown: bool) -> None:
    task = await lab.run(step("a"), step("b", "a"))
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one(), "y" * 9000))
    await worker.settle(success(await worker.claim_one(), "x" * size))  # two more bytes as JSON: its quotes
    summary = await lab.engine.tasks.read(task)
    assert summary.leaf_results == ({"b": "x" * size} if shown else None)
    assert summary.leaf_results_truncated is not shown


async def test_a_suspended_run_waits_until_it_has_ended(lab: Lab) -> None:
    await lab.template(step("a"))
    for _ in range(2):
        await lab.submit(suspended=True)
    cancelled = await lab.submit(suspended=True)
    await lab.engine.actions.cancel(cancelled, actor="ann", reason="x")
    counts = TemplateCounts(running=0, waiting=2, complete=0, error=1)
    assert await lab.engine.templates.counts("shop", "order") == counts


async def test_workers_are_counted_once_however_much_they_hold_and_none_where_there_is_none(lab: Lab) -> None:
    await lab.run(step("a"), step("b"), step("c"), step("d"))
    for name in ("w1", "w2"):
        assert len(await (await lab.worker(name)).claim(2)) == 2
    await lab.worker("w3", pool="other")
    await lab.worker("w4", namespace="elsewhere")
    assert await lab.engine.workers.drain_pool("shop", "default") == ["w1", "w2"]
    assert await lab.engine.workers.drain_pool("shop", "default") == [], "they are marked already"
    busy = PoolDemand(
        namespace="shop",
        pool="default",
        queued=0,
        running=4,
        oldest_ready_seconds=0.0,
        live_workers=2,
        draining_workers=2,
    )
    empty = PoolDemand(
        namespace="shop",
        pool="empty",
        queued=0,
        running=0,
        oldest_ready_seconds=0.0,
        live_workers=0,
        draining_workers=0,
    )
    assert await lab.engine.workers.demand([("shop", "default"), ("shop", "empty")]) == [busy, empty]
    (other,) = await lab.engine.workers.read("elsewhere")
    assert not other.draining
    assert [info.draining for info in await lab.engine.workers.read("shop")] == [True, True, False]


async def test_the_worker_that_registered_last_tells_what_a_pool_offers_when_its_template_is_not_named(
    lab: Lab,
) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", callable="a"), step("b", callable="b"), step("c", callable="b"))
    for name, offered in (("one", "a"), ("two", "b")):
        await lab.worker(name, callables=[offered], template_hash=name)
        await lab.clock.advance(1)
    # The same pool's name and template elsewhere, and another pool here, say nothing about it.
    await lab.worker("elsewhere", namespace="other", callables=["a"], template_hash="two")
    await lab.worker("beside", pool="beside", callables=["a"], template_hash="two")
    await lab.clock.advance(1)
    await lab.worker("later", namespace="other", callables=["a"], template_hash="three")
    await lab.worker("later-beside", pool="beside", callables=["a"], template_hash="three")

    async def queued(pool: str) -> int:
        (row,) = await lab.engine.workers.demand([("shop", pool)])
        return row.queued

    assert (await queued("default"), await queued("beside")) == (2, 1)
    await lab.worker("back", callables=["a"], template_hash="one")
    assert await queued("default") == 1


async def test_a_pool_of_the_same_name_elsewhere_is_another(lab: Lab) -> None:
    await lab.run(step("a", callable="missing"))
    await lab.worker("here", callables=["known"], template_hash="h")
    await lab.worker("there", namespace="other", callables=["missing"], template_hash="h")
    await lab.worker("beside", pool="beside", callables=["known"], template_hash="h")
    (demand,) = await lab.engine.workers.demand([("shop", "default")], {("shop", "default"): "h"})
    assert demand.queued == 0
    (demand,) = await lab.engine.workers.demand([("shop", "fresh")], {("shop", "fresh"): "h"})
    assert demand.queued == 1, "none of its own workers has registered"


async def test_a_callable_named_twice_is_offered_once(lab: Lab) -> None:
    await lab.worker(callables=["a", "a"])
    assert await lab.value("select count(*) from tasker.pool_callables") == 1


async def test_a_template_is_forgotten_a_month_after_its_newest_worker_and_not_before(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.worker("w1", callables=["a"], template_hash="one")
    await lab.worker("w0", pool="beside", callables=["a"], template_hash="one")
    await lab.worker("w9", namespace="other", callables=["a"], template_hash="one")
    known = "select count(*) from tasker.pool_callables where template_hash = 'one'"
    for seconds, left in ((30 * 86400, 3), (0.001, 2)):
        await lab.clock.advance(seconds)
        await lab.worker("w2", callables=["a"], template_hash="two")
        assert await lab.value(known) == left


async def test_nobody_is_the_owner_of_a_database_that_was_never_taken(lab: Lab) -> None:
    owner = "select tasker.is_owner(%s)"
    assert (await lab.value(owner, "prod/tasker@1"), await lab.value(owner, None)) == (False, True)
    await lab.engine.installation.take("prod/tasker@1")
    assert (await lab.value(owner, "prod/tasker@1"), await lab.value(owner, "other")) == (True, False)
    assert await lab.value(owner, None) is True


async def test_what_a_request_leaves_out_has_its_default(lab: Lab) -> None:
    await lab.template(step("a"))
    await lab.execute("""select tasker.submit_tasks('shop', '[{"template_name": "order"}]')""")
    (row,) = await lab.rows("select priority, suspended, context, tags, deadline, correlation_id from tasker.tasks")
    assert row.pop("correlation_id")
    assert row == {"priority": 0, "suspended": False, "context": {}, "tags": [], "deadline": None}


async def test_registering_what_is_current_already_changes_nothing(lab: Lab) -> None:
    await lab.template(step("a"))
    await lab.template(step("a"), name="another")
    before = await lab.rows("select * from tasker.templates order by 1")
    await lab.template(step("a"))
    assert await lab.rows("select * from tasker.templates order by 1") == before
    await lab.template(step("b"))
    await lab.template(step("a"))
    activated = await lab.rows(
        "select name, spec -> 'steps' -> 0 ->> 'name' as step from tasker.templates"
        " where activated_at > %s order by activated_at",
        before[1]["activated_at"],
    )
    assert [tuple(row.values()) for row in activated] == [("order", "b"), ("order", "a")], "and going back that alone"


async def test_a_claim_whose_step_went_to_another_worker_is_lost(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(step("a", retry={"backoff": "none"}))
    slow = await lab.worker("slow", lease_seconds=10)
    old = await slow.claim_one()
    await lab.clock.advance(11)
    await lab.engine.workers.sweep()
    new = await (await lab.worker("quick")).claim_one()
    assert new.step_id == old.step_id
    renewal = await slow.renew(old)
    assert (renewal.known, renewal.draining, renewal.lost_fences) == (False, False, [old.fence])


async def test_the_newest_failure_of_each_run_is_its_own(lab: Lab) -> None:
    await lab.template(step("a", retry={"maxAttempts": 2, "backoff": "none"}), step("b"))
    first, second = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    for claim in await worker.claim():
        await worker.settle(failure(claim, f"{claim.step} of {'first' if claim.task_uuid == first else 'second'}"))
    for task, name in ((first, "first"), (second, "second")):
        found = (await lab.engine.tasks.read(task)).failures
        assert [(each.step, each.message) for each in found] == [("b", f"b of {name}"), ("a", f"a of {name}")]
