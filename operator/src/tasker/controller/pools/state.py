"""What the operator knows of a WorkerPool between two looks at it: the number it wants and why. None is a truth.

After a restart the wanted number comes from the live Deployment, and the stretches of time that scaling down waits for
begin anew, which errs on the side of keeping workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import MANAGED_POOL_LABEL, PoolIdentity
from tasker.model.scaling import ScaleMemory
from tasker.model.workers import PoolDemand

Mode = Literal["operator", "external", "manual"]

# Ages are shown in these steps of seconds, so that a status is not rewritten every second only because time passes.
_AGE_STEPS = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolBounds:
    """The part of a pool's spec that scaling goes by, with the CRD's defaults."""

    mode: Mode
    replicas: int | None
    min_replicas: int
    max_replicas: int
    slots: int
    up_seconds: float
    down_seconds: float
    idle_seconds: float
    max_step: int | None

    @classmethod
    def of(cls, pool: Mapping[str, Any]) -> PoolBounds:
        spec = pool["spec"]
        scaling = spec.get("scaling") or {}
        return cls(
            mode=scaling.get("mode", "operator"),
            replicas=spec.get("replicas"),
            min_replicas=spec.get("minReplicas", 0),
            max_replicas=spec.get("maxReplicas", 10),
            slots=spec.get("slots", 10),
            up_seconds=scaling.get("upSeconds", 0),
            down_seconds=scaling.get("downSeconds", 30),
            idle_seconds=scaling.get("idleSeconds", 60),
            max_step=scaling.get("maxStep"),
        )

    def first_replicas(self, live: int | None) -> int | None:
        """What to ask for before anything has been decided; None leaves the number to an autoscaler."""
        match self.mode:
            case "external":
                return self.replicas
            case "manual":
                return self.replicas if self.replicas is not None else self.min_replicas
            case "operator":
                return live if live is not None else self.min_replicas


@dataclass(kw_only=True)
class PoolState:
    """One pool's memory. `desired` None: the number is an autoscaler's, on the Deployment itself."""

    uid: str
    desired: int | None
    reason: str = "not looked at yet"
    memory: ScaleMemory = field(default_factory=ScaleMemory)
    demand: PoolDemand | None = None
    scaled: bool = False
    """Whether the number changed and the status does not show the time of it yet."""
    retiring: bool = False
    """A managed pool whose namespace has a person's own: it ends as soon as its hands are empty."""
    applied: dict[str, str] = field(default_factory=dict)
    """Hashes of the manifests that were applied, by kind: the same is not applied twice."""
    deployment_generation: int | None = None
    """The Deployment's generation after our last apply; another one means that somebody changed it."""

    def forget_applied(self) -> None:
        """Everything is applied again at the next reconcile."""
        self.applied.clear()
        self.deployment_generation = None


class PoolStates:
    """The memory of every pool."""

    def __init__(self) -> None:
        self._states: dict[ObjectKey, PoolState] = {}

    def get(self, key: ObjectKey) -> PoolState | None:
        return self._states.get(key)

    def of(self, key: ObjectKey, pool: Manifest, deployment: Manifest | None) -> PoolState:
        """The pool's memory; a pool of another uid than the one remembered starts anew from its Deployment."""
        uid = pool["metadata"]["uid"]
        state = self._states.get(key)
        if state is None or state.uid != uid:
            live = deployment["spec"].get("replicas") if deployment is not None else None
            state = PoolState(uid=uid, desired=PoolBounds.of(pool).first_replicas(live))
            self._states[key] = state
        return state

    def forget(self, key: ObjectKey) -> None:
        self._states.pop(key, None)

    def forget_applied(self) -> None:
        for state in self._states.values():
            state.forget_applied()


def identity_of(pool: Mapping[str, Any]) -> PoolIdentity:
    """The pool as its manifests name it."""
    metadata = pool["metadata"]
    return PoolIdentity(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def is_managed(pool: Mapping[str, Any]) -> bool:
    """Whether the operator made the pool itself, for a namespace without one."""
    return (pool["metadata"].get("labels") or {}).get(MANAGED_POOL_LABEL) == "true"


def handlers_config_map(pool: Mapping[str, Any]) -> str | None:
    """The ConfigMap that brings the pool's handlers, if it names one."""
    name: str | None = ((pool["spec"].get("handlersFrom") or {}).get("configMapRef") or {}).get("name")
    return name


def rounded_age(seconds: float) -> int:
    """The age as a status shows it: the largest step that it has reached."""
    return max(step for step in _AGE_STEPS if step <= max(seconds, 0))
