"""A streamed transaction that is under way: what is kept of it, and what a rollback within it takes away.

For the messages and the rules see `streamed`. A transaction may have very many changes, so all that is done for each is
one look at its first bytes (kind, xid and table); those that are known are kept many at a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from towline.source.postgres.block import Block

#: Bytes of a change that tell its kind, (sub)transaction and table.
HEAD = 9
#: A transaction may have millions of subtransactions: not more heads than this are remembered.
HEADS = 1000


class Kept(Protocol):
    """The messages of one transaction; see `towline.source.postgres.spool.SpooledTransaction`."""

    @property
    def count(self) -> int:
        """How many messages there are."""

    def add(self, messages: Sequence[bytes]) -> None:
        """Keep messages."""

    def cut(self, count: int) -> None:
        """Forget all messages but the first so many."""

    def blocks(self) -> Iterator[Block]:
        """All messages in order, without envelopes, some at a time."""

    def drop(self) -> None:
        """Forget it."""


class Keep(Protocol):
    """Where transactions are kept; see `towline.source.postgres.spool.Spool`."""

    def open(self) -> Kept:
        """Room for another transaction."""

    def settle(self) -> None:
        """A part has ended: let there not be too much in memory."""


@dataclass(slots=True, eq=False)
class UnderWay:
    """A transaction of which parts have come. Tables as they are in messages: four bytes.

    ``described``: which message described a table, the table, and when (a count).
    ``unwanted``: tables that are not routed, by their last description in this transaction.
    ``heads``: of changes that came since one of these changed, and whether they are wanted.
    ``subtransactions``: how much later than the transaction's their xids were assigned, in order; ``firsts``: the first
    message of each. A transaction may have millions of them.
    """

    xid: int
    kept: Kept
    described: list[tuple[int, bytes, int]] = field(default_factory=list)
    unwanted: set[bytes] = field(default_factory=set)
    heads: dict[bytes, bool] = field(default_factory=dict)
    subtransactions: array[int] = field(default_factory=lambda: array("I"))
    firsts: array[int] = field(default_factory=lambda: array("Q"))
    last: bytes = b""

    def changes(self, messages: Iterator[bytes], at: int) -> bytes | None:
        """Keep changes as long as their heads are known. Returns the first message that is another one, if any."""
        known, end = self.heads.get, at + HEAD
        kept: list[bytes] = []
        keep = kept.append
        other = None
        for message in messages:
            wanted = known(message[at:end])
            if wanted:
                keep(message[at:])
            elif wanted is None:
                other = message
                break
        if kept:
            self.kept.add(kept)
        return other

    def change(self, message: bytes) -> None:
        """Keep a change if its table is wanted, and remember its head."""
        head = message[:HEAD]
        wanted = head[5:] not in self.unwanted
        if wanted:
            self.add(message)
        if len(head) == HEAD:
            if len(self.heads) >= HEADS:
                self.heads.clear()
            self.heads[head] = wanted

    def add(self, message: bytes) -> None:
        """Keep a message, which has an xid."""
        if (xid := message[1:5]) != self.last:
            self.last = xid
            self._enter(self._later(int.from_bytes(xid, "big")))
        self.kept.add((message,))

    def describe(self, message: bytes, oid: bytes, when: int, *, wanted: bool) -> None:
        """Keep a description of a table."""
        self.described.append((self.kept.count, oid, when))
        if wanted:
            self.unwanted.discard(oid)
        else:
            self.unwanted.add(oid)
        self.heads.clear()
        self.add(message)

    def _later(self, xid: int) -> int:
        return (xid - self.xid) % (1 << 32)

    def _enter(self, later: int) -> None:
        place = bisect_left(self.subtransactions, later)
        if later and (place == len(self.subtransactions) or self.subtransactions[place] != later):
            self.subtransactions.insert(place, later)
            self.firsts.insert(place, self.kept.count)

    def roll_back(self, subxid: int) -> None:
        """A subtransaction has ended, with those inside it."""
        place = bisect_left(self.subtransactions, self._later(subxid))
        if place == len(self.subtransactions):
            return  # nothing of it was kept
        first = min(self.firsts[place:])
        self.kept.cut(first)
        self.described = [each for each in self.described if each[0] < first]
        del self.subtransactions[place:], self.firsts[place:]
        self.heads.clear()
        self.last = b""
