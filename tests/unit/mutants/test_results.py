"""Verdicts outlive the run that was stopped; survivors are told with their reasons and count all the same."""

from __future__ import annotations

from pathlib import Path

from mutants.results import Reason, Results, Verdict, read_reasons, report


def verdict(key: str, *, killed: bool) -> Verdict:
    return Verdict(
        key=key,
        path="a/b.py",
        line=3,
        operator="AddNot",
        before=f"if {key}:",
        after=f"if not {key}:",
        killed=killed,
        by="tests/x.py::y" if killed else "",
        tests=4,
        seconds=2.0,
    )


def test_a_run_goes_on_where_it_was_stopped_even_in_the_middle_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    first = Results(file)
    first.add(verdict("one", killed=True))
    first.add(verdict("two", killed=False))
    text = file.read_text()
    file.write_text(text[:-20])
    again = Results(file)
    assert set(again.verdicts) == {"one"}
    again.add(verdict("two", killed=False))
    assert file.read_text() == text


def test_a_survivor_with_a_reason_is_explained_and_still_counted() -> None:
    reasons = [Reason(path="a/b.py", before="if two:", after="if not two:", reason="Equal in effect.")]
    told = report([verdict("one", killed=True), verdict("two", killed=False), verdict("three", killed=False)], reasons)
    assert "a/b.py:3: AddNot (4 tests)\n  - if two:\n  + if not two:\n  reason: Equal in effect.\n" in told
    assert "  + if not three:\n  no reason in survivors.toml\n" in told
    assert told.endswith("3 mutants, 2 survived (66.7%), 1 of them without a reason; 2.0 s each")


def test_the_checked_in_list_can_be_read_and_says_why() -> None:
    assert all(each.reason and each.path for each in read_reasons())
