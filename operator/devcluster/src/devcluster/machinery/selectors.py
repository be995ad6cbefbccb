"""Label and field selectors of list, watch and deletecollection, and label selectors inside objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, assert_never

from devcluster.errors import EmbeddedError

Operator = Literal["in", "notin", "exists", "absent", "gt", "lt"]

_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_PREFIX: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_TOKEN: Final = re.compile(r"\s*(?:(!=|==|=|!|<|>|\(|\)|,)|([^\s!=<>(),]+))")
_EXPRESSION_OPERATORS: Final[Mapping[str, Operator]] = {
    "In": "in",
    "NotIn": "notin",
    "Exists": "exists",
    "DoesNotExist": "absent",
}


class InvalidSelector(EmbeddedError):
    """A selector cannot be read; the API server answers 400 with this message."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One condition on a label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "gt" | "lt":
                return value is not None and _compare_numbers(value, self.operator, next(iter(self.values)))
            case _:
                assert_never(self.operator)


def _compare_numbers(value: str, operator: Literal["gt", "lt"], bound: str) -> bool:
    try:
        number = int(value)
    except ValueError:
        return False
    return number > int(bound) if operator == "gt" else number < int(bound)


@dataclass(frozen=True, kw_only=True)
class LabelSelector:
    """Every requirement must hold; none at all selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        found = labels or {}
        return all(requirement.holds(found) for requirement in self.requirements)

    def matches_object(self, obj: Mapping[str, Any]) -> bool:
        return self.matches(obj.get("metadata", {}).get("labels"))


def parse_label_selector(text: str) -> LabelSelector:
    """``a=b,c!=d,e in (f,g),h,!i,j>1``. Raises `InvalidSelector`."""
    tokens = _tokens(text)
    requirements: list[Requirement] = []
    position = 0
    while position < len(tokens):
        requirement, position = _parse_requirement(tokens, position, text)
        requirements.append(requirement)
        if position < len(tokens):
            if tokens[position] != ",":
                raise InvalidSelector(
                    f"unable to parse requirement: found '{tokens[position]}', expected: ',' or 'end of string'"
                )
            position += 1
            if position == len(tokens):
                raise InvalidSelector("unable to parse requirement: found '', expected: identifier after ','")
    return LabelSelector(requirements=tuple(requirements))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidSelector(f"unable to parse requirement: unexpected character in {text!r}")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    return tokens


def _parse_requirement(tokens: Sequence[str], position: int, text: str) -> tuple[Requirement, int]:
    if tokens[position] == "!":
        key = _identifier(tokens, position + 1)
        return Requirement(key=_checked_key(key), operator="absent"), position + 2
    key = _checked_key(_identifier(tokens, position))
    operator = tokens[position + 1] if position + 1 < len(tokens) else ","
    match operator:
        case ",":
            return Requirement(key=key, operator="exists"), position + 1
        case "=" | "==" | "!=":
            value, after = _value(tokens, position + 2)
            kind: Operator = "notin" if operator == "!=" else "in"
            return Requirement(key=key, operator=kind, values=frozenset({_checked_value(key, value)})), after
        case ">" | "<":
            value, after = _value(tokens, position + 2)
            if not re.fullmatch(r"-?\d+", value):
                raise InvalidSelector(
                    f'values[0][{key}]: Invalid value: "{value}": '
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )
            return Requirement(key=key, operator="gt" if operator == ">" else "lt", values=frozenset({value})), after
        case "in" | "notin":
            values, after = _value_list(tokens, position + 2)
            checked = frozenset(_checked_value(key, value) for value in values)
            return Requirement(key=key, operator=operator, values=checked), after
        case _:
            raise InvalidSelector(
                f"unable to parse requirement: found '{operator}', expected: in, notin, =, ==, !=, gt, lt"
            )


def _identifier(tokens: Sequence[str], position: int) -> str:
    token = tokens[position] if position < len(tokens) else ""
    if not token or token in ("!=", "==", "=", "!", "<", ">", "(", ")", ","):
        raise InvalidSelector(f"unable to parse requirement: found '{token}', expected: identifier")
    return token


def _value(tokens: Sequence[str], position: int) -> tuple[str, int]:
    if position >= len(tokens) or tokens[position] == ",":
        return "", position
    return _identifier(tokens, position), position + 1


def _value_list(tokens: Sequence[str], position: int) -> tuple[list[str], int]:
    if position >= len(tokens) or tokens[position] != "(":
        found = tokens[position] if position < len(tokens) else ""
        raise InvalidSelector(f"unable to parse requirement: found '{found}', expected: '('")
    position += 1
    values: list[str] = []
    pending = ""
    while position < len(tokens):
        mark = tokens[position]
        if mark in (",", ")"):
            values.append(pending)
            pending = ""
            position += 1
            if mark == ")":
                return values, position
        else:
            pending = _identifier(tokens, position)
            position += 1
    raise InvalidSelector("unable to parse requirement: found '', expected: ',', or ')'")


def _checked_key(key: str) -> str:
    prefix, _, name = key.rpartition("/")
    if "/" in key and (not _PREFIX.fullmatch(prefix) or len(prefix) > 253):
        raise InvalidSelector(
            f'unable to parse requirement: <nil>: Invalid value: "{key}": prefix part must be a lowercase RFC 1123 '
            "subdomain"
        )
    if not _NAME.fullmatch(name) or len(name) > 63:
        raise InvalidSelector(
            f'unable to parse requirement: <nil>: Invalid value: "{key}": name part must consist of alphanumeric '
            "characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        )
    return key


def _checked_value(key: str, value: str) -> str:
    if not _VALUE.fullmatch(value) or len(value) > 63:
        raise InvalidSelector(
            f'unable to parse requirement: values[0][{key}]: Invalid value: "{value}": a valid label must be an empty '
            "string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character"
        )
    return value


def selector_of_object(selector: Mapping[str, Any]) -> LabelSelector:
    """The selector that stands inside an object (``matchLabels``, ``matchExpressions``). Raises `InvalidSelector`."""
    requirements = [
        Requirement(key=key, operator="in", values=frozenset({value}))
        for key, value in selector.get("matchLabels", {}).items()
    ]
    for expression in selector.get("matchExpressions", ()):
        operator = _EXPRESSION_OPERATORS.get(expression.get("operator", ""))
        if operator is None:
            raise InvalidSelector(f'"{expression.get("operator")}" is not a valid label selector operator')
        values = frozenset(expression.get("values", ()))
        if (operator in ("in", "notin")) != bool(values):
            raise InvalidSelector(
                f'values of "{expression.get("key")}" do not fit the operator {expression["operator"]}'
            )
        requirements.append(Requirement(key=expression["key"], operator=operator, values=values))
    return LabelSelector(requirements=tuple(requirements))


def matches_label_selector(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector that stands inside an object selects these labels. Raises `InvalidSelector`."""
    return selector_of_object(selector).matches(labels)


