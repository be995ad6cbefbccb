"""The command `tasker`: what it says and which exit code it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tasker_worker import __version__


def tasker(*arguments: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "KUBECONFIG"}}
    return subprocess.run(
        [sys.executable, "-m", "tasker", *arguments],
        env={**clean, **environment},
        input=answer,
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
    assert "applied 0001_before_deploy_schema\n" in first.stdout
    second = tasker("migrate", DATABASE_URL=empty_database_url)
    assert (second.returncode, second.stdout) == (0, "the schema is up to date\n")
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("select count(*) from tasker.tasks").fetchone() == (0,)


def test_migrate_without_a_database_says_so() -> None:
    ran = tasker("migrate")
    assert ran.returncode == 1
    assert ran.stderr == "error: DATABASE_URL is not set: give the connection string of the Postgres database\n"


def test_adopting_a_database_asks_first_and_tells_what_comes_of_it(database_url: str) -> None:
    def owner() -> str | None:
        with psycopg.connect(database_url) as connection:
            row = connection.execute("select id from tasker.installation()").fetchone()
        return None if row is None else str(row[0])

    first = tasker("system", "adopt", "prod/tasker@1", DATABASE_URL=database_url)
    assert (first.returncode, owner()) == (0, "prod/tasker@1"), "nobody's: there is nothing to ask"
    asked = tasker("system", "adopt", "test/tasker@2", DATABASE_URL=database_url, answer="n\n")
    assert (asked.returncode, owner()) == (1, "prod/tasker@1")
    assert "The database belongs to prod/tasker@1 since " in asked.stdout
    assert "cancels every run whose Task is not in its own cluster" in asked.stdout
    taken = tasker("system", "adopt", "test/tasker@2", DATABASE_URL=database_url, answer="y\n")
    assert (taken.returncode, owner()) == (0, "test/tasker@2")
    told = tasker("system", "adopt", "--yes", "prod/tasker@1", DATABASE_URL=database_url)
    assert told.stdout == "the database is that of prod/tasker@1 now; its operator goes on by itself\n"
    again = tasker("system", "adopt", "prod/tasker@1", DATABASE_URL=database_url)
    assert (again.returncode, again.stdout) == (0, "the database is that of prod/tasker@1 already\n")


def test_adopting_has_its_help() -> None:
    ran = tasker("system", "adopt", "--help")
    assert ran.returncode == 0
    assert "bring the resources first" in " ".join(ran.stdout.split())


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
