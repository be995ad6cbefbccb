"""What every service refuses, with path and reason, before it does anything; and bodies as the text that is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tasker.errors import InvalidMessage
from tasker.model import limits

BODY_BYTES = 1_048_576
"""Of a body's JSON text in UTF-8, as of contexts and results."""
BATCH_MESSAGES = 1_000
"""Most messages in one call, either way."""
BATCH_BYTES = 33_554_432
"""Most bytes of bodies in one call, either way: a receiver must hold them all at once. One message always fits."""
VISIBILITY_SECONDS = 86_400.0
"""The longest that a message may be hidden by one call, in seconds: a day. Work that takes longer extends it."""
DELAY_SECONDS = 31_536_000.0
"""The longest that a message may be delayed, in seconds: a year, as a task's deadline."""
REASON_LENGTH = 1_024
"""Characters of the reason that a dead message keeps."""
COUNT_LIMIT = 10_000
"""Where the counts of a queue end: further ones tell nothing that is worth reading every row for."""

_QUEUE = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def check_namespace(namespace: str) -> str:
    """Raises `InvalidMessage` unless it is a name that a Kubernetes namespace can have."""
    return _check_name("namespace", namespace, _NAMESPACE, "lower-case letters, digits and '-'")


def check_queue(queue: str, path: str = "queue") -> str:
    """Raises `InvalidMessage` unless it is a name that a queue can have."""
    return _check_name(path, queue, _QUEUE, "lower-case letters, digits, '-', '_' and '.'")


def check_queues(queues: Sequence[str]) -> list[str]:
    """The names, each once. Raises `InvalidMessage` for one that a queue cannot have, and for none at all."""
    if isinstance(queues, str):
        raise InvalidMessage("queues", "must be a list of names, not one name")
    if not queues:
        raise InvalidMessage("queues", "must not be empty")
    return list(dict.fromkeys(check_queue(queue, f"queues[{place}]") for place, queue in enumerate(queues)))


def check_visibility(seconds: float) -> float:
    """Raises `InvalidMessage` unless a message may be hidden for so long."""
    if not 0 < seconds <= VISIBILITY_SECONDS:
        raise InvalidMessage("visibility_seconds", f"must be more than 0 and at most {VISIBILITY_SECONDS:.0f}")
    return seconds


def check_delay(seconds: float) -> float:
    """Raises `InvalidMessage` unless a message may be delayed for so long."""
    if not 0 <= seconds <= DELAY_SECONDS:
        raise InvalidMessage("delay_seconds", f"must be at least 0 and at most {DELAY_SECONDS:.0f}")
    return seconds


def check_limit(limit: int) -> int:
    """Raises `InvalidMessage` unless so many messages may be received at once."""
    if not 1 <= limit <= BATCH_MESSAGES:
        raise InvalidMessage("limit", f"must be at least 1 and at most {BATCH_MESSAGES}")
    return limit


def clean_reason(reason: str) -> str:
    """The beginning of a reason, as it can be stored whatever it is made of."""
    return reason.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:REASON_LENGTH]


def batch_texts(bodies: Sequence[Any]) -> list[str]:
    """The JSON texts of the bodies of one call. Raises `InvalidMessage` with path and reason."""
    if len(bodies) > BATCH_MESSAGES:
        raise InvalidMessage("bodies", f"are {len(bodies)}; at most {BATCH_MESSAGES} are allowed in one call")
    texts = [body_text(body, f"bodies[{place}]") for place, body in enumerate(bodies)]
    size = sum(len(text.encode()) for text in texts)
    if size > BATCH_BYTES:
        raise InvalidMessage("bodies", f"are {size} bytes; at most {BATCH_BYTES} are allowed in one call")
    return texts


def body_text(body: Any, path: str = "body") -> str:
    """The JSON text of a body. Raises `InvalidMessage` with path and reason."""
    fault = limits.json_fault(body, path)
    if fault is not None:
        raise InvalidMessage(*fault)
    try:
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    except ValueError as error:  # a whole number of thousands of digits
        raise InvalidMessage(path, f"cannot be written as JSON: {error}") from error
    size = len(text.encode())
    if size > BODY_BYTES:
        raise InvalidMessage(path, f"is {size} bytes; at most {BODY_BYTES} are allowed")
    return text


def _check_name(path: str, name: object, pattern: re.Pattern[str], characters: str) -> str:
    if not isinstance(name, str):
        raise InvalidMessage(path, f"must be a string, not {name!r}")
    if len(name) > limits.NAME_LENGTH:
        raise InvalidMessage(path, f"{name!r} is longer than {limits.NAME_LENGTH} characters")
    if not pattern.fullmatch(name):
        raise InvalidMessage(
            path, f"{name!r} is no name: {characters} are allowed, the first and the last a letter or digit"
        )
    return name
