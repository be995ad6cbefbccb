"""Faults of an object, one a field, in the words of a Kubernetes API server.

`schema`, `cel` and `metadata` make them; the HTTP server puts them into a `Status` (`describe_invalid`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Reason(Enum):
    """Why a field is refused: the machine-readable cause, and the words that open the message."""

    REQUIRED = ("FieldValueRequired", "Required value")
    INVALID = ("FieldValueInvalid", "Invalid value")
    TYPE_INVALID = ("FieldValueTypeInvalid", "Invalid value")
    NOT_SUPPORTED = ("FieldValueNotSupported", "Unsupported value")
    NOT_FOUND = ("FieldValueNotFound", "Not found")
    DUPLICATE = ("FieldValueDuplicate", "Duplicate value")
    FORBIDDEN = ("FieldValueForbidden", "Forbidden")
    TOO_LONG = ("FieldValueTooLong", "Too long")
    TOO_MANY = ("FieldValueTooMany", "Too many")
    INTERNAL = ("InternalError", "Internal error")

    @property
    def cause(self) -> str:
        """The value of `reason` in a Status cause."""
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]


OMIT: Final = object()
"""Given as `value` when the message must not show it."""

_VALUELESS: Final = frozenset({Reason.REQUIRED, Reason.FORBIDDEN, Reason.TOO_LONG, Reason.INTERNAL})


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One fault: `path` like ``spec.steps[3].name``, the reason, the value at fault and a sentence about it."""

    path: str
    reason: Reason
    value: Any = OMIT
    detail: str = ""

    @property
    def body(self) -> str:
        """The message without the path."""
        text = self.reason.words
        if self.reason not in _VALUELESS and self.value is not OMIT:
            text += f": {_render(self.value)}"
        return f"{text}: {self.detail}" if self.detail else text

    @property
    def message(self) -> str:
        return f"{self.path}: {self.body}"

    def __str__(self) -> str:
        return self.message


def go_quote(text: str) -> str:
    """`text` in double quotes, escaped as Go's ``%q`` does for what people write."""
    return json.dumps(text, ensure_ascii=False)


def render_number(value: int | float) -> str:
    """A number as Go's ``%v`` prints it: no trailing ``.0``."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return repr(value)


def _render(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return render_number(value)
    if isinstance(value, str):
        return go_quote(value)
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def required(path: str, detail: str = "") -> FieldError:
    return FieldError(path=path, reason=Reason.REQUIRED, detail=detail)


def invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path=path, reason=Reason.INVALID, value=value, detail=detail)


def type_invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path=path, reason=Reason.TYPE_INVALID, value=value, detail=detail)


def not_supported(path: str, value: Any, supported: Iterable[Any]) -> FieldError:
    names = [item if isinstance(item, str) else json.dumps(item, separators=(",", ":")) for item in supported]
    detail = f"supported values: {', '.join(map(go_quote, names))}" if names else ""
    return FieldError(path=path, reason=Reason.NOT_SUPPORTED, value=value, detail=detail)


def duplicate(path: str, value: Any) -> FieldError:
    return FieldError(path=path, reason=Reason.DUPLICATE, value=value)


def forbidden(path: str, detail: str) -> FieldError:
    return FieldError(path=path, reason=Reason.FORBIDDEN, detail=detail)


def too_long(path: str, limit: int) -> FieldError:
    unit = "byte" if limit == 1 else "bytes"
    return FieldError(path=path, reason=Reason.TOO_LONG, detail=f"may not be more than {limit} {unit}")


def too_many(path: str, actual: int, limit: int) -> FieldError:
    unit = "item" if limit == 1 else "items"
    return FieldError(path=path, reason=Reason.TOO_MANY, value=actual, detail=f"must have at most {limit} {unit}")


def describe_invalid(
    *, group: str, kind: str, name: str, errors: Sequence[FieldError]
) -> tuple[str, list[dict[str, str]]]:
    """The message and the causes of the 422 `Status` for these faults.

    The message reads ``Task.tasker.dev "x" is invalid: spec.priority: Invalid value: ...``; several faults stand in
    brackets, each once.
    """
    qualified = f"{kind}.{group}" if group else kind
    messages = list(dict.fromkeys(error.message for error in errors))
    joined = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
    causes = [{"reason": error.reason.cause, "message": error.body, "field": error.path} for error in errors]
    return f"{qualified} {go_quote(name)} is invalid: {joined}", causes
