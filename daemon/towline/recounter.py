"""Counts the keys of tables beside the stream, in a thread and with a connection of its own: see `towline.recount`.

One table after the other: those that were copied and whose sum is not known yet, and those that somebody asks for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from towline.change import Relation
from towline.errors import TowlineError
from towline.logs import event
from towline.recount import Recount
from towline.running_sums import RunningSums
from towline.source import Tables
from towline_transforms.schema import TableName

log = logging.getLogger(__name__)

#: How often to look whether there is something to count, or whether what a count waits for has come (seconds).
_LOOK = 0.2
#: How long to wait after a count that failed, or to which the source could give no answer (seconds).
_AGAIN = 5.0


class Recounter:
    """One worker thread. ``ready``: whether nothing is being copied, which goes first."""

    def __init__(self, connect: Callable[[], Tables], sums: RunningSums, ready: Callable[[], bool]) -> None:
        self._connect = connect
        self._sums = sums
        self._ready = ready
        self._tables: Tables | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="towline-recount", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a count under way is abandoned."""
        self._stop.set()
        if (tables := self._tables) is not None:
            tables.close()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK):
            if not self._ready() or not self._sums.uncounted():
                self._disconnect()
                continue
            failed: set[TableName] = set()
            while relation := self._next(failed):
                recount = Recount(relation)
                try:
                    done = self._count(recount)
                except TowlineError as error:
                    done = False
                    if not self._stop.is_set():
                        event(log, logging.WARNING, "keys_not_counted", code=error.code, detail=error.detail)
                    self._disconnect()
                if not done:
                    self._sums.forget(recount)
                    failed.add(relation.name)
            if failed:
                self._stop.wait(_AGAIN)
        self._disconnect()

    def _next(self, failed: set[TableName]) -> Relation | None:
        """A table to be counted that has not failed just now."""
        if self._stop.is_set():
            return None
        return next((relation for relation in self._sums.uncounted() if relation.name not in failed), None)

    def _count(self, recount: Recount) -> bool:
        """Count a table and wait until that has been of use. False: stopped, or the source could not tell."""
        if self._tables is None:
            self._tables = self._connect()
        tables = self._tables
        self._sums.follow(recount)
        if not self._await(recount.following):
            return False
        barrier = tables.horizon().xmax
        while (seen := tables.visibility()).xmin < barrier:
            recount.looked(seen)
            if self._stop.wait(_LOOK):
                return False
        count = tables.count_keys(recount.relation, recount.began)
        recount.counted(count)
        name = str(recount.relation.name)
        if count.keys is None:
            event(log, logging.DEBUG, "keys_not_told", table=name)
            return False
        event(log, logging.DEBUG, "keys_counted", table=name, keys=count.keys.keys)
        return self._await(recount.over)

    def _await(self, sign: threading.Event) -> bool:
        """False: stopped meanwhile."""
        while not sign.wait(_LOOK):
            if self._stop.is_set():
                return False
        return True

    def _disconnect(self) -> None:
        if self._tables is not None:
            self._tables.close()
            self._tables = None
