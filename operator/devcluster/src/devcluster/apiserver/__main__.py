"""The server on its own, until Ctrl-C: `python -m devcluster.apiserver --data DIR [--kubeconfig FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from devcluster.apiserver.server import ApiServer
from devcluster.errors import EmbeddedError


def main(make: Callable[..., ApiServer] = ApiServer) -> int:
    """The exit code. `make` is called with the data folder and ``port=``."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.apiserver", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for objects, credentials and pod logs")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--kubeconfig", type=Path, help="where to write the kubeconfig; default DATA/kubeconfig")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        kubeconfig = (arguments.kubeconfig or arguments.data / "kubeconfig").absolute()
        asyncio.run(_serve(make(arguments.data, port=arguments.port), kubeconfig))
    except EmbeddedError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


async def _serve(embedded: ApiServer, kubeconfig: Path) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with embedded as server:
        server.write_kubeconfig(kubeconfig)
        sys.stdout.write(f"serving {server.url}\nexport KUBECONFIG={kubeconfig}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
