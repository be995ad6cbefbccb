"""The same tree and seed give the same mutants; a fault of a table is in the migration and in the whole schema."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from mutants.sampling import Mutant, shuffled_mutants
from mutants.sources import PACKAGES, source_files

TABLE = "create table a (\n    b integer check (b > 0)\n);\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one Python file, one migration and the schema that it adds up to."""
    package = tmp_path / PACKAGES[0]
    (package / "sql" / "migrations").mkdir(parents=True)
    (package / "calls.py").write_text("def f(a):\n    return a < 1 or a > 5\n")
    (package / "sql" / "migrations" / "0001.sql").write_text("begin;\n" + TABLE)
    (package / "sql" / "schema.sql").write_text("-- All.\n\n" + TABLE)
    return tmp_path


def first(tree: Path, seed: int) -> list[Mutant]:
    return list(islice(shuffled_mutants(seed, tree), 6))


def test_the_seed_decides_the_mutants_and_their_order(tree: Path) -> None:
    assert [each.key for each in first(tree, 7)] == [each.key for each in first(tree, 7)]
    assert [each.key for each in first(tree, 7)] != [each.key for each in first(tree, 8)]


def test_every_mutant_has_a_key_of_its_own(tree: Path) -> None:
    everything = list(shuffled_mutants(1, tree))
    assert len({each.key for each in everything}) == len(everything) > 8


def test_the_whole_schema_is_no_source_and_follows_its_migration(tree: Path) -> None:
    assert [path for path in source_files(tree) if "schema" in path] == []
    for mutant in shuffled_mutants(1, tree, only="0001.sql"):
        files = mutant.files(tree)
        [schema] = [text for path, text in files.items() if path.endswith("schema.sql")]
        assert schema == "-- All.\n\n" + mutant.after.removeprefix("begin;\n")


def test_a_mutant_tells_its_changed_lines() -> None:
    [mutant] = [
        each
        for each in shuffled_mutants(1, only="keyed_queue")
        if each.site.operator == "ReplaceComparisonOperator_Lt_LtE"
    ][:1]
    before, after = mutant.changed
    assert "<" in before
    assert before.replace("<", "<=", 1) == after
