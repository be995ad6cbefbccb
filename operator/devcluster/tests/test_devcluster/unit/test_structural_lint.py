"""The lint of the repository's own CRDs tells what a real API server would refuse."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from support.definitions import CRD_FOLDER
from support.structural import lint

ROOT = "spec.validation.openAPIV3Schema"
FIELD = f"{ROOT}.properties[spec].properties[f]"


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
        (
            {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            f"{FIELD}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes "
            "quadratic",
        ),
        ({"$ref": "#/x"}, f"{FIELD}.$ref: Forbidden: $ref is not supported"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}},
            f"{FIELD}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            {"type": "string", "anyOf": [{"type": "string"}]},
            f"{FIELD}.anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            {"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]},
            f"{FIELD}.properties[x]: Required value: because it is defined in {FIELD}.anyOf[0].properties[x]",
        ),
        (
            {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"},
            f"{FIELD}.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            {
                "type": "array",
                "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k"],
            },
            f"{FIELD}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, "
            "so it must have a default or be a required property",
        ),
        (
            {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"},
            f"{FIELD}.items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with "
            "x-kubernetes-list-type=set",
        ),
        (
            {"type": "integer", "default": "x"},
            f'{FIELD}.default: Invalid value: "string": {FIELD}.default in body must be of type integer: "string"',
        ),
        (
            {"type": "object", "x-kubernetes-preserve-unknown-fields": False},
            f"{FIELD}.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
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
def test_a_schema_that_is_not_structural_is_told(schema: dict[str, Any], message: str) -> None:
    root = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"f": schema}}}}
    assert message in [str(error) for error in lint(root, ROOT)]


@pytest.mark.parametrize("path", sorted(CRD_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_definitions_are_structural(path: Any) -> None:
    for version in yaml.safe_load(path.read_text())["spec"]["versions"]:
        assert [str(error) for error in lint(version["schema"]["openAPIV3Schema"], ROOT)] == []
