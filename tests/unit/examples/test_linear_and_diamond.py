"""The first two examples compute what they say, for any number, without a worker or a database."""

from __future__ import annotations

import pytest

from support.examples import load_handlers, load_template
from tasker_worker import HandlerRegistry
from tasker_worker.testing import LocalRun, LocalRunner


def run(name: str, context: dict[str, object]) -> LocalRun:
    registry = HandlerRegistry()
    registry.discover(load_handlers(name))
    return LocalRunner(load_template(name), registry).run(context)


@pytest.mark.parity(185)
@pytest.mark.parametrize("value", [0, 1, -7, 16, 2.5])
def test_linear_gives_twice_the_value_plus_ten(value: float) -> None:
    result = run("01-linear", {"value": value})
    assert result.state == "complete"
    assert result.results["add_constant"] == {"value": 2 * value + 10}
    assert [attempt.step for attempt in result.attempts] == ["double_value", "add_constant"]


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({}, "step 'double_value': input 'value' is missing"),
        ({"value": "sixteen"}, "step 'double_value': input 'value' does not fit"),
    ],
)
def test_linear_refuses_what_is_no_number_after_one_attempt(context: dict[str, object], message: str) -> None:
    result = run("01-linear", context)
    assert result.state == "error"
    (attempt,) = result.attempts
    assert attempt.result.error_type == "ValidationError"
    assert attempt.result.error_message is not None
    assert attempt.result.error_message.startswith(message)


@pytest.mark.parity(186)
@pytest.mark.parametrize("value", [0, 6, -3, 1.5])
def test_diamond_averages_both_branches(value: float) -> None:
    result = run("02-diamond", {"value": value})
    assert result.state == "complete"
    assert result.results["average"] == {"value": ((value**2 + 25) + 2 * value**2) / 2}


def test_the_end_of_the_diamond_waits_for_the_slower_branch() -> None:
    registry = HandlerRegistry()
    registry.discover(load_handlers("02-diamond"))
    runner = LocalRunner(load_template("02-diamond"), registry)
    runner.fail("double", times=2)
    result = runner.run({"value": 6})
    assert result.state == "complete"
    assert result.attempts_of("double") == 3
    assert [attempt.step for attempt in result.attempts].count("average") == 1
    assert result.attempts[-1].step == "average"
