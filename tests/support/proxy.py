"""A TCP proxy in front of a server that can fail in every way that a network can.

    with Proxy(server.port) as proxy:
        connection = psycopg.connect(proxy.dsn(server.dsn()))
        proxy.hold(down=True)        # the server's answers stop arriving; nobody is told
        proxy.release()
        proxy.cut()                  # both ends see a reset
        proxy.refuse()               # nobody can connect; resume() ends it
        proxy.trap(Trap(…))          # with Proxy(port, wire=True): fail at a message of the protocol

One thread does all the work; the methods hand it an order and return once that is carried out.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from psycopg.conninfo import make_conninfo

from tests.support.wire import Messages, Trap, asks

LOOPBACK = "127.0.0.1"
CHUNK = 65536
#: What a flow may hold back before it stops reading, so that senders feel the back-pressure of a real network.
WINDOW = 256 * 1024
RESET = struct.pack("ii", 1, 0)
#: In a flow: hold everything from here on. Told from data by identity.
_HOLD = bytes(bytearray(b"hold"))
#: The server's messages that say how a request went.
_ANSWERS = frozenset("RZWGE")


@dataclass(eq=False)
class _Flow:
    """Bytes on their way from one socket to another. ``waiting``: (when due, what)."""

    up: bool
    source: socket.socket
    sink: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    held: int = 0
    ended: bool = False  # the source has sent its last
    done: bool = False  # and the sink was told
    dead: bool = False  # held for good
    messages: Messages | None = None

    def due(self, now: float) -> bool:
        return bool(self.waiting) and self.waiting[0][0] <= now


@dataclass(eq=False)
class _Link:
    client: socket.socket
    server: socket.socket
    flows: tuple[_Flow, _Flow]
    silent: bool = False  # one end was cut off: what the other says is not read any more
    deaf: bool = False  # what the server says is lost, and its answer cuts the line


class Proxy:
    """Forwards connections on ``port`` to ``target`` on loopback. Start it by entering its context.

    ``wire``: follow the protocol's messages, as `trap` needs it. ``window``: bytes that may be on their way each way.
    """

    def __init__(self, target: int, *, wire: bool = False, window: int = WINDOW) -> None:
        self._wire = wire
        self._window = window
        self._trap: Trap | None = None
        self._passed = 0
        self._tripped = threading.Event()
        self._target = (LOOPBACK, target)
        self._listener: socket.socket | None = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waker, self._alarm = socket.socketpair()
        self._waker.setblocking(False)
        self._links: list[_Link] = []
        self._held = {True: False, False: False}
        self._delay = 0.0
        self._fuse: tuple[bool, int, bool] | None = None
        self._blown = threading.Event()
        self._bytes = {True: 0, False: 0}
        self._accepted = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what tests ask of it ------------------------------------------------------------------------------------

    def dsn(self, dsn: str) -> str:
        """The same database, through the proxy."""
        return make_conninfo(dsn, host=LOOPBACK, port=self.port)

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    @property
    def accepted(self) -> int:
        """How many there have been."""
        return self._accepted

    @property
    def sent_up(self) -> int:
        """Bytes forwarded from clients to the server, ever."""
        return self._bytes[True]

    @property
    def sent_down(self) -> int:
        """Bytes forwarded from the server to clients, ever."""
        return self._bytes[False]

    def cut(self, *, client: bool = True, server: bool = True, reset: bool = True) -> int:
        """End all connections, with a reset or an orderly FIN; returns how many there were.

        With ``client`` or ``server`` False that end is not told: for it the connection is half-open, silent both ways.
        What is still on its way is lost.
        """
        count = 0

        def order() -> None:
            nonlocal count
            count = len(self._links)
            for link in list(self._links):
                self._cut(link, client=client, server=server, reset=reset)

        self._do(order)
        return count

    def cut_after(self, count: int, *, up: bool = False, reset: bool = True) -> threading.Event:
        """Cut every connection once ``count`` more bytes went through (down, unless ``up``), inside a message too.

        The event tells that it happened: a new connection does not, since a daemon opens some of its own accord.
        """

        def order() -> None:
            self._fuse, self._blown = (up, self._bytes[up] + count, reset), threading.Event()

        self._do(order)
        return self._blown

    def trap(self, trap: Trap) -> threading.Event:
        """Fail at the next message that the trap is for, once; the event tells that it happened."""
        assert self._wire, "the proxy does not follow the protocol"

        def order() -> None:
            self._trap, self._passed, self._tripped = trap, 0, threading.Event()

        self._do(order)
        return self._tripped

    def disarm(self) -> None:
        """Forget a trap that was not met."""
        self._do(lambda: setattr(self, "_trap", None))

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """Stop forwarding in these directions, for connections there are and to come. Nobody is told."""
        self._do(lambda: self._held.update({True: self._held[True] or up, False: self._held[False] or down}))

    def deaden(self, *, up: bool = True, down: bool = True) -> None:
        """Never forward anything again in these directions, for the connections that there are. Nobody is told."""

        def order() -> None:
            for flow in (flow for link in self._links for flow in link.flows):
                flow.dead = flow.dead or (up if flow.up else down)

        self._do(order)

    def release(self) -> None:
        """Forward again, first what was held."""
        self._do(lambda: self._held.update({True: False, False: False}))

    def delay(self, seconds: float) -> None:
        """Let everything arrive that much later, both ways. 0 ends it."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def refuse(self) -> None:
        """Refuse new connections. Those there are go on."""

        def order() -> None:
            if self._listener is not None:
                self._listener.close()
                self._listener = None

        self._do(order)

    def resume(self) -> None:
        """Accept connections again, on the same port."""

        def order() -> None:
            if self._listener is None:
                self._listener = socket.create_server((LOOPBACK, self.port))

        self._do(order)

    def close(self) -> None:
        """End everything. May be called twice."""
        if self._thread.is_alive():
            self._orders.put(None)
            self._alarm.send(b"!")
            self._thread.join()
        for link in list(self._links):
            self._cut(link, client=True, server=True, reset=True)
        if self._listener is not None:
            self._listener.close()
        self._waker.close()
        self._alarm.close()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            order()
            done.set()

        self._orders.put(run)
        self._alarm.send(b"!")
        assert done.wait(10), "the proxy's thread is gone"

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            with selectors.DefaultSelector() as selector:
                selector.register(self._waker, selectors.EVENT_READ)
                if self._listener is not None:
                    selector.register(self._listener, selectors.EVENT_READ)
                self._register(selector, now)
                ready = {key.fileobj for key, _ in selector.select(self._patience(now))}
            if self._waker in ready:
                self._waker.recv(4096)
            with contextlib.suppress(queue.Empty):
                while True:
                    order = self._orders.get_nowait()
                    if order is None:
                        return
                    order()
            if self._listener is not None and self._listener in ready:
                self._accept(self._listener)
            for link in list(self._links):
                for flow in link.flows:
                    if link in self._links and not link.silent:
                        self._move(link, flow)

    def _register(self, selector: selectors.BaseSelector, now: float) -> None:
        for link in self._links:
            if link.silent:
                continue
            events: dict[socket.socket, int] = {}
            for flow in link.flows:
                if not flow.ended and flow.held < self._window:
                    events[flow.source] = events.get(flow.source, 0) | selectors.EVENT_READ
                if flow.due(now) and not self._holds(flow):
                    events[flow.sink] = events.get(flow.sink, 0) | selectors.EVENT_WRITE
            for sock, wanted in events.items():
                selector.register(sock, wanted)

    def _holds(self, flow: _Flow) -> bool:
        return flow.dead or self._held[flow.up]

    def _patience(self, now: float) -> float | None:
        """Seconds until the next delayed bytes are due."""
        due = [flow.waiting[0][0] - now for link in self._links for flow in link.flows if flow.waiting]
        later = [seconds for seconds in due if seconds > 0]
        return min(later) if later else None

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self._accepted += 1
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flows = (_Flow(True, client, server), _Flow(False, server, client))
        if self._wire:
            for flow in flows:
                flow.messages = Messages(flow.up)
        self._links.append(_Link(client, server, flows))

    def _move(self, link: _Link, flow: _Flow) -> None:
        try:
            if not flow.ended and flow.held < self._window:
                with contextlib.suppress(BlockingIOError):
                    data = flow.source.recv(CHUNK)
                    flow.ended = not data
                    if data and not self._take(link, flow, data):
                        return
            while not self._holds(flow) and flow.due(time.monotonic()):
                if not self._forward(link, flow):
                    return
            if flow.ended and not flow.waiting and not flow.done and not self._holds(flow):
                flow.done = True
                flow.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            # One end is gone without a word: neither does the proxy have one for the other.
            self._cut(link, client=True, server=True, reset=True)
            return
        if all(each.done for each in link.flows):
            self._cut(link, client=True, server=True, reset=False)

    def _take(self, link: _Link, flow: _Flow, data: bytes) -> bool:
        """Queue what was received, with a mine (no bytes) where the trap is. False when the line was cut."""
        due = time.monotonic() + self._delay
        begin = 0
        for known, end, message in flow.messages.feed(data) if flow.messages is not None else ():
            if flow.up and asks(message):
                other = link.flows[1].messages
                assert other is not None
                other.raw += 1
            elif link.deaf and not flow.up and message.kind in _ANSWERS:
                self._cut(link, client=True, server=True, reset=True)
                self._tripped.set()
                return False
            trap = self._trap
            if trap is None or trap.up != flow.up or not trap.matches(message):
                continue
            self._passed += 1
            if self._passed <= trap.after:
                continue
            self._trap = None
            if trap.lose == "answer":
                link.deaf = True
                continue
            # In the message's middle, if that has not passed; what follows its head may still be under way.
            place = (
                min(end, len(data)) if trap.lose == "nothing" else max(begin, known - max(1, len(message.head) // 2))
            )
            if place > begin:
                flow.waiting.append((due, data[begin:place]))
            flow.waiting.append((due, b"" if trap.lose == "message" else _HOLD))
            flow.held += place - begin
            begin = place
        if link.deaf and not flow.up:
            return True
        if begin < len(data):
            flow.waiting.append((due, data[begin:]))
            flow.held += len(data) - begin
        return True

    def _forward(self, link: _Link, flow: _Flow) -> bool:
        """Send what is next, up to the fuse. False when the fuse blew."""
        _, data = flow.waiting[0]
        if not data or data is _HOLD:
            flow.waiting.popleft()
            if data is _HOLD:
                self._held.update({True: True, False: True})
            else:
                self._cut(link, client=True, server=True, reset=True)
            self._tripped.set()
            return data is _HOLD
        allowed = len(data)
        if self._fuse is not None and self._fuse[0] == flow.up:
            allowed = min(allowed, self._fuse[1] - self._bytes[flow.up])
        sent = flow.sink.send(data[:allowed]) if allowed else 0
        flow.held -= sent
        self._bytes[flow.up] += sent
        if sent == len(data):
            flow.waiting.popleft()
        else:
            flow.waiting[0] = (flow.waiting[0][0], data[sent:])
        if self._fuse is not None and self._fuse[0] == flow.up and self._bytes[flow.up] >= self._fuse[1]:
            reset = self._fuse[2]
            self._fuse = None
            for each in list(self._links):
                self._cut(each, client=True, server=True, reset=reset)
            self._blown.set()
            return False
        return True

    def _cut(self, link: _Link, *, client: bool, server: bool, reset: bool) -> None:
        link.silent = True
        for sock, told in ((link.client, client), (link.server, server)):
            if told:
                if reset:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
        if client and server:
            self._links.remove(link)
