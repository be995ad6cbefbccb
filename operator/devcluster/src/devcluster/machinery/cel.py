"""The rules of a schema in CEL (``x-kubernetes-validations``): checked when a definition is written, evaluated when an
object is.

Called by `crds` (`check_rules`) and `schema` (`RuleSet`). Rules are compiled once. Unlike a real API server this one
has no cost budget: neither an estimate when the definition is written nor a limit when a rule runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import cel

from devcluster.machinery import field_errors
from devcluster.machinery.cel_functions import FUNCTIONS, UNICODE_SIZE
from devcluster.machinery.cel_source import (
    InvalidRule,
    check_references,
    compile_rule,
    rename_function,
    uses_old_self,
)
from devcluster.machinery.cel_values import Converter, align_order, converter_of, is_ascii
from devcluster.machinery.field_errors import OMIT, FieldError, Reason
from devcluster.machinery.go_values import equal_json
from devcluster.machinery.schema_node import SchemaNode
from devcluster.machinery.validation import ABSENT, WHOLE_OBJECT

_REASONS: Final = {
    "FieldValueInvalid": Reason.INVALID,
    "FieldValueForbidden": Reason.FORBIDDEN,
    "FieldValueRequired": Reason.REQUIRED,
    "FieldValueDuplicate": Reason.DUPLICATE,
}


class RuleError(Exception):
    """A rule could not be evaluated; the message is the one that the API server shows."""


def _words_of(message: str) -> str:
    """The library's message in the words of an API server."""
    if message.startswith("Undefined variable or function"):
        return "no such overload"  # that it exists was checked with the definition: it is not for this type
    inner = re.search(r"Python function call failed: \w+: (.*)\. Check function arguments", message, re.DOTALL)
    return inner.group(1) if inner else message


class Expression:
    """One compiled CEL expression over ``self`` and ``oldSelf``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.program = compile_rule(source)
        self.uses_old_self = uses_old_self(source)
        self._needed = {name: FUNCTIONS[name] for name in FUNCTIONS if self._calls(self.program, name)}
        self._counts = "size" in self.program.functions()

    @staticmethod
    def _calls(program: cel.Program, name: str) -> bool:
        return name.rpartition(".")[2] in program.functions()

    @cached_property
    def _unicode_program(self) -> cel.Program:
        return compile_rule(rename_function(self.source, "size", UNICODE_SIZE))

    def evaluate(self, variables: dict[str, Any]) -> Any:
        """The value of the expression. Raises `RuleError`."""
        program, functions = self.program, self._needed
        if self._counts and not all(map(is_ascii, variables.values())):
            program = self._unicode_program
            functions = {**functions, UNICODE_SIZE: FUNCTIONS[UNICODE_SIZE]}
        try:
            if not functions:
                return program.execute(variables)
            return program.execute(cel.Context(variables=variables, functions=functions))
        except KeyError as error:
            raise RuleError(f"no such key: {error.args[0]}") from error
        except ZeroDivisionError as error:
            raise RuleError("division by zero") from error
        except OverflowError as error:
            raise RuleError("integer overflow") from error
        except TypeError as error:
            raise RuleError("no such overload") from error
        except (IndexError, RuntimeError, ValueError) as error:
            raise RuleError(_words_of(str(error))) from error


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of ``x-kubernetes-validations``."""

    expression: Expression
    message: str
    message_expression: Expression | None
    reason: Reason
    field_path: str
    optional_old_self: bool

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Rule:
        message_source = raw.get("messageExpression")
        return cls(
            expression=Expression(raw["rule"]),
            message=raw.get("message") or f"failed rule: {raw['rule'].strip()}",
            message_expression=Expression(message_source) if message_source else None,
            reason=_REASONS[raw.get("reason") or "FieldValueInvalid"],
            field_path=normalise_field_path(raw.get("fieldPath", "")),
            optional_old_self=bool(raw.get("optionalOldSelf")),
        )


