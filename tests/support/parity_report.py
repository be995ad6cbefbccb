"""`--parity-report`: after a run, how many rows of the parity checklist hold, and which do not; for ``make parity``.

A row holds when at least one test that carries it passed and none failed. Rows of `tests/parity/not_applicable.md` are
counted apart; there each has its reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "parity"
_ROW = re.compile(r"^\| (\d+) \| ([^|]*) \| ([^|]*) \|")
_PROPERTY = "parity"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One statement of the checklist."""

    area: str
    statement: str


def read_rows(file: Path) -> dict[int, Row]:
    """The rows of a table whose first three columns are number, area and statement (or reason)."""
    found = (_ROW.match(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {int(row[1]): Row(area=row[2].strip(), statement=row[3].strip()) for row in found if row}


def rows_of(item: pytest.Item) -> list[int]:
    return sorted({row for mark in item.iter_markers("parity") for row in mark.args})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-report", action="store_true", help="tell which rows of the parity checklist hold")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--parity-report"):
        config.pluginmanager.register(ParityReport(), "parity-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rows = read_rows(FOLDER / "checklist.md")
    for item in items:
        for row in rows_of(item):
            if row not in rows:
                raise pytest.UsageError(f"{item.nodeid}: the parity checklist has no row {row!r}")
            # Carried by the reports, and so through pytest-xdist as well.
            item.user_properties.append((_PROPERTY, row))


class ParityReport:
    """Listens to the reports of the tests; nothing else needs to know."""

    def __init__(self) -> None:
        self._passed: dict[int, set[str]] = defaultdict(set)
        self._failed: dict[int, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, row in report.user_properties:
            if name != _PROPERTY or not isinstance(row, int):
                continue
            if report.failed:
                self._failed[row].add(report.nodeid)
            elif report.when == "call" and report.passed:
                self._passed[row].add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        rows = read_rows(FOLDER / "checklist.md")
        excused = read_rows(FOLDER / "not_applicable.md")
        holding = {row for row in self._passed if row not in self._failed}
        open_rows = [row for row in rows if row not in holding and row not in excused]
        write = terminalreporter.write_line
        terminalreporter.section("parity")
        for row in open_rows:
            failed = "  (its test failed)" if row in self._failed else ""
            write(f"{row:>4}  {rows[row].area}: {rows[row].statement}{failed}")
        write(
            f"{len(holding)} of {len(rows)} rows have a passing test, {len(excused)} cannot apply, "
            f"{len(open_rows)} are open"
        )
