"""The OpenAPI v3 documents that kubectl reads: one a group and version, and the index of them.

kubectl takes from them what `explain` prints, whether the server validates fields itself (the query parameter
``fieldValidation`` on PATCH and POST), and how lists of built-in kinds merge. Nothing else here depends on them, so
they describe requests only as far as kubectl and the official clients look.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from devcluster.machinery.builtin_kinds import LIST_META, SCALE
from devcluster.machinery.builtin_schemas import builtin_definitions
from devcluster.machinery.resources import ResourceInfo
from devcluster.machinery.schema_node import QUANTITY

VERSION: Final = "v1.37.0"
_REFERENCE: Final = "#/components/schemas/"
_PATCH_TYPES: Final = ("application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json")
_STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
_SUBSCHEMAS: Final = ("items", "additionalProperties", "not")
_SUBSCHEMA_LISTS: Final = ("allOf", "anyOf", "oneOf")
_API_VERSION: Final = {
    "type": "string",
    "description": "The version of the schema in which this object is written, as group and version.",
}
_KIND: Final = {"type": "string", "description": "The kind of this object. It cannot be changed."}
_METADATA: Final = {
    "$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "description": "Standard object's metadata.",
}


def openapi_index(resources: Iterable[ResourceInfo]) -> dict[str, Any]:
    """The answer to ``GET /openapi/v3``: for each group and version the address of its document.

    The address holds a hash of the content, so that a client may keep the document for ever.
    """
    paths: dict[str, Any] = {}
    for (group, version), members in sorted(_by_group_version(resources).items()):
        document = openapi_document(group, version, members)
        digest = hashlib.sha512(json.dumps(document, sort_keys=True).encode()).hexdigest().upper()
        name = _path_name(group, version)
        paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={digest}"}
    return {"paths": paths}


def openapi_document(group: str, version: str, resources: Iterable[ResourceInfo]) -> dict[str, Any]:
    """The document of one group and version; `resources` may hold others too, they are passed over."""
    members = [item for item in resources if (item.group, item.version) == (group, version)]
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for resource in members:
        name = schema_name(resource)
        schemas[name] = _root_schema(resource)
        schemas[f"{name}List"] = _list_schema(resource, name)
        paths.update(_paths(resource, name))
    if any(resource.scale is not None for resource in members):
        scale = _definition(SCALE)
        scale["x-kubernetes-group-version-kind"] = [{"group": "autoscaling", "version": "v1", "kind": "Scale"}]
        schemas[SCALE] = scale
    _add_referenced(schemas)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def openapi_v2_document() -> dict[str, Any]:
    """The answer to ``GET /openapi/v2``: no definitions. Clients of this age read v3."""
    return {"swagger": "2.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": {}, "definitions": {}}


def schema_name(resource: ResourceInfo) -> str:
    """The name of a kind's schema: ``io.k8s.api.apps.v1.Deployment``, ``dev.tasker.v1alpha1.Task``."""
    definition = resource.schema.root.definition
    if definition is not None:
        return definition
    return ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])


def _by_group_version(resources: Iterable[ResourceInfo]) -> dict[tuple[str, str], list[ResourceInfo]]:
    found: dict[tuple[str, str], list[ResourceInfo]] = {}
    for resource in resources:
        found.setdefault((resource.group, resource.version), []).append(resource)
    return found