def format_label_selector(selector: Mapping[str, Any]) -> str:
    """The selector of an object as one string, as a ``Scale`` shows it in ``status.selector``."""
    return ",".join(_format(requirement) for requirement in selector_of_object(selector).requirements)


def _format(requirement: Requirement) -> str:
    values = sorted(requirement.values)
    match requirement.operator:
        case "in":
            one = len(values) == 1
            return f"{requirement.key}={values[0]}" if one else f"{requirement.key} in ({','.join(values)})"
        case "notin":
            return f"{requirement.key} notin ({','.join(values)})"
        case "exists":
            return requirement.key
        case "absent":
            return f"!{requirement.key}"
        case "gt" | "lt":
            return f"{requirement.key}{'>' if requirement.operator == 'gt' else '<'}{values[0]}"
        case _:
            assert_never(requirement.operator)


@dataclass(frozen=True, kw_only=True)
class FieldSelector:
    """Equalities and inequalities on fields of an object."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    def matches_object(self, obj: Mapping[str, Any]) -> bool:
        return all((_read_field(obj, field) == value) == equal for field, equal, value in self.terms)

    def required_value(self, field: str) -> str | None:
        """The value that `field` must have, when the selector demands one (a list by name can then be a lookup)."""
        return next((value for name, equal, value in self.terms if equal and name == field), None)


def parse_field_selector(text: str, selectable: Sequence[str] = (), *, namespaced: bool = True) -> FieldSelector:
    """``metadata.name=x,status.phase!=Running``.

    `selectable` names the fields beyond the metadata that the kind allows (`ResourceInfo.selectable_fields`). Raises
    `InvalidSelector` for any other.
    """
    allowed = {"metadata.name", *(["metadata.namespace"] if namespaced else []), *selectable}
    terms: list[tuple[str, bool, str]] = []
    for term in _split_terms(text):
        match = re.fullmatch(r"([^!=]+?)\s*(!=|==|=)(.*)", term.strip())
        if match is None:
            raise InvalidSelector(f"invalid field selector: {text!r}; can't understand '{term}'")
        field, operator, value = match.groups()
        if field not in allowed:
            raise InvalidSelector(f"field label not supported: {field}")
        terms.append((field, operator != "!=", re.sub(r"\\([,=\\])", r"\1", value)))
    return FieldSelector(terms=tuple(terms))


def _split_terms(text: str) -> Iterator[str]:
    for term in re.split(r"(?<!\\),", text):
        if term.strip():
            yield term


def _read_field(obj: Mapping[str, Any], field: str) -> str:
    value: Any = obj
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return _EMPTY_VALUES.get(field, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):  # Event's `source` selects by the component
        return str(value.get("component", ""))
    return str(value)


_EMPTY_VALUES: Final[Mapping[str, str]] = {
    "spec.hostNetwork": "false",
    "spec.unschedulable": "false",
    "status.replicas": "0",
}

ObjectPredicate = Callable[[Mapping[str, Any]], bool]
