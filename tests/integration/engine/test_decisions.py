"""Decisions, conditions, skipping and deferred convergences: which steps run, and which are left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from support.engine import Claim, Lab, Outcome, SimulatedWorker, decision, failure, skip, step, success
from support.invariants import check_invariants
from tasker.model.graph import topological_order

APPROVAL = [
    step("validate"),
    step("route", "validate", type="decision"),
    step("automatic", "route"),
    step("manager", "route"),
    step("finance", "route"),
    step("notify", "finance"),
    step("finish", "automatic", "manager", "finance", type="deferred_convergence"),
]


async def drive(worker: SimulatedWorker, answer: Callable[[Claim], Outcome], *, claim_limit: int = 100) -> list[str]:
    """Answers everything that can be claimed until nothing is left; the names of the steps, in order."""
    done: list[str] = []
    claims = await worker.claim(claim_limit)
    while claims:
        done += [claim.step for claim in claims]
        claims = (await worker.settle(*map(answer, claims), claim_limit=claim_limit)).claims
        claims = claims or await worker.claim(claim_limit)
    return done


def choosing(**branches: tuple[str, ...]) -> Callable[[Claim], Outcome]:
    """Decisions choose these; every other step is done."""

    def answer(claim: Claim) -> Outcome:
        if claim.step in branches:
            return decision(claim, *branches[claim.step])
        return success(claim, claim.step)

    return answer


async def skipped(lab: Lab, task: UUID) -> set[str]:
    return {name for name, state in (await lab.step_states(task)).items() if state == "skipped"}


async def test_what_a_decision_does_not_choose_is_skipped_with_all_that_only_it_leads_to(lab: Lab) -> None:
    task = await lab.run(*APPROVAL)
    worker = await lab.worker()
    assert await drive(worker, choosing(route=("manager",))) == ["validate", "route", "manager", "finish"]
    assert await skipped(lab, task) == {"automatic", "finance", "notify"}
    assert await lab.state(task) == "complete"
    counts = (await lab.engine.tasks.read(task)).counts
    assert (counts.total, counts.complete, counts.skipped, counts.pending) == (7, 4, 3, 0)
    assert await lab.step_log(task, "notify") == ["pending -skip-> skipped"]
    assert await check_invariants(lab.connection) == []


async def test_a_convergence_gets_the_results_of_what_ran(lab: Lab) -> None:
    await lab.run(*APPROVAL)
    worker = await lab.worker()
    await worker.settle(success(await worker.claim_one()))
    settlement = await worker.settle(decision(await worker.claim_one(), "manager", "finance"), claim_limit=2)
    manager, finance = settlement.claims
    assert (await worker.settle(success(manager, 1), claim_limit=1)).claims == [], "finance has not ended"
    last, notify = (await worker.settle(success(finance, 2), claim_limit=2)).claims[::-1]
    assert (notify.step, last.step) == ("notify", "finish")
    results = last.row["dependency_results"]
    assert {name: results.get(name) for name in ("automatic", "manager", "finance")} == {
        "automatic": None,
        "manager": 1,
        "finance": 2,
    }
    assert "automatic" not in results


async def test_the_claim_of_a_decision_tells_what_it_may_choose(lab: Lab) -> None:
    await lab.run(*APPROVAL)
    worker = await lab.worker()
    first = await worker.claim_one()
    assert (first.row["step_type"], first.row["dependents"]) == ("standard", None)
    (route,) = (await worker.settle(success(first), claim_limit=1)).claims
    assert (route.row["step_type"], route.row["dependents"]) == ("decision", ["automatic", "manager", "finance"])


@pytest.mark.parametrize("how", ["chooses none", "is completed"])
async def test_a_decision_without_branches_skips_them_all_and_the_run_goes_on(lab: Lab, how: str) -> None:
    task = await lab.run(*APPROVAL, step("beside", "validate"))
    worker = await lab.worker()

    def answer(claim: Claim) -> Outcome:
        return decision(claim) if claim.step == "route" and how == "chooses none" else success(claim)

    assert sorted(await drive(worker, answer)) == ["beside", "route", "validate"]
    assert await skipped(lab, task) == {"automatic", "manager", "finance", "notify", "finish"}
    assert await lab.state(task) == "complete"
    assert (await lab.engine.tasks.read(task)).leaf_results == {"beside": None}


async def test_a_run_of_which_every_last_step_was_skipped_has_an_empty_result(lab: Lab) -> None:
    task = await lab.run(step("route", type="decision"), step("a", "route"), step("b", "route"))
    await drive(await lab.worker(), choosing(route=()))
    summary = await lab.engine.tasks.read(task)
    assert (summary.leaf_results, summary.leaf_results_truncated) == ({}, False)


@pytest.mark.parametrize(
    ("name", "branches", "message"),
    [
        ("route", ("manager", "notify"), "decision route chose notify, which does not depend on it directly"),
        ("route", ("nobody",), "decision route chose nobody, which does not depend on it directly"),
        ("validate", ("route",), "step validate is no decision"),
        ("route", tuple(f"s{n}" for n in range(101)), "decision route chose 101 steps; 100 are the most"),
    ],
)
async def test_a_choice_that_cannot_be_is_the_failure_of_the_step(
    lab: Lab, name: str, branches: tuple[str, ...], message: str
) -> None:
    task = await lab.run(*APPROVAL)
    worker = await lab.worker()
    assert (await drive(worker, choosing(**{name: branches})))[-1] == name
    assert await lab.state(task) == "error"
    summary = await lab.engine.tasks.read(task)
    (failed,) = summary.failures
    assert (failed.step, failed.error_type, failed.message, failed.final) == (name, "DecisionError", message, True)
    assert await skipped(lab, task) == set()
    assert await check_invariants(lab.connection) == []


async def test_one_wrong_choice_among_the_outcomes_of_a_call_is_that_steps_alone(lab: Lab) -> None:
    await lab.template(step("route", type="decision"), step("automatic", "route"), step("other"), name="short")
    tasks = [await lab.submit("short") for _ in range(2)]
    worker = await lab.worker()
    claims = await worker.claim()
    by_step = sorted(claims, key=lambda claim: (claim.task_uuid != tasks[0], claim.step))
    good_other, good, bad_other, bad = by_step
    await worker.settle(
        failure(good_other, "later"), decision(good, "automatic"), success(bad_other, 7), decision(bad, "elsewhere")
    )
    assert await lab.step_states(tasks[0]) == {
        "route": "complete",
        "automatic": "enqueued",
        "other": "waiting_for_retry",
    }
    assert await lab.step_states(tasks[1]) == {"route": "error", "automatic": "pending", "other": "complete"}


async def test_naming_a_branch_twice_chooses_it_once(lab: Lab) -> None:
    task = await lab.run(*APPROVAL)
    await drive(await lab.worker(), choosing(route=("finance", "finance")))
    assert await skipped(lab, task) == {"automatic", "manager"}


async def test_a_step_whose_condition_is_false_is_skipped_and_its_attempt_does_not_count(lab: Lab) -> None:
    task = await lab.run(
        step("a"),
        step("b", "a", when="context.big"),
        step("c", "b"),
        step("d", "c"),
        step("e", "a"),
        step("f", "d", "e"),
    )
    worker = await lab.worker()
    (b, e) = (await worker.settle(success(await worker.claim_one()), claim_limit=2)).claims
    assert (b.row["condition"], e.row["condition"]) == ("context.big", None)
    assert (await worker.settle(skip(b), claim_limit=5)).claims == []
    assert await lab.step_states(task) == {
        "a": "complete",
        "b": "skipped",
        "c": "skipped",
        "d": "skipped",
        "e": "in_progress",
        "f": "pending",
    }
    rows = await lab.steps(task)
    assert (rows["b"]["attempts"], rows["f"]["open_edges"], rows["f"]["void_edges"]) == (0, 1, 1)
    assert await lab.step_log(task, "b") == [
        "pending -enqueue-> enqueued",
        "enqueued -start-> in_progress",
        "in_progress -skip-> skipped",
    ]
    settlement = await worker.settle(success(e), claim_limit=5)
    assert (settlement.claims, settlement.tasks_finished) == ([], 1), "a step after one that was skipped does not run"
    assert await skipped(lab, task) == {"b", "c", "d", "f"}
    assert await check_invariants(lab.connection) == []


async def test_a_decision_that_is_skipped_skips_its_branches(lab: Lab) -> None:
    task = await lab.run(
        step("outer", type="decision"),
        step("inner", "outer", type="decision"),
        step("plain", "outer"),
        step("deep", "inner"),
        step("end", "deep", "plain", type="deferred_convergence"),
    )
    assert await drive(await lab.worker(), choosing(outer=("plain",))) == ["outer", "plain", "end"]
    assert await skipped(lab, task) == {"inner", "deep"}


async def test_branches_of_a_nested_decision_stay_open_until_it_has_decided(lab: Lab) -> None:
    task = await lab.run(
        step("outer", type="decision"),
        step("inner", "outer", type="decision"),
        step("left", "inner"),
        step("right", "inner"),
        step("plain", "outer"),
        step("end", "left", "right", "plain", type="deferred_convergence"),
    )
    worker = await lab.worker()
    (inner,) = (await worker.settle(decision(await worker.claim_one(), "inner"), claim_limit=1)).claims
    states = await lab.step_states(task)
    assert {name: states[name] for name in ("left", "right", "plain", "end")} == {
        "left": "pending",
        "right": "pending",
        "plain": "skipped",
        "end": "pending",
    }
    (right,) = (await worker.settle(decision(inner, "right"), claim_limit=1)).claims
    (end,) = (await worker.settle(success(right), claim_limit=1)).claims
    assert end.step == "end"
    await worker.settle(success(end))
    assert await lab.state(task) == "complete"


async def test_two_decisions_over_the_same_steps_are_settled_in_one_call(lab: Lab) -> None:
    """A standard step runs when both have chosen it."""
    task = await lab.run(
        step("one", type="decision"),
        step("two", type="decision"),
        step("both", "one", "two"),
        step("first", "one", "two"),
        step("neither", "one", "two"),
        step("end", "both", "first", "neither", type="deferred_convergence"),
    )
    worker = await lab.worker()
    one, two = await worker.claim(2)
    (both,) = (await worker.settle(decision(one, "both", "first"), decision(two, "both"), claim_limit=9)).claims
    assert both.step == "both"
    assert await skipped(lab, task) == {"first", "neither"}
    (end,) = (await worker.settle(success(both), claim_limit=9)).claims
    await worker.settle(success(end))
    assert await lab.state(task) == "complete"


async def test_skipping_goes_through_a_long_chain_in_one_call(lab: Lab) -> None:
    length = 300
    task = await lab.run(
        step("route", type="decision"),
        step("other", "route"),
        step("s0", "route"),
        *(step(f"s{n}", f"s{n - 1}") for n in range(1, length)),
    )
    worker = await lab.worker()
    (other,) = (await worker.settle(decision(await worker.claim_one(), "other"), claim_limit=9)).claims
    assert len(await skipped(lab, task)) == length
    assert (await worker.settle(success(other))).tasks_finished == 1
    assert await check_invariants(lab.connection) == []


async def test_a_skipped_step_cannot_be_settled_and_a_decision_said_again_changes_nothing(lab: Lab) -> None:
    await lab.run(step("route", type="decision"), step("a", "route"), step("b", "route"))
    worker = await lab.worker()
    chosen = decision(await worker.claim_one(), "a")
    assert (await worker.settle(chosen)).stale == []
    before = await lab.dump()
    assert (await worker.settle(chosen)).stale == []
    assert (await worker.settle(decision(chosen.claim, "b"))).stale == []
    assert await lab.dump() == before


async def test_a_suspended_runs_chosen_steps_wait_and_the_others_are_skipped(lab: Lab) -> None:
    task = await lab.run(step("route", type="decision"), step("a", "route"), step("b", "route"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    await lab.engine.actions.suspend(task, actor="ann", reason="x")
    assert (await worker.settle(decision(claim, "a"), claim_limit=5)).claims == []
    assert await lab.step_states(task) == {"route": "complete", "a": "enqueued", "b": "skipped"}
    assert await check_invariants(lab.connection) == []
    await lab.engine.actions.resume(task, actor="ann", reason="x")
    assert await worker.run_all() == ["a"]


def predicted(steps: list[Any], chosen: dict[str, set[str]], false: set[str]) -> dict[str, str]:
    """Which steps complete and which are skipped, worked out from the definition of the rules."""
    names = [each["name"] for each in steps]
    parents = [[names.index(name) for name in each.get("dependsOn", [])] for each in steps]
    outcome: dict[str, str] = {}
    for place in topological_order(parents):
        each = steps[place]

        def satisfied(parent: int, child: str = each["name"]) -> bool:
            name = names[parent]
            is_decision = steps[parent].get("type") == "decision"
            return outcome[name] == "complete" and (not is_decision or child in chosen[name])

        arrows = [satisfied(parent) for parent in parents[place]]
        some = each.get("type") == "deferred_convergence"
        runs = not arrows or (any(arrows) if some else all(arrows))
        outcome[each["name"]] = "complete" if runs and each["name"] not in false else "skipped"
    return outcome


@pytest.mark.parametrize("seed", range(12))
async def test_random_graphs_end_as_the_rules_say_whatever_the_order(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(4, 40)
    steps: list[Any] = []
    for place in range(count):
        after = chance.sample(range(place), min(place, chance.choice([0, 1, 1, 2, 3])))
        kinds = ["standard", "standard", "decision"] + ["deferred_convergence"] * 2 * bool(after)
        steps.append({"place": place, "after": after, "type": chance.choice(kinds)})
    leading = {parent for each in steps for parent in each["after"]}
    for each in steps:
        if each["type"] == "decision" and each["place"] not in leading:
            each["type"] = "standard"
    written = [step(f"s{each['place']}", *(f"s{p}" for p in each["after"]), type=each["type"]) for each in steps]
    children = {f"s{n}": [f"s{each['place']}" for each in steps if n in each["after"]] for n in range(count)}
    chosen = {name: set(chance.sample(found, chance.randint(0, len(found)))) for name, found in children.items()}
    false = {f"s{n}" for n in range(count) if chance.random() < 0.1}
    task = await lab.run(*written)
    workers = [await lab.worker(f"worker-{n}") for n in range(2)]
    held: list[tuple[SimulatedWorker, Claim]] = []
    types = {each["name"]: each["type"] for each in written}

    def answer(claim: Claim) -> Outcome:
        if claim.step in false:
            return skip(claim)
        return decision(claim, *chosen[claim.step]) if types[claim.step] == "decision" else success(claim)

    while await lab.state(task) != "complete":
        worker = chance.choice(workers)
        held += [(worker, claim) for claim in await worker.claim(chance.randint(1, 3))]
        mine = [each for each in held if each[0] is worker]
        handed_in = chance.sample(mine, chance.randint(0, len(mine)))
        held = [each for each in held if each not in handed_in]
        settlement = await worker.settle(*(answer(claim) for _, claim in handed_in), claim_limit=chance.randint(0, 3))
        held += [(worker, claim) for claim in settlement.claims]
    assert await lab.step_states(task) == predicted(written, chosen, false)
    assert await check_invariants(lab.connection) == []
