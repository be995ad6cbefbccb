"""What the node remembers of a pod that it runs: its processes, their past, and when to start them again.

Used by ``kubelet`` only. Losing it loses nothing that matters: it is made anew from the pod's status.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from devcluster.node.objects import Key, KubeObject, find_named, integer, key_of, parse_time, uid_of
from devcluster.node.process import ContainerProcess

# The first restart is at once. After that the delays are those of Kubernetes' own reduced back-off (its feature
# gate ReduceDefaultCrashLoopBackOffDecay, 1 s to 60 s) rather than 10 s to 300 s: a developer is waiting.
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
RESET_BACKOFF_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a run of a container ended. `code` is negative when a signal ended it."""

    code: int
    started_at: datetime
    finished_at: datetime
    message: str = ""

    @property
    def status(self) -> int:
        """The exit code as a shell and Kubernetes tell it: 128 plus the signal."""
        return 128 - self.code if self.code < 0 else self.code

    @property
    def reason(self) -> str:
        """Kubernetes' word for it."""
        return "Completed" if self.code == 0 else "Error"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a container does not run."""

    reason: str
    message: str = ""


@dataclass(kw_only=True)
class ContainerRuntime:
    """One container of a pod over all its runs."""

    name: str
    starts: int = 0
    process: ContainerProcess | None = None
    started_at: datetime | None = None
    started: bool = False  # the startup probe has succeeded, or there is none
    ready: bool = False
    waiting: Waiting | None = None
    last_exit: Exit | None = None
    finished: bool = False  # it has ended and is not to be started again
    start_after: float = 0.0  # event loop time before which it is not started again
    config_failures: int = 0
    port: int | None = None
    probing: asyncio.Task[None] | None = None
    delay: float = 0.0

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.starts - 1)

    def next_delay(self, ran_seconds: float) -> float:
        """How long to wait before the next start, after a run of so many seconds."""
        if ran_seconds >= RESET_BACKOFF_SECONDS:
            self.delay = 0.0
        delay = self.delay
        self.delay = min(max(FIRST_BACKOFF_SECONDS, delay * 2), LONGEST_BACKOFF_SECONDS)
        return delay

    def stop_probing(self) -> None:
        """No more probes of this run."""
        if self.probing is not None:
            self.probing.cancel()
            self.probing = None


@dataclass(kw_only=True)
class PodRuntime:
    """One pod, by its uid."""

    key: Key
    uid: str
    folder: Path
    containers: dict[str, ContainerRuntime] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)  # Events that are told once only
    started_at: datetime
    volumes_at: float = 0.0
    ending: bool = False
    kill_at: float = 0.0
    written: KubeObject | None = None  # the status as last written
    confirmed: bool = False  # our last DELETE was accepted; finalizers may hold the object

    @property
    def volumes(self) -> Path:
        """The folder with the pod's volumes."""
        return self.folder / "volumes"

    @property
    def processes(self) -> list[ContainerProcess]:
        """Those that run."""
        return [container.process for container in self.containers.values() if container.process is not None]

    def stop_probing(self) -> None:
        """No more probes of any container."""
        for container in self.containers.values():
            container.stop_probing()


def adopt(pod: KubeObject, folder: Path, now: datetime) -> PodRuntime:
    """The runtime of a pod that was not known: a new one, or one whose node has been started anew.

    Its processes ended with the former node; the restarts counted go on.
    """
    status = pod.get("status") or {}
    runtime = PodRuntime(
        key=key_of(pod),
        uid=uid_of(pod),
        folder=folder,
        started_at=parse_time(status["startTime"]) if status.get("startTime") else now,
    )
    for container in pod["spec"]["containers"]:
        known = find_named(status.get("containerStatuses"), container["name"]) or {}
        ran = (known.get("state") or {}).get("running") or _terminated(known)
        restarts = integer(known.get("restartCount"), 0)
        found = ContainerRuntime(name=container["name"], starts=restarts + 1 if ran else 0)
        if ran:
            since = parse_time(ran.get("startedAt") or ran["finishedAt"])
            before = _terminated(known)
            code = before.get("exitCode", 137)
            ended = parse_time(ran["finishedAt"]) if ran.get("finishedAt") else now
            found.last_exit = Exit(code=code, started_at=since, finished_at=ended, message=before.get("message", ""))
        runtime.containers[container["name"]] = found
    return runtime


def _terminated(status: Any) -> dict[str, Any]:
    state = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
    return dict(state or {})
