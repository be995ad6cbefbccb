"""Schemas of templates: which are taken, what is told of a value that does not meet one, and what a check may take."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tasker.controller.tasks.status import CONDITION_MESSAGE_LIMIT
from tasker.errors import InvalidContext, InvalidTask, InvalidTemplate
from tasker.model import limits
from tasker.model.schemas import NotQuick, check_schema, context_fault, quick_context_fault
from tasker.model.template import parse_template_spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def said_by(program: str, **environment: str) -> str:
    """What a new interpreter prints."""
    environment["PYTHONPATH"] = ":".join(sys.path)
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    return ran.stdout.strip()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


def refusal(schema: Any) -> str:
    with pytest.raises(InvalidTemplate) as caught:
        check_schema(schema, "spec.inputSchema")
    return str(caught.value).removeprefix("spec.inputSchema")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "strng"},
            '.type: must be one of "array", "boolean", "integer", "null", "number", "object", "string"',
        ),
        ({"properties": {"a": {"minimum": "5"}}}, ".properties.a.minimum: must be a number, not a string"),
        ({"properties": {"a": 5}}, ".properties.a: must be an object or true or false, not a number"),
        ({"required": "a"}, ".required: must be a list, not a string"),
        ({"required": ["a", 5]}, ".required[1]: must be a string, not a number"),
        ({"allOf": []}, ".allOf: must not be empty"),
        ({"minLength": -1}, ".minLength: must be at least 0"),
        ({"multipleOf": 0}, ".multipleOf: must be more than 0"),
        ({"pattern": "("}, ".pattern: is no regular expression that RE2 takes: "),
        ({"pattern": "(?=a)"}, ".pattern: is no regular expression that RE2 takes: invalid perl operator: (?="),
        ({"pattern": "a{1001}"}, ".pattern: is no regular expression that RE2 takes: invalid repetition size: {1001}"),
        ({"pattern": "\\C"}, ".pattern: is no regular expression that Python takes: bad escape"),
        ({"pattern": "((a{9}){99}b){999}"}, ".pattern: is no regular expression that RE2 takes: "),
        ({"patternProperties": {"[": {}}}, ".patternProperties: is no regular expression that RE2 takes: "),
        (
            {"items": {"$defs": {"x": {"pattern": "*"}}}},
            ".items.$defs.x.pattern: is no regular expression that RE2 takes: ",
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, f".$schema: must be {DIALECT}, or left out"),
        ({"items": {"$schema": "urn:other"}}, f".items.$schema: must be {DIALECT}, or left out"),
        ({"$schema": 5}, f".$schema: must be {DIALECT}, or left out"),
        ({"items": {"$id": "http://["}}, ".items.$id: is no reference to a resource"),
        ({"$id": "http://["}, ".$id: is no reference to a resource"),
        ({"$id": 5}, ".$id: must be a string, not a number"),
        (
            {"$schema": "urn:other", "minimum": "x"},
            f".$schema: must be {DIALECT}, or left out",
        ),
        (
            {"patternProperties": {"^x": {}}, "unevaluatedProperties": False},
            ".unevaluatedProperties: cannot be enforced in a schema that has patternProperties",
        ),
        ({"default": float("nan")}, ".default: is nan, which JSON does not have"),
        (nested(32), ".not" * 32 + ": is nested deeper than 32 levels"),
        ({"description": "x" * limits.SCHEMA_BYTES}, ": is 65554 bytes; a schema may have at most 65536"),
        ({"allOf": [{}] * 3000}, ": has too many parts"),
    ],
)
def test_what_is_no_schema_that_can_be_enforced_is_refused_with_its_place(schema: Any, message: str) -> None:
    assert refusal(schema).startswith(message)


@pytest.mark.parametrize(
    "reference",
    [
        "https://example.org/elsewhere.json",
        "file:///etc/passwd",
        "other.json#/a",
        DIALECT,
        "#/$defs/missing",
        "#no-anchor",
        "http://[",
    ],
)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_reference_out_of_the_document_is_refused_and_not_fetched(
    keyword: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    monkeypatch.setattr("socket.create_connection", fetch)
    message = f".items.{keyword}: {reference!r} is not in this document, and nothing is fetched from elsewhere"
    assert refusal({"items": {keyword: reference}}) == message


def test_a_reference_to_what_is_no_schema_is_refused() -> None:
    assert (
        refusal({"x-notes": {"a": {}}, "$ref": "#/x-notes/a"}) == ".$ref: '#/x-notes/a' is no schema of this document"
    )


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": "#"}, ""),
        ({"properties": {"a": {"allOf": [{"not": {"$ref": "#/properties/a"}}]}}}, ".properties.a"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, ".$defs.a"),
        ({"dependentSchemas": {"a": {"$dynamicRef": "#top"}}, "$dynamicAnchor": "top"}, ""),
    ],
)
def test_a_schema_that_could_never_be_decided_is_refused(schema: Any, path: str) -> None:
    assert refusal(schema) == f"{path}: refers back to itself for the same value, so it could never be decided"


TREE = {
    "$schema": DIALECT,
    "$defs": {"leaf": {"$anchor": "leaf", "type": "integer"}, "sub": {"$id": "sub", "type": "null"}},
    "properties": {
        "value": {"$ref": "#leaf"},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "sub": {"$ref": "sub"},
        "never": False,
    },
}


def test_references_within_the_document_hold_recursive_ones_too() -> None:
    check_schema(TREE, "spec.inputSchema")
    assert context_fault(TREE, {"value": 1, "sub": None, "children": [{"children": [{"value": 2}]}]}) is None
    assert context_fault(TREE, {"children": [{}, {"children": [{"value": "x"}]}]}) == (
        "/children/1/children/0/value",
        "must be a whole number, not a string",
    )
    assert context_fault(TREE, {"sub": 0}) == ("/sub", "must be null, not a number")
    assert context_fault(TREE, {"never": 0}) == ("/never", "is not allowed")


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"type": ["string", "null"]}, [], "must be a string or null, not a list"),
        ({"type": "integer"}, True, "must be a whole number, not a boolean"),
        ({"type": "integer"}, 1.5, "must be a whole number, not one with a fraction"),
        ({"type": "integer"}, 1.0, None),
        ({"enum": ["x", 1]}, "y", 'must be one of "x", 1'),
        ({"const": None}, 0, "must be null"),
        ({"minimum": 5}, 4, "must be at least 5"),
        ({"exclusiveMaximum": 5}, 5, "must be less than 5"),
        ({"multipleOf": 2}, 3, "must be a multiple of 2"),
        ({"minLength": 1}, "", "must not be empty"),
        ({"maxLength": 2}, "abc", "is longer than 2 characters"),
        ({"maxItems": 1}, [1, 2], "has more than 1 items"),
        ({"pattern": "^[a-z]+$"}, "A", "does not match the pattern ^[a-z]+$"),
        ({"pattern": "b"}, "abc", None),
        ({"pattern": "^x"}, 5, None),
        ({"uniqueItems": True}, [1, 1.0], "holds an item twice"),
        ({"uniqueItems": True}, [{"x": [1], "y": 0}, {"y": 0, "x": [1.0]}], "holds an item twice"),
        ({"uniqueItems": True}, [1, True, [1], {"x": 1}, "1", [True]], None),
        ({"uniqueItems": False}, [1, 1], None),
        ({"contains": {"const": 1}}, [2], "does not hold as many items as `contains` asks for"),
        ({"dependentRequired": {"b": ["c"]}}, {"b": 1}, "lacks a property that another one needs"),
        ({"unevaluatedProperties": False}, {"b": 1}, "has a property that the schema does not know"),
        ({"properties": {"b": True}, "unevaluatedProperties": False}, {"b": 1}, None),
        ({"not": {"required": ["b"]}}, {"b": 1}, "meets the schema that `not` excludes"),
        ({"if": {"required": ["b"]}, "then": False}, {"b": 1}, "is not allowed"),
        ({"format": "email"}, "no address", None),
    ],
)
def test_a_fault_is_told_in_the_words_of_the_schema(schema: Any, value: Any, reason: str | None) -> None:
    whole = {"properties": {"a": schema}}
    check_schema(whole, "spec.inputSchema")
    assert context_fault(whole, {"a": value}) == (None if reason is None else ("/a", reason))
    assert quick_context_fault(whole, {"a": value}) == context_fault(whole, {"a": value})


NAMES = {"properties": {"a": True}, "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "context", "fault"),
    [
        ({"required": ["a", "b"]}, {"a": 1}, ("/b", "is required")),
        ({"properties": {"a": {"required": ["x"]}}}, {"a": {}}, ("/a/x", "is required")),
        ({"additionalProperties": False}, {"b": 1, "a": 1}, ("/b", "is not a known property")),
        ({"additionalProperties": {"type": "null"}}, {"b": 1}, ("/b", "must be null, not a number")),
        (NAMES, {"a": 1, "x-b": ""}, None),
        (NAMES, {"a": 1, "x-b": "", "y": 1}, ("/y", "is not a known property")),
        (NAMES, {"x-b": 1}, ("/x-b", "must be a string, not a number")),
        (
            {"propertyNames": {"maxLength": 1}},
            {"a": 1, "ab": 1},
            ("/ab", "has a name that `propertyNames` does not allow"),
        ),
        ({"properties": {"a": {"items": {"type": "null"}}}}, {"a": (None, 1)}, ("/a/1", "must be null, not a number")),
        ({"properties": {"a/b~c": {"type": "null"}}}, {"a/b~c": 1}, ("/a~1b~0c", "must be null, not a number")),
        ({"type": "object"}, {}, None),
        ({"minProperties": 1}, {}, ("", "must not be empty")),
    ],
)
def test_a_pointer_leads_to_what_is_wrong(schema: Any, context: Any, fault: tuple[str, str] | None) -> None:
    check_schema(schema, "spec.inputSchema")
    assert context_fault(schema, context) == fault


def test_a_number_that_cannot_be_divided_is_a_fault() -> None:
    fault = context_fault({"properties": {"a": {"multipleOf": 0.5}}}, {"a": 10**400})
    assert fault == ("", "holds a number that is too large for `multipleOf`")


KINDS = [
    {"type": "string"},
    {"type": "object", "properties": {"card": {"type": "object", "required": ["number"]}}},
]


@pytest.mark.parametrize(
    ("alternatives", "value", "fault"),
    [
        (KINDS, {"card": {}}, ("/pay/card/number", "is required")),
        (KINDS, 5, ("/pay", "meets none of the alternatives of `anyOf`")),
        ([{"const": 1}, {"const": 2}], 3, ("/pay", "meets none of the alternatives of `anyOf`")),
        ([{"const": 1}, {"type": "string"}], 3, ("/pay", "must be 1")),
    ],
)
def test_of_alternatives_the_one_that_fits_best_is_told(alternatives: Any, value: Any, fault: tuple[str, str]) -> None:
    assert context_fault({"properties": {"pay": {"anyOf": alternatives}}}, {"pay": value}) == fault


def test_a_value_that_meets_two_alternatives_where_one_is_asked_for() -> None:
    schema = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert context_fault(schema, {"a": 1, "b": 1}) == ("", "does not meet exactly one of the alternatives of `oneOf`")


def test_the_fault_nearest_to_the_top_is_told_and_of_two_the_first() -> None:
    schema = {
        "properties": {"a": {"properties": {"x": {"type": "null"}}}, "c": {"type": "null"}, "b": {"type": "null"}},
        "anyOf": [{"required": ["z"]}, {"required": ["y"]}],
    }
    assert context_fault(schema, {"a": {"x": 1}, "b": 1, "c": 1}) == ("", "meets none of the alternatives of `anyOf`")
    assert context_fault(schema, {"a": {"x": 1}, "b": 1, "c": 1, "z": 1}) == ("/c", "must be null, not a number")


def test_the_same_fault_is_told_in_every_process() -> None:
    program = """
