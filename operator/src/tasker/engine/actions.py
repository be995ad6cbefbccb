"""What people do to runs: cancel, suspend, resume. Each is one database function that may be repeated."""

from __future__ import annotations

from uuid import UUID

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.engine.workers import hint_ready
from tasker.errors import TaskNotFound
from tasker.model.task import Hold


class Actions:
    """Calls that change a run from outside. Each returns False when it changed nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def cancel(self, task_uuid: UUID, *, actor: str, reason: str) -> bool:
        """Cancels a run for good. False when it had ended. Raises `TaskNotFound`."""
        return await self._act("cancel_task", await self._task_id(task_uuid), actor=actor, reason=reason)

    async def suspend(self, task_uuid: UUID, *, actor: str, reason: str, hold: Hold = Hold.PERSON) -> bool:
        """Nothing new of the run starts. False when it was held so, or had ended. Raises `TaskNotFound`."""
        return await self._act("suspend_task", await self._task_id(task_uuid), hold=hold, actor=actor, reason=reason)

    async def resume(self, task_uuid: UUID, *, actor: str, reason: str, hold: Hold = Hold.PERSON) -> bool:
        """Takes a hold back; the run goes on when it was the last. False when it was not held so, or had ended. Raises
        `TaskNotFound`."""
        task_id = await self._task_id(task_uuid)
        resumed = await self._act("resume_task", task_id, hold=hold, actor=actor, reason=reason)
        if resumed:
            await hint_ready(self._database)
        return resumed

    async def cancel_by_origin(self, origin_uid: str, *, actor: str, reason: str) -> bool:
        """Cancels the run that a resource asked for. False when there is none, or it had ended."""
        task_id = await self._database.fetch_value(
            load_queries("tasks")["task_id_by_origin"],
            {"origin_uid": origin_uid, "installation": self._database.installation},
        )
        if task_id is None:
            return False
        return await self._act("cancel_task", task_id, actor=actor, reason=reason)

    async def cancel_namespace(self, namespace: str, *, actor: str, reason: str) -> int:
        """Cancels all runs of a namespace; returns how many had not ended."""
        rows = await self._database.fetch(
            load_queries("tasks")["open_task_ids_of_namespace"],
            {"namespace": namespace, "installation": self._database.installation},
        )
        cancelled = 0
        for row in rows:
            cancelled += await self._act("cancel_task", row["task_id"], actor=actor, reason=reason)
        return cancelled

    async def _act(self, action: str, task_id: int, **arguments: str) -> bool:
        changed = await self._database.fetch_value(load_queries("tasks")[action], {"task_id": task_id, **arguments})
        return bool(changed)

    async def _task_id(self, task_uuid: UUID) -> int:
        task_id: int | None = await self._database.fetch_value(
            load_queries("tasks")["task_ids_by_uuid"], {"task_uuid": task_uuid}
        )
        if task_id is None:
            raise TaskNotFound(f"no task {task_uuid}")
        return task_id
