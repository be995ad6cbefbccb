"""Kubernetes objects as plain JSON values, and the few questions every part of the node asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

KubeObject = dict[str, Any]
"""An object as the API server gives it. Treated as immutable: what is read from a cache is never changed in place."""


REPLICA_FAILURE = "ReplicaFailure"
"""The condition of a ReplicaSet whose pods cannot be made, and of its Deployment."""


class Key(NamedTuple):
    """Where an object is; the namespace of a cluster-wide one is empty."""

    namespace: str
    name: str


def key_of(obj: Mapping[str, Any]) -> Key:
    """The place of an object."""
    metadata = obj["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def uid_of(obj: Mapping[str, Any]) -> str:
    """The object's identity: a name may be used again, a uid never is."""
    uid: str = obj["metadata"]["uid"]
    return uid


def version_of(obj: Mapping[str, Any]) -> int:
    """The resource version as a number: newer is larger."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def is_deleting(obj: Mapping[str, Any]) -> bool:
    """Whether the object is on its way out."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference that manages this object."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: Mapping[str, Any] = reference
            return found
    return None


def is_controlled_by(obj: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """Whether `owner` manages this object."""
    reference = controller_of(obj)
    return reference is not None and reference.get("uid") == uid_of(owner)


def controller_reference(owner: Mapping[str, Any], *, api_version: str, kind: str) -> KubeObject:
    """The owner reference to put on what `owner` manages."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def format_time(moment: datetime) -> str:
    """As Kubernetes writes times: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """The moment of an RFC 3339 text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def find_condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of this type in the object's status."""
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            found: Mapping[str, Any] = condition
            return found
    return None


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether this condition holds."""
    condition = find_condition(obj, kind)
    return condition is not None and condition.get("status") == "True"


def matches(labels: Mapping[str, str] | None, selector: Mapping[str, Any]) -> bool:
    """Whether labels fit a label selector with matchLabels and matchExpressions."""
    labels = labels or {}
    if any(labels.get(name) != value for name, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_fits(labels, expression) for expression in selector.get("matchExpressions") or ())


def _fits(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    name, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(name) in values
        case "NotIn":
            return labels.get(name) not in values
        case "Exists":
            return name in labels
        case _:
            return name not in labels


def integer(value: object, default: int) -> int:
    """A number of a spec, or the default when the field is absent."""
    return default if value is None else int(str(value))


def find_named(items: Sequence[Mapping[str, Any]] | None, name: str) -> Mapping[str, Any] | None:
    """The item of a list that is keyed by name."""
    return next((item for item in items or () if item.get("name") == name), None)
