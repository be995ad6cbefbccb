"""What people do to runs: cancel, suspend, resume, and repair step by step. Each is one database function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg.types.json import Json

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.engine.workers import hint_ready
from tasker.errors import ActionRefused, InvalidAction, TaskNotFound
from tasker.model import limits
from tasker.model.schemas import context_fault
from tasker.model.task import CANCELLED_BY_RESOURCE, Hold


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

    # What people do to single steps. A run that ended in error goes on by it, with all back that its end cancelled.
    # Once its deadline has passed it needs a new one: `deadline_seconds` from now. Each wakes the run, and raises
    # `TaskNotFound`, `StepNotFound`, and `ActionRefused` when the run or the step is not in a state for it.

    async def reset_step(
        self, task_uuid: UUID, step: str, *, actor: str, reason: str, deadline_seconds: float | None = None
    ) -> bool:
        """A step that failed for good, or waits for its retry, runs again at once, with as many more attempts as its
        template allows. False when it is in the queue or runs already."""
        return bool(await self._repair("reset_step", task_uuid, step, deadline_seconds, actor=actor, reason=reason))

    async def resolve_step(
        self, task_uuid: UUID, step: str, *, actor: str, reason: str, deadline_seconds: float | None = None
    ) -> bool:
        """What depends on a step goes on without a result of it; of a decision no branch is chosen. False when it was
        resolved already."""
        return bool(await self._repair("resolve_step", task_uuid, step, deadline_seconds, actor=actor, reason=reason))

    async def complete_step(
        self,
        task_uuid: UUID,
        step: str,
        result: Any,
        *,
        branches: Sequence[str] | None = None,
        actor: str,
        reason: str,
        deadline_seconds: float | None = None,
    ) -> bool:
        """Gives a step the result that its handler would have returned. A decision needs the steps to run, as
        `branches`, which may be none. Raises `InvalidAction`, too, for a result that cannot be one or does not meet
        the resultSchema of the step."""
        fault = limits.json_fault(result, "result")
        if fault is not None:
            raise InvalidAction(*fault)
        size = limits.json_size(result)
        if size > limits.RESULT_BYTES:
            raise InvalidAction("result", f"is {size} bytes; at most {limits.RESULT_BYTES} are allowed")
        schema = await self._database.fetch_value(
            load_queries("tasks")["result_schema"], {"task_id": await self._task_id(task_uuid), "step": step}
        )
        # It may take a second, of a thread.
        mismatch = None if schema is None else await asyncio.to_thread(context_fault, schema, result)
        if mismatch is not None:
            raise InvalidAction(f"result{mismatch[0]}", mismatch[1])
        changed = await self._repair(
            "complete_step",
            task_uuid,
            step,
            deadline_seconds,
            actor=actor,
            reason=reason,
            result=Json(result),
            branches=None if branches is None else list(branches),
        )
        return bool(changed)

    async def skip_step(
        self, task_uuid: UUID, step: str, *, actor: str, reason: str, deadline_seconds: float | None = None
    ) -> bool:
        """Leaves a step out, and all that only it leads to. False when it was skipped already."""
        return bool(await self._repair("skip_step", task_uuid, step, deadline_seconds, actor=actor, reason=reason))

    async def rerun(
        self, task_uuid: UUID, step: str, *, actor: str, reason: str, deadline_seconds: float | None = None
    ) -> int:
        """A run goes again from a step: it and all that depends on it. Works for runs that are complete or cancelled,
        too. Returns how many steps went back to where they began, 0 when none of them had gone anywhere yet.

        Raises as the others do, and `ActionRefused` for a run that the spec of its resource has cancelled: that is
        final.
        """
        task_id = await self._task_id(task_uuid)
        if await self._database.fetch_value(
            load_queries("tasks")["cancelled_because"], {"task_id": task_id, "reason": CANCELLED_BY_RESOURCE}
        ):
            raise ActionRefused(f"the resource of task {task_uuid} says spec.cancel, which is final: create a new one")
        return await self._repair("rerun_from", task_uuid, step, deadline_seconds, actor=actor, reason=reason)

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

    async def _repair(
        self, action: str, task_uuid: UUID, step: str, deadline_seconds: float | None, **arguments: Any
    ) -> int:
        """How much an action on a step has changed."""
        if deadline_seconds is not None and not 0 < deadline_seconds <= limits.DEADLINE_SECONDS:
            raise InvalidAction("deadline", f"must be more than 0 and at most {limits.DEADLINE_SECONDS} seconds away")
        arguments |= {"task_id": await self._task_id(task_uuid), "step": step, "deadline_seconds": deadline_seconds}
        changed: int = await self._database.fetch_value(load_queries("tasks")[action], arguments)
        if changed:
            await hint_ready(self._database)
        return changed

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
