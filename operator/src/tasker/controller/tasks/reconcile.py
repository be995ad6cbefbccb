"""Brings a Task in line: one run for its uid, suspended, resumed or cancelled as it says, and a status from the rows.

The reconcile of the work queue "Task". Everything here may be repeated: the engine knows a resource's run by its uid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tasker.controller.actor import ACTOR
from tasker.controller.kube.cache import is_being_deleted
from tasker.controller.kube.client import TASK, Cluster
from tasker.controller.kube.conditions import Condition, find, parse_timestamp, utc_now
from tasker.controller.kube.events import EventRecorder, Reason
from tasker.controller.kube.invalid import invalid_status
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.task import Task
from tasker.controller.kube.resources.task_template import TaskTemplate
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.runtime.queues import KeyQueue
from tasker.controller.tasks.cache import TaskCache
from tasker.controller.tasks.progress import ProgressPace
from tasker.controller.tasks.status import (
    CONDITION_MESSAGE_LIMIT,
    build_status,
    cancelled_before_start_status,
    waiting_conditions,
    waiting_status,
)
from tasker.controller.tasks.summaries import SummaryReader
from tasker.engine.actions import Actions
from tasker.engine.tasks import Tasks
from tasker.errors import Busy, DuplicateTask, InvalidInput, InvalidResource, InvalidTask, TemplateNotFound
from tasker.model.limits import CONTEXT_BYTES_IN_RESOURCE, json_size
from tasker.model.task import CANCELLED_BY_RESOURCE, Hold, TaskRequest, TaskSummary

logger = logging.getLogger(__name__)


class TaskReconciler:
    """Submits and steers runs, and writes their statuses."""

    def __init__(
        self,
        *,
        tasks: TaskCache,
        templates: TypedCache[TaskTemplate],
        orphan_queue: KeyQueue,
        engine_tasks: Tasks,
        engine_actions: Actions,
        summaries: SummaryReader,
        cluster: Cluster,
        statuses: StatusWriter,
        events: EventRecorder,
        progress: ProgressPace,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._tasks = tasks
        self._templates = templates
        self._orphan_queue = orphan_queue
        self._engine_tasks = engine_tasks
        self._engine_actions = engine_actions
        self._summaries = summaries
        self._cluster = cluster
        self._statuses = statuses
        self._events = events
        self._progress = progress
        self._now = now

    async def reconcile(self, key: ObjectKey) -> float | None:
        manifest = self._tasks.get(key)
        if manifest is None:
            return None
        uid = manifest["metadata"]["uid"]
        if is_being_deleted(manifest):
            self._cancel_run(key.namespace, uid)
            return None
        try:
            task = self._tasks.read(key)
        except InvalidResource as error:
            await self._refuse_unreadable(key, error)
            return None
        if task is None:
            return None
        moved = self._tasks.take_moved(uid)
        try:
            if task.is_settled and not moved:
                self._progress.forget(uid)
                return await self._expire(task)
            return await self._reconcile_run(task)
        except Exception:
            if moved:
                self._tasks.note_moved(uid)
            raise

    async def _reconcile_run(self, task: Task) -> float | None:
        summary = await self._summaries.load(task.metadata.uid)
        if summary is None:
            if task.status.is_finished:
                return await self._observe_finished(task)
            if task.status.task_uuid is not None:
                await self._write_lost(task, task.status.task_uuid)
                return None
            return await self._start(task)
        if not summary.finished:
            summary = await self._steer(task, summary)
        return await self._write_progress(task, summary)

    def _cancel_run(self, namespace: str, uid: str) -> None:
        self._orphan_queue.add(ObjectKey(namespace=namespace, name=uid))

    async def _start(self, task: Task) -> float | None:
        """Submits the run; the seconds until its progress is to be shown.

        None when it has to wait, or was refused, and the status says so.
        """
        if task.spec.cancel:
            await self._write_cancelled(task)
            return None
        refused = task.status.condition("Accepted")
        if refused is not None and refused.reason == "DuplicateTask":
            # For good, also when the place has become free since: what is refused does not start by itself later.
            await self._write_waiting(task, "DuplicateTask", refused.message, stalled=True)
            return None
        obstacle = self._template_obstacle(task)
        if obstacle is not None:
            await self._write_waiting(task, *obstacle)
            return None
        metadata = task.metadata
        try:
            request = task_request(task)
            [submitted] = await self._engine_tasks.submit(metadata.namespace, [request])
        except InvalidTask as error:
            await self._refuse(task, error)
            return None
        except Busy as error:
            return error.seconds
        except TemplateNotFound as error:
            await self._write_waiting(task, "TemplateNotFound", str(error))
            return None
        if submitted.refusal is not None:
            await self._refuse_duplicate(task, submitted.refusal)
            return None
        if submitted.created:
            message = f"Run {submitted.task_uuid} of template {request.template_name}."
            self._events.record(task.manifest, Reason.TASK_ACCEPTED, message, once_per="accepted")
        if submitted.context_fault is not None:
            self._events.record(task.manifest, Reason.INVALID_CONTEXT, str(submitted.context_fault), once_per="context")
        if self._tasks.find_uid(metadata.uid) is None:
            # Deleted while it was being submitted: nobody else will cancel the run soon.
            self._cancel_run(metadata.namespace, metadata.uid)
        self._progress.note_start(metadata.uid)
        return self._progress.wait_seconds(metadata.uid)

    def _template_obstacle(self, task: Task) -> tuple[str, str] | None:
        """Why the template cannot be used yet, as a reason and a message."""
        namespace, reference = task.metadata.namespace, task.spec.template_ref
        try:
            template = self._templates.read(ObjectKey(namespace=namespace, name=reference.name))
        except InvalidResource as error:
            return "TemplateNotReady", f"TaskTemplate {reference.name} is not ready: {error}"
        if template is None or template.is_being_deleted:
            return "TemplateNotFound", f"There is no TaskTemplate {reference.name} in namespace {namespace}."
        if reference.version is not None and reference.version != template.spec.version:
            return None  # an earlier version: the engine knows whether it is stored
        if not template.is_ready:
            condition = template.status.condition("Ready")
            refused = condition is not None and condition.status == "False"
            why = condition.message if condition is not None and refused else "it has not been registered yet"
            return "TemplateNotReady", f"TaskTemplate {reference.name} is not ready: {why}"
        return None

    async def _steer(self, task: Task, summary: TaskSummary) -> TaskSummary:
        """Makes the run do what the spec says; the run as it is after that."""
        if task.spec.cancel:
            await self._engine_actions.cancel(summary.task_uuid, actor=ACTOR, reason=CANCELLED_BY_RESOURCE)
        elif task.spec.suspend and Hold.RESOURCE not in summary.holds:
            await self._engine_actions.suspend(
                summary.task_uuid, hold=Hold.RESOURCE, actor=ACTOR, reason="spec.suspend was set"
            )
        elif Hold.RESOURCE in summary.holds and not task.spec.suspend:
            await self._engine_actions.resume(
                summary.task_uuid, hold=Hold.RESOURCE, actor=ACTOR, reason="spec.suspend was taken back"
            )
        else:
            return summary
        return await self._read_run(task.metadata.uid) or summary

    async def _write_progress(self, task: Task, summary: TaskSummary) -> float | None:
        """Writes the status of a run, its progress no more often than the pace allows and its end at once."""
        uid = task.metadata.uid
        wait = self._progress.wait_seconds(uid)
        if not summary.finished and wait > 0:
            return wait
        status = build_status(summary, previous=task.status, generation=task.metadata.generation, now=self._now())
        current = task.manifest
        if task.status.is_finished and _shows_another_end(task, status):
            # The run went on after its end. The cache has left out what is large in the status of that.
            live = await self._cluster.get(TASK, task.metadata.namespace, task.metadata.name)
            if live is None or live["metadata"]["uid"] != uid:
                return None
            current = live
        if await self._statuses.write(TASK, current, status):
            self._progress.note_write(uid)
            self._record_events(task, status)
        if not summary.finished:
            # A worker that takes a step is no move of the run, so no change announces it: the run is read again.
            return 2 * self._progress.pause_seconds if summary.counts.ready else None
        self._progress.forget(uid)
        return self._time_to_live(task, status.get("completionTime"))

    def _record_events(self, task: Task, status: Mapping[str, Any]) -> None:
        """Kubernetes Events for what the new status shows and the old one did not."""
        failures = status.get("failures")
        if failures and not task.status.failures:
            first = failures[-1]
            message = f"Step {first['step']}, attempt {first['attempt']}: {first['errorType']}: {first['message']}"
            self._events.record(task.manifest, Reason.STEP_FAILED, message, once_per="first failure")
        if task.status.phase == status["phase"]:
            return
        condition = find(status, "Succeeded")
        message = str(condition["message"]) if condition is not None else ""
        end = f"end {status.get('completionTime')}"
        match status["phase"]:
            case "Succeeded":
                self._events.record(task.manifest, Reason.TASK_SUCCEEDED, message, once_per=end)
            case "Failed":
                self._events.record(task.manifest, Reason.TASK_FAILED, message, once_per=end)
            case "Cancelled":
                self._events.record(task.manifest, Reason.TASK_CANCELLED, message, once_per=end)
            case _ if task.status.is_finished:
                taken_up = f"The run goes on, after it had ended in phase {task.status.phase}."
                end = f"end {task.status.completion_time}"
                self._events.record(task.manifest, Reason.TASK_TAKEN_UP, taken_up, once_per=end)
            case _:
                pass

    async def _refuse(self, task: Task, error: InvalidTask) -> None:
        await self._write_waiting(task, _refusal_reason(error), str(error), stalled=True)
        # Another fault is told too: the context may have met another revision of the template.
        self._events.record(task.manifest, Reason.TASK_INVALID, str(error), once_per=str(error))

    async def _refuse_duplicate(self, task: Task, error: DuplicateTask) -> None:
        await self._write_waiting(task, "DuplicateTask", str(error), stalled=True)
        self._events.record(task.manifest, Reason.TASK_DUPLICATE, str(error), once_per="duplicate")

    async def _refuse_unreadable(self, key: ObjectKey, error: InvalidResource) -> None:
        """Shows what is wrong with a Task that cannot be read. A run that it has is left alone."""
        manifest = self._tasks.get(key)
        if manifest is None:
            return
        reason, message = _refusal_reason(error), str(error)
        old = manifest.get("status")
        if isinstance(old, Mapping) and "taskUuid" in old:
            conditions = [Condition(type="Stalled", status="True", reason=reason, message=message)]
        else:
            conditions = waiting_conditions(reason, message, stalled=True)
        status = {"phase": "Pending"} | invalid_status(
            manifest, conditions, now=self._now(), message_limit=CONDITION_MESSAGE_LIMIT
        )
        if await self._statuses.write(TASK, manifest, status):
            self._events.record(manifest, Reason.TASK_INVALID, message, once_per="invalid")

    async def _write_waiting(
        self, task: Task, reason: str, message: str, *, stalled: bool = False, keep: Mapping[str, str] | None = None
    ) -> None:
        status = dict(keep or {}) | waiting_status(
            reason,
            message,
            stalled=stalled,
            previous=task.status,
            generation=task.metadata.generation,
            now=self._now(),
        )
        await self._statuses.write(TASK, task.manifest, status)

    async def _write_cancelled(self, task: Task) -> None:
        status = cancelled_before_start_status(
            previous=task.status, generation=task.metadata.generation, now=self._now()
        )
        if await self._statuses.write(TASK, task.manifest, status):
            self._record_events(task, status)

    async def _write_lost(self, task: Task, task_uuid: str) -> None:
        """The database was restored to a time before the run, or emptied. Running it again is a person's decision."""
        message = f"The database has no run {task_uuid}; create a new Task to run it again."
        await self._write_waiting(task, "RunLost", message, stalled=True, keep={"taskUuid": task_uuid})

    async def _observe_finished(self, task: Task) -> float | None:
        """A finished Task whose rows were deleted, or never were: only the observed generation can move."""
        status = {**task.manifest["status"], "observedGeneration": task.metadata.generation}
        await self._statuses.write(TASK, task.manifest, status)
        return self._time_to_live(task, task.status.completion_time)

    async def _expire(self, task: Task) -> float | None:
        """Deletes a finished Task whose time has come; else the seconds until then. One whose run goes on stays."""
        left = self._time_to_live(task, task.status.completion_time)
        if left is None or left > 0:
            return left
        metadata = task.metadata
        summary = await self._summaries.load(metadata.uid)
        if summary is not None and not summary.finished:
            return await self._reconcile_run(task)
        await self._cluster.delete(TASK, metadata.namespace, metadata.name, uid=metadata.uid)
        return None

    def _time_to_live(self, task: Task, completion_time: str | None) -> float | None:
        """Seconds until the finished Task is deleted, none or less when it is time; None when it stays."""
        seconds = task.spec.ttl_seconds_after_finished
        if seconds is None:
            key = ObjectKey(namespace=task.metadata.namespace, name=task.spec.template_ref.name)
            template = self._templates.read_valid(key)
            seconds = template.spec.ttl_seconds_after_finished if template is not None else None
        if seconds is None or completion_time is None:
            return None
        end = parse_timestamp(completion_time) + timedelta(seconds=seconds)
        return (end - self._now()).total_seconds()

    async def _read_run(self, uid: str) -> TaskSummary | None:
        return next(iter(await self._engine_tasks.read_by_origin([uid])), None)


