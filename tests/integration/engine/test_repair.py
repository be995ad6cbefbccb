"""What people do to single steps, and runs that go again from one of theirs: in every state, with what follows."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from support.engine import (
    NO_DELAY,
    Claim,
    Lab,
    Outcome,
    SimulatedWorker,
    decision,
    failure,
    step,
    success,
)
from support.invariants import check_invariants
from tasker.errors import ActionRefused, InvalidAction, StepNotFound, TaskNotFound

BY: dict[str, Any] = {"actor": "ann", "reason": "a wrong price"}

# x is the step that is worked on; beside keeps the run open while it is in somebody's hands.
GRAPH = [
    step("a"),
    step("x", "a", retry={"maxAttempts": 3, "backoff": "linear", "baseMs": 30_000, "jitter": 0}),
    step("y", "x"),
    step("beside"),
]


@dataclass
class Scene:
    """A run, a worker, and the claims that it holds, by step."""

    lab: Lab
    task: UUID
    worker: SimulatedWorker
    held: dict[str, Claim]

    async def claim(self) -> None:
        self.held |= {claim.step: claim for claim in await self.worker.claim()}

    async def settle(self, outcome: Callable[..., Any], name: str, **more: Any) -> None:
        assert (await self.worker.settle(outcome(self.held.pop(name), **more))).stale == []

    async def act(self, action: str, name: str = "x", **more: Any) -> int:
        actions = self.lab.engine.actions
        if action == "complete_step":
            more = {"result": {"price": 7}, **more}
        changed: int = await getattr(actions, action)(self.task, name, **BY, **more)
        return changed

    async def states(self) -> dict[str, str]:
        return await self.lab.step_states(self.task)

    async def end(self) -> str:
        """Hands in what is held that still may be, and runs all that is left; how the run has ended."""
        await self.worker.settle(*(success(claim) for claim in self.held.values()))
        await self.worker.run_all()
        assert await check_invariants(self.lab.connection) == []
        return await self.lab.state(self.task)


async def open_scene(lab: Lab, *steps: Any, **request: Any) -> Scene:
    await lab.clock.freeze()
    task = await lab.run(*(steps or GRAPH), **request)
    return Scene(lab, task, await lab.worker(lease_seconds=1_000_000), {})


Preparation = Callable[[Scene], Awaitable[None]]


async def pending(scene: Scene) -> None:
    """Nothing has started."""


async def enqueued(scene: Scene) -> None:
    await scene.claim()
    await scene.settle(success, "a")


async def in_progress(scene: Scene) -> None:
    await enqueued(scene)
    await scene.claim()


async def waiting_for_retry(scene: Scene) -> None:
    await in_progress(scene)
    await scene.settle(failure, "x")


async def waiting_alone(scene: Scene) -> None:
    await waiting_for_retry(scene)
    await scene.settle(success, "beside")
    assert await scene.lab.state(scene.task) == "waiting_for_retry"


async def failed(scene: Scene) -> None:
    await in_progress(scene)
    await scene.settle(failure, "x", retryable=False)


async def failed_run(scene: Scene) -> None:
    await failed(scene)
    await scene.settle(success, "beside")
    assert await scene.lab.state(scene.task) == "error"


async def failed_before(scene: Scene) -> None:
    await scene.claim()
    await scene.settle(failure, "a", retryable=False)
    await scene.settle(success, "beside")
    assert await scene.lab.state(scene.task) == "error"


async def complete(scene: Scene) -> None:
    await in_progress(scene)
    await scene.settle(success, "x")


async def complete_run(scene: Scene) -> None:
    await scene.worker.run_all()
    assert await scene.lab.state(scene.task) == "complete"


async def skipped(scene: Scene) -> None:
    await in_progress(scene)
    await scene.act("skip_step")


async def resolved(scene: Scene) -> None:
    await in_progress(scene)
    await scene.act("resolve_step")


async def cancelled_run(scene: Scene) -> None:
    await in_progress(scene)
    await scene.lab.engine.actions.cancel(scene.task, actor="ben", reason="not wanted")


SITUATIONS: dict[Preparation, dict[str, int | str]] = {
    pending: {"reset_step": "step x of task .* is pending", "rerun": 0},
    enqueued: {"reset_step": False, "rerun": 1},
    in_progress: {"reset_step": False, "rerun": 1},
    waiting_for_retry: {"rerun": 1},
    waiting_alone: {"rerun": 1},
    failed: {"rerun": 1},
    failed_run: {"rerun": 1},
    failed_before: {"reset_step": "step x of task .* is pending", "rerun": 0},
    complete: {
        "reset_step": "step x of task .* is complete",
        "resolve_step": "step x of task .* is complete: the task can only be run again from it",
        "complete_step": "step x of task .* is complete",
        "skip_step": "step x of task .* is complete",
        "rerun": 2,
    },
    complete_run: {
        "reset_step": "step x of task .* is complete",
        "resolve_step": "step x of task .* is complete",
        "complete_step": "step x of task .* is complete",
        "skip_step": "step x of task .* is complete",
        "rerun": 2,
    },
    skipped: {
        "reset_step": "is skipped: only one that failed or waits for its retry is reset",
        "resolve_step": "is skipped",
        "complete_step": "is skipped",
        "skip_step": False,
        "rerun": 2,
    },
    resolved: {
        "reset_step": "is resolved_manually",
        "resolve_step": False,
        "complete_step": "is resolved_manually",
        "skip_step": "is resolved_manually",
        "rerun": 2,
    },
    cancelled_run: {
        "reset_step": "is cancelled",
        "resolve_step": "is cancelled",
        "complete_step": "is cancelled",
        "skip_step": "is cancelled",
        "rerun": 3,
    },
}
"""What comes of an action on x there: what it returns, or why it is refused. True where nothing is said."""

BECOMES = {
    "reset_step": "enqueued",
    "resolve_step": "resolved_manually",
    "complete_step": "complete",
    "skip_step": "skipped",
    "rerun": "enqueued",
}
LAST_EVENT = {
    "resolve_step": "resolve_manually",
    "complete_step": "complete_manually",
    "skip_step": "skip",
}


@pytest.mark.parametrize("action", BECOMES)
@pytest.mark.parametrize("prepare", SITUATIONS)
async def test_every_action_does_what_it_says_or_nothing_in_every_state(
    lab: Lab, prepare: Preparation, action: str
) -> None:
    scene = await open_scene(lab)
    await prepare(scene)
    before, row = await lab.dump(), (await lab.steps(scene.task))["x"]
    state = row["state"]
    held = dict(scene.held)
    expected = SITUATIONS[prepare].get(action, True)
    await lab.clock.advance(5)
    if isinstance(expected, str):
        with pytest.raises(ActionRefused, match=expected):
            await scene.act(action)
        assert await lab.dump() == before
        return
    assert await scene.act(action) == expected
    if not expected:
        assert await lab.dump() == before
        return
    now = (await lab.steps(scene.task))["x"]
    assert now["state"] == BECOMES[action]
    assert now["attempts"] == row["attempts"]
    grown = {"reset_step": 3, "rerun": row["attempts"] and row["attempts"] + 3 - row["attempts_allowed"]}
    assert now["attempts_allowed"] - row["attempts_allowed"] == grown.get(action, 0)
    if action in LAST_EVENT:
        assert (await lab.step_log(scene.task, "x"))[-1] == f"{state} -{LAST_EVENT[action]}-> {BECOMES[action]}"
        assert now["completed_at"] == await lab.clock.now()
    # Who did it and why is in the log of the step and of the run.
    for log, kind, number in (("step_log", "step_id", row["step_id"]), ("task_log", "task_id", row["step_id"] >> 20)):
        told = await lab.rows(
            f"select a.name, l.metadata ->> 'reason' as reason"
            f" from tasker.{log} l join tasker.actors a using (actor_id)"
            f" where l.{kind} = %s and l.metadata ->> 'step' = 'x' order by l.log_id desc limit 1",
            number,
        )
        assert told == [{"name": "ann", "reason": "a wrong price"}]
    assert await check_invariants(lab.connection) == []
    # A claim that was under way is void, and its worker is told so.
    if prepare is in_progress:
        renewal = await scene.worker.renew(held["x"], held["beside"])
        assert renewal.lost_fences == [held["x"].fence]
        del scene.held["x"]
        assert (await scene.worker.settle(success(held["x"]))).stale == [row["step_id"]]
    if prepare is cancelled_run:
        scene.held.clear()
    ended_badly = prepare is failed_before and action in LAST_EVENT
    assert await scene.end() == ("error" if ended_badly else "complete")


@pytest.mark.parametrize("action", BECOMES)
@pytest.mark.parametrize("prepare", [in_progress, waiting_alone, failed_run])
async def test_a_suspended_run_is_repaired_and_starts_nothing_until_it_is_resumed(
    lab: Lab, prepare: Preparation, action: str
) -> None:
    scene = await open_scene(lab)
    await prepare(scene)
    if prepare is failed_run:  # what has ended is not held any more, but goes on being so when it was before
        await lab.execute("update tasker.tasks set holds = '{person}'")
    else:
        await lab.engine.actions.suspend(scene.task, **BY)
    changed = await scene.act(action)
    assert bool(changed) is not (prepare is in_progress and action == "reset_step")
    assert await lab.queue() == [] and await scene.worker.claim() == []
    if prepare is in_progress and action != "reset_step":
        del scene.held["x"]
    assert await check_invariants(lab.connection) == []
    if await lab.state(scene.task) != "complete":
        assert await lab.engine.actions.resume(scene.task, **BY)
    assert await scene.end() == "complete"


# What follows from each.


async def test_a_step_that_is_reset_has_all_its_attempts_beside_those_that_it_had(lab: Lab) -> None:
    scene = await open_scene(lab, step("x", retry={"maxAttempts": 2, **NO_DELAY}))

    async def fail_all() -> list[int]:
        attempts = []
        while claims := await scene.worker.claim(1):
            attempts.append(claims[0].attempt)
            await scene.worker.settle(failure(claims[0]))
        return attempts

    assert await fail_all() == [1, 2]
    assert await scene.act("reset_step")
    assert await scene.act("reset_step") == 0, "it is in the queue"
    assert await fail_all() == [3, 4]
    assert await scene.act("reset_step")
    claim = await scene.worker.claim_one()
    assert (claim.attempt, claim.row["max_attempts"]) == (5, 6)
    await scene.worker.settle(success(claim))
    summary = await lab.engine.tasks.read(scene.task)
    assert (summary.state, summary.error, len(summary.failures)) == ("complete", None, 4)
    assert await check_invariants(lab.connection) == []


async def test_attempts_come_to_an_end_with_a_clear_word(lab: Lab) -> None:
    scene = await open_scene(lab)
    await failed_run(scene)
    await lab.execute("update tasker.steps set attempts = 32766, attempts_allowed = 32766 where state = 'error'")
    for action in ("reset_step", "rerun"):
        with pytest.raises(ActionRefused, match="no more than 32767 attempts"):
            await scene.act(action)


async def test_a_run_in_which_another_step_has_failed_too_ends_in_error_again(lab: Lab) -> None:
    scene = await open_scene(lab, step("x"), step("other"), step("last", "x", "other"))
    await scene.claim()
    await scene.settle(failure, "x", retryable=False)
    await scene.settle(failure, "other", retryable=False)
    await lab.clock.advance(60)
    assert await scene.act("complete_step")
    summary = await lab.engine.tasks.read(scene.task)
    assert (summary.state, summary.completed_at) == ("error", await lab.clock.now())
    assert summary.error is not None and summary.error["step"] == "other"
    assert (await lab.task_log(scene.task))[-6].startswith("error -step_resolved-> ")
    assert await check_invariants(lab.connection) == []
    assert await scene.act("reset_step", "other")
    assert await scene.end() == "complete"


async def test_the_result_given_by_hand_is_what_dependents_get(lab: Lab) -> None:
    scene = await open_scene(lab)
    await failed_run(scene)
    assert await scene.act("complete_step", result={"price": 1e23, "parts": [None, -0.0]})
    claim = await scene.worker.claim_one()
    assert (claim.step, claim.row["dependency_results"]["x"]) == ("y", {"price": 1e23, "parts": [None, -0.0]})
    row = (await lab.steps(scene.task))["x"]
    assert row["result_bytes"] == len('{"price": 1e+23, "parts": [null, -0.0]}') and row["error"] is None


async def test_what_is_resolved_has_no_result(lab: Lab) -> None:
    scene = await open_scene(lab)
    await failed_run(scene)
    assert await scene.act("resolve_step")
    claim = await scene.worker.claim_one()
    assert claim.step == "y" and "x" not in claim.row["dependency_results"]
    assert (await lab.steps(scene.task))["x"]["error"]["message"] == "no", "why it needed somebody stays to be read"


CHOICE = [
    step("a"),
    step("x", "a", type="decision"),
    step("left", "x"),
    step("right", "x"),
    step("below", "right"),
    step("end", "left", "below", type="deferred_convergence"),
]


@pytest.mark.parametrize(
    ("action", "more", "left_out"),
    [
        ("complete_step", {"branches": ["left"]}, {"right", "below"}),
        ("complete_step", {"branches": ["left", "right"]}, set()),
        ("complete_step", {"branches": []}, {"left", "right", "below", "end"}),
        ("resolve_step", {}, {"left", "right", "below", "end"}),
        ("skip_step", {}, {"x", "left", "right", "below", "end"}),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
async def test_what_a_decision_chooses_by_hand_runs_and_the_rest_is_left_out(
    lab: Lab, begun: bool, action: str, more: dict[str, Any], left_out: set[str]
) -> None:
    """Also before the decision itself could run."""
    scene = await open_scene(lab, *CHOICE)
    if begun:
        await scene.claim()
        await scene.settle(success, "a")
        await scene.claim()
    assert await scene.act(action, **more)
    scene.held.clear()
    assert await scene.end() == "complete"
    assert {name for name, state in (await scene.states()).items() if state == "skipped"} == left_out


@pytest.mark.parametrize(
    ("name", "branches", "why"),
    [
        ("x", None, "step x is a decision: which steps it chooses is needed"),
        ("x", ["below"], "decision x chose below, which does not depend on it directly"),
        ("a", ["x"], "step a is no decision"),
        ("a", [], "step a is no decision"),
    ],
)
async def test_a_choice_that_cannot_be_is_refused(lab: Lab, name: str, branches: list[str] | None, why: str) -> None:
    scene = await open_scene(lab, *CHOICE)
    before = await lab.dump()
    with pytest.raises(ActionRefused, match=why):
        await scene.act("complete_step", name, branches=branches)
    assert await lab.dump() == before


async def test_skipping_goes_through_to_what_only_the_step_leads_to(lab: Lab) -> None:
    scene = await open_scene(
        lab,
        step("x"),
        step("other"),
        step("b", "x"),
        step("c", "b"),
        step("both", "c", "other"),
        step("either", "c", "other", type="deferred_convergence"),
    )
    assert await scene.act("skip_step")
    assert {name for name, state in (await scene.states()).items() if state == "skipped"} == {"x", "b", "c"}
    assert await scene.end() == "complete"
    states = await scene.states()
    assert (states["both"], states["either"]) == ("skipped", "complete")


async def test_a_step_ended_before_its_parents_is_not_touched_by_them(lab: Lab) -> None:
    scene = await open_scene(lab)
    assert await scene.act("complete_step", "y")
    assert await scene.worker.run_all() == ["a", "beside", "x"]
    assert await lab.state(scene.task) == "complete"
    assert await check_invariants(lab.connection) == []


# Running again.


async def test_a_step_and_all_that_depends_on_it_run_again_and_nothing_else(lab: Lab) -> None:
    scene = await open_scene(
        lab,
        step("a"),
        step("x", "a"),
        step("b", "x"),
        step("c", "a"),
        step("end", "b", "c", type="deferred_convergence"),
    )
    await scene.worker.run_all("first")
    earlier = await lab.steps(scene.task)
    await lab.clock.advance(60)
    assert await scene.act("rerun") == 3
    assert await scene.states() == {
        "a": "complete",
        "x": "enqueued",
        "b": "pending",
        "c": "complete",
        "end": "pending",
    }
    rows = await lab.steps(scene.task)
    assert rows["a"] == earlier["a"] and rows["c"] == earlier["c"]
    assert (rows["x"]["result"], rows["x"]["result_bytes"], rows["x"]["attempts"]) == (None, None, 1)
    assert (rows["end"]["open_edges"], rows["end"]["void_edges"]) == (1, 0)
    summary = await lab.engine.tasks.read(scene.task)
    assert (summary.state, summary.completed_at, summary.counts.complete) == ("steps_in_process", None, 2)
    assert await scene.worker.run_all("second") == ["x", "b", "end"]
    log = await lab.step_log(scene.task, "x")
    assert [hop for hop in log if " -complete-> " in hop or " -rerun-> " in hop] == [
        "enqueued_for_orchestration -complete-> complete",
        "complete -rerun-> pending",
        "enqueued_for_orchestration -complete-> complete",
    ]
    assert (await lab.engine.tasks.read(scene.task)).leaf_results == {"end": "second"}
    assert await check_invariants(lab.connection) == []


async def test_a_decision_that_runs_again_may_choose_otherwise(lab: Lab) -> None:
    scene = await open_scene(lab, *CHOICE)

    async def choose(branch: str) -> set[str]:
        claims = await scene.worker.claim()
        while claims:
            outcomes = (decision(each, branch) if each.step == "x" else success(each) for each in claims)
            claims = (await scene.worker.settle(*outcomes, claim_limit=9)).claims
        assert await lab.state(scene.task) == "complete"
        return {name for name, state in (await scene.states()).items() if state == "skipped"}

    assert await choose("left") == {"right", "below"}
    assert await scene.act("rerun") == 5
    assert await choose("right") == {"left"}
    assert await check_invariants(lab.connection) == []


async def test_what_a_decision_chose_is_remembered_when_a_step_after_it_runs_again(lab: Lab) -> None:
    """Arrows from steps that do not run again stay as they were: satisfied where chosen, void where not."""
    scene = await open_scene(
        lab,
        step("one", type="decision"),
        step("two", type="decision"),
        step("root"),
        step("x", "root"),
        step("wanted", "one", "x"),
        step("unwanted", "two", "x"),
        step("other", "two"),
    )
    claims = {claim.step: claim for claim in await scene.worker.claim()}
    await scene.worker.settle(
        decision(claims["one"], "wanted"), decision(claims["two"], "other"), success(claims["root"])
    )
    await scene.worker.run_all()
    ended = await scene.states()
    assert (ended["wanted"], ended["unwanted"]) == ("complete", "skipped")
    assert await scene.act("rerun") == 3
    assert (await lab.steps(scene.task))["unwanted"]["void_edges"] == 1
    assert await scene.worker.run_all() == ["x", "wanted"]
    assert await scene.states() == ended and await lab.state(scene.task) == "complete"
    assert await check_invariants(lab.connection) == []


async def test_what_is_left_out_because_of_another_step_is_not_run_again_alone(lab: Lab) -> None:
    scene = await open_scene(lab, *CHOICE)
    await scene.worker.settle(success(await scene.worker.claim_one()))
    await scene.worker.settle(decision(await scene.worker.claim_one(), "left"))
    before = await lab.dump()
    with pytest.raises(ActionRefused, match=r"step right of task .* is left out because of what comes before it"):
        await scene.act("rerun", "right")
    assert await lab.dump() == before


async def test_claims_of_what_runs_again_become_void_and_others_do_not(lab: Lab) -> None:
    scene = await open_scene(lab)
    await complete(scene)
    await scene.claim()
    y, beside = scene.held.pop("y"), scene.held["beside"]
    assert await scene.act("rerun") == 2
    assert (await scene.worker.renew(y, beside)).lost_fences == [y.fence]
    assert (await scene.worker.settle(success(y))).stale == [y.step_id]
    assert await lab.step_log(scene.task, "y") == [
        "pending -enqueue-> enqueued",
        "enqueued -start-> in_progress",
        "in_progress -cancel-> cancelled",
        "cancelled -rerun-> pending",
    ]
    await scene.claim()
    assert (scene.held["x"].attempt, scene.held["x"].row["max_attempts"]) == (2, 4)
    assert await scene.end() == "complete"


async def test_a_run_that_only_waited_goes_on_waiting_after_what_is_not_ready_ran_again(lab: Lab) -> None:
    """Nothing becomes ready by it, and what was under way ends: the run is judged all the same."""
    scene = await open_scene(
        lab, step("slow", retry={"backoff": "linear", "baseMs": 30_000, "jitter": 0}), step("x", "slow"), step("y", "x")
    )
    await scene.worker.settle(failure(await scene.worker.claim_one()))
    assert await scene.act("complete_step")
    assert (await scene.states())["y"] == "enqueued" and await lab.state(scene.task) == "steps_in_process"
    await scene.claim()
    assert await scene.act("rerun") == 2
    scene.held.clear()
    assert await scene.states() == {"slow": "waiting_for_retry", "x": "pending", "y": "pending"}
    assert await lab.state(scene.task) == "waiting_for_retry"
    assert await check_invariants(lab.connection) == []
    assert await scene.act("reset_step", "slow")
    assert await scene.end() == "complete"


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_all_that_the_end_of_the_run_cancelled_comes_back(lab: Lab, how: str) -> None:
    """Also what does not depend on the step: the run could not come to its end without it."""
    scene = await open_scene(
        lab, step("x"), step("other"), step("both", "x", "other"), step("beside"), deadline_seconds=60
    )
    await scene.claim()
    await scene.settle(success, "beside")
    if how == "cancelled":
        await lab.engine.actions.cancel(scene.task, **BY)
    else:
        await lab.clock.advance(61)
        await lab.engine.workers.sweep()
    scene.held.clear()
    assert await scene.act("rerun", deadline_seconds=90) == 3
    assert await scene.states() == {"x": "enqueued", "other": "enqueued", "both": "pending", "beside": "complete"}
    assert (await lab.step_log(scene.task, "other"))[-2:] == [
        "cancelled -revive-> pending",
        "pending -enqueue-> enqueued",
    ]
    row = (await lab.steps(scene.task))["other"]
    assert (row["attempts"], row["attempts_allowed"]) == (1, 4)
    assert await scene.end() == "complete"
    summary = await lab.engine.tasks.read(scene.task)
    assert (summary.counts.complete, summary.counts.cancelled, summary.error) == (4, 0, None)


async def test_a_step_that_failed_before_its_run_was_late_is_reset_with_a_new_deadline(lab: Lab) -> None:
    scene = await open_scene(lab, deadline_seconds=60)
    await failed(scene)
    await lab.clock.advance(61)
    await lab.engine.workers.sweep()
    scene.held.clear()
    assert (await scene.states())["beside"] == "cancelled"
    before = await lab.dump()
    for action in BECOMES:
        with pytest.raises(ActionRefused, match=r"the deadline of task .* passed at .* UTC: it needs a new one"):
            await scene.act(action)
    assert await lab.dump() == before
    assert await scene.act("reset_step", deadline_seconds=30)
    assert (await scene.states())["beside"] == "enqueued"
    assert await check_invariants(lab.connection) == []
    await lab.clock.advance(31)
    assert (await lab.engine.workers.sweep())["deadlines_passed"] == 1
    summary = await lab.engine.tasks.read(scene.task)
    assert (summary.state, summary.error) == (
        "error",
        {"reason": "deadline_exceeded", "message": "the task passed its deadline"},
    )


async def test_a_deadline_that_lies_ahead_holds_again_when_the_run_does(lab: Lab) -> None:
    scene = await open_scene(lab, deadline_seconds=60)
    await complete_run(scene)
    await lab.clock.advance(30)
    assert await lab.value("select count(*) from tasker.timers") == 0
    assert await scene.act("rerun") == 2
    assert await check_invariants(lab.connection) == []
    await lab.clock.advance(31)
    assert (await lab.engine.workers.sweep())["deadlines_passed"] == 1


async def test_an_open_run_may_get_a_new_deadline_with_what_is_done_to_it(lab: Lab) -> None:
    scene = await open_scene(lab, deadline_seconds=60)
    await failed(scene)
    assert await scene.act("reset_step", deadline_seconds=600)
    assert await check_invariants(lab.connection) == []
    await lab.clock.advance(100)
    assert "deadlines_passed" not in await lab.engine.workers.sweep()
    assert await scene.end() == "complete"


@pytest.mark.parametrize("action", ["reset_step", "resolve_step", "complete_step", "skip_step"])
async def test_a_failed_step_of_a_run_that_somebody_cancelled_is_only_run_again(lab: Lab, action: str) -> None:
    scene = await open_scene(lab)
    await failed(scene)
    await lab.engine.actions.cancel(scene.task, **BY)
    with pytest.raises(ActionRefused, match=r"task .* is cancelled: it can only be run again from one of its steps"):
        await scene.act(action)
    assert await scene.act("rerun") == 3
    scene.held.clear()
    assert await scene.end() == "complete"


async def test_a_run_goes_again_and_again(lab: Lab) -> None:
    scene = await open_scene(lab)
    for round_ in range(4):
        await scene.worker.run_all(round_)
        assert await lab.state(scene.task) == "complete"
        assert await scene.act("rerun", "a") == 3
        await lab.clock.advance(1)
    row = (await lab.steps(scene.task))["x"]
    assert (row["attempts"], row["attempts_allowed"]) == (4, 7)
    assert await scene.end() == "complete"


async def test_a_large_run_goes_again_in_a_moment(lab: Lab) -> None:
    scene = await open_scene(
        lab, step("root"), *(step(f"s{n}", "root") for n in range(900)), step("end", *(f"s{n}" for n in range(900)))
    )
    await scene.worker.run_all()
    assert await scene.act("rerun", "root") == 902
    await scene.lab.engine.actions.cancel(scene.task, **BY)
    assert await scene.act("rerun", "s7") == 902
    await scene.worker.run_all()
    assert await lab.state(scene.task) == "complete"


async def test_what_people_do_is_a_change_of_the_run(lab: Lab) -> None:
    scene = await open_scene(lab, origin_uid="uid-1")
    await waiting_for_retry(scene)
    place = await lab.engine.changes.read(None)
    assert place.origin_uids == frozenset()
    for action in ("reset_step", "rerun", "complete_step"):
        await scene.act(action)
        changes = await lab.engine.changes.read(place.cursor)
        assert changes.origin_uids == {"uid-1"}
        place = changes
    assert await scene.end() == "complete"
    assert (await lab.engine.changes.read(None)).origin_uids == frozenset(), "it has not gone on after its end"
    await scene.act("rerun")
    assert (await lab.engine.changes.read(None)).origin_uids == {"uid-1"}
    assert await scene.end() == "complete"
    assert (await lab.engine.changes.read(None)).origin_uids == {"uid-1"}, "an earlier end may be shown"


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_done_to_a_run_what_must_hold_does_and_it_can_be_brought_to_its_end(
    lab: Lab, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"s{place}" for place in range(chance.randint(3, 14))]
    parents = [chance.sample(names[:place], min(place, chance.choice([0, 1, 1, 2, 3]))) for place in range(len(names))]
    children = {name: [names[at] for at, each in enumerate(parents) if name in each] for name in names}
    types = {
        name: chance.choice(
            ["standard", *(["decision"] * bool(children[name])), *(["deferred_convergence"] * bool(above))]
        )
        for name, above in zip(names, parents, strict=True)
    }
    graph = [
        step(name, *above, type=types[name], retry={"maxAttempts": 2, "backoff": "linear", "jitter": 0})
        for name, above in zip(names, parents, strict=True)
    ]
    scene = await open_scene(lab, *graph, deadline_seconds=1000)

    def outcome(name: str) -> Outcome:
        claim = scene.held.pop(name)
        if chance.random() < 0.3:
            return failure(claim, retryable=chance.random() < 0.5)
        if types[name] == "decision":
            return decision(claim, *chance.sample(children[name], chance.randint(0, len(children[name]))))
        return success(claim)

    async def act(action: str, name: str) -> None:
        more: dict[str, Any] = {"deadline_seconds": chance.choice([None, 2000])}
        if action == "complete_step" and types[name] == "decision":
            more["branches"] = chance.sample(children[name], chance.randint(0, len(children[name])))
        with suppress(ActionRefused):
            await scene.act(action, name, **more)

    for _ in range(50):
        match chance.randint(0, 9):
            case 0 | 1 | 2:
                await scene.claim()
            case 3 | 4:
                handed_in = chance.sample(sorted(scene.held), chance.randint(0, len(scene.held)))
                await scene.worker.settle(*(outcome(name) for name in handed_in))
            case 5:
                await lab.clock.advance(chance.choice([5, 100]))
                await lab.engine.workers.sweep()
            case 6 if chance.random() < 0.3:
                await lab.engine.actions.cancel(scene.task, **BY)
            case 7:
                switch = lab.engine.actions.suspend if chance.random() < 0.4 else lab.engine.actions.resume
                await switch(scene.task, **BY)
            case _:
                await act(chance.choice(list(BECOMES)), chance.choice(names))
        assert await check_invariants(lab.connection) == []
    await lab.engine.actions.resume(scene.task, **BY)
    for name in names:  # a root by then is nothing that is left out because of another
        if not parents[names.index(name)]:
            await scene.act("rerun", name, deadline_seconds=2000)
    await lab.engine.actions.resume(scene.task, **BY)
    scene.held.clear()
    while claims := await scene.worker.claim():
        await scene.worker.settle(
            *(
                decision(each, *children[each.step]) if types[each.step] == "decision" else success(each)
                for each in claims
            )
        )
    assert await lab.state(scene.task) == "complete"
    assert set((await scene.states()).values()) == {"complete"}
    assert await check_invariants(lab.connection) == []


# Batches.

DIVIDED = [
    step("divide", type="batchable"),
    step("work", "divide", type="batch_worker", retry={"maxAttempts": 1}),
    step("x", "work", type="deferred_convergence"),
    step("y", "x"),
]


@pytest.mark.parametrize(("action", "rest"), [("resolve_step", "resolved_manually"), ("skip_step", "skipped")])
async def test_a_batchable_step_that_is_ended_by_hand_has_no_batch_and_what_waits_for_it_is_left_out(
    lab: Lab, action: str, rest: str
) -> None:
    scene = await open_scene(lab, *DIVIDED)
    assert await scene.act(action, "divide")
    assert await lab.state(scene.task) == "complete"
    assert [(await lab.steps(scene.task))[name]["state"] for name in ("divide", "x", "y")] == [
        rest,
        "skipped",
        "skipped",
    ]
    assert await check_invariants(lab.connection) == []
    assert await scene.act("rerun", "divide") == 3
    assert await lab.queue() == ["divide"]
    await scene.worker.create_batches(await scene.worker.claim_one(), 2)
    assert await scene.end() == "complete"


async def test_what_comes_after_a_batch_runs_again_with_its_results(lab: Lab) -> None:
    scene = await open_scene(lab, *DIVIDED)
    claims = (await scene.worker.create_batches(await scene.worker.claim_one(), 3, claim_limit=3)).claims
    await scene.worker.settle(success(claims[0], 1), success(claims[1], 2), failure(claims[2]))
    await scene.worker.run_all()
    assert await lab.state(scene.task) == "complete"
    assert await scene.act("rerun") == 2
    assert await check_invariants(lab.connection) == []
    (x,) = await scene.worker.claim()
    assert {"work_001", "work_002"} <= x.row["dependency_results"].keys()
    await scene.worker.settle(success(x))
    assert await scene.end() == "complete"


async def test_what_a_batch_cannot_bear_is_refused(lab: Lab) -> None:
    scene = await open_scene(lab, *DIVIDED)
    with pytest.raises(ActionRefused, match="step divide divides work into a batch, which only its handler can"):
        await scene.act("complete_step", "divide")
    await scene.worker.create_batches(await scene.worker.claim_one(), 3)
    before = await lab.dump()
    for action in BECOMES:
        with pytest.raises(ActionRefused, match="step work stands for the workers of a batch"):
            await scene.act(action, "work")
        with pytest.raises(StepNotFound):
            await scene.act(action, "work_001")
    with pytest.raises(ActionRefused, match=r"step divide of task .* has made its batch, which cannot be made anew"):
        await scene.act("rerun", "divide")
    assert await lab.dump() == before
    await lab.engine.actions.cancel(scene.task, **BY)
    with pytest.raises(ActionRefused, match=r"task .* was stopped within a batch, which cannot be brought back"):
        await scene.act("rerun", "x")


# What enters.


async def test_what_is_not_there_is_named(lab: Lab) -> None:
    scene = await open_scene(lab)
    for action in BECOMES:
        with pytest.raises(StepNotFound, match=f"task {scene.task} has no step z"):
            await scene.act(action, "z")
        with pytest.raises(TaskNotFound, match="no task 00000000"):
            await Scene(lab, UUID(int=0), scene.worker, {}).act(action)
        with pytest.raises(InvalidAction, match="deadline: must be more than 0"):
            await scene.act(action, deadline_seconds=0)
    with pytest.raises(Exception, match="there is no such run"):
        await lab.rows("select tasker.reset_step(7, 'x', 'ann', 'x')")


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ({"a": [float("nan")]}, r"result.a\[0\]: is nan"),
        ("\0", "result: holds the character U"),
        ("x" * 1_048_577, "result: is 1048579 bytes; at most 1048576 are allowed"),
    ],
)
async def test_a_result_that_is_none_is_refused(lab: Lab, result: Any, why: str) -> None:
    scene = await open_scene(lab)
    with pytest.raises(InvalidAction, match=why):
        await scene.act("complete_step", result=result)


async def test_a_run_that_its_resource_cancelled_is_not_run_again(lab: Lab) -> None:
    """`spec.cancel` is final: the operator would cancel the run at once."""
    for origin, refused in (("uid-1", True), (None, False)):
        scene = await open_scene(lab, origin_uid=origin)
        await scene.claim()
        await lab.engine.actions.cancel(scene.task, actor="operator", reason="spec.cancel was set")
        if refused:
            with pytest.raises(ActionRefused, match=r"the resource of task .* says spec.cancel, which is final"):
                await scene.act("rerun", "a")
        else:
            assert await scene.act("rerun", "a") == 4


async def test_a_result_is_held_against_the_schema_of_its_step(lab: Lab) -> None:
    schema = {"type": "object", "required": ["price"], "properties": {"price": {"type": "number"}}}
    scene = await open_scene(lab, step("x", resultSchema=schema), step("y"))
    for result, why in (
        ({"cost": 7}, "result/price: is required"),
        ({"price": "7"}, "result/price: must be a number, not a string"),
    ):
        before = await lab.dump()
        with pytest.raises(InvalidAction) as refused:
            await scene.act("complete_step", result=result)
        assert str(refused.value) == why
        assert await lab.dump() == before
    assert await scene.act("complete_step", result={"price": 7})
    assert await scene.act("complete_step", "y", result=7), "it has none"
