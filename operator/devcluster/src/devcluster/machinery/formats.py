"""The values of `format` in a schema that are enforced, and how."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

_DATE: Final = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-]\d{2}:?\d{2})"
_UUID: Final = "[0-9a-f]{8}-?[0-9a-f]{4}-?%s[0-9a-f]{3}-?%s[0-9a-f]{3}-?[0-9a-f]{12}"
_ANY_HEX: Final = "[0-9a-f]"
_LABEL: Final = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DURATION: Final = r"[+-]?(?:0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d|w))+)"


def _matches(pattern: str, flags: int = 0) -> Callable[[str], bool]:
    compiled = re.compile(pattern, flags | re.ASCII)
    return lambda text: compiled.fullmatch(text) is not None


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_address(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _is_hostname(text: str) -> bool:
    label = r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?"
    return len(text) <= 255 and re.fullmatch(rf"{label}(?:\.{label})*", text) is not None


def _is_uri(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.path)) or text.startswith("/")


_CHECKS: Final[dict[str, Callable[[str], bool]]] = {
    "byte": _is_base64,
    "cidr": _is_address(lambda text: ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address("")),
    "date": _matches(_DATE),
    "date-time": _matches(rf"{_DATE}[Tt]{_TIME}"),
    "duration": _matches(_DURATION),
    "email": _matches(r"(?:[^@<>\s]+ )*<?[^@<>\s]+@[^@<>\s]+>?"),
    "hostname": _is_hostname,
    "ipv4": _is_address(ipaddress.IPv4Address),
    "ipv6": _is_address(ipaddress.IPv6Address),
    "k8s-long-name": lambda text: len(text) <= 253 and re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", text) is not None,
    "k8s-short-name": lambda text: len(text) <= 63 and re.fullmatch(_LABEL, text) is not None,
    "mac": _matches(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}"),
    "password": lambda _text: True,
    "uri": _is_uri,
    "uuid": _matches(_UUID % (_ANY_HEX, _ANY_HEX), re.IGNORECASE),
    "uuid3": _matches(_UUID % ("3", _ANY_HEX), re.IGNORECASE),
    "uuid4": _matches(_UUID % ("4", "[89ab]"), re.IGNORECASE),
    "uuid5": _matches(_UUID % ("5", "[89ab]"), re.IGNORECASE),
}

INTEGER_RANGES: Final[dict[str, tuple[int, int]]] = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}

UNSUPPORTED_FORMATS: Final = frozenset(
    {"bsonobjectid", "creditcard", "hexcolor", "isbn", "isbn10", "isbn13", "rgbcolor", "ssn"}
)
"""Formats that a real API server enforces and this one does not: a CRD that uses them is refused."""


def is_valid(format_name: str, text: str) -> bool:
    """Whether `text` has the format. A format that Kubernetes does not know constrains nothing."""
    check = _CHECKS.get(format_name)
    return check is None or check(text)
