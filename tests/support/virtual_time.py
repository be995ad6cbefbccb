"""An event loop whose time jumps to the next timer as soon as nothing else is left to do: hours pass in a moment.

For coroutines that wait for timers and for each other alone; what waits for a thread or a process needs real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

LONGEST_SECONDS = 86_400.0
"""A test that is not over after so long in virtual time waits for what does not come."""

Result = TypeVar("Result")

START_SECONDS = 1000.0
"""Where the clock begins: not at zero, so that a forgotten clock is seen."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` is the virtual time in seconds; `asyncio.sleep` and `asyncio.timeout` go by it."""

    def __init__(self) -> None:
        self.now = START_SECONDS
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            assert self._loop.now < START_SECONDS + LONGEST_SECONDS, "somebody waits for what does not come"
            self._loop.now += max(0.0, timeout)
        return ready


def run_in_virtual_time(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs the coroutine to its end in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def virtual_now() -> float:
    """The running loop's time: the clock to inject."""
    return asyncio.get_running_loop().time()


async def settle(turns: int = 20) -> None:
    """Lets everything run that can run now; no time passes."""
    for _ in range(turns):
        await asyncio.sleep(0)
