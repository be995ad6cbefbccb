"""What every resource has: metadata, conditions, and the one gate through which an object becomes a value."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict, ValidationError
from pydantic.alias_generators import to_camel

from tasker.controller.kube.client import Manifest
from tasker.errors import InvalidResource
from tasker.model.validation import first_fault

Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Strict(False)]
"""A list as JSON has it, which cannot be changed here."""

JsonObject = dict[str, Any]
"""An object that is carried on as it is: a person's payload, or a part of a pod's own API."""

Name = Annotated[str, Field(min_length=1, max_length=253)]
"""The name of another object."""

Truth = Literal["True", "False", "Unknown"]


class ResourcePart(BaseModel):
    """A part of an object. Fields that are not known here are left alone: a newer CRD may have more."""

    model_config = ConfigDict(frozen=True, strict=True, alias_generator=to_camel)


class NameReference(ResourcePart):
    """Another object of the same namespace."""

    name: Name


class ObjectMeta(ResourcePart):
    """An object's metadata, as far as the operator reads it. Times are as the API server writes them."""

    name: str
    namespace: str = ""
    """Empty for objects that have none."""
    uid: str
    generation: int = 0
    """0 for kinds that do not count it."""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    """When the deletion of an object that waits for finalizers was asked for."""
    labels: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest) -> ObjectMeta:
        """The metadata of any object, whether or not the rest of it can be read."""
        return cls.model_validate(manifest["metadata"])

    @property
    def is_being_deleted(self) -> bool:
        """Whether the object has been deleted and only waits for finalizers."""
        return self.deletion_timestamp is not None


class RecordedCondition(ResourcePart):
    """A condition as a status holds it."""

    type: str
    status: Truth
    observed_generation: int | None = Field(default=None, ge=0)
    last_transition_time: str
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32_768)]


class ResourceStatus(ResourcePart):
    """What every status of ours has."""

    observed_generation: int | None = None
    conditions: Items[RecordedCondition] = ()

    def condition(self, condition_type: str) -> RecordedCondition | None:
        """The condition of that type, or None."""
        return next((condition for condition in self.conditions if condition.type == condition_type), None)

    def is_true(self, condition_type: str) -> bool:
        """Whether the condition is there and True."""
        condition = self.condition(condition_type)
        return condition is not None and condition.status == "True"


class KubernetesObject(ResourcePart):
    """An object of the cluster."""

    metadata: ObjectMeta
    _manifest: Manifest = PrivateAttr()

    @classmethod
    def parse(cls, manifest: Manifest) -> Self:
        """The object as a value. Raises `InvalidResource` with path and reason of the first fault."""
        try:
            parsed = cls.model_validate(manifest)
        except ValidationError as error:
            path, reason = first_fault(error, "")
            raise InvalidResource(path.lstrip("."), reason) from error
        parsed._manifest = manifest
        return parsed

    @property
    def manifest(self) -> Manifest:
        """What this was parsed from, for calls that send it back."""
        return self._manifest

    @property
    def is_being_deleted(self) -> bool:
        """Whether the object has been deleted and only waits for finalizers."""
        return self.metadata.is_being_deleted
