"""Ports for pods. They all share this machine's one address, so the node gives each its own. Called by ``kubelet``."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

from devcluster.node.environment import ConfigError

# Below the range that outgoing connections get theirs from: nobody takes one between our look and the program's start.
PORTS = range(20000, 32000)


def free_port() -> int:
    """A port that nobody listens on. Raises ``ConfigError`` when there is none."""
    start = random.randrange(len(PORTS))  # noqa: S311 - nothing depends on its being hard to guess
    for offset in range(len(PORTS)):
        port = PORTS[(start + offset) % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise ConfigError("no port is free for it on this machine")
