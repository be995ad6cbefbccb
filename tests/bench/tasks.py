"""Measures what many short Tasks cost: how fast they are accepted and ended, and how often their status is written.

    python tests/bench/tasks.py --tasks 500

An embedded cluster, the operator and a warm pool of one worker, on this machine. The Tasks, of one step each, are all
there at once: they are created while the operator's process stands still. Its own metrics count the writes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator" / "devcluster" / "tests")]

from support.cluster import Namespace, embedded_cluster, handlers, pool, step, task, template  # noqa: E402
from support.operator_process import OperatorProcess, running_operator  # noqa: E402
from support.postgres import running_server  # noqa: E402
from support.waiting import eventually  # noqa: E402
from tasker.factory import migrate  # noqa: E402
from tasker_worker._version import __version__  # noqa: E402

CRDS = ROOT / "crds"
NAMESPACE = "bench"
LONGEST_SECONDS = 600.0


def main() -> int:
    """Prints one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=500, help="how many Tasks (500)")
    count = parser.parse_args().tasks
    print(f"tasker {__version__}, Python {platform.python_version()}, {os.cpu_count()} processors; {count} Tasks")
    with tempfile.TemporaryDirectory(prefix="tasker-bench-") as name, installation(Path(name)) as parts:
        namespace, operator, url = parts
        measure(namespace, operator, url, count)
    return 0


@contextmanager
def installation(folder: Path) -> Iterator[tuple[Namespace, OperatorProcess, str]]:
    """The product on a cluster of its own, with a worker that has done its first Task."""
    with running_server(folder) as server, embedded_cluster(folder / "cluster") as cluster:
        url = server.create("bench")
        asyncio.run(migrate(url))
        namespace = Namespace(cluster.kubeconfig, NAMESPACE)
        namespace.kubectl("create", "namespace", NAMESPACE)
        namespace.kubectl("apply", "-f", str(CRDS))
        with running_operator(url, cluster.operator_kubeconfig, folder / "operator.log") as operator:
            operator.await_ready(timeout=60)
            namespace.apply(handlers(), pool(minReplicas=1), template("short", step("only")), task("first", "short"))
            namespace.wait("condition=Succeeded", "task/first", seconds=60)
            yield namespace, operator, url


def measure(namespace: Namespace, operator: OperatorProcess, url: str, count: int) -> None:
    """From the moment that the operator may see the Tasks until all of them show their end."""
    tasks = [task(f"t-{number}", "short", context={"number": number}) for number in range(count)]
    before = writes(operator)
    operator.send(signal.SIGSTOP)
    try:
        namespace.kubectl("create", "-f", "-", given=yaml.safe_dump_all(tasks), timeout=LONGEST_SECONDS)
    finally:
        operator.send(signal.SIGCONT)
    begun = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        accepted = seconds_until(connection, "select count(*) from tasker.tasks", count + 1, begun)
        ended = seconds_until(
            connection, "select count(*) from tasker.tasks where completed_at is not null", count + 1, begun
        )
    eventually(lambda: writes(operator) - before >= count, timeout=LONGEST_SECONDS, interval=0.2)
    shown = time.monotonic() - begun
    namespace.wait("condition=Succeeded", "task", "--all", seconds=120)
    print(f"accepted: {count / accepted:.0f} a second ({accepted:.1f} s)")
    print(f"ended: {count / ended:.0f} a second ({ended:.1f} s)")
    print(f"ends shown: {count / shown:.0f} a second ({shown:.1f} s)")
    print(f"status writes of Tasks: {writes(operator) - before:.0f}, {(writes(operator) - before) / count:.2f} a Task")


def writes(operator: OperatorProcess) -> float:
    return operator.metric("tasker_operator_status_writes_total", kind="Task", outcome="written")


def seconds_until(connection: psycopg.Connection, query: str, count: int, begun: float) -> float:
    """Seconds from `begun` until the query counts so many. Raises `TimeoutError`."""
    while True:
        row = connection.execute(query.encode()).fetchone()
        if row is not None and row[0] >= count:
            return time.monotonic() - begun
        if time.monotonic() - begun > LONGEST_SECONDS:
            raise TimeoutError(f"only {row} of {count} after {LONGEST_SECONDS:.0f} s")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
