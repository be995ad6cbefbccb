"""The command `tasker`: parses, calls one function, prints. The entry point of the distribution."""

from __future__ import annotations

import asyncio
import sys

import click

from tasker.cli.commands import CommandGroup
from tasker.cli.dlq import dlq
from tasker.cli.system import system
from tasker.cli.task import task
from tasker.errors import TaskerError
from tasker.factory import migrate as run_migrations
from tasker.settings import DatabaseSettings
from tasker_worker._version import __version__


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def tasker() -> None:
    """Workflows on Kubernetes: templates, tasks and the workers that run them."""


tasker.add_command(dlq)
tasker.add_command(system)
tasker.add_command(task)


@tasker.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


@tasker.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to this release's schema. Safe to run at any time and more than once."""
    settings = DatabaseSettings.from_environment()
    applied = asyncio.run(run_migrations(settings.url, settings.migration_limits))
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("the schema is up to date")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it could not be done or did not end as expected, 2 wrong usage."""
    try:
        tasker(prog_name="tasker")
    except TaskerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
