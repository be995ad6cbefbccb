"""WorkerPool: the autoscaled workers of a namespace, as its CRD has it.

What a pool hands on to its pods unchanged (`env`, `volumes`, `affinity` …) stays JSON: its schema is Kubernetes' own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasker.controller.kube.resources.base import (
    Items,
    JsonObject,
    KubernetesObject,
    Name,
    NameReference,
    ObjectMeta,
    ResourcePart,
    ResourceStatus,
)

MANAGED_POOL_LABEL = "tasker.dev/managed"
"""On pools that the operator made itself, for namespaces without one."""

ScalingMode = Literal["operator", "external", "manual"]

_Replicas = Annotated[int, Field(ge=0, le=10_000)]


class ConfigMapHandlers(ResourcePart):
    """Handlers given as Python files."""

    config_map_ref: NameReference


class ScalingSpec(ResourcePart):
    """Who decides how many workers there are, and how fast that changes."""

    mode: ScalingMode = "operator"
    idle_seconds: Annotated[int, Field(ge=0, le=604_800)] = 60
    up_seconds: Annotated[int, Field(ge=0, le=3_600)] = 0
    down_seconds: Annotated[int, Field(ge=0, le=86_400)] = 30
    max_step: Annotated[int, Field(ge=1, le=10_000)] | None = None


class SecretKeyReference(NameReference):
    """A key of a Secret."""

    key: Name = "DATABASE_URL"


class DatabaseSpec(ResourcePart):
    """How the workers reach Postgres."""

    secret_ref: SecretKeyReference


class WorkerPoolSpec(ResourcePart):
    """Which handlers the workers have, how many workers there may be, and how their pods look."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[Items[NameReference], Field(max_length=16)] = ()
    handlers: Annotated[Items[Name], Field(max_length=100)] = ()
    handlers_from: ConfigMapHandlers | None = None
    min_replicas: _Replicas = 0
    max_replicas: _Replicas = 10
    slots: Annotated[int, Field(ge=1, le=1_000)] = 10
    replicas: _Replicas | None = None
    scaling: ScalingSpec = ScalingSpec()
    env: Annotated[Items[JsonObject], Field(max_length=100)] = ()
    env_from: Annotated[Items[JsonObject], Field(max_length=32)] = ()
    resources: JsonObject = Field(default_factory=dict)
    service_account_name: Name | None = None
    node_selector: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    tolerations: Annotated[Items[JsonObject], Field(max_length=64)] = ()
    affinity: JsonObject = Field(default_factory=dict)
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    volumes: Annotated[Items[JsonObject], Field(max_length=32)] = ()
    volume_mounts: Annotated[Items[JsonObject], Field(max_length=32)] = ()
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    database: DatabaseSpec | None = None

    @property
    def handlers_config_map(self) -> str | None:
        """The ConfigMap that brings the handlers, if one is named."""
        return self.handlers_from.config_map_ref.name if self.handlers_from is not None else None


class WorkerPoolStatus(ResourceStatus):
    """The workers there are, the work there is, and the last decision."""

    replicas: int | None = None
    ready_replicas: int | None = None
    desired_replicas: int | None = None
    queued: int | None = None
    running: int | None = None
    oldest_ready_seconds: int | None = None
    last_scale_time: str | None = None
    reason: str | None = None
    selector: str | None = None


class WorkerPool(KubernetesObject):
    """The Deployment of workers that runs a namespace's steps."""

    spec: WorkerPoolSpec
    status: WorkerPoolStatus = WorkerPoolStatus()


def is_managed(metadata: ObjectMeta) -> bool:
    """Whether the operator made the pool of this metadata itself."""
    return metadata.labels.get(MANAGED_POOL_LABEL) == "true"
