"""A line with a delay between source and target, for every contender alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.contender import Place
from bench.drain import Through
from bench.servers import Servers
from bench.stage import through
from tests.support.proxy import Proxy

#: Bytes on their way at a time. What Linux lets a TCP connection have by default; less would be a limit of its own
#: (256 kB and 50 ms make 5 MB/s).
WINDOW = 6 * 2**20


@contextmanager
def delayed(servers: Servers, seconds: float) -> Iterator[Through]:
    """While the block runs, source and target reach each other with that round-trip time.

    A daemon stands beside the source, and a subscription is in the target: each of them has the line in its way once.
    """
    with Proxy(servers.source.port, window=WINDOW) as source, Proxy(servers.target.port, window=WINDOW) as target:
        source.delay(seconds / 2)
        target.delay(seconds / 2)

        def move(place: Place) -> Place:
            return through(
                place,
                source.dsn(servers.dsn(servers.source, tcp=True)),
                target.dsn(servers.dsn(servers.target, tcp=True)),
            )

        yield move
