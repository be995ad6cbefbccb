"""The node on its own, until Ctrl-C: ``python -m devcluster.node --kubeconfig FILE --data DIR --image NAME=CMD``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster.errors import ClusterError
from devcluster.node.node import DEFAULT_NAME, Node


def main() -> int:
    """Parse, run, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.node", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="how to reach the API server")
    parser.add_argument("--data", type=Path, required=True, help="folder for the pods' volumes and working folders")
    parser.add_argument("--logs", type=Path, help="folder for logs, the API server's own; default DATA/logs")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the node's name (default: %(default)s)")
    parser.add_argument(
        "--image",
        type=_image,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="the command that stands for images whose repository ends in NAME; a pod's args follow it. Repeatable",
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        node = Node(given.kubeconfig, given.data, given.logs, images=dict(given.image), name=given.name)
        asyncio.run(_run(node, given.name))
    except ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _image(text: str) -> tuple[str, Sequence[str]]:
    name, separator, command = text.partition("=")
    words = shlex.split(command)
    if not name or not separator or not words:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return name, words


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
