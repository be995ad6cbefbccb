"""A database with an engine on it and workers that a test moves by hand: what tests of the engine are written with.

`Lab` holds the engine, a connection for statements of the test's own, and the movable clock. `SimulatedWorker` calls
the functions that a worker process calls, one at a time and only when told to.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from tasker.engine import Engine
from tasker.engine.pool import Database
from tasker.factory import open_engine
from tasker.model.task import RegisteredTemplate, TaskRequest
from tasker.model.template import parse_template_spec
from tasker.settings import DatabaseSettings

NAMESPACE = "shop"
CALLABLE = "do"

TABLES = {
    "tasks": "task_id",
    "open_tasks": "task_id",
    "steps": "step_id",
    "ready_steps": "step_id",
    "leases": "step_id",
    "timers": "timer_id",
    "step_batches": "(task_id, first_place)",
    "step_failures": "failure_id",
    "dead_letters": "entry_id",
    "dead_letter_changes": "change_id",
    "task_log": "log_id",
    "step_log": "log_id",
}
"""The tables that a run touches, with a column that orders their rows."""


def step(name: str, *after: str, callable: str = CALLABLE, retry: Mapping[str, Any] | None = None, **more: Any) -> Any:  # noqa: A002 - the field's name
    """A step of a template as a person writes it, depending on the steps `after`."""
    written = {"name": name, "handler": {"callable": callable}, **more}
    if after:
        written["dependsOn"] = list(after)
    if retry is not None:
        written["retry"] = dict(retry)
    return written


NO_DELAY = {"backoff": "none", "jitter": 0}
"""Tried again at once, in the call that settled the failure."""
SOON = {"backoff": "linear", "baseMs": 1, "maxMs": 1, "jitter": 0}
"""Tried again by the sweep, a millisecond later."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A step in a worker's hands."""

    row: dict[str, Any]

    @property
    def step_id(self) -> int:
        return int(self.row["step_id"])

    @property
    def fence(self) -> int:
        return int(self.row["fence"])

    @property
    def step(self) -> str:
        return str(self.row["step_name"])

    @property
    def attempt(self) -> int:
        return int(self.row["attempt"])

    @property
    def task_uuid(self) -> UUID:
        uuid: UUID = self.row["task_uuid"]
        return uuid


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a claim, as settle_steps takes it."""

    claim: Claim
    outcome: str
    result: str | None = None  # JSON
    metadata: str | None = None  # JSON
    branches: str | None = None
    error_type: str | None = None
    message: str | None = None
    traceback: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None


def success(claim: Claim, result: Any = None, metadata: Any = None) -> Outcome:
    """The handler returned `result`."""
    return Outcome(
        claim=claim,
        outcome="complete",
        result=json.dumps(result),
        metadata=None if metadata is None else json.dumps(metadata),
    )


def decision(claim: Claim, *branches: str, result: Any = None) -> Outcome:
    """The handler of a decision chose the steps that are to run."""
    return Outcome(claim=claim, outcome="decide", result=json.dumps(result), branches=",".join(branches))


def skip(claim: Claim) -> Outcome:
    """The step's condition was false."""
    return Outcome(claim=claim, outcome="skip")


def failure(
    claim: Claim, message: str = "no", *, retryable: bool = True, error_type: str = "HandlerError", **more: Any
) -> Outcome:
    """The handler raised; `more` may be a `traceback` and a `retry_after_ms`."""
    return Outcome(claim=claim, outcome="fail", error_type=error_type, message=message, retryable=retryable, **more)


