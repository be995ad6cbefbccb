"""Measures the engine and the SDK on this machine, beside the raw limit of its Postgres, in one run.

    make bench                       the whole run, about a minute
    python tests/bench/run.py --help

Everything runs against a server of its own with durable default settings. Figures of one run may be compared with each
other; between machines, and hours of one, only ratios say anything: hence latency and throughput are told in units of
the machine's raw single-client commits as well, measured before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from devcluster.postgres import EmbeddedPostgres, find_binaries
from tasker.engine import Engine
from tasker.factory import migrate, open_engine
from tasker.model.task import TaskRequest
from tasker.model.template import parse_template_spec
from tasker.settings import DatabaseSettings
from tasker_worker._version import __version__

HERE = Path(__file__).resolve().parent
NAMESPACE = "bench"
CHAIN_STEPS = 4
SUBMITTED_AT_ONCE = 500
SHOWN_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "wal_sync_method",
)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Submit to the final row, one workflow at a time, in milliseconds."""

    workflows: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Workflows submitted to idle, warm workers, until the last final row."""

    workers: int
    workflows: int
    seconds: float
    steps_per_second: float
    write_transactions_per_step: float
    wal_bytes_per_step: float


def main() -> int:
    """Runs all parts and prints them; JSON as the last line with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=2000, help="workflows of a throughput run (2000)")
    parser.add_argument("--latency-workflows", type=int, default=300, help="workflows of the latency run (300)")
    parser.add_argument("--slots", type=int, default=100, help="slots of a worker process (100)")
    parser.add_argument("--raw-seconds", type=int, default=3, help="seconds of each pgbench run (3)")
    parser.add_argument("--json", action="store_true", help="print all figures as one line of JSON at the end")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tasker-bench-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", {"max_connections": "200"}) as server,
    ):
        figures = asyncio.run(measure(server, options))
    if options.json:
        print(json.dumps(figures))
    return 0


async def measure(server: EmbeddedPostgres, options: argparse.Namespace) -> dict[str, Any]:
    """All parts in order, printed as they come."""
    url = server.ensure_database("bench")
    settings = shown_settings(url)
    print(
        f"tasker {__version__}, Python {platform.python_version()}, psycopg {psycopg.__version__}, "
        f"{os.cpu_count()} processors, {platform.machine()}"
    )
    print("PostgreSQL " + ", ".join(f"{name}={value}" for name, value in settings.items()))

    raw = measure_raw(server, options.raw_seconds)

    await migrate(url)
    async with open_engine(DatabaseSettings(url=url)) as engine:
        await engine.templates.register(NAMESPACE, "chain", parse_template_spec(chain_template()))
        async with workers(url, 1, options.slots):
            latency = await measure_latency(engine, url, options.latency_workflows)
        print(
            f"latency of a {CHAIN_STEPS}-step chain, one at a time, 1 warm worker: "
            f"p50 {latency.p50_ms:.2f} ms, p99 {latency.p99_ms:.2f} ms ({latency.workflows} workflows); "
            f"{latency.p50_ms * raw[1] / 1000:.0f} and {latency.p99_ms * raw[1] / 1000:.0f} raw commits of 1 client"
        )
        settle_ms = await measure_settle(engine, url, options.latency_workflows)
        print(
            f"settling one step and claiming the next: {settle_ms:.2f} ms of server time, without the commit (median)"
        )
        throughput = []
        for count in (1, 2):
            async with workers(url, count, options.slots):
                figures = await measure_throughput(engine, url, count, options.workflows)
            throughput.append(figures)
            print(
                f"throughput with {count} worker process(es), {options.slots} slots each: "
                f"{figures.steps_per_second:,.0f} steps/s ({figures.workflows} workflows in {figures.seconds:.2f} s), "
                f"{figures.write_transactions_per_step:.3f} write transactions and "
                f"{figures.wal_bytes_per_step:,.0f} B of WAL a step; "
                f"{figures.steps_per_second / raw[1]:.2f} x the raw commits of 1 client, "
                f"{figures.steps_per_second / raw[16]:.2f} x those of 16"
            )
    raw_after = measure_raw(server, options.raw_seconds)
    return {
        "settings": settings,
        "raw_commits_per_second": raw,
        "raw_commits_per_second_after": raw_after,
        "latency": asdict(latency),
        "settle_ms": settle_ms,
        "throughput": [asdict(figures) for figures in throughput],
    }


def measure_raw(server: EmbeddedPostgres, seconds: int) -> dict[int, float]:
    """The raw limit with one client and with 16, printed."""
    raw = {clients: raw_commits(server, clients, seconds) for clients in (1, 16)}
    for clients, commits in raw.items():
        print(f"raw limit: {commits:,.0f} single-row insert commits a second with {clients} client(s) (pgbench)")
    return raw


def chain_template() -> dict[str, Any]:
    """Four steps, each after the one before."""
    names = [f"step_{place}" for place in range(1, CHAIN_STEPS + 1)]
    return {
        "version": "1.0.0",
        "steps": [
            {
                "name": name,
                "handler": {"callable": "bench_next" if place else "bench_first"},
                "dependsOn": names[place - 1 : place] if place else [],
            }
            for place, name in enumerate(names)
        ],
    }


