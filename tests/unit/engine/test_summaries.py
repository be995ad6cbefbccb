"""How the counts of a run's row become those of its summary."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from tasker.engine.pool import Database
from tasker.engine.tasks import Tasks
from tasker.model.task import StepCounts

RUN = UUID(int=7)


class OneRow:
    """A database with one run."""

    def __init__(self, **counts: int) -> None:
        self._row: dict[str, Any] = {
            "namespace": "default",
            "task_uuid": RUN,
            "origin_uid": None,
            "origin_name": None,
            "template_name": "order",
            "template_version": "1.0.0",
            "revision": "0123456789abcdef",
            "state": "steps_in_process",
            "holds": [],
            "created_at": datetime(2031, 1, 1, tzinfo=UTC),
            "started_at": None,
            "completed_at": None,
            "failures": [],
            "leaf_results": None,
            "error": None,
            "waiting_for_place": None,
            "stale": None,
            "waiting_for_worker": [],
            **counts,
        }

    async def fetch(self, _query: str, _parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._row]


async def test_every_step_of_a_run_is_counted_once() -> None:
    row = OneRow(
        total_steps=49,
        remaining_steps=28,  # what is pending, ready, running, waits for its retry or failed
        active_steps=5,
        running_steps=2,
        retrying_steps=6,
        failed_steps=7,
        skipped_steps=8,
        tolerated_steps=0,
        cancelled_steps=9,
    )
    counts = (await Tasks(cast("Database", row)).read(RUN)).counts
    assert counts == StepCounts(
        total=49, pending=10, ready=3, running=2, waiting=6, complete=4, failed=7, skipped=8, cancelled=9
    )
    assert counts.done == 12
