"""The status of an object that cannot be accepted as it is: what it showed before stays, the conditions say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.conditions import MESSAGE_LIMIT, Condition, render
from tasker.controller.kube.resources.base import RecordedCondition, ResourceStatus


def invalid_status(
    manifest: Manifest, conditions: Sequence[Condition], *, now: datetime, message_limit: int = MESSAGE_LIMIT
) -> dict[str, Any]:
    """The object's status with these conditions in place of its own of the same types.

    It takes the object as it is, since its status may be what is wrong with it.
    """
    written = manifest.get("status")
    old: Mapping[str, Any] = written if isinstance(written, Mapping) else {}
    generation = manifest["metadata"].get("generation", 0)
    previous = _conditions(old)
    types = {condition.type for condition in conditions}
    others = [each.model_dump(by_alias=True, exclude_none=True) for each in previous if each.type not in types]
    rendered = render(conditions, previous=previous, generation=generation, now=now, message_limit=message_limit)
    return {**old, "observedGeneration": generation, "conditions": [*rendered, *others]}


def _conditions(status: Mapping[str, Any]) -> tuple[RecordedCondition, ...]:
    try:
        return ResourceStatus.model_validate(status).conditions
    except ValidationError:
        return ()
