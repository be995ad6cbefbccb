"""A template's status in full, its Events, and when the engine is asked."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, task, template
from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import key_of
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.model.task import TemplateCounts
from tasker.model.template import TemplateSpec

TWO_STEPS = [
    {"name": "a", "handler": {"callable": "a"}},
    {"name": "b", "handler": {"callable": "b"}, "dependsOn": ["a"]},
]
BROKEN = [{"name": "a"}]
FAULT = "spec.steps[0].handler: is required"


class Setting:
    def __init__(self) -> None:
        self.kit = ControllerKit()
        self.templates = self.kit.template_reconciler()

    async def give(self, **spec: Any) -> Manifest:
        """A person writes the template, and it is reconciled."""
        made = self.kit.give(template(**spec))
        await self.reconcile(made)
        return made

    async def reconcile(self, manifest: Manifest) -> None:
        assert await self.templates.reconcile(key_of(manifest)) is None

    def status(self, manifest: Manifest) -> dict[str, Any]:
        status: dict[str, Any] = self.kit.live(manifest)["status"]
        return status

    def revision(self) -> str:
        return self.kit.engine.registered_templates["default", "order"].revision


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_the_whole_status_of_a_template_that_is_stored(setting: Setting) -> None:
    setting.kit.engine.counts = TemplateCounts(running=1, waiting=2, complete=3, error=4)
    made = await setting.give(steps=TWO_STEPS)
    message = f"Revision {setting.revision()} is stored."
    assert setting.status(made) == {
        "observedGeneration": 1,
        "revision": setting.revision(),
        "queue": "default",
        "steps": 2,
        "tasks": {"running": 1, "waiting": 2, "complete": 3, "error": 4},
        "conditions": [
            {
                "type": name,
                "status": status,
                "observedGeneration": 1,
                "lastTransitionTime": "2031-01-01T00:00:00Z",
                "reason": "Registered",
                "message": message,
            }
            for name, status in (("Ready", "True"), ("Stalled", "False"))
        ],
    }
    before = setting.status(made)
    await setting.reconcile(made)
    assert setting.status(made) == before, "without asking the engine for the revision again"


async def test_the_conditions_of_a_template_that_is_refused_and_of_one_that_is_mended(setting: Setting) -> None:
    made = await setting.give(steps=BROKEN)
    status = setting.status(made)
    assert [(each["type"], each["status"], each["reason"], each["message"]) for each in status["conditions"]] == [
        ("Ready", "False", "InvalidSpec", FAULT),
        ("Stalled", "True", "InvalidSpec", FAULT),
    ]
    assert status["observedGeneration"] == 1
    setting.kit.pass_time(10)
    await setting.give(steps=TWO_STEPS)
    assert {each["lastTransitionTime"] for each in setting.status(made)["conditions"]} == {"2031-01-01T00:00:10Z"}
    setting.kit.pass_time(10)
    await setting.give(steps=TWO_STEPS, version="1.1.0")
    assert {each["lastTransitionTime"] for each in setting.status(made)["conditions"]} == {"2031-01-01T00:00:10Z"}


async def test_a_template_that_is_broken_later_keeps_its_last_good_revision(setting: Setting) -> None:
    made = await setting.give(steps=TWO_STEPS)
    await setting.give(steps=BROKEN)
    status = setting.status(made)
    assert (status["revision"], status["steps"], status["observedGeneration"]) == (setting.revision(), 2, 2)


async def test_each_revision_and_each_fault_is_told_once(setting: Setting) -> None:
    made = await setting.give(steps=TWO_STEPS)
    for _ in range(2):
        setting.templates.forget()
        await setting.reconcile(made)
    message = f"Revision {setting.revision()}, version 1.0.0, 2 steps."
    assert setting.kit.take_events() == [("TaskTemplate", "order", "TemplateRegistered", message)]
    await setting.give(steps=BROKEN)
    await setting.reconcile(made)
    assert setting.kit.take_events() == [("TaskTemplate", "order", "TemplateInvalid", FAULT)]


async def test_the_events_of_one_fault_have_one_name_and_of_another_generation_another(setting: Setting) -> None:
    async def event_name(steps: list[dict[str, Any]]) -> str:
        kit = ControllerKit()
        kit.cluster.store(template(steps=TWO_STEPS) | {"metadata": {"name": "order", "namespace": "default"}})
        live = kit.cluster.objects["TaskTemplate", "default", "order"]
        live["metadata"]["uid"] = "u"
        kit.give(template(steps=steps))
        await kit.template_reconciler().reconcile(key_of(live))
        _, event = kit.events._backlog.get_nowait()
        return str(event["metadata"]["name"])

    assert await event_name(BROKEN) == await event_name(BROKEN)
    assert await event_name(BROKEN) != await event_name([{"name": "a", "handler": {}}])
    assert await event_name(TWO_STEPS) == await event_name(TWO_STEPS)


async def test_tasks_are_called_when_the_template_becomes_ready_and_not_each_time(setting: Setting) -> None:
    waiting = setting.kit.give(task())
    setting.kit.queue("tasks").take()
    made = await setting.give(steps=BROKEN)
    assert setting.kit.queue("tasks").take() == []
    await setting.give(steps=TWO_STEPS)
    assert setting.kit.queue("tasks").take() == [key_of(waiting)]
    await setting.reconcile(made)
    assert setting.kit.queue("tasks").take() == []


async def test_an_operator_of_another_environment_makes_another_revision_of_what_differs_there(
    setting: Setting,
) -> None:
    made = await setting.give(steps=TWO_STEPS, environments={"test": {"ALL": {"timeoutSeconds": 5}}})
    before = setting.revision()
    setting.kit.settings = replace(setting.kit.settings, environment="test")
    setting.templates = setting.kit.template_reconciler()
    await setting.reconcile(made)
    assert setting.status(made)["revision"] == setting.revision() != before
    conditions = {each["type"]: each["message"] for each in setting.status(made)["conditions"]}
    assert conditions["Ready"] == f"Revision {setting.revision()} is stored."


async def test_a_template_that_goes_is_left_alone_and_one_of_its_name_is_registered_anew(setting: Setting) -> None:
    made = await setting.give(steps=TWO_STEPS)
    live = setting.kit.live(made)
    going = {**live, "metadata": {**live["metadata"], "deletionTimestamp": "2031-01-01T00:00:01Z", "finalizers": ["x"]}}
    setting.kit.give(going)
    setting.kit.engine.registered_templates.clear()
    await setting.reconcile(made)
    assert setting.kit.engine.registered_templates == {}
    gone = setting.kit.cluster.remove("TaskTemplate", "default", "order")
    setting.kit.router.template(gone, "DELETED")
    await setting.reconcile(made)
    assert setting.templates._registered == {}, "nothing is remembered of what is gone"
    await setting.give(steps=TWO_STEPS)
    assert setting.kit.engine.registered_templates


async def test_a_template_whose_status_was_lost_is_registered_again(setting: Setting) -> None:
    """The revision that the status shows is the one that is not asked for again: without it there is none to show."""
    made = await setting.give(steps=TWO_STEPS)
    revision = setting.revision()
    live = setting.kit.live(made)
    setting.kit.give({**live, "status": {}})
    await setting.reconcile(made)
    assert setting.status(made)["revision"] == revision


def watch_parses(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which specs are parsed, one a parse."""
    parse_spec, threads = TaskTemplate.parse_spec, list[threading.Thread]()

    def parse(self: TaskTemplate, *, environment: str) -> TemplateSpec:
        threads.append(threading.current_thread())
        return parse_spec(self, environment=environment)

    monkeypatch.setattr(TaskTemplate, "parse_spec", parse)
    return threads


