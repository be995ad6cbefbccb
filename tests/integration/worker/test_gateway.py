"""The worker's side of the SQL contract, against the real functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from support.cut_proxy import Cut, cut_proxy
from support.engine import NAMESPACE, Lab, serve_contracts, step
from tasker_worker.claims import RELEASE, Outcome, OutcomeKind, Settlement
from tasker_worker.errors import ConfigurationError
from tasker_worker.gateway import (
    Gateway,
    Locked,
    Offer,
    Refused,
    SchemaMissing,
    SyncGateway,
    Unavailable,
    connection_settings,
)
from tasker_worker.outcomes import from_exception, from_value
from tasker_worker.queries import QUERIES


def offer(worker: str = "w-1", **changes: Any) -> Offer:
    return Offer(NAMESPACE, worker, "default", 10, "1.0.0", ["do"], 30.0)._replace(**changes)


@pytest_asyncio.fixture
async def gateway(lab: Lab) -> AsyncIterator[Gateway]:
    """A registered worker's connection."""
    made = Gateway(lab.url, namespace=NAMESPACE, lease_seconds=30)
    await made.register(offer())
    yield made
    await made.close()


async def test_a_claim_brings_all_that_a_handler_needs(lab: Lab, gateway: Gateway) -> None:
    task = await lab.run(
        step("first"),
        {
            "name": "second",
            "handler": {"callable": "do", "method": "refund", "resolver": "explicit", "initialization": {"rate": 2}},
            "dependsOn": ["first"],
            "timeoutSeconds": 7,
            "retry": {"maxAttempts": 4},
        },
        context={"amount": 5},
        correlation_id="c-1",
        deadline_seconds=600,
    )
    [first] = await gateway.claim("w-1", 10)
    assert (first.step_name, first.attempt, first.dependency_results) == ("first", 1, "{}")
    answer = await gateway.settle("w-1", [_settlement(first, {"a": [1, "é"]})], 10)
    assert answer.stale == frozenset()
    [second] = answer.claims
    assert (second.kind, second.task_uuid, second.step_name) == ("claim", str(task), "second")
    assert (second.step_type, second.results_left, second.condition) == ("standard", None, None)
    assert (second.result_schema, second.dependents) == (None, None)
    assert (second.callable, second.method, second.resolver) == ("do", "refund", "explicit")
    assert (second.attempt, second.max_attempts, second.timeout_ms) == (1, 4, 7000)
    assert (second.namespace, second.template_name, second.correlation_id) == (NAMESPACE, "order", "c-1")
    assert second.deadline is not None
    assert second.ready_at is not None
    texts = (second.configuration, second.inputs, second.context, second.dependency_results)
    assert [json.loads(text) for text in texts if isinstance(text, str)] == [
        {"rate": 2},
        {},
        {"amount": 5},
        {"first": {"a": [1, "é"]}},
    ]
    end = await gateway.settle("w-1", [_settlement(second, None)], 0)
    assert (end.tasks_finished, end.ready_left) == (1, 0)
    assert await lab.state(task) == "complete"


async def test_errors_releases_and_odd_texts_arrive_as_they_were_sent(lab: Lab, gateway: Gateway) -> None:
    odd = "quotes \" ' backslash \\ newline \n braces {a,b} null NULL percent %s é 𝄞"
    task = await lab.run(step("a"), step("b"), step("c"))
    by_name = {claim.step_name: claim for claim in await gateway.claim("w-1", 10)}
    answer = await gateway.settle(
        "w-1",
        [
            _settlement(by_name["a"], {odd: odd}),
            Settlement(by_name["b"].step_id, by_name["b"].fence, from_exception(ValueError(odd))),
            Settlement(by_name["c"].step_id, by_name["c"].fence, RELEASE),
        ],
        0,
    )
    assert (answer.stale, answer.ready_left) == (frozenset(), 1)
    steps = await lab.steps(task)
    assert steps["a"]["result"] == {odd: odd}
    assert (steps["b"]["state"], steps["b"]["error"]["message"]) == ("error", f"ValueError: {odd}")
    assert (steps["c"]["state"], steps["c"]["attempts"]) == ("enqueued", 0)


