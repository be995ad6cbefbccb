"""Limits that hold for everything that enters the system, with the reason for each."""

from __future__ import annotations

import json
import math
import re
from typing import Any

STEPS_PER_TASK = 1_000_000
"""A step's id leaves 20 bits for its place in the task."""
STEPS_PER_TEMPLATE_RESOURCE = 1_000
"""What a TaskTemplate resource may hold, to stay under etcd's limit; larger graphs are given to the engine directly."""
CONTEXT_BYTES = 1_048_576
"""A task's context, as JSON text: it goes with every claim of the task."""
CONTEXT_BYTES_IN_RESOURCE = 262_144
RESULT_BYTES = 1_048_576
SCHEMA_BYTES = 65_536
"""A JSON Schema, as JSON text: it goes with every claim of its step, and what it asks of a value takes time."""
JSON_DEPTH = 32
"""Nesting of contexts and results: bounds the recursion of every reader."""
CONDITION_LENGTH = 4096
"""Characters of a step's `when`: its parser bounds nesting by itself, and reads so much in some milliseconds."""
NAME_LENGTH = 63
"""As a Kubernetes label value, so that names can be labels."""
DEADLINE_SECONDS = 31_536_000
"""The longest a deadline may be away: a year, as in the Task resource."""
DELIVERED_ANCESTORS = 100
"""A claim carries the results of all ancestors up to this many; beyond it those of the direct parents only."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def json_size(value: Any) -> int:
    """Bytes of `value` as compact JSON text in UTF-8."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def json_fault(value: Any, path: str, *, depth: int = JSON_DEPTH) -> tuple[str, str] | None:
    """The path and reason of the first thing in `value` that cannot be stored as JSON in Postgres; None when all can.

    That is a type that JSON does not have, NaN and the infinities, the character U+0000, half a surrogate pair, a key
    that is not text, and lists and objects nested deeper than `depth`.
    """
    if isinstance(value, str):
        reason = _text_fault(value)
        return None if reason is None else (path, reason)
    if isinstance(value, (bool, int)) or value is None:
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"is {value}, which JSON does not have")
    if not isinstance(value, (dict, list, tuple)):
        return path, f"is not JSON but a Python {type(value).__name__}"
    if depth == 0:
        return path, f"is nested deeper than {JSON_DEPTH} levels"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(value, dict):
            if not isinstance(key, str):
                return path, f"has the key {key!r}, which is not text"
            reason = _text_fault(key)
            if reason is not None:
                return path, f"has a key that {reason}"
        if isinstance(item, (bool, int)) or item is None:
            continue
        fault = json_fault(item, f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]", depth=depth - 1)
        if fault is not None:
            return fault
    return None


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "holds the character U+0000, which Postgres cannot store"
    if not text.isascii() and _SURROGATE.search(text):
        return "holds half a surrogate pair, which is no character"
    return None
