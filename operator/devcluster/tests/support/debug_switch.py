"""What tests put between clients and the embedded API server: faults on purpose, a log of calls, and a past forgotten.

``PUT /debug/faults``    rules of `faults`; ``GET`` shows them, ``DELETE`` ends them
``PUT /debug/calls``     begins a log of calls (`call_log`) anew; ``GET`` shows it, ``DELETE`` ends it
``POST /debug/compact``  old watches get 410 from now on

In the test's own process: ``debug_api_server(folder)``. In one of its own: ``python debug_switch.py --data …``, with
the options of ``python -m devcluster.apiserver``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path: this package is in two folders
    sys.path[:0] = [str(Path(__file__).parents[1])]

from devcluster.apiserver import ApiServer
from devcluster.apiserver.__main__ import main
from devcluster.apiserver.interception import Call, Interceptor
from support.call_log import CallLog
from support.faults import FaultPlan, read_rules


class DebugSwitch(Interceptor):
    """Off until it is told something."""

    def __init__(self, faults: FaultPlan | None = None) -> None:
        self.faults = faults or FaultPlan()
        self.calls = CallLog()
        self.server: ApiServer | None = None

    async def before(self, call: Call) -> None:
        self.calls.note(call.user, call.verb, call.target)
        await self.faults.before(call.verb, call.resource)

    def after(self, call: Call, *, created: bool) -> None:
        if created and call.verb == "patch":
            self.calls.note(call.user, "create", call.target)  # what an authorizer is asked of a server-side apply
        self.faults.after(call.verb, call.resource)

    def disturb(self, call: Call, lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        return self.faults.disturb(call.resource, lines)

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        match method, path:
            case "GET", "/debug/calls" | "/debug/faults":
                pass
            case "PUT", "/debug/calls":
                self.calls.begin()
            case "DELETE", "/debug/calls":
                self.calls.end()
            case "PUT", "/debug/faults":
                self.faults.rules = read_rules(json.loads(body))
            case "DELETE", "/debug/faults":
                self.faults.rules = []
            case "POST", "/debug/compact" if self.server is not None:
                self.server.compact()
            case _:
                return None
        return self.calls.describe() if path == "/debug/calls" else self.faults.describe()


def debug_api_server(folder: Path, switch: DebugSwitch | None = None, **options: Any) -> ApiServer:
    """A server with a switch; not started yet."""
    switch = switch or DebugSwitch()
    switch.server = ApiServer(folder, interceptor=switch, **options)
    return switch.server


if __name__ == "__main__":
    sys.exit(main(debug_api_server))
