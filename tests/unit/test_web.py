"""The web server, spoken to over real sockets: answers, and what slow or hostile clients cannot do."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from towline import web
from towline.errors import AddressInUse
from towline.metrics import Metrics
from towline.web import Health, WebServer


class Daemon:
    """What the server is told of the daemon."""

    health = Health(live=True, ready=True, detail="active")

    def __call__(self) -> Health:
        return self.health


@pytest.fixture
def daemon() -> Daemon:
    """A daemon in good health, to be changed by the test."""
    return Daemon()


@pytest.fixture
def server(daemon: Daemon) -> Iterator[WebServer]:
    """A server on a free port of localhost."""
    server = web.serve("127.0.0.1", 0, Metrics("p"), daemon)
    yield server
    server.close()


def ask(server: WebServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()
    finally:
        connection.close()


def test_metrics_as_text(server: WebServer) -> None:
    """Prometheus' text form is the default."""
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert 'towline_role{pipeline="p",role="starting"} 1.0' in body
    assert "process_resident_memory_bytes" in body


def test_metrics_as_openmetrics(server: WebServer) -> None:
    """OpenMetrics for those that ask for it."""
    status, headers, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("health", "healthz", "readyz"),
    [
        (Health(True, True, "active"), 200, 200),
        (Health(True, True, "standby"), 200, 200),
        (Health(True, False, "backoff: TL-401 no answer"), 200, 503),
        (Health(False, False, "the loop has not turned for 130 s"), 503, 503),
    ],
)
def test_health(server: WebServer, daemon: Daemon, health: Health, healthz: int, readyz: int) -> None:
    """/healthz follows live, /readyz follows ready; both give the reason."""
    daemon.health = health
    for path, expected in (("/healthz", healthz), ("/readyz?x=1", readyz)):
        status, _, body = ask(server, path)
        assert (status, body) == (expected, f"{health.detail}\n")


def test_index_escapes(server: WebServer, daemon: Daemon) -> None:
    """The index links the rest, and shows the detail as text."""
    daemon.health = Health(True, False, "<script>&")
    status, headers, body = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "&lt;script>&amp;" in body and 'href="metrics"' in body


def test_head_has_no_body(server: WebServer) -> None:
    """HEAD answers with the headers that GET would have."""
    status, headers, body = ask(server, "/readyz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "7", "")


def test_unknown_paths_and_methods(server: WebServer) -> None:
    """404 and 405; nothing about the software behind it."""
    status, headers, _ = ask(server, "/etc/passwd")
    assert (status, headers["Server"].strip()) == (404, "towline")
    status, headers, _ = ask(server, "/metrics", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "noise", [b"", b"GET", b"\0\xff" * 100 + b"\r\n\r\n", b"GET /" + b"a" * 70000, b"X: y\r\n" * 200]
)
def test_noise_does_no_harm(server: WebServer, noise: bytes) -> None:
    """Whatever a client sends, or does not, the next one is answered."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(noise)
        assert ask(server, "/healthz")[0] == 200


def test_silent_clients_are_cut(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that connect and dawdle use up the places, and lose them again; the server never hangs."""
    monkeypatch.setattr(web._Server, "longest", 0.5)
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(32)]
    try:
        for client in clients[:8]:
            client.sendall(b"GET /metrics HTTP/1.0\r\nX-Slow: ")
        deadline = time.monotonic() + 10
        while True:
            try:
                assert ask(server, "/healthz")[0] == 200
                break
            except (OSError, http.client.HTTPException):  # no place left yet
                assert time.monotonic() < deadline
        assert all(client.recv(100) == b"" for client in clients[:8])
    finally:
        for client in clients:
            client.close()


def test_address_in_use(server: WebServer, daemon: Daemon) -> None:
    """A port that is taken, an address that is not ours and a name that is none are a coded error."""
    for host, port in (("127.0.0.1", server.port), ("192.0.2.1", 0), ("no such host", 0)):
        with pytest.raises(AddressInUse) as caught:
            web.serve(host, port, Metrics("p"), daemon)
        assert f"{host}, port {port}" in caught.value.detail


def test_close_twice(daemon: Daemon) -> None:
    """Closing is idempotent and frees the port."""
    server = web.serve("localhost", 0, Metrics("p"), daemon)
    port = server.port
    server.close()
    server.close()
    again = web.serve("localhost", port, Metrics("p"), daemon)
    again.close()