async def test_settling_again_changes_nothing(lab: Lab, gateway: Gateway) -> None:
    await lab.run(step("a"))
    [claim] = await gateway.claim("w-1", 1)
    await gateway.settle("w-1", [_settlement(claim, 1)], 0)
    before = await lab.dump()
    again = await gateway.settle("w-1", [_settlement(claim, 2)], 0)
    assert (again.stale, again.tasks_finished) == (frozenset(), 0), "it was recorded"
    strange = await gateway.settle("w-1", [_settlement(claim._replace(fence=claim.fence + 1), 3)], 0)
    assert strange.stale == {claim.fence + 1}
    assert await lab.dump() == before


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_an_outcome_whose_fate_nobody_heard_is_recorded_once(lab: Lab, cut: Cut) -> None:
    async with cut_proxy(lab.url) as proxy:
        gateway = Gateway(proxy.url, namespace=NAMESPACE, lease_seconds=30)
        await gateway.register(offer())
        task = await lab.run(step("a"), step("b"))
        first, second = await gateway.claim("w-1", 2)
        await gateway.settle("w-1", [_settlement(first, 1)], 0)  # prepares the statement
        proxy.cut_next(cut)
        with pytest.raises(Unavailable):
            await gateway.settle("w-1", [_settlement(second, 2)], 5)
        answer = await gateway.settle("w-1", [_settlement(second, 3)], 0)
        assert answer.stale == frozenset()
        assert (await lab.steps(task))[second.step_name]["result"] == (3 if cut == "before" else 2)
        assert await lab.state(task) == "complete"
        await gateway.close()


async def test_a_session_that_is_terminated_is_replaced(lab: Lab, gateway: Gateway) -> None:
    await gateway.claim("w-1", 1)
    await _terminate(lab, "exchange")
    with pytest.raises(Unavailable):
        await gateway.claim("w-1", 1)
    assert await gateway.claim("w-1", 1) == []


