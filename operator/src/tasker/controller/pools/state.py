"""What the operator remembers of a WorkerPool between two reconciles: the desired number and why. None is a truth.

After a restart the desired number comes from the live Deployment, and the stretches of time that scaling down waits for
begin anew, which errs on the side of keeping workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.worker_pool import WorkerPool, WorkerPoolSpec
from tasker.model.scaling import ScaleMemory
from tasker.model.workers import PoolDemand, UnofferedCallable

# Ages are shown in these steps of seconds, so that a status is not rewritten every second only because time passes.
_AGE_STEPS = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


def initial_replicas(spec: WorkerPoolSpec, live: int | None) -> int | None:
    """What to ask for before anything has been decided; None leaves the number to an autoscaler.

    `live` is the Deployment's `spec.replicas`, None when there is no Deployment.
    """
    match spec.scaling.mode:
        case "external":
            return spec.replicas
        case "manual":
            return spec.replicas if spec.replicas is not None else spec.min_replicas
        case "operator":
            return live if live is not None else spec.min_replicas


@dataclass(kw_only=True)
class PoolState:
    """One pool's memory. `desired` None: the number is an autoscaler's, on the Deployment itself."""

    uid: str
    desired: int | None
    reason: str = "not observed yet"
    memory: ScaleMemory = field(default_factory=ScaleMemory)
    demand: PoolDemand | None = None
    scaled: bool = False
    """Whether the number changed and the status does not show the time of it yet."""
    retiring: bool = False
    """A managed pool whose namespace has a person's own: it ends as soon as its workers are idle."""
    applied: dict[str, str] = field(default_factory=dict)
    """Hashes of the manifests that were applied, by kind: the same is not applied twice."""
    template_hash: str | None = None
    """The hash of the pod template that the workers of the newest Deployment are given; None before it was made."""
    unoffered: tuple[UnofferedCallable, ...] = ()
    """Callables of the namespace that no live worker offers, and for which steps have waited for a minute."""
    deployment_generation: int | None = None
    """The Deployment's generation after our last apply; another one means that somebody changed it."""

    def forget_applied(self) -> None:
        """Everything is applied again at the next reconcile."""
        self.applied.clear()


class PoolStates:
    """The memory of every pool."""

    def __init__(self) -> None:
        self._states: dict[ObjectKey, PoolState] = {}

    def get(self, key: ObjectKey) -> PoolState | None:
        return self._states.get(key)

    def of(self, key: ObjectKey, pool: WorkerPool, deployment: Deployment | None) -> PoolState:
        """The pool's memory; a pool of another uid than the one remembered starts anew from its Deployment."""
        uid = pool.metadata.uid
        state = self._states.get(key)
        if state is None or state.uid != uid:
            live = deployment.spec.replicas if deployment is not None else None
            state = PoolState(uid=uid, desired=initial_replicas(pool.spec, live))
            self._states[key] = state
        return state

    def items(self) -> list[tuple[ObjectKey, PoolState]]:
        """Every pool that is remembered."""
        return list(self._states.items())

    def forget(self, key: ObjectKey) -> None:
        self._states.pop(key, None)

    def forget_applied(self) -> None:
        for state in self._states.values():
            state.forget_applied()


def rounded_age(seconds: float) -> int:
    """The age as a status shows it: the largest step that it has reached."""
    return max(step for step in _AGE_STEPS if step <= max(seconds, 0))
