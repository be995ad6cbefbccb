"""Every command of the README works as it stands there, and prints what the README shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.console_blocks import Command, Shell, difference, read_blocks, read_commands
from support.dev_session import ROOT, Dev, clean_environment, processes_of
from support.waiting import PATIENCE, eventually

README = ROOT / "README.md"
REAL_CLUSTER = "## On a real cluster"


def commands(*, real_cluster: bool) -> list[Command]:
    """The README's commands for this machine, or those of the section on real clusters."""
    lines = README.read_text(encoding="utf-8").splitlines()
    border = next(number for number, line in enumerate(lines, start=1) if line.startswith(REAL_CLUSTER))
    found = [command for command in read_commands(README) if (command.line > border) is real_cluster]
    assert len(found) > 3, "the README's commands are no longer found"
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The checkout as a clone would be after set-up, with a `.tasker` of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in {"crds", "examples"}:
            shutil.copytree(entry, folder / entry.name)  # kubectl does not look into a linked folder
        elif entry.name not in {".tasker", ".venv", ".git"}:
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".ready").touch()
    for block in read_blocks(README):
        match block.language:
            case "python":
                (folder / "handlers.py").write_text(block.text)
            case "yaml":
                (folder / "shop.yaml").write_text(block.text)
    return folder


def test_the_commands_for_this_machine_work_as_shown(checkout: Path) -> None:
    shell = Shell(checkout, clean_environment(), README.name)
    background: Dev | None = None
    try:
        for command in commands(real_cluster=False):
            if command.text != "make dev":
                shell.run(command)
                continue
            background = Dev(checkout / ".tasker", command=["make", "dev"], cwd=checkout)
            background.await_ready()
            missing = difference(command.output, background.output)
            assert missing is None, f"make dev does not print {missing!r}:\n{background.output}"
        assert background is not None, "the README no longer says `make dev`"
        background.interrupt()
        background.await_no_process(timeout=5)
    finally:
        if background is not None:
            background.kill()


@pytest.fixture
def bare_cluster(tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a cluster that does not have the product."""
    folder = tmp_path / "cluster"
    script = ROOT / "tests" / "support" / "bare_cluster.py"
    with subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip())
        process.terminate()
    assert processes_of(folder) == {}


def test_the_commands_for_a_real_cluster_work_as_shown(
    checkout: Path, bare_cluster: Path, empty_database_url: str
) -> None:
    shell = Shell(checkout, clean_environment(), README.name)
    shell.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{shell.environment['PATH']}"
    shell.environment |= {"TASKER_HEALTH_PORT": "0"}
    in_place_of = {"KUBECONFIG": str(bare_cluster), "DATABASE_URL": empty_database_url}
    operator: subprocess.Popen[bytes] | None = None
    log = checkout / "operator.log"
    try:
        for command in commands(real_cluster=True):
            export = re.match(r"export (\w+)=", command.text)
            if export is not None:
                shell.environment[export[1]] = in_place_of.pop(export[1])
            elif command.text == "python -m tasker.controller":
                with log.open("wb") as output:
                    operator = subprocess.Popen(
                        [sys.executable, *command.text.split()[1:]],
                        env=shell.environment,
                        cwd=checkout,
                        stdout=output,
                        stderr=output,
                    )
                eventually(lambda: "is running" in log.read_text(), timeout=30, what="the operator runs")
            else:
                shell.run(command)
        assert operator is not None, "the README no longer starts the operator"
        assert in_place_of == {}
        operator.terminate()
        assert operator.wait(timeout=10 * PATIENCE) == 0, log.read_text()
    finally:
        if operator is not None and operator.poll() is None:
            operator.kill()
            operator.wait()
