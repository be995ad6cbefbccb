"""The operator as a process of its own, kept alive: what a Deployment does for it in a cluster. Used by `session`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from devcluster.node import launcher

Say = Callable[[str], None]

STOP_SECONDS = 4.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 10.0
"""Having lived so long, the next end is the first again: the pause before a restart starts small."""


class OperatorProcess:
    """Runs ``python -m tasker.controller`` and starts it again whenever it ends by itself.

    `environment` is added to this process's own. Output goes to `log_file`. `say` is told in one line of every end.
    """

    def __init__(self, environment: Mapping[str, str], log_file: Path, say: Say) -> None:
        self._environment = {**os.environ, **environment}
        self._log_file = log_file
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self) -> None:
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name="operator-process")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when that was not enough in `STOP_SECONDS`."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _launch(self) -> asyncio.subprocess.Process:
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                # Through the launcher, so that not even SIGKILL of this process leaves an operator behind.
                *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())),
                *(sys.executable, "-m", "tasker.controller"),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C reaches `tasker dev` alone, which stops everything in order.
                start_new_session=True,
            )
        return self._process

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            process, began = self._process, time.monotonic()
            assert process is not None
            code = await process.wait()
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._say(f"the operator {_end(code)}; it is started again in {pause:.1f} s (log: {self._log_file})")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
            self.restarts += 1
            try:
                process = await self._launch()
            except OSError as error:
                self._say(f"the operator cannot be started: {error}")
            else:
                self._say(f"the operator runs again, as process {process.pid}")


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"
