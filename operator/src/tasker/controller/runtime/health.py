"""The operator's HTTP side: /healthz (the event loop answers, no part is broken), /readyz (it can work), /metrics.

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


class Health:
    """Why the operator cannot work now, in words: what it waits for at its start, what has failed since, what broke.

    `fault` is asked with every probe for a part that has ended or stalled.
    """

    def __init__(self, fault: Callable[[], str | None]) -> None:
        self.waiting_for: str | None = "the operator to start"
        self.check: Callable[[], str | None] = lambda: None
        """Asked once nothing is waited for at the start any more."""
        self._fault = fault

    def broken(self) -> str | None:
        """What only a new process mends; None while there is nothing."""
        fault = self._fault()
        return f"broken: {fault}" if fault else None

    def obstacle(self) -> str | None:
        """Why the operator is not ready; None when it is."""
        waiting_for = self.waiting_for or self.check()
        return self.broken() or (f"waiting for {waiting_for}" if waiting_for else None)


@asynccontextmanager
async def serve_health(
    host: str, port: int, *, health: Health, metrics: OperatorMetrics, on_bound: Callable[[int], None]
) -> AsyncIterator[None]:
    """Serves while the context is open; `on_bound` is called with the port, which matters when `port` is 0."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.broken())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.obstacle())

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
        on_bound(next(iter(runner.addresses))[1])
        yield
    finally:
        await runner.cleanup()


def _answer(fault: str | None) -> web.Response:
    return web.Response(text="ok\n") if fault is None else web.Response(status=503, text=f"{fault}\n")
