"""A diamond: a number is squared, two branches work on the square side by side, and their results are averaged.

Results pass between the steps as a model: the SDK checks what a step gets against it. All four only compute, so they
may safely run twice.
"""

from pydantic import BaseModel

from tasker_worker import depends_on, inputs, step_handler


class Result(BaseModel):
    """What each step gives."""

    value: int | float


@step_handler("square")
@inputs("value")
def square(value: int | float) -> Result:
    """The top: the task's `value`, squared."""
    return Result(value=value * value)


@step_handler("add_twenty_five")
@depends_on(squared="square")
def add_twenty_five(squared: Result) -> Result:
    """The left branch."""
    return Result(value=squared.value + 25)


@step_handler("double")
@depends_on(squared="square")
async def double(squared: Result) -> Result:
    """The right branch; a handler may be async as well."""
    return Result(value=squared.value * 2)


@step_handler("average")
@depends_on(left="add_twenty_five", right="double")
def average(left: Result, right: Result) -> Result:
    """The bottom: it starts when both branches are done."""
    return Result(value=(left.value + right.value) / 2)
