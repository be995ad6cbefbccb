"""kubectl finds in the OpenAPI documents what it looks for: schemas with descriptions, and the query parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.machinery.openapi import openapi_document, openapi_index
from devcluster.machinery.resources import builtin_resources
from support.definitions import custom, project_kind

RESOURCES = [*builtin_resources(), project_kind("TaskTemplate"), project_kind("Task"), project_kind("WorkerPool")]
GROUP_VERSIONS = sorted({(item.group, item.version) for item in RESOURCES})


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


@pytest.mark.parametrize(("group", "version"), GROUP_VERSIONS)
def test_a_document_is_complete_in_itself(group: str, version: str) -> None:
    document = openapi_document(group, version, RESOURCES)
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    known = {kind["kind"] for schema in schemas.values() for kind in schema.get("x-kubernetes-group-version-kind", [])}
    for resource in RESOURCES:
        if (resource.group, resource.version) == (group, version):
            assert resource.kind in known


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.group_resource)
def test_writes_take_the_field_validation_parameter(resource: Any) -> None:
    document = openapi_document(resource.group, resource.version, [resource])
    wanted = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    found = [
        operation
        for path in document["paths"].values()
        for name, operation in path.items()
        if name in ("patch", "post") and operation["x-kubernetes-group-version-kind"] == wanted
    ]
    assert len(found) >= 2
    for operation in found:
        assert {"fieldValidation", "dryRun", "fieldManager"} <= {item["name"] for item in operation["parameters"]}


def test_only_built_in_kinds_take_strategic_merge_patches() -> None:
    strategic = "application/strategic-merge-patch+json"
    deployments = openapi_document("apps", "v1", RESOURCES)["paths"]
    patch = deployments["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert strategic in patch["requestBody"]["content"]
    tasks = openapi_document("tasker.dev", "v1alpha1", RESOURCES)["paths"]
    patch = tasks["/apis/tasker.dev/v1alpha1/namespaces/{namespace}/tasks/{name}"]["patch"]
    assert strategic not in patch["requestBody"]["content"]


def test_fields_are_described() -> None:
    schemas = openapi_document("tasker.dev", "v1alpha1", RESOURCES)["components"]["schemas"]
    template = schemas["dev.tasker.v1alpha1.TaskTemplate"]
    steps = template["properties"]["spec"]["properties"]["steps"]
    assert steps["description"]
    assert steps["items"]["properties"]["dependsOn"]["description"]
    assert template["properties"]["apiVersion"]["description"]
    pods = openapi_document("apps", "v1", RESOURCES)["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]
    assert pods["properties"]["containers"]["description"]
    assert pods["properties"]["containers"]["x-kubernetes-patch-merge-key"] == "name"


def test_the_address_of_a_document_changes_with_its_content() -> None:
    one = custom({"type": "object", "properties": {"a": {"type": "string"}}})
    other = custom({"type": "object", "properties": {"a": {"type": "integer"}}})
    first, second = openapi_index([one]), openapi_index([other])
    assert first == openapi_index([one])
    name = "apis/example.test/v1"
    assert first["paths"].keys() == {name}
    assert first["paths"][name]["serverRelativeURL"].startswith(f"/openapi/v3/{name}?hash=")
    assert first != second


def test_scale_is_documented_where_it_exists() -> None:
    paths = openapi_document("tasker.dev", "v1alpha1", RESOURCES)["paths"]
    scale = paths["/apis/tasker.dev/v1alpha1/namespaces/{namespace}/workerpools/{name}/scale"]["get"]
    assert scale["x-kubernetes-group-version-kind"] == {"group": "autoscaling", "version": "v1", "kind": "Scale"}
