"""Health and metrics over HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasker_worker.errors import WorkerError
from tasker_worker.metrics import Histogram, WorkerMetrics, exposition
from tasker_worker.web import WebServer


class Subject:
    live = True
    ready = True
    fault: BaseException | None = None

    def is_live(self) -> bool:
        return self.live

    def is_ready(self) -> bool:
        return self.ready

    def status(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return {"worker": "w-1", "handlers": {"make_token": "1.0.0"}, "heartbeat": {(1, 2): {float("nan")}}}

    def metrics_text(self) -> bytes:
        return b"tasker_worker_slots 1\n"


@pytest.fixture
def server() -> Iterator[WebServer]:
    made = WebServer(Subject(), "127.0.0.1", 0)
    yield made
    made.close()


def _get(server: WebServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("fault", [SystemExit(3), ValueError("no version")])
def test_a_status_that_a_handler_s_code_keeps_from_being_told_is_an_answer_too(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    monkeypatch.setattr(Subject, "fault", fault)
    status, body = _get(server, "/health/detailed")
    assert (status, json.loads(body)) == (
        500,
        {"error": f"the status cannot be read: {type(fault).__name__}: {fault}"},
    )


def test_every_path_answers(server: WebServer) -> None:
    assert _get(server, "/health") == (200, b'{"status": "healthy"}')
    assert _get(server, "/health/live?x=1") == (200, b'{"live": true}')
    assert _get(server, "/health/ready") == (200, b'{"ready": true}')
    status, body = _get(server, "/health/detailed")
    assert (status, json.loads(body)) == (
        200,
        {"worker": "w-1", "handlers": {"make_token": "1.0.0"}, "heartbeat": {"(1, 2)": ["nan"]}},
    )
    assert _get(server, "/metrics") == (200, b"tasker_worker_slots 1\n")
    assert _get(server, "/other")[0] == 404
    assert _get(server, "/health", method="HEAD") == (200, b"")
    assert _get(server, "/health", method="POST")[0] == 501


def test_what_is_not_well_says_so(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "ready", False)
    assert _get(server, "/health/ready")[0] == 503
    assert _get(server, "/health/live")[0] == 200
    monkeypatch.setattr(Subject, "live", False)
    assert _get(server, "/health/live")[0] == 503
    assert _get(server, "/health") == (503, b'{"status": "unhealthy"}')


def test_a_port_that_is_taken_is_named(server: WebServer) -> None:
    with pytest.raises(
        WorkerError,
        match=rf"^port {server.port} on 127\.0\.0\.1 cannot be used for health and metrics: Address already in use$",
    ):
        WebServer(Subject(), "127.0.0.1", server.port)


def test_a_port_is_free_again_after_closing() -> None:
    first = WebServer(Subject(), "127.0.0.1", 0)
    _get(first, "/health")
    first.close()
    second = WebServer(Subject(), "127.0.0.1", first.port)
    second.close()


def test_metrics_are_valid_and_hold_what_was_counted() -> None:
    metrics = WorkerMetrics()
    metrics.succeeded, metrics.failed, metrics.results_discarded = 3, 1, 2
    metrics.repairs["retries_due"] = 4
    metrics.run_seconds.observe(0.003)
    metrics.run_seconds.observe(1000)
    text = exposition(metrics, lambda: {"slots": 10.0}, {"worker": "w-1"}).decode()
    samples = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["tasker_worker_info", (("worker", "w-1"),)] == 1
    assert samples["tasker_worker_steps_total", (("outcome", "success"),)] == 3
    assert samples["tasker_worker_steps_total", (("outcome", "error"),)] == 1
    assert samples["tasker_worker_results_discarded_total", ()] == 2
    assert samples["tasker_worker_repairs_total", (("repair", "retries_due"),)] == 4
    assert samples["tasker_worker_step_seconds_bucket", (("le", "0.005"),)] == 1
    assert samples["tasker_worker_step_seconds_bucket", (("le", "+Inf"),)] == 2
    assert samples["tasker_worker_step_seconds_count", ()] == 2
    assert samples["tasker_worker_slots", ()] == 10


def test_a_duration_falls_into_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 301):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