async def test_a_session_of_a_server_that_takes_no_writes_any_more_is_replaced(lab: Lab, gateway: Gateway) -> None:
    """As after a failover, when the server that was the primary goes on as a standby."""
    session = gateway._connection
    assert session is not None
    await session.execute("set default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        await gateway.register(offer())
    assert session.closed
    await gateway.register(offer())


async def test_a_pooler_that_loses_prepared_statements_is_lived_with(
    lab: Lab, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    await gateway.claim("w-1", 1)
    assert gateway._connection is not None
    gateway._connection.pgconn.exec_(b"deallocate all")  # behind the driver's back, as a pooler would
    with pytest.raises(Unavailable):
        await gateway.claim("w-1", 1)
    assert "a pooler between worker and database loses prepared statements" in caplog.text
    for _ in range(3):
        assert await gateway.claim("w-1", 1) == []
        gateway._connection.pgconn.exec_(b"deallocate all")


async def test_a_result_that_the_database_cannot_store_is_refused_and_told_apart(lab: Lab, gateway: Gateway) -> None:
    await lab.run(step("a"))
    [claim] = await gateway.claim("w-1", 1)
    bad = Settlement(claim.step_id, claim.fence, Outcome(OutcomeKind.COMPLETE, '{"cut": '))
    with pytest.raises(Refused, match="invalid input syntax for type json"):
        await gateway.settle("w-1", [bad], 0)
    good = await gateway.settle("w-1", [_settlement(claim, 1)], 0)
    assert good.stale == frozenset()


async def test_a_large_batch_goes_in_one_call(lab: Lab, gateway: Gateway) -> None:
    await lab.template(step("a"))
    for _ in range(500):
        await lab.submit()
    claims = await gateway.claim("w-1", 500)
    assert len(claims) == 500
    answer = await gateway.settle("w-1", [_settlement(claim, {"n": claim.fence}) for claim in claims], 500)
    assert (answer.stale, answer.tasks_finished) == (frozenset(), 500)


async def test_a_database_without_the_schema_is_told_as_that(empty_database_url: str) -> None:
    gateway = Gateway(empty_database_url, namespace=NAMESPACE, lease_seconds=30)
    with pytest.raises(SchemaMissing, match="no engine schema that this worker understands"):
        await gateway.register(offer())
    await gateway.close()


@pytest.mark.parametrize(
    ("oldest", "current", "served"), [(1, 2, True), (2, 2, True), (2, 3, True), (3, 4, False), (1, 1, False)]
)
async def test_a_worker_works_with_functions_that_serve_its_contract_and_with_no_others(
    database_url: str, oldest: int, current: int, served: bool
) -> None:
    serve_contracts(database_url, oldest, current)
    gateway = Gateway(database_url, namespace=NAMESPACE, lease_seconds=30)
    if served:
        await gateway.require_contract()
    else:
        told = f"its functions serve the contracts {oldest} to {current}; this worker needs 2"
        with pytest.raises(SchemaMissing, match=f"^{told}$"):
            await gateway.require_contract()
    await gateway.close()


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    gateway = Gateway(f"postgresql://nobody@/none?host={tmp_path}", namespace=NAMESPACE, lease_seconds=30)
    with pytest.raises(Unavailable):
        await gateway.register(offer())


def test_a_url_that_is_none_is_refused_without_repeating_its_password() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Gateway("hunter2 is my password", namespace=NAMESPACE, lease_seconds=30)
    assert str(refusal.value) == "DATABASE_URL is not a Postgres connection URL"


async def test_leases_are_renewed_swept_and_given_up_over_the_other_connection(lab: Lab, gateway: Gateway) -> None:
    task = await lab.run(step("a"), step("b"))
    first, second = await gateway.claim("w-1", 2)
    held = [(claim.step_id, claim.fence) for claim in (first, second)]
    leases = SyncGateway(lab.url, namespace=NAMESPACE, lease_seconds=30, role="leases")
    try:
        renewal = await asyncio.to_thread(leases.renew, "w-1", held, None)
        assert (renewal.known, renewal.draining, renewal.lost_fences) == (True, False, [])
        await lab.engine.actions.cancel(task, actor="test", reason="no need")
        renewal = await asyncio.to_thread(leases.renew, "w-1", held, None)
        assert sorted(renewal.lost_fences) == sorted(fence for _, fence in held)
        await lab.execute("select tasker.drain_worker('shop', 'w-1')")
        assert (await asyncio.to_thread(leases.renew, "w-1", [], None)).draining
        assert isinstance(await asyncio.to_thread(leases.sweep, 10), dict)
        assert await gateway.deregister("w-1") == 0
        assert not (await asyncio.to_thread(leases.renew, "w-1", [], None)).known
        await asyncio.to_thread(leases.register, offer())
        assert (await asyncio.to_thread(leases.renew, "w-1", [], None)).known
        await _terminate(lab, "leases")
        with pytest.raises(Unavailable):
            await asyncio.to_thread(leases.renew, "w-1", [], None)
        assert (await asyncio.to_thread(leases.renew, "w-1", [], None)).known
    finally:
        leases.close()


async def test_claims_that_a_renewal_does_not_name_come_back_as_unknown_and_can_be_given_back(
    lab: Lab, gateway: Gateway
) -> None:
    task = await lab.run(step("a"), step("b"))
    leases = SyncGateway(lab.url, namespace=NAMESPACE, lease_seconds=30, role="leases")
    try:
        first, second = await gateway.claim("w-1", 2)
        held = [(first.step_id, first.fence)]
        told = await asyncio.to_thread(leases.renew, "w-1", held, None)
        assert told.unknown_fences == []
        told = await asyncio.to_thread(leases.renew, "w-1", held, told.renewed_at)
        assert (told.unknown_step_ids, told.unknown_fences) == ([second.step_id], [second.fence])
        await asyncio.to_thread(leases.settle, "w-1", Settlement(second.step_id, second.fence, RELEASE))
        assert (await lab.steps(task))[second.step_name]["attempts"] == 0
    finally:
        leases.close()


@pytest.mark.parametrize("settles", [False, True], ids=["claiming", "settling"])
async def test_a_row_that_somebody_holds_is_not_waited_for_without_end_and_keeps_the_session(
    lab: Lab, gateway: Gateway, settles: bool
) -> None:
    await lab.run(step("a"), step("b"))
    [claim] = await gateway.claim("w-1", 1)
    session = gateway._connection
    async with await psycopg.AsyncConnection.connect(lab.url) as holder:
        await holder.execute("select from tasker.tasks for update")
        await holder.execute("select from tasker.workers for update")
        with pytest.raises(Locked):
            async with asyncio.timeout(20):
                await (gateway.settle("w-1", [_settlement(claim, 1)], 0) if settles else gateway.claim("w-1", 1))
        await holder.rollback()
    assert (await gateway.settle("w-1", [_settlement(claim, 1)], 1)).stale == frozenset()
    assert gateway._connection is session


async def test_a_dead_network_is_noticed_within_the_lease(lab: Lab) -> None:
    settings = connection_settings("postgresql://db.example/tasker?keepalives_idle=7", "leases", 30)
    assert settings["keepalives_idle"] == "7"  # what the URL says goes before
    gateway = Gateway(lab.url, namespace=NAMESPACE, lease_seconds=30)
    await gateway.connect()
    assert gateway._connection is not None
    told = gateway._connection.info.get_parameters()
    await gateway.close()
    seconds = int(told["keepalives_idle"]) + int(told["keepalives_interval"]) * int(told["keepalives_count"])
    assert (told["keepalives_idle"], seconds) == ("10", 16)
    assert told["tcp_user_timeout"] == "15000"


async def test_every_statement_is_one_that_the_database_knows(lab: Lab) -> None:
    async with await psycopg.AsyncConnection.connect(lab.url, autocommit=True) as connection:
        for name, query in QUERIES.items():
            if not name.startswith("listen"):
                statement = query.replace(b"%s", b"null").replace(b"%b", b"null")
                await connection.execute(b"explain " + statement)


async def test_the_conversation_prepares_its_statements_and_the_threads_calls_leave_nothing_in_the_session(
    lab: Lab, gateway: Gateway
) -> None:
    """A pooler that gives every transaction another session loses prepared statements; threads call seldom."""
    prepared = "select count(*) from pg_prepared_statements where statement like '%tasker.%'"
    await gateway.claim("w-1", 1)
    assert gateway._connection is not None
    assert await (await gateway._connection.execute(prepared, prepare=False)).fetchone() == (2,)  # register and claim
    leases = SyncGateway(lab.url, namespace=NAMESPACE, lease_seconds=30, role="leases")
    try:
        for _ in range(7):
            await asyncio.to_thread(leases.renew, "w-1", [], None)
        assert leases._connection is not None
        assert leases._connection.execute(prepared).fetchone() == (0,)
        session = leases._connection
        await asyncio.to_thread(leases.register, offer(callables=["do", "more"]))
        assert leases._connection is session
    finally:
        leases.close()
    assert await lab.value("select callables from tasker.workers") == ["do", "more"]


async def test_a_connection_that_is_closed_is_closed_for_the_server_too(lab: Lab) -> None:
    gateway = Gateway(lab.url, namespace=NAMESPACE, lease_seconds=30, role="locked")
    leases = SyncGateway(lab.url, namespace=NAMESPACE, lease_seconds=30, role="leases")
    await gateway.register(offer())
    await asyncio.to_thread(leases.renew, "w-1", [], None)
    session, thread_session = gateway._connection, leases._connection
    await gateway.close()
    leases.close()
    assert session is not None
    assert session.closed
    assert thread_session is not None
    assert thread_session.closed
    await gateway.close()
    leases.close()


async def _terminate(lab: Lab, role: str) -> None:
    terminated = await lab.rows(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where application_name = %s and datname = current_database()",
        f"tasker-worker {role}",
    )
    assert len(terminated) == 1


def _settlement(claim: Any, result: Any) -> Settlement:
    return Settlement(claim.step_id, claim.fence, from_value(claim, result))