def release(claim: Claim) -> Outcome:
    """The worker gives the step back untouched."""
    return Outcome(claim=claim, outcome="release")


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """The answer of settle_steps."""

    settled: list[int]
    stale: list[int]
    claims: list[Claim]
    ready_left: int
    tasks_finished: int


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The answer of renew_worker."""

    known: bool
    draining: bool
    lost_fences: list[int]
    unknown_step_ids: list[int]
    unknown_fences: list[int]
    renewed_at: datetime


SETTLE = """select * from tasker.settle_steps(%(namespace)s, %(worker)s, %(step_ids)s::bigint[], %(fences)s::bigint[],
    %(outcomes)s::text[], %(results)s::json[], %(metadata)s::json[], %(branches)s::text[], %(error_types)s::text[],
    %(messages)s::text[], %(tracebacks)s::text[], %(retryable)s::boolean[], %(retry_after_ms)s::bigint[],
    %(claim_limit)s)"""


def settle_arguments(
    worker: str, outcomes: Sequence[Outcome], claim_limit: int, namespace: str = NAMESPACE
) -> dict[str, Any]:
    """What SETTLE takes."""
    return {
        "namespace": namespace,
        "worker": worker,
        "step_ids": [each.claim.step_id for each in outcomes],
        "fences": [each.claim.fence for each in outcomes],
        "outcomes": [each.outcome for each in outcomes],
        "results": [each.result for each in outcomes],
        "metadata": [each.metadata for each in outcomes],
        "branches": [each.branches for each in outcomes],
        "error_types": [each.error_type for each in outcomes],
        "messages": [each.message for each in outcomes],
        "tracebacks": [each.traceback for each in outcomes],
        "retryable": [each.retryable for each in outcomes],
        "retry_after_ms": [each.retry_after_ms for each in outcomes],
        "claim_limit": claim_limit,
    }


CREATE_BATCHES = """select * from tasker.create_batches(%(namespace)s, %(worker)s, %(step_id)s, %(fence)s,
    %(result)s::json, null, %(ids)s::text[], %(from)s::bigint[], %(to)s::bigint[], %(inputs)s::json[], %(is_no_op)s,
    %(claim_limit)s)"""


class SimulatedWorker:
    """One worker's side of the contract, on a connection of its own or the lab's."""

    def __init__(self, connection: AsyncConnection[DictRow], name: str, namespace: str = NAMESPACE) -> None:
        self.connection = connection
        self.name = name
        self.namespace = namespace

    async def register(
        self,
        callables: Sequence[str] = (CALLABLE,),
        *,
        namespace: str = NAMESPACE,
        pool: str = "default",
        slots: int = 10,
        lease_seconds: float = 30.0,
        template_hash: str = "",
    ) -> None:
        self.namespace = namespace
        await self.connection.execute(
            "select tasker.register_worker(%s, %s, %s, %s, %s, %s, %s, %s)",
            (namespace, self.name, pool, slots, "1.0.0", list(callables), lease_seconds, template_hash),
        )

    async def expire_predecessor(self) -> int:
        cursor = await self.connection.execute(
            "select tasker.expire_predecessor(%s, %s) as expired", (self.namespace, self.name)
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row["expired"])

    async def claim(self, limit: int = 10) -> list[Claim]:
        cursor = await self.connection.execute(
            "select * from tasker.claim_steps(%s, %s, %s)", (self.namespace, self.name, limit)
        )
        return [Claim(row=row) for row in await cursor.fetchall()]

    async def claim_one(self) -> Claim:
        """The one step that can be claimed."""
        (claim,) = await self.claim(1)
        return claim

    async def settle(self, *outcomes: Outcome, claim_limit: int = 0) -> Settlement:
        cursor = await self.connection.execute(
            SETTLE, settle_arguments(self.name, outcomes, claim_limit, self.namespace)
        )
        rows = await cursor.fetchall()
        assert [row["kind"] for row in rows].count("summary") == 1 and rows[-1]["kind"] == "summary"
        stale = [(row["step_id"], row["fence"]) for row in rows if row["kind"] == "stale"]
        return Settlement(
            settled=[each.claim.step_id for each in outcomes if (each.claim.step_id, each.claim.fence) not in stale],
            stale=[step_id for step_id, _ in stale],
            claims=[Claim(row=row) for row in rows if row["kind"] == "claim"],
            ready_left=rows[-1]["ready_left"],
            tasks_finished=rows[-1]["tasks_finished"],
        )

    async def create_batches(
        self,
        claim: Claim,
        count: int,
        *,
        claim_limit: int = 0,
        ids: Sequence[str | None] | None = None,
        ranges: Sequence[tuple[int | None, int | None]] | None = None,
        is_no_op: bool = False,
    ) -> Settlement:
        """Settles a batchable step with so many batches, of ten items each unless `ranges` say otherwise."""
        ranges = ranges or [(10 * n, 10 * n + 10) for n in range(count)]
        arguments = {
            "namespace": self.namespace,
            "worker": self.name,
            "step_id": claim.step_id,
            "fence": claim.fence,
            "result": json.dumps({"batches": count}),
            "ids": list(ids or (f"{n:03}" for n in range(1, count + 1))),
            "from": [start for start, _ in ranges],
            "to": [end for _, end in ranges],
            "inputs": [json.dumps({"n": n}) for n in range(1, count + 1)],
            "is_no_op": is_no_op,
            "claim_limit": claim_limit,
        }
        cursor = await self.connection.execute(CREATE_BATCHES, arguments)
        rows = await cursor.fetchall()
        return Settlement(
            settled=[] if any(row["kind"] == "stale" for row in rows) else [claim.step_id],
            stale=[row["step_id"] for row in rows if row["kind"] == "stale"],
            claims=[Claim(row=row) for row in rows if row["kind"] == "claim"],
            ready_left=rows[-1]["ready_left"],
            tasks_finished=rows[-1]["tasks_finished"],
        )

    async def renew(self, *claims: Claim, claiming_since: datetime | None = None) -> Renewal:
        cursor = await self.connection.execute(
            "select * from tasker.renew_worker(%s, %s, %s::bigint[], %s::bigint[], %s::timestamptz)",
            (
                self.namespace,
                self.name,
                [claim.step_id for claim in claims],
                [claim.fence for claim in claims],
                claiming_since,
            ),
        )
        row = await cursor.fetchone()
        assert row is not None
        return Renewal(**row)

    async def deregister(self) -> int:
        cursor = await self.connection.execute(
            "select tasker.deregister_worker(%s, %s) as released", (self.namespace, self.name)
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row["released"])

    async def run_all(self, result: Any = None) -> list[str]:
        """Completes everything that can be claimed, and what becomes ready by it; the names of the steps, in order."""
        done: list[str] = []
        claims = await self.claim(100)
        while claims:
            done += [claim.step for claim in claims]
            claims = (await self.settle(*(success(claim, result) for claim in claims), claim_limit=100)).claims
        return done


class Clock:
    """The database's clock, which stands still from the first move on and goes only where it is told to."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._connection = connection
        self._now: datetime | None = None

    async def now(self) -> datetime:
        """The database's idea of the time."""
        cursor = await self._connection.execute("select tasker.now()")
        row = await cursor.fetchone()
        assert row is not None
        now: datetime = row["now"]
        return now

    async def freeze(self) -> datetime:
        """Stops the clock where it is."""
        return await self.set(await self.now())

    async def set(self, moment: datetime) -> datetime:
        """Puts the clock to a moment, as if there had been sweeps until then."""
        await self._connection.execute(
            "insert into tasker.settings (key, value) values ('test_clock', %s), ('swept_at', %s)"
            " on conflict (key) do update set value = excluded.value",
            (Jsonb({"now": moment.isoformat()}), Jsonb(moment.isoformat())),
        )
        self._now = moment
        return moment

    async def advance(self, seconds: float) -> datetime:
        """Moves the clock on."""
        return await self.set((self._now or await self.now()) + timedelta(seconds=seconds))


