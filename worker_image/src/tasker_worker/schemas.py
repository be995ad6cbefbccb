"""A step's `resultSchema`: whether a result is what the template says it is, by JSON Schema, draft 2020-12.

The library is imported by the first schema: it takes a quarter of a second, and most workers never need it. Nothing is
fetched: a reference leads into the schema itself or to the drafts' own schemas. `format` is an annotation, as the draft
has it.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .jsontext import clean_text

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_VALIDATORS = 256  # kept, the last used ones
_QUICK_CHARACTERS = 4096  # of a result's JSON text: validated in some milliseconds by any ordinary schema
_REASON_CHARACTERS = 1000


def is_quick(result: str) -> bool:
    """Whether `fault_of_result` takes some milliseconds at most, so that it may be called from the event loop."""
    return len(result) <= _QUICK_CHARACTERS and "jsonschema" in sys.modules


def fault_of_result(schema: str, result: str) -> str | None:
    """What is wrong with a result, to be put behind whose it is; both are JSON texts. None: it fits the schema."""
    from jsonschema.exceptions import SchemaError, best_match
    from referencing.exceptions import Unresolvable

    try:
        validator = _validator(schema)
        # The first fault, and of alternatives the one that comes nearest: a list of all may be as long as the result.
        first = next(validator.iter_errors(json.loads(result)), None)
    except SchemaError as error:
        return f"cannot be validated: its schema is none at {_pointer(error.absolute_path)}: {_reason(error.message)}"
    except Unresolvable as error:
        return f"cannot be validated: a reference of its schema leads nowhere: {_reason(str(error))}"
    except RecursionError:
        return "cannot be validated: its schema refers to itself without end"
    if first is None:
        return None
    fault = best_match([first])
    return f"does not fit its schema: at {_pointer(fault.absolute_path)}: {_reason(fault.message)}"


@lru_cache(maxsize=_VALIDATORS)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator
    from jsonschema_specifications import REGISTRY

    parsed: Any = json.loads(schema)
    Draft202012Validator.check_schema(parsed)
    return Draft202012Validator(parsed, registry=REGISTRY)


def _pointer(path: Any) -> str:
    """A JSON pointer, with a word for the whole document, whose pointer is empty."""
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    return "".join(f"/{part}" for part in parts) or "the root"


def _reason(text: str) -> str:
    return clean_text(text, _REASON_CHARACTERS)
