"""The three distributions, built from this checkout and each installed into an empty environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasker_worker import __version__

ROOT = Path(__file__).parents[3]
FOLDERS = {"tasker-worker": "worker_image", "tasker": ".", "tasker-devcluster": "operator/devcluster"}
EXPECTED = ROOT / "tests" / "data" / "distributions"
"""A list for each: the names of all that it brings. Whoever adds one there has thought of its licence and size."""

IMPORT_ALL = """
import importlib, pkgutil, sys
import tasker
for module in pkgutil.walk_packages(tasker.__path__, "tasker."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("devcluster", "tasker_dev", "rich")))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip; that of the tests installs into it."""

    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.folder,
            env={},
        )

    def names(self) -> list[str]:
        """Of the distributions in it."""
        code = "import importlib.metadata as m; print(*(each.name for each in m.distributions()))"
        return sorted({canonicalize_name(name) for name in self.run("python", "-c", code).stdout.split()})


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the three wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--no-deps", f"--wheel-dir={folder}", *(str(ROOT / each) for each in FOLDERS.values()))
    return folder


@pytest.fixture(scope="module")
def install(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Gives the environment of a distribution: of it and what it brings. Made once."""
    made: dict[str, Environment] = {}

    def install(name: str) -> Environment:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "env"
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
            target = str(folder / "bin" / "python")
            pip("--python", target, "install", "--no-compile", f"--find-links={wheels}", f"{name}=={__version__}")
            made[name] = Environment(folder)
        return made[name]

    return install


def files_of(wheels: Path, name: str) -> set[str]:
    """The files that a wheel installs, without what describes it."""
    [wheel] = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {file for file in archive.namelist() if ".dist-info/" not in file}


def test_no_file_is_in_two_distributions(wheels: Path) -> None:
    worker, server, cluster = (files_of(wheels, name) for name in FOLDERS)
    assert {file.partition("/")[0] for file in worker} == {"tasker_worker"}
    assert {file.partition("/")[0] for file in server} == {"tasker"}
    assert {file.partition("/")[0] for file in cluster} == {"devcluster", "tasker_dev"}


def test_what_a_package_reads_is_packed_with_it(wheels: Path) -> None:
    worker, server, cluster = (files_of(wheels, name) for name in FOLDERS)
    assert {"tasker_worker/py.typed", "tasker_worker/sql/worker.sql"} <= worker
    assert {"tasker/py.typed", "tasker/engine/sql/schema.sql", "tasker/crds/tasks.yaml"} <= server
    assert {"devcluster/apiserver/storage.sql", "devcluster/machinery/builtin_schemas.json"} <= cluster


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_distribution_brings_what_is_listed_and_no_more(install: Callable[[str], Environment], name: str) -> None:
    expected = {canonicalize_name(line) for line in (EXPECTED / f"{name}.txt").read_text().split()}
    assert set(install(name).names()) == expected


@pytest.mark.timeout(600)
def test_every_module_of_the_server_imports_without_the_embedded_cluster(
    install: Callable[[str], Environment],
) -> None:
    ran = install("tasker").run("python", "-c", IMPORT_ALL)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


@pytest.mark.timeout(600)
def test_without_the_embedded_cluster_tasker_dev_is_listed_and_says_what_to_install(
    install: Callable[[str], Environment],
) -> None:
    server = install("tasker")
    listed = server.run("tasker", "--help").stdout
    assert "  dev      Run a development cluster on this machine (not installed)." in listed
    for arguments in ((), ("--help",), ("--run", "examples/01-linear", "--keep")):
        ran = server.run("tasker", "dev", *arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == "error: `tasker dev` is not installed: pip install tasker-devcluster\n"


@pytest.mark.timeout(600)
def test_with_it_tasker_finds_the_command(install: Callable[[str], Environment]) -> None:
    cluster = install("tasker-devcluster")
    assert "(not installed)" not in cluster.run("tasker", "--help").stdout
    ran = cluster.run("tasker", "dev", "--help")
    assert ran.returncode == 0
    assert "Run a development cluster on this machine: database, API server, node and operator." in " ".join(
        ran.stdout.split()
    )


def test_they_ask_for_each_other_in_the_one_version_that_there_is() -> None:
    asked = {}
    for folder in FOLDERS.values():
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for requirement in map(Requirement, project["dependencies"]):
            if requirement.name in FOLDERS:
                asked[project["name"], requirement.name] = str(requirement.specifier)
    assert asked == {
        ("tasker", "tasker-worker"): f"=={__version__}",
        ("tasker-devcluster", "tasker"): f"=={__version__}",
    }
