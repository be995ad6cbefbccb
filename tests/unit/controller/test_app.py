"""How the operator process waits at its start and how it ends: with which code, and what it says last."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.controller_fakes import ControllerKit, FakeEngine
from support.fake_cluster import FakeCluster
from support.virtual_time import run_in_virtual_time, settle, virtual_now
from tasker.controller import app
from tasker.controller.assembly import assemble
from tasker.controller.kube.client import Cluster, ClusterError
from tasker.controller.runtime.health import Health
from tasker.controller.runtime.loops import ChangeReader
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import Loop
from tasker.controller.runtime.supervision import Part, Supervisor, Waiter
from tasker.controller.runtime.termination import ExitCode, Signals
from tasker.engine import Engine
from tasker.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from tasker.settings import DatabaseSettings, OperatorSettings

Operate = Callable[[Supervisor, Signals], Awaitable[None]]


@pytest.fixture
def last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The termination log of a process whose settings are right."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setenv("TASKER_TERMINATION_LOG", str(file))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(app, "configure_logging", lambda *_: None)
    return file


@pytest.fixture
def operate_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operate], None]:
    """Puts another operator in the place of the whole one; what `main` does about its end stays."""

    def replace(operate: Operate) -> None:
        async def instead(
            _: DatabaseSettings, __: OperatorSettings, ___: OperatorMetrics, supervisor: Supervisor, signals: Signals
        ) -> None:
            await operate(supervisor, signals)

        monkeypatch.setattr(app, "_operate", instead)
        monkeypatch.setattr(app, "end_in_any_case", lambda *_: None)

    return replace


async def for_ever() -> None:
    await asyncio.Event().wait()


async def end_at_once() -> None:
    return


def kill_ourselves() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def kopf_keeps_its_level() -> Any:
    level = logging.getLogger("kopf").level
    yield
    logging.getLogger("kopf").setLevel(level)


async def operate_until_told(supervisor: Supervisor, signals: Signals) -> None:
    kill_ourselves()
    await supervisor.run([Waiter("part", for_ever)])


async def a_part_ends(supervisor: Supervisor, signals: Signals) -> None:
    await supervisor.run([Waiter("part", end_at_once)])


async def a_part_ends_and_then_a_signal_comes(supervisor: Supervisor, signals: Signals) -> None:
    async def slow_to_end() -> None:
        try:
            await for_ever()
        finally:
            kill_ourselves()
            await asyncio.sleep(60)

    await supervisor.run([Waiter("slow", slow_to_end), Waiter("part", end_at_once)])


async def something_cancels_it(supervisor: Supervisor, signals: Signals) -> None:
    raise asyncio.CancelledError


async def an_error_that_nobody_foresaw(supervisor: Supervisor, signals: Signals) -> None:
    raise KeyError("spec")


async def a_library_exits(supervisor: Supervisor, signals: Signals) -> None:
    raise SystemExit(0)


async def a_setting_is_wrong(supervisor: Supervisor, signals: Signals) -> None:
    raise ConfigurationError("there is no cluster to go to")


ENDED = "part 'part' ended by itself"


@pytest.mark.parametrize(
    ("operate", "code", "reason"),
    [
        (operate_until_told, ExitCode.STOPPED, ""),
        (a_part_ends, ExitCode.BREAKDOWN, ENDED),
        (a_part_ends_and_then_a_signal_comes, ExitCode.BREAKDOWN, ENDED),
        (something_cancels_it, ExitCode.BREAKDOWN, "the operator was cancelled, and by no signal"),
        (an_error_that_nobody_foresaw, ExitCode.UNEXPECTED, "KeyError: 'spec'"),
        (a_library_exits, ExitCode.UNEXPECTED, "SystemExit: 0"),
        (a_setting_is_wrong, ExitCode.CONFIGURATION, "there is no cluster to go to"),
    ],
)
def test_every_end_has_its_code_and_its_reason(
    operate: Operate,
    code: ExitCode,
    reason: str,
    last_words: Path,
    operate_as: Callable[[Operate], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    operate_as(operate)
    assert app.main() == code
    assert last_words.read_text() == reason
    if code in (ExitCode.BREAKDOWN, ExitCode.UNEXPECTED):
        last = caplog.records[-1]
        assert last.levelno == logging.CRITICAL
        assert last.getMessage() == f"the operator ends with exit code {code:d}: {reason}"
        assert bool(last.exc_info) == (code == ExitCode.UNEXPECTED)
    else:
        assert not [record for record in caplog.records if record.levelno == logging.CRITICAL]
    expected = f"tasker operator: {reason}\n" if code == ExitCode.CONFIGURATION else ""
    assert capsys.readouterr().err == expected


def test_a_setting_that_cannot_be_used_is_in_the_termination_log_too(
    last_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKER_SCALE_SECONDS", "never")
    assert app.main() == 2
    assert last_words.read_text() == "TASKER_SCALE_SECONDS='never' is not a number above 0"


def test_the_codes_are_those_that_people_rely_on() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "STOPPED": 0,
        "UNEXPECTED": 1,
        "CONFIGURATION": 2,
        "BREAKDOWN": 3,
    }


def test_the_log_is_what_the_settings_say(
    last_words: Path, operate_as: Callable[[Operate], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    operate_as(a_part_ends)
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "configure_logging", lambda level, kind: configured.append((level, kind)))
    monkeypatch.setenv("TASKER_LOG", "warning")
    monkeypatch.setenv("TASKER_LOG_FORMAT", "text")
    app.main()
    assert configured == [("warning", "text")]


def test_the_end_in_any_case_is_set_up_with_the_first_fault(
    last_words: Path, operate_as: Callable[[Operate], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    operate_as(a_part_ends)
    ends: list[tuple[Path, str]] = []
    monkeypatch.setattr(app, "end_in_any_case", lambda file, reason: ends.append((file, reason)))
    app.main()
    assert ends == [(last_words, ENDED)]


# Waiting at the start.


def wait_until(*outcomes: Exception | str) -> tuple[str, list[float], list[str | None]]:
    """The result of an attempt with these outcomes, when it was tried, and what the probe said after each try."""

    async def main() -> tuple[str, list[float], list[str | None]]:
        left, times, shown = list(outcomes), list[float](), list[str | None]()
        health, start = Health(lambda: None), virtual_now()

        async def attempt() -> str:
            if times:
                shown.append(health.obstacle())
            times.append(round(virtual_now() - start, 3))
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return await app._until(attempt, "the database", health), times, shown

    return run_in_virtual_time(main)


def test_it_waits_ever_longer_up_to_ten_seconds_and_says_each_cause_once(caplog: pytest.LogCaptureFixture) -> None:
    away = StoreUnavailable("no route")
    behind = SchemaMismatch("the schema is behind")
    with caplog.at_level(logging.WARNING, "tasker"):
        result, times, shown = wait_until(*[away] * 6, behind, behind, away, ClusterError("refused"), "there")
    assert result == "there"
    pauses = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    no_route = "no route; waiting for the database"
    assert [record.getMessage() for record in caplog.records] == [
        no_route,
        "the schema is behind; waiting for the migration",
        no_route,
        "refused; waiting for the database",
    ]
    assert shown[0] == f"waiting for the database: {no_route}"
    assert shown[6] == "waiting for the database: the schema is behind; waiting for the migration"


def test_what_is_no_absence_is_not_waited_for() -> None:
    with pytest.raises(KeyError):
        wait_until(KeyError("a bug"), "never")


def test_a_database_that_is_silent_for_longer_than_some_rounds_makes_it_not_ready() -> None:
    def obstacle(of_engine: str | None, lag_seconds: float) -> str | None:
        engine, changes = SimpleNamespace(obstacle=of_engine), SimpleNamespace(lag_seconds=lambda: lag_seconds)
        return app.database_obstacle(cast("Engine", engine), cast("ChangeReader", changes))

    assert obstacle(None, 15.0) is None
    assert obstacle(None, 15.1) == "the database"
    assert obstacle("it takes no writes", 0.0) == "the database: it takes no writes"


@pytest.mark.parametrize("then", [None, StoreUnavailable("away")], ids=["there", "away"])
def test_a_cancellation_that_the_attempt_swallowed_ends_the_wait(then: Exception | None) -> None:
    async def main() -> None:
        async def attempt() -> str:
            try:
                await for_ever()
            except asyncio.CancelledError:
                if then is not None:
                    raise then from None
            return "there"

        task = asyncio.create_task(app._until(attempt, "the database", Health(lambda: None)))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_in_virtual_time(main)


# The parts.


async def supervised_parts(**settings: Any) -> dict[str, Part]:
    cluster, engine = cast("Cluster", FakeCluster()), cast("Engine", FakeEngine())
    made = OperatorSettings(**{"worker_image": "tasker-worker:1", "worker_database_url": "postgresql:///x", **settings})
    metrics = OperatorMetrics()
    parts = assemble(cluster, engine, made, metrics)
    return {part.name: part for part in app._supervised(parts, engine, made, metrics, Signals())}


async def test_all_that_runs_for_ever_is_supervised() -> None:
    assert list(await supervised_parts()) == [
        "queue TaskTemplate",
        "queue Task",
        "queue WorkerPool",
        "queue Namespace",
        "queue origin",
        "queue Pod",
        "changes",
        "scaling",
        "sweep",
        "resync",
        "unoffered",
        "hints",
        "events",
        "watches",
        "installation",
    ]


async def test_the_loops_have_the_periods_of_the_settings() -> None:
    parts = await supervised_parts(change_seconds=2.0, scale_seconds=3.0, sweep_seconds=4.0, resync_seconds=50.0)
    longest = {name: part.progress().allowed_seconds for name, part in parts.items() if isinstance(part, Loop)}
    assert longest == {"changes": 122.0, "scaling": 123.0, "sweep": 124.0, "resync": 950.0, "unoffered": 125.0}


def test_the_sweeps_of_many_operators_are_spread_and_the_first_resync_is_a_period_away() -> None:
    """A resync has just been when the loops begin."""

    async def main() -> None:
        first_rounds: dict[str, list[float]] = {"sweep": [], "resync": []}
        for _ in range(10):
            parts = await supervised_parts(sweep_seconds=4.0, resync_seconds=50.0)
            for name, times in first_rounds.items():
                loop = parts[name]
                assert isinstance(loop, Loop)
                times.append(await first_round(loop))
        assert first_rounds["resync"] == pytest.approx([50.0] * 10)
        assert len(set(first_rounds["sweep"])) == 10
        assert all(0 <= seconds <= 4 for seconds in first_rounds["sweep"])

    async def first_round(loop: Loop) -> float:
        start, done = virtual_now(), asyncio.Event()

        async def once() -> None:
            done.set()

        loop._once = once
        task = asyncio.create_task(loop.run())
        await done.wait()
        task.cancel()
        return round(virtual_now() - start, 6)

    run_in_virtual_time(main)


@pytest.mark.parametrize("fails_at", ["spawn_tasks", "run_tasks"])
async def test_what_kopf_has_connected_is_closed_however_early_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    closed: list[str] = []

    class RecordingVault:
        async def close(self) -> None:
            closed.append("closed")

    vaults: list[object] = []

    async def spawn_tasks(**options: Any) -> list[asyncio.Task[None]]:
        vaults.append(options["vault"])
        if fails_at == "spawn_tasks":
            raise asyncio.CancelledError
        return []

    async def run_tasks(tasks: object, *, ignored: object) -> None:
        assert closed == []
        raise asyncio.CancelledError

    monkeypatch.setattr(app, "Vault", RecordingVault)
    monkeypatch.setattr("kopf.spawn_tasks", spawn_tasks)
    monkeypatch.setattr("kopf.run_tasks", run_tasks)
    signals = SimpleNamespace(handle=lambda: None)
    parts = SimpleNamespace(router=ControllerKit().router)
    settings = OperatorSettings(worker_image="tasker-worker:1", worker_database_url="postgresql:///x")
    with pytest.raises(asyncio.CancelledError):
        await app._watch(cast("Any", parts), settings, cast("Signals", signals))
    assert closed == ["closed"]
    assert [type(vault) for vault in vaults] == [RecordingVault]
