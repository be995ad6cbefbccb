"""The README's tests pass and its commands work as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.console_blocks import Shell, difference, read_blocks, read_commands
from support.waiting import PATIENCE

README = Path(__file__).parents[3] / "README.md"
SERVERS = ("python -m devcluster.apiserver ", "python -m devcluster.node ")
ELSEWHERE = ("pip install ",)
"""tests/acceptance/distributions installs it."""


def test_the_tests_in_it_pass(tmp_path: Path) -> None:
    blocks = [block.text for block in read_blocks(README) if block.language == "python"]
    assert len(blocks) == 2, "the README's tests are no longer found"
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", "."]
    own = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}  # pytest and nothing else, as at a reader's
    environment = {**os.environ, **own}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    """What is put into it is ended, the last one first."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in reversed(started):
        process.terminate()
        process.communicate(timeout=20 * PATIENCE)
        assert process.returncode == 0


def test_its_commands_work_as_shown(tmp_path: Path, servers: list[subprocess.Popen[str]]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "DATABASE_URL")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KUBECACHEDIR": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    shell = Shell(tmp_path, environment, README.name)
    commands = read_commands(README)
    assert len(commands) > 8, "the README's commands are no longer found"
    for command in commands:
        if command.text.startswith(SERVERS):
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command.text}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
            )
            servers.append(process)
            assert process.stdout is not None
            printed = "".join(process.stdout.readline() for _ in command.output)
            assert difference(command.output, printed) is None, printed
        elif not command.text.startswith(ELSEWHERE):
            shell.run(command)
    assert len(servers) == len(SERVERS)
