"""Writes what follows from the model's state tables; `make passages` runs it, `--check` only compares.

- the view of all passages and their moves, engine/sql/functions/05_passages.sql;
- the tables of passages in STATES.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from string import Template

from tasker.model.transitions import STEP_PASSAGES, TASK_PASSAGES, Passage

OPERATOR = Path(__file__).parent
MACHINES = {"task": TASK_PASSAGES, "step": STEP_PASSAGES}
COLUMN_OF_ITS_OWN = {"task": "transaction_id", "step": "attempt"}

HEAD = """\
-- Written by `make passages` from tasker.model.transitions: edit that, not this.
--
-- What each passage of the logs is made of, and the logs unfolded into single moves. A row's transition_id orders the
-- moves of one task or step.
"""

VIEWS = Template("""
create or replace view tasker.${machine}_hops as select * from (values
$hops
) as hop(passage, place, from_state, event, to_state);

create or replace view tasker.${machine}_transitions as
    select log.log_id * 8 + hop.place as transition_id, log.${machine}_id, hop.from_state, hop.event, hop.to_state,
        actor.name as actor, log.at, log.metadata, log.$column
    from tasker.${machine}_log log
    join tasker.${machine}_hops hop on hop.passage = log.passage
    left join tasker.actors actor on actor.actor_id = log.actor_id;
""")

FIRST_HOP = Template("""\
    ('$passage'::tasker.${machine}_passage, $place, '$source'::tasker.${machine}_state,
        '$event'::tasker.${machine}_event, '$target'::tasker.${machine}_state)""")
LATER_HOP = Template("    ('$passage', $place, '$source', '$event', '$target')")


def outputs() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    page = OPERATOR / "STATES.md"
    text = page.read_text(encoding="utf-8")
    for machine, passages in MACHINES.items():
        text = _with_table(text, f"passages of {machine}s", passage_table(passages))
    sql = HEAD + "".join(views(machine, passages) for machine, passages in MACHINES.items())
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
            rows.append(f"| `{each.name}` | any that is not final | | the same |")
            continue
        events = ", ".join(f"`{move.event}`" for move in each.moves)
        rows.append(f"| `{each.name}` | `{each.moves[0].source}` | {events} | `{each.moves[-1].target}` |")
    return "\n".join(rows) + "\n"


def views(machine: str, passages: Iterable[Passage]) -> str:
    """The SQL of the view of a machine's passages, and of the one that unfolds its log by them."""
    hops = [
        {"machine": machine, "passage": each.name, "place": place, **vars(move)}
        for each in passages
        for place, move in enumerate(each.moves, start=1)
    ]
    rows = [FIRST_HOP.substitute(hops[0]), *(LATER_HOP.substitute(hop) for hop in hops[1:])]
    return VIEWS.substitute(machine=machine, hops=",\n".join(rows), column=COLUMN_OF_ITS_OWN[machine])


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
