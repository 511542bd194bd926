"""What a source yields: framed rows of relations, in whole or partial transactions.

A source cuts its stream into *pieces*. A piece holds changes of any number of relations, gathered by
relation (so that they can be staged at once) with their order kept beside them. It ends either at a
transaction boundary (``end`` is the position just after that commit) or inside a transaction
that is larger than a piece (``end`` is None: the next piece goes on with it).

Changes are normalised to three operations on framed rows:

* INSERT: a whole new row;
* UPDATE: the new version of a row whose key is unchanged or, when ``moved`` names it, whose key changed;
* DELETE: a row of which only the key columns are set, all others being NULL.

An update that changes the key is a DELETE of the old key followed by an UPDATE with the new one, both with
the same order number.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towline.frame import Frame
from towline_transforms.schema import Column, Table, TableName

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from towline.key_sum import Change

    Ints = NDArray[np.int64]
    Ops = NDArray[np.uint8]
else:
    Ints = Ops = Any

INSERT, UPDATE, DELETE = 1, 2, 3


class Format(enum.Enum):
    """How the values of a relation's rows are encoded."""

    TEXT = "text"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class Relation:
    """A source table as it travels: the columns that routes refer to, in the table's order.

    ``whole``: a route copies the table as it is, so that a column added to it is a change that must not go unseen.
    ``described``: a position (0: none) before which the log may have other columns and types than the catalog, which
    was read there; what differs later has changed since. ``since``: columns with a position before which the log's
    values are not theirs (they were added, made anew or given another type). ``waiting``: columns that were added to
    the table and that its routes neither take nor may leave out. ``frozen``: this is the table of before a change that
    halts, up to where the log shows it. ``swept``: a position before which rows that went without a word in the log are
    of no consequence, since all are copied again, and those that the source no longer has are removed then.
    ``key`` gives the places, among ``columns``, of the columns of the table's identity.
    """

    table: Table
    columns: tuple[Column, ...]
    format: Format
    whole: bool = False
    described: int = 0
    since: tuple[tuple[str, int], ...] = ()
    waiting: frozenset[str] = frozenset()
    frozen: bool = False
    swept: int = 0
    key: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        places = {column.name: place for place, column in enumerate(self.columns)}
        object.__setattr__(self, "key", tuple(places[name] for name in self.table.identity))

    @property
    def name(self) -> TableName:
        """The source table's name."""
        return self.table.name

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The columns of the identity, in the identity's order."""
        return tuple(self.columns[place] for place in self.key)

    def untrusted(self, lsn: int) -> frozenset[str]:
        """The columns whose values in the log, in a transaction whose commit record starts there, are not theirs."""
        return frozenset(name for name, position in self.since if lsn < position)

    def places(self, names: frozenset[str] | set[str]) -> int:
        """A bit mask of the places of the columns of those names."""
        return sum(1 << place for place, column in enumerate(self.columns) if column.name in names)


class Transaction(NamedTuple):
    """A source transaction of which a piece holds changes. (A tuple: they may be as many as rows.)

    ``first``: the order number of its first change in the piece. ``lsn``: where its commit record starts.
    """

    xid: int
    lsn: int
    commit_time: datetime
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class RowSet:
    """Changes of one relation, in source order.

    ``rows`` has one framed row for each change, of all the relation's columns; ``ops`` its operation and
    ``order`` its number in the piece (ascending; other relations have the numbers between).
    ``missing``: for a row, a bit mask of the columns whose value the source did not send (unchanged TOAST): they are
    framed as NULL. ``unknown``: likewise, but the value cannot be taken from the target either and must be read from
    the source again (wal2json prints NaN as null; the log may be from before a column was added). ``moved``: for the
    UPDATE of a key change, the place of its DELETE in this row set; only kept where columns are missing. ``keys``: what
    the changes do to the table's keys, where that was added up already (`towline.key_sum.added_up`).
    """

    relation: Relation
    rows: Frame
    ops: Ops
    order: Ints
    missing: Mapping[int, int] = field(default_factory=dict)
    unknown: Mapping[int, int] = field(default_factory=dict)
    moved: Mapping[int, int] = field(default_factory=dict)
    keys: Change | None = None

    def __len__(self) -> int:
        return len(self.ops)

    def between(self, low: int, high: int) -> RowSet:
        """The changes whose order number is in ``[low, high)``."""
        begin, end = (int(i) for i in np.searchsorted(self.order, [low, high]))
        span = range(begin, end)
        return RowSet(
            self.relation,
            self.rows.take(np.arange(begin, end)),
            self.ops[begin:end],
            self.order[begin:end],
            {row - begin: mask for row, mask in self.missing.items() if row in span},
            {row - begin: mask for row, mask in self.unknown.items() if row in span},
            {row - begin: old - begin for row, old in self.moved.items() if row in span},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of the stream, applied as a whole. ``truncated`` relations are emptied before the rows.

    ``end``: the position after the last transaction, or None when that goes on in the next piece.
    ``transactions`` are in order; a transaction that goes on is listed in every piece that holds some of it.
    ``received``: the clock (seconds, `time.time`) when its last bytes arrived.
    """

    rowsets: tuple[RowSet, ...]
    transactions: tuple[Transaction, ...]
    end: int | None
    truncated: tuple[Relation, ...] = ()
    received: float = 0.0

    @property
    def changes(self) -> int:
        """One more than the highest order number."""
        return max((int(rows.order[-1]) + 1 for rows in self.rowsets if len(rows)), default=0)

    def between(self, low: int, high: int) -> Piece:
        """The changes whose order number is in ``[low, high)``, without truncations."""
        parts = tuple(part for rows in self.rowsets if len(part := rows.between(low, high)))
        return Piece(parts, self.transactions, self.end, (), self.received)

    def transaction_of(self, order: Ints) -> Ints:
        """For order numbers, the place in ``transactions`` of the transaction that each belongs to."""
        firsts = np.array([transaction.first for transaction in self.transactions], dtype=np.int64)
        places: Ints = np.searchsorted(firsts, order, side="right") - 1
        return places


@dataclass(frozen=True, slots=True)
class Visibility:
    """A source snapshot (``pg_current_snapshot()``): which transactions its reader sees."""

    xmin: int
    xmax: int
    in_progress: frozenset[int] = frozenset()

    def whole(self, xid: int) -> int:
        """A transaction's number with its epoch. A logged xid has none: it is taken to be the one nearest ``xmax``."""
        if xid >= 1 << 32:
            return xid
        delta = (xid - self.xmax) & 0xFFFFFFFF
        return self.xmax + (delta - (1 << 32) if delta >= 1 << 31 else delta)

    def sees(self, xid: int) -> bool:
        """Whether a transaction that committed is visible. ``xid`` is 64 bits wide, or 32 bits as logged."""
        xid = self.whole(xid)
        return xid < self.xmin or (xid < self.xmax and xid not in self.in_progress)


#: A place in a table's key order: the text form of each key column.
Cursor = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows of one relation, read from the table in key order in one source snapshot.

    ``upto`` is the key of the last row, from which the next chunk goes on; None when there is no next one.
    ``high``: a position of the source's log, flushed, before which all ends that the snapshot sees.
    """

    relation: Relation
    rows: Frame
    upto: Cursor | None
    visibility: Visibility
    high: int
    read_at: datetime
