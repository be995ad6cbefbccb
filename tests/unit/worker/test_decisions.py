"""Decisions: what a handler may return, what is recorded of it, and what is refused with a text that helps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.worker_engine import Rig, make_claim, told
from tasker_worker import HandlerRegistry, StepContext, StepHandler, StepResult, inputs
from tasker_worker.claims import DECISION, Claim
from tasker_worker.decision import Decision, DecisionHandler, DecisionMixin, decision_handler
from tasker_worker.outcomes import checked, from_value
from tasker_worker.testing import LocalRunner, make_context, run_handler, run_handler_async

CHOICES = ["auto_approve", "finance_review", "manager_approval"]


def decision(**columns: Any) -> Claim:
    return make_claim("route", **{"step_type": DECISION, "dependents": CHOICES, **columns})


@decision_handler("route")
@inputs("amount")
def route(amount: float = 0) -> Decision:
    if amount < 1000:
        return Decision.route("auto_approve", amount=amount)
    if amount < 5000:
        return Decision.route("manager_approval", amount=amount)
    return Decision.route("manager_approval", "finance_review", amount=amount)


@decision_handler("route_async")
async def route_async(context: StepContext) -> Decision:
    return route(context.get_input("amount", 0))


class Route(DecisionHandler):
    handler_name = "route_class"

    def call(self, context: StepContext) -> Decision:
        amount = context.get_input("amount", 0)
        names = ["auto_approve"] if amount < 1000 else ["manager_approval"]
        return self.decision_success(names if amount < 5000 else [*names, "finance_review"], {"amount": amount})


class RouteAsync(DecisionMixin, StepHandler):
    async def call(self, context: StepContext) -> Decision:
        return Route().call(context)


@pytest.mark.parametrize("handler", [route, route_async, Route, RouteAsync], ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("context", "chosen"),
    [
        pytest.param({"amount": 999.99}, ["auto_approve"], marks=pytest.mark.parity(114)),
        pytest.param({"amount": 1000}, ["manager_approval"], marks=pytest.mark.parity(115)),
        pytest.param({"amount": 4999.99}, ["manager_approval"], marks=pytest.mark.parity(115)),
        pytest.param({"amount": 5000}, ["manager_approval", "finance_review"], marks=pytest.mark.parity(116)),
        pytest.param({}, ["auto_approve"], marks=pytest.mark.parity(117)),
    ],
)
@pytest.mark.parity(94, 95, 119)
def test_a_decision_is_written_as_a_function_or_a_class_and_records_what_it_chose_and_why(
    handler: Any, context: dict[str, Any], chosen: list[str]
) -> None:
    result = run_handler(handler, make_context(dependents=CHOICES, task_context=context))
    assert result.success
    assert result.result == {
        "decision": {"type": "create_steps", "step_names": chosen},
        "routing_context": {"amount": context.get("amount", 0)},
    }


@pytest.mark.parametrize(
    "made",
    [
        Decision.skip("nothing to approve", amount=0),
        DecisionMixin().decision_no_branches("nothing to approve", {"amount": 0}),
    ],
    ids=["function", "method"],
)
@pytest.mark.parity(118)
def test_a_decision_for_no_branch_says_why(made: Decision) -> None:
    assert told(from_value(decision(), made)) == {
        "kind": "decide",
        "result": {
            "decision": {"type": "no_branches", "reason": "nothing to approve"},
            "routing_context": {"amount": 0},
        },
        "branches": "",
    }


def test_what_a_decision_chose_goes_to_the_engine_by_name_each_once_in_the_order_of_choice() -> None:
    outcome = from_value(decision(), Decision.route("manager_approval", "auto_approve", "manager_approval"))
    assert outcome.branches == "manager_approval,auto_approve"
    assert json.loads(outcome.result or "")["decision"]["step_names"] == ["manager_approval", "auto_approve"]
    assert from_value(decision(), DecisionMixin().decision_success("auto_approve")).branches == "auto_approve"


def test_metadata_of_a_decision_is_stored_beside_its_result() -> None:
    made = DecisionMixin().decision_success(["auto_approve"], metadata={"seconds": 1})
    assert told(from_value(decision(), made))["metadata"] == {"seconds": 1}
    none = DecisionMixin().decision_no_branches("no", metadata={"seconds": 2})
    assert told(from_value(decision(), StepResult.succeed(none)))["metadata"] == {"seconds": 2}
    said = StepResult.succeed(made, metadata={"seconds": 3})
    assert told(from_value(decision(), said))["metadata"] == {"seconds": 3}


def test_a_decision_may_fail_as_any_step_may() -> None:
    outcome = from_value(decision(), StepResult.fail("the rules are away", retryable=True))
    assert (outcome.kind, outcome.message, outcome.retryable) == ("fail", "the rules are away", True)


HELP = "return Decision.route(…) with names of steps, or Decision.skip(reason)"


@pytest.mark.parametrize(
    ("claim", "value", "message"),
    [
        (decision(), None, f"step 'route' is a decision, and its handler returned nothing; {HELP}"),
        (decision(), {"a": 1}, f"step 'route' is a decision, and its handler returned a dict; {HELP}"),
        (decision(), StepResult.succeed([]), f"step 'route' is a decision, and its handler returned a list; {HELP}"),
        (
            make_claim("pay"),
            Decision.route("ship"),
            "step 'pay' is of the type 'standard', and its handler returned a Decision;"
            " only a step of the type 'decision' can choose what runs",
        ),
        (
            make_claim("join", step_type="deferred_convergence"),
            StepResult.succeed(Decision.skip("no")),
            "step 'join' is of the type 'deferred_convergence', and its handler returned a Decision;"
            " only a step of the type 'decision' can choose what runs",
        ),
        (
            decision(),
            Decision.route("auto_approve", "autoapprove"),
            "decision 'route' chose 'autoapprove', which does not depend on it;"
            " it can choose 'auto_approve', 'finance_review', 'manager_approval'",
        ),
        (
            decision(dependents=["b", "a"]),
            Decision.route("x", "a", "y"),
            "decision 'route' chose 'x', 'y', which do not depend on it; it can choose 'a', 'b'",
        ),
        (
            decision(dependents=None),
            Decision.route("a"),
            "decision 'route' chose 'a', which does not depend on it; it can choose nothing",
        ),
        (
            decision(dependents=[f"s{number:03}" for number in range(30)]),
            Decision.route("t"),
            "decision 'route' chose 't', which does not depend on it; it can choose "
            + ", ".join(f"'s{number:03}'" for number in range(20))
            + " and 10 more",
        ),
        (
            decision(),
            Decision.route(*(f"s{number}" for number in range(101))),
            "decision 'route' chose 101 steps, the limit is 100",
        ),
        (
            decision(),
            Decision.route("auto_approve", by=object()),
            "result of step 'route' is not JSON: $.routing_context.by is an object",
        ),
    ],
)
def test_what_is_no_decision_of_this_step_fails_for_good_with_what_to_return(
    claim: Claim, value: Any, message: str
) -> None:
    outcome = from_value(claim, value)
    assert (outcome.kind, outcome.message) == ("fail", message)
    assert (outcome.error_type, outcome.retryable) == ("PermanentError", False)


def test_a_hundred_steps_may_be_chosen() -> None:
    names = [f"s{number}" for number in range(100)]
    assert from_value(decision(dependents=names), Decision.route(*names, "s5")).branches == ",".join(names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decision.route(), "names at least one step"),
        (lambda: Decision.route(""), "by their names, not ''"),
        (lambda: Decision.route(["a", "b"]), r"by their names, not \['a', 'b'\]"),  # type: ignore[arg-type]
        (lambda: Decision.skip(" "), "says why, in words, not ' '"),
        (lambda: Decision.skip(None), "says why, in words, not None"),  # type: ignore[arg-type]
        (lambda: DecisionMixin().decision_success([]), "names at least one step"),
        (lambda: DecisionMixin().decision_no_branches(""), "says why, in words, not ''"),
    ],
)
def test_a_decision_that_says_nothing_is_refused_where_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_result_schema_of_a_decision_is_about_what_is_recorded() -> None:
    schema = {"properties": {"routing_context": {"required": ["amount"]}}}
    claim = decision(result_schema=json.dumps(schema))
    fits = from_value(claim, Decision.route("auto_approve", amount=5))
    assert checked(claim, fits) is fits
    outcome = checked(claim, from_value(claim, Decision.route("auto_approve")))
    assert outcome.error_type == "ResultSchemaError"
    assert "at /routing_context: 'amount' is a required property" in (outcome.message or "")


async def test_a_worker_settles_decisions_of_every_kind_of_handler() -> None:
    registry = HandlerRegistry()
    registry.register_all({"route": route, "route_async": route_async, "class": Route, "mixin": RouteAsync})
    async with Rig(registry) as rig:
        claims = [
            make_claim(name, step_type=DECISION, dependents=CHOICES, context='{"amount": 7000}')
            for name in registry.list_handlers()
        ]
        stray = make_claim("route", context='{"amount": 7000}')
        await rig.work_off(*claims, stray)
        assert {rig.engine.settled[claim.fence].branches for claim in claims} == {"manager_approval,finance_review"}
        assert rig.engine.error_of(stray).retryable is False
        assert (rig.metrics.succeeded, rig.metrics.failed) == (4, 1)


APPROVAL = {
    "steps": [
        {"name": "route", "type": "decision", "handler": {"callable": "route"}},
        *(
            {"name": name, "dependsOn": ["route"], "handler": {"callable": "note"}}
            for name in ("auto_approve", "manager_approval", "finance_review")
        ),
        {"name": "file_review", "dependsOn": ["finance_review"], "handler": {"callable": "note"}},
        {
            "name": "finish",
            "type": "deferred_convergence",
            "dependsOn": ["auto_approve", "manager_approval", "file_review"],
            "handler": {"callable": "gather"},
        },
        {"name": "both", "dependsOn": ["auto_approve", "manager_approval"], "handler": {"callable": "note"}},
    ]
}


def approvals() -> HandlerRegistry:
    def note(context: StepContext) -> str:
        return context.step_name

    def gather(context: StepContext) -> list[str]:
        return sorted(context.dependency_results)

    registry = HandlerRegistry()
    registry.register_all({"route": route, "note": note, "gather": gather})
    return registry


@pytest.mark.parametrize(
    ("amount", "ran", "skipped"),
    [
        (1, ["auto_approve"], ["manager_approval", "finance_review", "file_review", "both"]),
        (7000, ["manager_approval", "finance_review", "file_review"], ["auto_approve", "both"]),
    ],
)
@pytest.mark.parity(113, 225)
def test_a_local_run_runs_exactly_what_was_chosen_and_converges_on_it(
    amount: float, ran: list[str], skipped: list[str]
) -> None:
    run = LocalRunner(APPROVAL, approvals()).run({"amount": amount})
    assert run.state == "complete"
    assert sorted(run.skipped) == sorted(skipped)
    assert sorted(run.results) == sorted(["route", *ran, "finish"])
    assert run.results["finish"] == sorted(["route", *ran])


def test_a_local_run_goes_on_when_no_branch_was_chosen() -> None:
    registry = approvals()
    registry.register("route", lambda context: Decision.skip("holiday"), replace=True)
    template = {"steps": [*APPROVAL["steps"], {"name": "beside", "handler": {"callable": "note"}}]}
    run = LocalRunner(template, registry).run()
    assert (run.state, sorted(run.results)) == ("complete", ["beside", "route"])
    assert len(run.skipped) == 6


def test_a_local_run_waits_for_a_decision_that_is_tried_again() -> None:
    runner = LocalRunner(APPROVAL, approvals())
    runner.fail("route")
    run = runner.run({"amount": 1})
    assert (run.state, run.attempts_of("route"), run.attempts_of("auto_approve")) == ("complete", 2, 1)


def test_a_local_run_ends_in_error_with_a_decision_that_names_a_stranger() -> None:
    registry = approvals()
    registry.register("route", lambda context: Decision.route("file_review"), replace=True)
    run = LocalRunner(APPROVAL, registry).run()
    assert (run.state, run.skipped) == ("error", [])
    assert "chose 'file_review', which does not depend on it" in (run.failures[0].result.error_message or "")


async def test_a_context_is_a_decision_s_when_it_has_dependents_or_says_so() -> None:
    assert make_context()._claim.step_type == "standard"
    assert make_context(dependents=[])._claim.step_type == DECISION
    said = make_context(step_type="decision", dependents=iter("ab"))._claim
    assert (said.step_type, said.dependents) == (DECISION, ["a", "b"])
    assert (await run_handler_async(lambda context: Decision.skip("no"), make_context(step_type=DECISION))).success
    assert not (await run_handler_async(lambda context: Decision.skip("no"))).success
