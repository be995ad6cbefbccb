"""``python tests/support/bare_cluster.py DATA``: the embedded API server and node without CRDs, database or operator.

It stands for a cluster of somebody's own on which the product is installed. Prints its kubeconfig's path once it is up;
SIGTERM ends it. `operator-kubeconfig` beside it is for an operator that runs outside: its calls are told from others'.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: this package is in two folders
    sys.path[:0] = [str(Path(__file__).parents[2] / "operator" / "devcluster" / "tests")]

from devcluster.node import Node
from support.debug_switch import debug_api_server
from tasker_dev.session import IMAGES

OPERATOR_KUBECONFIG = "operator-kubeconfig"
OPERATOR_USER = "operator"


async def serve(folder: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with debug_api_server(folder / "apiserver") as server:
        kubeconfig = folder / "kubeconfig"
        server.write_kubeconfig(kubeconfig)
        server.write_kubeconfig(folder / OPERATOR_KUBECONFIG, user=OPERATOR_USER)
        async with Node(kubeconfig, folder / "node", server.logs_folder, images=IMAGES):
            print(kubeconfig, flush=True)
            await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
