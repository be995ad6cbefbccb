"""`tasker task`: what people do to runs, by the database."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from tasker.cli.people import somebody as _somebody
from tasker.cli.people import with_engine as _with_engine
from tasker.engine import Engine
from tasker.model.task import Hold, TaskSummary


@click.group()
def task() -> None:
    """Single runs: cancel, suspend, resume, and repair.

    A run is named by its uuid, which `kubectl get task NAME -o jsonpath={.status.taskUuid}` prints. Commands work on
    the database of DATABASE_URL, whether or not an operator runs. Who did it and why is kept in the run's history.

    A run that ended in error goes on when one of its failed steps is reset, resolved, completed or skipped; a run that
    is complete or was cancelled does when it is run again from a step. What its end had cancelled comes back then.
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


def _step_action(command: Callable[..., None]) -> Any:
    """A command on one step of a run."""
    for decorate in (
        click.option(
            "--deadline",
            "deadline_seconds",
            metavar="SECONDS",
            type=float,
            help="A new deadline of the run, so far from now: one whose deadline has passed needs it.",
        ),
        click.argument("step", metavar="STEP"),
    ):
        command = decorate(command)
    return _action(command)


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


@_step_action
def reset_step(task_uuid: UUID, step: str, reason: str, actor: str, deadline_seconds: float | None) -> None:
    """Let a step that failed, or waits for its retry, run again now.

    It gets as many attempts as its template allows beside those that it had.
    """

    async def act(engine: Engine) -> str:
        if await engine.actions.reset_step(
            task_uuid, step, actor=actor, reason=reason, deadline_seconds=deadline_seconds
        ):
            return "is reset"
        return "is in the queue or runs already"

    _repair(task_uuid, step, act)


@_step_action
def resolve_step(task_uuid: UUID, step: str, reason: str, actor: str, deadline_seconds: float | None) -> None:
    """Declare a step dealt with: what depends on it runs, without a result of it.

    A decision that is resolved chooses no steps. A handler at work on the step is told to stop.
    """

    async def act(engine: Engine) -> str:
        if await engine.actions.resolve_step(
            task_uuid, step, actor=actor, reason=reason, deadline_seconds=deadline_seconds
        ):
            return "is resolved"
        return "was resolved already"

    _repair(task_uuid, step, act)


@_step_action
@click.option(
    "--result",
    required=True,
    metavar="JSON",
    help="The result as JSON, or @FILE for the content of a file (@- reads it).",
)
@click.option(
    "--branches", metavar="NAMES", help="Of a decision: the steps to run, with commas; '' leaves all of them out."
)
def complete_step(
    task_uuid: UUID,
    step: str,
    result: str,
    branches: str | None,
    reason: str,
    actor: str,
    deadline_seconds: float | None,
) -> None:
    """Give a step the result that its handler would have returned.

    A handler at work on the step is told to stop.
    """
    value = _parse_result(result)
    chosen = None if branches is None else [name.strip() for name in branches.split(",") if name.strip()]

    async def act(engine: Engine) -> str:
        await engine.actions.complete_step(
            task_uuid, step, value, branches=chosen, actor=actor, reason=reason, deadline_seconds=deadline_seconds
        )
        return "is complete"

    _repair(task_uuid, step, act)


@_step_action
def skip_step(task_uuid: UUID, step: str, reason: str, actor: str, deadline_seconds: float | None) -> None:
    """Leave a step out, and all that only it leads to.

    A handler at work on the step is told to stop.
    """

    async def act(engine: Engine) -> str:
        if await engine.actions.skip_step(
            task_uuid, step, actor=actor, reason=reason, deadline_seconds=deadline_seconds
        ):
            return "is skipped"
        return "was skipped already"

    _repair(task_uuid, step, act)


@_step_action
def rerun(task_uuid: UUID, step: str, reason: str, actor: str, deadline_seconds: float | None) -> None:
    """Run a step again, and all that depends on it.

    Also of a run that is complete or was cancelled. Handlers at work on these steps are told to stop. What ran before
    stays in the history, and attempts are counted on. A Task that says spec.cancel can not be run again: that is final.
    """

    async def act(engine: Engine) -> str:
        count = await engine.actions.rerun(
            task_uuid, step, actor=actor, reason=reason, deadline_seconds=deadline_seconds
        )
        if not count:
            return "has not begun, nor has what depends on it"
        return f"runs again, with {count - 1} more" if count > 1 else "runs again"

    _repair(task_uuid, step, act)


def _repair(task_uuid: UUID, step: str, act: Callable[[Engine], Awaitable[str]]) -> None:
    """Does it, and says what became of the step and of the run."""

    async def run(engine: Engine) -> tuple[str, TaskSummary]:
        return await act(engine), await engine.tasks.read(task_uuid)

    done, summary = _with_engine(run)
    click.echo(f"step {step} of task {task_uuid} {done}")
    click.echo(
        f"the task is {summary.state}{_held_back(summary)}, {summary.counts.done}/{summary.counts.total} steps done"
    )


def _held_back(summary: TaskSummary) -> str:
    if summary.finished or not summary.holds:
        return ""
    if Hold.PERSON in summary.holds:
        return " but suspended: nothing starts until it is resumed"
    return " but suspended by its resource: nothing starts until spec.suspend is false"


def _parse_result(text: str) -> Any:
    """The value of --result. Raises `click.BadParameter`."""
    try:
        if text == "@-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{text[1:]} cannot be read: {error}", param_hint="--result") from error
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="--result") from error


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` when it has a name twice."""
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found
