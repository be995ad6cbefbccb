"""The last words of a worker process: why it ended, where Kubernetes shows it.

The kubelet makes a file for each container, by default `/dev/termination-log`, and puts what the container wrote there
into the pod's status as the container's termination message; so a person, and the operator, learn the cause of a pod
that starts and ends again and again without its logs.
"""

from __future__ import annotations

import logging
import os

MAX_BYTES = 4096  # Kubernetes shows no more of it
VARIABLE = "TASKER_TERMINATION_LOG"
_OF_KUBERNETES = "/dev/termination-log"

logger = logging.getLogger("tasker_worker.termination")


def write_last_words(text: str, path: str | None = None) -> None:
    """Write why the process ends, at most 4,096 bytes of UTF-8; the cause is to stand first, for the rest is cut.

    `path` is made if need be. Without one it is Kubernetes' own file, which is never made: outside of a pod nothing is
    written. What cannot be written is logged, for the cause of the end matters more.
    """
    words = text.encode("utf-8", "backslashreplace")[:MAX_BYTES].decode("utf-8", "ignore").encode()
    flags = os.O_WRONLY | os.O_TRUNC
    if path is not None:
        flags |= os.O_CREAT
    try:
        with os.fdopen(os.open(path or _OF_KUBERNETES, flags, 0o644), "wb") as file:
            file.write(words)
    except FileNotFoundError as error:
        if path is not None:
            _warn(path, error)
    except OSError as error:
        _warn(path or _OF_KUBERNETES, error)


def _warn(path: str, error: OSError) -> None:
    logger.warning("the last words cannot be written to %s: %s", path, error.strerror)
