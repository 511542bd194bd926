"""Reads snapshot chunks in a thread of its own, with a connection of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from towline.change import Chunk, Cursor, Relation
from towline.logs import event
from towline.snapshot import Snapshots
from towline.source import Tables
from towline_transforms.route import Route

log = logging.getLogger(__name__)

#: While transactions of before the barrier still run, how often to look whether they have ended (seconds).
_BARRIER_LOOK = 0.1
#: How often to say that it is them that a snapshot waits for (seconds).
_BARRIER_SAY = 30.0


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
            if self._closed.is_set():  # `close` may have come before there was anything to close
                self._tables.close()
        # Rule 1 would refuse a chunk that is read too early: a look at the snapshot is cheaper.
        say = time.monotonic() + _BARRIER_SAY
        while not self._snapshots.past_barrier(seen := self._tables.visibility()):
            if time.monotonic() >= say:
                say += _BARRIER_SAY
                event(
                    log,
                    logging.WARNING,
                    "snapshot_waits",
                    xid=seen.xmin & 0xFFFFFFFF,
                    detail="a transaction that is older than this attempt is still open at the source, or prepared",
                    remedy="Look for it in pg_stat_activity.backend_xid and in pg_prepared_xacts.transaction.",
                )
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
