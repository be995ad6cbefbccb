"""Questions and calls answer for whom they were asked about, with others of every kind beside it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from support.engine import NO_DELAY, SOON, Lab, SimulatedWorker, connect, failure, step, success
from support.waiting import eventually_async
from tasker.engine import tasks
from tasker.engine.queries import load_queries
from tasker.model.workers import NO_WORKER_SECONDS, UnofferedCallable


async def asked(lab: Lab, family: str, query: str, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of one of the engine's queries."""
    return list(await (await lab.connection.execute(load_queries(family)[query], parameters)).fetchall())


async def test_only_the_given_runs_are_counted_as_finished(lab: Lab) -> None:
    await lab.template(step("a"))
    worker = await lab.worker()
    ended, other = await lab.submit(), await lab.submit()
    await worker.run_all()
    open_ = await lab.submit()
    assert await lab.engine.tasks.finished_count([ended, open_]) == 1
    assert await lab.engine.tasks.finished_count([other]) == 1
    assert await lab.engine.tasks.finished_count([open_]) == await lab.engine.tasks.finished_count([]) == 0


async def test_the_open_runs_of_a_namespace_are_its_own_and_have_not_ended(lab: Lab) -> None:
    for namespace in ("shop", "other"):
        await lab.template(step("a"), namespace=namespace)
        await lab.submit(namespace=namespace)
    await (await lab.worker()).run_all()
    suspended = await lab.submit(suspended=True)
    expected = await lab.rows("select task_id from tasker.tasks where task_uuid = %s", suspended)
    query = partial(asked, lab, "tasks", "open_task_ids_of_namespace", namespace="shop")
    assert await query(installation=None) == expected
    await lab.engine.installation.take("prod/tasker@1")
    assert await query(installation="prod/tasker@1") == expected
    assert await query(installation="prod/tasker@2") == []


async def test_a_run_waits_for_a_worker_by_its_own_oldest_step_of_a_callable(lab: Lab) -> None:
    began = await lab.clock.freeze()
    task = await lab.run(step("a", callable="known"), step("b", callable="missing"), step("c", "a", callable="missing"))
    worker = await lab.worker(callables=["known"], lease_seconds=3600)
    await lab.clock.advance(NO_WORKER_SECONDS)
    await worker.run_all()
    await lab.clock.advance(0.001)
    await lab.submit(priority=9)
    missing = UnofferedCallable(namespace="shop", callable="missing", steps=2, since=began)
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == (missing,)


async def test_a_resource_waits_for_a_worker_when_its_own_step_has_none_and_has_waited(lab: Lab) -> None:
    """Beside it: a callable that is offered here, the same one where it is offered, one that has waited too shortly."""
    await lab.clock.freeze()
    await lab.template(step("a", callable="missing"), name="missing")
    await lab.template(step("a", callable="known"), name="known")
    await lab.template(step("a", callable="missing"), namespace="served")
    await lab.worker("here", callables=["known"], lease_seconds=3600)
    await lab.worker("there", namespace="served", callables=["missing"], lease_seconds=3600)
    await lab.submit("missing", origin_uid="waits")
    await lab.submit("known", origin_uid="is to be taken")
    await lab.submit(namespace="served", origin_uid="is to be taken elsewhere")
    await lab.clock.advance(0.001)
    await lab.submit("missing", origin_uid="has just begun")
    await lab.clock.advance(NO_WORKER_SECONDS)
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"waits"}
    await lab.clock.advance(0.001)
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"waits", "has just begun"}


async def test_of_resources_that_wait_those_whose_oldest_step_has_waited_longest_are_told_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.clock.freeze()
    await lab.template(step("a", callable="one"), step("b", callable="two"), name="both")
    await lab.template(step("a", callable="one"), name="one")
    for origin, template in (("first", "both"), ("second", "one")):
        await lab.submit(template, origin_uid=origin)
        await lab.clock.advance(1)
    await lab.execute("update tasker.ready_steps set ready_at = tasker.now() where callable = 'two'")
    await lab.clock.advance(NO_WORKER_SECONDS + 1)
    monkeypatch.setattr(tasks, "WAITING_AT_ONCE", 1)
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"first"}