def _path_name(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _gvk(resource: ResourceInfo, kind: str = "") -> dict[str, str]:
    return {"group": resource.group, "version": resource.version, "kind": kind or resource.kind}


def _root_schema(resource: ResourceInfo) -> dict[str, Any]:
    schema = resource.schema
    if resource.is_builtin:
        assert schema.root.definition is not None
        published = _definition(schema.root.definition)
    else:
        fields = {key: value for key, value in schema.raw["properties"].items() if key != "metadata"}
        described = {
            "apiVersion": {**_API_VERSION, **fields.pop("apiVersion", {})},
            "kind": {**_KIND, **fields.pop("kind", {})},
            "metadata": _METADATA,
        }
        published = _publish({**schema.raw, "properties": {**described, **fields}}, is_builtin=False)
    published["x-kubernetes-group-version-kind"] = [_gvk(resource)]
    return published


def _list_schema(resource: ResourceInfo, name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"{resource.list_kind} is a list of {resource.kind}.",
        "required": ["items"],
        "properties": {
            "apiVersion": dict(_API_VERSION),
            "items": {
                "type": "array",
                "description": f"The objects of kind {resource.kind}.",
                "items": {"allOf": [{"$ref": _REFERENCE + name}], "default": {}},
            },
            "kind": dict(_KIND),
            "metadata": {"allOf": [{"$ref": _REFERENCE + LIST_META}], "description": "Standard list metadata."},
        },
        "x-kubernetes-group-version-kind": [_gvk(resource, resource.list_kind)],
    }


def _definition(name: str) -> dict[str, Any]:
    return _publish(builtin_definitions()[name], is_builtin=True, name=name)


def _publish(schema: Mapping[str, Any], *, is_builtin: bool, name: str = "") -> dict[str, Any]:
    """A schema of ours as OpenAPI writes it; `name` is that of a built-in definition."""
    reference = schema.get("$ref")
    if isinstance(reference, str):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target = {"$ref": _REFERENCE + reference}
        return {"allOf": [target], **rest} if rest else target
    if is_builtin and schema.get("x-kubernetes-int-or-string"):
        words = {"description": schema["description"]} if "description" in schema else {}
        if name == QUANTITY:
            return {**words, "oneOf": [{"type": "string"}, {"type": "number"}]}
        return {**words, "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}
    published: dict[str, Any] = {}
    for keyword, value in schema.items():
        if is_builtin and keyword == "x-kubernetes-preserve-unknown-fields":
            continue
        if keyword == "properties":
            published[keyword] = {field: _publish(part, is_builtin=is_builtin) for field, part in value.items()}
        elif keyword in _SUBSCHEMAS and isinstance(value, Mapping):
            published[keyword] = _publish(value, is_builtin=is_builtin)
        elif keyword in _SUBSCHEMA_LISTS:
            published[keyword] = [_publish(part, is_builtin=is_builtin) for part in value]
        else:
            published[keyword] = value
    return published


def _add_referenced(schemas: dict[str, Any]) -> None:
    wanted = list(_references(schemas))
    while wanted:
        name = wanted.pop()
        if name not in schemas:
            schemas[name] = _definition(name)
            wanted.extend(_references(schemas[name]))


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        reference = part.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(_REFERENCE)
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _query(name: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}


_WRITE_PARAMETERS: Final = (_query("dryRun"), _query("fieldManager"), _query("fieldValidation"))
_LIST_PARAMETERS: Final = (
    _query("allowWatchBookmarks", "boolean"),
    _query("continue"),
    _query("fieldSelector"),
    _query("labelSelector"),
    _query("limit", "integer"),
    _query("resourceVersion"),
    _query("resourceVersionMatch"),
    _query("sendInitialEvents", "boolean"),
    _query("timeoutSeconds", "integer"),
    _query("watch", "boolean"),
)
_DELETE_PARAMETERS: Final = (
    _query("dryRun"),
    _query("gracePeriodSeconds", "integer"),
    _query("orphanDependents", "boolean"),
    _query("propagationPolicy"),
)


def _paths(resource: ResourceInfo, name: str) -> dict[str, Any]:
    base = f"/{_path_name(resource.group, resource.version)}"
    found: dict[str, Any] = {}
    scoped: list[dict[str, Any]] = []
    if resource.namespaced:
        everywhere = {"get": _operation(resource, "list", f"{name}List", parameters=_LIST_PARAMETERS)}
        found[f"{base}/{resource.plural}"] = everywhere
        base += "/namespaces/{namespace}"
        scoped = [_in_path("namespace")]
    found[f"{base}/{resource.plural}"] = {
        "parameters": [*scoped, _query("pretty")],
        "get": _operation(resource, "list", f"{name}List", parameters=_LIST_PARAMETERS),
        "post": _operation(resource, "post", name, body=("application/json",), parameters=_WRITE_PARAMETERS),
        "delete": _operation(
            resource, "deletecollection", name, parameters=(*_LIST_PARAMETERS[2:5], *_DELETE_PARAMETERS)
        ),
    }
    one = f"{base}/{resource.plural}/{{name}}"
    common = [_in_path("name"), *scoped, _query("pretty")]
    found[one] = {
        "parameters": common,
        **_item_operations(resource, name),
        "delete": _operation(resource, "delete", name, parameters=_DELETE_PARAMETERS),
    }
    if "status" in resource.subresources:
        found[f"{one}/status"] = {"parameters": common, **_item_operations(resource, name)}
    if "scale" in resource.subresources:
        found[f"{one}/scale"] = {"parameters": common, **_item_operations(resource, SCALE)}
    if "log" in resource.subresources:
        found[f"{one}/log"] = {"parameters": common, "get": _operation(resource, "get", None)}
    return found


def _item_operations(resource: ResourceInfo, name: str) -> dict[str, Any]:
    patches = (*_PATCH_TYPES, _STRATEGIC_PATCH) if resource.is_builtin else _PATCH_TYPES
    patch_parameters = (*_WRITE_PARAMETERS, _query("force", "boolean"))
    return {
        "get": _operation(resource, "get", name),
        "put": _operation(resource, "put", name, body=("application/json",), parameters=_WRITE_PARAMETERS),
        "patch": _operation(resource, "patch", name, body=patches, parameters=patch_parameters),
    }


def _operation(
    resource: ResourceInfo,
    action: str,
    schema: str | None,
    *,
    body: Sequence[str] = (),
    parameters: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    content = {} if schema is None else {"application/json": {"schema": {"$ref": _REFERENCE + schema}}}
    gvk = _gvk(resource)
    if schema == SCALE:
        gvk = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
    operation: dict[str, Any] = {
        "responses": {"200": {"description": "OK", **({"content": content} if content else {})}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        shape = {"type": "object"} if action == "patch" else {"$ref": f"{_REFERENCE}{schema}"}
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": shape} for kind in body}}
    return operation
