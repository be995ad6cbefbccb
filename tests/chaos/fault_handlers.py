"""Handlers whose behaviour a test steers through files, so that it can wait for signals and not for durations."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tasker_worker import StepContext, step_handler


@step_handler("held")
def held(context: StepContext) -> dict[str, Any]:
    """Says that it runs, in a file named for the worker and the attempt, and waits for the file `go`."""
    folder = Path(context.task_context["folder"])
    name = f"{os.environ['TASKER_WORKER_NAME']}.{context.attempt}"
    (folder / f"{name}.started").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    (folder / f"{name}.ended").touch()
    return {"worker": os.environ["TASKER_WORKER_NAME"], "attempt": context.attempt}


@step_handler("counted")
def counted(context: StepContext) -> dict[str, Any]:
    """Writes one line each time it runs."""
    line = f"{context.step_uuid} {context.attempt}\n"
    with Path(context.task_context["ledger"]).open("a") as ledger:
        ledger.write(line)
    time.sleep(0.002)
    return {"attempt": context.attempt}
