"""`tasker dev --run`: an example from `kubectl apply` to its end, workers 0 → N → 0, and the exit code."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from support.dev_session import copy_of, processes_of, run_dev

TASKS = {
    "order-success": "complete",
    "order-flaky-gateway": "complete",
    "order-insufficient-stock": "error",
    "order-declined-card": "error",
    "order-empty-cart": "error",
}


@pytest.mark.parity(213, 214, 217, 221)
def test_the_demo_ends_as_it_should(tmp_path: Path) -> None:
    data = tmp_path / "data"
    began = time.monotonic()
    ran = run_dev(data, "--run", "examples/03-order-fulfillment")
    took = time.monotonic() - began
    assert ran.returncode == 0, ran.stdout
    assert took < 60
    for task, state in TASKS.items():
        assert re.search(rf"^\s*{task}\s+{state}\s+{state}\s+\d/5\s+\d+\.\d s", ran.stdout, re.MULTILINE), ran.stdout
    for reason in (
        "insufficient stock for monitor: requested 5, available 3",
        "the card was declined for a charge of 53.89 dollars",
        "the cart is empty",
    ):
        assert reason in ran.stdout
    history = re.search(r"^Workers of pool order-fulfillment: (.*)$", ran.stdout, re.MULTILINE)
    assert history is not None, ran.stdout
    levels = [int(level) for level in history[1].split(" → ")]
    assert (levels[0], levels[-1]) == (0, 0)
    assert 1 <= max(levels) <= 3
    assert f"export KUBECONFIG={data / 'kubeconfig'}\n" in ran.stdout
    assert len(re.findall(r"^  \S*kubectl ", ran.stdout, re.MULTILINE)) == 3
    assert processes_of(data) == {}


def test_a_task_that_ends_otherwise_than_it_says_makes_the_run_fail(tmp_path: Path) -> None:
    example = copy_of("01-linear", tmp_path)
    manifest = example / "task.yaml"
    right = manifest.read_text()
    manifest.write_text(right.replace("expected-state: error", "expected-state: complete"))
    ran = run_dev(tmp_path / "data", "--run", str(example))
    assert ran.returncode == 1, ran.stdout
    assert "NOT AS EXPECTED: Task linear-not-a-number ended as error, expected complete" in ran.stdout
    manifest.write_text(right)
    again = run_dev(tmp_path / "data", "--run", str(example))
    assert again.returncode == 0, again.stdout
    assert "Removed 2 Tasks of an earlier run" in again.stdout


def test_a_run_that_takes_too_long_fails_and_says_what_is_open(tmp_path: Path) -> None:
    example = copy_of("01-linear", tmp_path)
    (example / "template.yaml").unlink()
    ran = run_dev(tmp_path / "data", "--run", str(example), "--timeout", "8")
    assert ran.returncode == 1, ran.stdout
    assert "NOT OVER after 8 s: Task linear-16 is pending" in ran.stdout
    assert "There is no TaskTemplate linear in namespace default." in ran.stdout


def test_what_kubectl_refuses_is_told(tmp_path: Path) -> None:
    example = copy_of("01-linear", tmp_path)
    (example / "template.yaml").write_text("{apiVersion: tasker.dev/v1alpha1, kind: TaskTemplate, metadata: {name: x}}")
    ran = run_dev(tmp_path / "data", "--run", str(example))
    assert ran.returncode == 1, ran.stdout
    assert "error: kubectl apply -f" in ran.stdout
    assert "spec: Required value" in ran.stdout
