"""Brings a Task in line: one run for its uid, suspended, resumed or cancelled as it says, and a status from the rows.

The reconciles of the work queues "Task" and "origin" (runs whose Task is gone). Everything here may be repeated: the
engine knows a resource's run by its uid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tasker.controller.kube.cache import is_going
from tasker.controller.kube.client import TASK, Manifest
from tasker.controller.kube.conditions import find, is_true, parse_timestamp
from tasker.controller.kube.events import Reason
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.tasks.status import build_status, cancelled_before_start_status, is_finished, waiting_status
from tasker.controller.templates.reconcile import is_ready
from tasker.controller.world import ACTOR, World
from tasker.errors import InvalidTask, TemplateNotFound
from tasker.model.limits import CONTEXT_BYTES_IN_RESOURCE, json_size
from tasker.model.task import TaskRequest, TaskSummary

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
"""A running Task's status is written at most this often, in seconds."""


class TaskReconciler:
    """Submits, steers and shows runs. Remembers which are open and when it wrote their status, only to write less."""

    def __init__(self, world: World, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._clock = clock
        self._written: dict[str, float] = {}

    async def reconcile(self, key: ObjectKey) -> float | None:
        task = self._world.tasks.get(key)
        if task is None:
            return None
        if is_going(task):
            self._world.queues.origins.add(ObjectKey(namespace=key.namespace, name=task["metadata"]["uid"]))
            return None
        if _is_settled(task):
            self._written.pop(task["metadata"]["uid"], None)
            return await self._expire(task)
        summary = await self._world.summaries.load(task["metadata"]["uid"])
        if summary is None:
            if is_finished(task.get("status")):
                return await self._show_settled(task)
            if "taskUuid" in (task.get("status") or {}):
                await self._write_lost(task)
                return None
            summary = await self._start(task)
            if summary is None:
                return None
        if not summary.finished:
            summary = await self._steer(task, summary)
        return await self._show(task, summary)

    async def cancel_gone(self, key: ObjectKey) -> float | None:
        """Ends the run of a Task that is gone; `key.name` is the Task's uid."""
        self._written.pop(key.name, None)
        await self._world.engine.actions.cancel_by_origin(key.name, actor=ACTOR, reason="the Task was deleted")
        return None

    async def _start(self, task: Manifest) -> TaskSummary | None:
        """Submits the run; None when it has to wait, or was refused, and the status says so."""
        if task["spec"].get("cancel"):
            await self._write_cancelled(task)
            return None
        obstacle = self._template_obstacle(task)
        if obstacle is not None:
            await self._write_waiting(task, *obstacle)
            return None
        metadata = task["metadata"]
        try:
            request = task_request(task)
            [submitted] = await self._world.engine.tasks.submit(metadata["namespace"], [request])
        except InvalidTask as error:
            await self._refuse(task, error)
            return None
        except TemplateNotFound as error:
            await self._write_waiting(task, "TemplateNotFound", str(error))
            return None
        if submitted.created:
            message = f"Run {submitted.task_uuid} of template {request.template_name}."
            self._world.events.record(task, Reason.TASK_ACCEPTED, message, once_per="accepted")
        if metadata["uid"] not in self._world.task_keys:
            # Deleted while it was being submitted: nobody else will cancel the run soon.
            self._world.queues.origins.add(ObjectKey(namespace=metadata["namespace"], name=metadata["uid"]))
        return await self._read(metadata["uid"])

    def _template_obstacle(self, task: Manifest) -> tuple[str, str] | None:
        """Why the template cannot be used yet, as a reason and a message."""
        namespace, reference = task["metadata"]["namespace"], task["spec"]["templateRef"]
        template = self._world.templates.get(ObjectKey(namespace=namespace, name=reference["name"]))
        if template is None or is_going(template):
            return "TemplateNotFound", f"There is no TaskTemplate {reference['name']} in namespace {namespace}."
        version = reference.get("version")
        if version is not None and version != template["spec"].get("version", "1.0.0"):
            return None  # an earlier version: the engine knows whether it is stored
        if not is_ready(template):
            condition = find(template.get("status"), "Ready")
            known = condition is not None and condition.get("status") == "False"
            why = str(condition["message"]) if condition is not None and known else "it has not been registered yet"
            return "TemplateNotReady", f"TaskTemplate {reference['name']} is not ready: {why}"
        return None

    async def _steer(self, task: Manifest, summary: TaskSummary) -> TaskSummary:
        """Makes the run do what the spec says; the run as it is after that."""
        engine, spec = self._world.engine, task["spec"]
        if spec.get("cancel"):
            await engine.actions.cancel(summary.task_uuid, actor=ACTOR, reason="spec.cancel was set")
        elif bool(spec.get("suspend")) and not summary.suspended:
            await engine.actions.suspend(summary.task_uuid)
        elif summary.suspended and not spec.get("suspend"):
            await engine.actions.resume(summary.task_uuid)
        else:
            return summary
        return await self._read(task["metadata"]["uid"]) or summary

    async def _show(self, task: Manifest, summary: TaskSummary) -> float | None:
        uid, old = task["metadata"]["uid"], task.get("status") or {}
        last = self._written.setdefault(uid, float("-inf"))
        if not summary.finished and is_true(old, "Accepted"):
            too_early = last + self._pause() - self._clock()
            if too_early > 0:
                return too_early
        status = build_status(summary, previous=old, generation=task["metadata"]["generation"], now=self._world.now())
        if await self._world.write_status(TASK, task, status):
            self._written[uid] = self._clock()
            self._tell(task, old, status)
        if not summary.finished:
            # That a worker took a step is no move of the run, so nothing tells of it: it has to be looked at.
            return 2 * self._pause() if summary.counts.ready else None
        self._written.pop(uid, None)
        return self._time_to_live(task, status)

    def _pause(self) -> float:
        """Seconds between two progress writes of a Task: one, and more when very many Tasks are open."""
        return max(PROGRESS_SECONDS, len(self._written) / self._world.settings.progress_writes_per_second)

    def _tell(self, task: Manifest, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        failures = new.get("failures")
        if failures and not old.get("failures"):
            first = failures[-1]
            message = f"Step {first['step']}, attempt {first['attempt']}: {first['errorType']}: {first['message']}"
            self._world.events.record(task, Reason.STEP_FAILED, message, once_per="first failure")
        if old.get("phase") == new["phase"]:
            return
        condition = find(new, "Succeeded")
        message = str(condition["message"]) if condition is not None else ""
        match new["phase"]:
            case "Succeeded":
                self._world.events.record(task, Reason.TASK_SUCCEEDED, message, once_per="end")
            case "Failed":
                self._world.events.record(task, Reason.TASK_FAILED, message, once_per="end")
            case "Cancelled":
                self._world.events.record(task, Reason.TASK_CANCELLED, message, once_per="end")
            case _:
                pass

    async def _refuse(self, task: Manifest, error: InvalidTask) -> None:
        reason = "InvalidContext" if error.path.startswith("spec.context") else "InvalidTask"
        await self._write_waiting(task, reason, str(error), stalled=True)
        self._world.events.record(task, Reason.TASK_INVALID, str(error), once_per="invalid")

    async def _write_waiting(
        self, task: Manifest, reason: str, message: str, *, stalled: bool = False, keep: Mapping[str, str] | None = None
    ) -> None:
        status = dict(keep or {}) | waiting_status(
            reason,
            message,
            stalled=stalled,
            previous=task.get("status"),
            generation=task["metadata"]["generation"],
            now=self._world.now(),
        )
        await self._world.write_status(TASK, task, status)

    async def _write_cancelled(self, task: Manifest) -> None:
        status = cancelled_before_start_status(
            previous=task.get("status"), generation=task["metadata"]["generation"], now=self._world.now()
        )
        if await self._world.write_status(TASK, task, status):
            self._tell(task, task.get("status") or {}, status)

    async def _write_lost(self, task: Manifest) -> None:
        """The database was restored to a time before the run, or emptied. Running it again is a person's decision."""
        message = f"The database has no run {task['status']['taskUuid']}; create a new Task to run it again."
        await self._write_waiting(task, "RunLost", message, stalled=True, keep={"taskUuid": task["status"]["taskUuid"]})

    async def _show_settled(self, task: Manifest) -> float | None:
        """A finished Task whose rows are gone, or never were: only the observed generation can move."""
        status = {**task["status"], "observedGeneration": task["metadata"]["generation"]}
        await self._world.write_status(TASK, task, status)
        return self._time_to_live(task, status)

    async def _expire(self, task: Manifest) -> float | None:
        """Deletes a finished Task whose time has come; else the seconds until then."""
        left = self._time_to_live(task, task["status"])
        if left is None or left > 0:
            return left
        metadata = task["metadata"]
        await self._world.cluster.delete(TASK, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        return None

    def _time_to_live(self, task: Manifest, status: Mapping[str, Any]) -> float | None:
        seconds = task["spec"].get("ttlSecondsAfterFinished")
        if seconds is None:
            metadata, reference = task["metadata"], task["spec"]["templateRef"]
            template = self._world.templates.get(ObjectKey(namespace=metadata["namespace"], name=reference["name"]))
            seconds = template["spec"].get("ttlSecondsAfterFinished") if template is not None else None
        completed = status.get("completionTime")
        if seconds is None or completed is None:
            return None
        end: datetime = parse_timestamp(completed) + timedelta(seconds=seconds)
        return max(0.0, (end - self._world.now()).total_seconds())

    async def _read(self, uid: str) -> TaskSummary | None:
        found = await self._world.engine.tasks.read_by_origin([uid])
        return found[0] if found else None


def task_request(task: Mapping[str, Any]) -> TaskRequest:
    """What the Task asks the engine for. Raises `InvalidTask` when its context cannot be a resource's."""
    spec, metadata = task["spec"], task["metadata"]
    context = spec.get("context", {})
    if isinstance(context, dict):
        size = json_size(context)
        if size > CONTEXT_BYTES_IN_RESOURCE:
            raise InvalidTask(
                "spec.context", f"is {size} bytes; a Task resource may carry at most {CONTEXT_BYTES_IN_RESOURCE}"
            )
    return TaskRequest(
        template_name=spec["templateRef"]["name"],
        template_version=spec["templateRef"].get("version"),
        context=context,
        priority=spec.get("priority", 0),
        correlation_id=spec.get("correlationId"),
        parent_correlation_id=spec.get("parentCorrelationId"),
        initiator=spec.get("initiator"),
        source_system=spec.get("sourceSystem"),
        reason=spec.get("reason"),
        tags=tuple(spec.get("tags") or ()),
        suspended=bool(spec.get("suspend")),
        deadline_seconds=spec.get("deadlineSeconds"),
        origin_uid=metadata["uid"],
        origin_name=metadata["name"],
    )


def _is_settled(task: Mapping[str, Any]) -> bool:
    """Whether the status already shows the end, for the spec as it is now."""
    status = task.get("status") or {}
    return is_finished(status) and status.get("observedGeneration") == task["metadata"].get("generation")