class Lab:
    """One database, the engine on it, and short words for what tests keep doing."""

    def __init__(self, url: str, engine: Engine, connection: AsyncConnection[DictRow]) -> None:
        self.url = url
        self.engine = engine
        self.connection = connection
        self.clock = Clock(connection)

    # Statements of the test's own.

    async def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        cursor = await self.connection.execute(query.encode(), parameters or None)
        return list(await cursor.fetchall())

    async def value(self, query: str, *parameters: Any) -> Any:
        """The one value of the one row."""
        (row,) = await self.rows(query, *parameters)
        (value,) = row.values()
        return value

    async def execute(self, query: str, *parameters: Any) -> int:
        """Runs a statement; how many rows it changed."""
        return (await self.connection.execute(query.encode(), parameters or None)).rowcount

    async def put_setting(self, key: str, value: Any) -> None:
        await self.execute("insert into tasker.settings (key, value) values (%s, %s)", key, Jsonb(value))

    # Templates, runs, workers.

    async def template(
        self, *steps: Any, name: str = "order", namespace: str = NAMESPACE, **spec: Any
    ) -> RegisteredTemplate:
        """Registers a template of these steps (see `step`)."""
        return await self.engine.templates.register(
            namespace, name, parse_template_spec({"steps": list(steps), **spec})
        )

    async def submit(self, template: str = "order", *, namespace: str = NAMESPACE, **request: Any) -> UUID:
        (submitted,) = await self.engine.tasks.submit(namespace, [TaskRequest(template_name=template, **request)])
        return submitted.task_uuid

    async def run(self, *steps: Any, **request: Any) -> UUID:
        """Registers a template of these steps and submits one run of it."""
        await self.template(*steps)
        return await self.submit(**request)

    async def worker(self, name: str = "worker-1", **registration: Any) -> SimulatedWorker:
        """A registered worker on the lab's connection."""
        worker = SimulatedWorker(self.connection, name)
        await worker.register(**registration)
        return worker

    # What came of it.

    async def state(self, task_uuid: UUID) -> str:
        return str(await self.value("select state::text from tasker.tasks where task_uuid = %s", task_uuid))

    async def open_runs(self) -> int:
        """How many runs have not ended."""
        return int(await self.value("select count(*) from tasker.tasks where completed_at is null"))

    async def steps(self, task_uuid: UUID) -> dict[str, dict[str, Any]]:
        """The rows of a run's steps, by name."""
        rows = await self.rows(
            "select tasker.step_name(d.name, d.definition_id, s.step_id) as name, s.* from tasker.tasks t"
            " join tasker.steps s on s.step_id >= tasker.first_step_id(t.task_id)"
            " and s.step_id < tasker.first_step_id(t.task_id + 1) join tasker.definitions d using (definition_id)"
            " where t.task_uuid = %s order by s.step_id",
            task_uuid,
        )
        return {row.pop("name"): row for row in rows}

    async def step_states(self, task_uuid: UUID) -> dict[str, str]:
        return {name: row["state"] for name, row in (await self.steps(task_uuid)).items()}

    async def task_log(self, task_uuid: UUID) -> list[str]:
        """The hops of a run as ``from -event-> to``, in order."""
        return [
            row["hop"]
            for row in await self.rows(
                "select format('%%s -%%s-> %%s', x.from_state, x.event, x.to_state) as hop"
                " from tasker.task_transitions x join tasker.tasks t using (task_id)"
                " where t.task_uuid = %s order by x.transition_id",
                task_uuid,
            )
        ]

    async def step_log(self, task_uuid: UUID, name: str) -> list[str]:
        """The hops of a step as ``from -event-> to``, in order."""
        step_id = (await self.steps(task_uuid))[name]["step_id"]
        return [
            row["hop"]
            for row in await self.rows(
                "select format('%%s -%%s-> %%s', from_state, event, to_state) as hop"
                " from tasker.step_transitions where step_id = %s order by transition_id",
                step_id,
            )
        ]

    async def queue(self) -> list[str]:
        """Names of the steps in the queue, in the order in which they are taken."""
        rows = await self.rows(
            "select tasker.step_name(d.name, d.definition_id, s.step_id) as name"
            " from tasker.ready_steps r join tasker.steps s using (step_id)"
            " join tasker.definitions d using (definition_id)"
            " order by r.order_at, r.step_id"
        )
        return [row["name"] for row in rows]

    async def dump(self) -> dict[str, list[dict[str, Any]]]:
        """All rows that runs have: equal dumps mean that nothing happened in between."""
        return {table: await self.rows(f"select * from tasker.{table} order by {key}") for table, key in TABLES.items()}


@asynccontextmanager
async def open_database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    """The server's pool of connections, closed in the end."""
    database = Database(settings)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def serve_contracts(url: str, oldest: int, current: int) -> None:
    """Has a database's functions tell that they serve these contracts."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create or replace function tasker.contract() returns table (oldest integer, current integer)"
            f" language sql immutable as $$ select {oldest:d}, {current:d} $$".encode()
        )


async def connect(url: str) -> AsyncConnection[DictRow]:
    """A connection as a worker's: autocommit, rows as dictionaries."""
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row)


@asynccontextmanager
async def open_lab(url: str) -> AsyncIterator[Lab]:
    """A lab on a migrated database."""
    async with open_engine(DatabaseSettings(url=url)) as engine, await connect(url) as connection:
        yield Lab(url, engine, connection)
