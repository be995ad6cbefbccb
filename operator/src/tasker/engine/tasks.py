"""Runs: submit and read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Json

from tasker.engine.inputs import Inputs, Revision
from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.engine.workers import hint_ready
from tasker.errors import InvalidTask, StoreError, TaskNotFound
from tasker.model.identity import IdentityStrategy, identity_key
from tasker.model.task import (
    Hold,
    OpenOrigin,
    StepCounts,
    StepFailure,
    SubmittedTask,
    TaskRequest,
    TaskSummary,
    WaitingForPlace,
)
from tasker.model.transitions import TaskState
from tasker.model.workers import NO_WORKER_SECONDS, UnofferedCallable

LEAF_RESULTS_BYTES = 8192
"""Results of leaf steps are shown in a summary up to this many bytes together."""

WAITING_AT_ONCE = 10_000
"""As many runs as an operator is made for: more of them need no more telling."""

SUMMARIES_A_QUERY = 200
"""Bounds the size of one answer; a summary is a few kilobytes at most."""


class Tasks:
    """Calls that create and read runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._inputs = Inputs(database)

    async def submit(self, namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
        """Creates runs, all or none, in one call; the answer is in the order of `requests`.

        A duplicate of another run gets none and does not keep the others from theirs: its answer says so, and
        `SubmittedTask.refusal` is the error. Raises `InvalidTask` for a request that cannot be accepted,
        `InvalidContext` for one that the template's inputSchema refuses, `TemplateNotFound`, and `Busy` when checking
        takes long and a check of the namespace is under way.
        """
        for request in requests:
            request.check()
        checked = await self._inputs.check(namespace, requests)
        pinned = [await self._pinned(request, each.revision) for request, each in zip(requests, checked, strict=True)]
        rows = await self._database.fetch(
            load_queries("tasks")["submit_tasks"], {"namespace": namespace, "requests": Json(pinned)}
        )
        # The runs are accepted whether or not the hint gets through.
        with contextlib.suppress(StoreError):
            await hint_ready(self._database)
        return [
            SubmittedTask(**row, context_fault=each.fault if row["created"] else None)
            for row, each in zip(rows, checked, strict=True)
        ]

    async def _pinned(self, request: TaskRequest, revision: Revision | None) -> dict[str, Any]:
        """The request as the database takes it: of the revision that was checked, with the key of its identity."""
        if revision is None:
            # Nothing is stored under this one: the template was not there, and what comes meanwhile was not checked.
            return {**request.as_row(), "revision": ""}
        try:
            key = identity_key(
                IdentityStrategy(revision.identity_strategy),
                request.template_name,
                request.context,
                request.idempotency_key,
            )
        except InvalidTask:
            if not await self._inputs.has_run(request):
                raise
            key = None
        await asyncio.sleep(0)  # a set may be large: others run between any two
        return {**request.as_row(), "revision": revision.revision, "identity_key": key}

    async def read(self, task_uuid: UUID) -> TaskSummary:
        """One run. Raises `TaskNotFound`."""
        for summary in await self._summaries(task_uuids=[task_uuid]):
            return summary
        raise TaskNotFound(f"no task {task_uuid}")

    async def read_by_origin(self, origin_uids: Sequence[str]) -> list[TaskSummary]:
        """The runs that these resources asked for; those without a run are left out."""
        found: list[TaskSummary] = []
        for start in range(0, len(origin_uids), SUMMARIES_A_QUERY):
            found += await self._summaries(origin_uids=origin_uids[start : start + SUMMARIES_A_QUERY])
        return found

    async def finished_count(self, task_uuids: Sequence[UUID]) -> int:
        """How many of these runs have ended."""
        count: int = await self._database.fetch_value(
            load_queries("tasks")["finished_count"], {"task_uuids": list(task_uuids)}
        )
        return count

    async def origins_waiting_for_worker(self) -> frozenset[str]:
        """Resources whose runs have a ready step that no live worker offers to run, and has not for a minute.

        Nothing moves in a run that waits so: whoever shows runs has to ask. At most `WAITING_AT_ONCE`, oldest first.
        """
        rows = await self._database.fetch(
            load_queries("tasks")["origins_waiting_for_worker"],
            {"seconds": NO_WORKER_SECONDS, "limit": WAITING_AT_ONCE},
        )
        return frozenset(row["origin_uid"] for row in rows)

    async def open_origins(self, namespace: str | None = None) -> list[OpenOrigin]:
        """Resources whose runs have not ended, of one namespace or of all."""
        rows = await self._database.fetch(
            load_queries("tasks")["open_origins"],
            {"namespace": namespace, "installation": self._database.installation},
        )
        return [OpenOrigin(**row) for row in rows]

    async def _summaries(
        self, *, origin_uids: Sequence[str] = (), task_uuids: Sequence[UUID] = ()
    ) -> list[TaskSummary]:
        rows = await self._database.fetch(
            load_queries("tasks")["summaries"],
            {
                "origin_uids": list(origin_uids),
                "task_uuids": list(task_uuids),
                "leaf_results_limit": LEAF_RESULTS_BYTES,
                "no_worker_seconds": NO_WORKER_SECONDS,
            },
        )
        return [_summary(row) for row in rows]


def _summary(row: dict[str, Any]) -> TaskSummary:
    state = TaskState(row["state"])
    remaining, active, running = row["remaining_steps"], row["active_steps"], row["running_steps"]
    retrying, failed, cancelled = row["retrying_steps"], row["failed_steps"], row["cancelled_steps"]
    skipped, tolerated = row["skipped_steps"], row["tolerated_steps"]
    return TaskSummary(
        namespace=row["namespace"],
        task_uuid=row["task_uuid"],
        origin_uid=row["origin_uid"],
        origin_name=row["origin_name"],
        template_name=row["template_name"],
        template_version=row["template_version"],
        revision=row["revision"],
        state=state,
        holds=frozenset(map(Hold, row["holds"])),
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        counts=StepCounts(
            total=row["total_steps"],
            pending=remaining - active - retrying - failed,
            ready=active - running,
            running=running,
            waiting=retrying,
            complete=row["total_steps"] - remaining - skipped - cancelled - tolerated,
            failed=failed + tolerated,
            skipped=skipped,
            cancelled=cancelled,
        ),
        failures=tuple(StepFailure(**failure) for failure in row["failures"]),
        leaf_results=row["leaf_results"],
        leaf_results_truncated=state is TaskState.COMPLETE and row["leaf_results"] is None,
        error=row["error"],
        waiting_for_place=None if row["waiting_for_place"] is None else WaitingForPlace(**row["waiting_for_place"]),
        stale=row["stale"],
        waiting_for_worker=tuple(
            UnofferedCallable(
                namespace=row["namespace"],
                callable=each["callable"],
                steps=each["steps"],
                since=datetime.fromisoformat(each["since"]),
            )
            for each in row["waiting_for_worker"]
        ),
    )
