"""A callable that no worker offers is named by the Task and the pool that wait for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from support.controller_fakes import START, ControllerKit, make_run, pool, task
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import key_of
from tasker.controller.kube.resources.task import TaskStatus
from tasker.controller.runtime.loops import UnofferedReader
from tasker.controller.tasks.status import build_status
from tasker.controller.unoffered import describe_unoffered, unoffered_conditions
from tasker.model.transitions import TaskState
from tasker.model.workers import UnofferedCallable

MISSING = UnofferedCallable(namespace="default", callable="charge_card", steps=2, since=START)


def reader(kit: ControllerKit) -> UnofferedReader:
    return UnofferedReader(
        engine_workers=kit.engine.workers,  # type: ignore[arg-type]
        engine_tasks=kit.engine.tasks,  # type: ignore[arg-type]
        tasks=kit.caches.tasks,
        states=kit.states,
        task_queue=kit.queues.tasks,
        pool_queue=kit.queues.pools,
    )


async def test_pools_and_tasks_are_called_when_it_begins_and_when_it_ends() -> None:
    kit = ControllerKit()
    waiting, other = kit.give(task("waiting")), kit.give(task("other"))
    given = kit.give(pool())
    written = pool()
    written["metadata"]["namespace"] = "elsewhere"
    elsewhere = kit.give(written)
    for manifest in (given, elsewhere):
        kit.states.of(key_of(manifest), kit.caches.pools.read(key_of(manifest)), None)  # type: ignore[arg-type]
    for queue in ("tasks", "pools"):
        kit.queue(queue).take()
    unoffered = reader(kit)

    kit.engine.unoffered = [MISSING]
    kit.engine.waiting_for_worker = frozenset({waiting["metadata"]["uid"], "of-no-task-here"})
    await unoffered.read()
    assert kit.queue("tasks").take() == [key_of(waiting)] != [key_of(other)]
    assert kit.queue("pools").take() == [key_of(given)]
    await unoffered.read()
    assert kit.queue("tasks").take() == kit.queue("pools").take() == [], "nothing is new"

    kit.engine.unoffered, kit.engine.waiting_for_worker = [], frozenset()
    await unoffered.read()
    assert kit.queue("tasks").take() == [key_of(waiting)]
    assert kit.queue("pools").take() == [key_of(given)]


async def test_the_pool_names_the_callable_until_it_is_offered() -> None:
    kit = ControllerKit()
    given = kit.give(pool())
    reconciler = kit.pool_reconciler()
    await reconciler.reconcile(key_of(given))
    assert find(kit.live(given)["status"], "NoWorkerForCallable") is None
    state = kit.states.get(key_of(given))
    assert state is not None
    state.unoffered = (MISSING,)
    await kit.pool_reconciler().reconcile(key_of(given))
    condition = find(kit.live(given)["status"], "NoWorkerForCallable")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("True", "CallableNotOffered")
    assert condition["message"].startswith("callable charge_card: no worker offers it; steps have waited since 2031-")
    state.unoffered = ()
    await kit.pool_reconciler().reconcile(key_of(given))
    condition = find(kit.live(given)["status"], "NoWorkerForCallable")
    assert condition is not None and condition["status"] == "False"


def test_a_running_task_says_what_it_waits_for() -> None:
    run = replace(make_run(), waiting_for_worker=(MISSING,))
    status = build_status(run, previous=TaskStatus(), generation=1, now=START)
    assert status["waitingFor"] == "callable charge_card: no worker offers it"
    condition = find(status, "NoWorkerForCallable")
    assert condition is not None and condition["status"] == "True"

    many = tuple(replace(MISSING, callable=f"c{n}", since=START + timedelta(seconds=n)) for n in range(20))
    status = build_status(replace(run, waiting_for_worker=many), previous=TaskStatus(), generation=1, now=START)
    assert status["waitingFor"] == "callable c0, c1, c2, c3, c4 and 15 more: no worker offers it"

    ended = replace(run, state=TaskState.CANCELLED, completed_at=START)
    previous = TaskStatus.model_validate(status)
    status = build_status(ended, previous=previous, generation=1, now=START)
    assert "waitingFor" not in status
    condition = find(status, "NoWorkerForCallable")
    assert condition is not None and condition["status"] == "False"


def test_five_callables_are_named_and_the_longest_wait_is_told() -> None:
    def missing(count: int) -> list[UnofferedCallable]:
        # Those that have waited longest come first, but not by much: the database and the sweep differ.
        return [replace(MISSING, callable=f"c{n}", since=START - timedelta(seconds=n)) for n in range(count)]

    assert describe_unoffered(missing(5)) == "callable c0, c1, c2, c3, c4: no worker offers it"
    assert describe_unoffered(missing(6)) == "callable c0, c1, c2, c3, c4 and 1 more: no worker offers it"
    [condition] = unoffered_conditions(missing(2), previous=())
    assert (condition.type, condition.status, condition.reason, condition.message) == (
        "NoWorkerForCallable",
        "True",
        "CallableNotOffered",
        "callable c0, c1: no worker offers it; steps have waited since 2030-12-31T23:59:59Z.",
    )


def test_what_is_over_is_said_once_it_was_shown_and_not_before() -> None:
    shown = {"type": "NoWorkerForCallable", "status": "True", "lastTransitionTime": "", "reason": "r", "message": ""}
    assert unoffered_conditions((), previous=()) == []
    other = TaskStatus.model_validate({"conditions": [{**shown, "type": "Accepted"}]}).conditions
    assert unoffered_conditions((), previous=other) == []
    previous = TaskStatus.model_validate({"conditions": [shown]}).conditions
    [condition] = unoffered_conditions((), previous=previous)
    assert (condition.type, condition.status, condition.reason, condition.message) == (
        "NoWorkerForCallable",
        "False",
        "CallablesOffered",
        "Every callable that steps wait for is offered, or has not waited for a minute.",
    )


async def test_while_every_callable_is_offered_nobody_asks_which_tasks_wait() -> None:
    kit = ControllerKit()
    waiting = kit.give(task())
    kit.queue("tasks").take()
    kit.engine.waiting_for_worker = frozenset({waiting["metadata"]["uid"]})
    await reader(kit).read()
    assert kit.queue("tasks").take() == []
