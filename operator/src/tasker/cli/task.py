"""`tasker task`: what people do to runs, by the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import click

from tasker.cli.people import somebody as _somebody
from tasker.cli.people import with_engine as _with_engine
from tasker.engine import Engine
from tasker.model.task import Hold


@click.group()
def task() -> None:
    """Single runs: cancel, suspend, resume.

    A run is named by its uuid, which `kubectl get task NAME -o jsonpath={.status.taskUuid}` prints. Commands work on
    the database of DATABASE_URL, whether or not an operator runs. Who did it and why is kept in the run's history.
    """


def _action(command: Callable[..., None]) -> Any:
    """A command on one run with who does it and why."""
    for decorate in (
        click.option("--actor", default=_somebody, help="Who does it; the user of this machine when left out."),
        click.option("--reason", required=True, help="Why, for the run's history."),
        click.argument("task_uuid", metavar="TASK_UUID", type=click.UUID),
    ):
        command = decorate(command)
    return task.command()(command)


@_action
def cancel(task_uuid: UUID, reason: str, actor: str) -> None:
    """End a run for good: what has not ended is cancelled, and handlers at work are told so."""

    async def act(engine: Engine) -> str:
        if await engine.actions.cancel(task_uuid, actor=actor, reason=reason):
            return "is cancelled"
        return f"had ended: it is {(await engine.tasks.read(task_uuid)).state}"

    click.echo(f"task {task_uuid} {_with_engine(act)}")


@_action
def suspend(task_uuid: UUID, reason: str, actor: str) -> None:
    """Hold a run back: handlers at work go on to their end, nothing new starts."""

    async def act(engine: Engine) -> str:
        if await engine.actions.suspend(task_uuid, actor=actor, reason=reason):
            return "is suspended"
        summary = await engine.tasks.read(task_uuid)
        return f"had ended: it is {summary.state}" if summary.finished else "is suspended already"

    click.echo(f"task {task_uuid} {_with_engine(act)}")


@_action
def resume(task_uuid: UUID, reason: str, actor: str) -> None:
    """Let a run go on that people have suspended.

    What `spec.suspend` of a Task holds back goes on when that is taken back.
    """

    async def act(engine: Engine) -> str:
        resumed = await engine.actions.resume(task_uuid, actor=actor, reason=reason)
        summary = await engine.tasks.read(task_uuid)
        if summary.finished:
            return f"had ended: it is {summary.state}"
        if Hold.RESOURCE in summary.holds:
            return "is still held back by its resource: set spec.suspend to false"
        return "goes on" if resumed else "was not suspended"

    click.echo(f"task {task_uuid} {_with_engine(act)}")
