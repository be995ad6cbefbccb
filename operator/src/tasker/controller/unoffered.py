"""Callables that no worker offers, in words: what statuses of Tasks and pools say of them."""

from __future__ import annotations

from collections.abc import Sequence

from tasker.controller.kube.conditions import Condition, timestamp
from tasker.controller.kube.resources.base import RecordedCondition
from tasker.model.workers import UnofferedCallable

NO_WORKER = "NoWorkerForCallable"
_NAMED = 5


def describe_unoffered(unoffered: Sequence[UnofferedCallable]) -> str:
    """One line that names the callables, those that have waited longest first."""
    names = ", ".join(each.callable for each in unoffered[:_NAMED])
    more = f" and {len(unoffered) - _NAMED} more" if len(unoffered) > _NAMED else ""
    return f"callable {names}{more}: no worker offers it"


def unoffered_conditions(
    unoffered: Sequence[UnofferedCallable], *, previous: Sequence[RecordedCondition]
) -> list[Condition]:
    """The condition while there are such callables, and after it has been shown; none before."""
    if unoffered:
        since = timestamp(min(each.since for each in unoffered))
        message = f"{describe_unoffered(unoffered)}; steps have waited since {since}."
        return [Condition(type=NO_WORKER, status="True", reason="CallableNotOffered", message=message)]
    if any(condition.type == NO_WORKER for condition in previous):
        message = "Every callable that steps wait for is offered, or has not waited for a minute."
        return [Condition(type=NO_WORKER, status="False", reason="CallablesOffered", message=message)]
    return []
