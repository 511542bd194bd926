"""The proxy that fault tests put before a server does what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.proxy import Proxy
from tests.support.wait import until
from towline.demo.server import Server


class Echo(threading.Thread):
    """A server that sends back what it gets, until the end of it; ``endings`` says how connections ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.endings: list[str] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
                self.endings.append("end")
            except ConnectionResetError:
                self.endings.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    """An echo server."""
    server = Echo()
    server.start()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    server.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(echo.port) as proxy:
        yield proxy


def connect(proxy: Proxy, timeout: float = 5.0) -> socket.socket:
    """A client's connection; a recv that gets nothing within ``timeout`` raises TimeoutError."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)


def exactly(sock: socket.socket, count: int) -> bytes:
    """That many bytes."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more
        data += more
    return data


def test_forwards_and_counts(proxy: Proxy) -> None:
    """A megabyte goes through whole, and an orderly end is passed on."""
    blob = bytes(range(256)) * 4096
    with connect(proxy) as client:
        threading.Thread(target=client.sendall, args=(blob,)).start()
        assert exactly(client, len(blob)) == blob
        assert proxy.connections == 1
        until(lambda: (proxy.sent_up, proxy.sent_down) == (len(blob), len(blob)))  # counted when it was sent
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    until(lambda: proxy.connections == 0)


@pytest.mark.parametrize(("reset", "ending"), [(True, "reset"), (False, "end")])
def test_cut_is_seen_by_both_ends(proxy: Proxy, echo: Echo, reset: bool, ending: str) -> None:
    """A reset is a reset and a FIN a FIN, on both sides."""
    with connect(proxy) as client:
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"
        assert proxy.cut(reset=reset) == 1
        if reset:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            assert client.recv(1) == b""
    until(lambda: echo.endings == [ending], describe=lambda: echo.endings)


def test_half_open_leaves_one_end_in_the_dark(proxy: Proxy, echo: Echo) -> None:
    """The server is cut off; the client hears nothing, not even an end."""
    with connect(proxy, timeout=0.2) as client:
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"
        proxy.cut(client=False)
        until(lambda: echo.endings == ["reset"])
        client.sendall(b"y")
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_hold_and_release(proxy: Proxy) -> None:
    """What is held arrives after release, in order; the other direction is not affected."""
    with connect(proxy, timeout=0.2) as client:
        proxy.hold(up=False, down=True)
        client.sendall(b"one")
        until(lambda: proxy.sent_up == 3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"two")
        proxy.release()
        client.settimeout(5)
        assert exactly(client, 6) == b"onetwo"


def test_hold_makes_back_pressure(proxy: Proxy) -> None:
    """A held direction does not swallow without bounds: the sender blocks."""
    with connect(proxy, timeout=0.3) as client:
        proxy.hold()
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 * 1024 * 1024))
        assert proxy.sent_up == 0


def test_delay(proxy: Proxy) -> None:
    """Both ways are slower by what was asked."""
    with connect(proxy) as client:
        proxy.delay(0.1)
        start = time.monotonic()
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"
        assert time.monotonic() - start >= 0.2


def test_refuse_and_resume(proxy: Proxy) -> None:
    """New connections are refused, old ones go on; then the same port accepts again."""
    with connect(proxy) as client:
        client.sendall(b"x")
        exactly(client, 1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"
    proxy.resume()
    with connect(proxy) as client:
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"


def test_cut_after_counts_to_the_byte(proxy: Proxy) -> None:
    """The client gets exactly as much as was allowed, then a FIN."""
    with connect(proxy) as client:
        blown = proxy.cut_after(10, reset=False)
        client.sendall(b"012345678")
        assert exactly(client, 9) == b"012345678"
        assert not blown.is_set()
        client.sendall(b"9abcdef")
        assert exactly(client, 1) == b"9"
        assert client.recv(1) == b""
        assert blown.wait(10)


def test_a_server_that_is_down_resets_its_clients(echo: Echo) -> None:
    """Nobody behind the proxy: the client is let in by the proxy and then dropped, not left hanging."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)


def test_postgresql_through_it(pg18: Server) -> None:
    """A session works through the proxy, and dies of a cut."""
    with Proxy(pg18.port) as proxy:
        connection = psycopg.connect(proxy.dsn(pg18.dsn()), autocommit=True)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
