"""The operator's HTTP side: /healthz (the event loop answers), /readyz (it can work), /metrics (Prometheus text).

Started first and stopped last, so that a probe learns why an operator waits. Nothing here shows anything secret.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.errors import ConfigurationError

logger = logging.getLogger(__name__)


class Readiness:
    """Why the operator cannot work now, in words: what it waits for at its start, and what has failed since."""

    def __init__(self) -> None:
        self.waiting_for: str | None = "the operator to start"
        self.check: Callable[[], str | None] = lambda: None
        """Asked once nothing is waited for at the start any more."""

    def obstacle(self) -> str | None:
        """What is waited for; None when the operator is ready."""
        return self.waiting_for or self.check()


@asynccontextmanager
async def serve_health(
    host: str, port: int, *, readiness: Readiness, metrics: OperatorMetrics, on_bound: Callable[[int], None]
) -> AsyncIterator[None]:
    """Serves while the context is open; `on_bound` is told the port, which matters when `port` is 0."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        obstacle = readiness.obstacle()
        if obstacle is None:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"waiting for {obstacle}\n")

    async def show_metrics(_: web.Request) -> web.Response:
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        on_bound(runner.addresses[0][1])
        yield
    finally:
        await runner.cleanup()
