"""Becomes a container's program, after making sure that the program cannot outlive the node.

Run by path as ``python -I -S launcher.py <node's process number> program argument…`` from ``process``; imports little,
so that it takes some ten milliseconds. Doing this between fork and exec in the node itself would be unsafe: it has
threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point of the script."""
    node, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != node:
            os._exit(1)  # it ended in between: nobody would tell
    try:
        os.execvp(command[0], command)  # noqa: S606 - the node's own fixed map says which program
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        os._exit(127)


if __name__ == "__main__":
    main()
