"""Who holds a run back: its resource and people, each with a hold of their own, written down with who and why."""

from __future__ import annotations

from support.engine import Lab, step, success
from tasker.model.task import Hold


async def test_a_run_goes_on_when_nobody_holds_it_any_more(lab: Lab) -> None:
    task = await lab.run(step("a"), origin_uid="uid-1")
    actions, worker = lab.engine.actions, await lab.worker()
    assert await actions.suspend(task, hold=Hold.RESOURCE, actor="operator", reason="so it says")
    assert not await actions.suspend(task, hold=Hold.RESOURCE, actor="operator", reason="so it says")
    assert await actions.suspend(task, actor="ann", reason="a wrong price")
    assert not await actions.suspend(task, actor="ann", reason="a wrong price")
    assert (await lab.engine.tasks.read(task)).holds == {Hold.RESOURCE, Hold.PERSON}
    assert await actions.resume(task, hold=Hold.RESOURCE, actor="operator", reason="so it says")
    assert not await actions.resume(task, hold=Hold.RESOURCE, actor="operator", reason="so it says")
    summary = await lab.engine.tasks.read(task)
    assert summary.holds == {Hold.PERSON} and summary.suspended
    assert await worker.claim() == []
    assert await actions.resume(task, actor="ann", reason="a wrong price")
    summary = await lab.engine.tasks.read(task)
    assert summary.holds == frozenset() and not summary.suspended
    claim = await worker.claim_one()
    await worker.settle(success(claim))
    assert not await actions.suspend(task, actor="ann", reason="a wrong price"), "it has ended"
    assert not await actions.resume(task, actor="ann", reason="a wrong price")


async def test_who_held_it_and_let_it_go_and_why_is_in_the_history_and_a_change(lab: Lab) -> None:
    task = await lab.run(step("a"), origin_uid="uid-1")
    place = (await lab.engine.changes.read(None)).cursor
    log = await lab.task_log(task)
    await lab.engine.actions.suspend(task, actor="ann", reason="a wrong price")
    changes = await lab.engine.changes.read(place)
    assert changes.origin_uids == {"uid-1"}
    await lab.engine.actions.resume(task, actor="ben", reason="it was right")
    assert (await lab.engine.changes.read(changes.cursor)).origin_uids == {"uid-1"}
    held = await lab.rows(
        "select l.passage::text, a.name as actor, l.metadata"
        " from tasker.task_log l join tasker.actors a using (actor_id)"
        " where l.passage in ('held', 'let_go') order by l.log_id"
    )
    assert held == [
        {"passage": "held", "actor": "ann", "metadata": {"hold": "person", "reason": "a wrong price"}},
        {"passage": "let_go", "actor": "ben", "metadata": {"hold": "person", "reason": "it was right"}},
    ]
    assert await lab.task_log(task) == log, "no state has changed"


async def test_a_run_that_begins_suspended_is_held_by_who_asked_for_it(lab: Lab) -> None:
    await lab.template(step("a"))
    for origin, hold in (("uid-1", Hold.RESOURCE), (None, Hold.PERSON)):
        task = await lab.submit(suspended=True, origin_uid=origin)
        assert (await lab.engine.tasks.read(task)).holds == {hold}
        assert await lab.engine.actions.resume(task, hold=hold, actor="ann", reason="a wrong price")
    assert len(await (await lab.worker()).claim()) == 2
