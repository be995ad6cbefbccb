"""A database belongs to one installation: another's operator finds none of its runs to cancel."""

from __future__ import annotations

import asyncio

import pytest

from support.engine import Lab, step
from tasker.errors import ForeignInstallation
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings


async def test_the_first_installation_takes_the_database_and_another_is_refused(lab: Lab) -> None:
    now = await lab.clock.freeze()
    assert await lab.engine.installation.owner() is None
    await lab.engine.installation.take("prod/tasker@1")
    await lab.engine.installation.take("prod/tasker@1")
    owner = await lab.engine.installation.owner()
    assert owner is not None and (owner.id, owner.since) == ("prod/tasker@1", now)
    async with open_engine(DatabaseSettings(url=lab.url)) as other:
        with pytest.raises(ForeignInstallation) as caught:
            await other.installation.take("test/tasker@2")
    text = str(caught.value)
    assert text.startswith("the database belongs to another installation, prod/tasker@1, since ")
    assert "this one is test/tasker@2" in text and text.endswith("run: tasker system adopt test/tasker@2")


async def test_of_many_that_come_at_once_one_gets_it(lab: Lab) -> None:
    """The row's key lets one insert through; whoever comes second reads what the first has committed."""

    async def take(number: int) -> bool:
        async with open_engine(DatabaseSettings(url=lab.url)) as engine:
            try:
                await engine.installation.take(f"prod/tasker@{number}")
            except ForeignInstallation:
                return False
            return True

    assert (await asyncio.gather(*(take(number) for number in range(8)))).count(True) == 1


async def test_an_installation_whose_database_was_given_away_cancels_nothing(lab: Lab) -> None:
    await lab.engine.installation.take("old/tasker@1")
    task = await lab.run(step("a"), origin_uid="uid-1")
    await lab.engine.installation.require()
    assert len(await lab.engine.tasks.open_origins()) == 1
    await lab.engine.installation.adopt("new/tasker@2")
    with pytest.raises(ForeignInstallation, match="belongs to another installation, new/tasker@2"):
        await lab.engine.installation.require()
    assert await lab.engine.tasks.open_origins() == []
    assert not await lab.engine.actions.cancel_by_origin("uid-1", actor="operator", reason="its Task is gone")
    assert await lab.engine.actions.cancel_namespace("shop", actor="operator", reason="gone") == 0
    assert await lab.state(task) == "steps_in_process"
    async with open_engine(DatabaseSettings(url=lab.url)) as other:
        await other.installation.take("new/tasker@2")
        assert await other.actions.cancel_by_origin("uid-1", actor="operator", reason="its Task is gone")
    assert await lab.state(task) == "cancelled"


async def test_an_installation_whose_database_is_nobodys_any_more_is_told(lab: Lab) -> None:
    """Restored from before it was taken, or emptied."""
    await lab.engine.installation.take("prod/tasker@1")
    await lab.engine.installation.require()
    await lab.execute("delete from tasker.settings where key = 'installation'")
    with pytest.raises(ForeignInstallation) as caught:
        await lab.engine.installation.require()
    assert str(caught.value) == "the database is no longer that of installation prod/tasker@1"
