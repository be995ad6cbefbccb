"""Turns pydantic's findings into this project's: one path as the person wrote it, one reason."""

from __future__ import annotations

from pydantic import ValidationError

_WRONG_TYPE = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}


def first_fault(error: ValidationError, root: str) -> tuple[str, str]:
    """The path and the reason of the first fault, the path beginning with `root`."""
    fault = error.errors(include_url=False, include_input=True)[0]
    path = root
    for part in fault["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    limits = fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return path, "is required"
        case "extra_forbidden":
            return path, "is not a known field"
        case "greater_than_equal":
            return path, f"must be at least {limits['ge']:.15g}"
        case "less_than_equal":
            return path, f"must be at most {limits['le']:.15g}"
        case "string_too_short" if limits["min_length"] == 1:
            return path, "must not be empty"
        case "string_too_long":
            return path, f"is longer than {limits['max_length']} characters"
        case "too_short" if limits["min_length"] == 1:
            return path, "must not be empty"
        case "too_long":
            return path, f"has more than {limits['max_length']} items"
        case "enum" | "literal_error":
            return path, f"must be one of {limits['expected']}"
        case wrong if wrong in _WRONG_TYPE:
            return path, _WRONG_TYPE[wrong]
        case _:
            message = fault["msg"]
            return path, message[:1].lower() + message[1:]


def json_type(value: object) -> str:
    """What JSON calls the value, with its article; of what JSON does not have, the Python type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else type(value).__name__
