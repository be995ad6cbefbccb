"""The tests that can see a mutant, quick ones first."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mutants.coverage_map import CoverageMap
from mutants.sampling import Mutant
from mutants.sources import ROOT, source_files
from mutants.sql_sites import enclosing_name
from mutants.suites import PROCESS_SUITES, runs_processes

BUDGET_SECONDS = 90.0
"""Of tests in their own process for one mutant, as they take on the clean tree; the slowest are left out beyond it."""

PROCESS_BUDGET_SECONDS = 60.0
"""The same of tests that run processes; starting what they share is not counted."""


def choose_tests(mutant: Mutant, coverage: CoverageMap, root: Path = ROOT) -> dict[str, float]:
    """Names and seconds of the tests in their own process that can see the mutant, in the order to run them."""
    if mutant.is_sql:
        found = _tests_of_sql(mutant, coverage, root)
    else:
        found = _tests_of_python(mutant, coverage, root)
    found = {name for name in found if not runs_processes(name)}
    return _within(BUDGET_SECONDS, sorted(found, key=lambda name: (coverage.tests[name].seconds, name)), coverage)


def choose_process_tests(mutant: Mutant, coverage: CoverageMap) -> dict[str, float]:
    """The same of tests that run the mutant's package in processes: suite by suite, in each the quick ones first."""
    package = max((each for each in PROCESS_SUITES if mutant.site.path.startswith(each)), key=len, default="")
    ordered = [
        name
        for suite in PROCESS_SUITES.get(package, ())
        for name in sorted(coverage.tests, key=lambda name: (coverage.tests[name].seconds, name))
        if name.startswith(suite)
    ]
    return _within(PROCESS_BUDGET_SECONDS, ordered, coverage)


def _within(budget: float, ordered: Iterable[str], coverage: CoverageMap) -> dict[str, float]:
    """As many of the tests as fit, those that do not are passed over; a first one in any case."""
    chosen: dict[str, float] = {}
    for name in ordered:
        seconds = coverage.tests[name].seconds
        if not chosen or sum(chosen.values()) + seconds <= budget:
            chosen[name] = seconds
    return chosen


def _tests_of_python(mutant: Mutant, coverage: CoverageMap, root: Path) -> set[str]:
    site = mutant.site
    if not _is_in_function(mutant.before, site.line):
        # Runs when the module is imported, whoever does it first: all that use the file or import it (constants and
        # models are used without a line of the file being run), and else its package's tests.
        using = {name for name, noted in coverage.tests.items() if site.path in noted.lines}
        using |= {name for name in coverage.tests if _module_of(site.path) in _imports(root, name.partition("::")[0])}
        return using or _tests_of_package(site.path, coverage)
    return _tests_of_lines(coverage, site.path, range(site.line, site.end_line + 1))


def _module_of(path: str) -> str:
    return path.partition("/src/")[2].removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def _imports(root: Path, path: str) -> frozenset[str]:
    """The modules that a test's file imports, whole or a name of theirs."""
    found: set[str] = set()
    if not (root / path).is_file():
        return frozenset()
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return frozenset(found)


def _tests_of_lines(coverage: CoverageMap, path: str, lines: Iterable[int]) -> set[str]:
    wanted = frozenset(lines)
    return {name for name, noted in coverage.tests.items() if wanted & noted.lines.get(path, frozenset())}


def _tests_of_package(path: str, coverage: CoverageMap) -> set[str]:
    folder = path.rpartition("/")[0]
    return {
        name for name, noted in coverage.tests.items() if any(each.startswith(f"{folder}/") for each in noted.lines)
    }


def _tests_of_sql(mutant: Mutant, coverage: CoverageMap, root: Path) -> set[str]:
    name = enclosing_name(mutant.before, mutant.site.line)
    with_database = {test for test, noted in coverage.tests.items() if noted.database}
    if name is None:
        return with_database
    if name in coverage.functions:
        return {test for test, noted in coverage.tests.items() if name in noted.functions}
    found: set[str] = set()
    for path, line in _mentions(name, root):
        found |= _tests_of_lines(coverage, path, [line])
    return found or with_database


@cache
def _mentions(name: str, root: Path) -> list[tuple[str, int]]:
    """Lines of Python source that have the name of a query in quotes."""
    return [
        (path, number)
        for path in source_files(root)
        if path.endswith(".py")
        for number, line in enumerate((root / path).read_text(encoding="utf-8").splitlines(), start=1)
        if f'"{name}"' in line
    ]


def _is_in_function(source: str, line: int) -> bool:
    """Whether a line is in the body of a function: not its decorators, defaults or annotations."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.body[0].lineno <= line <= node.end_lineno:
                return True
    return False
