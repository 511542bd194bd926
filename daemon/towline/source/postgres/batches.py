"""Changes of one relation that are gathered, until a piece is cut and they are framed; and row sets put together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from towline.change import Relation, RowSet
from towline.frame import Frame


class Batch(Protocol):
    """Changes of one relation, gathered but not framed yet. Their order numbers ascend."""

    @property
    def relation(self) -> Relation:
        """Whose changes these are."""

    def __len__(self) -> int:
        """How many there are."""

    def before(self, order: int) -> int:
        """How many have a lower number."""

    def split(self, count: int) -> Self:
        """Take the first ``count`` changes away, and return them."""

    def shift(self, by: int) -> None:
        """Take ``by`` from every number."""

    def row_set(self) -> RowSet:
        """Frame them. Raises StreamMalformed."""


@dataclass(frozen=True, slots=True)
class FramedRow:
    """One row that a decoder has framed itself.

    ``back``: 1 for the update of a changed key, whose deletion is the row before; else 0.
    """

    row: bytes
    op: int
    missing: int = 0
    unknown: int = 0
    back: int = 0


@dataclass(slots=True)
class RowBatch:
    """Framed rows, one or two for each change."""

    of: Relation
    rows: list[FramedRow] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)

    @property
    def relation(self) -> Relation:
        """Whose changes these are."""
        return self.of

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.orders)

    def before(self, order: int) -> int:
        """How many have a lower number."""
        return bisect_left(self.orders, order)

    def shift(self, by: int) -> None:
        """Take ``by`` from every number."""
        self.orders = [order - by for order in self.orders]

    def split(self, count: int) -> RowBatch:
        """Take the first ``count`` changes away, and return them."""
        head = RowBatch(self.of, self.rows[:count], self.orders[:count])
        del self.rows[:count], self.orders[:count]
        return head

    def row_set(self) -> RowSet:
        """Join them."""
        return RowSet(
            self.of,
            Frame.of_rows([row.row for row in self.rows], len(self.of.columns)),
            np.fromiter((row.op for row in self.rows), dtype=np.uint8, count=len(self.rows)),
            np.fromiter(self.orders, dtype=np.int64, count=len(self.orders)),
            {place: row.missing for place, row in enumerate(self.rows) if row.missing},
            {place: row.unknown for place, row in enumerate(self.rows) if row.unknown},
            {
                place: place - row.back
                for place, row in enumerate(self.rows)
                if row.back and (row.missing or row.unknown)
            },
        )


def join(parts: Sequence[RowSet]) -> RowSet:
    """Row sets of one relation, which follow each other, as one."""
    if len(parts) == 1:
        return parts[0]
    relation = parts[0].relation
    missing: dict[int, int] = {}
    unknown: dict[int, int] = {}
    moved: dict[int, int] = {}
    base = 0
    for part in parts:
        missing.update((row + base, mask) for row, mask in part.missing.items())
        unknown.update((row + base, mask) for row, mask in part.unknown.items())
        moved.update((row + base, old + base) for row, old in part.moved.items())
        base += len(part)
    return RowSet(
        relation,
        Frame.concat([part.rows for part in parts], len(relation.columns)),
        np.concatenate([part.ops for part in parts]),
        np.concatenate([part.order for part in parts]),
        missing,
        unknown,
        moved,
    )


def in_order(rows: RowSet) -> RowSet:
    """The changes in the order in which they came.

    Batches of one relation overlap where a table goes by several descriptions: a transaction that was sent while it was
    under way brings its own, and so does each partition.
    """
    if bool(np.all(rows.order[1:] >= rows.order[:-1])):
        return rows
    came = np.argsort(rows.order, kind="stable")  # the DELETE and the UPDATE of a changed key have the same number
    place = np.empty_like(came)
    place[came] = np.arange(len(came))
    return RowSet(
        rows.relation,
        rows.rows.take(came),
        rows.ops[came],
        rows.order[came],
        {int(place[row]): mask for row, mask in rows.missing.items()},
        {int(place[row]): mask for row, mask in rows.unknown.items()},
        {int(place[row]): int(place[old]) for row, old in rows.moved.items()},
    )
