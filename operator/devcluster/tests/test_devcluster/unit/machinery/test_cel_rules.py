"""Rules in CEL guard an object as on a real API server: what they see, when they run, what they say."""

from __future__ import annotations

import time
from typing import Any

import pytest

from devcluster.machinery.resources import InvalidDefinition, from_crd
from support.definitions import custom, definition, project_kind, widget

INTEGER = {"type": "integer"}
STRING = {"type": "string"}


def check(schema: dict[str, Any], spec: Any, old: Any = None) -> list[str]:
    resource = custom(schema)
    return [str(error) for error in resource.schema.validate(widget(spec), None if old is None else widget(old))]


def ruled(schema: dict[str, Any], rule: str, **more: Any) -> dict[str, Any]:
    return {**schema, "x-kubernetes-validations": [{"rule": rule, **more}]}


def spec_with(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "rule", "good", "bad"),
    [
        (spec_with(a=INTEGER, b=INTEGER), "self.a <= self.b", {"a": 1, "b": 2}, {"a": 3, "b": 2}),
        (spec_with(a=INTEGER), "has(self.a)", {"a": 0}, {}),
        (spec_with(a=STRING), "size(self.a) == 3", {"a": "äöü"}, {"a": "äö"}),
        (spec_with(a=STRING), "self.a.size() == 3", {"a": "abc"}, {"a": "ab"}),
        (spec_with(a=STRING), "self.a.matches('^x[0-9]+$')", {"a": "x12"}, {"a": "y"}),
        (spec_with(a=STRING), "self.a.find('[0-9]+') == '12'", {"a": "x12y"}, {"a": "xy"}),
        (spec_with(a=STRING), "self.a.findAll('[0-9]') == ['1', '2']", {"a": "x1y2"}, {"a": "xy"}),
        (spec_with(a=STRING), "self.a.split(',').size() == 2", {"a": "x,y"}, {"a": "x"}),
        (spec_with(a=STRING), "self.a.indexOf('y') == 1", {"a": "xy"}, {"a": "yx"}),
        (spec_with(a=STRING), "self.a.lowerAscii() == self.a", {"a": "x"}, {"a": "X"}),
        (
            spec_with(a={"type": "array", "items": INTEGER}),
            "self.a.isSorted() && self.a.all(x, x > 0)",
            {"a": [1, 2]},
            {"a": [2, 1]},
        ),
        (
            spec_with(a={"type": "array", "items": INTEGER}),
            "self.a.max() < 10 && self.a.sum() < 12",
            {"a": [9, 2]},
            {"a": [9, 9]},
        ),
        (
            spec_with(a={"type": "array", "items": INTEGER}),
            "self.a.filter(x, x > 1).map(x, x * 2) == [4]",
            {"a": [1, 2]},
            {"a": [3]},
        ),
        (
            spec_with(a={"type": "object", "additionalProperties": INTEGER}),
            "self.a.all(k, self.a[k] > 0) && self.a.exists(k, k == 'x')",
            {"a": {"x": 1}},
            {"a": {"x": 0}},
        ),
        (spec_with(a={"type": "number"}), "self.a * 2.0 == 4.0", {"a": 2}, {"a": 3}),
        (
            spec_with(a={"type": "string", "format": "date-time"}),
            "self.a < timestamp('2026-01-01T00:00:00Z')",
            {"a": "2025-01-01T00:00:00Z"},
            {"a": "2027-01-01T00:00:00Z"},
        ),
        (
            spec_with(a={"type": "string", "format": "duration"}),
            "self.a <= duration('1h')",
            {"a": "30m"},
            {"a": "2h"},
        ),
        (
            {"type": "object", "properties": {"namespace": STRING, "a-b": STRING, "c.d": STRING, "e__f": STRING}},
            "self.__namespace__ == 'x' && self.a__dash__b == 'y' && self.c__dot__d == 'z' && "
            "self.e__underscores__f == 'w'",
            {"namespace": "x", "a-b": "y", "c.d": "z", "e__f": "w"},
            {"namespace": "", "a-b": "y", "c.d": "z", "e__f": "w"},
        ),
        (
            spec_with(a={"x-kubernetes-int-or-string": True}),
            "type(self.a) == int ? self.a > 1 : self.a.endsWith('%')",
            {"a": "10%"},
            {"a": 1},
        ),
        (
            spec_with(a={"type": "array", "items": STRING}),
            "sets.contains(['x', 'y'], self.a)",
            {"a": ["x"]},
            {"a": ["z"]},
        ),
    ],
)
def test_a_rule_accepts_and_refuses(schema: dict[str, Any], rule: str, good: Any, bad: Any) -> None:
    guarded = ruled(schema, rule, message="no")
    assert check(guarded, good) == []
    assert check(guarded, bad) == ["spec: Invalid value: no"]