@dataclass(kw_only=True)
class RuleSet:
    """The rules at one place of a schema and at the places below it."""

    node: SchemaNode
    rules: list[Rule]
    converter: Converter | None
    properties: dict[str, RuleSet] = field(default_factory=dict)
    items: RuleSet | None = None
    additional: RuleSet | None = None

    @classmethod
    def of_schema(cls, root: SchemaNode) -> RuleSet | None:
        """The compiled rules of a custom resource's schema, None when it has none. Built-in schemas have none."""
        return None if root.definition is not None else cls._build(root, is_root=True)

    @classmethod
    def _build(cls, node: SchemaNode, *, is_root: bool) -> RuleSet | None:
        properties = {
            name: found
            for name, child in node.properties.items()
            if not (is_root and name == "metadata")
            if (found := cls._build(child, is_root=child.embedded_resource)) is not None
        }
        items = None if node.items is None else cls._build(node.items, is_root=node.items.embedded_resource)
        additional = None if node.additional is None else cls._build(node.additional, is_root=False)
        if not (node.rules or properties or items or additional):
            return None
        return cls(
            node=node,
            rules=[Rule.of(raw) for raw in node.rules],
            converter=converter_of(node, is_root=is_root) if node.rules else None,
            properties=properties,
            items=items,
            additional=additional,
        )

    def check(self, obj: Any, old: Any = None) -> Iterator[FieldError]:
        """The rules that `obj` breaks; `old` is the stored object on an update, else None."""
        before = ABSENT if old is None else old
        yield from self._check(obj, before, "", unchanged=False)

    def _check(self, value: Any, old: Any, path: str, *, unchanged: bool) -> Iterator[FieldError]:
        if value is None:
            return
        if old is not ABSENT:
            unchanged = equal_json(value, old)
        if self.rules:
            yield from self._evaluate(value, old, path, unchanged=unchanged)
        if isinstance(value, dict):
            for name, item in value.items():
                below = self.properties.get(name) or self.additional
                if below is not None:
                    before = old.get(name, ABSENT) if isinstance(old, dict) else ABSENT
                    place = f"{path}.{name}" if path else name
                    if name not in self.properties:
                        place = f"{path}[{name}]"
                    yield from below._check(item, before, place, unchanged=unchanged)
        elif isinstance(value, list) and self.items is not None:
            known = self._old_items(old)
            for index, item in enumerate(value):
                before = known.get(self.node.key_of(item), ABSENT) if known and isinstance(item, dict) else ABSENT
                yield from self.items._check(item, before, f"{path}[{index}]", unchanged=unchanged)

    def _old_items(self, old: Any) -> dict[Any, Any]:
        if self.node.list_type != "map" or not isinstance(old, list):
            return {}
        return {self.node.key_of(item): item for item in old if isinstance(item, dict)}

    def _evaluate(self, value: Any, old: Any, path: str, *, unchanged: bool) -> Iterator[FieldError]:
        wanted = [rule for rule in self.rules if rule.expression.uses_old_self or not unchanged]
        if not wanted:
            return
        convert = self.converter or (lambda item: item)
        current = convert(value)
        previous = ABSENT
        if old is not ABSENT and old is not None and any(rule.expression.uses_old_self for rule in wanted):
            previous = convert(align_order(self.node, old, value))
        for rule in wanted:
            variables = {"self": current}
            if rule.expression.uses_old_self:
                if rule.optional_old_self:
                    optional = cel.OptionalValue
                    variables["oldSelf"] = optional.none() if previous is ABSENT else optional.of(previous)
                elif previous is ABSENT:
                    continue
                else:
                    variables["oldSelf"] = previous
            fault = self._fault(rule, variables, value, path)
            if fault is not None:
                yield fault

    def _fault(self, rule: Rule, variables: dict[str, Any], value: Any, path: str) -> FieldError | None:
        place = path or WHOLE_OBJECT
        try:
            holds = rule.expression.evaluate(variables)
        except RuleError as error:
            if str(error) == "no such overload":
                detail = (
                    f"'{error}': call arguments did not match a supported operator, function or macro signature "
                    f"for rule: {rule.expression.source}"
                )
            else:
                detail = f"{error} evaluating rule: {rule.expression.source}"
            return field_errors.invalid(place, self.node.type or "", detail)
        if holds is True:
            return None
        if holds is not False:
            detail = f"cel expression must evaluate to a bool: {rule.expression.source}"
            return field_errors.invalid(place, self.node.type or "", detail)
        shown = OMIT if isinstance(value, (dict, list)) else value
        if rule.field_path:
            place = f"{path}{rule.field_path}".removeprefix(".")
        return FieldError(path=place, reason=rule.reason, value=shown, detail=_message(rule, variables))


