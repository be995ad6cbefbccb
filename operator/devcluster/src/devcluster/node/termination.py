"""What an ended container says of its end: the message in its status. Called by ``kubelet``.

A program leaves a message in the file ``terminationMessagePath``. Processes of this machine have no such file of their
own: a variable or argument of the pod that names the path is given the real file's, as with mounted volumes; and the
command that stands for an image may pass it on.
With the policy ``FallbackToLogsOnError``, an end with an error and without a message is told by the end of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devcluster.node.environment import Mount

LARGEST_MESSAGE_BYTES = 4096
LARGEST_LOG_BYTES = 2048
LARGEST_LOG_LINES = 80
"""Kubernetes' own limits."""

TERMINATION_LOG = "TERMINATION_LOG"
"""What the command of an image may call the real file: ``$(TERMINATION_LOG)``."""

_DEFAULT_PATH = "/dev/termination-log"


def prepare_file(container: Mapping[str, Any], folder: Path) -> Mount:
    """An empty file for a new run of the container, at the place that the pod knows it by."""
    file = message_file(container["name"], folder)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_bytes(b"")
    return Mount(path=container.get("terminationMessagePath") or _DEFAULT_PATH, folder=str(file))


def message_file(container: str, folder: Path) -> Path:
    """The file of a container of the pod whose folder it is."""
    return folder / "termination" / container


def read_message(container: Mapping[str, Any], folder: Path, log_file: Path, *, failed: bool) -> str:
    """The message of a run that has ended; empty when there is none."""
    message = _tail(message_file(container["name"], folder), LARGEST_MESSAGE_BYTES)
    if not message and failed and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
        lines = _tail(log_file, LARGEST_LOG_BYTES).splitlines(keepends=True)
        message = "".join(lines[-LARGEST_LOG_LINES:])
    return message


def _tail(file: Path, largest: int) -> str:
    try:
        with file.open("rb") as content:
            content.seek(max(0, file.stat().st_size - largest))
            return content.read(largest).decode(errors="replace")
    except OSError:
        return ""  # the program, or its pod's end, has removed it
