"""The status of a Task from the rows of its run: a pure function, bounded whatever the run.

Called by `reconcile` with what `Engine.tasks.read_by_origin` returned. A status never passes `STATUS_LIMIT_BYTES`:
results are shown when they are small, failures are cut in length, then in number, newest kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tasker.controller.kube.conditions import Condition, parse_timestamp, render, shorten, timestamp
from tasker.controller.kube.resources.task import TaskStatus
from tasker.controller.unoffered import describe_unoffered, unoffered_conditions
from tasker.model.task import StepCounts, StepFailure, TaskSummary, WaitingForPlace

STATUS_LIMIT_BYTES = 16 * 1024
RESULT_LIMIT_BYTES = 8 * 1024
FAILURES_LIMIT = 20
FAILURE_MESSAGE_LIMIT = 1024
WAITING_FOR_LIMIT = 256
CONDITION_MESSAGE_LIMIT = 256
"""Three conditions carry the same message; the failures say more."""

PHASES: Mapping[str, str] = {
    "pending": "Pending",
    "initializing": "Running",
    "enqueuing_steps": "Running",
    "steps_in_process": "Running",
    "evaluating_results": "Running",
    "waiting_for_dependencies": "Waiting",
    "waiting_for_retry": "Waiting",
    "blocked_by_failures": "Blocked",
    "complete": "Succeeded",
    "resolved_manually": "Succeeded",
    "error": "Failed",
    "cancelled": "Cancelled",
}


def size_in_bytes(value: Any) -> int:
    """How many bytes the value takes at most as JSON, escaped the way the API server escapes it."""
    text = json.dumps(value, separators=(",", ":"))
    return len(text) + 5 * sum(text.count(character) for character in "<>&")


def build_status(summary: TaskSummary, *, previous: TaskStatus, generation: int, now: datetime) -> dict[str, Any]:
    """The whole status of a Task that has a run."""
    phase = PHASES[summary.state]
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "state": str(summary.state),
        "phase": phase,
        "taskUuid": str(summary.task_uuid),
        "revision": summary.revision,
        "progress": f"{summary.counts.done}/{summary.counts.total}",
        "steps": _steps(summary.counts),
    }
    if summary.started_at is not None:
        status["startTime"] = timestamp(summary.started_at)
    if summary.completed_at is not None:
        status["completionTime"] = timestamp(summary.completed_at)
    if summary.waiting_for_place is not None and not summary.suspended:
        status["waitingFor"] = shorten(_place_message(summary, summary.waiting_for_place), WAITING_FOR_LIMIT)
    unoffered = () if summary.finished else summary.waiting_for_worker
    if phase == "Blocked":
        status["waitingFor"] = shorten(_blocked_message(summary), WAITING_FOR_LIMIT)
    elif unoffered:
        status["waitingFor"] = shorten(describe_unoffered(unoffered), WAITING_FOR_LIMIT)
    conditions = [*_conditions(summary, phase), *unoffered_conditions(unoffered, previous=previous.conditions)]
    status["conditions"] = _render(conditions, previous, generation, now)
    if phase == "Succeeded":
        status.update(_result(summary))
    failures = _failures(summary.failures, STATUS_LIMIT_BYTES - size_in_bytes(status))
    if failures:
        status["failures"] = failures
    return status


def waiting_status(
    reason: str,
    message: str,
    *,
    stalled: bool,
    previous: TaskStatus,
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """The status of a Task that has no run: it waits for its template, or was refused (`stalled`)."""
    conditions = waiting_conditions(reason, message, stalled=stalled)
    return {
        "observedGeneration": generation,
        "phase": "Pending",
        "conditions": _render(conditions, previous, generation, now),
    }


def waiting_conditions(reason: str, message: str, *, stalled: bool) -> list[Condition]:
    """The conditions of a Task that has no run: it waits, or was refused (`stalled`)."""
    return [
        Condition(type="Accepted", status="False", reason=reason, message=message),
        Condition(type="Reconciling", status="False" if stalled else "True", reason=reason, message=message),
        Condition(type="Stalled", status="True" if stalled else "False", reason=reason, message=message),
        Condition(type="Succeeded", status="Unknown", reason=reason, message="The run has not started."),
    ]


def cancelled_before_start_status(*, previous: TaskStatus, generation: int, now: datetime) -> dict[str, Any]:
    """The status of a Task that was cancelled before it had a run."""
    message = "The Task was cancelled before it was accepted."
    conditions = [
        Condition(type="Accepted", status="False", reason="Cancelled", message=message),
        Condition(type="Reconciling", status="False", reason="Cancelled", message=message),
        Condition(type="Stalled", status="False", reason="Cancelled", message=message),
        Condition(type="Succeeded", status="False", reason="Cancelled", message=message),
    ]
    return {
        "observedGeneration": generation,
        "state": "cancelled",
        "phase": "Cancelled",
        "completionTime": previous.completion_time or timestamp(now),
        "conditions": _render(conditions, previous, generation, now),
    }


def _render(
    conditions: Sequence[Condition], previous: TaskStatus, generation: int, now: datetime
) -> list[dict[str, Any]]:
    return render(
        conditions,
        previous=previous.conditions,
        generation=generation,
        now=now,
        message_limit=CONDITION_MESSAGE_LIMIT,
    )


def _steps(counts: StepCounts) -> dict[str, int]:
    return {
        "total": counts.total,
        "ready": counts.ready,
        "running": counts.running,
        "waiting": counts.waiting,
        "complete": counts.complete,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "cancelled": counts.cancelled,
    }


def _conditions(summary: TaskSummary, phase: str) -> list[Condition]:
    accepted = Condition(type="Accepted", status="True", reason="Submitted", message=f"Run {summary.task_uuid}.")
    match phase:
        case "Succeeded":
            reason = "Completed" if summary.state == "complete" else "ResolvedManually"
            message = f"All {summary.counts.total} steps are done."
            return [accepted, *_settled(reason, message, stalled=False, succeeded=True)]
        case "Failed":
            message = _error_message(summary) or _newest_failure(summary.failures) or "The run ended in error."
            return [accepted, *_settled("StepsFailed", message, stalled=True, succeeded=False)]
        case "Cancelled":
            message = _error_message(summary) or "The run was cancelled."
            return [accepted, *_settled("Cancelled", message, stalled=False, succeeded=False)]
        case "Pending" if summary.waiting_for_place is not None and not summary.suspended:
            message = f"It {_place_message(summary, summary.waiting_for_place)}."
            return [
                accepted,
                Condition(type="Reconciling", status="True", reason="ConcurrencyLimit", message=message),
                Condition(type="Stalled", status="False", reason="ConcurrencyLimit", message=message),
                Condition(type="Succeeded", status="Unknown", reason="ConcurrencyLimit", message=message),
            ]
        case "Blocked":
            reason, message = "BlockedByFailures", _blocked_message(summary)
            return [
                accepted,
                Condition(type="Reconciling", status="False", reason=reason, message=message),
                Condition(type="Stalled", status="True", reason=reason, message=message),
                Condition(type="Succeeded", status="Unknown", reason=reason, message=message),
            ]
        case _:
            reason = "Suspended" if summary.suspended else "Stale" if summary.stale else phase
            message = f"{summary.counts.done} of {summary.counts.total} steps are done."
            if summary.stale:
                message = f"{message} Stale: {summary.stale}."
            return [
                accepted,
                Condition(type="Reconciling", status="True", reason=reason, message=message),
                Condition(type="Stalled", status="False", reason=reason, message=message),
                Condition(type="Succeeded", status="Unknown", reason=reason, message=message),
            ]


def _place_message(summary: TaskSummary, place: WaitingForPlace) -> str:
    if place.max_tasks is None or place.taken < place.max_tasks:
        return f"waits for its turn among the runs of template {summary.template_name}"
    return (
        f"waits for a place: {place.taken} of {place.max_tasks} runs of template {summary.template_name} are under way"
    )


def _settled(reason: str, message: str, *, stalled: bool, succeeded: bool) -> list[Condition]:
    return [
        Condition(type="Reconciling", status="False", reason=reason, message=message),
        Condition(type="Stalled", status="True" if stalled else "False", reason=reason, message=message),
        Condition(type="Succeeded", status="True" if succeeded else "False", reason=reason, message=message),
    ]


def _error_message(summary: TaskSummary) -> str | None:
    error = summary.error or {}
    message = error.get("message")
    if not message:
        return None
    if "step" in error:
        return f"Step {error['step']} failed: {error.get('error_type', 'error')}: {message}"
    return str(message)


def _blocked_message(summary: TaskSummary) -> str:
    failure = _error_message(summary) or _newest_failure(summary.failures) or "Steps have failed."
    return f"A person, to deal with what failed. {failure}"


def _newest_failure(failures: Sequence[StepFailure]) -> str | None:
    if not failures:
        return None
    newest = failures[0]
    return f"Step {newest.step} failed: {newest.error_type}: {newest.message}"


def _result(summary: TaskSummary) -> dict[str, Any]:
    results = summary.leaf_results
    if summary.leaf_results_truncated:
        return {"resultTruncated": True}
    if results is None:
        return {}
    if size_in_bytes(results) > RESULT_LIMIT_BYTES:
        return {"resultTruncated": True}
    return {"result": results}


def _failures(failures: Sequence[StepFailure], budget: int) -> list[dict[str, Any]]:
    """Of the newest failures as many, and of their messages as much, as fit into so many bytes."""

    def fits(rendered: list[dict[str, Any]]) -> bool:
        return size_in_bytes(rendered) + len(',"failures":') <= budget

    newest = failures[:FAILURES_LIMIT]
    for limit in (FAILURE_MESSAGE_LIMIT, 512, 256, 128, 64):
        rendered = [_failure(failure, limit) for failure in newest]
        if fits(rendered):
            return rendered
    while rendered and not fits(rendered):
        rendered.pop()
    return rendered


def _failure(failure: StepFailure, message_limit: int) -> dict[str, Any]:
    return {
        "step": shorten(failure.step, 63),
        "attempt": failure.attempt,
        "errorType": shorten(failure.error_type, 128),
        "message": shorten(failure.message, message_limit),
        "time": timestamp(parse_timestamp(failure.at)),
        "final": failure.final,
    }
