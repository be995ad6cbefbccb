"""What the operator reads: changes without gaps, demand for pools, counts of templates, hints."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import pytest

from support.engine import SOON, Lab, connect, failure, step, success
from support.waiting import eventually_async
from tasker.engine import ChangeCursor
from tasker.model.task import TaskRequest, TemplateCounts
from tasker.model.workers import PoolDemand


class Follower:
    """Reads the changes as the operator does: from its cursor on, again and again."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._cursor: ChangeCursor | None = None

    async def read(self) -> set[str]:
        changes = await self._lab.engine.changes.read(self._cursor)
        self._cursor = changes.cursor
        return set(changes.origin_uids)


async def test_a_new_reader_begins_now_and_then_sees_every_resource_that_moved(lab: Lab) -> None:
    await lab.template(step("a"), step("b", "a"))
    await lab.submit(origin_uid="before")
    follower = Follower(lab)
    assert await follower.read() == set()
    await lab.submit(origin_uid="uid-1")
    await lab.submit(origin_uid="uid-2")
    await lab.submit()  # of no resource: nobody's status
    assert await follower.read() == {"uid-1", "uid-2"}
    assert await follower.read() == set()
    await lab.engine.actions.cancel_by_origin("before", actor="ann", reason="x")
    assert await follower.read() == {"before"}
    assert await follower.read() == set()


async def test_a_claim_and_its_outcome_are_changes_too(lab: Lab) -> None:
    """What runs is part of a resource's status. A claim is told of for two seconds, as it may be committed late."""
    await lab.clock.freeze()
    await lab.template(step("a", retry={"backoff": "linear", "baseMs": 30_000}))
    for uid in ("uid-1", "uid-2"):
        await lab.submit(origin_uid=uid)
    await lab.clock.advance(10)
    follower = Follower(lab)
    await follower.read()
    worker = await lab.worker()
    claims = {claim.task_uuid: claim for claim in await worker.claim()}
    assert await follower.read() == {"uid-1", "uid-2"}
    await lab.clock.advance(3)
    await follower.read()
    assert await follower.read() == set()
    first = await lab.value("select task_uuid from tasker.tasks where origin_uid = 'uid-1'")
    await worker.settle(failure(claims[first]))
    assert await follower.read() == {"uid-1"}
    assert await follower.read() == set()


async def test_a_transaction_that_commits_late_is_never_passed_over(lab: Lab) -> None:
    """The early one is open while a later one commits; a cursor that went by ids or times would be past it."""
    await lab.template(step("a"))
    follower = Follower(lab)
    await follower.read()
    async with await connect(lab.url) as slow:
        await slow.execute("begin")
        await slow.execute(
            'select * from tasker.submit_tasks(\'shop\', \'[{"template_name": "order", "origin_uid": "early"}]\')'
        )
        await lab.submit(origin_uid="late")
        assert [await follower.read() for _ in range(3)] == [{"late"}, set(), set()]
        await slow.execute("commit")
    assert [await follower.read() for _ in range(2)] == [{"early"}, set()]


@pytest.mark.parametrize("place", ["here", "in another database of the server"])
async def test_a_long_write_of_anybody_holds_no_change_back(lab: Lab, empty_database_url: str, place: str) -> None:
    await lab.template(step("a"))
    async with await connect(lab.url if place == "here" else empty_database_url) as elsewhere:
        await elsewhere.execute("begin")
        await elsewhere.execute("select pg_current_xact_id()")
        follower = Follower(lab)
        await follower.read()
        for uid in ("uid-1", "uid-2"):
            await lab.submit(origin_uid=uid)
            assert await follower.read() == {uid}
            assert await follower.read() == set(), "nor is it told of again and again"
        await elsewhere.execute("rollback")
    assert await follower.read() == set()


async def test_a_reader_sees_that_the_server_is_another_or_went_back(lab: Lab) -> None:
    await lab.template(step("a"))
    read = lab.engine.changes.read
    cursor = (await read(None)).cursor
    assert cursor.timeline == 1
    await lab.submit(origin_uid="uid-1")
    assert not (await read(cursor)).place_lost
    promoted = await read(replace(cursor, timeline=2))
    assert promoted.place_lost and promoted.origin_uids == {"uid-1"} and promoted.cursor.timeline == 1
    assert not (await read(promoted.cursor)).place_lost
    first, _, _ = cursor.snapshot.split(":")
    ahead = replace(cursor, snapshot=f"{first}:{int(first) + 1_000_000}:")
    went_back = await read(ahead)
    assert went_back.place_lost
    assert not (await read(went_back.cursor)).place_lost


