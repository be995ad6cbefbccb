"""What a step costs, in what can be counted: bytes of WAL, pages touched, statements run, trips to the server.

Times are for ``make bench``. The limits are a tenth above what it takes, so that a change that makes every step dearer
is noticed when it is made.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.errors import Diagnostic

from support.engine import NAMESPACE, SETTLE, Claim, Lab, SimulatedWorker, settle_arguments, step, success

STEPS, RUNS = 4, 40


class Meter:
    """Runs statements on a lab's connection, and says what the server did for each."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def of(self, query: str, parameters: Mapping[str, Any]) -> dict[str, int]:
        """WAL without images of whole pages, which depend on when the last checkpoint was, and buffers."""
        cursor = await self._lab.connection.execute(
            f"explain (analyze, buffers, wal, timing off, format json) {query}".encode(), parameters
        )
        [row] = await cursor.fetchall()
        plan = row["QUERY PLAN"][0]["Plan"]
        images = plan.get("WAL FPI Bytes", 8192 * plan["WAL FPI"])
        return {
            "wal": plan["WAL Bytes"] - min(images, plan["WAL Bytes"]),
            "buffers": sum(plan[name] for name in ("Shared Hit Blocks", "Shared Read Blocks")),
        }


async def chain(lab: Lab) -> SimulatedWorker:
    # A table that is just being analysed keeps what is dead on its pages, and rows go elsewhere: by chance alone.
    for row in await lab.rows(
        "select oid::regclass::text as name from pg_class where relkind = 'r' and relnamespace = 'tasker'::regnamespace"
    ):
        await lab.execute(f"alter table {row['name']} set (autovacuum_enabled = off)")
    await lab.template(*(step(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(STEPS)))
    return await lab.worker()


def medians(measured: Sequence[dict[str, int]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in measured) for name in measured[0]}


async def held(lab: Lab) -> list[Claim]:
    """What the worker holds; its answer was read by the meter."""
    rows = await lab.rows("select step_id, fence, '' as step_name, attempt from tasker.leases order by step_id")
    return [Claim(row=row) for row in rows]


async def test_a_step_of_a_chain_writes_little_and_touches_few_pages(own_lab: Lab) -> None:
    lab = own_lab
    await chain(lab)
    meter = Meter(lab)
    submits, claims, settles = [], [], []
    submit = "select * from tasker.submit_tasks(%(namespace)s, %(requests)s::json)"
    for _ in range(RUNS):
        requests = json.dumps([{"template_name": "order", "context": {"n": 1}}])
        submits.append(await meter.of(submit, {"namespace": NAMESPACE, "requests": requests}))
        claims.append(await meter.of("select * from tasker.claim_steps('shop', 'worker-1', 1)", {}))
        for _ in range(STEPS):
            [claim] = await held(lab)
            settles.append(await meter.of(SETTLE, settle_arguments("worker-1", [success(claim, {"n": 1})], 10)))
    assert await lab.value("select count(*) from tasker.open_tasks") == 0
    a_run = {
        name: medians(submits)[name] + medians(claims)[name] + STEPS * medians(settles)[name]
        for name in ("wal", "buffers")
    }
    print({name: round(amount / STEPS) for name, amount in a_run.items()}, medians(submits), medians(claims))
    assert a_run["wal"] / STEPS <= 1_900, a_run
    assert a_run["buffers"] / STEPS <= 100, a_run


async def test_many_steps_in_one_call_cost_less_each(own_lab: Lab) -> None:
    lab = own_lab
    worker = await chain(lab)
    meter = Meter(lab)
    for _ in range(100):
        await lab.submit(context={"n": 1})
    await worker.claim(100)
    measured = []
    for _ in range(STEPS - 1):
        outcomes = [success(claim, {"n": 1}) for claim in await held(lab)]
        measured.append(await meter.of(SETTLE, settle_arguments("worker-1", outcomes, 100)))
    each = {name: amount / 100 for name, amount in medians(measured).items()}
    print(each)
    # 1,146 and 59 here; inside the container of tests/acceptance/images 1,352 and 75, for a reason not found yet.
    assert each["wal"] <= 1_400, each
    assert each["buffers"] <= 80, each


async def test_settling_a_step_and_taking_the_next_is_one_call_of_few_statements(own_lab: Lab) -> None:
    lab = own_lab
    worker = await chain(lab)
    statements: list[str] = []

    def note(diagnostic: Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if "Query Text" in message:
            statements.append(message)

    for _ in range(3):
        await lab.submit()
    assert await worker.run_all() != []  # a session looks up and plans things once
    await lab.execute("load 'auto_explain'")
    for setting, value in {"log_min_duration": "0", "log_nested_statements": "on", "log_level": "notice"}.items():
        await lab.execute("select set_config(%s, %s, false)", f"auto_explain.{setting}", value)
    await lab.submit()
    claims = await worker.claim(1)
    lab.connection.add_notice_handler(note)
    settlement = await worker.settle(success(claims[0]), claim_limit=10)
    assert len(settlement.claims) == 1
    print(len(statements))
    assert 5 < len(statements) <= 14, "\n".join(statements)
