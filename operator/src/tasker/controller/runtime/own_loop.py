"""Which event loop an object belongs to. What is not made for threads refuses them, instead of losing a wake-up."""

from __future__ import annotations

import asyncio
import threading


class OwnLoop:
    """The event loop that runs when this is made; `owner` is the word for whose it is, for the error's message."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()

    def require(self) -> None:
        """Raises `RuntimeError` unless the caller runs in that loop: asyncio's events are not made for threads."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise RuntimeError(
                f"{self._owner} was called from outside its event loop, in the thread "
                f"{threading.current_thread().name!r}: call it from a coroutine, or through call_soon_threadsafe"
            )
