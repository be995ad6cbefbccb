"""A seeded simulation of workers on the real database: random graphs, random misfortunes, an end known in advance.

Every step is given its fates beforehand, one for each attempt that it may get. `expected_end` works out from them
alone, knowing nothing of the engine, how each step and run must end. `Simulation` then lets a handful of workers claim,
settle, release, repeat themselves, hang and die in a random order, on a clock that it moves itself, until all is done.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from support.engine import Claim, Lab, Outcome, SimulatedWorker, failure, release, success
from tasker.model.task import TaskRequest
from tasker.model.template import parse_template_spec

Fate = Literal["success", "retryable", "permanent", "lost", "hung"]
"""How an attempt ends; `lost` with its worker, `hung` far over its timeout while its worker lives."""

CALLABLES = ("alpha", "beta", "gamma")
NAMESPACE = "simulated"
LEASE_SECONDS = 30.0
LONGEST_TICK = 9.0
PATIENCE_SECONDS = 25.0
"""A living worker hands in what it holds within this time, well before the attempt is over its timeout and grace."""


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One node of a random graph; `after` are places in the graph, each lower than its own."""

    name: str
    after: tuple[int, ...]
    max_attempts: int
    retryable: bool
    fates: tuple[Fate, ...]
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedEnd:
    """How a run must end: the task's state, and the state and attempts of each step."""

    state: str
    steps: dict[str, tuple[str, int]]


