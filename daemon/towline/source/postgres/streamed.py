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
from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np

from towline.errors import StreamMalformed
from towline.frame import numbers
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.layout import Layout
from towline.source.postgres.pgoutput import Decoder, Layouts
from towline.source.postgres.pgoutput_messages import EPOCH, RelationSent, parse
from towline.source.postgres.routed import Routed
from towline.source.postgres.together import FEW
from towline.source.postgres.tuple_batch import Run, TupleBatch, runs_by_table
from towline.source.postgres.under_way import HEAD, Keep, UnderWay

_START = struct.Struct(">cIB")
_STOP = struct.Struct(">c")
_COMMIT = struct.Struct(">cIBQQq")
_ABORT = struct.Struct(">cII")
#: Bytes of the xid after the kind of a message in a part.
_XID = 4
_PARTS = frozenset(b"SEcA")
#: What may stand in a part, each with an xid.
_KEPT = frozenset(b"IUDTRYM")
_CHANGES = frozenset(b"IUD")
_IS_CHANGE = np.isin(np.arange(256), list(_CHANGES))


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
        self._under_way: dict[int, UnderWay] = {}
        self._part: UnderWay | None = None  # whose part this is
        self._clock = 0  # counts descriptions
        self._replaying = False
        #: When the description came that holds for a table.
        self._described: dict[bytes, int] = {}

    def changes(self, messages: Iterator[bytes], at: int = 0) -> bytes | None:
        """As that of a `Decoder`. Within a part, changes are kept."""
        part = self._part
        if part is None:
            return super().changes(messages, at)
        return part.changes(messages, at)

    def feed(self, message: bytes, at: int = 0) -> None:
        """As that of a `Decoder`."""
        if self._part is None:
            super().feed(message, at)
        else:
            self._inside(self._part, message, at)

    def _take(self, message: bytes, at: int) -> None:
        if len(message) > at and message[at] in _PARTS:
            self._outside(message[at:])
        else:
            self._control(parse(message, at))

    def _inside(self, part: UnderWay, message: bytes, at: int) -> None:
        kind = message[at] if len(message) > at else 0
        if kind in _KEPT:
            if len(message) < at + 1 + _XID:
                raise _malformed(kind, "it ends early")
            self._keep_message(part, kind, message[at:])
        elif kind == ord("E"):
            _fields(_STOP, message[at:])
            self._part = None
            self._keep.settle()
        elif kind == ord("O"):
            parse(message, at)
        else:
            raise _malformed(kind, "it cannot stand in a part of a streamed transaction")

    def _keep_message(self, part: UnderWay, kind: int, message: bytes) -> None:
        if kind in _CHANGES:
            part.change(message)
        elif kind == ord("R"):
            sent = parse(_without_xid(message))
            assert isinstance(sent, RelationSent)
            self._clock += 1
            wanted = self._routed.wants(int.from_bytes(sent.oid, "big"), sent.name)
            part.describe(message, sent.oid, self._clock, wanted=wanted)
        else:
            part.add(message)

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
            self._under_way[xid] = UnderWay(xid, self._keep.open())
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

    def _replay(self, transaction: UnderWay) -> tuple[Layouts, dict[bytes, RelationSent]]:
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

    def _decode(self, block: Block) -> None:
        sizes = block.ends - block.begins
        others = np.flatnonzero(~_IS_CHANGE[block.bytes[block.begins]] | (sizes < HEAD))
        first = 0
        for stop in (*others.tolist(), len(block)):
            while first < stop:
                self._pace()
                first = self._many(block, first, stop) or self._one_by_one(block, first, stop)
            if stop < len(block):
                self._pace()
                self._one(block.message(stop))
                first = stop + 1

    def _many(self, block: Block, first: int, stop: int) -> int:
        """Take changes, as many as a piece has room for. Returns the number of the message to go on with.

        0: they are to be taken one by one, as they are few, or not all of tables of which all is known.
        """
        gatherer = self._gatherer
        if stop - first < FEW or gatherer.skipping:
            return 0
        oids = numbers(block.data, ">u4")[block.begins[first:stop] + 1 + _XID]
        tables, which = np.unique(oids, return_inverse=True)
        layouts = [self._layouts.get(int(oid).to_bytes(4, "big")) for oid in tables]
        if not all(isinstance(layout, Layout) for layout in layouts):
            return 0
        running = block.ends[first:stop] - block.begins[first]
        count = min(stop - first, gatherer.room(running))
        part, orders = block.part(first, first + count), gatherer.order + np.arange(count)
        for table, run in runs_by_table(part.data, part.begins, part.ends, orders, which[:count]):
            self._add(layouts[table], run)
        gatherer.order += count
        gatherer.size += int(running[count - 1])
        return first + count

    def _add(self, layout: object, run: Run) -> None:
        assert isinstance(layout, Layout)
        batch = self._gatherer.batch((layout, 0, _XID), lambda: TupleBatch(layout, 0, _XID))
        if batch is not None:
            batch.add(run)

    def _one_by_one(self, block: Block, first: int, stop: int) -> int:
        """Take changes until a piece is full. Returns the number of the message to go on with."""
        for number in range(first, stop):
            self._one(block.message(number))
            if self._gatherer.full:
                return number + 1
        return stop

    def _one(self, message: bytes) -> None:
        if message[0] in _CHANGES:
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
