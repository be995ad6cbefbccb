"""Pod: what the operator reads of the workers' pods."""

from __future__ import annotations

from pydantic import Field

from tasker.controller.kube.resources.base import Items, KubernetesObject, ResourcePart


class PodCondition(ResourcePart):
    """One aspect of a pod's state."""

    type: str
    status: str


class ContainerWaiting(ResourcePart):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerTerminated(ResourcePart):
    """How a container ended."""

    reason: str = ""
    message: str = ""
    exit_code: int | None = None


class ContainerState(ResourcePart):
    """At most one of the two; neither while the container runs."""

    waiting: ContainerWaiting | None = None
    terminated: ContainerTerminated | None = None


class ContainerStatus(ResourcePart):
    """A container now, and before it was last started."""

    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(ResourcePart):
    """How a pod is."""

    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    conditions: Items[PodCondition] = ()
    container_statuses: Items[ContainerStatus] = ()


class Pod(KubernetesObject):
    """A pod."""

    status: PodStatus = Field(default_factory=PodStatus)

    @property
    def is_running(self) -> bool:
        """Whether its containers were started, and none of them has ended or waits to be started again."""
        return self.status.phase == "Running" and all(
            container.state.waiting is None and container.state.terminated is None
            for container in self.status.container_statuses
        )

    @property
    def is_ready(self) -> bool:
        """Whether the condition Ready holds."""
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions)
