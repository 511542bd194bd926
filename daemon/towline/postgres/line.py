"""The line under a session: how much has passed on it, how much fits into it, and how to end a wait that nothing else
would end.

The kernel finds out about a line that is down (`session`: keepalives, ``tcp_user_timeout``), but not about one with
something in between, a proxy or a pooler, that acknowledges all and forwards nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import psycopg

#: Where the kernel's struct tcp_info has tcpi_bytes_acked and tcpi_bytes_received (include/uapi/linux/tcp.h).
_COUNTERS = struct.Struct("=120xQQ")
#: What a Unix socket is asked to hold (bytes); the kernel gives as much of it as it allows (net.core.wmem_max).
_ROOM = 1 << 20


def hang_up(connection: psycopg.Connection[Any]) -> None:
    """End the line, from any thread: who waits for an answer gets an OperationalError at once."""
    with contextlib.suppress(OSError, psycopg.Error), _socket(connection) as line:
        line.shutdown(socket.SHUT_RDWR)


def traffic(connection: psycopg.Connection[Any]) -> int | None:
    """Bytes that have arrived so far, at either end. None: the line is no TCP connection, or the kernel not Linux."""
    with contextlib.suppress(OSError, psycopg.Error, AttributeError, struct.error), _socket(connection) as line:
        acknowledged, received = _COUNTERS.unpack(
            line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)  # AttributeError: not Linux
        )
        return int(acknowledged + received)
    return None


def widen(connection: psycopg.Connection[Any]) -> None:
    """Let the kernel keep more of what is sent, if the line is a Unix socket; TCP sees to that by itself.

    By default that is some 200 kB on Linux, which a server at a COPY has taken in a millisecond. It is told to us when
    three quarters of that are gone, and the other thread may have Python's lock for as long as the rest lasts.
    """
    with contextlib.suppress(OSError, psycopg.Error), _socket(connection) as line:
        if line.family == socket.AF_UNIX and line.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _ROOM:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)


@contextlib.contextmanager
def within(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """For statements that are answered at once: hang up when the block takes longer than that."""
    timer = threading.Timer(seconds, hang_up, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _socket(connection: psycopg.Connection[Any]) -> socket.socket:
    """Of a descriptor of its own, so that nobody closes it meanwhile."""
    return socket.socket(fileno=os.dup(connection.fileno()))
