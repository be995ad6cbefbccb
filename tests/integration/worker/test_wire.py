"""What a worker sends and reads over a real connection, with functions of the contract's signatures that repeat it.

The engine's own functions are not asked here: every column and argument of the contract arrives as it was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg.rows import dict_row

from tasker_worker.claims import RELEASE, SKIP, Outcome, OutcomeKind, Settlement
from tasker_worker.gateway import Gateway, SyncGateway

ROW = """kind text, step_id bigint, fence bigint, task_uuid uuid, step_uuid uuid, namespace text, template_name text,
    template_version text, step_name text, step_type text, callable text, method text, resolver text, attempt integer,
    max_attempts integer, timeout_ms bigint, deadline timestamptz, correlation_id text, ready_at timestamptz,
    configuration json, inputs json, context json, dependency_results json, results_left text[], condition text,
    result_schema json, dependents text[], batch json, checkpoint json, ready_left integer, tasks_finished integer"""

FUNCTIONS = f"""
create schema tasker;
create table tasker.told (
    namespace text, worker text, step_ids bigint[], fences bigint[], outcomes text[], results json[], metadata json[],
    branches text[], error_types text[], messages text[], tracebacks text[], retryable boolean[],
    retry_after_ms bigint[], claim_limit integer);
create function tasker.claim_steps(p_namespace text, p_worker text, p_limit integer) returns table ({ROW})
    language sql as $$
    select 'claim', 7, 70, '11111111-1111-1111-1111-111111111111'::uuid, '22222222-2222-2222-2222-222222222222'::uuid,
        p_namespace, 'order', '1.0.0', 'route', 'decision', 'route', 'call', null, 1, 3, 5000, null::timestamptz, 'c',
        null::timestamptz, '{{}}'::json, '{{}}'::json, '{{"a":1e2}}'::json, '{{}}'::json, array['big', 'o,dd'],
        'context.a > 1', '{{"type":"object"}}'::json, array['left', 'right'], null::json, '{{"cursor":5}}'::json,
        null::integer, null::integer
    union all
    select 'claim', 8, 80, '11111111-1111-1111-1111-111111111111'::uuid, '33333333-3333-3333-3333-333333333333'::uuid,
        p_namespace, 'order', '1.0.0', 'pay', 'standard', 'pay', 'call', null, 1, 3, 5000, null, 'c', null, '{{}}',
        '{{}}', '{{}}', '{{}}', null, null, null, null, null, null, null, null
    $$;
create function tasker.settle_steps(
    p_namespace text, p_worker text, p_step_ids bigint[], p_fences bigint[], p_outcomes text[], p_results json[],
    p_metadata json[], p_branches text[], p_error_types text[], p_messages text[], p_tracebacks text[],
    p_retryable boolean[], p_retry_after_ms bigint[], p_claim_limit integer) returns table ({ROW})
    language plpgsql as $$
    begin
        insert into tasker.told values (p_namespace, p_worker, p_step_ids, p_fences, p_outcomes, p_results, p_metadata,
            p_branches, p_error_types, p_messages, p_tracebacks, p_retryable, p_retry_after_ms, p_claim_limit);
        kind := 'stale'; step_id := p_step_ids[1]; fence := p_fences[1];
        return next;
        return query select * from tasker.claim_steps(p_namespace, p_worker, p_claim_limit) limit p_claim_limit;
        kind := 'summary'; step_id := null; fence := null; ready_left := 4; tasks_finished := 2;
        return next;
    end $$;
create function tasker.read_results(p_namespace text, p_worker text, p_step_id bigint, p_fence bigint, p_names text[])
    returns table (step_name text, result json) language sql as $$
    select name, json_build_object('of', p_step_id) from unnest(p_names) as name where p_fence = 70
    $$;
"""


@pytest_asyncio.fixture
async def repeating(empty_database_url: str) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
    """A connection of the test's own to the database with those functions."""
    async with await psycopg.AsyncConnection.connect(
        empty_database_url, autocommit=True, row_factory=dict_row
    ) as connection:
        await connection.execute(FUNCTIONS.encode())
        yield connection


@pytest_asyncio.fixture
async def gateway(
    empty_database_url: str, repeating: psycopg.AsyncConnection[dict[str, Any]]
) -> AsyncIterator[Gateway]:
    made = Gateway(empty_database_url, namespace="shop", lease_seconds=30)
    yield made
    await made.close()


