"""What the chart tells people: its README is up to date, its commands and manifests work, and so do the notes."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from support.chart import MATRIX
from support.definitions import project_kind
from support.helm import CHARTS, Helm

README = CHARTS / "tasker" / "README.md"
GENERATE = CHARTS / "generate.py"


def test_everything_that_is_generated_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_stale_file_is_named(tmp_path: Path) -> None:
    """On a copy: the check must be able to fail."""
    root = tmp_path / "copy"
    for name in ("charts", "crds", "worker_image/src/tasker_worker"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(CHARTS.parent / name), str(root / name)], check=True)
    values = root / "charts" / "tasker" / "values.yaml"
    values.write_text(values.read_text().replace("maxReplicas: 10", "maxReplicas: 11"))
    definition = root / "crds" / "tasks.yaml"
    definition.write_text(definition.read_text().replace("kind: Task\n", "kind: Tusk\n"))
    check = [sys.executable, str(root / "charts" / "generate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "charts/tasker/templates/crds/tasks.yaml: not up to date, run make chart",
        "charts/tasker-crds/templates/tasks.yaml: not up to date, run make chart",
        "charts/tasker/README.md: not up to date, run make chart",
    ]
    subprocess.run(check[:-1], capture_output=True, check=True)
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("chart", ["tasker", "tasker-crds"])
def test_every_value_has_its_text(chart: str) -> None:
    text = (CHARTS / chart / "values.yaml").read_text()
    described = {path for path, *_ in generator().described_values(text)}
    for path in leaves(yaml.safe_load(text), ""):
        above = {".".join(path.split(".")[:length]) for length in range(1, len(path.split(".")) + 1)}
        assert above & described, path


def test_the_commands_of_the_readme_render(helm: Helm) -> None:
    installs = [line for line in blocks("sh") if line.startswith("helm install ")]
    assert installs
    for line in installs:
        arguments = ["template" if word == "install" else word for word in shlex.split(line)[1:]]
        arguments[2] = str(CHARTS.parent / arguments[2])
        assert "kind: Deployment" in helm.run(*arguments)


def test_every_option_of_the_readme_is_taken(helm: Helm) -> None:
    options = re.findall(r"`(--set [^`]+)`", README.read_text())
    assert len(options) >= 5
    for option in options:
        database = () if "postgresql" in option else ("--set", "database.existingSecret=x")
        helm.run("template", "t", str(CHARTS / "tasker"), *database, *shlex.split(option))


def test_the_manifests_of_the_readme_are_valid() -> None:
    manifests = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)]
    assert len(manifests) == 3
    for manifest in manifests:
        manifest["metadata"]["namespace"] = "orders"
        schema = project_kind(manifest["kind"]).schema
        assert schema.unknown_fields(manifest) == []
        assert [str(error) for error in schema.validate(schema.default(manifest))] == []


@pytest.mark.parametrize("name", ["own-database", "bundled-postgres", "some-namespaces", "least"])
def test_the_notes_give_the_next_three_commands(helm: Helm, name: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(MATRIX[name]))
    printed = helm.run(
        *("install", "tasker", str(CHARTS / "tasker"), "--namespace", "prod", "--dry-run=client"),
        *("--values", str(file)),
    )
    notes = printed.partition("NOTES:\n")[2]
    steps = re.findall(r"(?m)^ {2}\d\. .*\n {5}(.*)$", notes)
    assert [step.split()[:2] for step in steps] == [["helm", "test"], ["kubectl", "create"], ["kubectl", "apply"]]
    assert "helm test tasker --namespace prod" in notes
    assert ("for development only" in notes) is (name == "bundled-postgres")
    assert ("serving orders, billing" in notes) is (name == "some-namespaces")
    assert ("tasker-crds" in notes) is (name == "least")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_charts", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language: str) -> list[str]:
    """The lines of the README's blocks in one language."""
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in found for line in block.splitlines()]


def leaves(values: Any, path: str) -> Iterator[str]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path
