"""The jobs of the operator's loops: which keys changed rows call, what a hint hurries, what a sweep counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest

from support.controller_fakes import ControllerKit, task, template
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime import loops
from tasker.controller.runtime.loops import ChangeReader, listen, sweep
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import Pacer
from tasker.controller.templates.reconcile import COUNTS_SECONDS
from tasker.engine import FINISHED, ChangeCursor
from tasker.engine.changes import ChangeLog, Changes
from tasker.engine.notifications import READY
from tasker.engine.workers import Workers
from tasker.errors import StoreUnavailable

NOW = datetime(2031, 1, 1, tzinfo=UTC)


class FakeChangeLog:
    """The uids that moved since a place, and the places that it was read from."""

    def __init__(self) -> None:
        self.moved: list[frozenset[str]] = []
        self.taken_up = frozenset[str]()
        self.read_from: list[str | None] = []
        self.away = False
        self.place_lost = False

    async def read(self, cursor: ChangeCursor | None) -> Changes:
        if self.away:
            raise StoreUnavailable("away")
        self.read_from.append(None if cursor is None else cursor.snapshot)
        moved = self.taken_up if cursor is None else self.moved.pop(0) if self.moved else frozenset[str]()
        after = ChangeCursor(snapshot=f"t{len(self.read_from)}", timeline=1, at=NOW)
        return Changes(origin_uids=moved, cursor=after, place_lost=self.place_lost)

    async def listen(self) -> AsyncIterator[str]:
        for channel in self.moved:
            yield "".join(channel)


class RecordingQueue:
    def __init__(self) -> None:
        self.added: list[ObjectKey] = []
        self.later: list[tuple[ObjectKey, float]] = []

    def add(self, key: ObjectKey) -> None:
        self.added.append(key)

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        self.later.append((key, seconds))


class RecordingPacer(Pacer):
    def __init__(self) -> None:
        super().__init__(1.0)
        self.hurried = 0

    def hurry(self) -> None:
        self.hurried += 1


class Reading:
    """A change reader on fakes; the one place that knows how it is made."""

    def __init__(self) -> None:
        self.log, self.tasks, self.templates = FakeChangeLog(), RecordingQueue(), RecordingQueue()
        self.kit = ControllerKit()
        self.reader = ChangeReader(
            changes=cast("ChangeLog", self.log),
            tasks=self.kit.caches.tasks,
            task_queue=self.tasks,
            template_queue=self.templates,
            metrics=self.kit.metrics,
        )

        self.resync = RecordingPacer()

    async def read(self) -> None:
        await self.reader.read(self.resync)

    def know(self, name: str, template_name: str) -> str:
        """The uid of a Task that has been seen."""
        self.kit.give(template(template_name))
        manifest = self.kit.give(task(name, templateRef={"name": template_name}))
        self.tasks.added.clear()
        uid: str = manifest["metadata"]["uid"]
        return uid


async def test_moved_runs_call_their_tasks_at_once_and_their_templates_later() -> None:
    reading = Reading()
    first, second = reading.know("one", "order"), reading.know("two", "refund")
    reading.know("still", "order")
    reading.log.moved = [frozenset({first, "deleted, or not seen yet", second})]
    await reading.reader.start()
    await reading.read()
    assert sorted(key.name for key in reading.tasks.added) == ["one", "two"]
    assert sorted((key.name, seconds) for key, seconds in reading.templates.later) == [
        ("order", COUNTS_SECONDS),
        ("refund", COUNTS_SECONDS),
    ]
    assert {key.namespace for key in reading.tasks.added} == {"default"}


async def test_each_read_begins_where_the_last_one_that_succeeded_ended() -> None:
    reading = Reading()
    await reading.reader.start()
    await reading.read()
    reading.log.away = True
    with pytest.raises(StoreUnavailable):
        await reading.read()
    reading.log.away = False
    await reading.read()
    assert reading.log.read_from == [None, "t1", "t2"]


async def test_the_lag_grows_until_a_read_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(loops, "time", SimpleNamespace(monotonic=lambda: now))
    reading = Reading()
    await reading.reader.start()
    now = 107.0
    assert reading.reader.lag_seconds() == 7.0
    reading.log.away = True
    with pytest.raises(StoreUnavailable):
        await reading.read()
    sample = reading.kit.metrics.registry.get_sample_value
    assert sample("tasker_operator_change_lag_seconds") == 7.0
    reading.log.away = False
    await reading.read()
    assert sample("tasker_operator_change_lag_seconds") == 0.0


@pytest.mark.parametrize(("channel", "hurried"), [(READY, ["changes", "scaling"]), (FINISHED, ["changes"])])
async def test_an_announcement_hurries_those_whom_it_is_for(channel: str, hurried: list[str]) -> None:
    changes, scaling = RecordingPacer(), RecordingPacer()
    reading = Reading()
    reading.log.moved = [frozenset({channel})]
    await listen(cast("ChangeLog", reading.log), changes=changes, scaling=scaling)
    assert {"changes": changes.hurried, "scaling": scaling.hurried} == {
        name: int(name in hurried) for name in ("changes", "scaling")
    }


async def test_when_another_server_has_taken_over_all_is_compared_anew_and_what_moved_is_not_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading = Reading()
    uid = reading.know("one", "order")
    await reading.reader.start()
    await reading.read()
    assert reading.resync.hurried == 0
    reading.log.place_lost = True
    reading.log.moved = [frozenset({uid})]
    await reading.read()
    assert reading.resync.hurried == 1
    assert [key.name for key in reading.tasks.added] == ["one"]
    assert "another database server has taken over" in caplog.text


async def test_what_a_sweep_cannot_repair_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def repairs() -> dict[str, int]:
        return {"retries_due": 2, "repairs_parked": 3}

    metrics = OperatorMetrics()
    await sweep(cast("Workers", SimpleNamespace(sweep=repairs)), metrics)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("3 rows could not be repaired and are tried again later")
    assert metrics.registry.get_sample_value("tasker_operator_sweep_repairs_total", {"repair": "repairs_parked"}) == 3


async def test_what_a_sweep_repairs_is_counted_by_kind() -> None:
    async def repairs() -> dict[str, int]:
        return {"expired_leases": 3, "due_retries": 0}

    metrics, workers = OperatorMetrics(), cast("Workers", SimpleNamespace(sweep=repairs))
    await sweep(workers, metrics)
    await sweep(workers, metrics)
    sample = metrics.registry.get_sample_value
    assert sample("tasker_operator_sweep_repairs_total", {"repair": "expired_leases"}) == 6
    assert sample("tasker_operator_sweep_repairs_total", {"repair": "due_retries"}) == 0


async def test_a_task_whose_run_moved_is_compared_with_it_even_when_it_shows_its_end() -> None:
    reading = Reading()
    moved, gone_on = reading.know("one", "order"), "not listed yet"
    reading.log.taken_up = frozenset({gone_on})
    reading.log.moved = [frozenset({moved})]
    await reading.reader.start()
    await reading.read()
    tasks = reading.kit.caches.tasks
    assert [tasks.take_moved(uid) for uid in (moved, gone_on)] == [True, True]
    assert [tasks.take_moved(uid) for uid in (moved, gone_on)] == [False, False], "asked once"
    tasks.note_moved(moved)
    tasks.remove(reading.kit.live(task("one")))
    assert not tasks.take_moved(moved)
