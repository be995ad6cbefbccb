"""Conditions of a status: pure helpers that keep `lastTransitionTime` honest. For the modules that build statuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasker.controller.kube.resources.base import RecordedCondition, Truth

MESSAGE_LIMIT = 1024
"""Characters of a condition's message; longer ones are cut, so that a status stays small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One aspect of a resource's state: `reason` is a stable word for programs, `message` the same for people."""

    type: str
    status: Truth
    reason: str
    message: str


def utc_now() -> datetime:
    """The wall clock; statuses and times to live go by it."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """The way Kubernetes writes a time: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The reverse of `timestamp`; also takes fractions of a second. Raises ValueError when it is no time."""
    return datetime.fromisoformat(text)


def shorten(text: str, limit: int) -> str:
    """The text, cut to at most so many characters, with an ellipsis when anything was cut."""
    return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"


def render(
    conditions: Iterable[Condition],
    *,
    previous: Sequence[RecordedCondition],
    generation: int,
    now: datetime,
    message_limit: int = MESSAGE_LIMIT,
) -> list[dict[str, Any]]:
    """The conditions as a status holds them; one whose status did not change keeps its transition time."""
    known = {old.type: old for old in previous}
    return [
        _render_one(condition, known.get(condition.type), generation, now, message_limit) for condition in conditions
    ]


def _render_one(
    condition: Condition, old: RecordedCondition | None, generation: int, now: datetime, message_limit: int
) -> dict[str, Any]:
    unchanged = old is not None and old.status == condition.status
    return {
        "type": condition.type,
        "status": condition.status,
        "observedGeneration": generation,
        "lastTransitionTime": old.last_transition_time if old is not None and unchanged else timestamp(now),
        "reason": condition.reason,
        "message": shorten(condition.message, message_limit),
    }


def find(status: Mapping[str, Any] | None, condition_type: str) -> Mapping[str, Any] | None:
    """The condition of that type in a status, or None."""
    for condition in (status or {}).get("conditions") or ():
        if condition.get("type") == condition_type:
            found: Mapping[str, Any] = condition
            return found
    return None
