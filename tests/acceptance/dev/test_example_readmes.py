"""Every command of an example's README works as it stands there, and prints what is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.console_blocks import Shell, read_commands
from support.dev_session import KUBECTL, ROOT, Dev, clean_environment, running_dev
from support.examples import NAMES, folder_of


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with running_dev(tmp_path_factory.mktemp("dev") / "data") as session:
        yield session


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_an_examples_readme_work_as_shown(dev: Dev, name: str) -> None:
    path = f"{KUBECTL.parent}{os.pathsep}{os.environ['PATH']}"
    shell = Shell(ROOT, clean_environment(KUBECONFIG=str(dev.kubeconfig), PATH=path), f"examples/{name}/README.md")
    commands = read_commands(folder_of(name) / "README.md")
    assert len(commands) > 3, "the README's commands are no longer found"
    for command in commands:
        shell.run(command)
