"""`tasker system`: what a person who runs an installation does with its database."""

from __future__ import annotations

import asyncio

import click

from tasker.engine.installation import Owner
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings


@click.group()
def system() -> None:
    """The installation itself: whose the database is."""


@system.command()
@click.argument("installation")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(installation: str, yes: bool) -> None:
    """Give the database of DATABASE_URL to INSTALLATION, as its operator's log and /readyz name it.

    A database belongs to the first installation whose operator works on it; the operator of another waits and does
    nothing, because it would cancel every run whose Task its own cluster does not have. After a database was restored
    for a new installation, or a cluster was made anew, this is how the new one gets it. Runs whose Tasks are not in the
    new installation's cluster are cancelled as soon as its operator works: bring the resources first.
    """
    settings = DatabaseSettings.from_environment()
    owner = asyncio.run(_owner(settings))
    if owner is not None and owner.id == installation:
        click.echo(f"the database is that of {installation} already")
        return
    if owner is not None and not yes:
        click.echo(
            f"The database belongs to {owner.id} since {owner.since:%Y-%m-%d %H:%M} UTC. Its operator stops working on "
            f"it within seconds, and that of {installation} cancels every run whose Task is not in its own cluster."
        )
        click.confirm("Give it away?", abort=True)
    asyncio.run(_adopt(settings, installation))
    click.echo(f"the database is that of {installation} now; its operator goes on by itself")


async def _owner(settings: DatabaseSettings) -> Owner | None:
    async with open_engine(settings) as engine:
        return await engine.installation.owner()


async def _adopt(settings: DatabaseSettings, installation: str) -> None:
    async with open_engine(settings) as engine:
        await engine.installation.adopt(installation)