from tasker.model.schemas import context_fault
print(context_fault({'additionalProperties': False}, dict.fromkeys('qwertz')))
"""
    assert {said_by(program, PYTHONHASHSEED=seed) for seed in ("1", "2")} == {"('/q', 'is not a known property')"}


SECRET = "sk-8812-do-not-show"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"enum": ["a"]},
        {"const": 1},
        {"pattern": "^x$"},
        {"maxLength": 3},
        {"format": "email", "not": {"type": "string"}},
        {"anyOf": [{"const": 1}, {"const": 2}]},
        {"oneOf": [True, True]},
        False,
    ],
)
def test_the_value_is_never_quoted(schema: Any) -> None:
    for place in ({"additionalProperties": schema}, {"additionalProperties": {"anyOf": [schema, False]}}):
        fault = context_fault(place, {"key": SECRET})
        assert fault is not None
        assert SECRET not in str(fault)
        for context in ({"list": [SECRET]}, {"object": {"a": SECRET}}):
            assert SECRET not in str(context_fault(place, context))


def test_pointer_and_reason_fit_into_a_condition() -> None:
    schema = {"additionalProperties": {"enum": ["x" * 1000]}}
    fault = context_fault(schema, {"k" * 5000: 1})
    assert fault is not None
    pointer, reason = fault
    assert pointer == "/" + "k" * 118 + "…"
    assert reason == 'must be one of "' + "x" * 103 + "…"
    error = InvalidContext(pointer, reason)
    assert len(str(error)) <= CONDITION_MESSAGE_LIMIT
    assert isinstance(error, InvalidTask)
    assert (error.pointer, error.path, error.reason) == (pointer, f"spec.context{pointer}", reason)


BRANCHING = {
    "$defs": {"tree": {"properties": {"c": {"anyOf": [{"$ref": "#/$defs/tree"}] * 2}, "end": False}}},
    "$ref": "#/$defs/tree",
}


CHAIN = {
    "$defs": {f"d{place}": {"$ref": f"#/$defs/d{place + 1}"} for place in range(600)} | {"d600": {}},
    "$ref": "#/$defs/d0",
}


def deep(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": 1}
    for _ in range(depth):
        value = {"c": value}
    return value


@pytest.mark.parametrize(
    ("schema", "context"),
    [
        pytest.param(BRANCHING, deep(28), id="two-ways-down-at-each-level"),
        pytest.param({"$schema": DIALECT, **BRANCHING}, deep(28), id="also-when-the-dialect-is-named"),
        pytest.param(
            {"$defs": {"d": {"$id": "d", "$schema": DIALECT, **BRANCHING}}, "$ref": "d"}, deep(28), id="or-further-in"
        ),
        pytest.param({"properties": {"a": {"items": {"enum": list(range(5000))}}}}, {"a": [-1] * 500}, id="long-lists"),
        pytest.param({"unevaluatedProperties": {}}, {f"k{place}": 0 for place in range(5000)}, id="squares"),
        pytest.param(CHAIN, {}, id="long-chain-of-references"),
    ],
)
def test_a_check_has_an_end_whatever_schema_and_value(
    schema: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker.model.schemas.CHECKS", 10_000)
    check_schema(schema, "spec.inputSchema")
    assert context_fault(schema, context) == ("", "takes too much to be checked against the schema")
    with pytest.raises(NotQuick):
        quick_context_fault(schema, context)


@pytest.fixture
def other_thread() -> Iterator[list[float]]:
    """When another thread that only wants to run now and then did so."""
    ran: list[float] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.001):
            ran.append(time.perf_counter())

    thread = threading.Thread(target=run)
    thread.start()
    yield ran
    stop.set()
    thread.join()


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", "^(a*)*$", "a*a*a*a*a*b$", "^(?:a?){200}a{200}$"])
def test_a_pattern_that_others_would_search_for_ever_is_searched_at_once(pattern: str) -> None:
    text = "a" * 100 + "!"
    fault = f"does not match the pattern {pattern}"
    assert quick_context_fault({"properties": {"a": {"pattern": pattern}}}, {"a": text}) == ("/a", fault)
    names = {"patternProperties": {pattern: {}}, "additionalProperties": False}
    check_schema(names, "spec.inputSchema")
    assert quick_context_fault(names, {text: 1}) == (f"/{text}", "is not a known property")


MANY_STATES = {"properties": {"a": {"pattern": "a[ab]{900}x"}}}


def test_a_laborious_pattern_is_counted_and_other_threads_run_meanwhile(
    other_thread: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ("ab" * 7 + "ba" * 5) * 1000
    check_schema(MANY_STATES, "spec.inputSchema")
    with pytest.raises(NotQuick):
        quick_context_fault(MANY_STATES, {"a": text * 4})
    before = len(other_thread)
    assert context_fault(MANY_STATES, {"a": text}) == ("/a", "does not match the pattern a[ab]{900}x")
    assert len(other_thread) > before, "the search let go of the interpreter"
    monkeypatch.setattr("tasker.model.schemas.CHECKS_PER_BYTE", 0)
    monkeypatch.setattr("tasker.model.schemas.CHECKS", 10_000)
    assert context_fault(MANY_STATES, {"a": text}) == ("", "takes too much to be checked against the schema")


def test_a_quick_check_leaves_what_takes_long_to_others() -> None:
    numbers = {"properties": {"a": {"items": {"type": "integer"}}}}
    with pytest.raises(NotQuick):
        quick_context_fault(numbers, {"a": [1] * 10_000})
    assert context_fault(numbers, {"a": [1] * 10_000}) is None
    assert quick_context_fault(numbers, {"a": [1] * 100}) is None


def test_the_libraries_are_loaded_when_a_schema_is_checked_and_not_before() -> None:
    program = """
