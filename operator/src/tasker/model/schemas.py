"""JSON Schemas of templates: which can be enforced, and whether a value meets one. The libraries load when one is used.

`format` is an annotation in Draft 2020-12 and is not enforced; nor are `contentEncoding`, `contentMediaType`,
`contentSchema`. Patterns are what both RE2 and Python's `re` take: no looking around or back, no count above 1,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tasker.model import limits

CHECKS = 100_000
CHECKS_PER_BYTE = 2
"""Keywords applied in one check, the second for each byte of the value: a second or two of one thread, and half a
minute for 1 MiB that is made for it. What has several keywords for each of its numbers comes through."""

QUICK_CHECKS = 2_000
"""What a check may take where others wait for it: some milliseconds, enough for nearly every context."""


class SchemaEnforcement(StrEnum):
    """What becomes of a value that does not meet its schema."""

    ENFORCE = "enforce"
    """It is refused."""

    WARN = "warn"
    """It is taken, and the fault told."""

    OFF = "off"
    """It is not checked."""


class NotQuick(Exception):
    """The check takes more than a quick one may."""


def check_schema(schema: Mapping[str, Any], path: str) -> None:
    """Raises `InvalidTemplate` when the schema is none or cannot be enforced, with the path of the first fault in it.

    That is one larger or deeper than `limits` allow, of another dialect, with a reference that leaves the document or
    comes back to itself for the same value, or with a pattern that RE2 or Python does not take.
    """
    from tasker.model import schema_check

    schema_check.check(schema, path)


def context_fault(schema: Mapping[str, Any], context: Any) -> tuple[str, str] | None:
    """The JSON pointer and the reason of the most telling fault of `context`; None when it meets the checked `schema`.

    The value itself is not quoted, since contexts may hold secrets: only names of its properties, and its type. A check
    that takes more than `CHECKS` is a fault too. May take seconds: see `quick_context_fault`.
    """
    from tasker.model import schema_validator

    try:
        effort = schema_validator.Effort(CHECKS + CHECKS_PER_BYTE * limits.json_size(context))
        return schema_validator.first_fault(schema, context, effort)
    except schema_validator.Unfinished:
        return "", "takes too much to be checked against the schema"


def quick_context_fault(schema: Mapping[str, Any], context: Any) -> tuple[str, str] | None:
    """As `context_fault`, in some milliseconds. Raises `NotQuick` when these do not do."""
    from tasker.model import schema_validator

    try:
        return schema_validator.first_fault(schema, context, schema_validator.Effort(QUICK_CHECKS))
    except schema_validator.Unfinished:
        raise NotQuick from None
