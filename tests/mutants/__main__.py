"""The command behind ``make mutants``: a seeded sample of mutants, judged by the tests that can see them."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import signal
import sys
import time
from itertools import islice
from pathlib import Path

from mutants.coverage_map import CoverageMap, load, record
from mutants.results import Results, Verdict, read_reasons, report
from mutants.runs import Lane, judge_all, lanes
from mutants.sampling import Mutant, shuffled_mutants
from mutants.sources import ROOT
from support.checkout import tracked_files

FOLDER = ROOT / ".tasker" / "mutants"


def main() -> int:
    """0 when at most ``--at-most`` percent survive, 1 otherwise."""
    options = _options()
    # What was started is ended as with Ctrl-C, which a shell keeps from processes in the background.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}, {options.count} mutants (again: make mutants SEED={seed} COUNT={options.count})", flush=True)
    if options.list:
        for mutant in islice(shuffled_mutants(seed, only=options.only), options.count):
            print(f"{mutant.key} {mutant.site.path}:{mutant.site.line} {mutant.site.operator}\n{_body(mutant)}")
        return 0
    tree = tree_checksum()
    only = options.only.replace("/", "_")
    results = Results(FOLDER / f"{tree}-{seed}{'-' if only else ''}{only}.jsonl")
    with lanes(options.processes) as made:
        coverage = _coverage(made[0], FOLDER / f"map-{tree}", options.processes)
        chosen = _sample(made[0], seed, options.count, options.only)
        waiting = [mutant for mutant in chosen if mutant.key not in results.verdicts]
        progress = _Progress(results, len(chosen), len(waiting))
        judge_all(made, waiting, coverage, progress.note)
    judged = [results.verdicts[mutant.key] for mutant in chosen]
    print(f"\n{report(judged, read_reasons())}\nall verdicts: {results.file.relative_to(ROOT)}")
    survived = sum(not verdict.killed for verdict in judged)
    return int(100 * survived > options.at_most * len(judged))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the sample; a random one, printed, when left out")
    parser.add_argument("--count", type=int, default=200, help="how many mutants to plant (%(default)s)")
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--processes", type=int, default=2, help="copies that are worked on at once (%(default)s)")
    parser.add_argument("--at-most", type=float, default=8.0, help="percent that may survive (%(default)s)")
    parser.add_argument("--list", action="store_true", help="show the sample and plant nothing")
    return parser.parse_args()


def tree_checksum(root: Path = ROOT) -> str:
    """Of everything that a verdict depends on: the source, the tests and what is installed for them."""
    digest = hashlib.sha256()
    for name in tracked_files(root):
        if name.startswith(("operator/", "worker_image/", "tests/", "crds/")) or name == "pyproject.toml":
            if name.endswith(".md") or "/mutants/" in name:
                continue
            digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()[:12]


def _coverage(lane: Lane, folder: Path, processes: int) -> CoverageMap:
    if not list(folder.glob("*.json")):
        print("recording which test runs what (once for each tree, some minutes)", flush=True)
        partial = folder.with_name(f"{folder.name}.partial")
        record(lane.scratch, partial, lane.environment, processes)
        partial.rename(folder)
    coverage = load(folder)
    print(
        f"{len(coverage.tests)} tests know the product; {len(coverage.unusable)} were skipped or failed without a fault"
    )
    for name in coverage.unusable:
        print(f"  left out: {name}")
    return coverage


def _sample(lane: Lane, seed: int, count: int, only: str) -> list[Mutant]:
    """The first `count` mutants of the seed's order that load."""
    # Of the copy: somebody may go on working on the checkout.
    mutants = shuffled_mutants(seed, lane.scratch.folder, only)
    return list(islice((mutant for mutant in mutants if lane.loads(mutant)), count))


def _body(mutant: Mutant) -> str:
    return "\n".join(f"  {line}" for line in mutant.diff().splitlines()[2:])


class _Progress:
    """One line that is written over: how many, how many survived, how long each takes and all will."""

    def __init__(self, results: Results, total: int, waiting: int) -> None:
        self._results = results
        self._total = total
        self._left = waiting
        self._began = time.monotonic()
        self._judged = 0
        self._survived = 0

    def note(self, verdict: Verdict) -> None:
        self._results.add(verdict)
        self._judged += 1
        self._left -= 1
        self._survived += not verdict.killed
        each = (time.monotonic() - self._began) / self._judged
        line = (
            f"{self._total - self._left}/{self._total}, {self._survived} survived, {each:.1f} s a mutant, "
            f"{each * self._left / 60:.0f} min left"
        )
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
