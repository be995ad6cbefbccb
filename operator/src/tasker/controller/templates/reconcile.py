"""Brings a TaskTemplate in line: its spec becomes a stored revision, its status says so or says why not.

The reconcile of `WorkQueue` "TaskTemplate". Tasks that wait for the template are queued when it becomes Ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from tasker.controller.kube.client import TASK_TEMPLATE, Manifest
from tasker.controller.kube.conditions import Condition, render, utc_now
from tasker.controller.kube.events import EventRecorder, Reason
from tasker.controller.kube.invalid import invalid_status
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.runtime.queues import KeyQueue
from tasker.engine.templates import Templates
from tasker.errors import InvalidInput, InvalidResource, InvalidTemplate
from tasker.model.task import TemplateCounts

logger = logging.getLogger(__name__)

COUNTS_SECONDS = 10.0
"""How often at most a template's task counts are read again."""


class WaitingTasks(Protocol):
    """The part of the cache of Tasks that this reconciler uses."""

    def waiting_for(self, template: ObjectKey) -> list[ObjectKey]:
        """The Tasks of this template that have not been accepted."""


@dataclass(frozen=True, kw_only=True)
class _Registered:
    """What was stored of one generation of a template."""

    uid: str
    generation: int
    revision: str
    steps: int

    def is_of(self, template: TaskTemplate) -> bool:
        return (self.uid, self.generation) == (template.metadata.uid, template.metadata.generation)


class TemplateReconciler:
    """Registers templates with the engine. Remembers what it has registered only to save the call."""

    def __init__(
        self,
        *,
        templates: TypedCache[TaskTemplate],
        waiting_tasks: WaitingTasks,
        task_queue: KeyQueue,
        engine_templates: Templates,
        statuses: StatusWriter,
        events: EventRecorder,
        environment: str,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._templates = templates
        self._waiting_tasks = waiting_tasks
        self._task_queue = task_queue
        self._engine_templates = engine_templates
        self._statuses = statuses
        self._events = events
        self._environment = environment
        self._now = now
        self._registered: dict[ObjectKey, _Registered] = {}

    def forget(self) -> None:
        """Registers everything again when it is next reconciled: the database may have been restored."""
        self._registered.clear()

    async def reconcile(self, key: ObjectKey) -> float | None:
        try:
            template = self._templates.read(key)
            if template is None or template.is_being_deleted:
                self._registered.pop(key, None)
                return None
            was_ready = template.is_ready
            registered = await self._register(key, template)
        except (InvalidResource, InvalidTemplate) as error:
            await self._refuse(key, error)
            return None
        counts = await self._engine_templates.counts(key.namespace, key.name)
        status = self._ready_status(template, registered, counts)
        await self._statuses.write(TASK_TEMPLATE, template.manifest, status)
        if not was_ready:
            for task in self._waiting_tasks.waiting_for(key):
                self._task_queue.add(task)
        return None

    async def _register(self, key: ObjectKey, template: TaskTemplate) -> _Registered:
        """The spec, checked and stored; without doing either when it is known to be. Raises `InvalidTemplate`."""
        metadata = template.metadata
        known = self._registered.get(key)
        if known is not None and known.is_of(template) and template.is_ready:
            return known
        parse = partial(template.parse_spec, environment=self._environment)
        # Schemas of a template may take seconds to check.
        spec = await asyncio.to_thread(parse) if template.has_schemas else parse()
        registered = await self._engine_templates.register(key.namespace, key.name, spec)
        made = _Registered(
            uid=metadata.uid, generation=metadata.generation, revision=registered.revision, steps=len(spec.steps)
        )
        self._registered[key] = made
        if registered.created:
            message = f"Revision {registered.revision}, version {spec.version}, {len(spec.steps)} steps."
            self._events.record(template.manifest, Reason.TEMPLATE_REGISTERED, message, once_per=registered.revision)
        return made

    async def _refuse(self, key: ObjectKey, error: InvalidInput) -> None:
        """Writes the fault into the status. The last good revision stays there: its Tasks continue."""
        manifest = self._templates.get(key)
        if manifest is None:
            return
        message = str(error)
        conditions = [
            Condition(type="Ready", status="False", reason="InvalidSpec", message=message),
            Condition(type="Stalled", status="True", reason="InvalidSpec", message=message),
        ]
        status = invalid_status(manifest, conditions, now=self._now())
        if await self._statuses.write(TASK_TEMPLATE, manifest, status):
            self._record_invalid(manifest, message)

    def _record_invalid(self, manifest: Manifest, message: str) -> None:
        once_per = f"{manifest['metadata'].get('generation')} {message}"
        self._events.record(manifest, Reason.TEMPLATE_INVALID, message, once_per=once_per)

    def _ready_status(self, template: TaskTemplate, registered: _Registered, counts: TemplateCounts) -> dict[str, Any]:
        metadata = template.metadata
        message = f"Revision {registered.revision} is stored."
        conditions = [
            Condition(type="Ready", status="True", reason="Registered", message=message),
            Condition(type="Stalled", status="False", reason="Registered", message=message),
        ]
        return {
            "observedGeneration": metadata.generation,
            "revision": registered.revision,
            "queue": metadata.namespace,
            "steps": registered.steps,
            "tasks": {
                "running": counts.running,
                "waiting": counts.waiting,
                "complete": counts.complete,
                "error": counts.error,
            },
            "conditions": render(
                conditions,
                previous=template.status.conditions,
                generation=metadata.generation,
                now=self._now(),
            ),
        }
