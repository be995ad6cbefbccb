"""TaskTemplate: what was written, and what others than its own reconciler read of it.

The spec is checked as a whole by `model.template.parse_template_spec` when it is registered, not here: a template with
a fault is an object like any other, whose status says where the fault is.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasker.controller.kube.resources.base import KubernetesObject, ResourcePart, ResourceStatus
from tasker.model.template import TemplateSpec, TtlSeconds, VersionText, parse_template_spec


class TemplateOutline(ResourcePart):
    """The parts of a spec that Tasks go by."""

    version: VersionText = TemplateSpec.model_fields["version"].default
    ttl_seconds_after_finished: TtlSeconds | None = None


class TemplateTaskCounts(ResourcePart):
    """Tasks of a template by what became of them."""

    running: int | None = None
    waiting: int | None = None
    complete: int | None = None
    error: int | None = None


class TaskTemplateStatus(ResourceStatus):
    """What the operator made of the spec."""

    revision: str | None = None
    queue: str | None = None
    steps: int | None = None
    tasks: TemplateTaskCounts | None = None


class TaskTemplate(KubernetesObject):
    """A graph of named steps."""

    spec: TemplateOutline
    status: TaskTemplateStatus = TaskTemplateStatus()

    def parse_spec(self, *, environment: str) -> TemplateSpec:
        """The whole spec, checked, as it is run in `environment`.

        Raises `InvalidTemplate` with the path and reason of the first fault.
        """
        return parse_template_spec(self.manifest["spec"], environment=environment)

    @property
    def has_schemas(self) -> bool:
        """Whether its spec holds JSON Schemas, which may take long to be checked."""
        spec = self.manifest["spec"]
        steps = spec.get("steps")
        steps = steps if isinstance(steps, list) else []
        return "inputSchema" in spec or any("resultSchema" in step for step in steps if isinstance(step, Mapping))

    @property
    def is_ready(self) -> bool:
        """Whether the current spec has been stored."""
        condition = self.status.condition("Ready")
        return (
            condition is not None
            and condition.status == "True"
            and condition.observed_generation == self.metadata.generation
        )
