"""Random graphs with random failures, dead workers and repeated calls run to exactly the end that they must have."""

from __future__ import annotations

import os
import random

from hypothesis import given, settings
from hypothesis import strategies as some

from support.engine import open_lab
from support.invariants import check_invariants
from support.simulation import Simulation, expected_end, random_graph

SEED_VARIABLE = "TASKER_TEST_SEED"
"""Set it to the seed that a failure names to see the same graphs and the same course of events again."""


async def test_200_random_graphs_run_to_their_expected_end(database_url: str) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    note = f"seed {seed}: run it again with {SEED_VARIABLE}={seed}"
    print(note)  # shown by pytest when the test fails
    random_ = random.Random(seed)
    graphs = [random_graph(random_) for _ in range(200)]
    async with open_lab(database_url) as lab:
        simulation = Simulation(lab, seed)
        await simulation.submit(graphs)
        await simulation.run()

        assert await check_invariants(lab.connection) == [], note
        rows = await lab.rows(
            "select t.task_uuid, t.state::text as task_state, d.name, s.state::text as state, s.attempts"
            " from tasker.tasks t join tasker.definitions d using (template_id)"
            " join tasker.steps s on s.step_id = tasker.first_step_id(t.task_id) + d.position"
        )
        for table in ("ready_steps", "leases", "timers"):
            assert await lab.value(f"select count(*) from tasker.{table}") == 0, note

    states = {row["task_uuid"]: row["task_state"] for row in rows}
    for task_uuid, run in simulation.runs.items():
        expected = expected_end(run.graph)
        found = {row["name"]: (row["state"], row["attempts"]) for row in rows if row["task_uuid"] == task_uuid}
        assert found == expected.steps, note
        assert states[task_uuid] == expected.state, note
    # A simulation in which nothing went wrong would prove little.
    assert {"complete", "error"} == set(states.values()), note
    happened = simulation.events
    for event in ("success", "retryable", "permanent", "lost", "hung", "released", "deaths", "repeated", "late"):
        assert happened.get(event, 0) > 0, f"{event} never happened; {note}"
    assert happened["claims"] > sum(len(graph) for graph in graphs) / 2, note


@settings(max_examples=300)
@given(some.integers(0, 2**32))
def test_the_expected_end_is_one_that_the_rules_allow(seed: int) -> None:
    """The simulation's own idea of the rules: nothing starts below a failure, nothing passes its attempts."""
    graph = random_graph(random.Random(seed))
    end = expected_end(graph)
    for step in graph:
        state, attempts = end.steps[step.name]
        parents_done = all(end.steps[graph[parent].name][0] == "complete" for parent in step.after)
        assert parents_done == (state != "pending")
        assert attempts <= (step.max_attempts if step.retryable else 1)
        assert (state == "complete") == (state != "pending" and step.fates[attempts - 1] == "success")
    assert (end.state == "complete") == all(state == "complete" for state, _ in end.steps.values())
