"""Events have two faces, `v1` and `events.k8s.io/v1`; this turns one into the other, as a real API server does.

They are stored as `v1`. `cluster` is the only caller.
"""

from __future__ import annotations

from typing import Any

_RENAMED = {
    # v1 -> events.k8s.io/v1
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_RENAMED_BACK = {new: old for old, new in _RENAMED.items()}


def new_event(event: dict[str, Any]) -> dict[str, Any]:
    """An `events.k8s.io/v1` Event from a `v1` one."""
    converted = {_RENAMED.get(key, key): value for key, value in event.items()}
    return {**converted, "apiVersion": "events.k8s.io/v1"}


def core_event(event: dict[str, Any]) -> dict[str, Any]:
    """A `v1` Event from an `events.k8s.io/v1` one."""
    converted = {_RENAMED_BACK.get(key, key): value for key, value in event.items()}
    return {**converted, "apiVersion": "v1"}
