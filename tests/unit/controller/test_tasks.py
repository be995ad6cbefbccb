"""A Task becomes one run: it waits for its template, is steered by its spec, and its status costs few writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, task, template
from support.fake_cluster import Fault
from tasker.controller.kube.client import ClusterError, Manifest
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.tasks.progress import PROGRESS_SECONDS, ProgressPace
from tasker.errors import Busy
from tasker.model.task import StepFailure, SubmittedTask, TaskRequest, TaskSummary
from tasker.model.transitions import TaskState


class Setting:
    """The reconcilers of Tasks and templates, and a monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.kit = ControllerKit()
        self.clock = 0.0
        self.progress = ProgressPace(self.kit.settings.progress_writes_per_second, clock=lambda: self.clock)
        self.tasks = self.kit.task_reconciler(self.progress)
        self.orphans = self.kit.orphan_reconciler(self.progress)
        self.templates = self.kit.template_reconciler()

    async def with_template(self, **spec: Any) -> None:
        made = self.kit.give(template(**spec))
        await self.templates.reconcile(key_of(made))

    async def reconcile(self, manifest: Manifest) -> float | None:
        return await self.tasks.reconcile(key_of(manifest))

    async def start(self, manifest: Manifest) -> None:
        """The Task's run begins, and a second later its first status is due."""
        assert await self.reconcile(manifest) == PROGRESS_SECONDS
        self.clock += PROGRESS_SECONDS

    def condition(self, manifest: Manifest, name: str) -> tuple[str, str, str]:
        found = find(self.kit.live(manifest).get("status"), name)
        assert found is not None
        return found["status"], found["reason"], found["message"]

    def writes(self) -> int:
        return sum(1 for call in self.kit.cluster.calls if call[:2] == ("status", "Task"))

    def run_of(self, manifest: Manifest) -> str:
        uid: str = manifest["metadata"]["uid"]
        return uid


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_a_task_waits_for_its_template_and_starts_by_itself_when_it_comes(setting: Setting) -> None:
    made = setting.kit.give(task())
    assert await setting.reconcile(made) is None, "it is called by the template's event, not by polling"
    assert setting.condition(made, "Accepted") == (
        "False",
        "TemplateNotFound",
        "There is no TaskTemplate order in namespace default.",
    )
    setting.kit.queue("tasks").take()
    await setting.with_template()
    assert setting.kit.queue("tasks").take() == [key_of(made)]
    await setting.start(made)
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[:2] == ("True", "Submitted")


async def test_a_task_of_an_invalid_template_says_what_is_wrong_with_it(setting: Setting) -> None:
    broken = template(steps=[{"name": "a", "handler": {"callable": "x"}, "dependsOn": ["b"]}])
    await setting.templates.reconcile(key_of(setting.kit.give(broken)))
    made = setting.kit.give(task())
    await setting.reconcile(made)
    status, reason, message = setting.condition(made, "Accepted")
    assert (status, reason) == ("False", "TemplateNotReady")
    assert message == "TaskTemplate order is not ready: spec.steps[0].dependsOn[0]: unknown step 'b'"


async def test_a_task_is_submitted_once_however_often_it_is_reconciled(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(priority=5, tags=["x"], context={"value": 1}))
    for _ in range(3):
        await setting.reconcile(made)
    [request] = setting.kit.engine.requests
    assert (request.priority, request.tags, request.context) == (5, ("x",), {"value": 1})
    assert request.origin_uid == made["metadata"]["uid"]


async def test_a_version_that_is_not_stored_is_waited_for(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(templateRef={"name": "order", "version": "9.9.9"}))
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[1] == "TemplateNotFound"


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("text", "spec.context: must be an object"),
        ({"a": "x" * 300_000}, "spec.context: is 300008 bytes; a Task resource may carry at most 262144"),
    ],
)
async def test_a_refused_context_stalls_the_task_and_is_not_tried_again(
    setting: Setting, context: Any, message: str
) -> None:
    await setting.with_template()
    made = setting.kit.give(task(context=context))
    assert await setting.reconcile(made) is None
    assert setting.condition(made, "Stalled") == ("True", "InvalidContext", message)
    assert setting.kit.engine.requests == []


SCHEMA = {"type": "object", "properties": {"total": {"type": "number", "minimum": 0}}, "required": ["total"]}
NEGATIVE = {"total": -1, "card": "4111 1111"}
TOO_LITTLE = "spec.context/total: must be at least 0"


