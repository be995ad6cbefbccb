"""Whether a CustomResourceDefinition can be served. Called by `resources.from_crd`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from devcluster.errors import EmbeddedError
from devcluster.machinery import field_errors
from devcluster.machinery.cel import check_rules
from devcluster.machinery.enforceable import check_enforceable
from devcluster.machinery.field_errors import FieldError, describe_invalid
from devcluster.machinery.jsonpath import InvalidJsonPath, compile_json_path
from devcluster.machinery.schema_node import resource_root

_LABEL: Final = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_LABEL_RULE: Final = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_COLUMN_TYPES: Final = ("boolean", "date", "integer", "number", "string")


class InvalidDefinition(EmbeddedError):
    """A CustomResourceDefinition cannot be served; `errors` has every fault with its path."""

    def __init__(self, name: str, errors: list[FieldError]) -> None:
        self.name = name
        self.errors = errors
        message, self.causes = describe_invalid(
            group="apiextensions.k8s.io", kind="CustomResourceDefinition", name=name, errors=errors
        )
        super().__init__(message)


def check_definition(crd: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> list[FieldError]:
    """The faults of a definition that has its defaults; `definitions` are the schemas of built-in types."""
    spec = crd.get("spec")
    if not isinstance(spec, Mapping):
        return [field_errors.required("spec")]
    return list(_check_spec(crd, spec, definitions))


def _check_spec(
    crd: Mapping[str, Any], spec: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]
) -> Iterator[FieldError]:
    group = spec.get("group", "")
    yield from _check_group(group)
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        if not spec.get("scope"):
            yield field_errors.required("spec.scope")
        else:
            yield field_errors.not_supported("spec.scope", spec["scope"], ("Cluster", "Namespaced"))
    names = spec.get("names") or {}
    yield from _check_names(names)
    name = crd.get("metadata", {}).get("name", "")
    if group and names.get("plural") and name != f"{names['plural']}.{group}":
        yield field_errors.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    if spec.get("preserveUnknownFields"):
        detail = (
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        )
        yield field_errors.invalid("spec.preserveUnknownFields", True, detail)
    strategy = spec.get("conversion", {}).get("strategy", "None")
    if strategy != "None":
        detail = "the embedded API server has no conversion webhooks"
        yield field_errors.forbidden("spec.conversion.strategy", detail)
    versions = spec.get("versions") or []
    if not versions:
        yield field_errors.required("spec.versions")
    found = [version.get("name") for version in versions]
    if len(set(found)) != len(found):
        yield field_errors.invalid("spec.versions", versions, "must contain unique version names")
    if versions and sum(bool(version.get("storage")) for version in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        yield field_errors.invalid("spec.versions", versions, detail)
    for index, version in enumerate(versions):
        yield from _check_version(version, f"spec.versions[{index}]")
    for schema, place in _placed(versions, ("schema", "openAPIV3Schema"), "validation.openAPIV3Schema"):
        if isinstance(schema, Mapping):
            yield from _check_schema(schema, place, definitions)
    for subresources, place in _placed(versions, ("subresources",), "subresources"):
        yield from _check_subresources(subresources or {}, place)
    for columns, place in _placed(versions, ("additionalPrinterColumns",), "additionalPrinterColumns"):
        for index, column in enumerate(columns or ()):
            yield from _check_column(column, f"{place}[{index}]")
    for fields, place in _placed(versions, ("selectableFields",), "selectableFields"):
        for index, field in enumerate(fields or ()):
            yield from _check_json_path(field.get("jsonPath", ""), f"{place}[{index}].jsonPath")


def _placed(versions: Sequence[Mapping[str, Any]], field: Sequence[str], shared: str) -> Iterator[tuple[Any, str]]:
    """A part of each version with the path that faults in it are told at.

    What all versions have alike Kubernetes moves to where its oldest definitions had it before it looks: to `shared`.
    """
    found: list[Any] = []
    for version in versions:
        value: Any = version
        for name in field:
            value = (value or {}).get(name)
        found.append(value)
    if found and all(each == found[0] for each in found):
        yield found[0], f"spec.{shared}"
        return
    yield from ((each, ".".join([f"spec.versions[{index}]", *field])) for index, each in enumerate(found))


def _check_group(group: str) -> Iterator[FieldError]:
    if not group:
        yield field_errors.required("spec.group")
    elif not _SUBDOMAIN.fullmatch(group):
        detail = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        yield field_errors.invalid("spec.group", group, detail)
    elif "." not in group:
        yield field_errors.invalid("spec.group", group, "should be a domain with at least one dot")


def _check_names(names: Mapping[str, Any]) -> Iterator[FieldError]:
    for field in ("plural", "singular", "kind", "listKind"):
        if not names.get(field):
            yield field_errors.required(f"spec.names.{field}")
    for field in ("plural", "singular"):
        if names.get(field) and not _LABEL.fullmatch(names[field]):
            yield field_errors.invalid(f"spec.names.{field}", names[field], _LABEL_RULE)
    for field in ("kind", "listKind"):
        if names.get(field) and not _LABEL.fullmatch(names[field].lower()):
            detail = f"may have mixed case, but should otherwise match: {_LABEL_RULE}"
            yield field_errors.invalid(f"spec.names.{field}", names[field], detail)
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        yield field_errors.invalid("spec.names.listKind", names["listKind"], "kind and listKind may not be the same")
    for field in ("shortNames", "categories"):
        for index, name in enumerate(names.get(field, ())):
            if not _LABEL.fullmatch(name):
                yield field_errors.invalid(f"spec.names.{field}[{index}]", name, _LABEL_RULE)


def _check_version(version: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    if not _LABEL.fullmatch(version.get("name", "")):
        yield field_errors.invalid(f"{path}.name", version.get("name", ""), _LABEL_RULE)
    for field in ("served", "storage"):
        if not isinstance(version.get(field), bool):
            yield field_errors.required(f"{path}.{field}")
    if not isinstance((version.get("schema") or {}).get("openAPIV3Schema"), Mapping):
        yield field_errors.required(f"{path}.schema.openAPIV3Schema", "schemas are required")


def _check_schema(
    schema: Mapping[str, Any], place: str, definitions: Mapping[str, Mapping[str, Any]]
) -> Iterator[FieldError]:
    faults = list(check_enforceable(schema, place))
    yield from faults
    if not faults:
        yield from check_rules(resource_root(schema, definitions), place)


def _check_column(column: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    if not column.get("name"):
        yield field_errors.required(f"{path}.name")
    detail = f"must be one of {','.join(_COLUMN_TYPES)}"
    if not column.get("type"):
        yield field_errors.required(f"{path}.type", detail)
    elif column["type"] not in _COLUMN_TYPES:
        yield field_errors.invalid(f"{path}.type", column["type"], detail)
    yield from _check_json_path(column.get("jsonPath", ""), f"{path}.jsonPath")


def _check_json_path(json_path: str, path: str) -> Iterator[FieldError]:
    if not json_path:
        yield field_errors.required(path)
        return
    try:
        compile_json_path(json_path)
    except InvalidJsonPath as error:
        yield field_errors.invalid(path, json_path, f"is an invalid path: {error}")


def _check_subresources(subresources: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for name in subresources:
        if name not in ("status", "scale"):
            yield field_errors.not_supported(path, name, ("status", "scale"))
    scale = subresources.get("scale")
    if scale is None:
        return
    wanted = {
        "specReplicasPath": ((".spec",), "should be a json path under .spec"),
        "statusReplicasPath": ((".status",), "should be a json path under .status"),
        "labelSelectorPath": ((".spec", ".status"), "should be a json path under either .spec or .status"),
    }
    for field, (prefixes, detail) in wanted.items():
        value = scale.get(field, "")
        if not value:
            if field != "labelSelectorPath":
                yield field_errors.required(f"{path}.scale.{field}")
        elif not value.startswith(tuple(f"{prefix}." for prefix in prefixes)) or "[" in value:
            yield field_errors.invalid(f"{path}.scale.{field}", value, detail)
