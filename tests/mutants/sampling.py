"""The seeded sample: the same tree and seed give the same mutants in the same order, on any machine."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mutants.python_sites import plant_python, python_sites
from mutants.site import Site
from mutants.sources import ROOT, WHOLE_SCHEMA, source_files
from mutants.sql_sites import plant_sql, sql_sites


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault that can be planted: the site, and the whole text of the file before and after."""

    site: Site
    before: str
    after: str

    @property
    def changed(self) -> tuple[str, str]:
        """The changed lines before and after, each line stripped: what a reason for a survivor is found by."""
        lines = [line for line in self.diff().splitlines()[2:] if line[:1] in "+-"]
        return tuple("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")  # type: ignore[return-value]

    @property
    def key(self) -> str:
        """Names the mutant as long as its lines stand in this file, wherever in it."""
        before, after = self.changed
        return hashlib.sha256(f"{self.site.path}\n{before}\n{after}\n{self.site.place}".encode()).hexdigest()[:10]

    @property
    def is_sql(self) -> bool:
        return self.site.path.endswith(".sql")

    def diff(self) -> str:
        """A unified diff with no lines of context, file names first."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), self.site.path, self.site.path, n=0, lineterm=""
        )
        return "\n".join(line for line in lines if not line.startswith("@@"))

    def files(self, root: Path) -> dict[str, str]:
        """The texts to write, by path: the file's, and that of the whole schema when a migration is changed."""
        texts = {self.site.path: self.after}
        folder, _, _ = self.site.path.rpartition("/")
        if folder.endswith("/migrations"):
            whole = f"{folder.rpartition('/')[0]}/{WHOLE_SCHEMA}"
            text = (root / whole).read_text(encoding="utf-8")
            texts[whole] = _mirrored(text, self.before, self.after)
        return texts


def _mirrored(text: str, before: str, after: str) -> str:
    """`text` with the change from `before` to `after`, found by the changed lines and as many of the three before them
    as are the same. Raises ``ValueError`` when the lines are not there."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    first = next(place for place, (one, two) in enumerate(zip(old, new, strict=False)) if one != two)
    behind = len(old) - next(
        place for place, (one, two) in enumerate(zip(reversed(old), reversed(new), strict=False)) if one != two
    )
    for start in range(max(first - 3, 0), first + 1):
        there = "".join(old[start:behind])
        if there in text:
            return text.replace(there, "".join(new[start : behind + len(new) - len(old)]), 1)
    raise ValueError(f"the whole schema has no such lines: {''.join(old[first:behind])}")


def all_sites(root: Path = ROOT, only: str = "") -> list[Site]:
    """All places in all files whose path contains `only`."""
    return [site for path in source_files(root) if only in path for site in _sites(path, _text(root, path))]


def shuffled_mutants(seed: int, root: Path = ROOT, only: str = "") -> Iterator[Mutant]:
    """All mutants in the order of the seed; places where an operator makes nothing that differs are passed over."""
    sites = all_sites(root, only)
    random.Random(seed).shuffle(sites)
    for site in sites:
        before = _text(root, site.path)
        after = plant_sql(before, site) if site.path.endswith(".sql") else plant_python(before, site)
        if after is not None and after != before:
            yield Mutant(site=site, before=before, after=after)


def _sites(path: str, text: str) -> list[Site]:
    return sql_sites(path, text) if path.endswith(".sql") else python_sites(path, text)


@cache
def _text(root: Path, path: str) -> str:
    return (root / path).read_text(encoding="utf-8")
