"""Evaluates CEL expressions over `context` and `results`. Used by `conditions`, and run by it as a program of its own.

The library is imported by the first expression, for most workers never need it. It holds
the interpreter's lock for as long as an expression runs, threads or not, so that what may take long runs in another
process: as a program, this module reads ``{"condition": …, "context": …, "results": …}`` from standard input and writes
``{"value": …}`` or ``{"fault": …}``. It imports nothing of the package, which would make that process slow to start.

Numbers are what JSON wrote: 1500 is an integer, 1500.5 and 1500.0 are doubles. The library compares the two kinds by
value (``1500 > 1000.5``, ``1500 == 1500.0``), but does not reckon with both at once: ``1500 * 1.1`` is an error. The
SDK's README tells people so.
"""

from __future__ import annotations

import json
import re
import sys
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cel

_FAULT_CHARACTERS = 1000
_PROGRAMS = 256  # compiled and kept, the last used ones; each a few KB


class Faulty(Exception):
    """The expression has no truth value; the text says why."""


def load_library() -> ModuleType:
    """The CEL library, without the command line that it imports with itself.

    That needs nine more distributions for colours and prompts, 25 MB and 0.15 s to import: images do not have them.
    """
    sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
    import cel

    return cel


@lru_cache(maxsize=_PROGRAMS)
def _program(condition: str) -> cel.Program:
    program: cel.Program = load_library().compile(condition)
    return program


def evaluate(condition: str, context: str, results: str) -> bool:
    """Whether a condition holds, given the JSON texts of its two variables. Raises Faulty when that cannot be said."""
    try:
        program = _program(condition)
        used = program.variables()
        texts = {"context": context, "results": results}
        value = program.execute({name: json.loads(text) for name, text in texts.items() if name in used})
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library's core is no Exception
        raise Faulty(_reason(error)) from None
    if not isinstance(value, bool):
        raise Faulty(f"its value is no boolean but {_shown(value)}")
    return value


def _reason(error: BaseException) -> str:
    match error:
        case KeyError():
            text = f"there is no {error.args[0]!r}"
        case ZeroDivisionError():
            text = "division by zero"
        case ValueError():
            # The library repeats the expression before and behind what the parser says.
            text = re.sub(r"^Failed to parse expression .*?: (?=ERROR)", "", str(error), flags=re.DOTALL)
            text = text.split("\n|", 1)[0]
        case _:
            text = str(error) or type(error).__name__
    return text if len(text) <= _FAULT_CHARACTERS else text[: _FAULT_CHARACTERS - 1] + "…"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def main() -> None:
    question = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {
            "value": evaluate(question["condition"], json.dumps(question["context"]), json.dumps(question["results"]))
        }
    except Faulty as fault:
        answer = {"fault": str(fault)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