def test_a_fault_names_its_place_and_shows_scalars() -> None:
    item = ruled(INTEGER, "self > 0", message="must be positive")
    schema = spec_with(values={"type": "array", "items": item}, table={"type": "object", "additionalProperties": item})
    assert check(schema, {"values": [1, -1], "table": {"k": -2}}) == [
        "spec.values[1]: Invalid value: -1: must be positive",
        "spec.table[k]: Invalid value: -2: must be positive",
    ]


def test_without_a_message_the_rule_itself_is_shown() -> None:
    assert check(ruled(spec_with(a=INTEGER), " self.a > 0 "), {"a": 0}) == [
        "spec: Invalid value: failed rule: self.a > 0"
    ]


def test_a_message_may_be_computed_and_falls_back_when_that_fails() -> None:
    computed = ruled(spec_with(a=INTEGER), "self.a > 0", message="plain", messageExpression="'a is ' + string(self.a)")
    assert check(computed, {"a": -3}) == ["spec: Invalid value: a is -3"]
    failing = ruled(spec_with(a=INTEGER, b=STRING), "self.a > 0", message="plain", messageExpression="'b is ' + self.b")
    assert check(failing, {"a": -3}) == ["spec: Invalid value: plain"]


def test_a_field_path_and_a_reason_move_the_fault() -> None:
    schema = ruled(spec_with(a=INTEGER), "has(self.a)", message="give it", fieldPath=".a", reason="FieldValueRequired")
    assert check(schema, {}) == ["spec.a: Required value: give it"]


def test_a_rule_that_cannot_be_evaluated_is_a_fault() -> None:
    schema = spec_with(a=INTEGER, b=STRING, c={"x-kubernetes-int-or-string": True})
    assert check(ruled(schema, "self.a > 0"), {}) == [
        'spec: Invalid value: "object": no such key: a evaluating rule: self.a > 0'
    ]
    [divided] = check(ruled(schema, "1 / self.a > 0"), {"a": 0})
    assert divided == 'spec: Invalid value: "object": division by zero evaluating rule: 1 / self.a > 0'
    [empty] = check(ruled(spec_with(a={"type": "array", "items": INTEGER}), "self.a.max() > 0"), {"a": []})
    assert "min/max called on empty list evaluating rule" in empty
    assert "no such overload" in check(ruled(schema, "self.c.startsWith('x')"), {"c": 1})[0]
    [overload] = check(ruled(schema, "self.c > 1"), {"c": "x"})
    assert "'no such overload': call arguments did not match" in overload


def test_rules_wait_until_the_object_has_the_right_shape() -> None:
    [first, second] = check(ruled(spec_with(a=INTEGER), "self.a > 0"), {"a": "x"})
    assert first.startswith("spec.a: Invalid value")
    assert second == (
        "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
        "correct the existing errors to complete validation"
    )


def test_a_transition_rule_runs_on_updates_only() -> None:
    schema = spec_with(a=ruled(STRING, "self == oldSelf", message="is immutable"))
    assert check(schema, {"a": "x"}) == []
    assert check(schema, {"a": "x"}, old={}) == []
    assert check(schema, {"a": "x"}, old={"a": "x"}) == []
    assert check(schema, {"a": "y"}, old={"a": "x"}) == ['spec.a: Invalid value: "y": is immutable']