ODD = "quotes \" ' backslash \\ newline \n braces {a,b} null NULL percent %s é 𝄞"
DECIDED = Outcome(OutcomeKind.DECIDE, '{"decision":1e23}', json.dumps({"odd": ODD}), "left,right")
NO_BRANCH = Outcome(OutcomeKind.DECIDE, "null", None, "")
FAILED = Outcome(OutcomeKind.FAIL, None, None, None, "HandlerError", ODD, ODD, False, 1500)
FAILED_ONLY_SO = Outcome(OutcomeKind.FAIL, error_type="E", message="", retryable=True)
DONE = Outcome(OutcomeKind.COMPLETE, json.dumps(ODD))


async def test_a_claim_brings_every_column(gateway: Gateway) -> None:
    decision, standard = await gateway.claim("w-1", 2)
    assert (decision.step_type, decision.results_left, decision.condition) == (
        "decision",
        ["big", "o,dd"],
        "context.a > 1",
    )
    assert (decision.result_schema, decision.dependents) == ('{"type":"object"}', ["left", "right"])
    assert (decision.batch, decision.checkpoint) == (None, '{"cursor":5}')
    assert (decision.context, decision.ready_left) == ('{"a":1e2}', None)
    assert (standard.step_type, standard.step_name) == ("standard", "pay")
    assert {standard.results_left, standard.condition, standard.result_schema, standard.dependents} == {None}


async def test_outcomes_of_every_kind_arrive_as_they_were_made(
    gateway: Gateway, repeating: psycopg.AsyncConnection[dict[str, Any]]
) -> None:
    outcomes = [DECIDED, NO_BRANCH, FAILED, FAILED_ONLY_SO, DONE, SKIP, RELEASE]
    answer = await gateway.settle("w-1", [Settlement(n, n * 10, each) for n, each in enumerate(outcomes, 1)], 1)
    assert (answer.stale, answer.ready_left, answer.tasks_finished) == (frozenset({10}), 4, 2)
    assert [claim.fence for claim in answer.claims] == [70]
    cursor = await repeating.execute(
        "select told.*, results::text[] as result_texts, metadata::text[] as metadata_texts from tasker.told"
    )
    [row] = await cursor.fetchall()
    told = zip(
        *(row[name] for name in ("outcomes", "result_texts", "metadata_texts", "branches", "error_types", "messages")),
        *(row[name] for name in ("tracebacks", "retryable", "retry_after_ms")),
        strict=True,
    )
    assert [Outcome(*each) for each in told] == outcomes
    assert (row["namespace"], row["worker"], row["claim_limit"]) == ("shop", "w-1", 1)
    assert row["step_ids"] == [n // 10 for n in row["fences"]] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("from_a_thread", [False, True])
async def test_what_no_outcome_of_a_call_needs_is_null_whatever_was_sent_before(
    empty_database_url: str,
    gateway: Gateway,
    repeating: psycopg.AsyncConnection[dict[str, Any]],
    from_a_thread: bool,
) -> None:
    """Prepared statements are told apart by the types of what is sent: each kind of call has its own."""
    threads = SyncGateway(empty_database_url, namespace="shop", lease_seconds=30, role="sweeps")
    for outcome in (DONE, RELEASE, FAILED, DECIDED, DONE, FAILED_ONLY_SO):
        settlement = Settlement(1, 10, outcome)
        if from_a_thread:
            await asyncio.to_thread(threads.settle, "w-1", settlement)
        else:
            await gateway.settle("w-1", [settlement], 0)
    threads.close()
    cursor = await repeating.execute(
        "select outcomes[1] as outcome, num_nonnulls(results, metadata, branches, error_types, messages, tracebacks,"
        " retryable, retry_after_ms) as given, results is null as no_results from tasker.told"
    )
    assert [(row["outcome"], row["given"], row["no_results"]) for row in await cursor.fetchall()] == [
        ("complete", 1, False),
        ("release", 0, True),
        ("fail", 5, True),
        ("decide", 3, False),
        ("complete", 1, False),
        ("fail", 3, True),
    ]


async def test_a_result_is_read_by_its_name_under_a_current_lease(
    gateway: Gateway, repeating: psycopg.AsyncConnection[dict[str, Any]]
) -> None:
    assert await gateway.read_result("w-1", 7, 70, 'o,d"d') == '{"of" : 7}'
    assert await gateway.read_result("w-1", 7, 69, "big") is None
