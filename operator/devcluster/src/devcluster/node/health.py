"""The node's own ``/healthz``, as a kubelet has one: on the loopback, on a free port. Called by ``node``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from devcluster.node.environment import HOST_ADDRESS

PATH = "/healthz"


class HealthServer:
    """Answers 200 ``ok`` while `late` has nothing to say, else 500 with its lines."""

    def __init__(self, late: Callable[[], Sequence[str]]) -> None:
        self._late = late
        self._runner: web.ServerRunner | None = None

    @property
    def port(self) -> int:
        """0 before it is started."""
        if self._runner is None:
            return 0
        port: int = self._runner.addresses[0][1]
        return port

    @property
    def url(self) -> str:
        return f"http://{HOST_ADDRESS}:{self.port}{PATH}"

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST_ADDRESS, 0).start()

    async def stop(self) -> None:
        """May be called more than once."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.path != PATH:
            return web.Response(status=404, text="not found\n")
        lines = self._late()
        return (
            web.Response(status=500, text="".join(f"{line}\n" for line in lines)) if lines else web.Response(text="ok")
        )
