"""Pseudo-columns: what the daemon knows of a row beside its columns, appended to the staged row for routes that ask
for it.

The values are in the form of the relation's other values, binary or text. A value depends on the row's transaction and
operation only, so that few different ones are made for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from towline.change import INSERT, Chunk, Format, Ints, Piece, RowSet
from towline.frame import Frame, frame_value
from towline.position import format_lsn

#: The xid of what stands for a row of a snapshot in a piece. No transaction has it.
SNAPSHOT = 0

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where a row comes from. ``xid`` is None for rows of a snapshot, which many transactions wrote."""

    commit_time: datetime
    lsn: int
    xid: int | None
    op: str

    def value(self, name: str, form: Format, pipeline: str) -> bytes | None:
        """The value of a pseudo-column."""
        if name == "_op":
            return self.op.encode()
        if name == "_source":
            return pipeline.encode()
        if form is Format.TEXT:
            return self._text(name)
        if name == "_commit_time":
            return ((self.commit_time - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
        if name == "_lsn":
            return self.lsn.to_bytes(8, "big")
        return None if self.xid is None else self.xid.to_bytes(8, "big")

    def _text(self, name: str) -> bytes | None:
        if name == "_commit_time":
            return self.commit_time.astimezone(UTC).isoformat(" ").encode()
        if name == "_lsn":
            return format_lsn(self.lsn).encode()
        return None if self.xid is None else str(self.xid).encode()


class Stamps:
    """Tells the stamps of the rows of a piece, or of a chunk's rows (all the same)."""

    def __init__(self, origin: Piece | Chunk, pipeline: str) -> None:
        self._origin = origin
        self._pipeline = pipeline

    def of(self, part: Piece) -> Stamps:
        """Those of a part of the piece, without the piece."""
        return self if isinstance(self._origin, Chunk) else Stamps(part, self._pipeline)

    def append(self, frame: Frame, rowset: RowSet, places: Ints, names: Sequence[str]) -> Frame:
        """The rows, which are of those places in the row set, with the pseudo-columns of those names at the end."""
        if not names:
            return frame
        form = rowset.relation.format
        suffixes: Mapping[tuple[int, int], bytes]
        if isinstance(self._origin, Chunk):
            stamp = Stamp(self._origin.read_at, self._origin.high, None, "snapshot")
            return _extend(frame, [self._suffix(stamp, names, form)] * len(frame), len(names))
        transactions = self._origin.transactions
        marks = list(
            zip(
                self._origin.transaction_of(rowset.order[places]).tolist(),
                (rowset.ops[places] == INSERT).tolist(),
                strict=True,
            )
        )
        suffixes = {}
        for mark in set(marks):
            transaction, insert = transactions[mark[0]], mark[1]
            xid = None if transaction.xid == SNAPSHOT else transaction.xid
            op = "snapshot" if xid is None else "insert" if insert else "update"
            stamp = Stamp(transaction.commit_time, transaction.lsn, xid, op)
            suffixes[mark] = self._suffix(stamp, names, form)
        return _extend(frame, [suffixes[mark] for mark in marks], len(names))

    def _suffix(self, stamp: Stamp, names: Sequence[str], form: Format) -> bytes:
        return b"".join(frame_value(stamp.value(name, form, self._pipeline)) for name in names)


def _extend(frame: Frame, suffixes: Sequence[bytes], width: int) -> Frame:
    """The rows with ``width`` more framed values behind each."""
    head = (frame.width + width).to_bytes(2, "big")
    data = frame.data
    starts = frame.starts.tolist()
    rows = [
        head + data[begin + 2 : end] + suffix
        for begin, end, suffix in zip(starts[:-1], starts[1:], suffixes, strict=True)
    ]
    return Frame.of_rows(rows, frame.width + width)