async def test_a_role_without_any_right_beyond_the_schema_is_told_the_timeline(lab: Lab) -> None:
    role = f"modest_{secrets.token_hex(4)}"
    async with lab.connection.transaction(force_rollback=True):
        await lab.execute(f"create role {role}")
        await lab.execute(f"grant usage on schema tasker to {role}")
        await lab.execute(f"set local role {role}")
        assert await lab.value("select tasker.server_timeline()") == 1


async def test_readers_lose_nothing_while_many_write(lab: Lab) -> None:
    await lab.template(step("a"))
    follower = Follower(lab)
    await follower.read()
    seen: set[str] = set()
    writing = True

    async def write(writer: int) -> None:
        async with await connect(lab.url) as connection:
            for n in range(15):
                await connection.execute("begin")
                await connection.execute(
                    "select * from tasker.submit_tasks('shop', json_build_array(json_build_object("
                    "'template_name', 'order', 'origin_uid', %s::text)))",
                    (f"{writer}-{n}",),
                )
                for _ in range((writer * 7 + n) % 5):  # other writers commit meanwhile
                    await asyncio.sleep(0)
                await connection.execute("commit")

    async def read() -> None:
        while writing:
            seen.update(await follower.read())

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(writer) for writer in range(6)))
    writing = False
    await reading
    expected = {f"{writer}-{n}" for writer in range(6) for n in range(15)}
    assert await follower.read() == expected - seen


async def demand(lab: Lab, *pools: tuple[str, str]) -> dict[tuple[str, str], tuple[int, int]]:
    """Queued and running by pool."""
    found = await lab.engine.workers.demand(pools)
    assert len(found) == len(pools)
    return {(row.namespace, row.pool): (row.queued, row.running) for row in found}


async def test_demand_is_what_waits_and_what_is_in_hand(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.run(*(step(f"s{n}") for n in range(5)))
    await lab.clock.advance(7)
    worker = await lab.worker("w1")
    await lab.worker("w2")
    claims = await worker.claim(2)
    await lab.engine.workers.drain("shop", ["w2"])
    assert await lab.engine.workers.demand([("shop", "default")]) == [
        PoolDemand(
            namespace="shop",
            pool="default",
            queued=3,
            running=2,
            oldest_ready_seconds=7.0,
            live_workers=2,
            draining_workers=1,
        )
    ]
    await worker.settle(*(success(claim) for claim in claims))
    await worker.run_all()
    assert await lab.engine.workers.demand([("shop", "default")]) == [
        PoolDemand(
            namespace="shop",
            pool="default",
            queued=0,
            running=0,
            oldest_ready_seconds=0.0,
            live_workers=2,
            draining_workers=1,
        )
    ]
    assert await lab.engine.workers.demand([]) == []


async def test_a_step_is_the_demand_of_the_pools_that_have_offered_its_handler(lab: Lab) -> None:
    await lab.run(
        step("a", callable="common"),
        step("b", callable="gpu-only"),
        step("c", callable="common"),
        step("d", callable="unheard-of"),
    )
    pools = [("shop", "cpu"), ("shop", "gpu"), ("shop", "fresh"), ("other", "cpu")]
    assert await demand(lab, *pools) == {
        ("shop", "cpu"): (4, 0),
        ("shop", "gpu"): (4, 0),
        ("shop", "fresh"): (4, 0),
        ("other", "cpu"): (0, 0),
    }, "while nobody has offered a handler, every pool of the namespace may be the one"
    cpu = await lab.worker("w-cpu", pool="cpu", callables=["common"])
    await lab.worker("w-gpu", pool="gpu", callables=["common", "gpu-only"])
    await lab.worker("w-other", pool="cpu", namespace="other", callables=["unheard-of"])
    assert await demand(lab, *pools) == {
        ("shop", "cpu"): (2, 0),
        ("shop", "gpu"): (3, 0),
        ("shop", "fresh"): (1, 0),
        ("other", "cpu"): (0, 0),
    }
    await cpu.claim()
    await cpu.deregister()
    await cpu.register(["common"], pool="cpu")
    await cpu.claim(1)
    assert (await demand(lab, *pools))["shop", "cpu"] == (1, 1), "known from before, although its workers left"
    # A pool that is gone does not keep a step from being the demand of the pools that are left.
    assert await demand(lab, ("shop", "fresh")) == {("shop", "fresh"): (3, 0)}


async def test_suspended_and_waiting_steps_are_nobodys_demand(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry={"backoff": "linear", "baseMs": 30_000}), step("b"), step("c", "b"))
    worker = await lab.worker()
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(failure(claims["a"]))
    assert await demand(lab, ("shop", "default")) == {("shop", "default"): (0, 1)}
    await worker.settle(success(claims["b"]))
    assert await demand(lab, ("shop", "default")) == {("shop", "default"): (1, 0)}
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    assert await demand(lab, ("shop", "default")) == {("shop", "default"): (0, 0)}


