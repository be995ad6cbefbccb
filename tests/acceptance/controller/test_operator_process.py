"""The operator process: it waits instead of crashing, gets over a faulty API server, leaves no trace on resources."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from support.apiserver import REPOSITORY, Kubectl, RunningApiServer, api_server
from support.cluster import pool, step, task, template
from support.cut_proxy import cut_proxy
from support.engine import open_lab
from support.operator_process import OperatorProcess, running_operator
from support.python_path import python_path
from support.waiting import eventually, eventually_async
from support.workers import worker_processes
from tasker.factory import migrate

HANDLERS = """
from tasker_worker import step_handler


@step_handler("succeed")
def succeed(context):
    return {"done": context.step_name}
"""

StartOperator = Callable[..., OperatorProcess]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningApiServer]:
    """An embedded API server of the test's own, without the CRDs."""
    with api_server(tmp_path / "apiserver") as running:
        yield running


@pytest.fixture
def kubectl(server: RunningApiServer) -> Kubectl:
    """kubectl in the namespace default, with the CRDs there."""
    found = Kubectl(kubeconfig=server.kubeconfig, namespace="default")
    found("apply", "-f", str(REPOSITORY / "crds"))
    return found


@pytest.fixture
def start_operator(server: RunningApiServer, database_url: str, tmp_path: Path) -> Iterator[StartOperator]:
    with ExitStack() as stack:

        def start(url: str = database_url, **environment: str) -> OperatorProcess:
            log = tmp_path / "operator.log"
            return stack.enter_context(running_operator(url, server.kubeconfig, log, **environment))

        yield start
        if (tmp_path / "operator.log").exists():
            print((tmp_path / "operator.log").read_text(encoding="utf-8")[-20_000:])  # shown when the test has failed


def set_faults(server: RunningApiServer, *rules: dict[str, Any]) -> None:
    reply = server.api.request("PUT", "/debug/faults", {"rules": list(rules)})
    assert reply.code < 300, reply.body


async def test_it_waits_for_the_migration_and_says_so(
    kubectl: Kubectl, start_operator: StartOperator, empty_database_url: str
) -> None:
    operator = start_operator(empty_database_url)
    operator.await_log("waiting for the migration")
    assert operator.fetch("/healthz") == (200, "ok\n")
    code, text = operator.fetch("/readyz")
    assert code == 503
    assert "the database schema is behind" in text
    await migrate(empty_database_url)
    operator.await_ready()
    assert operator.log.count("waiting for the migration") == 1, "said once, not with every try"


def test_it_waits_for_the_crds_and_then_works(server: RunningApiServer, start_operator: StartOperator) -> None:
    operator = start_operator()
    operator.await_log("waiting for the Kubernetes API and the tasker.dev CRDs")
    kubectl = Kubectl(kubeconfig=server.kubeconfig, namespace="default")
    kubectl("apply", "-f", str(REPOSITORY / "crds"))
    operator.await_ready()
    kubectl.apply(template("quick", step("a")))
    kubectl("wait", "--for=condition=Ready", "tasktemplate/quick", "--timeout=10s")


async def test_a_silent_database_is_told_by_the_readiness_alone(
    kubectl: Kubectl, start_operator: StartOperator, database_url: str
) -> None:
    async with cut_proxy(database_url) as proxy:
        operator = await asyncio.to_thread(start_operator, proxy.url, TASKER_DATABASE_STATEMENT_TIMEOUT_SECONDS="1")
        await asyncio.to_thread(operator.await_ready)
        proxy.go_silent()

        async def unready() -> bool:
            code, text = await asyncio.to_thread(operator.fetch, "/readyz")
            return code == 503 and "the database: the database does not answer" in text

        await eventually_async(unready, what="readiness says that the database does not answer")
        assert await asyncio.to_thread(operator.fetch, "/healthz") == (200, "ok\n")
        proxy.speak_again()
        await asyncio.to_thread(operator.await_ready)


