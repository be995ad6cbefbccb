"""A step's `when`: whether its handler is to be called at all.

The library that evaluates expressions stops every thread of a process for as long as it takes, the one that renews the
leases too. So what an expression can cost decides where it is judged: small ones over little data on the event loop, in
microseconds; those that take some 50 ms at most in a thread, so that the loop has its turns between them; all others by
another process, within a time limit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from . import cel_evaluation
from .cel_evaluation import Faulty
from .errors import WhenError

MAX_CHARACTERS = 4096
"""Of an expression."""

_SECONDS = 10.0  # for another process to judge one
_ON_THE_LOOP = 16 * 1024  # characters of JSON that the library is given in about a millisecond
_IN_THIS_PROCESS = 512 * 1024  # and in some 50
# The same for an expression that goes through a list, in characters of data times characters of the expression.
_LIST_ON_THE_LOOP = 256 * 1024
_LIST_IN_THIS_PROCESS = 4 * 1024 * 1024
_LOOPS = re.compile(r"\.\s*(?:all|exists|exists_?one|map|filter|bind|sort\w*|transform\w*)\s*\(", re.IGNORECASE)


def is_quick(condition: str, context: str, results: str) -> bool:
    """Whether `judge` takes a few milliseconds at most, so that it may be called from the event loop."""
    # Importing the library takes a fifth of a second.
    return "cel" in sys.modules and _costs_at_most(_ON_THE_LOOP, _LIST_ON_THE_LOOP, condition, context, results)


def _costs_at_most(data: int, list_times_condition: int, condition: str, context: str, results: str) -> bool:
    characters = len(context) + len(results)
    loops = len(_LOOPS.findall(condition))
    if loops == 0:
        return characters <= data
    return loops == 1 and (characters + len(condition)) * len(condition) <= list_times_condition


def judge(step_name: str, condition: str, context: str, results: str) -> bool:
    """Whether the handler of a step is to be called; `context` and `results` are the JSON texts of the two variables.

    Raises WhenError when the condition has no truth value, and OSError when the system has no process to judge it.
    """
    try:
        if len(condition) > MAX_CHARACTERS:
            raise Faulty(f"it has {len(condition)} characters, the limit is {MAX_CHARACTERS}")
        if _costs_at_most(_IN_THIS_PROCESS, _LIST_IN_THIS_PROCESS, condition, context, results):
            return cel_evaluation.evaluate(condition, context, results)
        return _judge_elsewhere(condition, context, results)
    except Faulty as fault:
        shown = condition if len(condition) <= MAX_CHARACTERS else condition[: MAX_CHARACTERS - 1] + "…"
        raise WhenError(f"the condition {shown!r} of step {step_name!r} cannot be judged: {fault}") from None


def _judge_elsewhere(condition: str, context: str, results: str) -> bool:
    question = f'{{"condition":{json.dumps(condition)},"context":{context},"results":{results}}}'
    try:
        process = subprocess.run(
            # Without its own folder in the path of modules: names in it are those of the standard library.
            [sys.executable, "-P", str(Path(cel_evaluation.__file__))],
            input=question.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Faulty(f"it takes longer than {_SECONDS:g} s") from None
    if process.returncode != 0:
        raise Faulty(f"its process ended with the code {process.returncode}")
    answer = json.loads(process.stdout)
    if "fault" in answer:
        raise Faulty(answer["fault"])
    return bool(answer["value"])
