"""A template of 10,000 steps given to the engine: quickly submitted, and every step after all that it depends on."""

from __future__ import annotations

from support.cpu_time import cpu_seconds
from support.engine import CALLABLE, Lab, success
from support.invariants import check_invariants
from tasker.model.task import StepCounts
from tasker.model.template import parse_template_spec

LAYERS, WIDTH = 100, 100


async def test_10000_steps_are_submitted_in_two_seconds_of_processor_time_and_run_in_order(lab: Lab) -> None:
    """100 layers of 100, each step depending on three of the layer before."""
    spec = parse_template_spec(
        {
            "steps": [
                {
                    "name": f"s{layer}-{place}",
                    "handler": {"callable": CALLABLE},
                    "dependsOn": [f"s{layer - 1}-{(place + k) % WIDTH}" for k in range(3)] if layer else [],
                }
                for layer in range(LAYERS)
                for place in range(WIDTH)
            ]
        }
    )
    before = await cpu_seconds(lab.connection)
    await lab.engine.templates.register("shop", "large", spec)
    task = await lab.submit("large")
    assert await cpu_seconds(lab.connection) - before < 2.0

    workers = [await lab.worker(f"worker-{n}") for n in range(3)]
    done: set[str] = set()
    hands = [await worker.claim(25) for worker in workers]
    turn = 0
    while any(hands):
        turn += 1
        place = turn % len(workers)
        for claim in hands[place]:
            layer, column = map(int, claim.step[1:].split("-"))
            parents = {f"s{layer - 1}-{(column + k) % WIDTH}" for k in range(3)} if layer else set()
            assert parents <= done, f"{claim.step} was handed out before {parents - done} were done"
            assert claim.row["dependency_results"].keys() >= parents
        done |= {claim.step for claim in hands[place]}
        outcomes = [success(claim, claim.step) for claim in hands[place]]
        hands[place] = (await workers[place].settle(*outcomes, claim_limit=60)).claims
    assert len(done) == LAYERS * WIDTH
    summary = await lab.engine.tasks.read(task)
    assert summary.state == "complete"
    assert summary.counts == StepCounts(
        total=10_000, pending=0, ready=0, running=0, waiting=0, complete=10_000, failed=0, cancelled=0
    )
    assert await check_invariants(lab.connection) == []
