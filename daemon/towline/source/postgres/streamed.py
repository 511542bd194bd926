"""pgoutput, protocol version 2 with ``streaming``: transactions arrive while they are under way, in parts.

    session  :=  ( transaction | part | STREAM COMMIT | STREAM ABORT )*       (transaction: see `pgoutput`)
    part     :=  STREAM START  ( ORIGIN | what may stand in a transaction )*  STREAM STOP

    'S' xid first                        a part begins; ``first`` 1: of a transaction that was not sent before
    'E'                                  it ends
    'c' xid flags lsn end time           the transaction commits here, in the order of commits with all others
    'A' xid subxid                       a subtransaction is rolled back, or all of it (``subxid`` = ``xid``)

A server that decodes a transaction larger than its logical_decoding_work_mem sends what it has of it and forgets it,
instead of keeping it in files until the commit. Parts of several transactions alternate, and stand between whole ones.
Within a part every message but ORIGIN has after its kind the xid (int32) of the (sub)transaction that it belongs to.

Parts are only kept here (in a spool, see `Keep`). At its commit a transaction's messages go through the ordinary
decoder, as if it had come whole. So nothing is decoded that is rolled back in the end, and transactions are gathered
in commit order as ever.

**A subtransaction that is rolled back** is dropped at once: what was kept is cut where its first message is. The server
tells of it before it sends anything that was written afterwards, so that all that follows this message is of the same
subtransaction, or of those inside it. xids are assigned in order, so all from this one on are gone with it.

**Descriptions of tables** that come in a part hold for that transaction only, until it commits: it may have changed
the table. The server remembers which tables the client has the present description of, and counts what a streamed
transaction was told from its commit on, unless the table changed meanwhile: then it describes it again before the next
change. So of two descriptions the one that *came* last holds after the commit. After a rollback, also of a
subtransaction, the server describes the tables of that transaction anew. See maybe_send_schema and
cleanup_rel_sync_cache in PostgreSQL's pgoutput.c.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from towline.errors import StreamMalformed
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.pgoutput import CHANGES, Decoder, Layouts, RelationSent, parse
from towline.source.postgres.routed import Routed
from towline.source.postgres.together import EPOCH
from towline.source.postgres.tuple_batch import TupleBatch

_START = struct.Struct(">cIB")
_STOP = struct.Struct(">c")
_COMMIT = struct.Struct(">cIBQQq")
_ABORT = struct.Struct(">cII")
#: Bytes of the xid after the kind of a message in a part.
_XID = 4
_PARTS = frozenset(b"SEcA")
#: What may stand in a part, each with an xid.
_KEPT = frozenset(b"IUDTRYM")


class Kept(Protocol):
    """The messages of one transaction; see `towline.source.postgres.spool.SpooledTransaction`."""

    @property
    def count(self) -> int:
        """How many messages there are."""

    def add(self, message: bytes) -> None:
        """Keep a message."""

    def cut(self, count: int) -> None:
        """Forget all messages but the first so many."""

    def blocks(self) -> Iterator[list[bytes]]:
        """All messages in order, some at a time."""

    def drop(self) -> None:
        """Forget it."""


class Keep(Protocol):
    """Where transactions are kept; see `towline.source.postgres.spool.Spool`."""

    def open(self) -> Kept:
        """Room for another transaction."""

    def settle(self) -> None:
        """A part has ended: let there not be too much in memory."""


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A transaction of which parts have come. Tables as they are in messages: four bytes.

    ``described``: which message described a table, the table, and when (`_clock`).
    ``unwanted``: tables that are not routed, by their last description in this transaction.
    ``subtransactions``: how much later than the transaction's their xids were assigned, in order; ``firsts``: the first
    message of each. A transaction may have millions of them.
    """

    xid: int
    kept: Kept
    described: list[tuple[int, bytes, int]] = field(default_factory=list)
    unwanted: set[bytes] = field(default_factory=set)
    subtransactions: array[int] = field(default_factory=lambda: array("I"))
    firsts: array[int] = field(default_factory=lambda: array("Q"))
    last: bytes = b""

    def add(self, message: bytes) -> None:
        """Keep a message, which has an xid."""
        if (xid := message[1:5]) != self.last:
            self.last = xid
            self._enter(self._later(int.from_bytes(xid, "big")))
        self.kept.add(message)

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
        self.last = b""


