"""The worker's small HTTP server: health for the kubelet, metrics for Prometheus. Reads only.

It runs in threads, not on the event loop, so that it still answers, and truly, while a handler blocks the loop.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from .errors import WorkerError
from .readable import readable

logger = logging.getLogger("tasker_worker.web")

_REQUEST_SECONDS = 5  # for a client to send its request


class Subject(Protocol):
    """What the server reports on. Called from the server's threads."""

    def is_live(self) -> bool: ...
    def is_ready(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...
    def metrics_text(self) -> bytes: ...


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True  # a port left in TIME_WAIT by a restart is free
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a client went away")


class WebServer:
    """Answers at one address until closed."""

    def __init__(self, subject: Subject, host: str, port: int) -> None:
        """Binds at once; WorkerError names the address when it is taken."""

        class Handler(_Handler):
            pass

        Handler.subject = subject

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkerError(f"port {port} on {host} cannot be used for health and metrics: {reason}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    subject: Subject
    timeout = _REQUEST_SECONDS
    server_version = "tasker-worker"
    sys_version = ""

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/health":
                healthy = self.subject.is_live()
                self._answer_json(healthy, {"status": "healthy" if healthy else "unhealthy"})
            case "/health/live":
                live = self.subject.is_live()
                self._answer_json(live, {"live": live})
            case "/health/ready":
                ready = self.subject.is_ready()
                self._answer_json(ready, {"ready": ready})
            case "/health/detailed":
                self._answer_status()
            case "/metrics":
                self._answer(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", self.subject.metrics_text())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "application/json", b'{"error": "there is nothing at this path"}')

    do_HEAD = do_GET  # noqa: N815

    def _answer_status(self) -> None:
        try:
            status = self.subject.status()
        except (Exception, SystemExit) as error:  # it asks handlers for their versions, which are the user's code
            fault = {"error": f"the status cannot be read: {type(error).__name__}: {error}"}
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", json.dumps(fault).encode())
        else:
            self._answer_json(self.subject.is_live(), readable(status, hide_secrets=False))

    def _answer_json(self, good: bool, value: dict[str, Any]) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "application/json", json.dumps(value).encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        logger.debug(format, *args)
