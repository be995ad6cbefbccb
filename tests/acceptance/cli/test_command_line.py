"""The command `tasker`: what it says and which exit code it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tasker_worker import __version__


def tasker(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "KUBECONFIG"}}
    return subprocess.run(
        [sys.executable, "-m", "tasker", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_prints_the_version() -> None:
    ran = tasker("version")
    assert (ran.returncode, ran.stdout) == (0, f"{__version__}\n")


def test_migrate_brings_an_empty_database_to_the_schema_once(empty_database_url: str) -> None:
    first = tasker("migrate", DATABASE_URL=empty_database_url)
    assert first.returncode == 0, first.stderr
    assert "applied 0001_before_deploy_initial\n" in first.stdout
    second = tasker("migrate", DATABASE_URL=empty_database_url)
    assert (second.returncode, second.stdout) == (0, "the schema is up to date\n")
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("select count(*) from tasker.tasks").fetchone() == (0,)


def test_migrate_without_a_database_says_so() -> None:
    ran = tasker("migrate")
    assert ran.returncode == 1
    assert ran.stderr == "error: DATABASE_URL is not set: give the connection string of the Postgres database\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", "--keep"), "Error: --keep goes with --run"),
        (("dev", "--namespace", "x"), "Error: --namespace goes with --run"),
        (("dev", "--port", "0"), "Invalid value for '--port'"),
        (("dev", "--run", "x", "--kubeconfig", "/nowhere"), "Invalid value for '--kubeconfig'"),
        (("dev", "--run", "x", "--timeout", "0"), "Invalid value for '--timeout'"),
    ],
)
def test_wrong_usage_is_told_and_starts_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = tasker(*arguments, "--data", str(tmp_path / "data"))
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_run_starts_nothing(tmp_path: Path) -> None:
    ran = tasker("dev", "--run", str(tmp_path / "nowhere"), "--data", str(tmp_path / "data"))
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {tmp_path / 'nowhere'}: there is no such folder")
    assert not (tmp_path / "data").exists()


def test_commands_for_a_database_do_without_the_embedded_cluster() -> None:
    # An operator's image has only the base dependencies.
    cluster = "{'devcluster', 'tasker_dev', 'rich'}"
    code = f"import sys; import tasker.cli.main; print(*(name for name in sys.modules if name in {cluster}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "\n"
