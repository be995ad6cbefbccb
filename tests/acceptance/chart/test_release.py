"""Install, upgrade and uninstall with the real helm against the embedded API server, as far as that one goes.

It has no Jobs and no StatefulSets, so hooks are left out here; a cluster proves those.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.apiserver import ApiServer
from devcluster.kubectl import find_kubectl
from support.helm import CHARTS, Helm

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
