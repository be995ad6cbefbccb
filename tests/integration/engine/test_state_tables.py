"""One picture of the two state machines: the model, the database and the documentation say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from support.engine import Lab
from tasker.model.transitions import (
    FINAL_STEP_STATES,
    FINAL_TASK_STATES,
    PASSING_STEP_STATES,
    PASSING_TASK_STATES,
    STEP_BEGINNINGS,
    STEP_JUMPS,
    STEP_PASSAGES,
    STEP_TRANSITIONS,
    TASK_JUMPS,
    TASK_PASSAGES,
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


PASSAGES = {"task": TASK_PASSAGES, "step": STEP_PASSAGES}
KINDS = {
    "task": ("task_passage", TASK_PASSAGES),
    "step": ("step_passage", STEP_PASSAGES),
    "step_beginning": ("step_beginning", STEP_BEGINNINGS),
}


@pytest.mark.parametrize("machine", MACHINES)
async def test_the_database_has_the_states_and_events_of_the_model(lab: Lab, machine: str) -> None:
    states, moves, *_ = MACHINES[machine]

    async def labels(name: str) -> list[str]:
        rows = await lab.rows(f"select unnest(enum_range(null::tasker.{name}))::text as label")
        return [row["label"] for row in rows]

    assert await labels(f"{machine}_state") == [str(state) for state in states]
    assert set(await labels(f"{machine}_event")) == {move.event for move in moves}


@pytest.mark.parametrize("name", KINDS)
async def test_the_database_has_the_passages_of_the_model_and_their_moves(lab: Lab, name: str) -> None:
    kind, passages = KINDS[name]
    labels = await lab.rows(f"select unnest(enum_range(null::tasker.{kind}))::text as label")
    assert [row["label"] for row in labels] == [each.name for each in passages]
    hops = await lab.rows(
        f"""select passage::text, place, from_state::text as source, event::text, to_state::text as target
        from tasker.{name}_hops hop order by hop.passage, hop.place"""
    )
    assert hops == [
        {"passage": each.name, "place": place, **asdict(move)}
        for each in passages
        for place, move in enumerate(each.moves, start=1)
    ]


@pytest.mark.parametrize("machine", PASSAGES)
def test_the_passages_are_paths_through_passing_states_and_have_every_move(machine: str) -> None:
    _, moves, jumps, _, passing = MACHINES[machine]
    beginnings = STEP_BEGINNINGS if machine == "step" else ()
    for each in filter(lambda passage: passage.moves, (*beginnings, *PASSAGES[machine])):
        for before, after in pairwise(each.moves):
            assert before.target == after.source and before.target in passing, each
        ends = (each.moves[0].source, each.moves[-1].target)
        assert ends in jumps or ends[0] == ends[1], each
        assert len(each.moves) < 6, "a passage and a beginning before it are numbered in three bits"
    assert {move for each in (*beginnings, *PASSAGES[machine]) for move in each.moves} == moves


def test_what_is_written_from_the_model_is_what_it_says() -> None:
    checked = subprocess.run(
        [sys.executable, PAGE.parent / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


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
    kinds["enqueued" if machine == "step" else "blocked_by_failures"] = "open, may be passed"
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
