"""The operator's HTTP side: /healthz (the event loop answers), /readyz (it can work), /metrics (Prometheus text).

Started first and stopped last, so that a probe learns why an operator waits. Nothing here shows anything secret.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tasker.controller.metrics import OperatorMetrics

logger = logging.getLogger(__name__)


class Readiness:
    """Why the operator is not ready yet, in words; None once it is."""

    def __init__(self) -> None:
        self.waiting_for: str | None = "the operator to start"


@asynccontextmanager
async def serve_health(
    host: str, port: int, *, readiness: Readiness, metrics: OperatorMetrics, on_bound: Callable[[int], None]
) -> AsyncIterator[None]:
    """Serves while the context is open; `on_bound` is told the port, which matters when `port` is 0."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if readiness.waiting_for is None:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"waiting for {readiness.waiting_for}\n")

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
        await site.start()
        on_bound(runner.addresses[0][1])
        yield
    finally:
        await runner.cleanup()