async def test_the_results_that_are_shown_are_those_of_the_runs_own_last_steps(lab: Lab) -> None:
    """Other templates have other steps at the same places, and the same step is a last one in one of them alone."""
    await lab.template(step("only"), name="shorter")
    await lab.template(step("a"), step("b"), step("c"), name="wider")
    await lab.template(step("a"), step("b", "a"), namespace="other")
    runs = [await lab.submit("shorter"), await lab.run(step("a"), step("b", "a"), step("c", "b"))]
    runs.append(await lab.submit("wider"))
    await (await lab.worker()).run_all("done")
    shown = [(await lab.engine.tasks.read(run)).leaf_results for run in runs]
    assert shown == [{"only": "done"}, {"c": "done"}, {"a": "done", "b": "done", "c": "done"}]


async def test_changes_are_what_ended_after_a_place_and_what_was_under_way_there(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await lab.run(step("a"), origin_uid="uid-1")
    await lab.submit()  # of no resource
    moved = int(await lab.value("select min(transaction_id::text::bigint) from tasker.task_transitions"))
    later = now + timedelta(days=1)
    for place, seen in (
        (f"{moved}:{moved}:", 1),
        (f"{moved + 1}:{moved + 1}:", 0),
        (f"{moved}:{moved + 1}:{moved}", 1),
        (f"{moved - 1}:{moved + 1}:{moved - 1}", 0),
        (f"{moved - 1}:{moved + 9}:{moved - 1},{moved},{moved + 7}", 1),
    ):
        (found,) = await asked(lab, "tasks", "changes", snapshot=place, since=later)
        assert found["origin_uids"] == ["uid-1"] * seen, place
    assert len(await (await lab.worker()).claim()) == 2
    for seconds, seen in ((2, 1), (2.001, 0)):
        since = now + timedelta(seconds=seconds)
        (found,) = await asked(lab, "tasks", "changes", snapshot=f"{moved + 1}:{moved + 1}:", since=since)
        assert found["origin_uids"] == ["uid-1"] * seen, "a claim is told of for two seconds"


async def waits(lab: Lab, connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a connection's statement waits for a lock."""
    query = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    return bool(await lab.value(query, connection.info.backend_pid))


async def test_who_asks_for_no_step_waits_for_nobody(lab: Lab) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.workers for update")
        assert await worker.claim(0) == []


async def test_registering_waits_for_no_row_of_another_pool(own_lab: Lab) -> None:
    lab = own_lab
    register = "tasker.register_worker(text, text, text, integer, text, text[], double precision, text)"
    await lab.execute(f"alter function {register} reset lock_timeout")
    await lab.worker("one", pool="beside")
    await lab.worker("two", namespace="other")
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.pool_callables for update")
        await lab.execute("set lock_timeout = '1ms'")
        await lab.worker("three")
    assert await lab.value("select count(*) from tasker.pool_callables") == 3


async def holds(lab: Lab, table: str, condition: str) -> bool:
    """Whether somebody holds a row, or is about to."""
    try:
        await lab.rows(f"select from tasker.{table} where {condition} for update nowait")
    except psycopg.errors.LockNotAvailable:
        return True
    return False


NOT_BY_INDEX = "set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off"


async def test_what_a_pool_offers_is_taken_in_order_of_its_name_however_it_lies_in_the_table(own_lab: Lab) -> None:
    lab = own_lab
    register = "tasker.register_worker(text, text, text, integer, text, text[], double precision, text)"
    await lab.execute(f"alter function {register} reset lock_timeout")  # however slow this machine is
    await lab.worker(callables=["x", "y"])
    await lab.execute("update tasker.pool_callables set offered_at = offered_at where callable = 'x'")
    async with await connect(lab.url) as holder, await connect(lab.url) as registering:
        await registering.execute(NOT_BY_INDEX)
        await holder.execute("begin")
        await holder.execute("select from tasker.pool_callables where callable = 'x' for update")
        registered = asyncio.ensure_future(SimulatedWorker(registering, "worker-2").register(["x", "y"]))
        await eventually_async(partial(waits, lab, registering))
        held = await holds(lab, "pool_callables", "callable = 'y'")
        await holder.execute("rollback")
        await registered
    assert not held


async def test_what_a_worker_offers_first_is_noted_in_order_of_its_name(lab: Lab) -> None:
    """As the locks on what is new are: two that bring the same must not wait for each other in a circle."""
    names = [f"c{n:02}" for n in range(40)]
    await lab.execute("set enable_sort = off")
    await lab.worker(callables=[*names[20:], *names[19::-1]])
    noted = [row["callable"] for row in await lab.rows("select callable from tasker.pool_callables order by ctid")]
    assert noted == names


MANY_WORKERS = {
    "undrain": "select * from tasker.undrain_workers('shop', array['a', 'z'])",
    "expire": "select tasker.expire_workers('me', array(select worker_id from tasker.workers order by name), 'gone')",
}


@pytest.mark.parametrize("what", MANY_WORKERS)
async def test_workers_are_held_in_the_order_in_which_they_came(lab: Lab, what: str) -> None:
    """Whatever their names, and wherever their rows lie: all who hold several hold them in this order."""
    for name in ("y", "a"):
        await lab.worker(name)
    assert sorted(await lab.engine.workers.drain("shop", ["a", "y"])) == ["a", "y"]
    await lab.execute("update tasker.workers set name = 'z' where name = 'y'")
    async with await connect(lab.url) as holder, await connect(lab.url) as calling:
        await calling.execute("set enable_indexscan = off")
        await holder.execute("begin")
        await holder.execute("select from tasker.workers where name = 'z' for update")
        called = asyncio.ensure_future(calling.execute(MANY_WORKERS[what].encode()))
        await eventually_async(partial(waits, lab, calling))
        held = await holds(lab, "workers", "name = 'a'")
        await holder.execute("rollback")
        await called
    assert not held


async def test_what_nobody_handles_is_listed_in_order_however_it_was_found(lab: Lab) -> None:
    names = [f"c{n:02}" for n in range(30)]
    await lab.template(*(step(f"s{place}", callable=name) for place, name in enumerate([*names[::-1], *names])))
    await lab.template(step("a", callable="elsewhere"), namespace="other")
    await lab.worker(callables=["do", "c07"])
    await lab.worker("other", callables=["c08"])
    await lab.execute("set enable_sort = off")
    rows = await lab.rows("select * from tasker.unhandled_callables('shop', 'worker-1')")
    assert [row["unhandled_callables"] for row in rows] == [name for name in names if name != "c07"]


async def test_five_hundred_of_a_kind_are_repaired_in_one_sweep(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.execute(
        "insert into tasker.workers (name, actor_id, namespace, pool, slots, version, callables, lease_seconds,"
        " lease_until, registered_at) select 'w' || n, 1, 'shop', 'default', 1, '1', '{}', 1,"
        " tasker.now() - interval '1 second', tasker.now() from generate_series(1, 501) n"
    )
    assert await lab.engine.workers.sweep() == {"workers_expired": 500}
    assert await lab.engine.workers.sweep() == {"workers_expired": 1}


async def test_a_settlement_claims_and_ends_nothing_of_others(lab: Lab) -> None:
    """A second template with steps at the same places, run beside the first and settled in the same call."""
    await lab.clock.freeze()
    await lab.template(step("a"), step("b", "a"), step("c", "b"), name="first")
    await lab.template(step("x"), step("y"), step("z", "x", "y"), name="second")
    first, second = await lab.submit("first", deadline_seconds=60), await lab.submit("second", deadline_seconds=60)
    third = await lab.submit("second", deadline_seconds=60)
    worker = await lab.worker()
    claims = {(claim.task_uuid, claim.step): claim for claim in await worker.claim()}
    await worker.settle(success(claims[first, "a"]), success(claims[second, "x"]), success(claims[second, "y"]))
    assert await lab.step_states(first) == {"a": "complete", "b": "enqueued", "c": "pending"}
    assert await lab.step_states(second) == {"x": "complete", "y": "complete", "z": "enqueued"}
    assert await lab.step_states(third) == {"x": "in_progress", "y": "in_progress", "z": "pending"}
    assert await lab.queue() == ["b", "z"]
    await worker.run_all()
    assert [await lab.state(task) for task in (first, second, third)] == ["complete", "complete", "steps_in_process"]
    assert await lab.rows("select task_uuid from tasker.timers join tasker.tasks using (task_id)") == [
        {"task_uuid": third}
    ]


async def test_a_settlement_holds_its_runs_first_and_in_order_and_no_other(own_lab: Lab) -> None:
    lab = own_lab
    settle = "tasker.settle_steps"
    await lab.execute(f"alter function {settle} reset lock_timeout")  # however slow this machine is
    await lab.template(step("a"))
    worker = await lab.worker()
    for _ in range(11):
        await lab.submit()
    claims = await worker.claim(11)
    first = min(claim.step_id >> 20 for claim in claims)
    async with await connect(lab.url) as holder, await connect(lab.url) as settling:
        await holder.execute("begin")
        await holder.execute("select from tasker.tasks where task_id = %s for update", (first,))
        outcomes = [success(claim) for claim in claims[::-1]]
        settled = asyncio.ensure_future(SimulatedWorker(settling, "worker-1").settle(*outcomes))
        await eventually_async(partial(waits, lab, settling))
        held = await holds(lab, "tasks", f"task_id <> {first}"), await holds(lab, "leases", "true")
        await holder.execute("rollback")
        assert len((await settled).settled) == 11
    assert held == (False, False)


async def test_a_settlement_waits_for_nobody_who_holds_another_run(lab: Lab) -> None:
    await lab.template(step("a"))
    held, free = await lab.submit(), await lab.submit()
    worker = await lab.worker()
    claims = {claim.task_uuid: claim for claim in await worker.claim()}
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.tasks where task_uuid = %s for update", (held,))
        assert len((await worker.settle(success(claims[free]))).settled) == 1


async def test_of_two_fences_of_a_step_in_one_call_the_current_one_counts(lab: Lab) -> None:
    await lab.run(step("a", retry=NO_DELAY))
    worker = await lab.worker()
    old = await worker.claim_one()
    await worker.settle(failure(old))
    new = await worker.claim_one()
    settlement = await worker.settle(success(old, "late"), success(new, "in time"))
    assert (settlement.settled, settlement.stale) == ([new.step_id], [old.step_id])
    assert await lab.value("select result from tasker.steps") == "in time"


async def test_a_run_in_which_nothing_can_go_on_and_nothing_failed_waits_for_what_it_depends_on(lab: Lab) -> None:
    """No template of standard steps leads there; the row is put there as the database allows it."""
    task = await lab.run(step("a"), step("b", "a"))
    await lab.execute("update tasker.steps set open_edges = 2 where state = 'pending'")
    worker = await lab.worker()
    settlement = await worker.settle(success(await worker.claim_one()))
    assert (settlement.tasks_finished, await lab.state(task)) == (0, "waiting_for_dependencies")
    assert (await lab.task_log(task))[3:] == [
        "steps_in_process -step_settled-> evaluating_results",
        "evaluating_results -no_dependencies_ready-> waiting_for_dependencies",
    ]


async def test_who_leaves_takes_nobody_along(lab: Lab) -> None:
    await lab.run(step("a"), step("b"))
    busy, idle, other = [await lab.worker(name) for name in ("busy", "idle", "other")]
    claims = [await busy.claim_one(), await other.claim_one()]
    assert await idle.deregister() == 0
    assert [info.name for info in await lab.engine.workers.read("shop")] == ["busy", "other"]
    assert await other.deregister() == 1
    assert await lab.queue() == ["b"]
    assert [info.name for info in await lab.engine.workers.read("shop")] == ["busy"]
    assert (await busy.renew(claims[0])).lost_fences == []
    assert await SimulatedWorker(lab.connection, "idle").expire_predecessor() == 0
    assert (await busy.settle(success(claims[0]))).settled == [claims[0].step_id]


async def test_who_renews_renews_itself_alone(lab: Lab) -> None:
    now = await lab.clock.freeze()
    for name in ("first", "second", "third"):
        await lab.worker(name, lease_seconds=30)
    later = await lab.clock.advance(10)
    assert (await SimulatedWorker(lab.connection, "second").renew()).known
    until = {info.name: info.lease_until - timedelta(seconds=30) for info in await lab.engine.workers.read("shop")}
    assert until == {"first": now, "second": later, "third": now}


async def test_only_the_workers_that_are_named_are_drained_and_wanted_back(lab: Lab) -> None:
    for name in ("a", "b", "c"):
        await lab.worker(name)
    await lab.worker("elsewhere", namespace="other")
    workers = lab.engine.workers

    async def draining() -> list[str]:
        shown = [*await workers.read("shop"), *await workers.read("other")]
        return [info.name for info in shown if info.draining]

    assert await workers.drain("shop", ["a"]) == ["a"]
    assert await draining() == ["a"]
    assert await workers.drain("shop", ["b", "c"]) == ["b", "c"]
    assert await workers.drain("other", ["elsewhere"]) == ["elsewhere"]
    assert await workers.undrain("shop", ["b", "elsewhere", "never-seen"]) == ["b"]
    assert await draining() == ["a", "c", "elsewhere"]
    async with await connect(lab.url) as holder, holder.transaction():
        await holder.execute("select from tasker.workers where name = 'a' for update")
        await lab.execute("set lock_timeout = '1ms'")
        assert await lab.value("select tasker.drain_worker('shop', 'b')")
    assert await draining() == ["a", "b", "c", "elsewhere"]


async def test_a_run_that_has_ended_stays_as_it_is_though_another_is_open(lab: Lab) -> None:
    await lab.template(step("a"))
    ended = await lab.submit()
    await (await lab.worker()).run_all()
    await lab.submit()
    task_id = await lab.value("select task_id from tasker.tasks where task_uuid = %s", ended)
    before = await lab.dump()
    for action in (
        "cancel_task(%s, 'me', 'x')",
        "fail_task(%s, 'me', 'late', 'late')",
        "suspend_task(%s, 'person', 'me', 'x')",
    ):
        assert await lab.value(f"select tasker.{action}", task_id) is False
    assert await lab.dump() == before


async def test_demand_and_want_of_a_worker_are_told_by_the_oldest_step(lab: Lab) -> None:
    began = await lab.clock.freeze()
    await lab.template(step("a", callable="one"), step("b", callable="two"))
    await lab.submit()
    await lab.execute("update tasker.ready_steps set ready_at = ready_at - interval '1 second' where callable = 'two'")
    await lab.clock.advance(NO_WORKER_SECONDS)
    await lab.submit()
    await lab.clock.advance(1)
    (demand,) = await lab.engine.workers.demand([("shop", "default")])
    assert (demand.queued, demand.oldest_ready_seconds) == (4, NO_WORKER_SECONDS + 2)
    assert [(each.callable, each.steps, each.since) for each in await lab.engine.workers.unoffered_callables()] == [
        ("two", 2, began - timedelta(seconds=1)),
        ("one", 2, began),
    ]


async def test_one_installation_is_the_owner_whatever_else_is_set(lab: Lab) -> None:
    await lab.put_setting("a", {"id": "another", "since": "2020-01-01T00:00:00Z"})
    await lab.clock.freeze()
    assert await lab.engine.installation.owner() is None
    await lab.engine.installation.take("prod/tasker@1")
    owner = await lab.engine.installation.owner()
    assert owner is not None and owner.id == "prod/tasker@1"


async def test_the_arrows_of_a_run_lead_from_step_to_step(lab: Lab) -> None:
    await lab.template(step("x"), step("y", "x"), name="other")
    await lab.submit("other")
    task = await lab.run(step("a"), step("b", "a"), step("c", "a", "b"))
    ids = {name: row["step_id"] for name, row in (await lab.steps(task)).items()}
    arrows = await lab.rows(
        "select from_step_id, to_step_id from tasker.step_edges join tasker.tasks using (task_id)"
        " where task_uuid = %s order by 1, 2",
        task,
    )
    expected = [(ids["a"], ids["b"]), (ids["a"], ids["c"]), (ids["b"], ids["c"])]
    assert [(row["from_step_id"], row["to_step_id"]) for row in arrows] == expected


async def overdue(lab: Lab, *order: str) -> None:
    """Three runs whose timers of these kinds are due one after the other, in this order."""
    await lab.clock.freeze()
    for place, kind in enumerate(order):
        retry = {"backoff": "linear", "baseMs": (place + 1) * 1000, "maxMs": 99_000, "jitter": 0}
        timeouts = {"scheduleTimeoutSeconds": place + 1} if kind == "schedule_timeout" else {}
        await lab.template(step("a", retry=retry, callable=kind, **timeouts), name=kind.replace("_", "-"))
        await lab.submit(kind.replace("_", "-"), deadline_seconds=place + 1 if kind == "deadline" else None)
    worker = await lab.worker(callables=["retry"])
    await worker.settle(failure(await worker.claim_one()))
    await lab.clock.advance(9)


@pytest.mark.parametrize(
    "order",
    [
        ("retry", "deadline", "schedule_timeout"),
        ("deadline", "schedule_timeout", "retry"),
        ("schedule_timeout", "retry", "deadline"),
    ],
)
async def test_of_each_kind_as_many_are_repaired_whatever_else_has_been_due_for_longer(
    lab: Lab, order: tuple[str, str, str]
) -> None:
    await overdue(lab, *order)
    assert await lab.engine.workers.sweep(1) == {"retries_due": 1, "schedule_timeouts": 1, "deadlines_passed": 1}
    assert await lab.engine.workers.sweep(1) == {}


async def test_of_two_that_waited_too_long_and_equally_long_one_fails_in_a_sweep_of_one(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a", scheduleTimeoutSeconds=5))
    await lab.template(step("a", scheduleTimeoutSeconds=3), step("b", scheduleTimeoutSeconds=4), name="another")
    for _ in range(2):
        await lab.submit()
    await lab.clock.advance(5)
    for _ in range(2):
        assert await lab.engine.workers.sweep(1) == {"schedule_timeouts": 1}
    assert await lab.engine.workers.sweep(1) == {}


async def test_a_sweep_ends_lost_workers_alone_and_holds_only_the_runs_that_it_repairs(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a"), step("b"), step("c"))
    await lab.submit()
    worker, dead = await lab.worker("busy", lease_seconds=999), await lab.worker("dead", lease_seconds=10)
    await lab.worker("idle", lease_seconds=999)
    await worker.settle(success((await worker.claim(2))[0]))
    await dead.claim(1)
    untouched = await lab.submit()
    await worker.claim(1)
    await lab.clock.advance(10.001)
    async with await connect(lab.url) as sweeping, sweeping.transaction():
        rows = await (await sweeping.execute("select * from tasker.sweep(9)")).fetchall()
        assert {row["repair"]: row["repaired"] for row in rows} == {"leases_expired": 1, "workers_expired": 1}
        assert not await holds(lab, "tasks", f"task_uuid = '{untouched}'")
        assert await holds(lab, "tasks", f"task_uuid <> '{untouched}'")
    assert [info.name for info in await lab.engine.workers.read("shop")] == ["busy", "idle"]


async def test_runs_that_have_ended_are_no_longer_looked_at_for_lost_steps(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a"), step("b"), step("c", "a", retry=SOON))
    for _ in range(101):
        task = await lab.submit()
    await lab.execute("select tasker.cancel_task(task_id, 'me', 'x') from tasker.tasks where task_uuid <> %s", task)
    worker = await lab.worker(lease_seconds=999)
    claims = await worker.claim(2)
    await worker.settle(success(claims[0]))
    await lab.clock.advance(6)
    assert await lab.execute("delete from tasker.ready_steps") == 1
    assert await lab.engine.workers.sweep() == {"lost_steps_requeued": 1}
    assert await lab.queue() == ["c"]


async def test_each_lease_that_expires_is_told_of_by_its_own_reason_however_they_were_found(lab: Lab) -> None:
    await lab.run(*(step(name, retry=NO_DELAY) for name in "abcd"))
    held = [(await (await lab.worker(f"with-{name}")).claim_one()) for name in "abcd"][::-1]
    await lab.execute("set enable_nestloop = off")
    await lab.execute("set enable_hashjoin = off")
    arguments = [claim.step_id for claim in held], [claim.fence for claim in held]
    assert await lab.value("select tasker.expire_leases('me', %s, %s, 'why')", *arguments) == 4
    told = await lab.rows("select step_id, message from tasker.step_failures order by step_id")
    assert [row["message"] for row in told] == [f"worker with-{name} was lost during attempt 1: why" for name in "abcd"]


async def test_each_worker_is_handed_what_it_offers_itself_and_holds_it(lab: Lab) -> None:
    await lab.template(step("a"), step("b", "a"), step("c", "a", callable="other"))
    for _ in range(2):
        await lab.submit()
    others, worker = await lab.worker("others", callables=["other"]), await lab.worker("worker")
    (claim,) = await worker.claim(1)
    settlement = await worker.settle(success(claim), claim_limit=9)
    assert [each.step for each in settlement.claims] == ["b", "a"]
    assert [each.step for each in await others.claim()] == ["c"]
    assert {info.name: info.running for info in await lab.engine.workers.read("shop")} == {"others": 1, "worker": 2}
