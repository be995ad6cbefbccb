"""Limits that hold for everything that enters the system, with the reason for each."""

from __future__ import annotations

import json
from typing import Any

STEPS_PER_TASK = 1_000_000
"""A step's id leaves 20 bits for its place in the task."""
STEPS_PER_TEMPLATE_RESOURCE = 1_000
"""What a TaskTemplate resource may hold, to stay under etcd's limit; larger graphs are given to the engine directly."""
CONTEXT_BYTES = 1_048_576
"""A task's context, as JSON text: it goes with every claim of the task."""
CONTEXT_BYTES_IN_RESOURCE = 262_144
RESULT_BYTES = 1_048_576
JSON_DEPTH = 32
"""Nesting of contexts and results: bounds the recursion of every reader."""
NAME_LENGTH = 63
"""As a Kubernetes label value, so that names can be labels."""
DELIVERED_ANCESTORS = 100
"""A claim carries the results of all ancestors up to this many; beyond it those of the direct parents only."""


def json_size(value: Any) -> int:
    """Bytes of `value` as compact JSON text in UTF-8."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def json_depth_exceeds(value: Any, limit: int = JSON_DEPTH) -> bool:
    """Whether lists and objects are nested deeper than `limit`."""
    level = [value]
    for _ in range(limit + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        if not deeper:
            return False
        level = deeper
    return any(isinstance(item, (dict, list)) for item in level)