async def test_runs_of_a_template_are_counted_by_how_they_stand(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a", retry=SOON), name="order", version="1.0.0")
    await lab.template(step("a"), name="another")
    worker = await lab.worker()

    async def submit_and(outcome: str) -> UUID:
        task = await lab.submit()
        if outcome != "nothing":
            claim = await worker.claim_one()
            await worker.settle(
                {
                    "success": success(claim),
                    "failure": failure(claim, retryable=False),
                    "retry": failure(claim),
                }[outcome]
            )
        return task

    none = TemplateCounts(running=0, waiting=0, complete=0, error=0)
    assert await lab.engine.templates.counts("shop", "order") == none
    for outcome in ("success", "success", "failure", "retry"):
        await submit_and(outcome)
    cancelled = await submit_and("nothing")
    await lab.engine.actions.cancel(cancelled, actor="ann", reason="x")
    await submit_and("nothing")
    await lab.submit(suspended=True)
    await lab.submit("another")
    await lab.template(step("a"), step("b"), name="order", version="2.0.0")
    await lab.submit()
    counts = await lab.engine.templates.counts("shop", "order")
    assert counts == TemplateCounts(running=2, waiting=2, complete=2, error=2)
    assert await lab.engine.templates.counts("other", "order") == none


async def test_summaries_of_more_resources_than_one_query_takes(lab: Lab) -> None:
    await lab.template(step("a"))
    uids = [f"uid-{n}" for n in range(450)]
    await lab.engine.tasks.submit("shop", [TaskRequest(template_name="order", origin_uid=uid) for uid in uids])
    found = await lab.engine.tasks.read_by_origin([*uids, "nobody"])
    assert sorted(summary.origin_uid or "" for summary in found) == sorted(uids)


@asynccontextmanager
async def listener(lab: Lab) -> AsyncIterator[Counter[str]]:
    """How often each channel was heard, counted in the background."""
    heard: Counter[str] = Counter()

    async def count() -> None:
        async for channel in lab.engine.changes.listen():
            heard[channel] += 1

    counting = asyncio.create_task(count())
    try:
        yield heard
    finally:
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)


async def listening_backend(lab: Lab) -> int | None:
    """The process of the server that has executed LISTEN; None while there is none."""
    rows = await lab.rows(
        "select pid from pg_stat_activity where datname = current_database()"
        " and application_name = 'tasker-listen' and state = 'idle' and query ~* 'tasker_finished'"
    )
    return rows[0]["pid"] if rows else None


async def test_whoever_listens_is_told_of_new_work_and_of_ended_runs(lab: Lab) -> None:
    await lab.template(step("a"))
    async with listener(lab) as heard:
        await eventually_async(lambda: listening_backend(lab))
        await lab.submit()
        await eventually_async(lambda: counted(heard, "tasker_ready", 1))
        await lab.execute("select pg_notify('tasker_finished', '')")
        await eventually_async(lambda: counted(heard, "tasker_finished", 1))


async def test_a_listener_connects_again_when_its_connection_is_lost(lab: Lab) -> None:
    async with listener(lab) as heard:
        first = await eventually_async(lambda: listening_backend(lab))
        await lab.execute("select pg_terminate_backend(%s)", first)

        async def another() -> bool:
            return await listening_backend(lab) not in (None, first)

        await eventually_async(another)
        await lab.engine.workers.hint_ready()
        await eventually_async(lambda: counted(heard, "tasker_ready", 1))


async def counted(heard: Counter[str], channel: str, times: int) -> bool:
    return heard[channel] >= times
