"""An event loop for a worker, which outlives what its handlers' tasks raise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger("tasker_worker.eventloop")

Result = TypeVar("Result")

_LEFTOVER_SECONDS = 1.0  # for tasks that handlers left behind to end when cancelled


def run_unharmed(work: Coroutine[Any, Any, Result]) -> Result:
    """Like asyncio.run, but a SystemExit or KeyboardInterrupt in some task of a handler's does not end the loop.

    asyncio lets these two through to whoever runs the loop, beside giving them to the task that awaits; so the
    handler's attempt fails as it should, and the loop goes on.
    """
    loop = asyncio.new_event_loop()
    try:
        return _run_through(loop, work)
    finally:
        try:
            _run_through(loop, _end_leftovers())
            _run_through(loop, loop.shutdown_asyncgens())
        finally:
            loop.close()


def _run_through(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Result]) -> Result:
    """Run one coroutine to its end, whatever other tasks raise meanwhile."""
    task = loop.create_task(work)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done():
                raise
            logger.warning("a task that a handler started raised %r; the worker goes on", error)
    return task.result()


async def _end_leftovers() -> None:
    """Cancel what handlers started and did not wait for, without waiting long for those that will not go."""
    leftovers = asyncio.all_tasks() - {asyncio.current_task()}
    for task in leftovers:
        task.cancel()
    if leftovers:
        await asyncio.wait(leftovers, timeout=_LEFTOVER_SECONDS)
