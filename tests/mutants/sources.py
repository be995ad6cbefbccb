"""Which files are mutated."""

from __future__ import annotations

from pathlib import Path

from support import checkout

ROOT = checkout.ROOT

PACKAGES = (
    "operator/src/tasker/engine",
    "operator/src/tasker/controller",
    "worker_image/src/tasker_worker",
)
"""Folders below the root; one that is not there is passed over."""

WHOLE_SCHEMA = "schema.sql"
"""What the migrations add up to. It is never executed by the product, so faults are planted in the migrations and the
same line of this file follows, lest the test that holds the two together kill every mutant of a table."""


def source_files(root: Path = ROOT) -> list[str]:
    """Paths of all Python and SQL files that are mutated, relative to the root, sorted."""
    found = [
        file.relative_to(root).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.sql")
        for file in (root / package).rglob(pattern)
    ]
    return sorted(path for path in found if not path.endswith(f"/{WHOLE_SCHEMA}"))
