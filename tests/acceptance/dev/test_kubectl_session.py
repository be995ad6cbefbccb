"""The session of a person with kubectl beside `tasker dev`: everything behaves as on a real cluster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from devcluster.postgres import EmbeddedPostgres
from support.dev_session import KUBECTL, ROOT, Dev, clean_environment, processes_of, running_dev
from support.waiting import eventually

DIAMOND = str(ROOT / "examples" / "02-diamond")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with running_dev(tmp_path_factory.mktemp("dev") / "data") as session:
        yield session


@pytest.fixture
def diamond(dev: Dev) -> str:
    """The diamond's Task, applied and succeeded."""
    dev.kubectl("apply", "-f", DIAMOND)
    dev.kubectl("wait", "--for=condition=Succeeded", "task/diamond-6", "--timeout=30s")
    return "diamond-6"


def test_get_watch_shows_a_task_going_through(dev: Dev, tmp_path: Path) -> None:
    dev.kubectl("delete", "task", "diamond-6", "--ignore-not-found")  # another test may have been here before
    output = tmp_path / "watch.out"
    with output.open("wb") as file:
        watch = subprocess.Popen(
            [KUBECTL, "get", "tasks", "-w"], env=clean_environment(KUBECONFIG=str(dev.kubeconfig)), stdout=file
        )
    try:
        applied = dev.kubectl("apply", "-f", DIAMOND)
        assert "task.tasker.dev/diamond-6 created" in applied
        eventually(lambda: re.search(r"diamond-6 +diamond +complete +4/4 +0", output.read_text()), timeout=30)
    finally:
        watch.terminate()
        watch.wait()
    lines = output.read_text().splitlines()
    assert lines[0].split() == ["NAME", "TEMPLATE", "STATE", "PROGRESS", "FAILED", "AGE"]
    assert lines[1].split()[:2] == ["diamond-6", "diamond"]


@pytest.mark.parity(186)
def test_wait_returns_when_the_task_succeeded_with_its_result(dev: Dev, diamond: str) -> None:
    status = dev.get("task", diamond)["status"]
    assert (status["state"], status["phase"], status["progress"]) == ("complete", "Succeeded", "4/4")
    assert status["result"] == {"average": {"value": 66.5}}


@pytest.mark.usefixtures("diamond")
def test_the_session_is_a_development_environment(dev: Dev) -> None:
    [container] = dev.get("deployment", "tasker-worker-diamond")["spec"]["template"]["spec"]["containers"]
    assert {"name": "TASKER_ENV", "value": "development"} in container["env"]


@pytest.mark.parity(187)
def test_the_branches_of_the_diamond_run_side_by_side(dev: Dev, diamond: str) -> None:
    uuid = dev.get("task", diamond)["status"]["taskUuid"]
    with EmbeddedPostgres(dev.data / "postgres") as server, psycopg.connect(server.url("tasker")) as connection:
        rows = connection.execute(
            """
            select d.name, t.to_state::text
            from tasker.step_transitions t
            join tasker.steps s using (step_id)
            join tasker.definitions d on d.definition_id = s.definition_id
            where tasker.task_of_step(s.step_id) = (select task_id from tasker.tasks where task_uuid = %s)
              and t.to_state in ('enqueued', 'in_progress', 'complete')
            order by t.at, t.transition_id
            """,
            (uuid,),
        ).fetchall()
    seen = [f"{name} {state}" for name, state in rows]
    # Both branches are ready before either is done, and the end only after both.
    ready = max(seen.index("add_twenty_five enqueued"), seen.index("double enqueued"))
    done = [seen.index("add_twenty_five complete"), seen.index("double complete")]
    assert ready < min(done)
    assert seen.index("average enqueued") > max(done)


def test_describe_tells_the_story(dev: Dev, diamond: str) -> None:
    told = dev.kubectl("describe", "task", diamond)
    assert re.search(r"^Name: +diamond-6$", told, re.MULTILINE)
    assert re.search(r"Reason: +Completed", told)
    assert re.search(r"TaskAccepted", told)
    assert re.search(r"TaskSucceeded", told)


