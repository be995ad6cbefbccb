"""Deployment: what the operator reads of the workers' Deployments."""

from __future__ import annotations

from tasker.controller.kube.resources.base import Items, KubernetesObject, ResourcePart


class DeploymentSpec(ResourcePart):
    """The desired state."""

    replicas: int | None = None


class DeploymentCondition(ResourcePart):
    """One aspect of a Deployment's state."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class DeploymentStatus(ResourcePart):
    """What there is."""

    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    conditions: Items[DeploymentCondition] = ()


class Deployment(KubernetesObject):
    """A Deployment."""

    spec: DeploymentSpec
    status: DeploymentStatus = DeploymentStatus()
