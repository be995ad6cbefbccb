"""What tells two runs of a template apart: the key under which `spec.identity` of the template knows a run.

Called where runs are submitted. A strict key is the SHA-256 of the template's name and the context in their canonical
form, which is defined here and nowhere else: JSON text in UTF-8 in which every JSON value has exactly one form.

- Objects: the members in the order of their names by code point, no white space.
- Numbers: the exact decimal that the JSON text means, as digits without zeros at either end and the power of ten behind
  ``e``, like ``-15e-1``; zero is ``0e0``. So 1, 1.0 and 10e-1 are one number, for tools rewrite numbers in passing
  (kubectl makes 1 of 1.0), and -0.0 is zero. A number that arrived as a Python float is the shortest decimal that
  reads back as it, which is what was written as long as that had no more than 15 digits.
- Texts: as they are, character by character: what looks the same and is composed otherwise is another text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from json.encoder import encode_basestring
from typing import Any, assert_never

from tasker.errors import InvalidTask


class IdentityStrategy(StrEnum):
    """When a run is a duplicate of another one of its template, in the same namespace."""

    STRICT = "strict"
    """When both have the same context."""
    CALLER_PROVIDED = "callerProvided"
    """When both have the same `idempotency_key`, which every request then needs."""
    ALWAYS_UNIQUE = "alwaysUnique"
    """Never."""


def identity_key(
    strategy: IdentityStrategy, template_name: str, context: Any, idempotency_key: str | None
) -> str | None:
    """The key of a request's run, at most 512 characters; None when no other run can be its duplicate.

    `context` has passed `limits.json_fault`. Raises `InvalidTask` for a request that has no key and needs one, or has
    one that its template makes no use of.
    """
    if idempotency_key is not None and strategy is not IdentityStrategy.CALLER_PROVIDED:
        raise InvalidTask(
            "spec.idempotencyKey", f"template {template_name} makes no use of it: its identity is {strategy}"
        )
    match strategy:
        case IdentityStrategy.STRICT:
            text = canonical_json([template_name, context])
            return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        case IdentityStrategy.CALLER_PROVIDED:
            if idempotency_key is None:
                raise InvalidTask("spec.idempotencyKey", f"is required by the identity of template {template_name}")
            return f"key:{idempotency_key}"
        case IdentityStrategy.ALWAYS_UNIQUE:
            return None
        case _:
            assert_never(strategy)


def canonical_json(value: Any) -> str:
    """The one form of a JSON value: equal for equal values, different for different ones."""
    return "".join(_parts(value))


def _parts(value: Any) -> Iterator[str]:
    match value:
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case str():
            yield encode_basestring(value)
        case int() | float():
            yield _canonical_number(value)
        case dict():
            separator = "{"
            for name in sorted(value):
                yield separator + encode_basestring(name) + ":"
                yield from _parts(value[name])
                separator = ","
            yield "}" if value else "{}"
        case list() | tuple():
            separator = "["
            for item in value:
                yield separator
                yield from _parts(item)
                separator = ","
            yield "]" if value else "[]"
        case _:
            raise TypeError(f"{type(value).__name__} is not JSON")


def _canonical_number(number: int | float) -> str:
    exponent = 0
    if isinstance(number, int):
        digits = str(abs(number))
    else:
        _, places, exponent_of_last = Decimal(repr(number)).as_tuple()
        digits = "".join(map(str, places))
        exponent = int(exponent_of_last)
    shortened = digits.lstrip("0").rstrip("0")
    if not shortened:
        return "0e0"
    exponent += len(digits) - len(digits.rstrip("0"))
    return f"{'-' if number < 0 else ''}{shortened}e{exponent}"
