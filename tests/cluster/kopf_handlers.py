"""An operator as people write them with kopf: raw events, and a life cycle with a finalizer, progress and a status.

`test_kopf` runs it in a process of its own; it answers on standard output.
"""

from __future__ import annotations

from typing import Any

import kopf


@kopf.on.event("tasker.dev", "v1alpha1", "tasks")
def note_event(event: Any, name: str, **_: Any) -> None:
    print(f"event {event['type']} {name}", flush=True)


@kopf.on.create("tasker.dev", "v1alpha1", "workerpools")
def begin(name: str, patch: kopf.Patch, retry: int, **_: Any) -> None:
    if retry == 0:
        raise kopf.TemporaryError("not yet", delay=0.1)
    patch.status["reason"] = "created"
    print(f"create {name} after {retry} retries", flush=True)


@kopf.on.update("tasker.dev", "v1alpha1", "workerpools", field="spec.maxReplicas")
def change(name: str, old: Any, new: Any, **_: Any) -> None:
    print(f"update {name} {old} -> {new}", flush=True)


@kopf.on.delete("tasker.dev", "v1alpha1", "workerpools")
def end(name: str, **_: Any) -> None:
    print(f"delete {name}", flush=True)
