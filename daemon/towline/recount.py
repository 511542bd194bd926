"""Counting a table's keys beside the stream: what the sum is at a position, though the count takes a while.

The source adds up the keys in one snapshot (`Tables.count_keys`). Meanwhile the daemon goes on, so that what it has
applied when the count arrives is not what the snapshot saw. But the snapshot tells of each transaction whether it saw
it:

    the sum at a position that is not before the snapshot's `high` is what was counted, and what the transactions that
    were applied up to there and that the snapshot does not see did to the keys.

Transactions are followed from before the snapshot on. Of those before, all must be visible in it, although a commit
can reach the log, and so this daemon, before it becomes visible. So the snapshot waits for a barrier, as chunks do
(`towline.snapshot`): all that ran when the following began has ended.

A TRUNCATE makes an end of it: the sum is known then, it is that of no keys.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from towline.change import Relation, Visibility
from towline.key_sum import KeySum
from towline.position import before_page_header
from towline.source import KeyCount


class Recount:
    """One count of one table. The loop's thread tells what it applies, another one what the source says."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        #: Set when what is applied from now on is followed; and when nothing more is to come of it.
        self.following = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._undecided: dict[int, KeySum] = {}
        self._seen: Visibility | None = None
        self._beyond = KeySum()
        self._count: KeyCount | None = None

    # ---- what the source says --------------------------------------------------------------------------------

    def looked(self, seen: Visibility) -> None:
        """A snapshot was taken while the count waits; the count's own will see what this one saw."""
        with self._lock:
            self._undecided = {xid: keys for xid, keys in self._undecided.items() if not seen.sees(xid)}

    def began(self, seen: Visibility) -> None:
        """The count has begun, in that snapshot."""
        with self._lock:
            for xid, keys in self._undecided.items():
                if not seen.sees(xid):
                    self._beyond += keys
            self._undecided.clear()
            self._seen = seen

    def counted(self, count: KeyCount) -> None:
        """The count is done."""
        with self._lock:
            self._count = count

    # ---- what is applied -------------------------------------------------------------------------------------

    def applied(self, changes: Mapping[int, KeySum]) -> None:
        """What transactions (by xid) did to the table's keys."""
        with self._lock:
            for xid, keys in changes.items():
                if self._seen is None:
                    self._undecided[xid] = self._undecided.get(xid, KeySum()) + keys
                elif not self._seen.sees(xid):
                    self._beyond += keys

    def at(self, position: int) -> KeySum | None:
        """The sum once everything up to that position was applied; None when that cannot be told yet."""
        with self._lock:
            if self._count is None or self._count.keys is None or position < before_page_header(self._count.high):
                return None
            return self._count.keys + self._beyond