def random_arrows(random_: random.Random, size: int) -> list[tuple[int, ...]]:
    """For each node the lower nodes it depends on, in one of several shapes."""
    shape = random_.choice(["sparse", "dense", "layers", "chain", "star", "tree", "islands"])
    arrows: list[tuple[int, ...]] = []
    width = random_.randint(2, 8)
    for node in range(size):
        lower = range(node)
        match shape:
            case "sparse":
                parents = random_.sample(lower, min(node, random_.choice([0, 1, 1, 2])))
            case "dense":
                parents = random_.sample(lower, min(node, random_.randint(0, 8)))
            case "layers":
                first = (node // width - 1) * width
                layer = range(max(first, 0), (node // width) * width)
                parents = random_.sample(layer, random_.randint(1, len(layer))) if layer else []
            case "chain":
                parents = [node - 1] if node else []
            case "star":
                parents = [] if node == 0 else list(range(1, node)) if node == size - 1 and node > 1 else [0]
            case "tree":
                parents = [random_.randrange(node)] if node else []
            case _:
                parents = [node - 1] if node % width else []
        arrows.append(tuple(sorted(parents)))
    return arrows


def random_graph(random_: random.Random, largest: int = 60) -> list[PlannedStep]:
    """A graph of up to `largest` steps with the fates of all their attempts."""
    size = random_.choice([1, 2, 3, *range(4, largest + 1)])
    # Some graphs go well, some are plagued: both all the way to the end and early failures are wanted.
    trouble = random_.choice([0.0, 0.05, 0.2, 0.4])
    weights = {"success": 1 - trouble, "retryable": trouble, "lost": trouble / 4, "hung": trouble / 12}
    weights["permanent"] = trouble / random_.choice([3, 10, 50])
    planned = []
    for place, after in enumerate(random_arrows(random_, size)):
        max_attempts = random_.choice([1, 2, 3, 3, 4, 6])
        retryable = random_.random() > 0.1
        fates: tuple[Fate, ...] = tuple(random_.choices(list(weights), list(weights.values()), k=max_attempts))  # type: ignore[arg-type]
        base_ms = random_.choice([0, 10, 1000, 4000])
        spec: dict[str, Any] = {
            "handler": {"callable": random_.choice(CALLABLES)},
            "timeoutSeconds": 1 if "hung" in fates else 3600,
            "retry": {
                "maxAttempts": max_attempts,
                "retryable": retryable,
                "backoff": random_.choice(["none", "linear", "exponential", "fibonacci"]),
                "baseMs": base_ms,
                "maxMs": base_ms + random_.choice([0, 5000]),
                "jitter": random_.choice([0, 0.1, 1]),
            },
        }
        planned.append(
            PlannedStep(
                name=f"s{place}",
                after=after,
                max_attempts=max_attempts,
                retryable=retryable,
                fates=fates,
                spec=spec,
            )
        )
    return planned


def expected_end(graph: list[PlannedStep]) -> PlannedEnd:
    """How a run of this graph must end, from its fates alone."""
    ends: list[tuple[str, int]] = []
    for step in graph:
        if any(ends[parent][0] != "complete" for parent in step.after):
            ends.append(("pending", 0))
            continue
        allowed = step.max_attempts if step.retryable else 1
        state, attempts = "error", allowed
        for number, fate in enumerate(step.fates[:allowed], start=1):
            if fate in ("success", "permanent"):
                state, attempts = "complete" if fate == "success" else "error", number
                break
        ends.append((state, attempts))
    complete = all(state == "complete" for state, _ in ends)
    return PlannedEnd(
        state="complete" if complete else "error",
        steps={step.name: end for step, end in zip(graph, ends, strict=True)},
    )


def ancestors(graph: list[PlannedStep]) -> list[set[str]]:
    """For each step the names of all that it depends on."""
    found: list[set[str]] = []
    for step in graph:
        found.append(set().union(*(found[parent] | {graph[parent].name} for parent in step.after)))
    return found


@dataclass(kw_only=True)
class Run:
    """A submitted run: its graph, and how far it has come by the simulation's account."""

    graph: list[PlannedStep]
    steps: dict[str, PlannedStep]
    above: dict[str, set[str]]
    results: dict[str, Any] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A claim in a simulated worker's hands."""

    claim: Claim
    fate: Fate
    since: float


@dataclass(kw_only=True)
class LogicalWorker:
    """A worker's memory."""

    worker: SimulatedWorker
    callables: tuple[str, ...]
    held: list[Held] = field(default_factory=list)
    forgotten: list[Held] = field(default_factory=list)
    told_at: datetime | None = None
    last: tuple[Outcome, ...] = ()


class Simulation:
    """Runs random graphs to their end. All that is random comes from one seed, and nothing happens at the same time."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.now = 0.0
        self.runs: dict[UUID, Run] = {}
        self.events: dict[str, int] = {}
        self._workers: list[LogicalWorker] = []
        self._ghosts: list[tuple[SimulatedWorker, Claim]] = []
        self._open: list[UUID] = []
        self._hired = 0

    def _count(self, event: str, times: int = 1) -> None:
        self.events[event] = self.events.get(event, 0) + times

    async def submit(self, graphs: list[list[PlannedStep]]) -> None:
        """Registers each graph as a template and submits a run of it; some runs begin suspended."""
        requests = []
        for number, graph in enumerate(graphs):
            steps = [
                {**step.spec, "name": step.name, "dependsOn": [graph[parent].name for parent in step.after]}
                for step in graph
            ]
            self.random.shuffle(steps)
            name = f"graph-{number}"
            await self.lab.engine.templates.register(NAMESPACE, name, parse_template_spec({"steps": steps}))
            requests.append(
                TaskRequest(
                    template_name=name,
                    context={"number": number},
                    priority=self.random.randint(-100, 100),
                    suspended=self.random.random() < 0.1,
                )
            )
        submitted = await self.lab.engine.tasks.submit(NAMESPACE, requests)
        for each, graph in zip(submitted, graphs, strict=True):
            above = dict(zip((step.name for step in graph), ancestors(graph), strict=True))
            self.runs[each.task_uuid] = Run(graph=graph, steps={step.name: step for step in graph}, above=above)

    async def run(self, *, most_rounds: int = 100_000) -> None:
        """Lets things happen until every run has ended."""
        await self.lab.clock.freeze()
        await self.lab.execute("select setseed(0.5)")
        for _ in range(4):
            await self._hire()
        actions: list[tuple[Callable[[], Any], int]] = [
            (self._claim, 20),
            (self._settle, 30),
            (self._repeat_last, 3),
            (self._haunt, 2),
            (self._lose, 6),
            (self._tick, 12),
            (self._sweep, 8),
            (self._suspend_or_resume, 3),
        ]
        choices, weights = [action for action, _ in actions], [weight for _, weight in actions]
        for turn in range(most_rounds):
            await self.random.choices(choices, weights)[0]()
            if turn % 50 == 0:
                open_runs = await self.lab.rows("select task_uuid from tasker.tasks where completed_at is null")
                self._open = sorted((row["task_uuid"] for row in open_runs), key=list(self.runs).index)
                if not self._open:
                    return
        raise AssertionError(f"not ended after {most_rounds} rounds: {self.events}")

    async def _hire(self) -> None:
        self._hired += 1
        # All handlers are there among any four in a row, whatever becomes of single workers.
        choice = [CALLABLES, CALLABLES[:2], CALLABLES[1:], CALLABLES][self._hired % 4]
        worker = SimulatedWorker(self.lab.connection, f"worker-{self._hired}")
        await worker.register(choice, namespace=NAMESPACE, lease_seconds=LEASE_SECONDS)
        self._workers.append(LogicalWorker(worker=worker, callables=choice))

    def _take(self, hand: LogicalWorker, claims: list[Claim]) -> None:
        """Looks at what was handed out: it must be the right attempt, at the right time, with the right results."""
        for claim in claims:
            run = self.runs[claim.task_uuid]
            step = run.steps[claim.step]
            attempt = run.attempts.get(claim.step, 0) + 1
            run.attempts[claim.step] = attempt
            assert claim.attempt == attempt, f"{claim.step}: attempt {claim.attempt} instead of {attempt}"
            assert attempt <= step.max_attempts
            assert claim.row["callable"] in hand.callables
            assert claim.row["dependency_results"] == {name: run.results[name] for name in run.above[claim.step]}
            hand.held.append(Held(claim=claim, fate=step.fates[attempt - 1], since=self.now))
            self._count("claims")

    async def _claim(self) -> None:
        hand = self.random.choice(self._workers)
        self._take(hand, await hand.worker.claim(self.random.randint(1, 12)))

    def _outcome(self, held: Held) -> Outcome:
        claim = held.claim
        self._count(held.fate)
        match held.fate:
            case "success":
                result = {"of": claim.step, "attempt": claim.attempt}
                self.runs[claim.task_uuid].results[claim.step] = result
                return success(claim, result)
            case "permanent":
                return failure(claim, "for good", retryable=False, error_type="PermanentError")
            case _:
                retry_after_ms = self.random.choice([0, 1500]) if self.random.random() < 0.1 else None
                return failure(claim, "this time", retry_after_ms=retry_after_ms)

    def _release(self, held: Held) -> Outcome:
        self._count("released")
        self.runs[held.claim.task_uuid].attempts[held.claim.step] -= 1
        return release(held.claim)

    async def _hand_in(self, hand: LogicalWorker, chosen: list[Held], claim_limit: int, releasing: float) -> None:
        outcomes = [self._release(held) if self.random.random() < releasing else self._outcome(held) for held in chosen]
        hand.held = [held for held in hand.held if held not in chosen]
        hand.last = tuple(outcomes)
        settlement = await hand.worker.settle(*outcomes, claim_limit=claim_limit)
        assert sorted(settlement.settled) == sorted(held.claim.step_id for held in chosen)
        assert settlement.stale == []
        self._take(hand, settlement.claims)

    async def _settle(self) -> None:
        hand = self.random.choice([hand for hand in self._workers if hand.held] or self._workers)
        able = [held for held in hand.held if held.fate not in ("lost", "hung")]
        chosen = self.random.sample(able, self.random.randint(min(1, len(able)), len(able)))
        await self._hand_in(hand, chosen, claim_limit=self.random.choice([0, 1, 6, 12]), releasing=0.05)

    async def _repeat_last(self) -> None:
        """A worker that never heard the answer says it again."""
        hand = self.random.choice(self._workers)
        if hand.last:
            again = await hand.worker.settle(*hand.last)
            # What was recorded is known again until a later attempt ends; what was given back never is.
            given_back = {each.claim.step_id for each in hand.last if each.outcome == "release"}
            assert given_back <= set(again.stale) and (again.tasks_finished, again.ready_left) == (0, 0)
            self._count("repeated")

    async def _haunt(self) -> None:
        """A worker that was given up comes back with its outcomes."""
        if self._ghosts:
            worker, claim = self.random.choice(self._ghosts)
            late = self.random.choice([success(claim, "late"), failure(claim, retryable=False), release(claim)])
            held = {row["fence"] for row in await self.lab.rows("select fence from tasker.leases")}
            if claim.fence not in held:
                assert (await worker.settle(late)).stale == [claim.step_id]
                self._count("late")

    async def _lose(self) -> None:
        """A worker dies, is found dead by the operator, or forgets a claim; only what was fated to be lost is."""
        able = [hand for hand in self._workers if any(held.fate == "lost" for held in hand.held)]
        if not able:
            return
        hand = self.random.choice(able)
        doomed = [held for held in hand.held if held.fate == "lost"]
        if self.random.random() < 0.4:
            # Forgotten: it lives on, renews without these, and gives them back when it is told of them.
            hand.forgotten += doomed
            hand.held = [held for held in hand.held if held.fate != "lost"]
            self._count("forgotten", len(doomed))
            return
        others = [held for held in hand.held if held.fate not in ("lost", "hung")]
        await self._hand_in(hand, others, claim_limit=0, releasing=0.5)
        if any(held.fate == "hung" for held in hand.held):
            return
        self._ghosts += [(hand.worker, held.claim) for held in doomed]
        self._count("lost", len(doomed))
        self._workers.remove(hand)
        if self.random.random() < 0.5:
            held_fences = {row["fence"] for row in await self.lab.rows("select fence from tasker.leases")}
            # The sweep may have taken what was held far over its timeout.
            left = [held for held in doomed if held.claim.fence in held_fences]
            assert all(held in left or held.claim.row["timeout_ms"] == 1000 for held in doomed)
            expired = await self.lab.value(
                "select tasker.expire_workers('operator', array(select worker_id from tasker.workers where name = %s),"
                " 'its pod is gone')",
                hand.worker.name,
            )
            assert expired >= len(left)
        self._count("deaths")
        await self._hire()

    async def _tick(self) -> None:
        """Time passes; the living hand in what they have had for long, and renew."""
        for hand in list(self._workers):
            late = [
                held
                for held in hand.held
                if held.fate not in ("lost", "hung") and self.now - held.since > PATIENCE_SECONDS
            ]
            if late:
                await self._hand_in(hand, late, claim_limit=0, releasing=0.05)
        seconds = self.random.choice([0.01, 1.0, LONGEST_TICK])
        self.now += seconds
        await self.lab.clock.advance(seconds)
        for hand in self._workers:
            claims = [held.claim for held in hand.held]
            renewal = await hand.worker.renew(*claims, claiming_since=hand.told_at)
            hand.told_at = renewal.renewed_at
            await self._give_back(hand, set(renewal.unknown_fences))
            lost = set(renewal.lost_fences)
            gone = [held for held in hand.held if held.claim.fence in lost]
            assert {held.fate for held in gone} <= {"hung", "lost"}
            self._ghosts += [(hand.worker, held.claim) for held in gone]
            for held in gone:
                self._count(held.fate)
            hand.held = [held for held in hand.held if held not in gone]

    async def _give_back(self, hand: LogicalWorker, fences: set[int]) -> None:
        """What a worker had forgotten it gives back; an attempt that never ran is not counted."""
        found = [held for held in hand.forgotten if held.claim.fence in fences]
        assert {held.claim.fence for held in found} == fences
        hand.forgotten = [held for held in hand.forgotten if held not in found]
        if found:
            settlement = await hand.worker.settle(*(self._release(held) for held in found))
            assert settlement.stale == []
            self._ghosts += [(hand.worker, held.claim) for held in found]

    async def _sweep(self) -> None:
        for row in await self.lab.rows("select * from tasker.sweep(%s)", self.random.choice([3, 50, 500])):
            assert row["repair"] != "lost_steps_requeued", "no step may ever be lost"
            self._count(row["repair"], row["repaired"])

    async def _suspend_or_resume(self) -> None:
        task = self.random.choice(self._open or list(self.runs))
        action = "resume_task" if self.random.random() < 0.7 else "suspend_task"
        hold = self.random.choice(["resource", "person"])
        changed = await self.lab.value(
            f"select tasker.{action}(task_id, %s, 'ann', 'x') from tasker.tasks where task_uuid = %s", hold, task
        )
        self._count(action, changed)
