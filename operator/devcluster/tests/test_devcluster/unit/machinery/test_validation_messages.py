"""A refused object is refused with the words of a real API server, for kubectl shows them to people as they are."""

from __future__ import annotations

from typing import Any

import pytest

from support.definitions import builtin, custom, widget


def faults(schema: dict[str, Any], value: Any, old: Any = None) -> list[str]:
    """The messages for an object with one field of this schema."""
    resource = custom({"type": "object", "properties": {"field": schema}})
    obj = widget({"field": value})
    return [str(error) for error in resource.schema.validate(obj, None if old is None else widget({"field": old}))]


STRING: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        (
            {**STRING, "pattern": "^[a-z]+$"},
            "Ab",
            "spec.field: Invalid value: \"Ab\": spec.field in body should match '^[a-z]+$'",
        ),
        ({**STRING, "maxLength": 3}, "abcd", "spec.field: Too long: may not be more than 3 bytes"),
        ({**STRING, "maxLength": 1}, "abcd", "spec.field: Too long: may not be more than 1 byte"),
        (
            {**STRING, "minLength": 2},
            "a",
            'spec.field: Invalid value: "a": spec.field in body should be at least 2 chars long',
        ),
        (
            {**STRING, "enum": ["a", "b"]},
            "x",
            'spec.field: Unsupported value: "x": supported values: "a", "b"',
        ),
        (
            INTEGER,
            "x",
            'spec.field: Invalid value: "string": spec.field in body must be of type integer: "string"',
        ),
        (
            STRING,
            None,
            'spec.field: Invalid value: "null": spec.field in body must be of type string: "null"',
        ),
        (
            STRING,
            True,
            'spec.field: Invalid value: "boolean": spec.field in body must be of type string: "boolean"',
        ),
        (
            {"x-kubernetes-int-or-string": True},
            True,
            'spec.field: Invalid value: "boolean": spec.field in body must be of type integer,string: "boolean"',
        ),
        (
            {**INTEGER, "minimum": 1},
            0,
            "spec.field: Invalid value: 0: spec.field in body should be greater than or equal to 1",
        ),
        (
            {"type": "number", "maximum": 1, "exclusiveMaximum": True},
            1,
            "spec.field: Invalid value: 1: spec.field in body should be less than 1",
        ),
        (
            {**INTEGER, "multipleOf": 5},
            7,
            "spec.field: Invalid value: 7: spec.field in body should be a multiple of 5",
        ),
        (
            {**INTEGER, "format": "int32"},
            2**31,
            '<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.field',
        ),
        (
            {"type": "array", "items": INTEGER, "minItems": 2},
            [1],
            "spec.field: Invalid value: 1: spec.field in body should have at least 2 items",
        ),
        (
            {"type": "array", "items": INTEGER, "maxItems": 1},
            [1, 2],
            "spec.field: Too many: 2: must have at most 1 item",
        ),
        (
            {"type": "object", "additionalProperties": INTEGER, "maxProperties": 0},
            {"a": 1},
            "spec.field: Too many: 1: must have at most 0 items",
        ),
        (
            {"type": "object", "additionalProperties": INTEGER, "minProperties": 1},
            {},
            "spec.field: Invalid value: 0: spec.field in body should have at least 1 properties",
        ),
        (
            {"type": "object", "required": ["a"], "properties": {"a": STRING}},
            {},
            "spec.field.a: Required value",
        ),
        (
            {"type": "array", "items": {"type": "object", "properties": {"a": INTEGER}}},
            [{"a": 1}, {"a": "x"}],
            'spec.field[1].a: Invalid value: "string": spec.field[1].a in body must be of type integer: "string"',
        ),
        (
            {**STRING, "format": "date-time"},
            "yesterday",
            'spec.field: Invalid value: "yesterday": spec.field in body must be of type date-time: "yesterday"',
        ),
        (
            {**STRING, "format": "byte"},
            "***",
            'spec.field: Invalid value: "***": spec.field in body must be of type byte: "***"',
        ),
        (
            {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"},
            ["a", "b", "a", "a"],
            'spec.field[2]: Duplicate value: "a"',
        ),
        (
            {**STRING, "not": {"enum": ["x"]}},
            "x",
            '<nil>: Invalid value: "": "spec.field" must not validate the schema (not)',
        ),
    ],
)
def test_a_fault_reads_as_on_a_real_server(schema: dict[str, Any], value: Any, message: str) -> None:
    assert message in faults(schema, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({**STRING, "pattern": "b"}, "abc"),
        ({**STRING, "nullable": True}, None),
        ({**INTEGER, "format": "int64"}, 2**63 - 1),
        (INTEGER, 3.0),
        ({"type": "number"}, 3),
        ({"x-kubernetes-int-or-string": True}, "25%"),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, {"any": ["thing", {"at": "all"}]}),
        ({"x-kubernetes-preserve-unknown-fields": True}, [1, "x", None]),
        ({**STRING, "format": "date-time"}, "2026-01-02T03:04:05.678Z"),
        ({**STRING, "format": "a-format-nobody-knows"}, "x"),
        ({**STRING, "maxLength": 3}, "äöü"),
    ],
)
def test_a_valid_value_is_accepted(schema: dict[str, Any], value: Any) -> None:
    assert faults(schema, value) == []


