"""Sums over a table's source keys: what the ledger keeps of them, and the source can compute again.

The hashes (`towline.key_hash`) of the keys that a table has are added up, modulo 2**64. Sums of sets add up to the sum
of their union, in whatever order the keys come and go. So the ledger adds a key's hash when the source inserts it and
takes it away when it is deleted; what it arrives at is the sum over the keys that the source's table has, which one
aggregate over that table gives as well. An update whose key changes counts as both; any other update as nothing.

A second sum is over operations: each change's hash times a weight of what was done (`WEIGHTS`). Two readers of the same
part of a log arrive at the same one. No table can tell it: `verify` reads that part of the log once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.change import DELETE, INSERT, UPDATE, Ops, Piece, Relation, RowSet
from towline.frame import Frame
from towline.key_hash import each_key_hashes, key_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Ints = NDArray[np.int64]
else:
    Hashes = Ints = Any

MODULUS = 1 << 64

#: By operation, what a key's hash is multiplied with in the sum over operations: odd numbers without a pattern.
WEIGHTS = {INSERT: 0x9E3779B97F4A7C15, UPDATE: 0xC2B2AE3D27D4EB4F, DELETE: 0x165667B19E3779F9}
#: The same, to be looked up by an array of operations.
_WEIGHT = np.array([WEIGHTS.get(operation, 0) for operation in range(256)], dtype=np.uint64)
#: Of so few changes, nobody wants the keys put in order.
FEW = 100


@dataclass(frozen=True, slots=True)
class KeySum:
    """Keys, how many and the sum of their hashes; or what is added to both, then ``keys`` may be negative."""

    keys: int = 0
    sum: int = 0

    def __add__(self, other: KeySum) -> KeySum:
        return KeySum(self.keys + other.keys, (self.sum + other.sum) % MODULUS)

    def __sub__(self, other: KeySum) -> KeySum:
        return KeySum(self.keys - other.keys, (self.sum - other.sum) % MODULUS)

    def __str__(self) -> str:
        return f"{self.sum:016x}"


NO_KEYS = KeySum()


@dataclass(frozen=True, slots=True)
class OperationSum:
    """Changes, how many (one of a key counts as two) and the sum over their operations."""

    changes: int = 0
    sum: int = 0

    def __add__(self, other: OperationSum) -> OperationSum:
        return OperationSum(self.changes + other.changes, (self.sum + other.sum) % MODULUS)

    def __sub__(self, other: OperationSum) -> OperationSum:
        return OperationSum(self.changes - other.changes, (self.sum - other.sum) % MODULUS)


@dataclass(frozen=True, slots=True)
class Change:
    """What changes do to a table's keys. ``signs``: of each row, +1, 0 or -1. ``keys``: all of it together.

    ``operations``: the sum over them, see above. ``ordered``: the places of the rows in the order of their hashes,
    those of one hash in their own; None of few rows, or where all are new, and so are their keys. ``different``: how
    many keys there are, by their hashes; of few rows, how many there may be.
    """

    hashes: Hashes
    signs: Ints
    keys: KeySum
    operations: int
    ordered: Ints | None
    different: int


def change_of(rowset: RowSet) -> Change:
    """What the changes of a row set do."""
    (change,) = changes_of((rowset,))
    return change


def changes_of(rowsets: Sequence[RowSet]) -> list[Change]:
    """What the changes of each row set do. It is found for all of them at once, since there may be many with few rows.

    Those that have it already, all of them, need not be looked at again. All of it is arithmetic modulo 2**64, which is
    what unsigned integers of that width do by themselves.
    """
    known = [rowset.keys for rowset in rowsets if rowset.keys is not None]
    if len(known) == len(rowsets):
        return known
    filled = [rowset for rowset in rowsets if len(rowset)]
    if not filled:
        return [_NOTHING for _ in rowsets]
    each = each_key_hashes([(rowset.rows, rowset.relation.key) for rowset in filled])
    hashes, ops = np.concatenate(each), np.concatenate([rowset.ops for rowset in filled])
    ends = np.cumsum([len(rowset) for rowset in filled])
    begins = ends - [len(rowset) for rowset in filled]
    signs = _signs(filled, ops, ends)
    added = np.add.reduceat(hashes * signs.view(np.uint64), begins).tolist()
    counts = np.add.reduceat(signs, begins).tolist()
    operations = np.add.reduceat(hashes * _WEIGHT[ops], begins).tolist()
    places = zip(begins.tolist(), ends.tolist(), strict=True)
    found = iter(
        [
            Change(own, signs[begin:end], KeySum(count, total), operation, *_ordered(own, signs[begin:end]))
            for own, (begin, end), count, total, operation in zip(each, places, counts, added, operations, strict=True)
        ]
    )
    return [next(found) if len(rowset) else _NOTHING for rowset in rowsets]


def added_up(rowsets: Sequence[RowSet]) -> tuple[RowSet, ...]:
    """The row sets, each with what its changes do."""
    return tuple(replace(rowset, keys=change) for rowset, change in zip(rowsets, changes_of(rowsets), strict=True))


def _ordered(hashes: Hashes, signs: Ints) -> tuple[Ints | None, int]:
    """See `Change`: the order, and how many are different."""
    if len(hashes) <= FEW or bool((signs > 0).all()):
        return None, len(hashes)
    ordered = np.argsort(hashes, kind="stable")
    hashes = hashes[ordered]
    return ordered, 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))


def _signs(rowsets: Sequence[RowSet], ops: Ops, ends: Ints) -> Ints:
    """What each of the changes of some row sets does to the number of keys. ``ends``: of the row sets, among them."""
    signs: Ints = (ops == INSERT).astype(np.int64)
    if signs.all():
        return signs
    deleted = ops == DELETE
    if deleted.any():
        # The UPDATE of a change of key follows its DELETE, with the same order number.
        order = np.concatenate([rowset.order for rowset in rowsets])
        moved = (order[1:] == order[:-1]) & deleted[:-1]
        moved[ends[:-1] - 1] = False  # those two would be of different tables
        signs[1:][moved] = 1
        signs[deleted] = -1
    return signs


def by_transaction(piece: Piece, rowset: RowSet, change: Change) -> dict[int, KeySum]:
    """The changes of keys in a row set of the piece, by the transaction (``xid``) that made them."""
    places = piece.transaction_of(rowset.order)
    bounds = np.searchsorted(places, np.arange(len(piece.transactions) + 1)).tolist()
    found: dict[int, KeySum] = {}
    for transaction, (low, high) in zip(piece.transactions, pairwise(bounds), strict=True):
        if change.signs[low:high].any():
            found[transaction.xid] = _sum(change.hashes[low:high], change.signs[low:high])
    return found


def sum_of(rows: Frame, relation: Relation) -> KeySum:
    """The sum over the keys of some rows."""
    return KeySum(len(rows), int(key_hashes(rows, relation.key).sum()))


def key_form(relation: Relation) -> str:
    """What the sums of a table's keys depend on, beside the keys: sums of different forms cannot be compared."""
    columns = ", ".join(f"{column.name} {column.type.sql}" for column in relation.key_columns)
    return f"{relation.format.value} ({columns})"


def _sum(hashes: Hashes, signs: Ints) -> KeySum:
    return KeySum(int(signs.sum()), int((hashes * signs.view(np.uint64)).sum()))


_NOTHING = Change(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64), NO_KEYS, 0, None, 0)