def test_items_of_a_keyed_list_meet_their_own_past() -> None:
    item = ruled(
        {"type": "object", "required": ["k"], "properties": {"k": STRING, "v": INTEGER}},
        "self.v >= oldSelf.v",
        message="must not shrink",
    )
    schema = spec_with(
        a={"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item}
    )
    old = {"a": [{"k": "x", "v": 1}, {"k": "y", "v": 5}]}
    assert check(schema, {"a": [{"k": "y", "v": 5}, {"k": "new", "v": 0}, {"k": "x", "v": 2}]}, old) == []
    assert check(schema, {"a": [{"k": "y", "v": 4}]}, old) == ["spec.a[0]: Invalid value: must not shrink"]


def test_order_does_not_matter_between_equal_sets() -> None:
    tags = {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"}
    schema = ruled(spec_with(a=tags), "self.a == oldSelf.a", message="is immutable")
    assert check(schema, {"a": ["y", "x"]}, {"a": ["x", "y"]}) == []
    assert check(schema, {"a": ["y", "z"]}, {"a": ["x", "y"]}) == ["spec: Invalid value: is immutable"]


def test_an_optional_old_self_lets_a_rule_run_at_creation() -> None:
    schema = ruled(
        spec_with(a=INTEGER),
        "oldSelf.hasValue() ? self.a >= oldSelf.value().a : self.a == 0",
        optionalOldSelf=True,
        message="no",
    )
    assert check(schema, {"a": 0}) == []
    assert check(schema, {"a": 1}) == ["spec: Invalid value: no"]
    assert check(schema, {"a": 1}, {"a": 0}) == []


def test_a_stored_object_may_go_on_breaking_a_rule_that_came_later() -> None:
    schema = spec_with(a=ruled(STRING, "self != 'bad'", message="no"), b=STRING)
    assert check(schema, {"a": "bad", "b": "new"}, {"a": "bad", "b": "old"}) == []
    assert check(schema, {"a": "bad"}, {"a": "good"}) == ['spec.a: Invalid value: "bad": no']


def refusal(schema: dict[str, Any]) -> str:
    with pytest.raises(InvalidDefinition) as caught:
        from_crd(definition(schema))
    [error] = caught.value.errors
    return str(error)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("self.a >", "Syntax error"),
        ("self.b > 0", "undefined field 'b'"),
        ("self.a.b > 0", "type 'int' does not support field selection"),
        ("other > 0", "undeclared reference to 'other'"),
        ("self.a.quantity() > 0", "undeclared reference to 'quantity'"),
        ("[1].all(i, v, v > 0)", "undeclared reference to 'v'"),
        ("self.free.x == 1", "undefined field 'x'"),
    ],
)
def test_a_rule_that_can_never_work_is_refused_with_the_definition(rule: str, words: str) -> None:
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    message = refusal(ruled(spec_with(a=INTEGER, free=free), rule))
    place = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: "
    assert message.startswith(place)
    assert words in message


def test_names_inside_texts_and_macros_are_not_taken_for_references() -> None:
    schema = spec_with(a={"type": "array", "items": spec_with(n=STRING)})
    rule = "self.a.all(item, item.n != 'self.nothing.here') // self.nor.here"
    assert check(ruled(schema, rule), {"a": [{"n": "x"}]}) == []


def test_a_past_that_cannot_be_found_again_is_refused() -> None:
    item = ruled(STRING, "self == oldSelf")
    message = refusal(spec_with(a={"type": "array", "items": item}))
    assert "oldSelf cannot be used on the uncorrelatable portion of the schema" in message


def test_the_root_sees_only_the_name_of_its_metadata() -> None:
    crd = definition({"type": "object"})
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["x-kubernetes-validations"] = [{"rule": "self.metadata.name.startsWith('w')", "message": "no"}]
    [resource] = from_crd(crd)
    assert resource.schema.validate(widget({})) == []
    other = widget({})
    other["metadata"]["name"] = "x"
    assert [str(error) for error in resource.schema.validate(other)] == ["<nil>: Invalid value: no"]
    root["x-kubernetes-validations"] = [{"rule": "size(self.metadata.labels) > 0"}]
    with pytest.raises(InvalidDefinition, match="undefined field 'labels'"):
        from_crd(crd)


def big_template() -> dict[str, Any]:
    """1,000 steps in 50 layers of 20, each depending on the whole layer before: 19,600 dependencies."""
    steps: list[dict[str, Any]] = []
    for layer in range(50):
        before = [f"s-{layer - 1}-{place}" for place in range(20)] if layer else []
        steps.extend(
            {"name": f"s-{layer}-{place}", "handler": {"callable": "x"}, "dependsOn": before} for place in range(20)
        )
    return {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "TaskTemplate",
        "metadata": {"name": "big", "namespace": "default"},
        "spec": {"version": "1.0.0", "steps": steps},
    }


def test_a_template_of_a_thousand_steps_is_checked_within_a_second() -> None:
    schema = project_kind("TaskTemplate").schema
    template = big_template()
    started = time.process_time()
    completed = schema.default(schema.prune(template))
    assert schema.validate(completed) == []
    assert time.process_time() - started < 1


def test_a_step_that_depends_on_itself_is_refused() -> None:
    schema = project_kind("TaskTemplate").schema
    template = big_template()
    template["spec"]["steps"][3]["dependsOn"] = ["s-0-3"]
    assert [str(error) for error in schema.validate(schema.default(template))] == [
        "spec.steps[3]: Invalid value: a step must not depend on itself"
    ]