def test_an_operator_of_another_installation_waits_and_cancels_nothing(
    server: RunningApiServer, kubectl: Kubectl, start_operator: StartOperator, database_url: str, tmp_path: Path
) -> None:
    """Another cluster: none of the runs has a Task there."""
    first = start_operator()
    first.await_ready()
    kubectl.apply(template("quick", step("a")), task("kept", "quick"))
    kubectl("wait", "--for=condition=Accepted", "task/kept", "--timeout=10s")
    with api_server(tmp_path / "other") as elsewhere:
        Kubectl(kubeconfig=elsewhere.kubeconfig, namespace="default")("apply", "-f", str(REPOSITORY / "crds"))
        with running_operator(database_url, elsewhere.kubeconfig, tmp_path / "other.log") as second:
            second.await_log("waiting for a database of this installation")
            code, text = second.fetch("/readyz")
            assert code == 503 and "the database belongs to another installation, kube-system/tasker@" in text
            assert second.fetch("/healthz") == (200, "ok\n")
            [command] = re.findall(r"run: tasker system adopt (\S+);", text)
            assert open_runs(database_url) == 1

            # And the other way round: once it was given away, the first leaves it.
            adopted = subprocess.run(
                [sys.executable, "-m", "tasker", "system", "adopt", "--yes", command],
                env={**os.environ, "DATABASE_URL": database_url},
                check=True,
                capture_output=True,
            )
            assert b"is that of" in adopted.stdout
            second.await_ready()
    first.await_log("the database belongs to another installation")
    first.wait()


