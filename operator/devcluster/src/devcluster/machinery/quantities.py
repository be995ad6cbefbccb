"""Kubernetes quantities (``500m``, ``1Gi``): their value, and the one spelling that the API server stores."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final

_SHAPE: Final = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([eE])([+-]?\d+)|([KMGTPE]i|[numkMGTPE]?))")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


class InvalidQuantity(ValueError):
    """Not a quantity: a number, perhaps with a suffix like m, k, Ki or e3."""


def parse_quantity(text: str) -> Fraction:
    """The exact value. Raises `InvalidQuantity`."""
    return _parse(text)[0]


def _parse(text: str) -> tuple[Fraction, str]:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InvalidQuantity(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    number, exponent_mark, exponent, suffix = match.groups()
    value = Fraction(number)
    if exponent_mark:
        return value * Fraction(10) ** int(exponent), "exponent"
    if suffix in _BINARY:
        return value * 2 ** _BINARY[suffix], "binary"
    return value * Fraction(10) ** _DECIMAL[suffix or ""], "decimal"


def canonical(quantity: Any) -> Any:
    """The stored spelling: the largest suffix that keeps a whole number. What is no quantity is given back as it is."""
    if isinstance(quantity, bool) or not isinstance(quantity, (str, int, float)):
        return quantity
    text = quantity if isinstance(quantity, str) else repr(quantity)
    try:
        value, form = _parse(text)
    except InvalidQuantity:
        return quantity
    if value == 0:
        return "0"
    if form == "binary" and abs(value) >= 1024 and value.denominator == 1:
        return _spell(value, [(suffix, Fraction(2) ** power) for suffix, power in reversed(_BINARY.items())])
    if form == "exponent":
        steps = [(f"e{power}" if power else "", Fraction(10) ** power) for power in range(18, -10, -3)]
        return _spell(value, steps)
    steps = [(suffix, Fraction(10) ** power) for suffix, power in reversed(_DECIMAL.items())]
    return _spell(value, steps)


def _spell(value: Fraction, steps: list[tuple[str, Fraction]]) -> str:
    for suffix, unit in steps:
        amount = value / unit
        if amount.denominator == 1:
            return f"{amount.numerator}{suffix}"
    if steps[-1][1] >= 1:
        return str(value.numerator) if value.denominator == 1 else repr(float(value))
    smallest, unit = steps[-1]
    amount = value / unit  # finer than the finest unit: rounded up, as Kubernetes does
    return f"{-((-amount.numerator) // amount.denominator)}{smallest}"
