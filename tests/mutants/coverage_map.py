"""Which test runs which line of the product and which function of the database; recorded once for each tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutants.scratch import Scratch
from mutants.suites import ALL_PROCESS_SUITES, LEFT_OUT, RINGS


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What one test does. Tests that fail without any fault planted are not in the map."""

    seconds: float
    lines: Mapping[str, frozenset[int]] = field(repr=False)
    functions: frozenset[str] = field(repr=False)
    database: bool
    """Whether it has a database to work with."""


@dataclass(frozen=True, kw_only=True)
class CoverageMap:
    """Tests by their names, and those that failed or were skipped on the clean tree."""

    tests: Mapping[str, Noted]
    unusable: Sequence[str]

    @property
    def functions(self) -> frozenset[str]:
        """All functions that any test was seen to call. Postgres counts none that it pastes into the caller's plan."""
        return frozenset().union(*(noted.functions for noted in self.tests.values()))


def record(scratch: Scratch, folder: Path, environment: Mapping[str, str], processes: int) -> None:
    """Runs the tests on a clean copy and leaves their notes in `folder`. Raises ``RuntimeError`` when none ran."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rings = [ring for ring in (*RINGS, *ALL_PROCESS_SUITES) if (scratch.folder / ring).exists()]
    command = [
        scratch.python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "mutants.plugin",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-n", str(processes), "--dist", "loadscope", f"--mutants-record={folder}", *rings]
    command += [f"--ignore={each}" for each in LEFT_OUT]
    with (folder / "pytest.log").open("wb") as log:
        subprocess.run(
            [str(part) for part in command],
            cwd=scratch.folder,
            env={**os.environ, **environment, "COVERAGE_CORE": "ctrace"},
            stdout=log,
            stderr=log,
            timeout=1800,
            check=False,
        )
    if not list(folder.glob("*.json")):
        raise RuntimeError(f"no test ran; see {folder / 'pytest.log'}")


def load(folder: Path) -> CoverageMap:
    """What `record` has left in a folder."""
    tests: dict[str, Noted] = {}
    unusable: list[str] = []
    for file in sorted(folder.glob("*.json")):
        for name, noted in json.loads(file.read_text()).items():
            if not noted["passed"]:
                unusable.append(name)
                continue
            tests[name] = Noted(
                seconds=noted.get("seconds", 1.0),
                lines={path: frozenset(lines) for path, lines in noted["lines"].items()},
                functions=frozenset(noted["functions"]),
                database=noted["database"],
            )
    return CoverageMap(tests=tests, unusable=sorted(unusable))
