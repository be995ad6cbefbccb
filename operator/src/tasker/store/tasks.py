"""Rows of tasks: create, act, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tasker.model.task import OpenOrigin, StepCounts, StepFailure, SubmittedTask, TaskRequest, TaskSummary
from tasker.model.transitions import TaskState
from tasker.store.pool import Database
from tasker.store.queries import load_queries

LEAF_RESULTS_BYTES = 8192
"""Results of leaf steps are shown in a summary up to this many bytes together."""


async def submit_tasks(database: Database, namespace: str, requests: Sequence[TaskRequest]) -> list[SubmittedTask]:
    """Creates the runs in one call, all or none, in the order of the requests."""
    rows = await database.fetch(
        load_queries("tasks")["submit_tasks"],
        {"namespace": namespace, "requests": Jsonb([request.as_row() for request in requests])},
    )
    return [SubmittedTask(task_uuid=row["task_uuid"], created=row["created"]) for row in rows]


async def task_id(database: Database, task_uuid: UUID) -> int | None:
    """The internal id of a run."""
    found: int | None = await database.fetch_value(load_queries("tasks")["task_ids_by_uuid"], {"task_uuid": task_uuid})
    return found


async def task_id_by_origin(database: Database, origin_uid: str) -> int | None:
    """The internal id of the run that a resource asked for."""
    found: int | None = await database.fetch_value(
        load_queries("tasks")["task_id_by_origin"], {"origin_uid": origin_uid}
    )
    return found


async def act(database: Database, action: str, task_id: int, **arguments: str) -> bool:
    """Runs one of the actions of a run (cancel_task, suspend_task, resume_task); False when it changed nothing."""
    changed = await database.fetch_value(load_queries("tasks")[action], {"task_id": task_id, **arguments})
    return bool(changed)


async def open_task_ids(database: Database, namespace: str) -> list[int]:
    """Runs of a namespace that have not ended."""
    rows = await database.fetch(load_queries("tasks")["open_task_ids_of_namespace"], {"namespace": namespace})
    return [row["task_id"] for row in rows]


async def open_origins(database: Database, namespace: str | None) -> list[OpenOrigin]:
    """Resources whose runs have not ended, of one namespace or of all."""
    rows = await database.fetch(load_queries("tasks")["open_origins"], {"namespace": namespace})
    return [
        OpenOrigin(
            namespace=row["namespace"],
            name=row["origin_name"] or "",
            uid=row["origin_uid"],
            task_uuid=row["task_uuid"],
        )
        for row in rows
    ]


async def finished_count(database: Database, task_uuids: Sequence[UUID]) -> int:
    """How many of the given runs have ended."""
    count = await database.fetch_value(load_queries("tasks")["finished_count"], {"task_uuids": list(task_uuids)})
    return int(count)


async def summaries(
    database: Database, *, origin_uids: Sequence[str] = (), task_uuids: Sequence[UUID] = ()
) -> list[TaskSummary]:
    """Summaries of the runs found, in no order."""
    rows = await database.fetch(
        load_queries("tasks")["summaries"],
        {
            "origin_uids": list(origin_uids),
            "task_uuids": list(task_uuids),
            "leaf_results_limit": LEAF_RESULTS_BYTES,
        },
    )
    return [_summary(row) for row in rows]


def _summary(row: dict[str, Any]) -> TaskSummary:
    state = TaskState(row["state"])
    remaining, active, running = row["remaining_steps"], row["active_steps"], row["running_steps"]
    retrying, failed, cancelled = row["retrying_steps"], row["failed_steps"], row["cancelled_steps"]
    return TaskSummary(
        namespace=row["namespace"],
        task_uuid=row["task_uuid"],
        origin_uid=row["origin_uid"],
        origin_name=row["origin_name"],
        template_name=row["template_name"],
        template_version=row["template_version"],
        revision=row["revision"],
        state=state,
        suspended=row["suspended"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        counts=StepCounts(
            total=row["total_steps"],
            pending=remaining - active - retrying - failed,
            ready=active - running,
            running=running,
            waiting=retrying,
            complete=row["total_steps"] - remaining - cancelled,
            failed=failed,
            cancelled=cancelled,
        ),
        failures=tuple(StepFailure(**failure) for failure in row["failures"]),
        leaf_results=row["leaf_results"],
        leaf_results_truncated=state is TaskState.COMPLETE and row["leaf_results"] is None,
        error=row["error"],
    )


@dataclass(frozen=True, kw_only=True)
class ChangeCursor:
    """A place in the transition log: every transaction before it has been read. `at` is the database's time then."""

    transaction_id: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The resources whose runs moved since a cursor, and where to go on."""

    origin_uids: frozenset[str]
    cursor: ChangeCursor


async def read_changes(database: Database, cursor: ChangeCursor | None) -> Changes:
    """What moved since `cursor`; from now on when that is None."""
    queries = load_queries("tasks")
    [horizon] = await database.fetch(queries["changes_horizon"])
    after = ChangeCursor(transaction_id=horizon["horizon"], at=horizon["at"])
    if cursor is None:
        return Changes(origin_uids=frozenset(), cursor=after)
    rows = await database.fetch(
        queries["changes"],
        {"cursor": cursor.transaction_id, "horizon": after.transaction_id, "since": cursor.at},
    )
    return Changes(origin_uids=frozenset(row["origin_uid"] for row in rows), cursor=after)
