"""A container's process: started in a session of its own, watched until its end, with nothing left behind it.

Used by ``pod_runtime``. The standard output and error go straight to a log file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launcher.py")


class ContainerProcess:
    """One run of a program. `on_exit` is called in the event loop with the exit code, negative for a signal.

    It must be started on a thread that lives as long as the node: the kernel takes the program along with that thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log_file: Path,
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self.exited = asyncio.Event()
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                cwd=folder,
                # A session of its own: Ctrl-C at the terminal reaches the node only, which then ends its pods in order.
                start_new_session=True,
            )
        finally:
            os.close(log)
        threading.Thread(target=self._wait, name=f"wait-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process number, which is its group's too."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask the program to end. Its children are not told, as in a container."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the program and all it has started."""
        if not self.exited.is_set():
            _kill_group(self.pid)

    def _signal(self, number: signal.Signals) -> None:
        if not self.exited.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _wait(self) -> None:
        # Its children go before its number is given back: until then no other group can have it.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(self.pid)
        code = self._process.wait()
        # The loop may have been closed when the node is torn down without a stop.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, code)

    def _finish(self, code: int) -> None:
        self.exited.set()
        self._on_exit(code)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
