"""What the distributions say of the newest Python is so: their own tests run with it, on the Debian that brings it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from support.images import RELEASES, ROOT, TRIXIE, Images, missing_tools
from support.tests_inside import PYTHON, TestsInside

REASON = missing_tools(TRIXIE)
pytestmark = [pytest.mark.images, pytest.mark.timeout(1800)]

SUITES = ("tests/unit/worker", "tests/unit/model", "tests/integration/worker", "tests/integration/engine")
SPEED = "tests/integration/engine/test_large_template.py"
"""Holds promised seconds, on the machine itself; left out here, where something else may be built meanwhile."""


def test_the_releases_have_the_oldest_and_the_newest_python_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    assert [release.python for release in RELEASES] == [declared[0], declared[-1]]


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_workers_and_the_engines_tests_pass(tmp_path: Path) -> None:
    images = Images(TRIXIE)
    images.make_base()
    inside = TestsInside(images)
    checkout = tmp_path / "checkout"
    inside.set_up(checkout)
    code, version = inside.run([PYTHON, "-V"], checkout, timeout=60)
    assert (code, version.rpartition(".")[0]) == (0, f"Python {TRIXIE.python}")
    assert (ROOT / SPEED).exists()
    command = [PYTHON, "-m", "pytest", "-q", "-n", "2", "--dist", "loadscope", f"--ignore={SPEED}", *SUITES]
    code, output = inside.run(command, checkout, timeout=900)
    assert code == 0, output[-8000:]
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) > 500, output
