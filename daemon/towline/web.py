"""Metrics and health over HTTP, for Prometheus and for whoever restarts the daemon.

| path | answer |
|---|---|
| ``/metrics`` | the metrics, as Prometheus text or OpenMetrics, as ``Accept`` asks |
| ``/healthz`` | 200 while the daemon's loop is alive; else 503 |
| ``/readyz`` | 200 while it replicates or stands by; else 503 with the reason |

Nothing here can hold up the daemon: each connection has a thread of its own, answers one request, and is cut after a
few seconds, whatever the client does; beyond a number of connections new ones are refused.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import choose_encoder

from towline.errors import AddressInUse
from towline.logs import event
from towline.metrics import Metrics

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 16
_TEXT = "text/plain; charset=utf-8"
_INDEX = """<!doctype html>
<title>Towline</title>
<h1>Towline: {pipeline}</h1>
<p>{detail}</p>
<ul><li><a href="metrics">metrics</a><li><a href="healthz">healthz</a><li><a href="readyz">readyz</a></ul>
"""


@dataclass(frozen=True, slots=True)
class Health:
    """``live``: the loop turns. ``ready``: it replicates, or stands by to. ``detail``: why (not), for people."""

    live: bool
    ready: bool
    detail: str


class WebServer:
    """A running server; made by `serve`."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.25,), name="towline-web", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening; may be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)


def serve(host: str, port: int, metrics: Metrics, health: Callable[[], Health]) -> WebServer:
    """Listen on ``host``; ``port`` 0 takes a free one (it is for callers to leave out the server altogether).

    Raises AddressInUse.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return WebServer(_Server(family, address, metrics, health))
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise AddressInUse(f"cannot listen on {host}, port {port}: {reason}") from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    #: How long a connection may last in all, in seconds.
    longest = 10.0

    def __init__(self, family: int, address: Any, metrics: Metrics, health: Callable[[], Health]) -> None:
        self.address_family = family
        self.metrics = metrics
        self.health = health
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                return False
            self._open[request] = time.monotonic()
            return True

    def shutdown_request(self, request: Any) -> None:
        """End a connection, whether it was served or refused."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two looks at the listening socket: cut connections that last too long."""
        now = time.monotonic()
        with self._lock:
            for request, since in self._open.items():
                if now - since > self.longest:
                    _cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event for the log; a defect of ours is."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "request_failed", exc_info=True, extra={"fields": {}})


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # for one read or write, in seconds
    server_version = "towline"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.metrics.registry), content_type)
        elif path in ("/healthz", "/readyz"):
            health = self.server.health()
            good = health.live if path == "/healthz" else health.ready
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{health.detail}\n".encode(), _TEXT)
        elif path == "/":
            page = _INDEX.format(pipeline=self.server.metrics.pipeline, detail=_escaped(self.server.health().detail))
            self._answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found: see /metrics, /healthz, /readyz\n", _TEXT)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD only\n", _TEXT)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are only of interest to who debugs."""
        event(log, logging.DEBUG, "request", client=self.client_address[0])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended in the meantime
