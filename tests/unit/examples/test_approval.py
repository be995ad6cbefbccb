"""The approval example: each route in memory, and what its handlers refuse."""

from __future__ import annotations

from types import ModuleType

import pytest

from support.examples import load_handlers, load_manifests, load_template
from tasker_worker import HandlerRegistry
from tasker_worker.testing import LocalRun, LocalRunner, make_context, run_handler

NAME = "04-approval"
APPROVALS = ("auto_approve", "manager_approval", "finance_review")


@pytest.fixture(scope="module")
def handlers() -> ModuleType:
    return load_handlers(NAME)


def run(handlers: ModuleType, context: dict[str, object]) -> LocalRun:
    registry = HandlerRegistry()
    registry.discover(handlers)
    return LocalRunner(load_template(NAME), registry).run(context)


@pytest.mark.parametrize(
    ("context", "ran", "approved_by"),
    [
        pytest.param({}, ["auto_approve"], ["rules"], marks=pytest.mark.parity(117)),
        pytest.param({"amount": 999.99}, ["auto_approve"], ["rules"], marks=pytest.mark.parity(114)),
        pytest.param({"amount": 1000}, ["manager_approval"], ["manager"], marks=pytest.mark.parity(115)),
        pytest.param({"amount": 4999.99}, ["manager_approval"], ["manager"], marks=pytest.mark.parity(115)),
        pytest.param(
            {"amount": 5000},
            ["manager_approval", "finance_review"],
            ["manager", "finance"],
            marks=pytest.mark.parity(116),
        ),
    ],
)
def test_a_request_is_approved_by_those_whom_its_amount_asks_for(
    handlers: ModuleType, context: dict[str, object], ran: list[str], approved_by: list[str]
) -> None:
    result = run(handlers, context)
    assert result.state == "complete"
    assert [name for name in APPROVALS if name in result.results] == ran
    assert sorted(result.skipped) == sorted(set(APPROVALS) - set(ran))
    assert result.results["route_request"]["decision"] == {"type": "create_steps", "step_names": ran}
    assert result.results["route_request"]["routing_context"]["amount"] == context.get("amount", 0)
    assert result.results["finalize_approval"] == {
        "amount": context.get("amount", 0),
        "purpose": "unsaid",
        "approved_by": approved_by,
    }


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"amount": -1}, "an amount is 0 or more, not -1"),
        ({"amount": "much"}, "step 'validate_request': input 'amount' does not fit"),
    ],
)
def test_a_request_that_is_none_fails_before_anybody_decides(
    handlers: ModuleType, context: dict[str, object], message: str
) -> None:
    result = run(handlers, context)
    assert (result.state, [attempt.step for attempt in result.attempts]) == ("error", ["validate_request"])
    assert (result.failures[0].result.error_message or "").startswith(message)


def test_the_tasks_end_in_memory_as_they_say(handlers: ModuleType) -> None:
    for task in load_manifests(NAME, "task.yaml"):
        expected = task["metadata"]["annotations"]["tasker.dev/expected-state"]
        assert run(handlers, task["spec"]["context"]).state == expected


def test_a_branch_that_fails_ends_the_request_without_an_approval(handlers: ModuleType) -> None:
    registry = HandlerRegistry()
    registry.discover(handlers)
    runner = LocalRunner(load_template(NAME), registry)
    runner.fail("finance_review", times=3)
    result = runner.run({"amount": 9000})
    assert result.state == "error"
    assert "finalize_approval" not in result.results


def test_one_approval_alone(handlers: ModuleType) -> None:
    context = make_context(
        dependency_results={"validate_request": {"amount": 5, "purpose": "tea"}}, step_config={"approver": "rules"}
    )
    assert run_handler(handlers.approve, context).result == {"approved_by": "rules"}