def test_the_pool_shows_its_workers_and_goes_back_to_zero(dev: Dev, diamond: str) -> None:
    table = dev.kubectl("get", "workerpools").splitlines()
    assert table[0].split() == ["NAME", "READY", "DESIRED", "QUEUED", "RUNNING", "REASON", "AGE"]
    assert table[1].split()[0] == "diamond"

    def at_zero() -> bool:
        status = dev.get("workerpool", "diamond")["status"]
        return (status["replicas"], status["desiredReplicas"]) == (0, 0)

    eventually(at_zero, timeout=30, interval=0.2, what="the pool is back at zero")
    eventually(
        lambda: not any("tasker_worker" in command for command in processes_of(dev.data).values()),
        timeout=5,
        what="no worker process is left",
    )


def test_wait_for_failure_returns_when_it_failed(dev: Dev) -> None:
    dev.kubectl("apply", "-f", str(ROOT / "examples" / "01-linear"))
    dev.kubectl("wait", "--for=condition=Succeeded=False", "task/linear-not-a-number", "--timeout=30s")
    (failure,) = dev.get("task", "linear-not-a-number")["status"]["failures"]
    assert (failure["step"], failure["attempt"], failure["final"]) == ("double_value", 1, True)
    dev.kubectl("delete", "-f", str(ROOT / "examples" / "01-linear"))


def test_delete_takes_the_task_away_and_apply_runs_it_again(dev: Dev, diamond: str) -> None:
    before = dev.get("task", diamond)["metadata"]["uid"]
    assert "deleted" in dev.kubectl("delete", "task", diamond)
    assert "NotFound" in dev.kubectl("get", "task", diamond, fails=True)
    dev.kubectl("apply", "-f", DIAMOND)
    dev.kubectl("wait", "--for=condition=Succeeded", f"task/{diamond}", "--timeout=30s")
    assert dev.get("task", diamond)["metadata"]["uid"] != before


def test_explain_knows_the_fields(dev: Dev) -> None:
    told = dev.kubectl("explain", "tasktemplate.spec.steps")
    assert re.search(r"^FIELD: steps <\[\]Object>$", told, re.MULTILINE)
    for field in ("dependsOn", "handler", "name", "retry", "timeoutSeconds"):
        assert re.search(rf"^  {field}\t", told, re.MULTILINE), told


def test_server_side_apply_owns_fields_and_reports_conflicts(dev: Dev, diamond: str, tmp_path: Path) -> None:
    manifest = tmp_path / "pool.yaml"
    manifest.write_text("""
apiVersion: tasker.dev/v1alpha1
kind: WorkerPool
metadata: {name: diamond}
spec: {maxReplicas: 3}
""")
    conflict = dev.kubectl("apply", "--server-side", "--field-manager=other", "-f", str(manifest), fails=True)
    assert "conflict with" in conflict
    assert ".spec.maxReplicas" in conflict
    dev.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", str(manifest))
    pool = dev.get("workerpool", "diamond", "--show-managed-fields")
    assert pool["spec"]["maxReplicas"] == 3
    assert pool["spec"]["handlersFrom"] == {"configMapRef": {"name": "diamond-handlers"}}
    (entry,) = [entry for entry in pool["metadata"]["managedFields"] if entry["manager"] == "other"]
    assert entry["operation"] == "Apply"
    assert "f:maxReplicas" in entry["fieldsV1"]["f:spec"]


def test_edit_changes_the_object_and_shows_what_is_refused(dev: Dev, diamond: str, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/slots: .*/slots: 7/' \"$1\"\n")
    editor.chmod(0o755)
    assert "edited" in dev.kubectl("edit", "workerpool", "diamond", EDITOR=str(editor))
    assert dev.get("workerpool", "diamond")["spec"]["slots"] == 7

    # kubectl opens the file again with the refusal in it; left as it is, it gives up.
    seen = tmp_path / "seen"
    editor.write_text(f"#!/bin/sh\ncat \"$1\" >> '{seen}'\nsed -i 's/value: 6/value: 7/' \"$1\"\n")
    dev.kubectl("edit", "task", diamond, EDITOR=str(editor), fails=True)
    assert "context is immutable; create a new Task instead" in seen.read_text()


def test_what_the_schema_does_not_allow_is_refused_at_apply(dev: Dev, tmp_path: Path) -> None:
    manifest = tmp_path / "template.yaml"
    steps = [{"name": "a", "handler": {"callable": "a"}, "dependsOn": ["a"]}]
    template = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "TaskTemplate",
        "metadata": {"name": "broken"},
        "spec": {"steps": steps},
    }
    manifest.write_text(json.dumps(template))
    refused = dev.kubectl("apply", "-f", str(manifest), fails=True)
    assert "spec.steps[0]: Invalid value" in refused
    assert "a step must not depend on itself" in refused
