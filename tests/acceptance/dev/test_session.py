"""`tasker dev` as a session: it goes on where it ended, has its folder to itself, and leaves no process."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import psycopg

from support.dev_session import ROOT, Dev, copy_of, processes_of, run_dev, running_dev
from support.waiting import PATIENCE, eventually

SLOW_HANDLERS = """
import time
from tasker_worker import step_handler

@step_handler("slow")
def slow(context):
    while not context.cancelled:
        time.sleep(0.05)
"""


def apply_slow_step(dev: Dev, folder: Path) -> None:
    """A Task whose one step goes on for as long as it may, under way in a worker."""
    (folder / "handlers.py").write_text(SLOW_HANDLERS)
    (folder / "slow.yaml").write_text("""
apiVersion: tasker.dev/v1alpha1
kind: WorkerPool
metadata: {name: slow}
spec: {handlersFrom: {configMapRef: {name: slow}}}
---
apiVersion: tasker.dev/v1alpha1
kind: TaskTemplate
metadata: {name: slow}
spec: {steps: [{name: slow, handler: {callable: slow}}]}
---
apiVersion: tasker.dev/v1alpha1
kind: Task
metadata: {name: slow}
spec: {templateRef: {name: slow}}
""")
    dev.kubectl("create", "configmap", "slow", f"--from-file={folder / 'handlers.py'}")
    dev.kubectl("apply", "-f", str(folder / "slow.yaml"))
    eventually(
        lambda: dev.get("workerpool", "slow").get("status", {}).get("running") == 1,
        timeout=20,
        what="the step runs",
    )


def test_ctrl_c_stops_everything_and_the_next_session_goes_on(tmp_path: Path) -> None:
    first = Dev(tmp_path / "data")
    try:
        first.await_ready()
        apply_slow_step(first, tmp_path)
        workers = [command for command in processes_of(first.data).values() if "tasker_worker" in command]
        assert len(workers) == 1
        assert first.interrupt() == 0, first.output
        assert processes_of(first.data) == {}, first.output
    finally:
        first.kill()
    kubeconfig = first.kubeconfig.read_bytes()
    assert first.kubeconfig.stat().st_mode & 0o777 == 0o600
    with running_dev(tmp_path / "data") as second:
        assert second.kubeconfig.read_bytes() == kubeconfig
        assert second.get("task", "slow")["spec"]["templateRef"] == {"name": "slow"}


def test_a_kill_leaves_no_process(tmp_path: Path) -> None:
    dev = Dev(tmp_path / "data")
    try:
        dev.await_ready()
        apply_slow_step(dev, tmp_path)
        assert len(processes_of(dev.data)) > 3
    finally:
        dev.kill()
    dev.await_no_process(timeout=15)


def test_ctrl_c_under_make_stops_everything(tmp_path: Path) -> None:
    # `make` gets the terminal's signal as well, and ends when its command has.
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"dev:\n\t@{sys.executable} -m tasker dev --data {tmp_path / 'data'}\n")
    dev = Dev(tmp_path / "data", command=["make", "-f", str(makefile), "dev"])
    try:
        dev.await_ready()
        dev.interrupt()
        dev.await_no_process(timeout=2)
    finally:
        dev.kill()


def test_sigterm_stops_everything(tmp_path: Path) -> None:
    dev = Dev(tmp_path / "data")
    try:
        dev.await_ready()
        dev.process.send_signal(signal.SIGTERM)
        assert dev.process.wait(timeout=10 * PATIENCE) == 0, dev.output
        assert processes_of(dev.data) == {}
    finally:
        dev.kill()


def test_a_database_of_ones_own_is_used_and_a_kept_run_goes_on(tmp_path: Path, empty_database_url: str) -> None:
    example = copy_of("01-linear", tmp_path)
    dev = Dev(tmp_path / "data", "--run", str(example), "--keep", environment={"DATABASE_URL": empty_database_url})
    try:
        dev.await_ready()
        assert "Every Task ended as expected" in dev.output
        assert dev.get("task", "linear-16")["status"]["result"] == {"add_constant": {"value": 42}}
        assert not (dev.data / "postgres").exists()
        with psycopg.connect(empty_database_url) as connection:
            assert connection.execute("select count(*) from tasker.tasks").fetchone() == (2,)
        assert dev.interrupt() == 0, dev.output
    finally:
        dev.kill()


def test_a_port_that_somebody_else_has_is_told(tmp_path: Path) -> None:
    with running_dev(tmp_path / "data"):
        pass
    remembered = int((tmp_path / "data" / "apiserver" / "port").read_text())
    with socket.create_server(("127.0.0.1", remembered)):
        refused = run_dev(tmp_path / "data", "--port", str(remembered))
        assert refused.returncode == 1
        assert f"error: cannot listen on 127.0.0.1:{remembered}" in refused.stdout
        with running_dev(tmp_path / "data") as dev:
            assert f"port {remembered} of the session before is taken now" in dev.output
            assert dev.get("nodes")["items"][0]["metadata"]["name"] == "tasker-dev"


def test_a_second_session_on_the_folder_is_refused_and_a_dead_operator_comes_back(tmp_path: Path) -> None:
    with running_dev(tmp_path / "data") as dev:
        refused = run_dev(dev.data)
        assert refused.returncode == 1
        assert f"error: another `tasker dev` (process {dev.process.pid}) runs in {dev.data}" in refused.stdout
        assert f"KUBECONFIG={dev.kubeconfig}" in refused.stdout

        (operator,) = [
            pid for pid, command in processes_of(dev.data).items() if command.endswith("-m tasker.controller")
        ]
        os.kill(operator, signal.SIGKILL)
        eventually(lambda: "the operator runs again, as process" in dev.output, timeout=10, what="a new operator")
        assert "the operator was ended by signal 9 (Killed); it is started again in" in dev.output
        dev.kubectl("apply", "-f", str(ROOT / "examples" / "02-diamond"))
        dev.kubectl("wait", "--for=condition=Succeeded", "task/diamond-6", "--timeout=30s")
