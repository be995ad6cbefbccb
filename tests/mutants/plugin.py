"""What a run of pytest on behalf of ``mutants`` does differently. Loaded with ``-p mutants.plugin``, never otherwise.

``--mutants-record FOLDER``: notes for each test how long it took, whether it passed, which lines of the product it ran
in this process (in whatever thread) and which functions of its database it called; one file a process.
``--mutants-order FILE``: runs the tests that the file lists (a JSON object of seconds by test), in its order, each with
a time limit that follows from its seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

from mutants.called import CalledFunctions
from mutants.sources import PACKAGES
from mutants.suites import runs_processes

FLOOR_SECONDS = 30.0
"""Time limit of a test that took no time at all; most waits of the tests end within 10 s."""
PROCESS_FLOOR_SECONDS = 90.0
"""The same of a test that may be the first to need a cluster."""
FACTOR = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutants-record", default=None)
    parser.addoption("--mutants-order", default=None)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--mutants-record"):
        config.pluginmanager.register(Recorder(config.rootpath, Path(config.getoption("--mutants-record"))), "recorder")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--mutants-order"):
        return
    seconds: dict[str, float] = json.loads(Path(config.getoption("--mutants-order")).read_text())
    found = {item.nodeid: item for item in items}
    items[:] = [found[name] for name in seconds if name in found]
    for item in items:
        floor = PROCESS_FLOOR_SECONDS if runs_processes(item.nodeid) else FLOOR_SECONDS
        item.add_marker(pytest.mark.timeout(floor + FACTOR * seconds[item.nodeid]), append=False)


def _fixtures(item: pytest.Item) -> list[str]:
    """All that a test uses, also by way of others."""
    return item.fixturenames if isinstance(item, pytest.Function) else []


class Recorder:
    """Listens to one process's run."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._test = ""
        self._tests: dict[str, dict[str, Any]] = {}
        self._functions: dict[str, set[str]] = defaultdict(set)
        self._called = CalledFunctions()
        sources = [f"{root}/{package}/*" for package in PACKAGES]
        self._coverage = coverage.Coverage(data_file=None, include=sources, messages=False)
        self._coverage.start()

    def _watch_databases(self) -> None:
        # Imported here: pytest wants to be the first who imports the plugins that tests/conftest.py names.
        from support.postgres import TestServer

        recorder, create, drop = self, TestServer.create, TestServer.drop

        def create_and_watch(self: TestServer, dbname: str, template: str | None = None) -> str:
            url = create(self, dbname, template)
            if not runs_processes(recorder._test):  # what they leave running would go on calling in other tests' time
                recorder._called.watch(self.url(dbname))
            return url

        def record_and_drop(self: TestServer, dbname: str) -> None:
            recorder._functions[recorder._test] |= recorder._called.forget(self.url(dbname))
            drop(self, dbname)

        TestServer.create = create_and_watch  # type: ignore[method-assign]
        TestServer.drop = record_and_drop  # type: ignore[method-assign]

    def pytest_sessionstart(self) -> None:
        self._watch_databases()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._test = item.nodeid
        # Whoever has a database has it from this fixture.
        self._tests.setdefault(item.nodeid, {"passed": False})["database"] = "postgres_server" in _fixtures(item)
        self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self._tests.setdefault(item.nodeid, {"passed": False})["seconds"] = round(time.monotonic() - began, 3)
            # The test's own databases are gone; those that tests share are still there.
            self._functions[item.nodeid] |= self._called.look()
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        noted = self._tests.setdefault(report.nodeid, {"passed": False})
        if report.when == "call":
            noted["passed"] = report.passed
        elif report.failed:
            noted["passed"] = False

    def pytest_unconfigure(self) -> None:
        self._coverage.stop()
        if not self._tests:
            return
        data = self._coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for file in data.measured_files():
            path = Path(file).relative_to(self._root).as_posix()
            for line, names in data.contexts_by_lineno(file).items():
                for name in filter(None, names):
                    lines[name][path].append(line)
        whole = {
            name: noted | {"lines": lines.get(name, {}), "functions": sorted(self._functions.get(name, ()))}
            for name, noted in self._tests.items()
        }
        (self._folder / f"{os.getpid()}.json").write_text(json.dumps(whole))
