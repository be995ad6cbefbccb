"""What `tasker dev --run` concludes from what it watches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devcluster.kubectl import WatchEvent
from tasker_dev.example import Example, ExampleTask
from tasker_dev.run_state import UNSEEN_POOL_SECONDS, RunState


def example(*, pools: tuple[str, ...] = ("workers",), **expected: str) -> Example:
    tasks = tuple(ExampleTask(name=name, expected=state) for name, state in expected.items())
    return Example(folder=Path("folder"), tasks=tasks, pools=pools)


def task(name: str, state: str | None, **status: Any) -> WatchEvent:
    status = {} if state is None else {"state": state, **status}
    return WatchEvent(kind="MODIFIED", object={"metadata": {"name": name}, "status": status})


def pool(
    desired: int, *, replicas: int | None = None, reason: str = "", name: str = "workers", least: int = 0
) -> WatchEvent:
    there = desired if replicas is None else replicas
    status = {"desiredReplicas": desired, "replicas": there, "readyReplicas": there, "reason": reason}
    return WatchEvent(
        kind="MODIFIED", object={"metadata": {"name": name}, "spec": {"minReplicas": least}, "status": status}
    )


def test_a_run_is_over_when_tasks_have_ended_and_the_workers_are_gone() -> None:
    state = RunState(example(a="complete"))
    state.see_task(task("a", None), 0.1)
    state.see_pool(pool(2, reason="0 → 2: 3 queued"), 0.5)
    state.see_task(task("a", "steps_in_process", progress="1/2"), 1.0)
    assert not state.is_over(1.0)
    state.see_task(task("a", "complete", progress="2/2"), 2.0)
    assert not state.is_over(2.0)
    state.see_pool(pool(0, replicas=1, reason="2 → 0: idle for 4 s"), 6.0)
    assert not state.is_over(6.0), "a worker is still there"
    state.see_pool(pool(0), 6.5)
    assert state.is_over(6.5)
    assert state.all_as_expected()
    assert state.tasks["a"].seconds(99.0) == pytest.approx(1.9)
    assert state.pools["workers"].levels() == [0, 2, 0]
    assert [change.at for change in state.pools["workers"].history] == [0.5, 6.0]


def event(message: str, *, kind: str = "WorkerPool", name: str = "workers") -> WatchEvent:
    return WatchEvent(kind="ADDED", object={"involvedObject": {"kind": kind, "name": name}, "message": message})


def test_why_workers_came_and_went_is_taken_from_the_events() -> None:
    state = RunState(example(a="complete"))
    state.see_event(event("0 → 2: 3 queued, 0 running, 2 slots each"))
    state.see_event(event("2 → 0: idle for 4 s"))
    state.see_event(event("0 → 1: of another", name="other"))
    state.see_event(event("0 → 1: no pool", kind="Task"))
    state.see_event(event("There is no ConfigMap workers in namespace default."))
    assert state.pools["workers"].whys == {2: "3 queued, 0 running, 2 slots each", 0: "idle for 4 s"}


def test_workers_that_a_pool_always_keeps_do_not_hold_a_run_up() -> None:
    state = RunState(example(a="complete"))
    state.see_pool(pool(1, least=1), 0.1)
    state.see_task(task("a", "complete"), 1.0)
    assert state.is_over(1.0)


def test_an_end_other_than_the_expected_one_is_told() -> None:
    state = RunState(example(a="complete", b="error"))
    state.see_task(task("a", "error"), 1.0)
    state.see_task(task("b", "error"), 1.0)
    assert not state.tasks["a"].as_expected
    assert state.tasks["b"].as_expected
    assert not state.all_as_expected()


def test_a_task_that_has_not_ended_is_not_as_expected() -> None:
    state = RunState(example(a="complete"))
    state.see_task(task("a", "steps_in_process"), 1.0)
    assert not state.all_as_expected()
    assert not state.is_over(1000.0)


def test_a_pool_whose_workers_were_never_seen_is_waited_for_a_while() -> None:
    state = RunState(example(a="complete"))
    state.see_task(task("a", "complete"), 1.0)
    assert not state.is_over(1.1)
    assert state.is_over(1.1 + UNSEEN_POOL_SECONDS)


def test_tasks_and_pools_of_others_do_not_matter() -> None:
    state = RunState(example(a="complete"))
    state.see_task(task("other", "error"), 0.5)
    state.see_pool(pool(3, name="other"), 0.5)
    state.see_pool(pool(1), 0.6)
    state.see_pool(pool(0), 0.9)
    state.see_task(task("a", "complete"), 1.0)
    assert state.is_over(1.0)
    assert list(state.pools) == ["workers"]


def test_an_example_without_a_pool_follows_those_there_are() -> None:
    state = RunState(example(pools=(), a="complete"))
    state.see_pool(pool(1, name="default"), 0.5)
    state.see_task(task("a", "complete"), 1.0)
    assert not state.is_over(1.0)
    state.see_pool(pool(0, name="default"), 2.0)
    assert state.is_over(2.0)


def test_the_reason_of_a_failure_is_kept() -> None:
    condition = {"type": "Succeeded", "status": "False", "message": "Step pay failed: the card was declined"}
    state = RunState(example(a="error"))
    state.see_task(task("a", "error", conditions=[condition]), 1.0)
    assert state.tasks["a"].reason == "Step pay failed: the card was declined"
