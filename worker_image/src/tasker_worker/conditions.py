"""A step's `when`: whether its handler is to be called at all.

Small expressions over little data are judged where they stand, in microseconds. All others are judged by another
process, within a time limit: the library that evaluates them stops every thread of a process for as long as it takes,
the one that renews the leases too.
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
_QUICK_DATA = 64 * 1024  # characters of JSON that are handed to the library in some milliseconds
_QUICK_LOOP = 1024 * 1024  # characters of data times those of the expression, when it goes through a list: some 50 ms
_LOOPS = re.compile(r"\.\s*(?:all|exists|exists_?one|map|filter|bind|sort\w*|transform\w*)\s*\(", re.IGNORECASE)


def is_quick(condition: str, context: str, results: str) -> bool:
    """Whether `judge` takes some milliseconds at most, so that it may be called from the event loop."""
    # Importing the library takes a fifth of a second.
    return "cel" in sys.modules and not _may_take_long(condition, context, results)


def _may_take_long(condition: str, context: str, results: str) -> bool:
    characters = len(context) + len(results)
    loops = len(_LOOPS.findall(condition))
    if loops == 0:
        return characters > _QUICK_DATA
    return loops > 1 or (characters + len(condition)) * len(condition) > _QUICK_LOOP


def judge(step_name: str, condition: str, context: str, results: str) -> bool:
    """Whether the handler of a step is to be called; `context` and `results` are the JSON texts of the two variables.

    Raises WhenError when the condition has no truth value, and OSError when the system has no process to judge it.
    """
    try:
        if len(condition) > MAX_CHARACTERS:
            raise Faulty(f"it has {len(condition)} characters, the limit is {MAX_CHARACTERS}")
        if _may_take_long(condition, context, results):
            return _judge_elsewhere(condition, context, results)
        return cel_evaluation.evaluate(condition, context, results)
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
