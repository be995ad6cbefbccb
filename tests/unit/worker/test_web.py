"""Health and metrics over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasker_worker.errors import WorkerError
from tasker_worker.metrics import _GAUGES, Histogram, WorkerMetrics, exposition
from tasker_worker.web import WebServer, _Handler, _Server


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
    """Though the server was the one that ended a connection, of which the system then keeps a trace for a minute."""
    first = WebServer(Subject(), "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", first.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        while connection.recv(4096):
            pass  # until the server has closed it
    first.close()
    second = WebServer(Subject(), "127.0.0.1", first.port)
    second.close()


def _samples(text: str) -> dict[str, float]:
    """Values by name and labels, as they stand in the exposition; without when a series was created."""
    return {
        f"{sample.name}{dict(sorted(sample.labels.items())) or ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


COUNTERS = {
    "claimed": "tasker_worker_steps_claimed_total",
    "claims_late": "tasker_worker_claims_late_total",
    "succeeded": "tasker_worker_steps_total{'outcome': 'success'}",
    "failed": "tasker_worker_steps_total{'outcome': 'error'}",
    "released": "tasker_worker_steps_total{'outcome': 'release'}",
    "skipped": "tasker_worker_steps_total{'outcome': 'skip'}",
    "timed_out": "tasker_worker_step_timeouts_total",
    "calls": "tasker_worker_calls_total",
    "call_failures": "tasker_worker_call_failures_total",
    "lock_timeouts": "tasker_worker_lock_timeouts_total",
    "results_discarded": "tasker_worker_results_discarded_total",
    "results_refused": "tasker_worker_results_refused_total",
    "outcomes_unsure": "tasker_worker_outcomes_unsure_total",
    "leases_lost": "tasker_worker_leases_lost_total",
    "renewals": "tasker_worker_renewals_total",
    "renewal_failures": "tasker_worker_renewal_failures_total",
    "sweeps": "tasker_worker_sweeps_total",
    "threads_given_up": "tasker_worker_threads_given_up_total",
    "tasks_given_up": "tasker_worker_tasks_given_up_total",
    "loop_blocked": "tasker_worker_loop_blocked_total",
    "steps_starved": "tasker_worker_steps_starved_total",
    "hints_received": "tasker_worker_hints_received_total",
    "hints_sent": "tasker_worker_hints_sent_total",
}
BOUNDS = ("0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0", "5.0", "10.0", "60.0", "300.0", "+Inf")


def test_metrics_are_valid_and_hold_what_was_counted() -> None:
    metrics = WorkerMetrics()
    assert {name for name in vars(metrics) if name not in ("run_seconds", "repairs")} == COUNTERS.keys()
    labels = {"namespace": "shop", "worker": "w-1"}
    nothing = _samples(exposition(metrics, lambda: {"slots": 10.0}, labels).decode())
    assert all(nothing[sample] == 0 for sample in COUNTERS.values())
    assert all(nothing[f"tasker_worker_step_seconds_bucket{{'le': '{bound}'}}"] == 0 for bound in BOUNDS)
    for place, name in enumerate(COUNTERS, 1):
        setattr(metrics, name, place)
    metrics.repairs.update(retries_due=4, leases_expired=5)
    metrics.run_seconds.observe(0.003)
    metrics.run_seconds.observe(1000)
    text = exposition(metrics, lambda: dict.fromkeys(_GAUGES, 10.0), labels).decode()
    assert _samples(text) == {
        f"tasker_worker_info{labels}": 1,
        **{sample: place for place, sample in enumerate(COUNTERS.values(), 1)},
        "tasker_worker_repairs_total{'repair': 'retries_due'}": 4,
        "tasker_worker_repairs_total{'repair': 'leases_expired'}": 5,
        **{
            f"tasker_worker_step_seconds_bucket{{'le': '{bound}'}}": {"0.001": 0, "+Inf": 2}.get(bound, 1)
            for bound in BOUNDS
        },
        "tasker_worker_step_seconds_count": 2,
        "tasker_worker_step_seconds_sum": 1000.003,
        **{f"tasker_worker_{name}": 10.0 for name in _GAUGES},
    }
    helps = [line.split(maxsplit=3)[2:] for line in text.splitlines() if line.startswith("# HELP")]
    assert all(len(each) == 2 and each[1].endswith(".") for each in helps)


def test_a_duration_falls_into_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 301):
        histogram.observe(seconds)
    assert histogram.counts == [2, 1, *[0] * 9, 1]


def test_an_address_of_ipv6_is_answered_at_and_one_of_no_host_is_named() -> None:
    try:
        server = WebServer(Subject(), "::1", 0)
    except WorkerError:
        pytest.skip("this machine has no IPv6")
    try:
        connection = http.client.HTTPConnection("::1", server.port, timeout=5)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        server.close()
    with pytest.raises(WorkerError, match=r"^port 70000 on 127\.0\.0\.1 cannot be used .*: .*0-65535"):
        WebServer(Subject(), "127.0.0.1", 70_000)


def test_an_answer_says_what_it_is_and_not_what_it_runs_on(server: WebServer) -> None:
    told = {}
    for path in ("/health", "/health/detailed", "/metrics", "/other"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", path)
        response = connection.getresponse()
        told[path] = response.headers["Content-Type"]
        assert len(response.read()) == int(response.headers["Content-Length"])
        assert response.headers["Server"].strip() == "tasker-worker"
        connection.close()
    json_type = "application/json"
    assert told == {
        "/health": json_type,
        "/health/detailed": json_type,
        "/metrics": "text/plain; version=0.0.4; charset=utf-8",
        "/other": json_type,
    }


def test_what_is_not_live_says_so_in_detail_too(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "live", False)
    status, body = _get(server, "/health/detailed")
    assert (status, json.loads(body)["worker"]) == (503, "w-1")


def test_one_that_sends_no_request_holds_up_neither_others_nor_the_end(server: WebServer) -> None:
    assert _Handler.timeout == 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=5):
        assert _get(server, "/health")[0] == 200
        threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        assert threads
        assert all(thread.daemon for thread in threads)
        server.close()
        server.close = lambda: None  # type: ignore[method-assign]


def test_its_end_is_noticed_within_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    serve = _Server.serve_forever

    def noted(server: _Server, poll_interval: float = 0.5) -> None:
        pauses.append(poll_interval)
        serve(server, poll_interval)

    monkeypatch.setattr(_Server, "serve_forever", noted)
    server = WebServer(Subject(), "127.0.0.1", 0)
    assert _get(server, "/health")[0] == 200
    server.close()
    assert pauses == [0.1]


def test_one_that_is_closed_has_no_thread_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    serve = _Server.serve_forever

    def lingers(server: _Server, poll_interval: float) -> None:
        serve(server, poll_interval)
        may_end.wait(10)

    monkeypatch.setattr(_Server, "serve_forever", lingers)
    server = WebServer(Subject(), "127.0.0.1", 0)
    closing = threading.Thread(target=server.close, daemon=True)
    closing.start()
    closing.join(0.2)
    waited = closing.is_alive()
    may_end.set()
    closing.join(5)
    assert (waited, closing.is_alive(), server._thread.is_alive()) == (True, False, False)
