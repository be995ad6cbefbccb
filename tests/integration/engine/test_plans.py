"""The hot statements read what they need and no more, however much else there is.

Two accounts are taken. auto_explain shows every plan that was executed, inside functions too, so that a sequential
scan of a table that grows is seen; and the server's own counters tell how many rows were touched, so that a scan of a
whole index, which is no better, is seen as well.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.errors import Diagnostic
from psycopg.rows import DictRow

from support.engine import NAMESPACE, Lab, SimulatedWorker, connect, failure, open_lab, step, success
from support.postgres import TestServer
from tasker.engine.queries import load_queries
from tasker.factory import migrate

LARGE = {
    "tasks",
    "steps",
    "ready_steps",
    "timers",
    "task_log",
    "step_log",
    "step_failures",
    "identities",
    "limited_tasks",
    "dead_letters",
    "dead_letter_changes",
}
"""Tables that grow with the runs. `leases` is none: it never has more rows than all workers together have slots."""
RUNS, STEPS = 4_000, 6


async def populate(lab: Lab) -> None:
    """4,000 runs of 6 steps in 20 namespaces: half have ended; much is queued, in hand, and waiting for a retry."""
    await lab.clock.freeze()  # what waits for a retry does so however long it takes until a test begins
    retry = {"backoff": "linear", "baseMs": 30_000, "jitter": 0}
    steps = [step("s0", retry=retry), *(step(f"s{n}", f"s{n - 1}") for n in range(1, STEPS))]
    for n in range(20):
        await lab.template(*steps, namespace=f"crowd-{n}")
    await lab.template(*steps)
    await lab.execute(
        "select count(*) from generate_series(0, 19) n cross join lateral tasker.submit_tasks('crowd-' || n, ("
        " select json_agg(json_build_object('template_name', 'order', 'origin_uid', n || '/' || i,"
        " 'deadline_seconds', 3600)) from generate_series(1, %s) i)) submitted",
        RUNS // 20,
    )
    # Every other run is brought to its end, as if long ago.
    await lab.execute("alter table tasker.steps disable trigger all")
    await lab.execute("alter table tasker.tasks disable trigger all")
    await lab.execute(
        "delete from tasker.ready_steps where tasker.task_of_step(step_id) % 2 = 0",
    )
    await lab.execute("delete from tasker.timers where task_id % 2 = 0")
    await lab.execute("delete from tasker.open_tasks where task_id % 2 = 0")
    await lab.execute(
        "update tasker.steps set state = 'complete', open_edges = 0, completed_at = now(), result = '1',"
        " attempts = 1 where tasker.task_of_step(step_id) % 2 = 0"
    )
    await lab.execute(
        "update tasker.tasks set state = 'complete', completed_at = now(), remaining_steps = 0, active_steps = 0"
        " where task_id % 2 = 0"
    )
    await lab.execute("alter table tasker.steps enable trigger all")
    await lab.execute("alter table tasker.tasks enable trigger all")
    for n in range(20):
        worker = await lab.worker(f"crowd-worker-{n}", namespace=f"crowd-{n}", lease_seconds=100_000)
        claims = await worker.claim(40)
        await worker.settle(*(failure(claim, "no " * 50) for claim in claims[:20]))
    await lab.execute(
        "with made as (insert into tasker.dead_letters"
        " (namespace, task_id, step_id, reason, state, snapshot, created_at, updated_at)"
        " select namespace, task_id, tasker.first_step_id(task_id), 'permanent_failure', 'discarded', '{}', at, at"
        " from tasker.tasks, now() as at returning entry_id)"
        " insert into tasker.dead_letter_changes (entry_id, at, state, actor_id)"
        " select entry_id, now(), unnest(array['open', 'discarded']::tasker.dead_letter_state[]), 1 from made"
    )
    for n in range(20):
        await lab.template(*(step(f"s{place}") for place in range(200)), namespace=f"crowd-{n}", name="wide")
        await lab.submit("wide", namespace=f"crowd-{n}")
    await lab.execute("vacuum (analyze)")


@pytest.fixture(scope="module")
def populated_database(postgres_server: TestServer) -> Iterator[str]:
    """The name of a large database, made once; each test gets a clone of it."""

    async def build(url: str) -> None:
        await migrate(url)
        async with open_lab(url) as lab:
            await populate(lab)

    name = f"populated_{secrets.token_hex(4)}"
    url = postgres_server.create(name)
    asyncio.run(build(url))
    yield name
    postgres_server.drop(name)


@pytest.fixture
async def large(postgres_server: TestServer, populated_database: str) -> AsyncIterator[Lab]:
    name = f"{populated_database}_clone"
    async with open_lab(postgres_server.create(name, populated_database)) as lab:
        yield lab
    postgres_server.drop(name)


@dataclass
class Account:
    """What a statement did: the plan nodes that scan, and the rows touched by table."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    rows_read: dict[str, int] = field(default_factory=dict)
    definitions_read: int = 0

    @property
    def sequential_scans(self) -> set[str]:
        """Large tables that were read from end to end, with rows in them; a partition counts as its table."""
        return {
            table
            for node in self.nodes
            for table in LARGE
            if node["Node Type"] == "Seq Scan"
            and node["Relation Name"].startswith(table)
            and node["Actual Rows"] + node.get("Rows Removed by Filter", 0) > 0
        }

    def assert_modest(self, most_rows: int) -> None:
        """No large table is read from end to end, and no more than `most_rows` rows of them altogether."""
        assert self.sequential_scans == set()
        assert sum(self.rows_read.values()) <= most_rows, self.rows_read


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that were executed."""
    if plan["Actual Loops"] > 0:
        yield plan
        for part in plan.get("Plans", []):
            yield from nodes_of(part)


READ = """select coalesce(parent.relname, s.relname) as table,
        sum(s.seq_tup_read + coalesce(s.idx_tup_fetch, 0)) as rows
    from pg_stat_xact_user_tables s
    left join pg_inherits i on i.inhrelid = s.relid left join pg_class parent on parent.oid = i.inhparent
    where s.schemaname = 'tasker' group by 1 having sum(s.seq_tup_read + coalesce(s.idx_tup_fetch, 0)) > 0"""


@asynccontextmanager
async def accounting(lab: Lab) -> AsyncIterator[tuple[AsyncConnection[DictRow], Account]]:
    """A connection in a transaction; the account of what is executed on it is complete at the end."""
    account = Account()

    def note(diagnostic: Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if "plan:" in message:
            explained = json.loads(message.split("plan:\n", 1)[1])
            account.nodes += nodes_of(explained["Plan"])

    async with await connect(lab.url) as connection:
        await connection.execute("load 'auto_explain'")
        for setting, value in {
            "log_min_duration": "0",
            "log_analyze": "on",
            "log_timing": "off",
            "log_nested_statements": "on",
            "log_format": "json",
            "log_level": "notice",
        }.items():
            await connection.execute("select set_config(%s, %s, false)", (f"auto_explain.{setting}", value))
        connection.add_notice_handler(note)
        async with connection.transaction():
            yield connection, account
            await connection.execute("select set_config('auto_explain.log_min_duration', '-1', false)")
            rows = await (await connection.execute(READ)).fetchall()
            read = {row["table"]: int(row["rows"]) for row in rows}
            account.rows_read = {table: count for table, count in read.items() if table in LARGE}
            account.definitions_read = read.get("definitions", 0)


async def test_the_account_sees_a_sequential_scan_inside_a_function(large: Lab) -> None:
    """Lest the other tests pass because nothing is seen at all."""
    async with accounting(large) as (connection, account):
        await connection.execute("do $$ begin perform count(*) from tasker.steps where state = 'in_progress'; end $$")
    assert account.sequential_scans == {"steps"}
    assert account.rows_read["steps"] >= RUNS * STEPS
    with pytest.raises(AssertionError):
        account.assert_modest(1_000_000)


async def test_claiming(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        worker = SimulatedWorker(connection, "crowd-worker-3", "crowd-3")
        assert len(await worker.claim(10)) == 10
    account.assert_modest(200)


async def test_claiming_in_an_empty_queue(large: Lab) -> None:
    await large.worker("idle")
    async with accounting(large) as (connection, account):
        assert await SimulatedWorker(connection, "idle").claim(10) == []
    account.assert_modest(0)


async def test_settling_and_claiming_in_one_call(large: Lab) -> None:
    worker = SimulatedWorker(large.connection, "crowd-worker-3", "crowd-3")
    claims = await worker.claim(10)
    async with accounting(large) as (connection, account):
        outcomes = [*(success(claim) for claim in claims[:8]), failure(claims[8]), failure(claims[9], retryable=False)]
        settlement = await SimulatedWorker(connection, "crowd-worker-3", "crowd-3").settle(*outcomes, claim_limit=10)
        assert len(settlement.claims) == 10
    account.assert_modest(800)


async def test_dead_letters_are_found_and_put_back_among_many(large: Lab) -> None:
    worker = SimulatedWorker(large.connection, "crowd-worker-3", "crowd-3")
    await worker.settle(*(failure(claim, retryable=False) for claim in await worker.claim(10)))
    filters = dict.fromkeys(("namespace", "states", "reason", "task_id", "entry_uuid", "before"))
    async with accounting(large) as (connection, account):
        found: list[list[dict[str, Any]]] = []
        for chosen in ({"states": ["open", "investigating"]}, {"namespace": "crowd-3"}, {"before": 1000}):
            cursor = await connection.execute(
                load_queries("dead_letters")["dead_letters"], {**filters, "limit": 10, **chosen}
            )
            found.append(await cursor.fetchall())
        assert list(map(len, found)) == [10, 10, 10]
        entry = {"entry_uuid": found[0][0]["entry_uuid"], "actor": "me", "notes": None}
        await connection.execute(load_queries("dead_letters")["put_back_dead_letter"], entry)
        await connection.execute(load_queries("dead_letters")["dead_letter_changes"], entry)
        await connection.execute("set constraints all immediate")
    account.assert_modest(300)


async def test_renewing(large: Lab) -> None:
    worker = SimulatedWorker(large.connection, "crowd-worker-3", "crowd-3")
    claims = await worker.claim(10)
    async with accounting(large) as (connection, account):
        assert len((await SimulatedWorker(connection, "crowd-worker-3", "crowd-3").renew(*claims)).lost_fences) == 0
    account.assert_modest(60)


async def test_sweeping_with_nothing_to_do(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        assert await (await connection.execute("select * from tasker.sweep(500)")).fetchall() == []
    # It looks at a hundred open runs in turn, and at what of them is queued and held, for none of them misses a step.
    account.assert_modest(1_000)
    assert "steps" not in account.rows_read


async def test_sweeping_with_everything_to_do(large: Lab) -> None:
    await large.clock.advance(50)
    assert await large.value("select count(*) from tasker.timers where kind = 'retry'") > 300
    async with accounting(large) as (connection, account):
        rows = await (await connection.execute("select * from tasker.sweep(20)")).fetchall()
        assert {row["repair"]: row["repaired"] for row in rows} == {"retries_due": 20}
    account.assert_modest(1_000)


async def test_submitting(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        await connection.execute(
            'select * from tasker.submit_tasks(\'crowd-1\', \'[{"template_name": "order"}, {"template_name":'
            ' "order", "origin_uid": "1/7"}]\')'
        )
    account.assert_modest(100)


async def test_reading_summaries(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        cursor = await connection.execute(
            load_queries("tasks")["summaries"],
            {
                "origin_uids": [f"1/{n}" for n in range(1, 21)],
                "task_uuids": [],
                "leaf_results_limit": 8192,
                "no_worker_seconds": 60,
            },
        )
        assert len(await cursor.fetchall()) == 20
    account.assert_modest(400)


async def test_reading_changes(large: Lab) -> None:
    await large.clock.advance(60)  # claims just made count as changes too; these were made long ago
    cursor = (await large.engine.changes.read(None)).cursor
    for n in range(5):
        await large.engine.actions.cancel_by_origin(f"2/{2 * n + 1}", actor="me", reason="x")
        await large.engine.actions.cancel_by_origin(f"2/{2 * n + 2}", actor="me", reason="x")
    async with accounting(large) as (connection, account):
        result = await connection.execute(
            load_queries("tasks")["changes"],
            {"snapshot": cursor.snapshot, "since": cursor.at},
        )
        [found] = await result.fetchall()
        assert len(found["origin_uids"]) == 5
    account.assert_modest(50)


async def test_reading_the_demand_of_a_few_pools(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        result = await connection.execute(
            load_queries("workers")["demand"],
            {
                "namespaces": ["crowd-1", NAMESPACE, "crowd-1"],
                "pools": ["default", "default", "other"],
                "template_hashes": [None, None, "new"],
            },
        )
        rows = await result.fetchall()
        assert [(row["queued"], row["running"]) for row in rows if row["pool"] == "default"] == [(260, 20), (0, 0)]
    # The queue of the namespaces asked for, and the claims of their workers.
    account.assert_modest(400)


async def test_cancelling_and_resuming(large: Lab) -> None:
    async with accounting(large) as (connection, account):
        for action in (
            "suspend_task(1, 'person', 'me', 'x')",
            "resume_task(1, 'person', 'me', 'x')",
            "cancel_task(1, 'me', 'x')",
        ):
            (row,) = await (await connection.execute(f"select tasker.{action} as done".encode())).fetchall()
            assert row["done"]
    account.assert_modest(150)


async def test_repairing_a_run(large: Lab) -> None:
    """An open one and one that has ended."""
    async with accounting(large) as (connection, account):
        for action in (
            "complete_step(3, 's0', '1', null, 'me', 'x')",
            "skip_step(3, 's1', 'me', 'x')",
            "rerun_from(3, 's0', 'me', 'x')",
            "resolve_step(3, 's0', 'me', 'x')",
            "rerun_from(4, 's2', 'me', 'x')",
        ):
            (row,) = await (await connection.execute(f"select tasker.{action} as done".encode())).fetchall()
            assert row["done"]
    account.assert_modest(400)


async def test_a_large_template_is_not_read_from_end_to_end_when_the_statistics_only_know_small_ones(
    own_lab: Lab,
) -> None:
    """The server's statistics lag behind a burst, and a session makes its plans once."""
    await own_lab.template(step("a"), name="small")
    await own_lab.submit("small")
    await own_lab.execute("analyze")
    width, layers = 50, 40
    steps = [
        step(f"s{layer}-{place}", *([f"s{layer - 1}-{(place + k) % width}" for k in range(3)] if layer else []))
        for layer in range(layers)
        for place in range(width)
    ]
    await own_lab.template(*steps, name="large")
    await own_lab.worker("worker-1", slots=100)
    await own_lab.submit("large")
    claimed = width + 1
    async with accounting(own_lab) as (connection, account):
        worker = SimulatedWorker(connection, "worker-1")
        claims = await worker.claim(100)
        assert len(claims) == claimed
        settlement = await worker.settle(*(success(claim) for claim in claims), claim_limit=100)
        assert len(settlement.claims) == width
    # Each step's own row some times, and those of its parents.
    assert account.definitions_read <= 12 * 2 * claimed, account.definitions_read
    account.assert_modest(60 * claimed)


