"""The key of a run: one for equal contexts however they are written, another for every other context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from tasker.errors import InvalidTask
from tasker.model.identity import IdentityStrategy, canonical_json, identity_key

SCALARS = (
    some.none()
    | some.booleans()
    | some.integers(min_value=-(10**25), max_value=10**25)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(max_size=5)
)
VALUES = some.recursive(
    SCALARS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def exact(value: Any) -> Any:
    """The value as something that Python compares as JSON values compare: numbers by decimals, no truth a number."""
    if isinstance(value, Mapping):
        return frozenset((name, exact(item)) for name, item in value.items()), "object"
    if isinstance(value, list):
        return tuple(map(exact, value)), "list"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Decimal(repr(value)), "number"
    return value, type(value).__name__


@given(VALUES, VALUES)
@example(1, True)
@example(1, 1.0)
@example(0, -0.0)
@example(0, False)
@example("1", 1)
@example(10**22, 1e22)
@example(2**53, 2.0**53 + 2)
@example(2**53 + 1, 2.0**53)
@example(0.1, 0.1 + 1e-17)
@example(["a", "b"], ["a,b"])
@example({"a": 1}, [{"a": 1}])
@example({}, [])
@example("\u00e9", "e\u0301")
def test_forms_are_equal_exactly_when_values_are(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (exact(one) == exact(other))


def shuffled(value: Any) -> Any:
    """The same value with the members of its objects in the opposite order and its numbers in another form."""
    if isinstance(value, dict):
        return {name: shuffled(item) for name, item in reversed(value.items())}
    if isinstance(value, list):
        return [shuffled(item) for item in value]
    if isinstance(value, float) and value.is_integer() and repr(value) == f"{value:.1f}":
        return int(value)
    return value


@given(VALUES)
def test_neither_order_nor_the_form_of_numbers_nor_a_passage_through_json_matters(value: Any) -> None:
    form = canonical_json(value)
    assert canonical_json(shuffled(value)) == form
    assert canonical_json(json.loads(json.dumps(value, indent=3))) == form


@given(VALUES)
def test_the_form_is_json_and_the_form_of_itself(value: Any) -> None:
    read = json.loads(canonical_json(value), parse_float=Decimal)

    def decimals(read: Any) -> Any:
        if isinstance(read, dict):
            return frozenset((name, decimals(item)) for name, item in read.items()), "object"
        if isinstance(read, list):
            return tuple(map(decimals, read)), "list"
        return (read, "number") if isinstance(read, Decimal) else (read, type(read).__name__)

    assert decimals(read) == exact(value)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"b": [1, 2.5, None], "a": {"y": True, "x": 'ü\n"'}}, '{"a":{"x":"ü\\n\\"","y":true},"b":[1e0,25e-1,null]}'),
        (-150, "-15e1"),
        (1.5e300, "15e299"),
        (5e-324, "5e-324"),
        (0, "0e0"),
        ({"é": 1, "z": 2, "\U0001f600": 3, "\ufb01": 4}, '{"z":2e0,"é":1e0,"\ufb01":4e0,"\U0001f600":3e0}'),
    ],
)
def test_the_form_is_as_documented(value: Any, form: str) -> None:
    assert canonical_json(value) == form


def test_what_is_not_json_has_no_form() -> None:
    with pytest.raises(TypeError, match="set is not JSON"):
        canonical_json({"a": {1}})


def test_a_strict_key_is_that_of_template_and_context() -> None:
    def key(name: str, context: Any) -> str | None:
        return identity_key(IdentityStrategy.STRICT, name, context, None)

    # Pinned, because keys are stored: another value here lets every run that there is be submitted once more.
    assert key("order", {"number": 7}) == "sha256:169ce17653b38a381d42142de6df3b59591c4a963d68e692291bf92fdeeb7432"
    assert key("order", {"number": 7.0}) == key("order", {"number": 7})
    assert len({key("order", {}), key("order", {"number": 7}), key("orders", {"number": 7})}) == 3


def test_a_provided_key_is_the_callers_and_never_one_of_a_context() -> None:
    assert identity_key(IdentityStrategy.CALLER_PROVIDED, "order", {"n": 1}, "order-7") == "key:order-7"
    assert identity_key(IdentityStrategy.ALWAYS_UNIQUE, "order", {"n": 1}, None) is None


@pytest.mark.parametrize(
    ("strategy", "key", "message"),
    [
        (IdentityStrategy.CALLER_PROVIDED, None, "is required by the identity of template order"),
        (IdentityStrategy.STRICT, "k", "template order makes no use of it: its identity is strict"),
        (IdentityStrategy.ALWAYS_UNIQUE, "k", "template order makes no use of it: its identity is alwaysUnique"),
    ],
)
def test_a_key_that_is_missing_or_of_no_use_is_refused(
    strategy: IdentityStrategy, key: str | None, message: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        identity_key(strategy, "order", {}, key)
    assert (caught.value.path, caught.value.reason) == ("spec.idempotencyKey", message)
