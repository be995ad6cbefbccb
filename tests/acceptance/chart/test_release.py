"""Install, upgrade and uninstall with the real helm against the embedded API server, as far as that one goes.

It has no Jobs and no StatefulSets, so hooks are left out here; a cluster proves those.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.apiserver import ApiServer
from devcluster.kubectl import find_kubectl
from support.helm import CHARTS, Helm, HelmError

README = CHARTS / "tasker" / "README.md"
DEFINITIONS = ["tasks.tasker.dev", "tasktemplates.tasker.dev", "workerpools.tasker.dev"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A cluster and the two programs that people use on it."""

    helm: Helm
    kubeconfig: Path

    async def kubectl(self, *arguments: str) -> str:
        command = [str(find_kubectl()), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        return str(done.stdout)

    async def run_helm(self, *arguments: str) -> str:
        namespaced = (*arguments, "--namespace", "tasker-system")
        return await asyncio.to_thread(self.helm.run, *namespaced, kubeconfig=self.kubeconfig)

    async def objects(self, kinds: str, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(await self.kubectl("get", kinds, *options, "--output=json"))["items"]
        return found


@pytest.fixture
async def target(helm: Helm, tmp_path: Path) -> AsyncIterator[Target]:
    async with ApiServer(tmp_path / "apiserver") as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        yield Target(helm=helm, kubeconfig=tmp_path / "kubeconfig")


async def test_a_release_comes_changes_and_goes_and_keeps_the_definitions(target: Target) -> None:
    chart = (str(CHARTS / "tasker"), "--no-hooks", "--set", "database.existingSecret=postgres")
    await target.run_helm("install", "tasker", *chart, "--create-namespace")
    [deployment] = await target.objects("deployments", "--all-namespaces")
    assert (deployment["metadata"]["namespace"], deployment["metadata"]["name"]) == ("tasker-system", "tasker")

    await target.run_helm("upgrade", "tasker", *chart, "--set", "logLevel=debug,crds.keep=true")
    [deployment] = await target.objects("deployments", "--all-namespaces")
    assert {"name": "TASKER_LOG", "value": "debug"} in deployment["spec"]["template"]["spec"]["containers"][0]["env"]

    await target.run_helm("uninstall", "tasker", "--no-hooks")
    left = await target.objects("deployments,services,networkpolicies,secrets,configmaps", "--all-namespaces")
    assert [each["metadata"]["name"] for each in left] == []
    definitions = await target.objects("customresourcedefinitions")
    assert sorted(each["metadata"]["name"] for each in definitions) == DEFINITIONS
    # The API server's own, which waits for the resources of the kind; none is ours.
    finalizers = {name for each in definitions for name in each["metadata"].get("finalizers", ())}
    assert finalizers <= {"customresourcecleanup.apiextensions.k8s.io"}

    # Installed again under the same name, the release takes the kept definitions back.
    await target.run_helm("install", "tasker", *chart)


async def test_helm_test_tells_of_one_suite(target: Target) -> None:
    chart = (str(CHARTS / "tasker"), "--no-hooks", "--set", "database.existingSecret=postgres")
    await target.run_helm("install", "tasker", *chart, "--create-namespace")
    testing = asyncio.create_task(target.run_helm("test", "tasker", "--timeout", "50s"))
    while await target.objects("pods", "--namespace=tasker-system") == []:
        assert not testing.done(), await testing
    # In place of a node.
    ended = '{"status": {"phase": "Succeeded", "containerStatuses": []}}'
    pod = ("patch", "pod", "tasker-test", "--namespace=tasker-system", "--subresource=status")
    await target.kubectl(*pod, "--type=merge", f"--patch={ended}")
    told = await testing
    assert re.findall(r"TEST SUITE: +(\S+)", told) == ["tasker-test"]
    assert "Succeeded" in told


RENDERED_ONLY = {"docker", "exec", "logs"}
"""Words of commands that need a registry, or pods that run: those are not asked of the embedded API server."""


async def test_the_commands_of_the_readme_do_what_they_say(target: Target, tmp_path: Path) -> None:
    """In order, as somebody would type them: install, a failed install, what to do then, and to be rid of it all.

    The programs are the real ones, with what this cluster cannot do left out: hooks (there are no Jobs) and waiting.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs / "kubectl", find_kubectl(), 'set -- "${@/--watch/--output=name}"')
    write_program(
        programs / "helm", target.helm.program, 'case $1 in install) set -- "$@" --no-hooks;; test) exit 0;; esac'
    )
    (tmp_path / "handlers.py").write_text("")
    for name in ("charts", "examples"):
        (tmp_path / name).symlink_to(CHARTS.parent / name)
    environment = {
        **target.helm.environment(target.kubeconfig),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    commands = [command for block in shell_blocks() for command in block]
    ran = [command for command in commands if not RENDERED_ONLY & set(shlex.split(command))]
    assert len(ran) >= 11 and len(commands) - len(ran) == 6, commands
    for command in ran:
        if command == "helm uninstall tasker --namespace tasker-system --no-hooks":
            await fail_an_install(target)
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert await target.objects("customresourcedefinitions") == []
    assert "tasker-system" not in [each["metadata"]["name"] for each in await target.objects("namespaces")]


async def fail_an_install(target: Target) -> None:
    """The release that is there is put to where helm leaves one that it was stopped in: noted as going on."""
    release = "sh.helm.release.v1.tasker.v1"
    await target.run_helm("uninstall", "tasker", "--no-hooks")
    chart = (str(CHARTS / "tasker"), "--set", "database.existingSecret=x")
    with pytest.raises(HelmError, match="failed pre-install"):
        await target.run_helm("install", "tasker", *chart)
    with pytest.raises(HelmError, match="cannot reuse a name that is still in use"):
        await target.run_helm("install", "tasker", *chart)
    secrets = [each["metadata"]["name"] for each in await target.objects("secrets", "--namespace=tasker-system")]
    assert release in secrets


async def test_definitions_that_were_applied_by_hand_are_taken_over_as_the_readme_says(target: Target) -> None:
    assert "`--take-ownership`" in README.read_text()
    await target.kubectl("apply", "-f", str(CHARTS.parent / "crds"))
    chart = (str(CHARTS / "tasker"), "--no-hooks", "--create-namespace", "--set", "database.existingSecret=postgres")
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        await target.run_helm("install", "tasker", *chart)
    await target.run_helm("install", "tasker", *chart, "--take-ownership")


def write_program(path: Path, program: Path, before: str) -> None:
    path.write_text(f'#!/bin/bash\n{before}\nexec {shlex.quote(str(program))} "$@"\n')
    path.chmod(0o755)


def shell_blocks() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [block.splitlines() for block in blocks]


async def test_definitions_managed_apart_stay_out_of_the_release(target: Target) -> None:
    await target.run_helm("install", "tasker-crds", str(CHARTS / "tasker-crds"), "--create-namespace")
    values = "database.existingSecret=postgres,crds.enabled=false"
    await target.run_helm("install", "tasker", str(CHARTS / "tasker"), "--no-hooks", "--set", values)
    owners = {
        each["metadata"]["annotations"]["meta.helm.sh/release-name"]
        for each in await target.objects("customresourcedefinitions")
    }
    assert owners == {"tasker-crds"}


async def test_both_ways_of_applying_work_on_the_charts_definitions(target: Target) -> None:
    folder = str(CHARTS.parent / "crds")
    await target.kubectl("apply", "-f", folder)
    await target.kubectl("apply", "--server-side", "--force-conflicts", "-f", folder)
    definitions = await target.objects("customresourcedefinitions")
    assert sorted(each["metadata"]["name"] for each in definitions) == DEFINITIONS


async def test_a_made_password_stays_the_same_when_the_release_is_upgraded(target: Target, tmp_path: Path) -> None:
    await target.kubectl("create", "namespace", "tasker-system")
    password = "--from-literal=POSTGRES_PASSWORD=first-password"
    secret = ["create", "secret", "generic", "tasker-postgresql", password]
    await target.kubectl("--namespace=tasker-system", *secret)
    owned = ("secret/tasker-postgresql", "--namespace=tasker-system")
    await target.kubectl("label", *owned, "app.kubernetes.io/managed-by=Helm")
    release = ("meta.helm.sh/release-name=tasker", "meta.helm.sh/release-namespace=tasker-system")
    await target.kubectl("annotate", *owned, *release)
    chart = str(without_stateful_sets(tmp_path))
    options = ("--dry-run=server", "--set", "postgresql.enabled=true")
    rendered = await target.run_helm("template", "tasker", chart, *options)
    assert 'POSTGRES_PASSWORD: "first-password"' in rendered
    assert "postgresql://tasker:first-password@" in rendered


def without_stateful_sets(folder: Path) -> Path:
    """The chart for a cluster that does not know the kind, for which helm would refuse to render."""
    chart = folder / "tasker"
    shutil.copytree(CHARTS / "tasker", chart)
    template = chart / "templates" / "postgresql.yaml"
    template.write_text(template.read_text().replace("kind: StatefulSet", "kind: Deployment"))
    return chart