def test_the_end_of_the_text_is_meant_by_a_dollar_sign_not_a_last_newline() -> None:
    assert faults({**STRING, "pattern": "^a$"}, "a\n")


def test_items_of_a_keyed_list_must_differ_in_their_keys() -> None:
    schema = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"],
        "items": {
            "type": "object",
            "required": ["port"],
            "properties": {"port": INTEGER, "protocol": {**STRING, "default": "TCP"}},
        },
    }
    one, other = {"port": 1, "protocol": "TCP"}, {"port": 1, "protocol": "UDP"}
    assert faults(schema, [one, other]) == []
    assert faults(schema, [one, other, one]) == ['spec.field[2]: Duplicate value: {"port":1,"protocol":"TCP"}']


def test_alternatives_say_which_combination_failed() -> None:
    alternatives = [{"required": ["a"]}, {"required": ["b"]}]
    base: dict[str, Any] = {"type": "object", "properties": {"a": STRING, "b": STRING}}
    one_of = {**base, "oneOf": alternatives}
    assert faults(one_of, {"a": "1"}) == []
    both = faults(one_of, {"a": "1", "b": "2"})
    assert both == [
        '<nil>: Invalid value: "": "spec.field" must validate one and only one schema (oneOf). '
        "Found 2 valid alternatives"
    ]
    assert any("Found none valid" in message for message in faults(one_of, {}))
    any_of = faults({**base, "anyOf": alternatives}, {})
    assert any_of[0] == '<nil>: Invalid value: "": "spec.field" must validate at least one schema (anyOf)'
    all_of = faults({**base, "allOf": alternatives}, {"a": "1"})
    assert "spec.field.b: Required value" in all_of
    assert '<nil>: Invalid value: "": "spec.field" must validate all the schemas (allOf)' in all_of


def test_a_stored_fault_is_tolerated_while_it_stays_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": {**STRING, "maxLength": 1}, "b": STRING}}
    assert faults(schema, {"a": "long", "b": "new"}, old={"a": "long", "b": "old"}) == []
    assert faults(schema, {"a": "longer"}, old={"a": "long"}) == ["spec.field.a: Too long: may not be more than 1 byte"]


def test_a_stored_number_is_not_taken_for_an_equal_boolean() -> None:
    assert faults(INTEGER, True, old=1)


def test_metadata_is_checked_with_every_kind() -> None:
    resource = custom({"type": "object"})
    obj = widget({})
    obj["metadata"]["labels"] = {"a": 1}
    [error] = resource.schema.validate(obj)
    assert error.path == "metadata.labels.a"


def test_a_deployment_must_select_its_own_pods() -> None:
    schema = builtin("Deployment").schema
    obj = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {
                "metadata": {"labels": {"app": "b"}},
                "spec": {
                    "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]
                },
            },
        },
    }
    assert [str(error) for error in schema.validate(schema.default(obj))] == [
        'spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`',
        'spec.template.spec.containers[0].volumeMounts[0].name: Not found: "v"',
    ]


def test_a_quantity_that_is_none_is_refused() -> None:
    schema = builtin("Pod").schema
    container = {"name": "c", "image": "i", "resources": {"limits": {"memory": "lots"}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}}
    errors = schema.validate(schema.default(pod))
    assert errors[0].path == "spec.containers[0].resources.limits.memory"
    assert "quantities must match the regular expression" in errors[0].message


def test_what_is_immutable_in_built_in_kinds_stays() -> None:
    secret = builtin("Secret").schema
    old = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque", "immutable": True}
    new = {**old, "data": {"a": "Yg=="}, "type": "other"}
    assert [str(error) for error in secret.validate(new, old)] == [
        "data: Forbidden: field is immutable when `immutable` is set",
        'type: Invalid value: "other": field is immutable',
    ]
