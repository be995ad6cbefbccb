"""Verdicts: kept in a file so that a run can go on where it was stopped, and reported with the reasons of survivors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mutants.sampling import Mutant

SURVIVORS = Path(__file__).with_name("survivors.toml")
"""Reasons of survivors, found by path and changed lines: an array ``survivor`` of path, before, after, reason."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a mutant."""

    key: str
    path: str
    line: int
    operator: str
    before: str
    after: str
    killed: bool
    by: str
    """The test that failed, or how the run ended; empty for a survivor."""
    tests: int
    """How many tests were to be run, until one failed."""
    seconds: float

    @classmethod
    def of(cls, mutant: Mutant, *, killed: bool, by: str, tests: int, seconds: float) -> Verdict:
        site, (before, after) = mutant.site, mutant.changed
        return cls(
            key=mutant.key,
            path=site.path,
            line=site.line,
            operator=site.operator,
            before=before,
            after=after,
            killed=killed,
            by=by,
            tests=tests,
            seconds=round(seconds, 1),
        )


class Results:
    """The verdicts of one tree, seed and size, in a file of a line each that is written as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        # A line that was cut when the run was stopped counts as not written.
        whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
        self.verdicts = {verdict.key: verdict for verdict in (Verdict(**json.loads(line)) for line in whole)}
        file.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def add(self, verdict: Verdict) -> None:
        """Notes one more verdict, on the disk too."""
        self.verdicts[verdict.key] = verdict
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(verdict)) + "\n")


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a mutant may survive."""

    path: str
    before: str
    after: str
    reason: str


def read_reasons(file: Path = SURVIVORS) -> list[Reason]:
    """The checked-in list."""
    listed = tomllib.loads(file.read_text(encoding="utf-8")).get("survivor", [])
    return [Reason(**{name: text.strip() for name, text in each.items()}) for each in listed]


def reason_of(verdict: Verdict, reasons: Iterable[Reason]) -> str | None:
    """The reason that is listed for a survivor: its path and both of its texts must be the listed ones."""
    wanted = (verdict.path, verdict.before, verdict.after)
    return next((each.reason for each in reasons if (each.path, each.before, each.after) == wanted), None)


def report(verdicts: Iterable[Verdict], reasons: list[Reason]) -> str:
    """All survivors with their change and reason, then the count and the rate, in which a reason changes nothing."""
    judged = list(verdicts)
    survivors = sorted((each for each in judged if not each.killed), key=lambda each: (each.path, each.line))
    parts = [_paragraph(each, reason_of(each, reasons)) for each in survivors]
    unexplained = sum(reason_of(each, reasons) is None for each in survivors)
    rate = len(survivors) / max(len(judged), 1)
    seconds = sum(each.seconds for each in judged) / max(len(judged), 1)
    parts.append(
        f"{len(judged)} mutants, {len(survivors)} survived ({rate:.1%}), {unexplained} of them without a reason; "
        f"{seconds:.1f} s each"
    )
    return "\n".join(parts)


def _paragraph(verdict: Verdict, reason: str | None) -> str:
    lines = [f"{verdict.path}:{verdict.line}: {verdict.operator} ({verdict.tests} tests)"]
    lines += [f"  - {line}" for line in verdict.before.splitlines()]
    lines += [f"  + {line}" for line in verdict.after.splitlines()]
    lines.append(f"  reason: {reason}" if reason else f"  no reason in {SURVIVORS.name}")
    return "\n".join(lines) + "\n"
