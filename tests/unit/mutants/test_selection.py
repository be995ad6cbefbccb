"""Which tests run for a mutant: those that run its line or its function, quick ones first, within a budget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mutants.coverage_map import CoverageMap, Noted
from mutants.sampling import Mutant
from mutants.selection import BUDGET_SECONDS, PROCESS_BUDGET_SECONDS, choose_process_tests, choose_tests
from mutants.site import Site
from mutants.suites import PROCESS_SUITES

PYTHON = "LIMIT = 5\n\n\ndef f(a=1):\n    return a < LIMIT\n\n\ndef g():\n    return 2\n"
SQL = "create or replace function tasker.f()\nlimit 1\n$$;\ncreate or replace function tasker.g()\nlimit 2\n"


def noted(seconds: float, lines: Iterable[int] = (), functions: Iterable[str] = ()) -> Noted:
    return Noted(
        seconds=seconds,
        lines={"p/x.py": frozenset(lines)} if lines else {},
        functions=frozenset(functions),
        database=bool(functions),
    )


def mutant(path: str, text: str, line: int) -> Mutant:
    site = Site(path=path, line=line, end_line=line, operator="any", place=0)
    return Mutant(site=site, before=text, after=text + " ")


COVERAGE = CoverageMap(
    tests={
        "slow_f": noted(2.0, [5], ["f"]),
        "quick_f": noted(0.1, [5], ["f", "g"]),
        "g": noted(0.5, [9], ["g"]),
        "neither": noted(0.1),
        "endless": noted(BUDGET_SECONDS, [5]),
    },
    unusable=[],
)


def test_tests_that_run_the_line_quick_ones_first_until_the_budget_is_spent() -> None:
    assert list(choose_tests(mutant("p/x.py", PYTHON, 5), COVERAGE)) == ["quick_f", "slow_f"]
    assert list(choose_tests(mutant("p/x.py", PYTHON, 9), COVERAGE)) == ["g"]


def test_what_runs_at_import_is_seen_by_all_that_use_the_file() -> None:
    for line in (1, 4):
        assert list(choose_tests(mutant("p/x.py", PYTHON, line), COVERAGE)) == ["quick_f", "g", "slow_f"]


def test_what_runs_at_import_is_seen_by_tests_whose_file_imports_the_module(tmp_path: Path) -> None:
    """A constant, or a model's field, is used without a line of its file being run."""
    imports = {
        "test_whole.py": "import pack.limits\n",
        "test_name.py": "from pack.limits import LIMIT\n",
        "test_module.py": "from pack import limits\n",
        "test_other.py": "from pack import other\n",
    }
    for name, text in imports.items():
        (tmp_path / name).write_text(text)
    coverage = CoverageMap(tests={f"{name}::test": noted(0.1) for name in imports}, unusable=[])
    chosen = choose_tests(mutant("x/src/pack/limits.py", "LIMIT = 5\n", 1), coverage, tmp_path)
    assert list(chosen) == ["test_module.py::test", "test_name.py::test", "test_whole.py::test"]


def test_a_file_that_no_test_enters_is_seen_by_those_of_its_package() -> None:
    assert list(choose_tests(mutant("p/constants.py", "LIMIT = 5\n", 1), COVERAGE)) == ["quick_f", "g", "slow_f"]


def test_a_function_of_the_database_is_seen_by_the_tests_that_call_it() -> None:
    assert list(choose_tests(mutant("p/x.sql", SQL, 5), COVERAGE)) == ["quick_f", "g"]


def test_a_function_that_is_never_counted_and_a_table_are_seen_by_all_tests_with_a_database() -> None:
    inlined = SQL.replace("tasker.g", "tasker.inlined")
    assert list(choose_tests(mutant("p/x.sql", inlined, 5), COVERAGE)) == ["quick_f", "g", "slow_f"]
    assert list(choose_tests(mutant("p/0001.sql", "create table a ();\n", 1), COVERAGE)) == ["quick_f", "g", "slow_f"]


def test_a_view_is_seen_by_a_test_with_a_database_that_calls_no_function() -> None:
    reads = Noted(seconds=0.2, lines={}, functions=frozenset(), database=True)
    coverage = CoverageMap(
        tests={"reads": reads, "calls": noted(0.1, functions=["f"]), "neither": noted(0.1)}, unusable=[]
    )
    assert list(choose_tests(mutant("p/x.sql", "create view tasker.v as select 1;\n", 1), coverage)) == [
        "calls",
        "reads",
    ]


def test_tests_that_run_processes_come_apart_in_the_order_of_their_suites_as_many_as_fit() -> None:
    suites = PROCESS_SUITES["worker_image/src/tasker_worker"]
    names = [
        f"{suites[1]}::quick",
        f"{suites[0]}/test_x.py::slow",
        f"{suites[0]}/test_x.py::quick",
        f"{suites[1]}::long",
    ]
    seconds = [0.1, 20.0, 1.0, PROCESS_BUDGET_SECONDS]
    tests = {name: noted(each, [1]) for name, each in zip(names, seconds, strict=True)}
    coverage = CoverageMap(tests=tests, unusable=[])
    worker = mutant("worker_image/src/tasker_worker/x.py", "A = 1\n", 1)
    assert list(choose_process_tests(worker, coverage)) == [names[2], names[1], names[0]]
    assert choose_process_tests(mutant("elsewhere/x.py", "A = 1\n", 1), coverage) == {}
    assert choose_tests(worker, coverage) == {}
