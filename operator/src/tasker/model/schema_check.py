"""Can a JSON Schema (Draft 2020-12) be enforced? What is refused here cannot surprise whoever applies it later.

Imported only when there is a schema to check: `tasker.model.schemas` is the door.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import re2
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from tasker.errors import InvalidTemplate
from tasker.model import limits
from tasker.model.graph import find_cycle
from tasker.model.schema_validator import Effort, Unfinished, compiled_pattern, first_fault_of_form

DIALECT = "https://json-schema.org/draft/2020-12/schema"

FORM_CHECKS = 20_000
FORM_CHECKS_PER_BYTE = 8
"""Keywords of the schema of schemas: a second for `limits.SCHEMA_BYTES`. One that says little more than names and types
takes two thirds of that."""

REFERENCES = ("$ref", "$dynamicRef")
IN_PLACE = ("not", "if", "then", "else")
"""Keywords with a schema for the same value."""
IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
DEEPER = ("additionalProperties", "propertyNames", "items", "contains", "unevaluatedProperties", "unevaluatedItems")
"""Keywords with a schema for parts of the value; `contentSchema` too, but it is never applied."""
DEEPER_LISTS = ("prefixItems",)
IN_PLACE_MAPS = ("dependentSchemas",)
DEEPER_MAPS = ("properties", "patternProperties", "$defs", "definitions")


def check(schema: Mapping[str, Any], path: str) -> None:
    """Raises `InvalidTemplate` with the path, beginning with `path`, and the reason of the first fault."""
    fault = limits.json_fault(schema, path)
    if fault is not None:
        raise InvalidTemplate(*fault)
    size = limits.json_size(schema)
    if size > limits.SCHEMA_BYTES:
        raise InvalidTemplate(path, f"is {size} bytes; a schema may have at most {limits.SCHEMA_BYTES}")
    _check_dialect(schema, path)  # first: another one has other rules of form
    _check_form(schema, path)
    _Document(path=path, root=schema).check()


def _check_dialect(schema: Mapping[str, Any], path: str) -> None:
    written = schema.get("$schema", DIALECT)
    if not isinstance(written, str) or written.rstrip("#") != DIALECT:
        raise InvalidTemplate(f"{path}.$schema", f"must be {DIALECT}, or left out")


def _check_identity(schema: Mapping[str, Any], path: str) -> None:
    try:
        urlsplit(schema.get("$id", ""))
    except ValueError:
        raise InvalidTemplate(f"{path}.$id", "is no reference to a resource") from None


def _check_form(schema: Mapping[str, Any], path: str) -> None:
    """Against the schema of schemas."""
    checks = FORM_CHECKS + FORM_CHECKS_PER_BYTE * limits.json_size(schema)
    try:
        fault = first_fault_of_form(schema, Effort(checks))
    except Unfinished:
        raise InvalidTemplate(path, "has too many parts") from None
    if fault is not None:
        place, reason = fault
        raise InvalidTemplate(path + "".join(map(_step, place)), reason)


def _step(part: str | int) -> str:
    return f"[{part}]" if isinstance(part, int) else f".{part}"


@dataclass
class _Node:
    """A schema of the document that is an object."""

    path: str
    schema: Mapping[str, Any]
    resolver: Any
    same_value: list[Any] = field(default_factory=list)
    """Schemas that the same value must meet because of this one."""


@dataclass
class _Document:
    """Every schema of one document, found where the specification has schemas."""

    path: str
    root: Mapping[str, Any]
    nodes: list[_Node] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    """By the identity of a schema, its place in `nodes`."""

    def check(self) -> None:
        self._collect(self.root, self.path, Registry().resolver_with_root(DRAFT202012.create_resource(self.root)))
        for node in self.nodes:
            self._check_patterns(node)
            self._check_references(node)
        self._check_ends()

    def _collect(self, schema: Any, path: str, resolver: Any) -> None:
        if not isinstance(schema, Mapping):
            return
        _check_dialect(schema, path)
        _check_identity(schema, path)
        if schema is not self.root:
            resolver = resolver.in_subresource(DRAFT202012.create_resource(schema))
        node = _Node(path=path, schema=schema, resolver=resolver)
        self.places[id(schema)] = len(self.nodes)
        self.nodes.append(node)
        for child_path, child, in_place in _children(schema):
            if in_place:
                node.same_value.append(child)
            self._collect(child, path + child_path, resolver)

    def _check_patterns(self, node: _Node) -> None:
        patterns = node.schema.get("patternProperties", {})
        written = [(".pattern", node.schema["pattern"])] if "pattern" in node.schema else []
        for place, pattern in [*written, *((".patternProperties", each) for each in patterns)]:
            fault = _pattern_fault(pattern)
            if fault is not None:
                raise InvalidTemplate(node.path + place, fault)
        if "unevaluatedProperties" in node.schema and any("patternProperties" in each.schema for each in self.nodes):
            raise InvalidTemplate(
                f"{node.path}.unevaluatedProperties", "cannot be enforced in a schema that has patternProperties"
            )

    def _check_references(self, node: _Node) -> None:
        for keyword in REFERENCES:
            reference = node.schema.get(keyword)
            if reference is None:
                continue
            path = f"{node.path}.{keyword}"
            try:
                target = node.resolver.lookup(reference).contents
            except (Unresolvable, ValueError):
                raise InvalidTemplate(
                    path, f"{reference!r} is not in this document, and nothing is fetched from elsewhere"
                ) from None
            if not isinstance(target, bool) and id(target) not in self.places:
                raise InvalidTemplate(path, f"{reference!r} is no schema of this document")
            node.same_value.append(target)

    def _check_ends(self) -> None:
        """A schema that asks the same of the same value again would be applied without end."""
        asks = [[self.places[id(each)] for each in node.same_value if isinstance(each, Mapping)] for node in self.nodes]
        cycle = find_cycle(asks)
        if cycle is not None:
            raise InvalidTemplate(
                self.nodes[cycle[0]].path, "refers back to itself for the same value, so it could never be decided"
            )


def _pattern_fault(pattern: str) -> str | None:
    """Why it is of no use to the server, which searches with RE2, or to workers, which do with Python's `re`."""
    try:
        compiled_pattern(pattern)
    except re2.error as error:
        [reason] = error.args
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"is no regular expression that RE2 takes: {text}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression that Python takes: {error}"
    return None


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """The schemas right below: the path to each, and whether it is for the same value."""
    for keyword in (*IN_PLACE, *DEEPER):
        if keyword in schema:
            yield f".{keyword}", schema[keyword], keyword in IN_PLACE
    for keyword in (*IN_PLACE_LISTS, *DEEPER_LISTS):
        for place, child in enumerate(schema.get(keyword, ())):
            yield f".{keyword}[{place}]", child, keyword in IN_PLACE_LISTS
    for keyword in (*IN_PLACE_MAPS, *DEEPER_MAPS):
        for name, child in schema.get(keyword, {}).items():
            yield f".{keyword}.{name}", child, keyword in IN_PLACE_MAPS
