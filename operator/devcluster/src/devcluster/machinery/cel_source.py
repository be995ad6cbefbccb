"""The text of a CEL rule, read far enough to say what it refers to before it ever runs.

The CEL library parses a rule but does not check it against a schema; a real API server does. So that a rule which a
real cluster would refuse is refused here too, this module finds unknown names and functions, and fields of ``self``
and ``oldSelf`` that the schema does not have. (What is bound inside macros is not followed.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import cel

from devcluster.machinery.cel_functions import KNOWN_FUNCTIONS
from devcluster.machinery.cel_values import escape_name
from devcluster.machinery.schema_node import SchemaNode

TokenKind = Literal["string", "name", "number", "mark"]

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>[rRbB]{0,2}(?:
            \"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'
        ))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>\d[\w.]*)
      | (?P<mark>[<>=!]=|&&|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)
_MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
_KNOWN_NAMES: Final = frozenset(
    {"self", "oldSelf", "math", "sets", "lists", "base64", "strings", "optional"}
    | {"bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string", "timestamp", "type", "uint"}
)


class InvalidRule(ValueError):
    """A rule that cannot be compiled, or refers to what is not there."""


@dataclass(frozen=True, kw_only=True)
class Token:
    kind: TokenKind
    text: str
    start: int


def tokenize(source: str) -> list[Token]:
    """The tokens of a rule without spaces and comments."""
    return [
        Token(kind=match.lastgroup, text=match.group(), start=match.start())  # type: ignore[arg-type]
        for match in _TOKEN.finditer(source)
        if match.lastgroup != "space"
    ]


@lru_cache(maxsize=4096)
def compile_rule(source: str) -> cel.Program:
    """The compiled rule. Raises `InvalidRule` with the parser's words."""
    try:
        return cel.compile(source)
    except ValueError as error:
        text = re.sub(r"^Failed to parse expression .*?: (?=ERROR)", "", str(error), flags=re.DOTALL)
        raise InvalidRule(f"compilation failed: {text}") from error


def uses_old_self(source: str) -> bool:
    return any(token.kind == "name" and token.text == "oldSelf" for token in tokenize(source))


def check_references(source: str, node: SchemaNode, *, is_root: bool, optional_old_self: bool) -> None:
    """Raises `InvalidRule` for a name, a function or a field that a real API server would not know either."""
    program = compile_rule(source)
    tokens = tokenize(source)
    bound = set(_bound_names(tokens))
    for name in program.variables():
        if name not in _KNOWN_NAMES and name not in bound:
            raise InvalidRule(f"compilation failed: undeclared reference to '{name}' (in container '')")
    for name in program.functions():
        if re.fullmatch(r"[A-Za-z]\w*", name) and name not in KNOWN_FUNCTIONS:
            raise InvalidRule(
                f"compilation failed: undeclared reference to '{name}' (in container ''), "
                "or a function that the embedded API server does not have"
            )
    for root, fields in _field_chains(tokens):
        if not (root == "oldSelf" and optional_old_self):
            _check_chain(fields, node, is_root=is_root)


def _bound_names(tokens: Sequence[Token]) -> Iterator[str]:
    for index, token in enumerate(tokens[:-3]):
        is_macro = token.kind == "name" and token.text in _MACROS and tokens[index + 1].text == "("
        if is_macro and tokens[index + 2].kind == "name" and tokens[index + 3].text == ",":
            yield tokens[index + 2].text


def _field_chains(tokens: Sequence[Token]) -> Iterator[tuple[str, list[str]]]:
    """The fields that are selected from ``self`` and ``oldSelf``, each chain up to the first call or index."""
    for index, token in enumerate(tokens):
        if token.kind != "name" or token.text not in ("self", "oldSelf"):
            continue
        if index and tokens[index - 1].text == ".":
            continue
        fields: list[str] = []
        position = index + 1
        while position + 1 < len(tokens) and tokens[position].text == "." and tokens[position + 1].kind == "name":
            is_call = position + 2 < len(tokens) and tokens[position + 2].text == "("
            if is_call:
                break
            fields.append(tokens[position + 1].text)
            position += 2
        if fields:
            yield token.text, fields


def _check_chain(fields: Sequence[str], node: SchemaNode, *, is_root: bool) -> None:
    current: SchemaNode | None = node
    for depth, field in enumerate(fields):
        if current is None:
            return
        if is_root and depth == 1 and fields[0] == "metadata" and field not in ("name", "generateName"):
            raise InvalidRule(f"compilation failed: undefined field '{field}'")
        if current.int_or_string:
            return
        if current.type == "object" and current.additional is None:
            names = {escape_name(name): child for name, child in current.properties.items()}
            if field not in names:
                raise InvalidRule(f"compilation failed: undefined field '{field}'")
            current = names[field]
        elif current.type == "object":
            current = current.additional
        elif current.type is None:
            raise InvalidRule(f"compilation failed: undefined field '{field}'")
        else:
            raise InvalidRule(f"compilation failed: type '{_cel_type(current)}' does not support field selection")


def _cel_type(node: SchemaNode) -> str:
    match node.type:
        case "integer":
            return "int"
        case "number":
            return "double"
        case "boolean":
            return "bool"
        case "array":
            return f"list({_cel_type(node.items) if node.items is not None else 'dyn'})"
        case other:
            return other or "dyn"


def rename_function(source: str, name: str, replacement: str) -> str:
    """The rule with calls of one function going to another."""
    tokens = tokenize(source)
    result: list[str] = []
    position = 0
    for index, token in enumerate(tokens):
        is_call = index + 1 < len(tokens) and tokens[index + 1].text == "("
        if token.kind == "name" and token.text == name and is_call:
            result.append(source[position : token.start] + replacement)
            position = token.start + len(name)
    result.append(source[position:])
    return "".join(result)
