"""Two steps, one after the other: a number is doubled, then ten is added.

Both may safely run twice: they only compute. A step can run more than once whenever a worker dies after the work and
before its result is recorded, so this is what every handler has to be able to stand.
"""

from tasker_worker import StepContext, depends_on, inputs, step_handler

Number = int | float


@step_handler("double_value")
@inputs("value")
def double_value(value: Number) -> dict[str, Number]:
    """The task's `value`, doubled. A task without one, or with a text in its place, fails at once."""
    return {"value": value * 2}


@step_handler("add_constant")
@depends_on(doubled="double_value")
def add_constant(doubled: dict[str, Number], context: StepContext) -> dict[str, Number]:
    """What the step before gave, plus the template's `constant`."""
    return {"value": doubled["value"] + context.get_config("constant", 10)}
