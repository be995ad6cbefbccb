"""The engine's one face: what the operator, the command line and other programs do with templates and runs.

It checks what enters, calls one database function for each action, and hints workers afterwards. Nothing is kept in
memory; any number of engines may work on one database.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from tasker.errors import StoreError, TaskNotFound
from tasker.model.task import (
    OpenOrigin,
    RegisteredTemplate,
    SubmittedTask,
    TaskRequest,
    TaskSummary,
    TemplateCounts,
)
from tasker.model.template import TemplateSpec
from tasker.model.workers import PoolDemand, WorkerInfo
from tasker.store import notifications, tasks, templates, workers
from tasker.store.pool import Database
from tasker.store.tasks import ChangeCursor, Changes

SUMMARIES_A_QUERY = 200
"""Bounds the size of one answer; a summary is a few kilobytes at most."""


class Engine:
    """Actions and reads on one database. Every method raises `StoreUnavailable` while it cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register_template(self, namespace: str, name: str, spec: TemplateSpec) -> RegisteredTemplate:
        """Makes `spec` what new runs of the template get; runs under way keep their revision."""
        return await templates.register_template(self._database, namespace, name, spec)

    async def template_counts(self, namespace: str, name: str) -> TemplateCounts:
        """How many runs of a template stand how."""
        return await templates.template_counts(self._database, namespace, name)

    async def submit_tasks(self, namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
        """Creates runs, all or none, in one call; the answer is in the order of `requests`.

        Raises `InvalidTask` for a request that cannot be accepted and `TemplateNotFound`.
        """
        for request in requests:
            request.check()
        submitted = await tasks.submit_tasks(self._database, namespace, requests)
        # The runs are accepted whether or not the hint gets through.
        with contextlib.suppress(StoreError):
            await self.hint_ready()
        return submitted

    async def cancel_task(self, task_uuid: UUID, *, actor: str, reason: str) -> bool:
        """Cancels a run for good. False when it had ended. Raises `TaskNotFound`."""
        return await tasks.act(
            self._database, "cancel_task", await self._task_id(task_uuid), actor=actor, reason=reason
        )

    async def suspend_task(self, task_uuid: UUID) -> bool:
        """Nothing new of the run starts. False when that was so, or it had ended. Raises `TaskNotFound`."""
        return await tasks.act(self._database, "suspend_task", await self._task_id(task_uuid))

    async def resume_task(self, task_uuid: UUID) -> bool:
        """The run goes on. False when it was not suspended. Raises `TaskNotFound`."""
        resumed = await tasks.act(self._database, "resume_task", await self._task_id(task_uuid))
        if resumed:
            await self.hint_ready()
        return resumed

    async def cancel_by_origin(self, origin_uid: str, *, actor: str, reason: str) -> bool:
        """Cancels the run that a resource asked for. False when there is none, or it had ended."""
        task_id = await tasks.task_id_by_origin(self._database, origin_uid)
        if task_id is None:
            return False
        return await tasks.act(self._database, "cancel_task", task_id, actor=actor, reason=reason)

    async def cancel_namespace(self, namespace: str, *, actor: str, reason: str) -> int:
        """Cancels all runs of a namespace; returns how many had not ended."""
        cancelled = 0
        for task_id in await tasks.open_task_ids(self._database, namespace):
            cancelled += await tasks.act(self._database, "cancel_task", task_id, actor=actor, reason=reason)
        return cancelled

    async def read_task(self, task_uuid: UUID) -> TaskSummary:
        """One run. Raises `TaskNotFound`."""
        found = await tasks.summaries(self._database, task_uuids=[task_uuid])
        if not found:
            raise TaskNotFound(f"no task {task_uuid}")
        return found[0]

    async def read_summaries(self, origin_uids: Sequence[str]) -> list[TaskSummary]:
        """The runs that these resources asked for; those without a run are left out."""
        found: list[TaskSummary] = []
        for start in range(0, len(origin_uids), SUMMARIES_A_QUERY):
            part = origin_uids[start : start + SUMMARIES_A_QUERY]
            found += await tasks.summaries(self._database, origin_uids=part)
        return found

    async def finished_count(self, task_uuids: Sequence[UUID]) -> int:
        """How many of these runs have ended."""
        return await tasks.finished_count(self._database, task_uuids)

    async def read_changes(self, cursor: ChangeCursor | None) -> Changes:
        """Resources whose runs moved since `cursor` (None: from now on). No move is ever left out."""
        return await tasks.read_changes(self._database, cursor)

    async def open_origins(self, namespace: str | None = None) -> list[OpenOrigin]:
        """Resources whose runs have not ended, of one namespace or of all."""
        return await tasks.open_origins(self._database, namespace)

    async def read_demand(self, pools: Sequence[tuple[str, str]]) -> list[PoolDemand]:
        """Queue and work in hand of each (namespace, pool)."""
        return await workers.read_demand(self._database, pools)

    async def read_workers(self, namespace: str) -> list[WorkerInfo]:
        """The registered workers of a namespace."""
        return await workers.read_workers(self._database, namespace)

    async def drain_workers(self, namespace: str, names: Sequence[str]) -> list[str]:
        """Marks those of `names` that hold nothing as draining, and returns them: they stay idle."""
        return await workers.drain_idle_workers(self._database, namespace, names)

    async def drain_pool(self, namespace: str, pool: str) -> list[str]:
        """Marks every worker of the pool as draining, busy ones too, and returns those newly marked: the pool ends."""
        return await workers.drain_pool(self._database, namespace, pool)

    async def undrain_workers(self, namespace: str, names: Sequence[str]) -> list[str]:
        """Takes the mark back, and returns those that had it."""
        undrained = await workers.undrain_workers(self._database, namespace, names)
        if undrained:
            await self.hint_ready()
        return undrained

    async def expire_workers(self, namespace: str, names: Sequence[str], *, actor: str, reason: str) -> int:
        """Ends workers that are known to be gone: their steps go elsewhere at once. Returns how many steps."""
        return await workers.expire_workers(self._database, namespace, names, actor=actor, reason=reason)

    async def sweep(self, limit: int = 500) -> dict[str, int]:
        """Repairs what time has broken, at most `limit` of a kind; counts by kind."""
        repaired = await workers.sweep(self._database, limit)
        if repaired:
            await self.hint_ready()
        return repaired

    async def hint_ready(self) -> None:
        """Wakes idle workers."""
        await workers.hint_ready(self._database)

    def listen(self) -> AsyncIterator[str]:
        """Yields a channel's name for each hint of ready steps or finished runs; connects again when it must."""
        settings = self._database.settings
        return notifications.listen(settings.listen_url or settings.url, [notifications.READY, notifications.FINISHED])

    async def _task_id(self, task_uuid: UUID) -> int:
        task_id = await tasks.task_id(self._database, task_uuid)
        if task_id is None:
            raise TaskNotFound(f"no task {task_uuid}")
        return task_id