@pytest.mark.parametrize(
    ("spec", "elsewhere"),
    [
        ({"steps": TWO_STEPS}, False),
        ({"steps": TWO_STEPS, "inputSchema": {}}, True),
        ({"steps": [TWO_STEPS[0], {**TWO_STEPS[1], "resultSchema": {}}]}, True),
    ],
)
async def test_a_template_is_parsed_once_a_generation_and_one_with_schemas_in_another_thread(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], elsewhere: bool
) -> None:
    threads = watch_parses(monkeypatch)
    made = await setting.give(**spec)
    await setting.reconcile(made)
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere]
    setting.templates.forget()
    await setting.reconcile(made)
    assert len(threads) == 2, "a database that was restored may not have it"


async def test_a_schema_that_cannot_be_enforced_makes_the_template_invalid_at_its_place(setting: Setting) -> None:
    made = await setting.give(steps=TWO_STEPS, inputSchema={"properties": {"a": {"type": "txt"}}})
    ready, stalled = setting.status(made)["conditions"]
    assert (ready["reason"], stalled["status"]) == ("InvalidSpec", "True")
    assert ready["message"].startswith("spec.inputSchema.properties.a.type: must be one of")


@pytest.mark.parametrize("steps", [None, "none", [None], [{"name": "a"}]])
async def test_schemas_are_looked_for_in_whatever_was_written(setting: Setting, steps: Any) -> None:
    made = await setting.give(steps=steps)
    assert setting.status(made)["conditions"][0]["reason"] == "InvalidSpec"
