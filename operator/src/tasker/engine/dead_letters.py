"""Dead letters: read, and what people make of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.engine.workers import hint_ready
from tasker.errors import DeadLetterNotFound, InvalidInput, TaskNotFound
from tasker.model import limits
from tasker.model.dead_letters import (
    COUNTED_UP_TO,
    UNFINISHED_STATES,
    DeadLetter,
    DeadLetterChange,
    DeadLetterCount,
    DeadLetterDetails,
    DeadLetterPage,
    DeadLetterReason,
    DeadLetterState,
)

PAGE = 25
LARGEST_PAGE = 200
NOTES_LENGTH = 8192
"""Characters of a note, as of a failure's message."""


class DeadLetters:
    """Calls on dead letters. Those that change one return False when somebody has done with it already."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_page(
        self,
        *,
        namespace: str | None = None,
        states: Collection[DeadLetterState] | None = UNFINISHED_STATES,
        reason: DeadLetterReason | None = None,
        task_uuid: UUID | None = None,
        limit: int = PAGE,
        cursor: str | None = None,
    ) -> DeadLetterPage:
        """Entries, newest first; None lets all through. `cursor` is the `next_cursor` of the page before.

        Raises `InvalidInput` for a limit out of 1 to `LARGEST_PAGE` or a cursor that is none, and `TaskNotFound`.
        """
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidInput("limit", f"{limit} is not between 1 and {LARGEST_PAGE}")
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= 18):
            raise InvalidInput("cursor", f"{cursor!r} is not one that a list has given")
        task_id = None if task_uuid is None else await self._task_id(task_uuid)
        rows = await self._entries(
            namespace=namespace,
            states=None if states is None else [str(state) for state in states],
            reason=reason,
            task_id=task_id,
            before=None if cursor is None else int(cursor),
            limit=limit + 1,
        )
        more = len(rows) > limit
        return DeadLetterPage(
            items=tuple(map(_entry, rows[:limit])), next_cursor=str(rows[limit - 1]["entry_id"]) if more else None
        )

    async def read(self, entry_uuid: UUID) -> DeadLetterDetails:
        """One entry. Raises `DeadLetterNotFound`."""
        rows = await self._entries(entry_uuid=entry_uuid)
        if not rows:
            raise _not_found(entry_uuid)
        parameters = {"entry_uuid": entry_uuid}
        changes = await self._database.fetch(load_queries("dead_letters")["dead_letter_changes"], parameters)
        return DeadLetterDetails(
            entry=_entry(rows[0]),
            snapshot=await self._database.fetch_value(load_queries("dead_letters")["dead_letter_snapshot"], parameters),
            changes=tuple(DeadLetterChange(**{**row, "state": DeadLetterState(row["state"])}) for row in changes),
        )

    async def counts(self, namespace: str | None = None) -> list[DeadLetterCount]:
        """How many entries there are by state and reason, of a namespace or of all, where there are any."""
        rows = await self._database.fetch(
            load_queries("dead_letters")["dead_letter_counts"], {"namespace": namespace, "limit": COUNTED_UP_TO}
        )
        return [
            DeadLetterCount(
                state=DeadLetterState(row["state"]),
                reason=DeadLetterReason(row["reason"]),
                entries=row["entries"],
                oldest=row["oldest"],
            )
            for row in rows
        ]

    async def investigate(self, entry_uuid: UUID, *, actor: str, notes: str | None = None) -> bool:
        """Somebody takes it up. Raises `DeadLetterNotFound`."""
        return await self._change(entry_uuid, DeadLetterState.INVESTIGATING, actor, notes)

    async def lay_back(self, entry_uuid: UUID, *, actor: str, notes: str | None = None) -> bool:
        """Whoever took it up leaves it to others. Raises `DeadLetterNotFound`."""
        return await self._change(entry_uuid, DeadLetterState.OPEN, actor, notes)

    async def resolve(self, entry_uuid: UUID, *, actor: str, notes: str | None = None) -> bool:
        """It has been dealt with elsewhere; the run stays as it is. Raises `DeadLetterNotFound`."""
        return await self._change(entry_uuid, DeadLetterState.RESOLVED, actor, notes)

    async def discard(self, entry_uuid: UUID, *, actor: str, notes: str | None = None) -> bool:
        """Nothing is to be done about it; the run stays as it is. Raises `DeadLetterNotFound`."""
        return await self._change(entry_uuid, DeadLetterState.DISCARDED, actor, notes)

    async def annotate(self, entry_uuid: UUID, *, actor: str, notes: str) -> None:
        """Adds a note to its history, whatever its state. Raises `DeadLetterNotFound`."""
        await self._change(entry_uuid, None, actor, notes)

    async def put_back(self, entry_uuid: UUID, *, actor: str, notes: str | None = None) -> bool:
        """The step runs again, with as many attempts more as its template gives it, and its run goes on.

        Raises `DeadLetterNotFound`, and `ActionRefused` where nothing can run again: the entry is of the run
        itself, its step has not failed, or the run was cancelled or is past its deadline.
        """
        changed: bool | None = await self._database.fetch_value(
            load_queries("dead_letters")["put_back_dead_letter"],
            {"entry_uuid": entry_uuid, "actor": actor, "notes": _checked(notes)},
        )
        if changed is None:
            raise _not_found(entry_uuid)
        if changed:
            await hint_ready(self._database)
        return changed

    async def add(self, task_uuid: UUID, *, step: str | None = None, actor: str, notes: str | None = None) -> UUID:
        """Somebody wants a run, or one step of it, to be looked at. Returns the entry: one that is open, or a new one.

        Raises `TaskNotFound`, and `InvalidInput` when the run has no such step.
        """
        entry_uuid: UUID | None = await self._database.fetch_value(
            load_queries("dead_letters")["add_dead_letter"],
            {"task_id": await self._task_id(task_uuid), "step": step, "actor": actor, "notes": _checked(notes)},
        )
        if entry_uuid is None:
            raise InvalidInput("step", f"the run has no step {step!r}")
        return entry_uuid

    async def _change(self, entry_uuid: UUID, state: DeadLetterState | None, actor: str, notes: str | None) -> bool:
        changed: bool | None = await self._database.fetch_value(
            load_queries("dead_letters")["change_dead_letter"],
            {"entry_uuid": entry_uuid, "state": state, "actor": actor, "notes": _checked(notes)},
        )
        if changed is None:
            raise _not_found(entry_uuid)
        return changed

    async def _entries(self, **filters: Any) -> list[dict[str, Any]]:
        nothing = dict.fromkeys(("namespace", "states", "reason", "task_id", "entry_uuid", "before"))
        return await self._database.fetch(
            load_queries("dead_letters")["dead_letters"], {**nothing, "limit": 1, **filters}
        )

    async def _task_id(self, task_uuid: UUID) -> int:
        task_id: int | None = await self._database.fetch_value(
            load_queries("tasks")["task_ids_by_uuid"], {"task_uuid": task_uuid}
        )
        if task_id is None:
            raise TaskNotFound(f"no task {task_uuid}")
        return task_id


def _entry(row: dict[str, Any]) -> DeadLetter:
    fields = {name: value for name, value in row.items() if name != "entry_id"}
    return DeadLetter(**fields | {"reason": DeadLetterReason(row["reason"]), "state": DeadLetterState(row["state"])})


def _not_found(entry_uuid: UUID) -> DeadLetterNotFound:
    return DeadLetterNotFound(f"no dead letter {entry_uuid}")


def _checked(notes: str | None) -> str | None:
    fault = limits.json_fault(notes, "notes")
    if fault is not None:
        raise InvalidInput(*fault)
    if notes is not None and len(notes) > NOTES_LENGTH:
        raise InvalidInput("notes", f"has {len(notes)} characters; at most {NOTES_LENGTH} are allowed")
    return notes
