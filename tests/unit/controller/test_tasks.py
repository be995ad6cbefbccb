"""A Task becomes one run: it waits for its template, is steered by its spec, and its status costs few writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from support.controller_fakes import make_world, task, template
from tasker.controller.kube.client import ClusterError, Manifest
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.tasks.reconcile import TaskReconciler
from tasker.controller.templates.reconcile import TemplateReconciler
from tasker.model.task import TaskSummary
from tasker.model.transitions import TaskState


class Setting:
    """A world with the two reconcilers, and a monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.world, _, self.intake = make_world()
        self.clock = 0.0
        self.tasks = TaskReconciler(self.world, clock=lambda: self.clock)
        self.templates = TemplateReconciler(self.world)

    async def with_template(self, **spec: Any) -> None:
        made = self.world.give(self.intake, template(**spec))
        await self.templates.reconcile(key_of(made))

    async def reconcile(self, manifest: Manifest) -> float | None:
        return await self.tasks.reconcile(key_of(manifest))

    def condition(self, manifest: Manifest, name: str) -> tuple[str, str, str]:
        found = find(self.world.live(manifest).get("status"), name)
        assert found is not None
        return found["status"], found["reason"], found["message"]

    def writes(self) -> int:
        return sum(1 for call in self.world.fake_cluster.calls if call[:2] == ("status", "Task"))

    def run_of(self, manifest: Manifest) -> str:
        uid: str = manifest["metadata"]["uid"]
        return uid


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_a_task_waits_for_its_template_and_starts_by_itself_when_it_comes(setting: Setting) -> None:
    made = setting.world.give(setting.intake, task())
    assert await setting.reconcile(made) is None, "it is called by the template's event, not by polling"
    assert setting.condition(made, "Accepted") == (
        "False",
        "TemplateNotFound",
        "There is no TaskTemplate order in namespace default.",
    )
    setting.world.queue("tasks").take()
    await setting.with_template()
    assert setting.world.queue("tasks").take() == [key_of(made)]
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[:2] == ("True", "Submitted")


async def test_a_task_of_an_invalid_template_says_what_is_wrong_with_it(setting: Setting) -> None:
    broken = template(steps=[{"name": "a", "handler": {"callable": "x"}, "dependsOn": ["b"]}])
    await setting.templates.reconcile(key_of(setting.world.give(setting.intake, broken)))
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    status, reason, message = setting.condition(made, "Accepted")
    assert (status, reason) == ("False", "TemplateNotReady")
    assert message == "TaskTemplate order is not ready: spec.steps[0].dependsOn[0]: unknown step 'b'"


async def test_a_task_is_submitted_once_however_often_it_is_reconciled(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task(priority=5, tags=["x"], context={"value": 1}))
    for _ in range(3):
        await setting.reconcile(made)
    [request] = setting.world.fake_engine.requests
    assert (request.priority, request.tags, request.context) == (5, ("x",), {"value": 1})
    assert request.origin_uid == made["metadata"]["uid"]


async def test_a_version_that_is_not_stored_is_waited_for(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task(templateRef={"name": "order", "version": "9.9.9"}))
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[1] == "TemplateNotFound"


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("text", "spec.context: must be an object, not a string"),
        ({"a": "x" * 300_000}, "spec.context: is 300008 bytes; a Task resource may carry at most 262144"),
    ],
)
async def test_a_refused_context_stalls_the_task_and_is_not_tried_again(
    setting: Setting, context: Any, message: str
) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task(context=context))
    assert await setting.reconcile(made) is None
    assert setting.condition(made, "Stalled") == ("True", "InvalidContext", message)
    assert setting.world.fake_engine.requests == []


