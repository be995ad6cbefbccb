"""Namespace: what the operator reads of it."""

from __future__ import annotations

from tasker.controller.kube.resources.base import KubernetesObject, ResourcePart


class NamespaceStatus(ResourcePart):
    """How the namespace is."""

    phase: str | None = None


class Namespace(KubernetesObject):
    """A namespace."""

    status: NamespaceStatus = NamespaceStatus()

    @property
    def is_terminating(self) -> bool:
        """Whether the namespace is being deleted."""
        return self.is_being_deleted or self.status.phase == "Terminating"
