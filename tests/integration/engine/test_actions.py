"""What people and deadlines do to a run, in every state in which it may be, with a log of legal hops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest

from support.engine import SOON, Lab, SimulatedWorker, failure, step, success
from support.invariants import check_invariants

# Two roots, so that one can fail or wait while nothing else runs; one dependent of each.
GRAPH = [
    step("a", retry={"backoff": "linear", "baseMs": 30_000, "jitter": 0}),
    step("b"),
    step("below-a", "a"),
    step("below-b", "b"),
]

Preparation = Callable[[Lab, SimulatedWorker], Awaitable[None]]


async def queued(lab: Lab, worker: SimulatedWorker) -> None:
    """Nothing has started."""


async def running(lab: Lab, worker: SimulatedWorker) -> None:
    await worker.claim()


async def partly_done(lab: Lab, worker: SimulatedWorker) -> None:
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(success(claims["b"]), claim_limit=1)


async def waiting_for_retry(lab: Lab, worker: SimulatedWorker) -> None:
    claims = {claim.step: claim for claim in await worker.claim()}
    settlement = await worker.settle(failure(claims["a"]), success(claims["b"]), claim_limit=1)
    await worker.settle(success(settlement.claims[0]))


async def partly_failed(lab: Lab, worker: SimulatedWorker) -> None:
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(failure(claims["a"], retryable=False))


async def suspended(lab: Lab, worker: SimulatedWorker) -> None:
    claims = {claim.step: claim for claim in await worker.claim()}
    await lab.engine.actions.suspend(claims["a"].task_uuid, actor="ann", reason="x")
    await worker.settle(success(claims["b"]))


async def waiting_for_dependencies(lab: Lab, worker: SimulatedWorker) -> None:
    """No template of standard steps leads there; the row is put there as the database allows it."""
    claims = {claim.step: claim for claim in await worker.claim()}
    await worker.settle(success(claims["a"]), success(claims["b"]), claim_limit=9)
    await lab.execute("delete from tasker.leases")
    await lab.execute(
        "update tasker.steps set state = 'error' where state = 'in_progress'",
    )
    await lab.execute("update tasker.tasks set state = 'waiting_for_dependencies', active_steps = 0, failed_steps = 2")
    await lab.execute(
        "insert into tasker.task_log (task_id, at, passage, actor_id)"
        " select task_id, now(), 'left_waiting', tasker.actor_id('test') from tasker.tasks"
    )


SITUATIONS = [queued, running, partly_done, waiting_for_retry, partly_failed, suspended, waiting_for_dependencies]
REAL_SITUATIONS = SITUATIONS[:-1]


async def situation(lab: Lab, prepare: Preparation, **request: object) -> tuple[UUID, SimulatedWorker]:
    await lab.clock.freeze()
    task = await lab.run(*GRAPH, **request)
    worker = await lab.worker(lease_seconds=100_000)
    await prepare(lab, worker)
    return task, worker


def assert_chained(log: list[str]) -> None:
    """Each hop begins where the one before ended."""
    sources = [hop.split(" -")[0] for hop in log]
    targets = [hop.rsplit("> ", 1)[1] for hop in log]
    assert sources[0] == "pending" and sources[1:] == targets[:-1], log


@pytest.mark.parametrize("prepare", SITUATIONS)
async def test_cancelling_ends_a_run_wherever_it_is(lab: Lab, prepare: Preparation) -> None:
    task, worker = await situation(lab, prepare, deadline_seconds=3600)
    before = await lab.step_states(task)
    state = await lab.state(task)
    now = await lab.clock.advance(5)
    assert await lab.engine.actions.cancel(task, actor="ann", reason="not wanted") is True
    kept = {"complete", "error"}
    assert await lab.step_states(task) == {name: was if was in kept else "cancelled" for name, was in before.items()}
    summary = await lab.engine.tasks.read(task)
    assert (summary.state, summary.completed_at) == ("cancelled", now)
    assert summary.error == {"reason": "cancelled", "message": "not wanted"}
    ended = list((await lab.step_states(task)).values())
    counts = summary.counts
    assert (counts.complete, counts.failed, counts.cancelled) == tuple(
        map(ended.count, ("complete", "error", "cancelled"))
    )
    assert (counts.pending, counts.ready, counts.running, counts.waiting) == (0, 0, 0, 0)
    for table in ("ready_steps", "leases", "timers"):
        assert await lab.value(f"select count(*) from tasker.{table}") == 0
    log = await lab.task_log(task)
    assert_chained(log)
    assert log[-1] == f"{state} -cancel-> cancelled"
    (last,) = await lab.rows("select actor, metadata from tasker.task_transitions order by transition_id desc limit 1")
    assert last == {"actor": "ann", "metadata": {"reason": "not wanted"}}
    for name, was in before.items():
        if was not in kept:
            assert (await lab.step_log(task, name))[-1] == f"{was} -cancel-> cancelled"
    if prepare is not waiting_for_dependencies:
        assert await check_invariants(lab.connection) == []
    # And nothing more happens to it.
    after = await lab.dump()
    assert await lab.engine.actions.cancel(task, actor="ann", reason="again") is False
    assert (
        await lab.engine.actions.suspend(task, actor="ann", reason="x") is False
        and await lab.engine.actions.resume(task, actor="ann", reason="x") is False
    )
    await lab.clock.advance(4000)
    assert await lab.engine.workers.sweep() == {} and await worker.claim() == []
    assert await lab.dump() == after


@pytest.mark.parametrize("prepare", SITUATIONS)
async def test_a_deadline_that_passes_fails_a_run_wherever_it_is(lab: Lab, prepare: Preparation) -> None:
    task, worker = await situation(lab, prepare, deadline_seconds=20)
    before = await lab.step_states(task)
    state = await lab.state(task)
    await lab.clock.advance(19)
    assert "deadlines_passed" not in await lab.engine.workers.sweep()
    now = await lab.clock.advance(1)
    assert (await lab.engine.workers.sweep())["deadlines_passed"] == 1
    kept = {"complete", "error"}
    assert await lab.step_states(task) == {name: was if was in kept else "cancelled" for name, was in before.items()}
    summary = await lab.engine.tasks.read(task)
    assert (summary.state, summary.completed_at) == ("error", now)
    assert summary.error == {"reason": "deadline_exceeded", "message": "the task passed its deadline"}
    log = await lab.task_log(task)
    assert_chained(log)
    assert log[-1] == (
        "enqueuing_steps -enqueue_failed-> error"
        if state == "waiting_for_retry"
        else "blocked_by_failures -give_up-> error"
    )
    if prepare is not waiting_for_dependencies:
        assert await check_invariants(lab.connection) == []
    after = await lab.dump()
    assert await lab.engine.actions.cancel(task, actor="ann", reason="late") is False
    assert await lab.engine.workers.sweep() == {} and await worker.claim() == []
    assert await lab.dump() == after


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_an_outcome_that_comes_after_the_end_of_its_run_is_stale(lab: Lab, how: str) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a"), step("b", "a"), deadline_seconds=20)
    worker = await lab.worker()
    claim = await worker.claim_one()
    if how == "cancel":
        await lab.engine.actions.cancel(task, actor="ann", reason="not wanted")
    else:
        await lab.clock.advance(21)
        await lab.engine.workers.sweep()
    before = await lab.dump()
    for outcome in (success(claim, "late"), failure(claim)):
        assert (await worker.settle(outcome)).stale == [claim.step_id]
    assert (await worker.renew(claim)).lost_fences == [claim.fence]
    assert await lab.dump() == before


async def test_a_run_that_ended_before_its_deadline_has_none_any_more(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a"), deadline_seconds=20)
    await (await lab.worker()).run_all()
    await lab.clock.advance(21)
    assert await lab.engine.workers.sweep() == {}
    assert await lab.state(task) == "complete"


@pytest.mark.parametrize("prepare", [queued, running, partly_done, waiting_for_retry, partly_failed])
async def test_a_suspended_run_starts_nothing_until_it_is_resumed_and_then_ends_as_ever(
    lab: Lab, prepare: Preparation
) -> None:
    task, worker = await situation(lab, prepare)
    state, log = await lab.state(task), await lab.task_log(task)
    held = {row["step_id"] for row in await lab.rows("select step_id from tasker.leases")}
    assert await lab.engine.actions.suspend(task, actor="ann", reason="x") is True
    assert await lab.engine.actions.suspend(task, actor="ann", reason="x") is False
    assert await lab.queue() == [] and await worker.claim() == []
    assert (await lab.engine.tasks.read(task)).suspended
    await lab.clock.advance(60)
    await lab.engine.workers.sweep()
    assert await lab.queue() == [] and await worker.claim() == []
    # What was in somebody's hands may be handed in, and what follows from it waits too.
    await worker.deregister()
    await worker.register()
    assert await lab.queue() == []
    assert held >= {row["step_id"] for row in await lab.rows("select step_id from tasker.leases")}
    assert await check_invariants(lab.connection) == []
    assert await lab.engine.actions.resume(task, actor="ann", reason="x") is True
    assert await lab.engine.actions.resume(task, actor="ann", reason="x") is False
    await worker.run_all()
    assert await lab.state(task) == ("error" if prepare is partly_failed else "complete")
    assert state in ("steps_in_process", "waiting_for_retry") and (await lab.task_log(task))[: len(log)] == log
    assert await check_invariants(lab.connection) == []


async def test_cancelling_by_resource_and_by_namespace(lab: Lab) -> None:
    for namespace in ("one", "two"):
        await lab.template(step("a"), namespace=namespace)
    first = await lab.submit(namespace="one", origin_uid="uid-1", origin_name="first")
    second = await lab.submit(namespace="one", origin_uid="uid-2", origin_name="second")
    third = await lab.submit(namespace="one")
    other = await lab.submit(namespace="two", origin_uid="uid-4", origin_name="other")
    assert await lab.engine.actions.cancel_by_origin("uid-1", actor="operator", reason="deleted") is True
    assert await lab.engine.actions.cancel_by_origin("uid-1", actor="operator", reason="deleted") is False
    assert await lab.state(first) == "cancelled"
    assert [(origin.name, origin.uid, origin.task_uuid) for origin in await lab.engine.tasks.open_origins("one")] == [
        ("second", "uid-2", second)
    ]
    assert {origin.uid for origin in await lab.engine.tasks.open_origins()} == {"uid-2", "uid-4"}
    assert await lab.engine.actions.cancel_namespace("one", actor="operator", reason="namespace deleted") == 2
    assert await lab.engine.actions.cancel_namespace("one", actor="operator", reason="namespace deleted") == 0
    assert [await lab.state(task) for task in (second, third, other)] == ["cancelled", "cancelled", "steps_in_process"]
    assert await lab.engine.tasks.finished_count([first, second, third, other]) == 3


async def test_a_step_waiting_for_its_retry_is_not_tried_again_after_its_run_was_cancelled(lab: Lab) -> None:
    await lab.clock.freeze()
    task = await lab.run(step("a", retry=SOON))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one()))
    await lab.engine.actions.cancel(task, actor="ann", reason="x")
    assert await lab.engine.workers.sweep() == {}
    assert (await lab.step_log(task, "a"))[-1] == "waiting_for_retry -cancel-> cancelled"
