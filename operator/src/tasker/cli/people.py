"""What commands have in common that people give by hand: who they are, and an engine on their database."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tasker.engine import Engine
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings

Result = TypeVar("Result")


def somebody() -> str:
    """The user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "somebody"


def with_engine(act: Callable[[Engine], Awaitable[Result]]) -> Result:
    """What `act` returns, given an engine on the database of DATABASE_URL for as long as it takes."""

    async def run() -> Result:
        async with open_engine(DatabaseSettings.from_environment()) as engine:
            return await act(engine)

    return asyncio.run(run())
