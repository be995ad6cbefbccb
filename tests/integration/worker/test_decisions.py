"""Decisions, conditions, result schemas and large results: a worker in this process against a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from support.engine import NAMESPACE, Lab, step
from support.waiting import eventually_async
from tasker_worker import HandlerRegistry, StepContext, Worker
from tasker_worker.decision import Decision


@asynccontextmanager
async def worker_on(url: str, **handlers: Any) -> AsyncIterator[Worker]:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    async with Worker(
        registry, database_url=url, namespace=NAMESPACE, name="w-1", web_enabled=False, shutdown_grace_seconds=10
    ) as worker:
        yield worker


Ended = Callable[..., Awaitable[dict[str, dict[str, Any]]]]


@pytest_asyncio.fixture
async def ended(lab: Lab) -> Ended:
    """Waits until a run ended in a state (complete); gives its steps."""

    async def wait(task: UUID, state: str = "complete") -> dict[str, dict[str, Any]]:
        async def there() -> bool:
            return await lab.state(task) == state

        await eventually_async(there, timeout=20, what=f"{task} ended as {state}")
        return await lab.steps(task)

    return wait


async def named(context: StepContext) -> str:
    return context.step_name


def route(context: StepContext) -> Decision:
    chosen = context.get_input("chosen", [])
    return Decision.route(*chosen, said=context.attempt) if chosen else Decision.skip("nobody was chosen")


async def seen(context: StepContext) -> list[str]:
    return sorted(context.dependency_results)


BRANCHES = (
    step("route", callable="route", type="decision"),
    step("left", "route", callable="named"),
    step("right", "route", callable="named"),
    step("behind_left", "left", callable="named"),
    step("join", "behind_left", "right", callable="seen", type="deferred_convergence"),
)


@pytest.mark.parametrize(
    ("chosen", "skipped", "joined"),
    [
        (["left"], {"right"}, ["behind_left", "left", "route"]),
        (["right", "right"], {"left", "behind_left"}, ["right", "route"]),
        (["left", "right"], set(), ["behind_left", "left", "right", "route"]),
    ],
    ids=["left", "right", "both"],
)
@pytest.mark.parity(113, 119)
async def test_a_decision_runs_exactly_what_it_chose(
    lab: Lab, ended: Ended, chosen: list[str], skipped: set[str], joined: list[str]
) -> None:
    task = await lab.run(*BRANCHES, context={"chosen": chosen})
    async with worker_on(lab.url, named=named, route=route, seen=seen):
        steps = await ended(task)
    assert {name for name, row in steps.items() if row["state"] == "skipped"} == skipped
    assert steps["join"]["result"] == joined
    assert steps["route"]["result"] == {
        "decision": {"type": "create_steps", "step_names": list(dict.fromkeys(chosen))},
        "routing_context": {"said": 1},
    }


@pytest.mark.parity(118)
async def test_a_run_goes_on_when_no_branch_was_chosen(lab: Lab, ended: Ended) -> None:
    task = await lab.run(*BRANCHES, step("beside", callable="named"))
    async with worker_on(lab.url, named=named, route=route, seen=seen):
        steps = await ended(task)
    assert {name for name, row in steps.items() if row["state"] == "complete"} == {"route", "beside"}
    assert steps["route"]["result"]["decision"] == {"type": "no_branches", "reason": "nobody was chosen"}


async def test_a_decision_for_a_stranger_fails_its_run(lab: Lab, ended: Ended) -> None:
    task = await lab.run(*BRANCHES, context={"chosen": ["behind_left"]})
    async with worker_on(lab.url, named=named, route=route, seen=seen):
        steps = await ended(task, "error")
    assert steps["route"]["error"]["message"] == (
        "decision 'route' chose 'behind_left', which does not depend on it; it can choose 'left', 'right'"
    )


async def test_a_condition_that_is_false_skips_its_step_and_gives_the_attempt_back(lab: Lab, ended: Ended) -> None:
    task = await lab.run(
        step("check", callable="named"),
        step("large", "check", callable="named", when="context.amount > 1000"),
        step("small", "check", callable="named", when="context.amount <= 1000 && results.check == 'check'"),
        step("after_large", "large", callable="named"),
        context={"amount": 7.5},
    )
    async with worker_on(lab.url, named=named) as worker:
        steps = await ended(task)
        assert worker.metrics.skipped == 1
    assert {name: row["state"] for name, row in steps.items()} == {
        "check": "complete",
        "large": "skipped",
        "small": "complete",
        "after_large": "skipped",
    }
    assert (steps["large"]["attempts"], steps["large"]["result"]) == (0, None)


async def test_a_condition_that_cannot_be_judged_and_a_result_against_its_schema_are_final(
    lab: Lab, ended: Ended
) -> None:
    task = await lab.run(
        step("unclear", callable="named", when="context.missing > 1"),
        step("misfit", callable="named", resultSchema={"type": "object"}),
        step("fits", callable="named", resultSchema={"const": "fits"}),
    )
    async with worker_on(lab.url, named=named):
        steps = await ended(task, "error")
    assert (steps["unclear"]["error"]["error_type"], steps["unclear"]["attempts"]) == ("WhenError", 1)
    assert (steps["misfit"]["error"]["error_type"], steps["misfit"]["attempts"]) == ("ResultSchemaError", 1)
    assert steps["fits"]["result"] == "fits"


async def test_results_that_are_too_large_for_a_claim_are_there_for_the_handler(lab: Lab, ended: Ended) -> None:
    """Eleven of nearly a MiB each: more than the eight that a claim brings."""

    async def large(context: StepContext) -> str:
        return context.step_name[-1] * 1_000_000

    async def sizes(context: StepContext) -> dict[str, int]:
        return {name: len(result) for name, result in context.dependency_results.items()}

    names = [f"part_{letter}" for letter in "abcdefghijk"]
    task = await lab.run(*(step(name, callable="large") for name in names), step("all", *names, callable="sizes"))
    async with worker_on(lab.url, large=large, sizes=sizes):
        steps = await ended(task)
    assert steps["all"]["result"] == dict.fromkeys(names, 1_000_000)