async def test_a_context_against_the_schema_stalls_the_task_with_the_pointer_and_makes_no_run(setting: Setting) -> None:
    await setting.with_template(inputSchema=SCHEMA)
    setting.kit.take_events()
    made = setting.kit.give(task(context=NEGATIVE))
    assert await setting.reconcile(made) is None, "nothing is tried again by itself"
    assert setting.condition(made, "Accepted") == ("False", "InvalidContext", TOO_LITTLE)
    assert setting.condition(made, "Stalled") == ("True", "InvalidContext", TOO_LITTLE)
    assert setting.condition(made, "Reconciling") == ("False", "InvalidContext", TOO_LITTLE)
    assert setting.kit.engine.runs == {}
    assert setting.kit.take_events() == [("Task", "t", "TaskInvalid", TOO_LITTLE)]
    writes = setting.writes()
    assert await setting.reconcile(made) is None
    assert setting.writes() == writes, "and said again, it is the same status"


async def test_a_refused_task_is_looked_at_again_when_its_template_changes(setting: Setting) -> None:
    await setting.with_template(inputSchema=SCHEMA)
    made = setting.kit.give(task(context=NEGATIVE))
    await setting.reconcile(made)
    setting.kit.queue("tasks").take()
    setting.kit.take_events()
    await setting.with_template(inputSchema={"required": ["customer"]})
    assert setting.kit.queue("tasks").take() == [key_of(made)]
    assert await setting.reconcile(made) is None
    assert setting.condition(made, "Stalled") == ("True", "InvalidContext", "spec.context/customer: is required")
    assert ("Task", "t", "TaskInvalid", "spec.context/customer: is required") in setting.kit.take_events()
    await setting.with_template(inputSchema={"required": ["total"]})
    assert setting.kit.queue("tasks").take() == [key_of(made)]
    await setting.start(made)
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[:2] == ("True", "Submitted")
    assert setting.condition(made, "Stalled")[0] == "False"


async def test_where_a_template_only_warns_the_run_is_made_and_an_event_tells_the_pointer(setting: Setting) -> None:
    await setting.with_template(inputSchema=SCHEMA, schemaEnforcement="warn")
    setting.kit.take_events()
    made = setting.kit.give(task(context=NEGATIVE))
    await setting.start(made)
    assert setting.kit.engine.runs.keys() == {setting.run_of(made)}
    assert ("Task", "t", "InvalidContext", TOO_LITTLE) in setting.kit.take_events()
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[:2] == ("True", "Submitted")
    assert setting.kit.take_events() == []


async def test_where_a_template_does_not_look_nothing_is_told(setting: Setting) -> None:
    await setting.with_template(inputSchema=SCHEMA, schemaEnforcement="off")
    setting.kit.take_events()
    await setting.start(setting.kit.give(task(context=NEGATIVE)))
    assert [reason for _, _, reason, _ in setting.kit.take_events()] == ["TaskAccepted"]