async def test_suspend_resume_and_cancel_reach_the_run(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    uid = setting.run_of(made)
    steps: list[tuple[dict[str, Any], Callable[[TaskSummary], bool]]] = [
        ({"suspend": True}, lambda run: run.suspended),
        ({"suspend": False}, lambda run: not run.suspended),
        ({"cancel": True}, lambda run: run.state is TaskState.CANCELLED),
    ]
    for spec, check in steps:
        setting.clock += 10
        setting.world.give(setting.intake, task(**spec))
        await setting.reconcile(made)
        assert check(setting.world.fake_engine.runs[uid])
    assert setting.condition(made, "Succeeded")[:2] == ("False", "Cancelled")


async def test_a_task_cancelled_before_it_had_a_run_never_gets_one(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task(cancel=True))
    await setting.reconcile(made)
    assert setting.world.live(made)["status"]["phase"] == "Cancelled"
    assert setting.world.fake_engine.requests == []


async def test_a_deleted_task_has_its_run_cancelled(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    uid = setting.run_of(made)
    setting.intake.task(made, "DELETED")
    assert setting.world.queue("origins").take() == [ObjectKey(namespace="default", name=uid)]
    await setting.tasks.cancel_gone(ObjectKey(namespace="default", name=uid))
    assert setting.world.fake_engine.runs[uid].state is TaskState.CANCELLED


async def test_a_task_deleted_while_it_was_submitted_has_its_run_cancelled(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    setting.world.task_keys.clear()  # the DELETED event came while the submission was under way
    await setting.reconcile(made)
    assert setting.world.queue("origins").take() == [ObjectKey(namespace="default", name=setting.run_of(made))]


async def test_progress_is_written_once_a_second_and_the_end_at_once(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    uid, runs = setting.run_of(made), setting.world.fake_engine.runs
    total = 1000
    asked_again = 0
    for done in range(1, total):
        setting.clock += 0.005
        counts = replace(runs[uid].counts, total=total, complete=done)
        runs[uid] = replace(runs[uid], counts=counts)
        again = await setting.reconcile(made)
        assert again is not None
        assert 0 < again <= 2
        asked_again += again <= 1
    assert setting.writes() <= 1 + 5
    assert asked_again > 900
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, counts=replace(runs[uid].counts, complete=total))
    await setting.reconcile(made)
    assert setting.world.live(made)["status"]["progress"] == "1000/1000"
    assert setting.writes() <= 1 + 5 + 1


async def test_nothing_is_written_when_nothing_changed(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    before = setting.writes()
    for _ in range(5):
        setting.clock += 10
        await setting.reconcile(made)
    assert setting.writes() == before


async def test_a_conflict_is_decided_again_from_the_newest_object(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    setting.world.fake_cluster.store({**made, "metadata": {**made["metadata"], "labels": {"a": "b"}}})
    with pytest.raises(ClusterError):
        await setting.reconcile(made)
    await setting.reconcile(made)
    live = setting.world.live(made)
    assert live["metadata"]["labels"] == {"a": "b"}
    assert live["status"]["phase"] == "Running"


async def test_a_finished_task_is_deleted_after_its_time_by_its_own_or_its_templates_word(setting: Setting) -> None:
    await setting.with_template(ttlSecondsAfterFinished=50)
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("own", {"ttlSecondsAfterFinished": 20}, 20),
        ("inherited", {}, 50),
    ]
    for name, spec, seconds in cases:
        made = setting.world.give(setting.intake, task(name, **spec))
        await setting.reconcile(made)
        uid = setting.run_of(made)
        ended = replace(setting.world.fake_engine.runs[uid], state=TaskState.COMPLETE, completed_at=setting.world.now())
        setting.world.fake_engine.runs[uid] = ended
        assert await setting.reconcile(made) == seconds
        setting.world.pass_time(seconds - 1)
        assert await setting.reconcile(made) == 1
        setting.world.pass_time(1)
        await setting.reconcile(made)
        assert ("Task", "default", name) not in setting.world.fake_cluster.objects


async def test_a_run_that_the_database_lost_is_not_run_again_by_itself(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    setting.world.fake_engine.runs.clear()
    await setting.reconcile(made)
    assert setting.condition(made, "Stalled")[:2] == ("True", "RunLost")
    assert len(setting.world.fake_engine.requests) == 1


async def test_an_edited_template_is_registered_again_and_an_unchanged_one_is_not(setting: Setting) -> None:
    await setting.with_template()
    first = setting.world.fake_engine.registered_templates["default", "order"].revision
    await setting.with_template(version="1.1.0")
    second = setting.world.fake_engine.registered_templates["default", "order"].revision
    assert first != second
    assert setting.world.live(template())["status"]["revision"] == second
    setting.world.fake_engine.registered_templates.clear()
    await setting.templates.reconcile(ObjectKey(namespace="default", name="order"))
    assert setting.world.fake_engine.registered_templates == {}, "an unchanged template needs no call"
    setting.templates.forget()
    await setting.templates.reconcile(ObjectKey(namespace="default", name="order"))
    assert setting.world.fake_engine.registered_templates, "a resync registers it again"


async def test_the_answer_to_a_status_that_comes_after_the_deletion_does_not_revive_the_task(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())

    def is_deleted(verb: str, kind: str) -> None:
        if (verb, kind) == ("patch", "Task"):
            last = setting.world.fake_cluster.remove("Task", "default", "t")
            setting.intake.task(last, "DELETED")

    setting.world.fake_cluster.meanwhile = is_deleted
    await setting.reconcile(made)
    assert key_of(made) not in setting.world.tasks
    assert setting.world.task_keys == {}
    origin = ObjectKey(namespace="default", name=setting.run_of(made))
    assert setting.world.queue("origins").take() == [origin]


async def test_a_task_made_anew_under_the_name_of_an_expired_one_is_not_deleted(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task(ttlSecondsAfterFinished=20))
    await setting.reconcile(made)
    uid = setting.run_of(made)
    ended = replace(setting.world.fake_engine.runs[uid], state=TaskState.COMPLETE, completed_at=setting.world.now())
    setting.world.fake_engine.runs[uid] = ended
    await setting.reconcile(made)
    setting.world.pass_time(21)
    setting.world.fake_cluster.remove("Task", "default", "t")  # neither event has arrived
    new = setting.world.fake_cluster.store(task())
    await setting.reconcile(made)
    assert setting.world.live(made)["metadata"]["uid"] == new["metadata"]["uid"]


async def test_a_result_is_shown_with_its_nulls_and_stays_when_the_spec_is_touched_later(setting: Setting) -> None:
    await setting.with_template()
    made = setting.world.give(setting.intake, task())
    await setting.reconcile(made)
    uid, result = setting.run_of(made), {"a": None, "b": [None], "c": {"d": None}}
    runs = setting.world.fake_engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.world.now(), leaf_results=result)
    await setting.reconcile(made)
    assert setting.world.live(made)["status"]["result"] == result
    runs.clear()  # the rows are kept for a while only
    live = setting.world.live(made)
    setting.world.give(setting.intake, {**live, "spec": {**live["spec"], "ttlSecondsAfterFinished": 1000}})
    await setting.reconcile(made)
    shown = setting.world.live(made)["status"]
    assert shown["observedGeneration"] == 2
    assert shown["result"] == result
