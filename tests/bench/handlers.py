"""The handlers of the benchmark: they do nothing, so that what is measured is the system around them."""

from __future__ import annotations

from tasker_worker import StepContext, step_handler


@step_handler("bench_first")
async def first(context: StepContext) -> dict[str, int]:
    """Begins a chain."""
    return {"value": 1}


@step_handler("bench_next")
async def following(context: StepContext) -> dict[str, int]:
    """Goes on with a chain."""
    return {"value": 1}
