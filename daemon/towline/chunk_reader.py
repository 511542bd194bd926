"""Reads snapshot chunks in a thread of its own, with a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from towline.change import Chunk, Cursor, Relation
from towline.snapshot import Snapshots
from towline.source import Tables
from towline_transforms.route import Route

#: While transactions of before the barrier still run, how often to look whether they have ended (seconds).
_BARRIER_LOOK = 0.1


class BackgroundChunkReader:
    """One worker thread; the connection is opened by the first request. `close` makes a request under way fail."""

    def __init__(self, connect: Callable[[], Tables], snapshots: Snapshots) -> None:
        self._connect = connect
        self._snapshots = snapshots
        self._tables: Tables | None = None
        self._closed = threading.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="towline-chunks")

    def request(self, route: Route, relation: Relation, after: Cursor | None, limit: int) -> Future[Chunk]:
        """Read the rows of ``relation`` that follow ``after``, once transactions of before the barrier have ended."""
        return self._executor.submit(self._read, relation, after, limit)

    def _read(self, relation: Relation, after: Cursor | None, limit: int) -> Chunk:
        if self._tables is None:
            self._tables = self._connect()
        # Rule 1 would refuse a chunk that is read too early: a look at the snapshot is cheaper.
        while not self._snapshots.past_barrier(self._tables.visibility()):
            self._closed.wait(_BARRIER_LOOK)
            if self._closed.is_set():
                break
        return self._tables.chunk(relation, after, limit)

    def close(self) -> None:
        """Stop; a chunk under way is abandoned."""
        self._closed.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._tables is not None:
            self._tables.close()