class StreamingDecoder(Decoder):
    """The decoder for a stream that was asked for with ``streaming``.

    ``pace`` returns when there is room for changes of a transaction that commits.
    """

    def __init__(
        self,
        routed: Routed,
        gatherer: Gatherer[TupleBatch],
        keep: Keep,
        pace: Callable[[], None],
    ) -> None:
        super().__init__(routed, gatherer)
        self._keep = keep
        self._pace = pace
        self._under_way: dict[int, _UnderWay] = {}
        self._part: _UnderWay | None = None  # whose part this is
        self._clock = 0  # counts descriptions
        self._replaying = False
        #: When the description came that holds for a table.
        self._described: dict[bytes, int] = {}

    def changes(self, messages: Iterator[bytes], at: int = 0) -> bytes | None:
        """As that of a `Decoder`. Within a part, changes are kept."""
        part = self._part
        if part is None:
            return super().changes(messages, at)
        unwanted, keep = part.unwanted, part.add
        for message in messages:
            if message[at : at + 1] not in CHANGES:
                return message
            if message[at + 5 : at + 9] not in unwanted:
                keep(message[at:])
        return None

    def feed(self, message: bytes, at: int = 0) -> None:
        """As that of a `Decoder`."""
        if self._part is None or self.changes(iter((message,)), at) is not None:
            super().feed(message, at)

    def _take(self, message: bytes, at: int) -> None:
        if self._part is not None:
            self._inside(self._part, message, at)
        elif len(message) > at and message[at] in _PARTS:
            self._outside(message[at:])
        else:
            self._control(parse(message, at))

    def _inside(self, part: _UnderWay, message: bytes, at: int) -> None:
        kind = message[at] if len(message) > at else 0
        if kind in _KEPT:
            if len(message) < at + 5:
                raise _malformed(kind, "it ends early")
            if kind == ord("R"):
                self._described_in(part, message, at)
            part.add(message[at:])
        elif kind == ord("E"):
            _fields(_STOP, message[at:])
            self._part = None
            self._keep.settle()
        elif kind == ord("O"):
            parse(message, at)
        else:
            raise _malformed(kind, "it cannot stand in a part of a streamed transaction")

    def _described_in(self, part: _UnderWay, message: bytes, at: int) -> None:
        sent = parse(_without_xid(message[at:]))
        assert isinstance(sent, RelationSent)
        self._clock += 1
        part.described.append((part.kept.count, sent.oid, self._clock))
        if not self._routed.wants(int.from_bytes(sent.oid, "big"), sent.name):
            part.unwanted.add(sent.oid)
        else:
            part.unwanted.discard(sent.oid)

    def _outside(self, message: bytes) -> None:
        kind = message[0]
        if self._gatherer.open is not None or kind == ord("E"):
            raise _malformed(kind, "it does not stand between transactions")
        if kind == ord("S"):
            _, xid, first = _fields(_START, message)
            self._start(xid, first)
        elif kind == ord("c"):
            self._commit(message)
        else:
            _, xid, subxid = _fields(_ABORT, message)
            self._abort(xid, subxid)

    def _start(self, xid: int, first: int) -> None:
        if first == (xid in self._under_way) or first > 1 or not xid:
            raise _malformed(ord("S"), "a first part of a transaction that is known, or a later one of one that is not")
        if first:
            self._under_way[xid] = _UnderWay(xid, self._keep.open())
        self._part = self._under_way[xid]

    def _abort(self, xid: int, subxid: int) -> None:
        transaction = self._under_way.get(xid)
        if transaction is None:
            return  # nothing of it was sent
        if subxid == xid:
            transaction.kept.drop()
            del self._under_way[xid]
        else:
            transaction.roll_back(subxid)

    def _commit(self, message: bytes) -> None:
        _, xid, flags, lsn, end, microseconds = _fields(_COMMIT, message)
        transaction = self._under_way.pop(xid, None)
        if transaction is None or flags:
            raise _malformed(ord("c"), "of a transaction of which nothing was sent, or with unknown flags")
        try:
            time = EPOCH + timedelta(microseconds=microseconds)
        except OverflowError:
            raise _malformed(ord("c"), "its time is beyond the calendar") from None
        self._begin(xid, lsn, time)
        layouts, sent = self._replay(transaction)
        self._gatherer.commit(lsn, end)
        transaction.kept.drop()
        for _, oid, when in transaction.described:
            if when > self._described.get(oid, 0):
                self._described[oid] = when
                self._layouts[oid], self._sent[oid] = layouts[oid], sent[oid]

    def _replay(self, transaction: _UnderWay) -> tuple[Layouts, dict[bytes, RelationSent]]:
        """Decode the messages of a transaction; returns what is known of tables after it."""
        outside, self._layouts = self._layouts, {}
        sent_outside, self._sent = self._sent, {}
        self._replaying = True
        for block in transaction.kept.blocks():
            self._decode(block)
        self._replaying = False
        layouts, self._layouts = self._layouts, outside
        sent, self._sent = self._sent, sent_outside
        return layouts, sent

    def _decode(self, block: Sequence[bytes]) -> None:
        messages = iter(block)
        while True:
            self._pace()
            message = self._changes(messages, 0, _XID)
            if message is None and not self._gatherer.full:
                return
            if message is None:
                continue
            if message[:1] in CHANGES:
                self._change(message, 0, _XID)
            else:
                self._control(parse(_without_xid(message)))

    def _describe(self, sent: RelationSent) -> None:
        if not self._replaying:
            self._clock += 1
            self._described[sent.oid] = self._clock
        super()._describe(sent)


def _without_xid(message: bytes) -> bytes:
    return message[:1] + message[5:]


def _fields(form: struct.Struct, message: bytes) -> tuple[int, ...]:
    if len(message) != form.size:
        raise _malformed(message[0], "it is of a wrong length")
    return form.unpack(message)


def _malformed(kind: int, what: str) -> StreamMalformed:
    return StreamMalformed(f"pgoutput, message {chr(kind)!r}: {what}")
