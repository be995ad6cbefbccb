"""The pod of `helm test`: its program as rendered, run as a process against a real API server (the embedded one)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from devcluster.apiserver import ApiServer
from devcluster.kubectl import find_kubectl
from support.chart import find, render
from support.definitions import CRD_FOLDER
from support.helm import Helm


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An API server, and the check's command as it stands in the rendered pod."""

    server: ApiServer
    kubeconfig: Path
    account: Path
    command: list[str]

    async def kubectl(self, *arguments: str, given: str | None = None) -> None:
        command = [str(find_kubectl()), f"--kubeconfig={self.kubeconfig}", *arguments]
        await asyncio.to_thread(subprocess.run, command, input=given, text=True, check=True, capture_output=True)

    async def run(self, *, patience: float) -> tuple[int, list[str]]:
        """Exit code and printed lines."""
        address = urlsplit(self.server.url)
        environment = os.environ | {
            "KUBERNETES_SERVICE_HOST": str(address.hostname),
            "KUBERNETES_SERVICE_PORT": str(address.port),
            "SERVICE_ACCOUNT_FOLDER": str(self.account),
            "PATIENCE_SECONDS": str(patience),
        }
        command = [sys.executable, *self.command[1:]]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
async def checked(helm: Helm, tmp_path: Path) -> AsyncIterator[Checked]:
    pod = find(render(helm, "own-database"), "Pod", "tasker-test")
    async with ApiServer(tmp_path / "apiserver") as server:
        account = tmp_path / "account"
        account.mkdir()
        (account / "token").write_text(server.token)
        (account / "ca.crt").write_bytes(server.authority)
        server.write_kubeconfig(tmp_path / "kubeconfig")
        command = pod["spec"]["containers"][0]["command"]
        yield Checked(server=server, kubeconfig=tmp_path / "kubeconfig", account=account, command=command)


def deployment(helm: Helm) -> dict[str, Any]:
    return find(render(helm, "own-database"), "Deployment", "tasker")


async def test_it_says_what_is_missing(checked: Checked) -> None:
    code, lines = await checked.run(patience=0)
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == [
        "the definition tasktemplates.tasker.dev cannot be read",
        "the definition tasks.tasker.dev cannot be read",
        "the definition workerpools.tasker.dev cannot be read",
        "the operator's Deployment cannot be read",
    ]


async def test_it_waits_until_the_operator_is_ready(helm: Helm, checked: Checked) -> None:
    await checked.kubectl("create", "namespace", "tasker-system")
    await checked.kubectl("apply", "-f", str(CRD_FOLDER))
    await checked.kubectl("apply", "-f", "-", given=yaml.safe_dump(deployment(helm)))
    code, lines = await checked.run(patience=0)
    assert code == 1
    assert lines == ["the operator is not ready: kubectl -n tasker-system logs deployment/tasker"]

    waiting = asyncio.create_task(checked.run(patience=30))
    ready = '{"status": {"observedGeneration": 1, "conditions": [{"type": "Available", "status": "True"}]}}'
    patch = ["patch", "deployment", "tasker", "--subresource=status", "--type=merge", "--patch", ready]
    await checked.kubectl("--namespace=tasker-system", *patch)
    assert await waiting == (0, ["the custom resources are served and the operator is ready"])