def _message(rule: Rule, variables: dict[str, Any]) -> str:
    if rule.message_expression is None:
        return rule.message
    try:
        text = rule.message_expression.evaluate(variables)
    except RuleError:
        return rule.message
    if not isinstance(text, str) or not text.strip() or "\n" in text:
        return rule.message
    return text.strip()


def normalise_field_path(json_path: str) -> str:
    """A rule's ``fieldPath`` as it is appended to a path: ``.a.b``, ``.a[b.c]``."""
    return re.sub(r"\['((?:[^'\\]|\\.)*)'\]", lambda match: f"[{match.group(1)}]", json_path)


def check_rules(root: SchemaNode, path: str) -> Iterator[FieldError]:
    """The faults of a schema's rules, for the definition that brings them."""
    yield from _check_rules(root, path, is_root=True, uncorrelatable=None)


def _check_rules(node: SchemaNode, path: str, *, is_root: bool, uncorrelatable: str | None) -> Iterator[FieldError]:
    for index, raw in enumerate(node.rules):
        yield from _check_rule(
            raw, node, f"{path}.x-kubernetes-validations[{index}]", is_root=is_root, uncorrelatable=uncorrelatable
        )
    if node.map_atomic and uncorrelatable is None:
        uncorrelatable = path
    for name, child in node.properties.items():
        if not (is_root and name == "metadata"):
            place = f"{path}.properties[{name}]"
            yield from _check_rules(child, place, is_root=child.embedded_resource, uncorrelatable=uncorrelatable)
    if node.items is not None:
        inner = uncorrelatable or (None if node.list_type == "map" else path)
        yield from _check_rules(node.items, f"{path}.items", is_root=node.items.embedded_resource, uncorrelatable=inner)
    if node.additional is not None:
        place = f"{path}.additionalProperties"
        yield from _check_rules(node.additional, place, is_root=False, uncorrelatable=uncorrelatable)


def _check_rule(
    raw: Mapping[str, Any], node: SchemaNode, path: str, *, is_root: bool, uncorrelatable: str | None
) -> Iterator[FieldError]:
    source = raw.get("rule", "")
    if not source.strip():
        yield field_errors.required(f"{path}.rule", "rule is not specified")
        return
    yield from _check_words(raw, path)
    optional = bool(raw.get("optionalOldSelf"))
    try:
        check_references(source, node, is_root=is_root, optional_old_self=optional)
    except InvalidRule as error:
        yield field_errors.invalid(f"{path}.rule", {"Rule": source}, str(error))
        return
    if message_source := raw.get("messageExpression"):
        try:
            check_references(message_source, node, is_root=is_root, optional_old_self=optional)
        except InvalidRule as error:
            detail = f"messageExpression {error}"
            yield field_errors.invalid(f"{path}.messageExpression", {"Rule": source}, detail)
    if uses_old_self(source):
        if uncorrelatable is not None and not optional:
            detail = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelatable}"
            yield field_errors.invalid(f"{path}.rule", source, detail)
    elif raw.get("optionalOldSelf") is not None:
        detail = "may not be set if oldSelf is not used in rule"
        yield field_errors.invalid(f"{path}.optionalOldSelf", optional, detail)
    if raw.get("fieldPath") and not _leads_to_field(raw["fieldPath"], node):
        yield field_errors.invalid(f"{path}.fieldPath", raw["fieldPath"], "fieldPath must be a valid path")


def _check_words(raw: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    message = raw.get("message")
    if message is not None:
        if not message.strip():
            yield field_errors.invalid(f"{path}.message", message, "message must be non-empty if specified")
        elif "\n" in message:
            yield field_errors.invalid(f"{path}.message", message, "message must not contain line breaks")
    elif "\n" in raw["rule"].strip() and not raw.get("messageExpression"):
        yield field_errors.required(f"{path}.message", "message must be specified if rule contains line breaks")
    if raw.get("reason") is not None and raw["reason"] not in _REASONS:
        yield field_errors.not_supported(f"{path}.reason", raw["reason"], sorted(_REASONS))


def _leads_to_field(json_path: str, node: SchemaNode) -> bool:
    steps = re.findall(r"\.([^.\[\]]+)|\['((?:[^'\\]|\\.)*)'\]", json_path)
    if not steps or "".join(f".{name}" if name else f"['{key}']" for name, key in steps) != json_path:
        return False
    current: SchemaNode | None = node
    for name, key in steps:
        current = None if current is None else current.field(name or key)
    return current is not None
