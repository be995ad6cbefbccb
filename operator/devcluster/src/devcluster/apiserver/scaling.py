"""The scale subresource: an `autoscaling/v1` Scale made from an object, and written back into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.registry import Served
from devcluster.machinery.field_errors import invalid
from devcluster.machinery.selectors import format_label_selector

API_VERSION = "autoscaling/v1"
KIND = "Scale"
_KEPT_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def scale_of(served: Served, obj: Mapping[str, Any]) -> dict[str, Any]:
    """The Scale of an object. Raises ApiError 500 when a custom resource has no replicas where its CRD says."""
    paths = served.info.scale
    assert paths is not None
    replicas = _read(obj, paths.spec_replicas_path)
    if replicas is None and served.crd:
        raise errors.internal(f"the spec replicas field {paths.spec_replicas_path!r} does not exist".replace("'", '"'))
    status: dict[str, Any] = {"replicas": _read(obj, paths.status_replicas_path) or 0}
    selector = _read(obj, paths.label_selector_path) if paths.label_selector_path else None
    if selector:
        status["selector"] = selector if isinstance(selector, str) else format_label_selector(selector)
    return {
        "kind": KIND,
        "apiVersion": API_VERSION,
        "metadata": {key: value for key, value in obj["metadata"].items() if key in _KEPT_METADATA},
        "spec": {"replicas": replicas or 0},
        "status": status,
    }


def with_scale(served: Served, obj: dict[str, Any], scale: Mapping[str, Any]) -> dict[str, Any]:
    """`obj`, changed in place to what the Scale asks for. Raises ApiError 422 for replicas that are no count."""
    paths = served.info.scale
    assert paths is not None
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        fault = invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("autoscaling", KIND, obj["metadata"]["name"], [fault])
    if version := (scale.get("metadata") or {}).get("resourceVersion"):
        obj["metadata"]["resourceVersion"] = version
    *parents, last = _parts(paths.spec_replicas_path)
    place = obj
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = replicas
    return obj


def _parts(path: str) -> list[str]:
    return path.strip(".").split(".")


def _read(obj: Mapping[str, Any], path: str) -> Any:
    value: Any = obj
    for part in _parts(path):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
