"""Turns pydantic's findings into this project's: one path as the person wrote it, one reason."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValidationError, root: str) -> tuple[str, str]:
    """The path and the reason of the first fault, the path beginning with `root`."""
    fault = error.errors(include_url=False, include_input=True)[0]
    path = root
    for part in fault["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    match fault["type"]:
        case "missing":
            return path, "is required"
        case "extra_forbidden":
            return path, "is not a known field"
        case _:
            message = fault["msg"]
            return path, message[:1].lower() + message[1:]
