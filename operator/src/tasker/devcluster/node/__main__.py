"""The node on its own, until Ctrl-C: ``python -m tasker.devcluster.node --kubeconfig FILE --data DIR``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from tasker.devcluster.node.node import DEFAULT_NAME, Node
from tasker.errors import TaskerError


def main() -> int:
    """Parse, run, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasker.devcluster.node", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="how to reach the API server")
    parser.add_argument("--data", type=Path, required=True, help="folder for the pods' volumes and working folders")
    parser.add_argument("--logs", type=Path, help="folder for logs, the API server's own; default DATA/logs")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the node's name (default: %(default)s)")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(Node(given.kubeconfig, given.data, given.logs, name=given.name), given.name))
    except TaskerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


async def _run(node: Node, name: str) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with node:
        sys.stdout.write(f"node {name} is ready\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
