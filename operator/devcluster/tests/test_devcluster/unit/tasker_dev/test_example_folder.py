"""Folders given to `tasker dev --run` are read, or refused with the file and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasker.errors import ConfigurationError
from tasker_dev.example import ExampleTask, read_example

TASK = """
kind: Task
metadata: {name: a, annotations: {tasker.dev/expected-state: error}}
---
kind: Task
metadata: {name: b}
"""


def test_tasks_and_pools_of_all_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "pool.yml").write_text("{kind: WorkerPool, metadata: {name: workers}}")
    (tmp_path / "README.md").write_text("kind: Task")
    found = read_example(tmp_path)
    assert found.tasks == (ExampleTask(name="a", expected="error"), ExampleTask(name="b", expected="complete"))
    assert found.pools == ("workers",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: ConfigMap", "none of its manifests is a Task"),
        ("kind: Task", "task.yaml: a Task has no metadata.name"),
        ("- 1", "task.yaml: holds something other than Kubernetes objects"),
        ("a: [", "task.yaml: cannot be read as YAML"),
        (
            "{kind: Task, metadata: {name: a, annotations: {tasker.dev/expected-state: done}}}",
            "task.yaml: the annotation tasker.dev/expected-state of Task a is 'done', not complete or error",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="^" + str(tmp_path)) as refusal:
        read_example(tmp_path)
    assert message in str(refusal.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        read_example(tmp_path / "nowhere")
