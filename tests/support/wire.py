"""The messages of PostgreSQL's protocol in a flow of bytes, so that a proxy can cut at one of them.

Source of the format: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

#: How much of a message's body is looked at.
HEAD = 120
#: Requests that a client makes before its startup message; each is answered by a single byte.
ASKS = (80877103, 80877104)  # TLS, GSSAPI
STARTUP = ""


@dataclass(frozen=True, slots=True)
class Message:
    """``kind``: its letter, or STARTUP. ``head``: the first bytes of its body. ``size``: all of it, in bytes.

    ``query``: how the statement begins that it sends, prepares, or runs where it was prepared under a name before.
    """

    kind: str
    head: bytes
    size: int
    query: bytes = b""


class Messages:
    """Finds the messages in what one end of a connection sends. ``up``: that end is the client."""

    def __init__(self, up: bool) -> None:
        self._startup = up
        self._header = b""
        self._head = b""
        self._size = 0  # of the message under way, without its header; the header is whole then
        self._left = 0
        self._whole = False
        self._prepared: dict[bytes, bytes] = {}
        self.raw = 0  # bytes to come that are no message

    def feed(self, data: bytes) -> list[tuple[int, int, Message]]:
        """The messages that became known: (where its head was whole, where it ends), as offsets into ``data``.

        The end may lie beyond ``data``. A message is given once, when `HEAD` bytes of its body, or all, are there.
        """
        found: list[tuple[int, int, Message]] = []
        at = 0
        while at < len(data):
            if self.raw:
                self.raw -= 1
                at += 1
                continue
            if not self._whole:
                at = self._take_header(data, at)
                if not self._whole:
                    break
            known = len(self._head)
            wanted = min(HEAD, self._size)
            taken = min(self._left, len(data) - at)
            self._head += data[at : at + min(taken, wanted - known)]
            if len(self._head) == wanted and (known < wanted or self._left == self._size):
                found.append((at + wanted - known, at + self._left, self._message()))
            at += taken
            self._left -= taken
            if not self._left:
                self._end()
        return found

    def _take_header(self, data: bytes, at: int) -> int:
        length = 4 if self._startup else 5
        taken = data[at : at + length - len(self._header)]
        self._header += taken
        if len(self._header) == length:
            (size,) = struct.unpack("!i", self._header[-4:])
            self._size = self._left = size - 4
            self._whole = True
            self._head = b""
        return at + len(taken)

    def _message(self) -> Message:
        kind = STARTUP if self._startup else chr(self._header[0])
        return Message(kind, self._head, self._size + len(self._header), self._query(kind))

    def _query(self, kind: str) -> bytes:
        if kind == "P":
            name, _, query = self._head.partition(b"\0")
            self._prepared[name] = query
            return query
        if kind == "B":
            _, _, rest = self._head.partition(b"\0")
            name = rest.partition(b"\0")[0]
            return self._prepared.get(name, b"") if name else b""
        return self._head if kind == "Q" else b""

    def _end(self) -> None:
        if self._startup and not asks(self._message()):
            self._startup = False
        self._header, self._whole = b"", False


def asks(message: Message) -> bool:
    """Whether it is a request that comes before the startup message."""
    return message.kind == STARTUP and len(message.head) >= 4 and struct.unpack("!i", message.head[:4])[0] in ASKS


@dataclass(frozen=True, slots=True)
class Trap:
    """At which message a proxy fails. ``up``: one from the client. ``lose``: what does not arrive

    * ``message``: this one, cut in its middle;
    * ``answer``: that to it: all is received there, and the line is cut when the answer comes back;
    * ``nothing``: the line is held just after it, both ways, for all connections, until `Proxy.release`.

    ``after``: as many messages of the kind are let through.
    """

    up: bool
    matches: Callable[[Message], bool]
    lose: str = "message"
    after: int = 0
