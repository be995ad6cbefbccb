"""Real processes, killed: nothing is lost, nothing is recorded twice, and no late writer gets through."""

from __future__ import annotations

import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg

from devcluster.postgres import EmbeddedPostgres
from support.invariants import check_invariants
from support.waiting import eventually, eventually_async
from support.workers import chain, worker_processes
from tasker.engine import Engine
from tasker.errors import StoreError
from tasker.factory import migrate, open_engine
from tasker.model.task import TaskRequest, TaskSummary
from tasker.settings import DatabaseSettings

HANDLERS = ["chaos.fault_handlers"]
LEASE_SECONDS = "2"


async def end_of(engine: Engine, task_uuid: UUID) -> TaskSummary:
    """The run, once it has ended."""

    async def ended() -> bool:
        return (await engine.tasks.read(task_uuid)).finished

    await eventually_async(ended, timeout=20, what="the run to end")
    return await engine.tasks.read(task_uuid)


def lines_exceed(file: Path, count: int) -> bool:
    return len(file.read_text().splitlines()) > count


async def assert_invariants(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        assert await check_invariants(connection) == []


async def test_a_step_whose_worker_was_killed_runs_elsewhere_and_the_attempt_counts(
    database_url: str, tmp_path: Path
) -> None:
    async with open_engine(DatabaseSettings(url=database_url)) as engine:
        await engine.templates.register("default", "held", chain(["held"]))
        with worker_processes(database_url, tmp_path, ["first"], HANDLERS, TASKER_LEASE_SECONDS=LEASE_SECONDS) as [
            first
        ]:
            [task] = await engine.tasks.submit(
                "default", [TaskRequest(template_name="held", context={"folder": str(tmp_path)})]
            )
            eventually((tmp_path / "first.1.started").exists, timeout=20, what="the first attempt")
            with worker_processes(database_url, tmp_path, ["second"], HANDLERS, TASKER_LEASE_SECONDS=LEASE_SECONDS):
                first.kill()
                killed_at = time.monotonic()
                eventually((tmp_path / "second.2.started").exists, timeout=20, what="the second attempt elsewhere")
                # Lease time, the sweep's second, and the poll: the same sum is 35 s for the default lease of 30 s.
                assert time.monotonic() - killed_at < float(LEASE_SECONDS) + 5
                (tmp_path / "go").touch()
                summary = await end_of(engine, task.task_uuid)
    assert summary.state == "complete"
    assert summary.leaf_results == {"step-0": {"worker": "second", "attempt": 2}}
    assert [(failure.attempt, failure.error_type) for failure in summary.failures] == [(1, "worker_crash_loop")]
    await assert_invariants(database_url)


async def test_a_worker_that_slept_through_its_lease_cannot_write_late(database_url: str, tmp_path: Path) -> None:
    async with open_engine(DatabaseSettings(url=database_url)) as engine:
        await engine.templates.register("default", "held", chain(["held"]))
        with worker_processes(database_url, tmp_path, ["late"], HANDLERS, TASKER_LEASE_SECONDS=LEASE_SECONDS) as [late]:
            [task] = await engine.tasks.submit(
                "default", [TaskRequest(template_name="held", context={"folder": str(tmp_path)})]
            )
            eventually((tmp_path / "late.1.started").exists, timeout=20, what="the first attempt")
            late.send(signal.SIGSTOP)
            with worker_processes(database_url, tmp_path, ["other"], HANDLERS, TASKER_LEASE_SECONDS=LEASE_SECONDS):
                eventually((tmp_path / "other.2.started").exists, timeout=20, what="the second attempt elsewhere")
                (tmp_path / "go").touch()
                summary = await end_of(engine, task.task_uuid)
            # Woken up, its handler ends at once and hands in a result under the old fence.
            late.send(signal.SIGCONT)
            eventually(lambda: "discarded" in late.log.read_text(), timeout=20, what="the late result to be refused")
            assert await engine.tasks.read(task.task_uuid) == summary
    assert summary.leaf_results == {"step-0": {"worker": "other", "attempt": 2}}
    await assert_invariants(database_url)


async def test_killing_postgres_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    workflows, steps, kills = 200, 4, 3
    ledger = tmp_path / "ledger"
    ledger.touch()
    with EmbeddedPostgres(tmp_path / "postgres") as server:  # durable settings: what was acknowledged must be there
        url = server.ensure_database("tasker")
        await migrate(url)
        async with open_engine(DatabaseSettings(url=url)) as engine:
            await engine.templates.register("default", "chain", chain(["counted"] * steps))
            with worker_processes(url, tmp_path, ["first", "second"], HANDLERS, TASKER_LEASE_SECONDS="5"):
                requests = [
                    TaskRequest(template_name="chain", context={"ledger": str(ledger)}, origin_uid=str(place))
                    for place in range(workflows)
                ]
                submitted = await engine.tasks.submit("default", requests)
                for kill in range(1, kills + 1):
                    goal = workflows * steps * kill // (kills + 2)
                    eventually(partial(lines_exceed, ledger, goal), timeout=60)
                    server.kill()
                    server.start()

                async def all_finished() -> bool:
                    try:
                        return await engine.tasks.finished_count([task.task_uuid for task in submitted]) == workflows
                    except StoreError:
                        return False

                await eventually_async(all_finished, timeout=90, what="all workflows to end")
            summaries = await engine.tasks.read_by_origin([str(place) for place in range(workflows)])
            assert Counter(summary.state for summary in summaries) == {"complete": workflows}
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            cursor = await connection.execute(
                "select count(*), count(distinct step_id) from tasker.step_transitions where event = 'complete'"
            )
            assert await cursor.fetchone() == (workflows * steps, workflows * steps)
        await assert_invariants(url)
    runs = Counter(line.split()[0] for line in ledger.read_text().splitlines())
    assert len(runs) == workflows * steps, "every step ran"
