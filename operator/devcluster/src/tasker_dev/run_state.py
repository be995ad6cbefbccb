"""What is known of a run of an example: fed with watch events and the time, read by what shows it. No I/O.

Called by `example_run`, which watches, and by the command line, which draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from devcluster.kubectl import WatchEvent
from tasker_dev.example import Example

FINAL_STATES = frozenset({"complete", "error", "cancelled", "resolved_manually"})

# What the operator's Events say of a decision: "0 → 3: 5 queued, …".
_DECISION = re.compile(r"\d+ → (?P<after>\d+): (?P<why>.*)")

# After the Tasks have ended, how long a pool that was never seen to have workers is waited for: its status may lag.
UNSEEN_POOL_SECONDS = 10.0


@dataclass(kw_only=True)
class TaskRun:
    """One Task of the example as it goes."""

    name: str
    expected: str
    state: str = "pending"
    progress: str = ""
    reason: str = ""
    """What a person would want to know beside the state: why it waits, or how it failed."""
    seen_at: float | None = None
    ended_at: float | None = None

    @property
    def is_ended(self) -> bool:
        return self.ended_at is not None

    @property
    def as_expected(self) -> bool:
        return self.is_ended and self.state == self.expected

    def seconds(self, now: float) -> float | None:
        """From when the Task was first seen to its end, or to now; None before it was seen."""
        if self.seen_at is None:
            return None
        return (now if self.ended_at is None else self.ended_at) - self.seen_at


@dataclass(frozen=True, kw_only=True)
class ScaleChange:
    """A pool's number of wanted workers changed. `at` is in seconds since the run began."""

    at: float
    before: int
    after: int


@dataclass(kw_only=True)
class PoolRun:
    """One WorkerPool as it goes."""

    name: str
    minimum: int = 0
    desired: int = 0
    replicas: int = 0
    ready: int = 0
    queued: int = 0
    running: int = 0
    reason: str = ""
    history: list[ScaleChange] = field(default_factory=list)
    whys: dict[int, str] = field(default_factory=dict)
    """Why the newest decision for so many workers was taken, as the operator's Events tell."""
    most_ready: int = 0

    @property
    def is_at_rest(self) -> bool:
        """No more workers than the fewest it keeps, neither wanted nor there."""
        return self.desired == self.minimum and self.replicas <= self.minimum

    def levels(self) -> list[int]:
        """The numbers of workers wanted, one after the other: 0, 3, 0."""
        if not self.history:
            return [self.desired]
        return [self.history[0].before, *(change.after for change in self.history)]


class RunState:
    """The Tasks and pools of one run. Times are seconds since the run began."""

    def __init__(self, example: Example) -> None:
        self.tasks = {task.name: TaskRun(name=task.name, expected=task.expected) for task in example.tasks}
        self.pools = {name: PoolRun(name=name) for name in example.pools}
        self._follows_any_pool = not example.pools
        self._tasks_ended_at: float | None = None

    def see_task(self, event: WatchEvent, now: float) -> None:
        task = self.tasks.get(event.object["metadata"]["name"])
        if task is None or event.kind not in {"ADDED", "MODIFIED"}:
            return
        if task.seen_at is None:
            task.seen_at = now
        status = event.object.get("status") or {}
        task.state = status.get("state", "pending")
        task.progress = status.get("progress", "")
        task.reason = _reason(status)
        if task.state in FINAL_STATES and task.ended_at is None:
            task.ended_at = now
        if self._tasks_ended_at is None and all(each.is_ended for each in self.tasks.values()):
            self._tasks_ended_at = now

    def see_pool(self, event: WatchEvent, now: float) -> None:
        name = event.object["metadata"]["name"]
        if self._follows_any_pool:
            self.pools.setdefault(name, PoolRun(name=name))
        pool = self.pools.get(name)
        if pool is None or event.kind not in {"ADDED", "MODIFIED"}:
            return
        status = event.object.get("status") or {}
        desired = status.get("desiredReplicas", 0)
        if desired != pool.desired:
            pool.history.append(ScaleChange(at=now, before=pool.desired, after=desired))
        pool.minimum = (event.object.get("spec") or {}).get("minReplicas", 0)
        pool.desired = desired
        pool.replicas = status.get("replicas", 0)
        pool.ready = status.get("readyReplicas", 0)
        pool.queued = status.get("queued", 0)
        pool.running = status.get("running", 0)
        pool.reason = status.get("reason", "")
        pool.most_ready = max(pool.most_ready, pool.ready)

    def see_event(self, event: WatchEvent) -> None:
        """A Kubernetes Event; those about decisions of scaling are taken in."""
        about, message = event.object.get("involvedObject") or {}, event.object.get("message") or ""
        decision = _DECISION.match(message)
        if about.get("kind") == "WorkerPool" and about.get("name") in self.pools and decision is not None:
            self.pools[about["name"]].whys[int(decision["after"])] = decision["why"]

    def tasks_ended(self) -> bool:
        return self._tasks_ended_at is not None

    def is_over(self, now: float) -> bool:
        """Every Task has ended and every pool is back where it rests."""
        if self._tasks_ended_at is None:
            return False
        patient = now - self._tasks_ended_at < UNSEEN_POOL_SECONDS
        return all(pool.is_at_rest and (pool.most_ready > 0 or not patient) for pool in self.pools.values())

    def all_as_expected(self) -> bool:
        return all(task.as_expected for task in self.tasks.values())


def _reason(status: Mapping[str, Any]) -> str:
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    for kind, bad in (("Succeeded", "False"), ("Accepted", "False")):
        condition = conditions.get(kind)
        if condition is not None and condition["status"] == bad:
            return str(condition["message"])
    return ""
