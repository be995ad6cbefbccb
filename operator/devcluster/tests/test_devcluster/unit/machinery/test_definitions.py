"""A CustomResourceDefinition that cannot be honoured is refused when it is written, with every fault and its path."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.machinery.resources import InvalidDefinition, builtin_resources, from_crd
from support.definitions import CRD_FOLDER, builtin, definition, project_kind

ROOT = "spec.validation.openAPIV3Schema"
FIELD = f"{ROOT}.properties[spec].properties[f]"


def refusals(crd: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidDefinition) as caught:
        from_crd(crd)
    assert caught.value.causes
    return [str(error) for error in caught.value.errors]


def field_refusals(schema: dict[str, Any]) -> list[str]:
    return refusals(definition({"type": "object", "properties": {"f": schema}}))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, f"{FIELD}.type: Required value: must not be empty for specified object fields"),
        (
            {"type": "text"},
            f'{FIELD}.type: Unsupported value: "text": supported values: '
            '"array", "boolean", "integer", "number", "object", "string"',
        ),
        ({"type": "array"}, f"{FIELD}.items: Required value: must be specified"),
        (
            {"type": "array", "items": {"properties": {}}},
            f"{FIELD}.items.type: Required value: must not be empty for specified array items",
        ),
        ({"$ref": "#/x"}, f"{FIELD}.$ref: Forbidden: $ref is not supported"),
        (
            {"type": "object", "anyOf": [{"not": {"$ref": "#/x"}}]},
            f"{FIELD}.anyOf[0].not.$ref: Forbidden: $ref is not supported",
        ),
        (
            {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"},
            f"{FIELD}.x-kubernetes-list-map-keys: Invalid value: []: entries must all be names of item properties",
        ),
        (
            {"type": "string", "format": "creditcard"},
            f"{FIELD}.format: Forbidden: this format is not enforced by the embedded API server",
        ),
        (
            {"type": "array", "items": [{"type": "string"}]},
            f"{FIELD}.items: Forbidden: must be a schema object and not an array or a boolean",
        ),
        (
            {"type": "array", "items": {"type": "string", "colour": 1}},
            f"{FIELD}.items.colour: Forbidden: is not a keyword",
        ),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused(schema: dict[str, Any], message: str) -> None:
    assert message in field_refusals(schema)


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"(a)\1", "a++", r"\p{L}"])
def test_a_pattern_that_cannot_be_honoured_is_refused(pattern: str) -> None:
    [message] = field_refusals({"type": "string", "pattern": pattern})
    assert message.startswith(f"{FIELD}.pattern: Invalid value: ")
    assert "must be a valid regular expression, but isn't" in message


def test_names_versions_and_scope_are_checked() -> None:
    crd = definition({"type": "object"})
    crd["metadata"]["name"] = "other.example.test"
    crd["spec"]["names"].update(kind="widget_s", plural="")
    crd["spec"]["scope"] = "Galaxy"
    crd["spec"]["versions"].append({**crd["spec"]["versions"][0]})
    messages = "\n".join(refusals(crd))
    assert 'spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced"' in messages
    assert "spec.names.plural: Required value" in messages
    assert 'spec.names.kind: Invalid value: "widget_s": may have mixed case' in messages
    assert "must contain unique version names" in messages
    assert "must have exactly one version marked as storage version" in messages


def test_the_name_joins_plural_and_group() -> None:
    crd = definition({"type": "object"})
    crd["metadata"]["name"] = "other"
    assert refusals(crd) == [
        'metadata.name: Invalid value: "other": must be spec.names.plural+"."+spec.group',
    ]


def test_conversion_webhooks_and_columns_that_cannot_work_are_refused() -> None:
    crd = definition(
        {"type": "object"},
        additionalPrinterColumns=[{"name": "A", "type": "text", "jsonPath": "spec"}],
        subresources={"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": ".status.n"}},
    )
    crd["spec"]["conversion"] = {"strategy": "Webhook"}
    messages = "\n".join(refusals(crd))
    assert "spec.conversion.strategy: Forbidden" in messages
    assert "must be one of boolean,date,integer,number,string" in messages
    assert "jsonPath: Invalid value" in messages
    assert 'scale.specReplicasPath: Invalid value: ".status.n": should be a json path under .spec' in messages


def test_the_message_names_the_definition() -> None:
    with pytest.raises(
        InvalidDefinition, match=r'CustomResourceDefinition\.apiextensions\.k8s\.io "widgets\.example\.test" is invalid'
    ):
        from_crd(definition({"type": "text"}))


def test_a_good_definition_gives_one_kind_for_each_served_version() -> None:
    crd = definition({"type": "object"}, subresources={"status": {}})
    crd["spec"]["versions"].append({**crd["spec"]["versions"][0], "name": "v2", "storage": False})
    crd["spec"]["versions"].append({**crd["spec"]["versions"][0], "name": "v3", "storage": False, "served": False})
    found = from_crd(crd)
    assert [item.api_version for item in found] == ["example.test/v1", "example.test/v2"]
    assert {item.storage_group_version for item in found} == {"example.test/v1"}
    assert found[0].has_status
    assert found[0].group_resource == "widgets.example.test"


@pytest.mark.parametrize("path", sorted(CRD_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_definitions_are_accepted(path: Any) -> None:
    schema = builtin("CustomResourceDefinition").schema
    crd = yaml.safe_load(path.read_text())
    assert schema.unknown_fields(crd) == []
    completed = schema.default(crd)
    assert schema.validate(completed) == []
    assert from_crd(completed)


def test_the_scale_of_a_worker_pool_is_known() -> None:
    pool = project_kind("WorkerPool")
    assert pool.scale is not None
    assert pool.scale.spec_replicas_path == ".spec.replicas"


def test_every_built_in_kind_has_a_schema_and_its_own_name() -> None:
    resources = builtin_resources()
    assert len({(item.group, item.version, item.plural) for item in resources}) == len(resources)
    for item in resources:
        assert "metadata" in item.schema.root.properties, item.kind


def test_the_checked_in_schemas_are_what_the_script_cuts() -> None:
    pytest.importorskip("kubernetes_validate")
    tool = runpy.run_path(str(Path(__file__).parents[4] / "tools" / "cut_builtin_schemas.py"))
    assert json.loads(tool["TARGET"].read_text()) == tool["cut"]()