async def test_a_task_that_is_turned_away_comes_again_when_it_was_told_to(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
        raise Busy(7)

    await setting.with_template(inputSchema=SCHEMA)
    made = setting.kit.give(task(context={"total": 1}))
    with monkeypatch.context() as patched:
        patched.setattr(setting.kit.engine.tasks, "submit", submit)
        assert await setting.reconcile(made) == 7
    assert "status" not in setting.kit.live(made), "it is neither refused nor waiting for its template"
    await setting.start(made)


async def test_suspend_resume_and_cancel_reach_the_run(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid = setting.run_of(made)
    steps: list[tuple[dict[str, Any], Callable[[TaskSummary], bool]]] = [
        ({"suspend": True}, lambda run: run.suspended),
        ({"suspend": False}, lambda run: not run.suspended),
        ({"cancel": True}, lambda run: run.state is TaskState.CANCELLED),
    ]
    for spec, check in steps:
        setting.clock += 10
        setting.kit.give(task(**spec))
        await setting.reconcile(made)
        assert check(setting.kit.engine.runs[uid])
    assert setting.condition(made, "Succeeded")[:2] == ("False", "Cancelled")


async def test_a_task_cancelled_before_it_had_a_run_never_gets_one(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(cancel=True))
    await setting.reconcile(made)
    assert setting.kit.live(made)["status"]["phase"] == "Cancelled"
    assert setting.kit.engine.requests == []


async def test_a_deleted_task_has_its_run_cancelled(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid = setting.run_of(made)
    setting.kit.router.task(made, "DELETED")
    assert setting.kit.queue("orphans").take() == [ObjectKey(namespace="default", name=uid)]
    await setting.orphans.reconcile(ObjectKey(namespace="default", name=uid))
    assert setting.kit.engine.runs[uid].state is TaskState.CANCELLED


async def test_a_task_deleted_while_it_was_submitted_has_its_run_cancelled(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    submit = setting.kit.engine.tasks.submit

    async def delete_and_submit(namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
        setting.kit.router.task(made, "DELETED")
        assert setting.kit.queue("orphans").take(), "this cancellation finds no run yet"
        return await submit(namespace, requests)

    monkeypatch.setattr(setting.kit.engine.tasks, "submit", delete_and_submit)
    await setting.reconcile(made)
    assert setting.kit.queue("orphans").take() == [ObjectKey(namespace="default", name=setting.run_of(made))]


async def test_a_run_that_ends_within_a_second_costs_one_status_write(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    assert await setting.reconcile(made) == 1.0
    setting.clock += 0.25
    assert await setting.reconcile(made) == 0.75
    assert setting.writes() == 0
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    setting.clock += 0.25
    await setting.reconcile(made)
    assert setting.writes() == 1
    assert setting.kit.live(made)["status"]["phase"] == "Succeeded"


async def test_the_first_status_comes_a_second_after_the_start_however_many_are_open(setting: Setting) -> None:
    await setting.with_template()
    for number in range(300):
        setting.progress.note_write(f"other-{number}")
    made = setting.kit.give(task())
    await setting.start(made)
    assert await setting.reconcile(made) == pytest.approx(2 * 3.01), "a step is ready, so it is read again"
    assert setting.writes() == 1
    setting.clock += 2.9
    assert await setting.reconcile(made) == pytest.approx(0.11)


async def test_progress_is_written_once_a_second_and_the_end_at_once(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
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
    assert setting.kit.live(made)["status"]["progress"] == "1000/1000"
    assert setting.writes() <= 1 + 5 + 1


async def test_nothing_is_written_when_nothing_changed(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    await setting.reconcile(made)
    before = setting.writes()
    assert before == 1
    for _ in range(5):
        setting.clock += 10
        await setting.reconcile(made)
    assert setting.writes() == before


async def test_a_conflict_is_decided_again_from_the_newest_object(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    setting.kit.cluster.store({**made, "metadata": {**made["metadata"], "labels": {"a": "b"}}})
    with pytest.raises(ClusterError):
        await setting.reconcile(made)
    await setting.reconcile(made)
    live = setting.kit.live(made)
    assert live["metadata"]["labels"] == {"a": "b"}
    assert live["status"]["phase"] == "Running"


async def test_a_finished_task_is_deleted_after_its_time_by_its_own_or_its_templates_word(setting: Setting) -> None:
    await setting.with_template(ttlSecondsAfterFinished=50)
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("own", {"ttlSecondsAfterFinished": 20}, 20),
        ("inherited", {}, 50),
    ]
    for name, spec, seconds in cases:
        made = setting.kit.give(task(name, **spec))
        await setting.reconcile(made)
        uid = setting.run_of(made)
        ended = replace(setting.kit.engine.runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
        setting.kit.engine.runs[uid] = ended
        assert await setting.reconcile(made) == seconds
        setting.kit.pass_time(seconds - 1)
        assert await setting.reconcile(made) == 1
        setting.kit.pass_time(1)
        await setting.reconcile(made)
        assert ("Task", "default", name) not in setting.kit.cluster.objects


async def test_a_run_that_the_database_lost_is_not_run_again_by_itself(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    await setting.reconcile(made)
    setting.kit.engine.runs.clear()
    await setting.reconcile(made)
    assert setting.condition(made, "Stalled")[:2] == ("True", "RunLost")
    assert len(setting.kit.engine.requests) == 1


async def test_an_edited_template_is_registered_again_and_an_unchanged_one_is_not(setting: Setting) -> None:
    await setting.with_template()
    first = setting.kit.engine.registered_templates["default", "order"].revision
    await setting.with_template(version="1.1.0")
    second = setting.kit.engine.registered_templates["default", "order"].revision
    assert first != second
    assert setting.kit.live(template())["status"]["revision"] == second
    setting.kit.engine.registered_templates.clear()
    await setting.templates.reconcile(ObjectKey(namespace="default", name="order"))
    assert setting.kit.engine.registered_templates == {}, "an unchanged template needs no call"
    setting.templates.forget()
    await setting.templates.reconcile(ObjectKey(namespace="default", name="order"))
    assert setting.kit.engine.registered_templates, "a resync registers it again"


async def test_the_answer_to_a_status_that_comes_after_the_deletion_does_not_revive_the_task(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)

    def is_deleted(verb: str, kind: str) -> None:
        if (verb, kind) == ("patch", "Task"):
            last = setting.kit.cluster.remove("Task", "default", "t")
            setting.kit.router.task(last, "DELETED")

    setting.kit.cluster.meanwhile = is_deleted
    await setting.reconcile(made)
    assert key_of(made) not in setting.kit.caches.tasks
    assert setting.kit.caches.tasks.find_uid(setting.run_of(made)) is None
    origin = ObjectKey(namespace="default", name=setting.run_of(made))
    assert setting.kit.queue("orphans").take() == [origin]


async def test_a_task_made_anew_under_the_name_of_an_expired_one_is_not_deleted(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(ttlSecondsAfterFinished=20))
    await setting.reconcile(made)
    uid = setting.run_of(made)
    ended = replace(setting.kit.engine.runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    setting.kit.engine.runs[uid] = ended
    await setting.reconcile(made)
    setting.kit.pass_time(21)
    setting.kit.cluster.remove("Task", "default", "t")  # neither event has arrived
    new = setting.kit.cluster.store(task())
    await setting.reconcile(made)
    assert setting.kit.live(made)["metadata"]["uid"] == new["metadata"]["uid"]


async def test_a_result_is_shown_with_its_nulls_and_stays_when_the_spec_is_touched_later(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid, result = setting.run_of(made), {"a": None, "b": [None], "c": {"d": None}}
    runs = setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now(), leaf_results=result)
    await setting.reconcile(made)
    assert setting.kit.live(made)["status"]["result"] == result
    runs.clear()  # the rows are kept for a while only
    live = setting.kit.live(made)
    setting.kit.give({**live, "spec": {**live["spec"], "ttlSecondsAfterFinished": 1000}})
    await setting.reconcile(made)
    shown = setting.kit.live(made)["status"]
    assert shown["observedGeneration"] == 2
    assert shown["result"] == result


# What the engine is asked for.


async def test_the_request_has_all_that_the_spec_says(setting: Setting) -> None:
    await setting.with_template(identity={"strategy": "callerProvided"})
    made = setting.kit.give(
        task(
            templateRef={"name": "order", "version": "1.0.0"},
            context={"value": 1},
            priority=-7,
            idempotencyKey="k",
            correlationId="c",
            parentCorrelationId="p",
            initiator="i",
            sourceSystem="s",
            reason="r",
            tags=["x", "y"],
            suspend=True,
            deadlineSeconds=60,
        )
    )
    await setting.reconcile(made)
    assert setting.kit.engine.requests == [
        TaskRequest(
            template_name="order",
            template_version="1.0.0",
            context={"value": 1},
            priority=-7,
            idempotency_key="k",
            correlation_id="c",
            parent_correlation_id="p",
            initiator="i",
            source_system="s",
            reason="r",
            tags=("x", "y"),
            suspended=True,
            deadline_seconds=60,
            origin_uid=setting.run_of(made),
            origin_name="t",
        )
    ]


async def test_a_context_of_just_the_limit_is_taken(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(context={"a": "x" * (262_144 - len('{"a":""}'))}))
    await setting.reconcile(made)
    assert len(setting.kit.engine.requests) == 1


async def test_who_does_what_to_a_run_and_why_is_in_the_transition_log(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    uuid = str(setting.kit.engine.runs[setting.run_of(made)].task_uuid)
    specs: list[dict[str, Any]] = [{"suspend": True}, {"suspend": True}, {}, {}, {"suspend": True, "cancel": True}]
    for spec in specs:
        setting.kit.give(task(**spec))
        await setting.reconcile(made)
        setting.clock += 10
    assert setting.kit.engine.acted == [
        ("suspend", uuid, "resource", "operator", "spec.suspend was set"),
        ("resume", uuid, "resource", "operator", "spec.suspend was taken back"),
        ("cancel", uuid, "operator", "spec.cancel was set"),
    ]
    setting.kit.engine.acted.clear()
    await setting.orphans.reconcile(ObjectKey(namespace="default", name=setting.run_of(made)))
    assert setting.kit.engine.acted == [
        ("cancel_by_origin", setting.run_of(made), "operator", "the Task was deleted"),
    ]


async def test_a_run_that_has_ended_is_not_steered_any_more(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    setting.kit.give(task(cancel=True))
    await setting.reconcile(made)
    assert setting.kit.engine.acted == []
    assert setting.condition(made, "Succeeded")[:2] == ("True", "Completed")


# Runs that go on after their end.


async def finished(setting: Setting, **spec: Any) -> tuple[Manifest, str]:
    """A Task that shows the end of its run, and its uid."""
    await setting.with_template()
    made = setting.kit.give(task(**spec))
    await setting.start(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    failed = StepFailure(step="a", attempt=1, error_type="E", message="no", final=False, at="2026-01-01T00:00:00Z")
    runs[uid] = replace(
        runs[uid],
        state=TaskState.COMPLETE,
        completed_at=setting.kit.now(),
        leaf_results={"a": 1},
        failures=(failed,),
    )
    await setting.reconcile(made)
    assert setting.kit.live(made)["status"]["result"] == {"a": 1}
    return made, uid


async def test_a_run_that_goes_on_after_its_end_is_shown_again_and_so_is_its_next_end(setting: Setting) -> None:
    made, uid = await finished(setting)
    runs, first = setting.kit.engine.runs, setting.kit.live(made)["status"]["completionTime"]
    runs[uid] = replace(runs[uid], state=TaskState.STEPS_IN_PROCESS, completed_at=None, leaf_results=None, failures=())
    reads = setting.kit.engine.reads
    await setting.reconcile(made)
    assert setting.kit.engine.reads == reads, "nobody has said that it moved"
    setting.kit.caches.tasks.note_moved(uid)
    await setting.reconcile(made)
    shown = setting.kit.live(made)["status"]
    assert shown["phase"] == "Running"
    assert not {"completionTime", "result", "failures"} & shown.keys(), "also what the cache had left out"
    assert setting.condition(made, "Succeeded")[:2] == ("Unknown", "Running")
    assert setting.condition(made, "Reconciling")[:2] == ("True", "Running")
    setting.clock += 60
    setting.kit.pass_time(60)
    runs[uid] = replace(runs[uid], state=TaskState.ERROR, completed_at=setting.kit.now())
    await setting.reconcile(made)
    shown = setting.kit.live(made)["status"]
    assert shown["phase"] == "Failed" and shown["completionTime"] > first
    assert setting.condition(made, "Stalled")[0] == "True"


async def test_that_it_goes_on_and_each_of_its_ends_is_an_event(setting: Setting) -> None:
    made, uid = await finished(setting)
    names = [setting.kit.take_event_names()]
    runs = setting.kit.engine.runs
    complete = runs[uid]
    runs[uid] = replace(complete, state=TaskState.STEPS_IN_PROCESS, completed_at=None, leaf_results=None)
    setting.kit.caches.tasks.note_moved(uid)
    await setting.reconcile(made)
    told = ("Task", "t", "TaskTakenUp", "The run goes on, after it had ended in phase Succeeded.")
    assert setting.kit.take_events()[-1] == told
    setting.clock += 60
    setting.kit.pass_time(60)
    runs[uid] = replace(complete, completed_at=setting.kit.now())
    await setting.reconcile(made)
    names.append(setting.kit.take_event_names())
    assert names[0]["TaskSucceeded"] != names[1]["TaskSucceeded"], "the API server does not take it for the first"


async def test_a_run_that_went_on_and_could_not_be_shown_is_read_again(setting: Setting) -> None:
    made, uid = await finished(setting)
    runs = setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.STEPS_IN_PROCESS, completed_at=None)
    setting.kit.caches.tasks.note_moved(uid)
    setting.kit.cluster.faults.append(Fault(verb="get", kind="Task", code=500, reason="InternalError", count=1))
    with pytest.raises(ClusterError):
        await setting.reconcile(made)
    await setting.reconcile(made)
    assert setting.kit.live(made)["status"]["phase"] == "Running"


async def test_a_task_whose_run_goes_on_is_not_deleted_when_its_time_has_come(setting: Setting) -> None:
    made, uid = await finished(setting, ttlSecondsAfterFinished=10)
    runs = setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.STEPS_IN_PROCESS, completed_at=None)
    setting.kit.pass_time(11)
    setting.clock += 11
    await setting.reconcile(made)
    assert setting.kit.live(made)["status"]["phase"] == "Running"


async def test_the_status_after_a_change_of_the_spec_shows_what_it_did(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    setting.kit.give(task(suspend=True))
    await setting.reconcile(made)
    assert setting.condition(made, "Reconciling")[:2] == ("True", "Suspended")


async def test_a_task_that_is_being_deleted_has_its_run_cancelled(setting: Setting) -> None:
    """It waits for somebody's finalizer; its run need not."""
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    going = {**made["metadata"], "deletionTimestamp": "2031-01-01T00:00:01Z", "finalizers": ["x"]}
    setting.kit.give({**made, "metadata": going})
    assert await setting.reconcile(made) is None
    assert setting.kit.queue("orphans").take() == [ObjectKey(namespace="default", name=setting.run_of(made))]
    assert setting.writes() == 0


async def test_a_task_that_is_gone_needs_nothing(setting: Setting) -> None:
    assert await setting.tasks.reconcile(ObjectKey(namespace="default", name="gone")) is None


# Which template it may run.


async def test_a_template_that_is_going_is_none(setting: Setting) -> None:
    await setting.with_template()
    live = setting.kit.live(template())
    metadata = {**live["metadata"], "deletionTimestamp": "2031-01-01T00:00:01Z", "finalizers": ["x"]}
    setting.kit.give({**live, "metadata": metadata})
    made = setting.kit.give(task())
    await setting.reconcile(made)
    assert setting.condition(made, "Accepted")[1] == "TemplateNotFound"
    assert setting.condition(made, "Stalled")[0] == "False"


async def test_a_template_that_nobody_has_registered_yet_is_waited_for(setting: Setting) -> None:
    setting.kit.give(template())
    made = setting.kit.give(task())
    await setting.reconcile(made)
    why = ("False", "TemplateNotReady", "TaskTemplate order is not ready: it has not been registered yet")
    assert setting.condition(made, "Accepted") == why


async def test_an_edit_that_has_not_been_registered_yet_is_waited_for(setting: Setting) -> None:
    """Ready says so of the spec before the edit."""
    await setting.with_template()
    setting.kit.give(template(version="1.1.0"))
    made = setting.kit.give(task())
    await setting.reconcile(made)
    why = ("False", "TemplateNotReady", "TaskTemplate order is not ready: it has not been registered yet")
    assert setting.condition(made, "Accepted") == why


async def test_an_earlier_version_runs_whatever_became_of_the_newest(setting: Setting) -> None:
    await setting.with_template()
    setting.kit.give(template(version="2.0.0", steps=[{"name": "a"}]))
    made = setting.kit.give(task(templateRef={"name": "order", "version": "1.0.0"}))
    await setting.reconcile(made)
    assert len(setting.kit.engine.requests) == 1
    newest = setting.kit.give(task("newest", templateRef={"name": "order", "version": "2.0.0"}))
    await setting.reconcile(newest)
    assert len(setting.kit.engine.requests) == 1
    assert setting.condition(newest, "Accepted")[1] == "TemplateNotReady"


async def test_a_version_that_is_not_stored_is_named(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task(templateRef={"name": "order", "version": "9.9.9"}))
    assert await setting.reconcile(made) is None
    assert setting.condition(made, "Accepted") == ("False", "TemplateNotFound", "no template order 9.9.9")
    assert setting.condition(made, "Stalled")[0] == "False"


# Events.


async def test_the_events_of_a_run_are_told_once(setting: Setting) -> None:
    await setting.with_template()
    setting.kit.take_events()
    made = setting.kit.give(task())
    await setting.start(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    accepted = ("Task", "t", "TaskAccepted", f"Run {runs[uid].task_uuid} of template order.")
    assert setting.kit.take_events() == [accepted]
    await setting.reconcile(made)
    assert setting.kit.take_events() == [], "that it runs is no news"
    first = StepFailure(step="a", attempt=1, error_type="E", message="m", final=False, at="2031-01-01T00:00:00+00:00")
    for number in (1, 2):
        setting.clock += 10
        runs[uid] = replace(runs[uid], failures=(replace(first, attempt=number), *runs[uid].failures))
        await setting.reconcile(made)
    assert setting.kit.take_events() == [("Task", "t", "StepFailed", "Step a, attempt 1: E: m")]
    runs[uid] = replace(runs[uid], state=TaskState.ERROR, completed_at=setting.kit.now())
    await setting.reconcile(made)
    assert setting.kit.take_events() == [("Task", "t", "TaskFailed", "Step a failed: E: m")]
    await setting.reconcile(made)
    assert setting.kit.take_events() == []


@pytest.mark.parametrize(
    ("state", "reason", "message"),
    [
        (TaskState.COMPLETE, "TaskSucceeded", "All 4 steps are done."),
        (TaskState.RESOLVED_MANUALLY, "TaskSucceeded", "All 4 steps are done."),
        (TaskState.ERROR, "TaskFailed", "The run ended in error."),
        (TaskState.CANCELLED, "TaskCancelled", "The run was cancelled."),
    ],
)
async def test_each_end_has_its_event(setting: Setting, state: TaskState, reason: str, message: str) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    setting.kit.take_events()
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=state, completed_at=setting.kit.now())
    await setting.reconcile(made)
    assert setting.kit.take_events() == [("Task", "t", reason, message)]


async def test_of_failures_that_come_together_the_first_is_told(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    setting.kit.take_events()
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    newest, oldest = (
        StepFailure(step=step, attempt=1, error_type="E", message="m", final=False, at="2031-01-01T00:00:00+00:00")
        for step in ("newest", "oldest")
    )
    runs[uid] = replace(runs[uid], failures=(newest, oldest))
    await setting.reconcile(made)
    assert setting.kit.take_events() == [("Task", "t", "StepFailed", "Step oldest, attempt 1: E: m")]


async def test_a_refusal_and_an_end_before_the_start_have_their_events(setting: Setting) -> None:
    await setting.with_template()
    setting.kit.take_events()
    too_large = setting.kit.give(task("large", context={"a": "x" * 300_000}))
    await setting.reconcile(too_large)
    message = "spec.context: is 300008 bytes; a Task resource may carry at most 262144"
    assert setting.kit.take_events() == [("Task", "large", "TaskInvalid", message)]
    unreadable = setting.kit.give(task("odd", priority="high"))
    for _ in range(2):
        await setting.reconcile(unreadable)
    assert setting.kit.take_events() == [("Task", "odd", "TaskInvalid", "spec.priority: must be a whole number")]
    cancelled = setting.kit.give(task("late", cancel=True))
    await setting.reconcile(cancelled)
    assert setting.kit.take_events() == [
        ("Task", "late", "TaskCancelled", "The Task was cancelled before it was accepted.")
    ]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (TaskState.COMPLETE, "TaskSucceeded"),
        (TaskState.ERROR, "TaskFailed"),
        (TaskState.CANCELLED, "TaskCancelled"),
    ],
)
async def test_after_a_restart_no_event_of_a_run_is_said_twice(setting: Setting, state: TaskState, reason: str) -> None:
    """The name is made from what is said: the API server knows an Event of that name."""
    await setting.with_template()
    setting.kit.take_events()
    made = setting.kit.give(task())
    await setting.start(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    failure = StepFailure(step="a", attempt=1, error_type="E", message="m", final=True, at="2031-01-01T00:00:00+00:00")
    runs[uid] = replace(runs[uid], state=state, completed_at=setting.kit.now(), failures=(failure,))
    told: list[dict[str, str]] = []
    for _ in range(2):
        submitted = runs.pop(uid)
        setting.kit.give({**setting.kit.live(made), "status": {}})
        await setting.reconcile(made)
        runs[uid] = submitted
        setting.kit.give({**setting.kit.live(made), "status": {}})
        await setting.reconcile(made)
        told.append(setting.kit.take_event_names())
    assert told[0] == told[1]
    assert told[0].keys() == {"TaskAccepted", "StepFailed", reason}


@pytest.mark.parametrize(
    "spec", [{"context": {"a": "x" * 300_000}}, {"priority": "high"}], ids=["refused", "unreadable"]
)
async def test_a_fault_of_a_task_is_told_once_for_its_life(setting: Setting, spec: dict[str, Any]) -> None:
    await setting.with_template()
    setting.kit.take_events()
    made = setting.kit.give(task(**spec))
    told: list[dict[str, str]] = []
    for _ in range(2):
        await setting.reconcile(made)
        told.append(setting.kit.take_event_names())
        setting.kit.give({**setting.kit.live(made), "status": {}})
    assert told[0] == told[1]
    assert told[0].keys() == {"TaskInvalid"}


async def test_a_fault_is_cut_to_what_a_condition_of_a_task_may_say(setting: Setting) -> None:
    odd = task()
    odd["metadata"]["labels"] = {"x" * 300: 1}
    made = setting.kit.give(odd)
    await setting.reconcile(made)
    assert setting.condition(made, "Stalled")[2] == "metadata.labels." + "x" * 239 + "…"


# Ends and afterwards.


async def test_a_lost_run_is_named(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    await setting.reconcile(made)
    uuid = setting.kit.live(made)["status"]["taskUuid"]
    setting.kit.engine.runs.clear()
    assert await setting.reconcile(made) is None
    message = f"The database has no run {uuid}; create a new Task to run it again."
    assert setting.condition(made, "Stalled") == ("True", "RunLost", message)
    status = setting.kit.live(made)["status"]
    assert (status["taskUuid"], status["phase"]) == (uuid, "Pending")


async def test_a_finished_task_without_a_time_to_live_stays(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    for _ in range(3):
        assert await setting.reconcile(made) is None
        setting.kit.pass_time(1e6)
    assert setting.kit.live(made)


async def test_a_finished_task_whose_rows_are_gone_still_has_its_time_to_live(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    await setting.reconcile(made)
    runs.clear()
    live = setting.kit.live(made)
    setting.kit.give({**live, "spec": {**live["spec"], "ttlSecondsAfterFinished": 30}})
    assert await setting.reconcile(made) == 30


async def test_what_has_ended_no_longer_slows_the_others(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.reconcile(made)
    assert setting.progress._due.keys() == {setting.run_of(made)}
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], state=TaskState.COMPLETE, completed_at=setting.kit.now())
    await setting.reconcile(made)
    assert setting.progress._due == {}
    setting.progress.note_write(uid)
    await setting.reconcile(made)
    assert setting.progress._due == {}, "nor one whose status has long shown the end"
    setting.progress.note_write(uid)
    await setting.orphans.reconcile(ObjectKey(namespace="default", name=uid))
    assert setting.progress._due == {}, "nor one that was deleted"


async def test_a_run_with_ready_steps_is_read_again_for_what_no_change_announces(setting: Setting) -> None:
    await setting.with_template()
    made = setting.kit.give(task())
    await setting.start(made)
    assert await setting.reconcile(made) == 2.0
    setting.clock += 2
    uid, runs = setting.run_of(made), setting.kit.engine.runs
    runs[uid] = replace(runs[uid], counts=replace(runs[uid].counts, ready=0, running=1))
    assert await setting.reconcile(made) is None


async def test_a_duplicate_is_refused_with_the_run_that_it_is_one_of(setting: Setting) -> None:
    await setting.with_template(identity={"strategy": "callerProvided"})
    first, second = (setting.kit.give(task(name, idempotencyKey="order-7")) for name in ("first", "second"))
    await setting.start(first)
    setting.kit.take_events()
    assert await setting.reconcile(second) is None
    uuid = setting.kit.engine.runs[setting.run_of(first)].task_uuid
    message = f"it is a duplicate of run {uuid} of Task first"
    assert setting.condition(second, "Accepted") == ("False", "DuplicateTask", message)
    assert setting.condition(second, "Stalled") == ("True", "DuplicateTask", message)
    assert setting.condition(second, "Reconciling")[0] == "False"
    assert setting.condition(second, "Succeeded")[0] == "Unknown"
    assert "taskUuid" not in setting.kit.live(second)["status"]
    assert setting.kit.take_events() == [("Task", "second", "TaskDuplicate", message)]
    assert setting.run_of(second) not in setting.kit.engine.runs


async def test_a_refused_duplicate_does_not_start_later_when_the_place_is_free(setting: Setting) -> None:
    await setting.with_template(identity={"strategy": "strict"})
    first, second = (setting.kit.give(task(name, context={"order": 7})) for name in ("first", "second"))
    await setting.start(first)
    await setting.reconcile(second)
    writes, submitted = setting.writes(), len(setting.kit.engine.requests)
    setting.kit.engine.identities.clear()
    setting.kit.take_events()
    for _ in range(3):
        assert await setting.reconcile(second) is None
    assert (setting.writes(), len(setting.kit.engine.requests)) == (writes, submitted)
    touched = setting.kit.give(task("second", context={"order": 7}, suspend=True))
    assert await setting.reconcile(touched) is None
    assert setting.kit.live(touched)["status"]["observedGeneration"] == touched["metadata"]["generation"]
    assert setting.condition(touched, "Stalled")[:2] == ("True", "DuplicateTask")
    assert len(setting.kit.engine.requests) == submitted
    assert setting.kit.take_events() == []
    cancelled = setting.kit.give(task("second", context={"order": 7}, cancel=True))
    assert await setting.reconcile(cancelled) is None
    assert setting.kit.live(cancelled)["status"]["phase"] == "Cancelled"


async def test_a_task_without_the_key_that_its_template_asks_for_is_refused(setting: Setting) -> None:
    await setting.with_template(identity={"strategy": "callerProvided"})
    made = setting.kit.give(task())
    assert await setting.reconcile(made) is None
    assert setting.condition(made, "Stalled") == (
        "True",
        "InvalidTask",
        "spec.idempotencyKey: is required by the identity of template order",
    )
