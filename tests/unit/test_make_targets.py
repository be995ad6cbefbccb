"""The targets that the README and continuous integration name do what they are named for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands_of(*goals: str) -> str:
    """What make would run for a target (and variables, NAME=value) whose set-up is done."""
    ran = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.ready", *goals],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("demo", "tasker dev --run examples/03-order-fulfillment"),
        ("dev", "tasker dev"),
        ("test", "pytest"),
        ("test-under-load", "-m support.under_load -- "),
        ("mutants", "-m mutants --count 200"),
        ("bench", "tests/bench/run.py"),
        ("parity", "--parity-report"),
        pytest.param("lint", "ruff check .", marks=pytest.mark.parity(183)),
        pytest.param("lint", "ruff format --check .", marks=pytest.mark.parity(183)),
        ("lint", "lint-imports"),
        pytest.param("format", "ruff check --fix .", marks=pytest.mark.parity(183)),
        pytest.param("types", "mypy operator/src worker_image/src tests", marks=pytest.mark.parity(184)),
    ],
)
def test_a_target_runs_what_it_is_named_for(target: str, part: str) -> None:
    assert part in commands_of(target)


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "| `make test` | all tests |" in readme
    assert "\nmake test\n" in script


def test_the_order_of_a_run_of_the_tests_can_be_repeated() -> None:
    assert "--randomly-seed=7 " in commands_of("test", "SEED=7")
    assert "--randomly-seed" not in commands_of("test", "SEED=")
