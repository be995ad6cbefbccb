"""A second run with the identity of another one is refused, with the run that holds it, and never anything else."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Json

from support.engine import NAMESPACE, Lab, connect, step
from support.invariants import check_invariants
from tasker.errors import InvalidTask, TemplateNotFound
from tasker.model.task import SubmittedTask, TaskRequest


async def identified(lab: Lab, strategy: str = "callerProvided", window: int | None = None, **more: Any) -> None:
    identity: dict[str, Any] = {"strategy": strategy} | ({} if window is None else {"windowSeconds": window})
    await lab.template(step("a"), identity=identity, **more)


async def ask(lab: Lab, template: str = "order", namespace: str = NAMESPACE, **request: Any) -> SubmittedTask:
    (submitted,) = await lab.engine.tasks.submit(namespace, [TaskRequest(template_name=template, **request)])
    return submitted


def keyed(*keys: str, **more: Any) -> list[TaskRequest]:
    return [TaskRequest(template_name="order", idempotency_key=key, **more) for key in keys]


async def runs(lab: Lab) -> int:
    return int(await lab.value("select count(*) from tasker.tasks"))


async def test_the_same_context_however_written_is_the_same_run(lab: Lab) -> None:
    await identified(lab, "strict")
    first = await ask(
        lab, context={"order": {"id": 7, "total": 1.0}, "tags": ["x"]}, origin_uid="u", origin_name="order-7"
    )
    before = await lab.dump()
    again = await ask(lab, context={"tags": ["x"], "order": {"total": 1, "id": 7.0}})
    assert first.created and not first.duplicate and first.refusal is None
    assert (again.created, again.duplicate, again.task_uuid) == (False, True, first.task_uuid)
    assert str(again.refusal) == f"it is a duplicate of run {first.task_uuid} of Task order-7"
    assert await lab.dump() == before
    assert (await ask(lab, context={"tags": ["X"], "order": {"total": 1, "id": 7.0}})).created
    assert await check_invariants(lab.connection) == []


async def test_a_key_is_of_one_template_in_one_namespace(lab: Lab) -> None:
    await identified(lab)
    await identified(lab, namespace="elsewhere")
    await identified(lab, name="other")
    answers = [
        await ask(lab, idempotency_key="k"),
        await ask(lab, namespace="elsewhere", idempotency_key="k"),
        await ask(lab, "other", idempotency_key="k"),
    ]
    assert [each.created for each in answers] == [True] * 3


async def test_a_key_is_held_over_revisions_and_after_the_end_of_its_run(lab: Lab) -> None:
    await identified(lab)
    first = await ask(lab, idempotency_key="k")
    await lab.engine.actions.cancel(first.task_uuid, actor="ann", reason="x")
    await identified(lab, description="new", version="2.0.0")
    again = await ask(lab, idempotency_key="k")
    assert (again.duplicate, again.task_uuid, str(again.refusal)) == (
        True,
        first.task_uuid,
        f"it is a duplicate of run {first.task_uuid}",
    )


async def test_without_a_rule_every_run_is_another(lab: Lab) -> None:
    await lab.template(step("a"))
    assert [(await ask(lab, context={"n": 1})).created for _ in range(2)] == [True, True]
    assert await lab.value("select count(*) from tasker.identities") == 0


async def test_a_request_without_the_key_that_its_template_asks_for_is_refused_at_every_door(lab: Lab) -> None:
    await identified(lab)
    with pytest.raises(InvalidTask) as caught:
        await lab.engine.tasks.submit(NAMESPACE, [*keyed("k"), TaskRequest(template_name="order")])
    assert str(caught.value) == "spec.idempotencyKey: is required by the identity of template order"
    with pytest.raises(InvalidTask) as caught:
        await lab.engine.tasks._database.fetch(
            "select * from tasker.submit_tasks(%(namespace)s, %(requests)s)",
            {"namespace": NAMESPACE, "requests": Json([{"template_name": "order", "idempotency_key": "k"}])},
        )
    assert "a run of template order needs an identity_key: its identity is callerProvided" in str(caught.value)
    assert await runs(lab) == 0


@pytest.mark.parametrize("key", ["", "k" * 256, "a\0"])
async def test_a_key_that_cannot_be_stored_is_refused(lab: Lab, key: str) -> None:
    await identified(lab)
    with pytest.raises(InvalidTask) as caught:
        await ask(lab, idempotency_key=key)
    assert caught.value.path == "spec.idempotencyKey"


async def test_a_window_is_counted_from_the_submission(lab: Lab) -> None:
    await lab.clock.freeze()
    await identified(lab, window=60)
    first = await ask(lab, idempotency_key="k")
    await lab.clock.advance(59)
    assert (await ask(lab, idempotency_key="k")).task_uuid == first.task_uuid
    await lab.clock.advance(1)
    second = await ask(lab, idempotency_key="k")
    assert second.created and second.task_uuid != first.task_uuid
    await lab.clock.advance(59)
    assert (await ask(lab, idempotency_key="k")).refusal is not None
    assert await lab.engine.workers.sweep() == {}
    await lab.clock.advance(1)
    assert await lab.engine.workers.sweep() == {"identities_expired": 1}
    assert await lab.value("select count(*) from tasker.identities") == 0
    assert (await ask(lab, idempotency_key="k")).created


async def test_a_key_goes_with_the_row_of_its_run_but_not_before_its_window_does(lab: Lab) -> None:
    await lab.clock.freeze()
    await identified(lab)
    await identified(lab, name="windowed", window=60)
    await ask(lab, idempotency_key="k")
    windowed = await ask(lab, "windowed", idempotency_key="k", origin_uid="u", origin_name="t")
    await lab.execute("delete from tasker.tasks")
    assert (await ask(lab, idempotency_key="k")).created
    again = await ask(lab, "windowed", idempotency_key="k")
    assert (again.duplicate, again.task_uuid, again.origin_name) == (True, windowed.task_uuid, None)


async def test_one_duplicate_among_a_hundred_is_told_apart(lab: Lab) -> None:
    await identified(lab)
    held = await ask(lab, idempotency_key="k-40")
    answers = await lab.engine.tasks.submit(NAMESPACE, keyed(*(f"k-{n}" for n in range(100))))
    assert [place for place, each in enumerate(answers) if not each.created] == [40]
    assert (answers[40].duplicate, answers[40].task_uuid) == (True, held.task_uuid)
    assert len({each.task_uuid for each in answers}) == await runs(lab) == 100
    assert await check_invariants(lab.connection) == []


async def test_equal_keys_in_one_call_are_one_run(lab: Lab) -> None:
    await identified(lab)
    await lab.template(step("a"), name="free")
    requests = [*keyed("k", "l", "k"), TaskRequest(template_name="free"), *keyed("k")]
    answers = await lab.engine.tasks.submit(NAMESPACE, requests)
    assert [(each.created, each.duplicate) for each in answers] == [
        (True, False),
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    assert answers[2].task_uuid == answers[4].task_uuid == answers[0].task_uuid


async def test_all_are_refused_for_an_error_and_then_no_key_is_held(lab: Lab) -> None:
    await identified(lab)
    with pytest.raises(TemplateNotFound):
        await lab.engine.tasks.submit(NAMESPACE, [*keyed("k"), TaskRequest(template_name="missing")])
    assert (await ask(lab, idempotency_key="k")).created


async def test_a_resource_that_asks_again_is_no_duplicate_of_its_own_run(lab: Lab) -> None:
    await lab.clock.freeze()
    await identified(lab, window=60)
    first = await ask(lab, idempotency_key="k", origin_uid="u")
    answers = [await ask(lab, idempotency_key="k", origin_uid="u")]
    await lab.clock.advance(100)
    answers.append(await ask(lab, idempotency_key="k", origin_uid="u"))
    assert [(each.created, each.duplicate, each.task_uuid) for each in answers] == [(False, False, first.task_uuid)] * 2
    # Nor does asking again hold the key any longer.
    assert (await ask(lab, idempotency_key="k", origin_uid="v")).created


async def test_a_resource_that_has_a_run_needs_no_key_to_get_it_back(lab: Lab) -> None:
    await lab.template(step("a"))
    first = await ask(lab, origin_uid="u")
    await identified(lab)
    again = await ask(lab, origin_uid="u")
    assert (again.created, again.duplicate, again.task_uuid) == (False, False, first.task_uuid)
    with pytest.raises(InvalidTask):
        await ask(lab, origin_uid="v")


async def test_of_the_requests_of_one_resource_in_one_call_the_first_counts(lab: Lab) -> None:
    await identified(lab)
    held = await ask(lab, idempotency_key="held")
    twice = [*keyed("k", origin_uid="u"), *keyed("l", origin_uid="u"), *keyed("l")]
    first, second, third = await lab.engine.tasks.submit(NAMESPACE, twice)
    assert first.created and third.created
    assert (second.created, second.duplicate, second.task_uuid) == (False, False, first.task_uuid)
    refused = await lab.engine.tasks.submit(NAMESPACE, [*keyed("held", origin_uid="w"), *keyed("m", origin_uid="w")])
    assert [(each.duplicate, each.task_uuid) for each in refused] == [(True, held.task_uuid)] * 2
    assert await check_invariants(lab.connection) == []


async def test_of_many_at_the_same_moment_one_wins(lab: Lab) -> None:
    await identified(lab, "strict")
    answers = await asyncio.gather(*(ask(lab, context={"order": 7}) for _ in range(12)))
    (winner,) = [each for each in answers if each.created]
    assert [(each.duplicate, each.task_uuid) for each in answers if each is not winner] == [
        (True, winner.task_uuid)
    ] * 11
    assert await runs(lab) == 1


SUBMIT = "select task_uuid, created, duplicate from tasker.submit_tasks('shop', %s)"
REQUEST = Json([{"template_name": "order", "identity_key": "key:k"}])


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_the_second_waits_for_the_first_and_then_knows(lab: Lab, end: str) -> None:
    await identified(lab)
    async with await connect(lab.url) as first, await connect(lab.url) as second:
        await first.execute("begin")
        row = await (await first.execute(SUBMIT, (REQUEST,))).fetchone()
        assert row is not None and row["created"]
        asking = asyncio.create_task(second.execute(SUBMIT, (REQUEST,)))
        waiting = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        while not await lab.value(waiting, second.info.backend_pid):
            assert not asking.done()
        await first.execute(end.encode())
        answer = await (await asking).fetchone()
    assert answer is not None
    if end == "commit":
        assert (answer["created"], answer["duplicate"], answer["task_uuid"]) == (False, True, row["task_uuid"])
    else:
        assert answer["created"]
    assert await runs(lab) == 1
    assert await check_invariants(lab.connection) == []


async def test_the_same_resources_with_the_same_keys_from_many_sides_get_one_run_each(lab: Lab) -> None:
    """In opposite orders, which must not make them wait for each other for ever; none is a duplicate of its own run."""
    await identified(lab)
    names = [f"{n:02}" for n in range(30)]

    async def submit(order: list[str]) -> dict[str, SubmittedTask]:
        requests = [TaskRequest(template_name="order", idempotency_key=f"k-{n}", origin_uid=f"u-{n}") for n in order]
        return dict(zip(order, await lab.engine.tasks.submit(NAMESPACE, requests), strict=True))

    rounds = await asyncio.gather(*(submit(names[:: 1 if turn % 2 else -1]) for turn in range(8)))
    for name in names:
        answers = [answer[name] for answer in rounds]
        assert len({each.task_uuid for each in answers}) == 1 and sum(each.created for each in answers) == 1
        assert not any(each.duplicate for each in answers)
    assert await check_invariants(lab.connection) == []


async def test_a_key_is_not_left_to_a_run_that_another_call_has_just_created(lab: Lab) -> None:
    """Two calls for one resource with different keys: the one that comes second leaves no key behind."""
    await identified(lab)
    async with await connect(lab.url) as first, await connect(lab.url) as second:

        def request(key: str) -> tuple[Json]:
            return (Json([{"template_name": "order", "identity_key": f"key:{key}", "origin_uid": "u"}]),)

        await first.execute("begin")
        row = await (await first.execute(SUBMIT, request("k"))).fetchone()
        asking = asyncio.create_task(second.execute(SUBMIT, request("l")))
        waiting = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        while not await lab.value(waiting, second.info.backend_pid):
            assert not asking.done()
        await first.execute("commit")
        answer = await (await asking).fetchone()
    assert row is not None and answer is not None
    assert (answer["created"], answer["duplicate"], answer["task_uuid"]) == (False, False, row["task_uuid"])
    assert (await ask(lab, idempotency_key="l")).created
    assert (await ask(lab, idempotency_key="k")).duplicate


async def test_a_call_whose_holder_comes_to_nothing_is_made_again(lab: Lab) -> None:
    """Of one call the first request holds the key of the second; then another call has its resource's run."""
    await identified(lab)
    async with await connect(lab.url) as first:
        await first.execute("begin")
        await first.execute(SUBMIT, (Json([{"template_name": "order", "identity_key": "key:k", "origin_uid": "u"}]),))
        asking = asyncio.create_task(lab.engine.tasks.submit(NAMESPACE, [*keyed("l", origin_uid="u"), *keyed("l")]))
        while not await lab.value("select count(*) from pg_locks where not granted"):
            assert not asking.done()
        await first.execute("commit")
        own, other = await asking
    assert (own.created, own.duplicate, other.created, other.duplicate) == (False, False, True, False)
    assert await runs(lab) == 2
    assert await check_invariants(lab.connection) == []


async def test_a_request_may_name_the_revision_that_it_was_checked_for(lab: Lab) -> None:
    older = await lab.template(step("older"))
    await lab.template(step("newer"))

    async def submit(revision: str) -> UUID:
        rows = await lab.engine.tasks._database.fetch(
            "select * from tasker.submit_tasks(%(namespace)s, %(requests)s)",
            {"namespace": NAMESPACE, "requests": Json([{"template_name": "order", "revision": revision}])},
        )
        uuid: UUID = rows[0]["task_uuid"]
        return uuid

    assert list(await lab.steps(await submit(older.revision))) == ["older"]
    with pytest.raises(TemplateNotFound) as caught:
        await submit("0123")
    assert str(caught.value) == "no template order revision 0123 in namespace shop"