def open_runs(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("select count(*) from tasker.tasks where completed_at is null").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(kubectl: Kubectl, start_operator: StartOperator, number: signal.Signals) -> None:
    operator = start_operator()
    operator.await_ready()
    assert operator.end(number) == 0
    assert "Traceback" not in operator.log
    assert "ERROR" not in operator.log


def test_a_signal_ends_the_waiting_too(server: RunningApiServer, start_operator: StartOperator) -> None:
    operator = start_operator("postgresql://nobody@127.0.0.1:1/none")
    operator.await_log("waiting for the database")
    assert operator.end() == 0


def test_a_wrong_setting_is_named_and_ends_it(server: RunningApiServer, start_operator: StartOperator) -> None:
    operator = start_operator(TASKER_LOG="loud")
    assert operator.wait() == 2
    assert "TASKER_LOG='loud' is none of debug, info, warning, error" in operator.log


SWEEP_ENDS = """
from tasker.controller import app


class WithoutSweeps(app.Loop):
    async def run(self):
        if self.name == "sweep":
            return
        await super().run()


app.Loop = WithoutSweeps
raise SystemExit(app.main())
"""

WATCHES_END = """
import kopf
from tasker.controller import app


async def end(tasks, **arguments):
    for task in tasks:
        task.cancel()


kopf.run_tasks = end
raise SystemExit(app.main())
"""

SCALING_HANGS = """
import asyncio
from tasker.controller import app
from tasker.controller.runtime import termination


async def hang():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


class ScalingHangs(app.Loop):
    def __init__(self, name, once, pacer, **arguments):
        if name == "scaling":
            once, arguments["round_seconds"] = hang, 1.0
        super().__init__(name, once, pacer, **arguments)


app.Loop = ScalingHangs
termination.end_in_any_case.__kwdefaults__["after_seconds"] = 8.0
raise SystemExit(app.main())
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (SWEEP_ENDS, "part 'sweep' ended by itself"),
        (WATCHES_END, "part 'watches' ended by itself"),
    ],
    ids=["a loop", "kopf"],
)
def test_a_part_that_ends_ends_the_process_with_a_code_and_the_reason(
    kubectl: Kubectl, start_operator: StartOperator, tmp_path: Path, program: str, reason: str
) -> None:
    (tmp_path / "broken_operator.py").write_text(program)
    last_words = tmp_path / "termination-log"
    last_words.touch()
    operator = start_operator(
        module="broken_operator", PYTHONPATH=str(tmp_path), TASKER_TERMINATION_LOG=str(last_words)
    )
    assert operator.wait(timeout=30) == 3
    assert last_words.read_text() == reason
    assert operator.log.splitlines()[-1].endswith(f"the operator ends with exit code 3: {reason}")
    assert "Traceback" not in operator.log


def test_a_part_that_hangs_and_cannot_be_cancelled_fails_the_probes_and_ends_the_process(
    kubectl: Kubectl, start_operator: StartOperator, tmp_path: Path
) -> None:
    (tmp_path / "broken_operator.py").write_text(SCALING_HANGS)
    last_words = tmp_path / "termination-log"
    last_words.touch()
    operator = start_operator(
        module="broken_operator", PYTHONPATH=str(tmp_path), TASKER_TERMINATION_LOG=str(last_words)
    )
    fault = "part 'scaling' has not come round for"
    operator.await_log(fault, timeout=30)
    for path in ("/healthz", "/readyz"):
        code, text = operator.fetch(path)
        assert (code, text.startswith(f"broken: {fault}")) == (503, True), text
    assert operator.metric("tasker_operator_breakdowns_total", part="scaling") == 1
    assert operator.wait(timeout=30) == 3
    assert "the operator did not end in order within 8 s" in last_words.read_text()
    assert last_words.read_text() in operator.log.splitlines()[-1]


def test_every_status_becomes_right_although_the_api_server_fails_often(
    server: RunningApiServer, kubectl: Kubectl, start_operator: StartOperator, database_url: str, tmp_path: Path
) -> None:
    operator = start_operator()
    operator.await_ready()
    faults = [{"action": "error", "verb": "patch", "status": status, "probability": 0.08} for status in (409, 429, 500)]
    set_faults(server, *faults, {"action": "error", "verb": "patch", "status": 500, "probability": 0.05, "late": True})
    (tmp_path / "succeeding.py").write_text(HANDLERS)
    with worker_processes(database_url, tmp_path, ["w"], ["succeeding"], PYTHONPATH=python_path(tmp_path)):
        kubectl.apply(template("two", step("a"), step("b", after=["a"])), pool(handlersFrom=None, handlers=["x"]))
        kubectl.apply(*(task(f"t{number}", "two") for number in range(30)))
        kubectl("wait", "--for=condition=Succeeded", "task", "--all", "--timeout=50s")
        kubectl("wait", "--for=jsonpath={.status.observedGeneration}=1", "workerpool/default", "--timeout=20s")
    kubectl("get", "deployment", "tasker-worker-default")
    assert operator.metric("tasker_operator_reconcile_errors_total", kind="Task") > 0
    server.api.request("DELETE", "/debug/faults")
    for found in kubectl.get("tasks")["items"]:
        assert found["status"]["progress"] == "2/2"


async def test_a_run_that_goes_on_after_its_end_is_shown_again_also_when_no_operator_saw_it(
    kubectl: Kubectl, start_operator: StartOperator, database_url: str
) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = kubectl.get("task", "one")["status"]
        return found

    def shows(result: int) -> Callable[[], bool]:
        return lambda: status().get("result") == {"b": result} and status()["phase"] == "Succeeded"

    operator = start_operator()
    operator.await_ready()
    kubectl.apply(template("two", step("a"), step("b", after=["a"])))
    kubectl.apply(task("one", "two"))
    kubectl("wait", "--for=condition=Accepted", "task/one", "--timeout=15s")
    uuid = UUID(status()["taskUuid"])
    async with open_lab(database_url) as lab:
        worker = await lab.worker(namespace="default", callables=["succeed"])
        assert await worker.run_all(1) == ["a", "b"]
        eventually(shows(1))
        assert await lab.engine.actions.rerun(uuid, "b", actor="ann", reason="a wrong price") == 1
        eventually(lambda: status()["phase"] == "Running")
        assert not {"result", "completionTime"} & status().keys()
        assert await worker.run_all(2) == ["b"]
        eventually(shows(2))
        assert operator.end() == 0
        await lab.engine.actions.rerun(uuid, "b", actor="ann", reason="a wrong price")
        assert await worker.run_all(3) == ["b"]
        start_operator()
        eventually(shows(3), timeout=20.0)


def test_a_silent_watch_is_restarted_and_counted(
    server: RunningApiServer, kubectl: Kubectl, start_operator: StartOperator
) -> None:
    set_faults(server, {"action": "silence-watch", "resource": "tasktemplates.tasker.dev", "count": 1})
    operator = start_operator(TASKER_WATCH_SILENCE_SECONDS="2")
    operator.await_ready()
    kubectl.apply(template("quick", step("a")))
    kubectl("wait", "--for=condition=Ready", "tasktemplate/quick", "--timeout=15s")
    eventually(lambda: operator.metric("tasker_operator_watch_restarts_total") >= 1)


def test_a_deletion_that_no_event_told_of_is_found_by_the_resync(
    server: RunningApiServer, kubectl: Kubectl, start_operator: StartOperator
) -> None:
    set_faults(server, {"action": "silence-watch", "resource": "tasks.tasker.dev", "count": 1})
    operator = start_operator(TASKER_RESYNC_SECONDS="2")
    operator.await_ready()
    kubectl.apply(template("quick", step("a")))
    kubectl.apply(task("unseen", "quick"))
    kubectl("wait", "--for=condition=Accepted", "task/unseen", "--timeout=15s")
    kubectl("delete", "task", "unseen")
    eventually(lambda: operator.metric("tasker_operator_reconciles_total", kind="origin", outcome="success") >= 1)


def test_resources_carry_no_annotation_or_finalizer_of_the_operator(
    kubectl: Kubectl, start_operator: StartOperator
) -> None:
    operator = start_operator()
    operator.await_ready()
    kubectl("create", "-f", "-", stdin=json.dumps(template("quick", step("a"))))
    kubectl("create", "-f", "-", stdin=json.dumps(task("one", "quick")))
    kubectl("create", "-f", "-", stdin=json.dumps(pool(handlersFrom=None, handlers=["x"])))
    kubectl("wait", "--for=condition=Accepted", "task/one", "--timeout=10s")
    eventually(lambda: kubectl.get("workerpool", "default").get("status"))
    for kind, name in (("tasktemplate", "quick"), ("task", "one"), ("workerpool", "default")):
        metadata = kubectl.get(kind, name)["metadata"]
        assert "annotations" not in metadata
        assert "finalizers" not in metadata


def test_no_password_reaches_a_log_a_status_an_event_or_a_metric(
    kubectl: Kubectl, start_operator: StartOperator
) -> None:
    operator = start_operator(
        TASKER_WORKER_DATABASE_URL="postgresql://worker:open-sesame@db/tasker", TASKER_LOG="debug"
    )
    operator.await_ready()
    kubectl.apply(template("quick", step("a")), pool(handlersFrom=None, handlers=["x"]), task("one", "quick"))
    kubectl("wait", "--for=condition=Accepted", "task/one", "--timeout=10s")
    eventually(lambda: kubectl.get("workerpool", "default").get("status"))
    shown = operator.log + operator.fetch("/metrics")[1]
    for kinds in ("tasktemplates,tasks,workerpools", "deployments,serviceaccounts,networkpolicies", "events"):
        shown += kubectl("get", kinds, "--output=yaml", "--show-managed-fields")
    assert "open-sesame" not in shown


def test_only_the_named_namespaces_are_served(kubectl: Kubectl, start_operator: StartOperator) -> None:
    operator = start_operator(TASKER_WATCH_NAMESPACES="default")
    operator.await_ready()
    kubectl("create", "namespace", "other")
    other = Kubectl(kubeconfig=kubectl.kubeconfig, namespace="other")
    other.apply(template("quick", step("a")))
    kubectl.apply(template("quick", step("a")))
    kubectl("wait", "--for=condition=Ready", "tasktemplate/quick", "--timeout=10s")
    assert "status" not in other.get("tasktemplate", "quick")
