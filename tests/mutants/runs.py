"""Plants mutants and runs the tests that can see them, on several copies of the tree at once.

Each lane has a copy and a database server of its own and works on one mutant at a time. A template database is named
after the SQL that made it (``support.postgres``), so a mutant of SQL gets one of its own, dropped afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql

from mutants.coverage_map import CoverageMap
from mutants.results import Verdict
from mutants.sampling import Mutant
from mutants.scratch import Scratch
from mutants.selection import choose_process_tests, choose_tests
from support.postgres import FAST_SETTINGS, SERVER_VARIABLE, running_server

START_SECONDS = 60.0
FACTOR = 5.0
"""The time limit of a run: what may pass before its first test, and this for each second of the tests."""
SERVER_SETTINGS = {**FAST_SETTINGS, "track_functions": "all"}

Ended = Literal["passed", "failed", "timeout"]


class Lane:
    """A copy of the tree and a database server."""

    def __init__(self, scratch: Scratch, server_url: str, folder: Path) -> None:
        self.scratch = scratch
        self._url = server_url
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._clean: set[str] = set()

    @property
    def environment(self) -> dict[str, str]:
        """What every run of pytest gets beside the caller's own environment."""
        tests = str(self.scratch.folder / "tests")
        hypothesis = str(self._folder / "hypothesis")
        return {SERVER_VARIABLE: self._url, "PYTHONPATH": tests, "HYPOTHESIS_STORAGE_DIRECTORY": hypothesis}

    def loads(self, mutant: Mutant) -> bool:
        """Whether the database takes the mutant at all: what it refuses to load shows nothing about the tests."""
        if "/queries/" in mutant.site.path or not mutant.is_sql or "/tasker/" not in mutant.site.path:
            return True
        name = f"loads_{mutant.key}"
        script = f"import asyncio; from tasker.factory import migrate; asyncio.run(migrate({self._database(name)!r}))"
        with self._database_made(name), self.scratch.planted(mutant.files(self.scratch.folder)):
            done = subprocess.run([self.scratch.python, "-c", script], capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def judge(self, mutant: Mutant, coverage: CoverageMap) -> Verdict:
        """Plants the mutant and runs its tests until one fails."""
        began = time.monotonic()
        chosen = choose_tests(mutant, coverage, self.scratch.folder), choose_process_tests(mutant, coverage)
        self._note_databases()
        run = 0
        ended: Ended = "passed"
        with self.scratch.planted(mutant.files(self.scratch.folder)):
            for tests in filter(None, chosen):
                run += len(tests)
                ended = self._pytest(tests)
                if ended != "passed":
                    break
        self._drop_databases()
        by = "" if ended == "passed" else self._failed_test() if ended == "failed" else ended
        return Verdict.of(mutant, killed=ended != "passed", by=by, tests=run, seconds=time.monotonic() - began)

    def _pytest(self, tests: Mapping[str, float]) -> Ended:
        order = self._folder / "order.json"
        order.write_text(json.dumps(tests))
        files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
        command = [str(self.scratch.python), "-m", "pytest", "-q", "-x", "-p", "mutants.plugin", "-p", "no:randomly"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--hypothesis-seed=0"]
        command += [f"--basetemp={self._folder / 'tmp'}", f"--mutants-order={order}", *files]
        with self._log.open("wb") as log:
            # A session of its own: whatever the tests have started ends with it.
            self._process = subprocess.Popen(
                command,
                cwd=self.scratch.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            code = self._process.wait(START_SECONDS + FACTOR * sum(tests.values()))
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            self.end_tests()
        return "passed" if code == 0 else "failed"

    def end_tests(self) -> None:
        """Ends the run of pytest that is under way, if one is."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "pytest.log"

    def _failed_test(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return named[0].split(" - ")[0].partition(" ")[2] if named else (lines[-1] if lines else "")

    def _database(self, name: str) -> str:
        return self._url.replace("/postgres?", f"/{name}?")

    @contextmanager
    def _database_made(self, name: str) -> Iterator[None]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
            try:
                yield
            finally:
                connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def _databases(self) -> set[str]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            return {str(name) for (name,) in connection.execute("select datname from pg_database")}

    def _note_databases(self) -> None:
        self._clean = self._databases()

    def _drop_databases(self) -> None:
        """Those that a killed run has left, and the template with the fault in it."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            for name in self._databases() - self._clean:
                connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@contextmanager
def lanes(count: int) -> Iterator[list[Lane]]:
    """`count` copies with a server each; gone afterwards, with all that was started in them."""
    with ExitStack() as stack:
        made: list[Lane] = []
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True)))
        for number in range(count):
            folder = base / str(number)
            server = stack.enter_context(running_server(folder, SERVER_SETTINGS))
            lane = Lane(Scratch(folder / "tree"), server.url("postgres"), folder)
            stack.callback(lane.end_tests)
            made.append(lane)
        yield made


def judge_all(
    lanes: Sequence[Lane], mutants: Sequence[Mutant], coverage: CoverageMap, done: Callable[[Verdict], None]
) -> None:
    """Judges all mutants, each on the lane that is free; `done` is called from the caller's thread.

    Mutants are taken and verdicts given on the caller's thread; only `Lane.judge` runs in another.
    """
    asyncio.run(_judge_all(lanes, mutants, coverage, done))


async def _judge_all(
    lanes: Sequence[Lane], mutants: Sequence[Mutant], coverage: CoverageMap, done: Callable[[Verdict], None]
) -> None:
    waiting = iter(mutants)

    async def work(lane: Lane) -> None:
        for mutant in waiting:  # taken on the loop's thread alone
            done(await asyncio.to_thread(lane.judge, mutant, coverage))

    try:
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(work(lane))
    finally:
        for lane in lanes:
            lane.end_tests()
