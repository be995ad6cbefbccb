"""Brings a TaskTemplate in line: its spec becomes a stored revision, its status says so or says why not.

The reconcile of `WorkQueue` "TaskTemplate". Tasks that wait for the template are called when it becomes Ready.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tasker.controller.kube.cache import is_going
from tasker.controller.kube.client import TASK_TEMPLATE, Manifest
from tasker.controller.kube.conditions import Condition, find, is_true, render
from tasker.controller.kube.events import Reason
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.world import World
from tasker.errors import InvalidTemplate
from tasker.model.task import TemplateCounts
from tasker.model.template import TemplateSpec, parse_template_spec

logger = logging.getLogger(__name__)

COUNTS_SECONDS = 10.0
"""How often at most a template's task counts are read again."""


class TemplateReconciler:
    """Registers templates with the engine. Remembers what it has registered only to save the call."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._registered: dict[ObjectKey, tuple[str, int]] = {}

    def forget(self) -> None:
        """Registers everything again when it is next reconciled: the database may have been restored."""
        self._registered.clear()

    async def reconcile(self, key: ObjectKey) -> float | None:
        template = self._world.templates.get(key)
        if template is None or is_going(template):
            self._registered.pop(key, None)
            return None
        try:
            spec = parse_template_spec(template["spec"])
        except InvalidTemplate as error:
            await self._refuse(template, error)
            return None
        was_ready = is_ready(template)
        status = template.get("status") or {}
        revision = status.get("revision")
        version = (template["metadata"]["uid"], template["metadata"]["generation"])
        if self._registered.get(key) != version or not was_ready:
            registered = await self._world.engine.templates.register(key.namespace, key.name, spec)
            revision = registered.revision
            self._registered[key] = version
            if registered.created:
                message = f"Revision {revision}, version {spec.version}, {len(spec.steps)} steps."
                self._world.events.record(template, Reason.TEMPLATE_REGISTERED, message, once_per=revision)
        counts = await self._world.engine.templates.counts(key.namespace, key.name)
        rendered = self._ready_status(template, spec, str(revision), counts)
        await self._world.write_status(TASK_TEMPLATE, template, rendered)
        if not was_ready:
            self._call_waiting_tasks(key)
        return None

    def _call_waiting_tasks(self, key: ObjectKey) -> None:
        for task in self._world.tasks.in_namespace(key.namespace):
            if task["spec"]["templateRef"]["name"] == key.name and not is_true(task.get("status"), "Accepted"):
                self._world.queues.tasks.add(key_of(task))

    async def _refuse(self, template: Manifest, error: InvalidTemplate) -> None:
        message = str(error)
        generation = template["metadata"]["generation"]
        old = template.get("status") or {}
        # The last good revision stays shown: Tasks of it go on.
        status = {name: old[name] for name in ("revision", "queue", "steps", "tasks") if name in old}
        conditions = [
            Condition(type="Ready", status="False", reason="InvalidSpec", message=message),
            Condition(type="Stalled", status="True", reason="InvalidSpec", message=message),
        ]
        status |= {
            "observedGeneration": generation,
            "conditions": render(
                conditions,
                previous=old.get("conditions") or (),
                generation=generation,
                now=self._world.now(),
            ),
        }
        if await self._world.write_status(TASK_TEMPLATE, template, status):
            self._world.events.record(template, Reason.TEMPLATE_INVALID, message, once_per=f"{generation} {message}")

    def _ready_status(
        self, template: Manifest, spec: TemplateSpec, revision: str, counts: TemplateCounts
    ) -> dict[str, Any]:
        old = template.get("status") or {}
        generation = template["metadata"]["generation"]
        message = f"Revision {revision} is stored."
        conditions = [
            Condition(type="Ready", status="True", reason="Registered", message=message),
            Condition(type="Stalled", status="False", reason="Registered", message=message),
        ]
        return {
            "observedGeneration": generation,
            "revision": revision,
            "queue": template["metadata"]["namespace"],
            "steps": len(spec.steps),
            "tasks": {
                "running": counts.running,
                "waiting": counts.waiting,
                "complete": counts.complete,
                "error": counts.error,
            },
            "conditions": render(
                conditions, previous=old.get("conditions") or (), generation=generation, now=self._world.now()
            ),
        }


def is_ready(template: Mapping[str, Any]) -> bool:
    """Whether the template's current spec has been stored."""
    condition = find(template.get("status"), "Ready")
    return (
        condition is not None
        and condition.get("status") == "True"
        and condition.get("observedGeneration") == template["metadata"].get("generation")
    )