def task_request(task: Task) -> TaskRequest:
    """The Task as a request to the engine. Raises `InvalidTask` when its context cannot be a resource's."""
    spec = task.spec
    size = json_size(spec.context)
    if size > CONTEXT_BYTES_IN_RESOURCE:
        raise InvalidTask(
            "spec.context", f"is {size} bytes; a Task resource may carry at most {CONTEXT_BYTES_IN_RESOURCE}"
        )
    return TaskRequest(
        template_name=spec.template_ref.name,
        template_version=spec.template_ref.version,
        context=spec.context,
        priority=spec.priority,
        idempotency_key=spec.idempotency_key,
        correlation_id=spec.correlation_id,
        parent_correlation_id=spec.parent_correlation_id,
        initiator=spec.initiator,
        source_system=spec.source_system,
        reason=spec.reason,
        tags=spec.tags,
        suspended=spec.suspend,
        deadline_seconds=spec.deadline_seconds,
        origin_uid=task.metadata.uid,
        origin_name=task.metadata.name,
    )


def _shows_another_end(task: Task, status: Mapping[str, Any]) -> bool:
    """Whether the Task shows an end that this status does not."""
    return (task.status.phase, task.status.completion_time) != (status["phase"], status.get("completionTime"))


def _refusal_reason(error: InvalidInput) -> str:
    return "InvalidContext" if error.path.startswith("spec.context") else "InvalidTask"
