"""The operator's HTTP side: what the probes answer, and the metrics."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tasker.controller.runtime.health import Health, serve_health
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.errors import ConfigurationError


class Operator:
    """What the probes ask."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.health = Health(lambda: self.fault)
        self.metrics = OperatorMetrics()
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        def bound(port: int) -> None:
            self.port = port

        async with serve_health("127.0.0.1", 0, health=self.health, metrics=self.metrics, on_bound=bound):
            yield

    async def fetch(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()


async def test_an_operator_that_starts_is_alive_and_not_ready() -> None:
    operator = Operator()
    async with operator.serving():
        assert await operator.fetch("/healthz") == (200, "ok\n")
        assert await operator.fetch("/readyz") == (503, "waiting for the operator to start\n")
        operator.health.waiting_for = "the database"
        assert await operator.fetch("/readyz") == (503, "waiting for the database\n")
        operator.health.waiting_for = None
        assert await operator.fetch("/readyz") == (200, "ok\n")


async def test_what_has_failed_since_is_asked_with_every_probe() -> None:
    operator = Operator()
    operator.health.waiting_for = None
    silent = False
    operator.health.check = lambda: "the database" if silent else None
    async with operator.serving():
        assert await operator.fetch("/readyz") == (200, "ok\n")
        silent = True
        assert await operator.fetch("/readyz") == (503, "waiting for the database\n")
        assert await operator.fetch("/healthz") == (200, "ok\n"), "a new process would not bring it back"


@pytest.mark.parametrize("waiting_for", [None, "the operator to stop"])
async def test_a_broken_operator_fails_both_probes_and_says_what_is_broken(waiting_for: str | None) -> None:
    operator = Operator()
    operator.health.waiting_for = waiting_for
    async with operator.serving():
        operator.fault = "part 'sweep' ended by itself"
        assert await operator.fetch("/healthz") == (503, "broken: part 'sweep' ended by itself\n")
        assert await operator.fetch("/readyz") == (503, "broken: part 'sweep' ended by itself\n")


async def test_the_metrics_are_there_as_prometheus_reads_them() -> None:
    operator = Operator()
    operator.metrics.breakdowns.labels("sweep").inc()
    async with operator.serving():
        url = f"http://127.0.0.1:{operator.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            assert 'tasker_operator_breakdowns_total{part="sweep"} 1.0' in await response.text()
    with pytest.raises(aiohttp.ClientConnectionError):
        await operator.fetch("/healthz")


async def test_probes_leave_no_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """They come every few seconds for as long as the operator runs."""
    caplog.set_level(logging.INFO, "aiohttp.access")
    operator = Operator()
    async with operator.serving():
        await operator.fetch("/healthz")
    assert caplog.records == []


async def test_a_port_that_is_taken_is_named() -> None:
    operator = Operator()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: "):
            async with serve_health(
                "127.0.0.1", port, health=operator.health, metrics=operator.metrics, on_bound=lambda _: None
            ):
                pass
