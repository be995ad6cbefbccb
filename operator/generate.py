"""Writes what follows from the model's state tables; `make passages` runs it, `--check` only compares.

- the view of all passages and their moves, engine/sql/functions/05_passages.sql;
- the tables of passages in STATES.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from string import Template

from tasker.model.transitions import STEP_BEGINNINGS, STEP_PASSAGES, TASK_PASSAGES, Passage

OPERATOR = Path(__file__).parent
MACHINES = {"task": TASK_PASSAGES, "step": STEP_PASSAGES}

HEAD = """\
-- Written by `make passages` from tasker.model.transitions: edit that, not this.
--
-- What each passage of the logs is made of, and the logs unfolded into single moves. A row's transition_id orders the
-- moves of one task or step.
"""

HOPS = Template("""
create or replace view tasker.${name}_hops as select * from (values
$hops
) as hop(passage, place, from_state, event, to_state);
""")

FIRST_HOP = Template("""\
    ('$passage'::tasker.$kind, $place, '$source'::tasker.${machine}_state,
        '$event'::tasker.${machine}_event, '$target'::tasker.${machine}_state)""")
LATER_HOP = Template("    ('$passage', $place, '$source', '$event', '$target')")

TRANSITIONS = """
create or replace view tasker.task_transitions as
    select log.log_id * 8 + hop.place as transition_id, log.task_id, hop.from_state, hop.event, hop.to_state,
        actor.name as actor, log.at, log.metadata, log.transaction_id
    from tasker.task_log log
    join tasker.task_hops hop on hop.passage = log.passage
    left join tasker.actors actor on actor.actor_id = log.actor_id;

-- An attempt's beginning is told by the passage that ends it, and by its lease until then.
create or replace view tasker.step_transitions as
    select log.log_id * 8 + 2 + hop.place as transition_id, log.step_id, hop.from_state, hop.event, hop.to_state,
        actor.name as actor, log.at, log.metadata, log.attempt
    from tasker.step_log log
    join tasker.step_hops hop on hop.passage = log.passage
    left join tasker.actors actor on actor.actor_id = log.actor_id
    union all
    select began.log_id * 8 + hop.place, began.step_id, hop.from_state, hop.event, hop.to_state, actor.name, began.at,
        null, began.attempt
    from (
        select log_id, step_id, beginning, began_at, coalesce(began_by, actor_id), attempt
        from tasker.step_log where beginning is not null
        union all
        select log_id, step_id, beginning, started_at, actor_id, attempt from tasker.leases
    ) as began(log_id, step_id, beginning, at, actor_id, attempt)
    join tasker.step_beginning_hops hop on hop.passage = began.beginning
    left join tasker.actors actor on actor.actor_id = began.actor_id;
"""


def outputs() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    page = OPERATOR / "STATES.md"
    text = page.read_text(encoding="utf-8")
    for machine, passages in MACHINES.items():
        text = _with_table(text, f"passages of {machine}s", passage_table(passages))
    text = _with_table(text, "beginnings of attempts", passage_table(STEP_BEGINNINGS))
    sql = HEAD + hops("task", "task", TASK_PASSAGES) + hops("step", "step", STEP_PASSAGES)
    sql += hops("step_beginning", "step", STEP_BEGINNINGS) + TRANSITIONS
    return {OPERATOR / "src" / "tasker" / "engine" / "sql" / "functions" / "05_passages.sql": sql, page: text}


def _with_table(page: str, name: str, table: str) -> str:
    head, begin, rest = page.partition(f"<!-- {name}: begin, written by `make passages` -->\n")
    _, end, tail = rest.partition(f"<!-- {name}: end -->")
    if not begin or not end:
        raise SystemExit(f"STATES.md has no place for the {name}")
    return head + begin + table + end + tail


def passage_table(passages: Iterable[Passage]) -> str:
    """The passages as a table for people."""
    rows = ["| Passage | From | Events | To |", "|---|---|---|---|"]
    for each in passages:
        if not each.moves:
            state = f"`{each.state}`" if each.state else "any that is not final"
            rows.append(f"| `{each.name}` | {state} | | the same |")
            continue
        events = ", ".join(f"`{move.event}`" for move in each.moves)
        rows.append(f"| `{each.name}` | `{each.moves[0].source}` | {events} | `{each.moves[-1].target}` |")
    return "\n".join(rows) + "\n"


def hops(name: str, machine: str, passages: Iterable[Passage]) -> str:
    """The SQL of the view of some of a machine's passages, one row a move."""
    kind = f"{name}_passage" if name == machine else name
    rows = [
        {"kind": kind, "machine": machine, "passage": each.name, "place": place, **vars(move)}
        for each in passages
        for place, move in enumerate(each.moves, start=1)
    ]
    lines = [FIRST_HOP.substitute(rows[0]), *(LATER_HOP.substitute(row) for row in rows[1:])]
    return HOPS.substitute(name=name, hops=",\n".join(lines))


def main() -> int:
    """Writes the files, or with --check tells which differ."""
    only_check = "--check" in sys.argv[1:]
    differing = {
        path: text for path, text in outputs().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in differing.items():
        if only_check:
            print(f"{path.relative_to(OPERATOR.parent)} is not what the model says: run make passages", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(OPERATOR.parent))
    return int(only_check and bool(differing))


if __name__ == "__main__":
    raise SystemExit(main())
