"""How the operator process ends: signals, exit codes, the message for Kubernetes, and the end that nothing can stop.

Used by `app` alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from enum import IntEnum
from pathlib import Path

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4096
"""What the kubelet reads of a termination log."""

END_SECONDS = 20.0
"""How long the process has to end in order after a breakdown; less than the 30 s that a pod is given by default."""


class ExitCode(IntEnum):
    """Every exit code of the operator; the table in operator/README.md says the same."""

    STOPPED = 0
    """SIGTERM or SIGINT asked for the end."""
    UNEXPECTED = 1
    """An error that nobody foresaw."""
    CONFIGURATION = 2
    """A setting cannot be used."""
    BREAKDOWN = 3
    """A part of the operator ended or stalled."""


class Signals:
    """SIGTERM and SIGINT, which cancel the task that this is made in."""

    def __init__(self) -> None:
        self.received = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def handle(self) -> None:
        """Takes the signals, from kopf too, which takes them when it starts."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end)

    def _end(self) -> None:
        self.received = True
        # It complains of requests that the end cuts off.
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
        self._task.cancel()


def leave_message(file: Path, message: str) -> None:
    """Writes why the process ends into the file that Kubernetes has made for it; where there is none, none is made."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return
    with os.fdopen(descriptor, "wb") as opened:
        # Cut at the end: the beginning names the cause.
        opened.write(message.encode()[:MESSAGE_BYTES].decode(errors="ignore").encode())


def end_in_any_case(file: Path, reason: str, *, after_seconds: float = END_SECONDS) -> None:
    """Ends the process with `ExitCode.BREAKDOWN` after so many seconds, should it still be there.

    A part that is broken may not let itself be cancelled. The thread is a daemon: an end in order does not wait for it.
    """

    def end() -> None:
        message = f"{reason}; and the operator did not end in order within {after_seconds:.0f} s"
        logger.critical("the operator ends: %s", message)
        leave_message(file, message)
        os._exit(ExitCode.BREAKDOWN)

    timer = threading.Timer(after_seconds, end)
    timer.daemon = True
    timer.start()
