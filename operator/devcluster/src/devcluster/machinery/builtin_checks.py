"""What built-in kinds demand beyond their schema, so far as people get it wrong. Called through `StructuralSchema`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from devcluster.machinery import field_errors
from devcluster.machinery.field_errors import FieldError
from devcluster.machinery.go_values import equal_json
from devcluster.machinery.selectors import InvalidSelector, matches_label_selector

Check = Callable[[dict[str, Any], dict[str, Any] | None], Iterator[FieldError]]
_IMMUTABLE: Final = "field is immutable"


def check_workload(obj: dict[str, Any], old: dict[str, Any] | None) -> Iterator[FieldError]:
    """Deployments and ReplicaSets: the selector is there, selects the template, and never changes."""
    spec = obj.get("spec", {})
    selector = spec.get("selector", {})
    labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield field_errors.invalid("spec.selector", selector, "empty selector is invalid for deployment")
    else:
        try:
            selected = matches_label_selector(selector, labels)
        except InvalidSelector as error:
            yield field_errors.invalid("spec.selector", selector, str(error))
        else:
            if not selected:
                detail = "`selector` does not match template `labels`"
                yield field_errors.invalid("spec.template.metadata.labels", labels, detail)
    if old is not None and not equal_json(old.get("spec", {}).get("selector"), spec.get("selector")):
        yield field_errors.invalid("spec.selector", selector, _IMMUTABLE)
    if spec.get("replicas", 0) < 0:
        yield field_errors.invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
    yield from check_pod_spec(spec.get("template", {}).get("spec", {}), "spec.template.spec")
    policy = spec.get("template", {}).get("spec", {}).get("restartPolicy")
    if policy not in (None, "Always"):
        yield field_errors.not_supported("spec.template.spec.restartPolicy", policy, ("Always",))


def check_pod(obj: dict[str, Any], _old: dict[str, Any] | None) -> Iterator[FieldError]:
    yield from check_pod_spec(obj.get("spec", {}), "spec")


def check_pod_spec(spec: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Containers exist, have an image, and mount volumes that are declared."""
    containers = spec.get("containers", [])
    if not containers:
        yield field_errors.required(f"{path}.containers")
    volumes = {volume.get("name") for volume in spec.get("volumes", [])}
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field, [])):
            place = f"{path}.{field}[{index}]"
            if not container.get("image"):
                yield field_errors.required(f"{place}.image")
            for position, mount in enumerate(container.get("volumeMounts", [])):
                if mount.get("name") not in volumes:
                    yield FieldError(
                        path=f"{place}.volumeMounts[{position}].name",
                        reason=field_errors.Reason.NOT_FOUND,
                        value=mount.get("name"),
                    )


def check_frozen_data(obj: dict[str, Any], old: dict[str, Any] | None) -> Iterator[FieldError]:
    """ConfigMaps and Secrets marked immutable stay as they are."""
    if old is None or not old.get("immutable"):
        return
    if not obj.get("immutable"):
        yield field_errors.forbidden("immutable", "field is immutable when `immutable` is set")
    for field in ("data", "binaryData"):
        if not equal_json(obj.get(field), old.get(field)):
            yield field_errors.forbidden(field, "field is immutable when `immutable` is set")


def check_secret(obj: dict[str, Any], old: dict[str, Any] | None) -> Iterator[FieldError]:
    yield from check_frozen_data(obj, old)
    if old is not None and obj.get("type") != old.get("type"):
        yield field_errors.invalid("type", obj.get("type"), _IMMUTABLE)


def check_role_binding(obj: dict[str, Any], old: dict[str, Any] | None) -> Iterator[FieldError]:
    if old is not None and not equal_json(obj.get("roleRef"), old.get("roleRef")):
        yield field_errors.invalid("roleRef", obj.get("roleRef"), "cannot change roleRef")


EXTRA_CHECKS: Final[Mapping[tuple[str, str], Check]] = {
    ("apps", "Deployment"): check_workload,
    ("apps", "ReplicaSet"): check_workload,
    ("", "Pod"): check_pod,
    ("", "ConfigMap"): check_frozen_data,
    ("", "Secret"): check_secret,
    ("rbac.authorization.k8s.io", "RoleBinding"): check_role_binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): check_role_binding,
}