import sys, tasker.model.template
tasker.model.template.parse_template_spec({'steps': [{'name': 'a', 'handler': {'callable': 'c'}}]})
print({'jsonschema', 're2'} & set(sys.modules))
"""
    assert said_by(program) == "set()"


def test_a_template_has_its_schemas_checked_where_they_stand() -> None:
    steps = [{"name": name, "handler": {"callable": "c"}} for name in "ab"]
    with pytest.raises(InvalidTemplate, match=r"^spec\.inputSchema\.type: must be one of"):
        parse_template_spec({"steps": steps, "inputSchema": {"type": "x"}, "schemaEnforcement": "off"})
    broken = [steps[0], {**steps[1], "resultSchema": {"properties": {"a": {"$ref": "b"}}}}]
    with pytest.raises(InvalidTemplate, match=r"^spec\.steps\[1\]\.resultSchema\.properties\.a\.\$ref: 'b' is not"):
        parse_template_spec({"steps": broken})
    with pytest.raises(InvalidTemplate, match=r"^spec\.inputSchema: must be an object"):
        parse_template_spec({"steps": steps, "inputSchema": True})
    with pytest.raises(InvalidTemplate, match=r"^spec\.schemaEnforcement: must be one of 'enforce', 'warn' or 'off'$"):
        parse_template_spec({"steps": steps, "schemaEnforcement": "maybe"})


def test_schemas_and_what_becomes_of_faults_are_part_of_the_revision() -> None:
    steps = [{"name": "a", "handler": {"callable": "c"}}]
    written: list[dict[str, Any]] = [
        {},
        {"inputSchema": {"type": "object"}},
        {"inputSchema": {}},
        {"schemaEnforcement": "warn"},
        {"schemaEnforcement": "off"},
        {"steps": [{**steps[0], "resultSchema": {}}]},
    ]
    revisions = {parse_template_spec({"steps": steps, **each}).revision for each in written}
    assert len(revisions) == len(written)
    enforced = parse_template_spec({"steps": steps, "schemaEnforcement": "enforce"})
    assert enforced.revision == parse_template_spec({"steps": steps}).revision
