"""Handlers whose behaviour a test steers through files, so that it can wait for signals and not for durations."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from tasker_worker import StepContext, step_handler


@step_handler("held")
async def held(context: StepContext) -> dict[str, Any]:
    """Says that it runs, in a file named for the worker and the attempt, and waits until the file `go` is there."""
    folder = Path(context.task_context["folder"])
    name = f"{os.environ['TASKER_WORKER_NAME']}.{context.attempt}"
    (folder / f"{name}.started").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.01)
    (folder / f"{name}.ended").touch()
    return {"worker": os.environ["TASKER_WORKER_NAME"], "attempt": context.attempt}


@step_handler("counted")
async def counted(context: StepContext) -> dict[str, Any]:
    """Writes one line each time it runs, then lets the loop turn."""
    line = f"{context.step_uuid} {context.attempt}\n"
    with Path(context.task_context["ledger"]).open("a") as ledger:
        ledger.write(line)
    await asyncio.sleep(0.002)
    return {"attempt": context.attempt}
