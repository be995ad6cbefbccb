"""Conditions of steps: whether the text of a `when` can be evaluated with what a worker gives it.

Called by `parse_template_spec`. Texts are only parsed here; workers evaluate them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CONDITION_VARIABLES = ("context", "results")
"""The run's context, and the results of the steps before this one, by their names."""

_REASON_LENGTH = 256
_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
"""Names that are values of CEL itself: ``type(context.amount) == int``."""

_MACROS = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_TOKEN = re.compile(
    r"""//[^\n]*
      | [bB]?[rR][bB]?(?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"]*" | '[^']*' )
      | [bB]?(?: \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3} | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' )
      | \d[\w.]*
      | (?P<word>[A-Za-z_]\w*)
      | (?P<mark>\S)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


def condition_fault(text: str) -> str | None:
    """Why `text` cannot be a step's condition, on one line; None when it can."""
    # A step with a condition is the exception: the library is loaded for the first.
    from tasker_worker.cel_evaluation import load_library

    try:
        read = frozenset(load_library().compile(text).variables())
    except ValueError as error:
        return f"is not CEL: {_first_reason(str(error), text)}"
    known = _TYPES.union(CONDITION_VARIABLES)
    for name in (*sorted(name for name in read if name.startswith(".")), *_free_names(text)):
        if name in read and name not in known:
            return f"reads {name!r}; there are only {' and '.join(map(repr, CONDITION_VARIABLES))}"
    return None


def _first_reason(error: str, text: str) -> str:
    """The first of the parser's findings, without the drawing below it."""
    said = error.removeprefix(f"Failed to parse expression '{text}': ")
    found = re.match(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)", said)
    reason = f"line {found[1]}, column {found[2]}: {found[3]}" if found else said.partition("\n")[0]
    return reason if len(reason) <= _REASON_LENGTH else f"{reason[: _REASON_LENGTH - 1]}…"


def _free_names(text: str) -> Iterator[str]:
    """The names in a well-formed `text` that no macro binds: ``y`` in ``results.all(x, x > y)``.

    The library lists what a macro binds among the variables, so where names stand has to be looked at here. Names of
    functions and of fields are none.
    """
    found = [match for match in _TOKEN.finditer(text) if not match[0].startswith("//")]
    parts = ["", "", *(match["word"] or match["mark"] or "" for match in found), "", ""]  # each has neighbours
    bound: list[str] = []  # for each parenthesis that is open, what it binds, or nothing
    for place in range(2, len(parts) - 2):
        part = parts[place]
        if part == "(":
            is_macro = parts[place - 2] == "." and parts[place - 1] in _MACROS and parts[place + 2] == ","
            bound.append(parts[place + 1] if is_macro else "")
        elif part == ")":
            bound.pop()
        elif part.isidentifier() and parts[place - 1] != "." and parts[place + 1] != "(" and part not in bound:
            yield part
