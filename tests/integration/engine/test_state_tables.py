"""One picture of the two state machines: the model, the database and the documentation say the same."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from support.engine import Lab
from tasker.model.transitions import (
    FINAL_STEP_STATES,
    FINAL_TASK_STATES,
    PASSING_STEP_STATES,
    PASSING_TASK_STATES,
    STEP_JUMPS,
    STEP_TRANSITIONS,
    TASK_JUMPS,
    TASK_TRANSITIONS,
    StepState,
    TaskState,
    Transition,
)

PAGE = Path(__file__).parents[3] / "operator" / "STATES.md"

MACHINES = {
    "task": (TaskState, TASK_TRANSITIONS, TASK_JUMPS, FINAL_TASK_STATES, PASSING_TASK_STATES),
    "step": (StepState, STEP_TRANSITIONS, STEP_JUMPS, FINAL_STEP_STATES, PASSING_STEP_STATES),
}


@pytest.mark.parametrize("machine", MACHINES)
async def test_the_database_has_the_states_and_events_of_the_model(lab: Lab, machine: str) -> None:
    states, moves, *_ = MACHINES[machine]

    async def labels(name: str) -> list[str]:
        rows = await lab.rows(f"select unnest(enum_range(null::tasker.{name}))::text as label")
        return [row["label"] for row in rows]

    assert await labels(f"{machine}_state") == [str(state) for state in states]
    assert set(await labels(f"{machine}_event")) == {move.event for move in moves}


@pytest.mark.parametrize("machine", MACHINES)
async def test_the_database_allows_exactly_the_moves_of_the_model(lab: Lab, machine: str) -> None:
    """Every triple of a state, an event and a state is asked for."""
    states, moves, *_ = MACHINES[machine]
    rows = await lab.rows(
        f"""select source::text, event::text, target::text from
            unnest(enum_range(null::tasker.{machine}_state)) as source,
            unnest(enum_range(null::tasker.{machine}_event)) as event,
            unnest(enum_range(null::tasker.{machine}_state)) as target
        where tasker.{machine}_transition_is_legal(source, event, target)"""
    )
    assert {Transition(**row) for row in rows} == moves
    undecided = await lab.value(
        f"""select count(*) from unnest(enum_range(null::tasker.{machine}_state)) as source,
            unnest(enum_range(null::tasker.{machine}_event)) as event,
            unnest(enum_range(null::tasker.{machine}_state)) as target
        where tasker.{machine}_transition_is_legal(source, event, target) is null"""
    )
    assert undecided == 0, "a CHECK that is null would let the move pass"
    assert len(rows) < len(list(product(states, states)))


@pytest.mark.parametrize("machine", MACHINES)
async def test_the_database_allows_exactly_the_jumps_that_the_moves_add_up_to(lab: Lab, machine: str) -> None:
    jumps = MACHINES[machine][2]
    rows = await lab.rows(
        f"""select source::text, target::text, tasker.{machine}_jump_is_legal(source, target) as legal from
            unnest(enum_range(null::tasker.{machine}_state)) as source,
            unnest(enum_range(null::tasker.{machine}_state)) as target
        where source <> target"""
    )
    assert {(row["source"], row["target"]) for row in rows if row["legal"]} == jumps
    assert all(row["legal"] is not None for row in rows)


def section(machine: str) -> str:
    """The page's part on one machine."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {machine.capitalize()}s$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def table(text: str, *heads: str) -> list[list[str]]:
    """The cells of the table under these heads."""
    lines = text.splitlines()
    start = lines.index("| " + " | ".join(heads) + " |") + 2
    rows: list[list[str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> str:
    found = re.fullmatch(r"`(\w+)`", cell)
    assert found is not None, f"{cell!r} is not a name"
    return found[1]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_page_explains_every_state_and_tells_its_kind(machine: str) -> None:
    states, _, _, final, passing = MACHINES[machine]
    rows = table(section(machine), "State", "Kind", "Meaning")
    kinds = {
        str(state): "final" if state in final else "passed through" if state in passing else "open" for state in states
    }
    if machine == "step":
        kinds["enqueued"] = "open, may be passed"
    assert {code(state): kind for state, kind, meaning in rows if meaning} == kinds


@pytest.mark.parametrize("machine", MACHINES)
def test_the_page_explains_every_event(machine: str) -> None:
    moves = MACHINES[machine][1]
    told = [code(event) for event, meaning in table(section(machine), "Event", "What happened") if meaning]
    assert sorted(told) == sorted({move.event for move in moves})


@pytest.mark.parametrize("machine", MACHINES)
def test_the_page_shows_exactly_the_moves_of_the_model(machine: str) -> None:
    states, moves, _, final, _ = MACHINES[machine]
    sources_of = {
        "any that is not final": [str(state) for state in states if state not in final],
        "any that is not final, `error`": [*(str(state) for state in states if state not in final), "error"],
    }
    shown = [
        Transition(source, code(event), code(target))
        for sources, event, target in table(section(machine), "From", "Event", "To")
        for source in (sources_of.get(sources) or [code(sources)])
    ]
    assert len(shown) == len(set(shown))
    assert set(shown) == moves
