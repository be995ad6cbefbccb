"""I13: every pair of operations, run against each other over the same runs, ends without a deadlock.

Each operation runs on two connections at once while another one runs on two more, over a handful of runs that all of
them share; then all run at random. Nothing is tried again here: a deadlock would surface as an error, and in the
server's count. Triggers hold transactions up for a moment between one row and the next, so that they meet half-way and
not by rare chance. Time moves on quickly, so that sweeps find leases, retries, deadlines and queue times that ran out.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from itertools import combinations_with_replacement
from typing import Any

import psycopg
from psycopg.types.json import Json

from support.engine import (
    NAMESPACE,
    NO_DELAY,
    SOON,
    Claim,
    Lab,
    SimulatedWorker,
    connect,
    failure,
    release,
    step,
    success,
)
from support.invariants import check_invariants

STEPS = [
    *(step(f"root-{n}", retry={"maxAttempts": 20, **NO_DELAY}, scheduleTimeoutSeconds=60) for n in range(6)),
    *(step(f"middle-{n}", *(f"root-{k}" for k in range(n + 1)), retry=SOON) for n in range(6)),
    step("last", *(f"middle-{n}" for n in range(6))),
]
STEP_NAMES = [each["name"] for each in STEPS]
OPEN_RUNS = 5
LIFE = {
    "maxBlockedSeconds": 20,
    "maxWaitingForWorkerSeconds": 8,
    "maxWaitingForRetrySeconds": 5,
    "maxStepsInProcessSeconds": 10,
}
"""Of the runs of every other version of the template, which wait for a person when they have failed."""

DAWDLE = """
create function tasker.dawdle() returns trigger language plpgsql as $$
begin
    if random() < 0.03 then perform pg_sleep(0.004); end if;
    return null;
end $$
"""
TABLES = [
    "workers",
    "pool_callables",
    "concurrency_limits",
    "identities",
    "limited_tasks",
    "tasks",
    "ready_steps",
    "steps",
    "leases",
    "timers",
    "settings",
    "dead_letters",
    "dead_letter_changes",
]
LIMITED: dict[str, Any] = {"name": "limited", "identity": {"strategy": "callerProvided", "windowSeconds": 5}}


@contextmanager
def refused() -> Iterator[None]:
    """What an operation may be told that comes too late, or too early: it does not fit, or there is nothing there."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in {"TK002", "TK021", "TK022"}:
            raise


