"""Runs are created in sets, once for each resource that asks, from the revision that is current then."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from support.engine import NAMESPACE, Lab, step
from tasker.errors import InvalidTask, TaskNotFound, TemplateNotFound
from tasker.model.task import StepCounts, TaskRequest
from tasker.model.template import parse_template_spec

DIAMOND = [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]


async def test_a_run_has_its_steps_and_its_roots_are_in_the_queue(lab: Lab) -> None:
    now = await lab.clock.freeze()
    task = await lab.run(*DIAMOND, context={"order": 7}, origin_uid="uid-1", origin_name="order-7")
    assert await lab.step_states(task) == {"a": "enqueued", "b": "pending", "c": "pending", "d": "pending"}
    assert {name: row["open_edges"] for name, row in (await lab.steps(task)).items()} == {
        "a": 0,
        "b": 1,
        "c": 1,
        "d": 2,
    }
    assert await lab.queue() == ["a"]
    assert await lab.task_log(task) == [
        "pending -start-> initializing",
        "initializing -ready_steps_found-> enqueuing_steps",
        "enqueuing_steps -steps_enqueued-> steps_in_process",
    ]
    assert await lab.step_log(task, "a") == ["pending -enqueue-> enqueued"]
    assert await lab.step_log(task, "b") == []
    summary = await lab.engine.tasks.read(task)
    assert (summary.origin_uid, summary.origin_name, summary.namespace) == ("uid-1", "order-7", NAMESPACE)
    assert (summary.template_name, summary.template_version) == ("order", "1.0.0")
    assert (summary.created_at, summary.started_at, summary.completed_at) == (now, now, None)
    assert summary.counts == StepCounts(
        total=4, pending=3, ready=1, running=0, waiting=0, complete=0, failed=0, cancelled=0
    )
    assert (await lab.rows("select context, correlation_id from tasker.tasks"))[0]["context"] == {"order": 7}


async def test_a_set_is_answered_in_the_order_of_its_requests(lab: Lab) -> None:
    await lab.template(step("a"), name="one")
    await lab.template(step("a"), step("b"), name="two")
    names = ["one", "two", "two", "one", "two"] * 20
    requests = [TaskRequest(template_name=name, reason=str(place)) for place, name in enumerate(names)]
    submitted = await lab.engine.tasks.submit(NAMESPACE, requests)
    assert all(each.created for each in submitted)
    found = {row["task_uuid"]: row for row in await lab.rows("select task_uuid, reason, total_steps from tasker.tasks")}
    assert [found[each.task_uuid]["reason"] for each in submitted] == [str(place) for place in range(100)]
    assert [found[each.task_uuid]["total_steps"] for each in submitted] == [1 if n == "one" else 2 for n in names]


async def test_an_empty_set_is_no_work(lab: Lab) -> None:
    assert await lab.engine.tasks.submit(NAMESPACE, []) == []


async def test_what_is_given_about_a_run_is_kept(lab: Lab) -> None:
    await lab.run(
        step("a"),
        correlation_id="c-1",
        parent_correlation_id="c-0",
        initiator="me",
        source_system="shop",
        reason="because",
        tags=("x", "y"),
        priority=-5,
    )
    (row,) = await lab.rows(
        "select correlation_id, parent_correlation_id, initiator, source_system, reason, tags, priority"
        " from tasker.tasks"
    )
    assert tuple(row.values()) == ("c-1", "c-0", "me", "shop", "because", ["x", "y"], -5)


async def test_a_correlation_id_is_made_up_when_none_is_given(lab: Lab) -> None:
    await lab.template(step("a"))
    await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="order")] * 2)
    assert len({row["correlation_id"] for row in await lab.rows("select correlation_id from tasker.tasks")}) == 2


async def test_a_resource_has_one_run_however_often_it_asks(lab: Lab) -> None:
    await lab.template(step("a"))
    request = TaskRequest(template_name="order", origin_uid="uid-1", context={"n": 1})
    (first,) = await lab.engine.tasks.submit(NAMESPACE, [request])
    before = await lab.dump()
    another = TaskRequest(template_name="order", origin_uid="uid-1", context={"n": 2})
    (again,) = await lab.engine.tasks.submit(NAMESPACE, [another])
    assert first.created and not again.created
    assert again.task_uuid == first.task_uuid
    assert await lab.dump() == before


async def test_old_and_new_and_doubled_requests_may_come_in_one_set(lab: Lab) -> None:
    await lab.template(step("a"))

    def request(uid: str | None) -> TaskRequest:
        return TaskRequest(template_name="order", origin_uid=uid)

    (old,) = await lab.engine.tasks.submit(NAMESPACE, [request("old")])
    answers = await lab.engine.tasks.submit(
        NAMESPACE, [request("new"), request("old"), request(None), request("new"), request(None)]
    )
    assert [each.created for each in answers] == [True, False, True, False, True]
    assert answers[0].task_uuid == answers[3].task_uuid
    assert answers[1].task_uuid == old.task_uuid
    assert len({each.task_uuid for each in answers}) == 4
    assert await lab.value("select count(*) from tasker.tasks") == 4
    assert await lab.value("select count(*) from tasker.steps") == 4


async def test_concurrent_submitters_of_the_same_resources_make_one_run_each(lab: Lab) -> None:
    """In opposite orders, which must not make them wait for each other for ever."""
    await lab.template(step("a"))
    uids = [f"uid-{n}" for n in range(40)]

    async def submit(order: list[str]) -> dict[str, Any]:
        answers = await lab.engine.tasks.submit(
            NAMESPACE, [TaskRequest(template_name="order", origin_uid=uid) for uid in order]
        )
        return dict(zip(order, answers, strict=True))

    rounds = await asyncio.gather(*(submit(uids[:: 1 if turn % 2 else -1]) for turn in range(8)))
    for uid in uids:
        assert len({answers[uid].task_uuid for answers in rounds}) == 1
        assert sum(answers[uid].created for answers in rounds) == 1
    assert await lab.value("select count(*) from tasker.tasks") == len(uids)
    await lab.execute("select pg_stat_force_next_flush()")
    assert await lab.value("select deadlocks from pg_stat_database where datname = current_database()") == 0


async def test_a_missing_template_is_named_and_nothing_of_the_set_is_created(lab: Lab) -> None:
    await lab.template(step("a"))
    requests = [TaskRequest(template_name="order"), TaskRequest(template_name="ordr")]
    with pytest.raises(TemplateNotFound) as caught:
        await lab.engine.tasks.submit(NAMESPACE, requests)
    assert str(caught.value) == "no template ordr in namespace shop"
    with pytest.raises(TemplateNotFound) as caught:
        await lab.submit(template_version="2.0.0")
    assert str(caught.value) == "no template order version 2.0.0 in namespace shop"
    with pytest.raises(TemplateNotFound) as caught:
        await lab.submit(namespace="elsewhere")
    assert str(caught.value) == "no template order in namespace elsewhere"
    assert await lab.value("select count(*) from tasker.tasks") == 0


async def test_a_request_over_a_limit_is_refused_before_anything_is_created(lab: Lab) -> None:
    await lab.template(step("a"))
    requests = [TaskRequest(template_name="order"), TaskRequest(template_name="order", priority=101)]
    with pytest.raises(InvalidTask) as caught:
        await lab.engine.tasks.submit(NAMESPACE, requests)
    assert str(caught.value) == "spec.priority: 101 is not between -100 and 100"
    assert await lab.value("select count(*) from tasker.tasks") == 0


async def test_the_largest_things_allowed_are_stored_and_delivered(lab: Lab) -> None:
    deepest: dict[str, Any] = {}
    for _ in range(31):
        deepest = {"in": deepest}
    large = {"text": "ü" * ((1_048_576 - 11) // 2)}
    for context in (deepest, large, {"€😀": "\x01\n"}):
        await lab.run(step("a"), context=context)
        worker = await lab.worker()
        claim = await worker.claim_one()
        assert claim.row["context"] == context
        await lab.engine.actions.cancel(claim.task_uuid, actor="me", reason="seen")


async def test_a_template_is_stored_once_for_each_content(lab: Lab) -> None:
    first = await lab.template(step("a"))
    again = await lab.template(step("a"))
    other = await lab.template(step("a"), step("b"))
    assert (first.created, again.created, other.created) == (True, False, True)
    assert again.template_id == first.template_id and other.template_id != first.template_id
    assert first.revision == parse_template_spec({"steps": [step("a")]}).revision


async def test_many_may_register_the_same_template_at_once(lab: Lab) -> None:
    registered = await asyncio.gather(*(lab.template(*DIAMOND) for _ in range(8)))
    assert len({each.template_id for each in registered}) == 1
    assert sum(each.created for each in registered) == 1
    assert await lab.value("select count(*) from tasker.definitions") == 4
    assert await lab.value("select count(*) from tasker.definition_edges") == 4


async def test_a_new_run_gets_the_newest_activated_revision_and_one_under_way_keeps_its_own(lab: Lab) -> None:
    await lab.template(step("old-a"), step("old-b", "old-a"))
    under_way = await lab.submit()
    await lab.template(step("new-a"))
    newer = await lab.submit()
    assert list(await lab.steps(newer)) == ["new-a"]
    worker = await lab.worker()
    assert sorted(await worker.run_all()) == ["new-a", "old-a", "old-b"]
    assert await lab.state(under_way) == await lab.state(newer) == "complete"
    # Going back to the old text makes it current again, as a revision that was there already.
    assert not (await lab.template(step("old-a"), step("old-b", "old-a"))).created
    assert list(await lab.steps(await lab.submit())) == ["old-a", "old-b"]


async def test_a_version_gives_the_newest_revision_of_that_version(lab: Lab) -> None:
    await lab.template(step("one"), version="1.0.0")
    await lab.template(step("two"), version="2.0.0")
    await lab.template(step("two-again"), version="2.0.0")
    await lab.template(step("three"), version="3.0.0")
    assert list(await lab.steps(await lab.submit(template_version="1.0.0"))) == ["one"]
    assert list(await lab.steps(await lab.submit(template_version="2.0.0"))) == ["two-again"]
    assert list(await lab.steps(await lab.submit())) == ["three"]


async def test_namespaces_have_templates_of_their_own(lab: Lab) -> None:
    await lab.template(step("a"), namespace="one")
    await lab.template(step("b"), namespace="two")
    assert list(await lab.steps(await lab.submit(namespace="one"))) == ["a"]
    assert list(await lab.steps(await lab.submit(namespace="two"))) == ["b"]


async def test_a_suspended_run_is_accepted_and_waits(lab: Lab) -> None:
    task = await lab.run(step("a"), suspended=True)
    worker = await lab.worker()
    assert await lab.queue() == [] and await worker.claim() == []
    assert (await lab.engine.tasks.read(task)).suspended
    assert await lab.engine.workers.sweep() == {}
    assert await lab.engine.actions.resume(task, actor="ann", reason="x")
    assert await worker.run_all() == ["a"]
    assert await lab.state(task) == "complete"


async def test_a_deadline_counts_from_acceptance(lab: Lab) -> None:
    now = await lab.clock.freeze()
    await lab.run(step("a"), deadline_seconds=90.5)
    claim = await (await lab.worker()).claim_one()
    assert claim.row["deadline"] == now + timedelta(seconds=90.5)
    await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="order")])
    assert (await (await lab.worker()).claim_one()).row["deadline"] is None


async def test_priority_goes_first_but_is_worth_only_six_seconds_of_waiting_a_point(lab: Lab) -> None:
    await lab.template(step("a"))
    await lab.clock.freeze()
    expected: list[str] = []

    async def submit(reason: str, priority: int) -> None:
        await lab.submit(priority=priority, reason=reason)

    await submit("waits long", 0)
    await lab.clock.advance(59)
    await submit("ten points, a second too soon", 10)  # 59 s against 60 s
    await submit("normal", 0)
    await submit("low", -1)
    await lab.clock.advance(3)
    await submit("three seconds later", 0)
    await submit("ten points, too late", 10)  # 62 s against 60 s
    expected = [
        "ten points, a second too soon",
        "waits long",
        "ten points, too late",
        "normal",
        "three seconds later",
        "low",
    ]
    worker = await lab.worker()
    order: list[str] = []
    for _ in expected:
        claim = await worker.claim_one()
        order.append(await lab.value("select reason from tasker.tasks where task_uuid = %s", claim.task_uuid))
    assert order == expected


async def test_what_is_not_there_is_not_found(lab: Lab) -> None:
    unknown = (await lab.rows("select gen_random_uuid() as uuid"))[0]["uuid"]
    for action in (
        lab.engine.tasks.read(unknown),
        lab.engine.actions.cancel(unknown, actor="me", reason="x"),
        lab.engine.actions.suspend(unknown, actor="ann", reason="x"),
        lab.engine.actions.resume(unknown, actor="ann", reason="x"),
    ):
        with pytest.raises(TaskNotFound) as caught:
            await action
        assert str(caught.value) == f"no task {unknown}"
    assert await lab.engine.tasks.read_by_origin(["nobody"]) == []
    assert not await lab.engine.actions.cancel_by_origin("nobody", actor="me", reason="x")