async def test_two_thousand_runs_that_wait_for_a_place_cost_the_others_nothing(large: Lab) -> None:
    """Each has a key besides. What ends one, admits one, submits one or sweeps reads the few that hold a place."""
    await large.template(
        step("a", callable="rare"), name="limited", identity={"strategy": "callerProvided"}, concurrency={"maxTasks": 3}
    )
    submit = "select * from tasker.submit_tasks(%s, (select json_agg(json_build_object('template_name', 'limited',"
    submit += " 'identity_key', 'key:' || i)) from generate_series(%s::integer, %s) i))"
    await large.execute(submit, NAMESPACE, 1, 2_000)
    worker = await large.worker("rare", callables=["rare"])
    claims = await worker.claim(3)
    async with accounting(large) as (connection, account):
        settlement = await SimulatedWorker(connection, "rare").settle(success(claims[0]), claim_limit=1)
        assert len(settlement.claims) == 1
    account.assert_modest(60)
    async with accounting(large) as (connection, account):
        await connection.execute(submit, (NAMESPACE, 2_000, 2_001))
    account.assert_modest(60)
    async with accounting(large) as (connection, account):
        await connection.execute("select * from tasker.sweep(500)")
    account.assert_modest(1_000)
    async with accounting(large) as (connection, account):
        await connection.execute("select * from tasker.submit_tasks('crowd-1', '[{\"template_name\": \"order\"}]')")
    account.assert_modest(40)
    assert await large.value("select count(*) from tasker.tasks where state = 'pending'") == 1_997