def shown_settings(url: str) -> dict[str, str]:
    """The server's settings that decide what a commit costs."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select name, current_setting(name) from pg_settings where name = any (%s)", (list(SHOWN_SETTINGS),)
        ).fetchall()
    return dict(rows)


def raw_commits(server: EmbeddedPostgres, clients: int, seconds: int) -> float:
    """Transactions a second of pgbench inserting one row each, prepared, after making the table."""
    url = server.ensure_database("raw")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table if exists raw")
        connection.execute("create table raw (id bigint generated always as identity primary key, payload text)")
    script = HERE / "insert.sql"
    found = find_binaries()
    command = [str(found.folder / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--client={clients}"]
    command += [f"--jobs={min(clients, os.cpu_count() or 1)}", f"--time={seconds}", f"--file={script}", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"tps = ([\d.]+)", output)
    if match is None:
        raise RuntimeError(f"pgbench printed no rate:\n{output}")
    return float(match[1])


@asynccontextmanager
async def workers(url: str, count: int, slots: int) -> AsyncIterator[None]:
    """`count` worker processes, registered and idle on entering, ended on leaving."""
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "TASKER_NAMESPACE": NAMESPACE,
        "TASKER_SLOTS": str(slots),
        "TASKER_LOG": "warn",
        "TASKER_WEB_ENABLED": "false",
        "PYTHONPATH": str(HERE.parent),
    }
    with processes([sys.executable, "-m", "tasker_worker", "bench.handlers"], environment, count):
        deadline = time.monotonic() + 30
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while True:
                cursor = await connection.execute("select count(*) from tasker.workers")
                row = await cursor.fetchone()
                if row == (count,):
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError("the workers did not register within 30 s")
                await asyncio.sleep(0.05)
        yield


@contextmanager
def processes(command: list[str], environment: dict[str, str], count: int) -> Iterator[None]:
    """Child processes that end with the block, by request and in order."""
    children = [subprocess.Popen(command, env=environment) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(timeout=30)


async def measure_latency(engine: Engine, url: str, workflows: int) -> Latency:
    """Submits through the engine and watches for the final row on another connection; the first tenth is warm-up."""
    taken: list[float] = []
    warm_up = workflows // 10
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for place in range(warm_up + workflows):
            begun = time.perf_counter()
            [submitted] = await engine.tasks.submit(
                NAMESPACE, [TaskRequest(template_name="chain", context={"n": place})]
            )
            await wait_for_end(connection, submitted.task_uuid)
            if place >= warm_up:
                taken.append((time.perf_counter() - begun) * 1000)
    return Latency(workflows=workflows, p50_ms=statistics.median(taken), p99_ms=statistics.quantiles(taken, n=100)[98])


SETTLE = """explain (analyze, timing off, format json) select * from tasker.settle_steps(
    'bench', 'by-hand', array[%s]::bigint[], array[%s]::bigint[], array['complete'], array['{"n": 1}']::json[],
    null, null, null, null, null, null, null, 100)"""


async def measure_settle(engine: Engine, url: str, times: int) -> float:
    """The server's own account of settling a step and handing out the next: milliseconds, after a tenth of warm-up."""
    taken: list[float] = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "select tasker.register_worker('bench', 'by-hand', 'none', 1, '1', array['by_hand'], 3600)"
        )
        steps = [{"name": "first", "handler": {"callable": "by_hand"}}]
        steps.append({"name": "next", "handler": {"callable": "by_hand"}, "dependsOn": ["first"]})
        await engine.templates.register(NAMESPACE, "by-hand", parse_template_spec({"steps": steps}))
        for _ in range(times + times // 10):
            await engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="by-hand", context={})])
            claimed = await connection.execute("select step_id, fence from tasker.claim_steps('bench', 'by-hand', 1)")
            explained = await connection.execute(SETTLE, await claimed.fetchone())
            [[plan]] = await explained.fetchall()
            taken.append(plan[0]["Execution Time"])
        await connection.execute("select tasker.deregister_worker('bench', 'by-hand')")
    return statistics.median(taken[times // 10 :])


async def wait_for_end(connection: psycopg.AsyncConnection[Any], task_uuid: UUID) -> None:
    """Looks every quarter of a millisecond: often enough to measure by, rarely enough to leave the worker its core."""
    while True:
        cursor = await connection.execute(
            "select state::text from tasker.tasks where task_uuid = %s and completed_at is not null", (task_uuid,)
        )
        row = await cursor.fetchone()
        if row is not None:
            if row[0] != "complete":
                raise RuntimeError(f"workflow {task_uuid} ended as {row[0]}")
            return
        await asyncio.sleep(0.00025)


async def measure_throughput(engine: Engine, url: str, count: int, workflows: int) -> Throughput:
    """Submits in sets of 500 to warm workers; the clock runs from the first submit to the last final row."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        transactions, wal = await write_position(connection)
        begun = time.perf_counter()
        submitted: list[UUID] = []
        for start in range(0, workflows, SUBMITTED_AT_ONCE):
            size = min(SUBMITTED_AT_ONCE, workflows - start)
            requests = [TaskRequest(template_name="chain", context={"n": start + place}) for place in range(size)]
            submitted += [task.task_uuid for task in await engine.tasks.submit(NAMESPACE, requests)]
        while await engine.tasks.finished_count(submitted) < workflows:
            if time.perf_counter() - begun > 300:
                raise RuntimeError("the workflows did not end within 300 s")
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - begun
        transactions_after, wal_after = await write_position(connection)
    steps = workflows * CHAIN_STEPS
    return Throughput(
        workers=count,
        workflows=workflows,
        seconds=seconds,
        steps_per_second=steps / seconds,
        write_transactions_per_step=(transactions_after - transactions) / steps,
        wal_bytes_per_step=(wal_after - wal) / steps,
    )


async def write_position(connection: psycopg.AsyncConnection[Any]) -> tuple[int, int]:
    """Transaction ids drawn so far and bytes of WAL written so far, of the whole server."""
    cursor = await connection.execute(
        "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


if __name__ == "__main__":
    sys.exit(main())