class Runner:
    """One connection that does operations, as a worker and as others: each method is one operation."""

    def __init__(self, lab: Lab, worker: SimulatedWorker, names: list[str], random_: random.Random) -> None:
        self.lab = lab
        self.worker = worker
        self.names = names
        self.random = random_
        self.claims: list[Claim] = []
        self.tasks: list[int] = []
        self.renewed_at: datetime | None = None

    async def call(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        cursor = await self.worker.connection.execute(statement.encode(), arguments)
        return list(await cursor.fetchall())

    async def refill(self) -> None:
        """Makes sure that there is something to do: between operations, not against them."""
        await self.worker.register(lease_seconds=10)
        (row,) = await self.call("select count(*) as runs from tasker.tasks where completed_at is null")
        for _ in range(OPEN_RUNS - row["runs"]):
            await self.submit()
        self.tasks = [
            found["task_id"] for found in await self.call("select task_id from tasker.tasks where completed_at is null")
        ]
        for task_id in self.tasks:  # one by one: a statement over several would take them in no order
            await self.call("select tasker.resume_task(%s, 'person', 'me', 'x')", task_id)
        await self.call("select tasker.undrain_workers(%s, %s)", NAMESPACE, self.names)
        self.claims += await self.worker.claim(4)

    def some_task(self) -> int:
        return self.random.choice(self.tasks) if self.tasks else 0

    async def claim(self) -> None:
        self.claims += await self.worker.claim(self.random.randint(1, 5))

    async def settle(self) -> None:
        handed_in = self.random.sample(self.claims, min(len(self.claims), self.random.randint(1, 6)))
        self.claims = [claim for claim in self.claims if claim not in handed_in]
        outcomes = [
            self.random.choices([success, failure, release], [8, 3, 1])[0](claim)  # type: ignore[operator]
            for claim in handed_in
        ]
        settlement = await self.worker.settle(*outcomes, claim_limit=self.random.choice([0, 4]))
        self.claims += settlement.claims

    async def renew(self) -> None:
        """Names all but a few of its claims, and gives those back that it is told of."""
        self.random.shuffle(self.claims)
        forgotten = self.random.randint(0, 2)
        renewal = await self.worker.renew(*self.claims[forgotten:], claiming_since=self.renewed_at)
        self.renewed_at = renewal.renewed_at
        unknown = [claim for claim in self.claims[:forgotten] if claim.fence in renewal.unknown_fences]
        await self.worker.settle(*map(release, unknown))

    async def register(self) -> None:
        """Offers what others offer for the first time just now, too."""
        callables = ["do", *(f"other-{n}" for n in range(20))]
        self.random.shuffle(callables)
        pool = self.random.choice(["default", f"pool-{int(time.monotonic() * 20)}"])
        await self.worker.register(callables, pool=pool, lease_seconds=10)

    async def deregister(self) -> None:
        await self.worker.deregister()
        await self.worker.register(lease_seconds=10)

    async def start_anew(self) -> None:
        """As a process does that begins under a name, its own or one that is at work in another runner."""
        await self.call(
            "select tasker.expire_predecessor('shop', %s)", self.random.choice([self.worker.name, *self.names])
        )
        await self.worker.register(lease_seconds=10)

    async def sweep(self) -> None:
        await self.call(
            "update tasker.settings set value = jsonb_build_object('now', (value ->> 'now')::timestamptz"
            " + %s * interval '1 second') where key = 'test_clock' returning key",
            self.random.choice([0.1, 6, 11]),
        )
        await self.call("select * from tasker.sweep(%s)", self.random.choice([5, 500]))

    async def cancel(self) -> None:
        await self.call("select tasker.cancel_task(%s, 'me', 'x')", self.some_task())

    async def suspend(self) -> None:
        await self.call("select tasker.suspend_task(%s, 'person', 'me', 'x')", self.some_task())

    async def resume(self) -> None:
        await self.call("select tasker.resume_task(%s, 'person', 'me', 'x')", self.some_task())

    async def act(self, statement: str, step_names: list[str]) -> None:
        """Something that people do to a step; that it does not fit is no fault."""
        with refused():
            await self.call(statement, self.some_task(), self.random.choice(step_names))

    async def reset(self) -> None:
        await self.act("select tasker.reset_step(%s, %s, 'me', 'x')", STEP_NAMES)

    async def end_by_hand(self) -> None:
        statement = self.random.choice(
            [
                "select tasker.resolve_step(%s, %s, 'me', 'x')",
                "select tasker.complete_step(%s, %s, '1', null, 'me', 'x')",
                "select tasker.skip_step(%s, %s, 'me', 'x')",
            ]
        )
        await self.act(statement, STEP_NAMES)

    async def rerun(self) -> None:
        await self.act("select tasker.rerun_from(%s, %s, 'me', 'x', 900)", STEP_NAMES)

    async def drain(self) -> None:
        names = self.random.sample(self.names, 4)
        await self.call("select tasker.drain_idle_workers(%s, %s)", NAMESPACE, names)

    async def undrain(self) -> None:
        names = self.random.sample(self.names, 4)
        await self.call("select tasker.undrain_workers(%s, %s)", NAMESPACE, names)

    async def expire(self) -> None:
        names = self.random.sample(self.names, 2)
        await self.call(
            "select tasker.expire_workers('operator', array(select worker_id from tasker.workers where name = any (%s)"
            " order by random()), 'gone')",
            names,
        )
        await self.worker.register(lease_seconds=10)

    async def submit(self) -> None:
        """Runs of resources that others ask for too, in any order, some with a deadline, some with keys of others."""
        recent = int(time.monotonic() * 20)
        requests = [
            {
                "template_name": self.random.choice(["order", "limited"]),
                "origin_uid": str(uid),
                "identity_key": f"key:{self.random.randint(0, 3)}",
                "deadline_seconds": self.random.choice([9, 900]),
            }
            for uid in self.random.sample(range(recent, recent + 4), 3)
        ]
        while True:
            try:
                await self.call("select * from tasker.submit_tasks(%s, %s)", NAMESPACE, Json(requests))
            except psycopg.errors.SerializationFailure:  # which the server's pool of connections calls again
                continue
            return

    async def register_template(self) -> None:
        version = self.random.randint(0, 3)
        life: dict[str, Any] = {"onFailure": "block", "lifecycle": LIFE} if version % 2 else {}
        if self.random.random() < 0.5:
            limit = self.random.choice([{}, {"maxTasks": 1}, {"maxTasks": 3}])
            life |= {"concurrency": limit, **LIMITED}
        await self.lab.template(*STEPS, version=f"1.0.{version}", **life)

    async def some_entry(self) -> Any:
        entries = await self.call("select entry_uuid from tasker.dead_letters order by random() limit 1")
        return entries[0]["entry_uuid"] if entries else None

    async def investigate(self) -> None:
        state = self.random.choice(["investigating", "open", "discarded", None])
        await self.call(
            "select tasker.change_dead_letter(%s, %s::tasker.dead_letter_state, 'me', 'x')",
            await self.some_entry(),
            state,
        )

    async def put_back(self) -> None:
        with refused():
            await self.call("select tasker.put_back_dead_letter(%s, 'me', 'x')", await self.some_entry())

    async def add_dead_letter(self) -> None:
        step_name = self.random.choice(["root-0", "last", None])
        await self.call("select tasker.add_dead_letter(%s, %s, 'me', 'x')", self.some_task(), step_name)

    async def read(self) -> None:
        await self.lab.engine.changes.read(None)
        await self.lab.engine.workers.demand([(NAMESPACE, "default")])


OPERATIONS: dict[str, Callable[[Runner], Awaitable[None]]] = {
    operation.__name__: operation
    for operation in (
        Runner.claim,
        Runner.settle,
        Runner.renew,
        Runner.register,
        Runner.deregister,
        Runner.start_anew,
        Runner.sweep,
        Runner.cancel,
        Runner.suspend,
        Runner.resume,
        Runner.reset,
        Runner.end_by_hand,
        Runner.rerun,
        Runner.drain,
        Runner.undrain,
        Runner.expire,
        Runner.submit,
        Runner.register_template,
        Runner.investigate,
        Runner.put_back,
        Runner.add_dead_letter,
        Runner.read,
    )
}


async def test_no_pair_of_operations_deadlocks(own_lab: Lab) -> None:
    lab = own_lab
    seed = int(os.environ.get("TASKER_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"TASKER_TEST_SEED={seed}")
    random_ = random.Random(seed)
    await lab.clock.freeze()
    await lab.template(*STEPS)
    await lab.template(*STEPS, concurrency={"maxTasks": 2}, **LIMITED)
    await lab.execute(DAWDLE)
    for table in TABLES:
        await lab.execute(
            f"create trigger dawdle after insert or update or delete on tasker.{table}"
            " for each row execute function tasker.dawdle()"
        )
    async with AsyncExitStack() as stack:
        names = [f"worker-{n}" for n in range(4)]
        runners = []
        for name in names:
            connection = await stack.enter_async_context(await connect(lab.url))
            await connection.execute("set deadlock_timeout = '50ms'")
            runner = Runner(lab, SimulatedWorker(connection, name), names, random.Random(random_.random()))
            await runner.worker.register()
            runners.append(runner)

        async def repeat(runner: Runner, operation: Callable[[Runner], Awaitable[None]], times: int) -> None:
            for _ in range(times):
                await operation(runner)

        for first, second in combinations_with_replacement(OPERATIONS.values(), 2):
            for runner in runners:
                await runner.refill()
            await asyncio.gather(
                *(repeat(runner, (first, second)[place % 2], 4) for place, runner in enumerate(runners))
            )

        async def storm(runner: Runner) -> None:
            until = time.monotonic() + 4
            while time.monotonic() < until:
                await OPERATIONS[runner.random.choice(list(OPERATIONS))](runner)
                if runner.random.random() < 0.1:
                    await runner.refill()

        await asyncio.gather(*(storm(runner) for runner in runners))
        for runner in runners:
            await runner.worker.connection.execute("select pg_stat_force_next_flush()")
    await lab.execute("select pg_stat_clear_snapshot()")
    assert await lab.value("select deadlocks from pg_stat_database where datname = current_database()") == 0
    assert await check_invariants(lab.connection) == []
    # It would prove little if all of it had stood still.
    events = {row["event"] for row in await lab.rows("select distinct event::text from tasker.step_transitions")}
    states = {row["state"] for row in await lab.rows("select distinct state::text from tasker.dead_letters")}
    assert {"open", "put_back"} <= states
    assert {"released", "lease_expired", "retry", "complete", "cancel", "submit_error"} <= events
    assert {"reset_for_retry", "resolve_manually", "complete_manually", "skip", "rerun"} <= events
    admitted = await lab.rows(
        "select distinct a.name from tasker.task_log l join tasker.actors a using (actor_id)"
        " where l.passage = 'admitted'"
    )
    assert {"submit", "admission"} <= {row["name"] for row in admitted}
