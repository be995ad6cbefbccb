"""`tasker dlq`: what people see of dead letters and make of them, by the database."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import click

from tasker.cli.people import somebody, with_engine
from tasker.engine import Engine
from tasker.engine.dead_letters import LARGEST_PAGE, PAGE
from tasker.model.dead_letters import (
    UNFINISHED_STATES,
    DeadLetterDetails,
    DeadLetterPage,
    DeadLetterReason,
    DeadLetterState,
)

ALL = "all"


@click.group()
def dlq() -> None:
    """Dead letters: steps that failed for good, and runs that took too long or that somebody noted.

    An entry is named by its uuid, which `tasker dlq list` prints. Commands work on the database of DATABASE_URL,
    whether or not an operator runs. Who did what and why is kept in the entry's history.
    """


@dlq.command("list")
@click.option("-n", "--namespace", help="Of one namespace only.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([ALL, *(state.value for state in DeadLetterState)]),
    help="Those in this state, repeatable; open and investigating when left out.",
)
@click.option(
    "--reason", type=click.Choice([reason.value for reason in DeadLetterReason]), help="Those made for this reason."
)
@click.option("--task", "task_uuid", metavar="TASK_UUID", type=click.UUID, help="Those of one run.")
@click.option("--limit", type=click.IntRange(1, LARGEST_PAGE), default=PAGE, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on from where an earlier list ended.")
def list_(
    namespace: str | None,
    states: Sequence[str],
    reason: str | None,
    task_uuid: UUID | None,
    limit: int,
    cursor: str | None,
) -> None:
    """Entries, newest first."""
    wanted = None if ALL in states else [DeadLetterState(state) for state in states] or UNFINISHED_STATES

    async def read(engine: Engine) -> DeadLetterPage:
        return await engine.dead_letters.read_page(
            namespace=namespace,
            states=wanted,
            reason=None if reason is None else DeadLetterReason(reason),
            task_uuid=task_uuid,
            limit=limit,
            cursor=cursor,
        )

    page = with_engine(read)
    rows = [
        (
            str(entry.entry_uuid),
            entry.namespace,
            f"{entry.template_name} {entry.template_version}",
            entry.step or "-",
            str(entry.reason),
            str(entry.state),
            _moment(entry.created_at),
        )
        for entry in page.items
    ]
    _print_table(("ENTRY", "NAMESPACE", "TEMPLATE", "STEP", "REASON", "STATE", "SINCE"), rows)
    if page.next_cursor is not None:
        click.echo(f"there are more: --cursor {page.next_cursor}", err=True)


@dlq.command()
@click.argument("entry_uuid", metavar="ENTRY_UUID", type=click.UUID)
def show(entry_uuid: UUID) -> None:
    """One entry with its history and what was to be seen when it was made."""

    async def read(engine: Engine) -> DeadLetterDetails:
        return await engine.dead_letters.read(entry_uuid)

    details = with_engine(read)
    entry = details.entry
    for name, value in (
        ("entry", entry.entry_uuid),
        ("reason", entry.reason),
        ("state", entry.state),
        ("namespace", entry.namespace),
        ("template", f"{entry.template_name} {entry.template_version}"),
        ("task", entry.task_uuid),
        ("step", entry.step or "-"),
        ("since", _moment(entry.created_at)),
    ):
        click.echo(f"{name + ':':<10} {value}")
    click.echo("history:")
    for change in details.changes:
        click.echo(
            f"  {_moment(change.at)} {change.state} by {change.actor}{': ' + change.notes if change.notes else ''}"
        )
    click.echo("snapshot:")
    click.echo(json.dumps(details.snapshot, indent=2, ensure_ascii=False))


@dlq.command()
@click.option("-n", "--namespace", help="Of one namespace only.")
def stats(namespace: str | None) -> None:
    """How many entries there are by state and reason, and since when the oldest."""

    async def read(engine: Engine) -> list[tuple[str, ...]]:
        return [
            (
                str(count.state),
                str(count.reason),
                f"{count.entries}{'+' if count.capped else ''}",
                _moment(count.oldest),
            )
            for count in await engine.dead_letters.counts(namespace)
        ]

    _print_table(("STATE", "REASON", "ENTRIES", "OLDEST"), with_engine(read))


def _action(*, notes_required: bool = False) -> Callable[[Callable[..., None]], Any]:
    """A command on one entry with who does it and why."""

    def decorated(command: Callable[..., None]) -> Any:
        for decorate in (
            click.option("--actor", default=somebody, help="Who does it; the user of this machine when left out."),
            click.option("--notes", required=notes_required, help="Why, or what was found, for the entry's history."),
            click.argument("entry_uuid", metavar="ENTRY_UUID", type=click.UUID),
        ):
            command = decorate(command)
        return dlq.command(command.__name__.replace("_", "-"))(command)

    return decorated


def _act(entry_uuid: UUID, act: Callable[[Engine], Awaitable[bool]], done: str) -> None:
    async def acted(engine: Engine) -> str:
        if await act(engine):
            return done
        return f"was dealt with already: it is {(await engine.dead_letters.read(entry_uuid)).entry.state}"

    click.echo(f"dead letter {entry_uuid} {with_engine(acted)}")


@_action()
def investigate(entry_uuid: UUID, notes: str | None, actor: str) -> None:
    """Take an entry up, so that others see that somebody looks at it."""
    _act(
        entry_uuid,
        lambda engine: engine.dead_letters.investigate(entry_uuid, actor=actor, notes=notes),
        "is being investigated",
    )


@_action()
def lay_back(entry_uuid: UUID, notes: str | None, actor: str) -> None:
    """Leave an entry that was taken up to others."""
    _act(entry_uuid, lambda engine: engine.dead_letters.lay_back(entry_uuid, actor=actor, notes=notes), "is open again")


@_action()
def resolve(entry_uuid: UUID, notes: str | None, actor: str) -> None:
    """Say that an entry was dealt with elsewhere. The run stays as it is."""
    _act(entry_uuid, lambda engine: engine.dead_letters.resolve(entry_uuid, actor=actor, notes=notes), "is resolved")


@_action()
def discard(entry_uuid: UUID, notes: str | None, actor: str) -> None:
    """Say that nothing is to be done about an entry. The run stays as it is."""
    _act(entry_uuid, lambda engine: engine.dead_letters.discard(entry_uuid, actor=actor, notes=notes), "is discarded")


@_action()
def put_back(entry_uuid: UUID, notes: str | None, actor: str) -> None:
    """Let the step of an entry run again, and its run go on."""
    _act(
        entry_uuid,
        lambda engine: engine.dead_letters.put_back(entry_uuid, actor=actor, notes=notes),
        "is put back: its step runs again",
    )


@_action(notes_required=True)
def note(entry_uuid: UUID, notes: str, actor: str) -> None:
    """Add a note to an entry's history, whatever its state."""

    async def act(engine: Engine) -> bool:
        await engine.dead_letters.annotate(entry_uuid, actor=actor, notes=notes)
        return True

    _act(entry_uuid, act, "has the note")


@dlq.command()
@click.argument("task_uuid", metavar="TASK_UUID", type=click.UUID)
@click.option("--step", help="A step of it, by name; the run itself when left out.")
@click.option("--notes", required=True, help="Why, for the entry's history.")
@click.option("--actor", default=somebody, help="Who does it; the user of this machine when left out.")
def add(task_uuid: UUID, step: str | None, notes: str, actor: str) -> None:
    """Have a run, or a step of it, looked at. The run stays as it is."""

    async def act(engine: Engine) -> UUID:
        return await engine.dead_letters.add(task_uuid, step=step, actor=actor, notes=notes)

    click.echo(f"dead letter {with_engine(act)} is open")


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
