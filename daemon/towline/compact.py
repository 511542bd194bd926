"""Compaction: of the changes of a row set, what is left when only the last version of each source key counts.

A hot row that changes a thousand times in a batch costs the target one write. Keys are compared by their bytes. Two
keys whose bytes differ may still be equal to the target (numeric 1.0 and 1.00): of such keys at most one is alive
after the batch, so a target that applies all deletes before all upserts is right about them.

What the source did not send (unchanged TOAST, see `RowSet.missing`) is taken, byte for byte, from an earlier version of
the same row in the row set; also from under its old key, when the key changed. What is still missing is at the
target (`Compacted.partial`, `Compacted.moves`) or, where it cannot be, must be read from the source again
(`Compacted.reread`).

Row sets without such gaps, by far the most, are handled without a loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.change import DELETE, INSERT, RowSet
from towline.frame import Frame, adjoining, frame_row, key_values, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Hashes = NDArray[np.uint64]
else:
    Ints = Hashes = Any

_NONE: Ints = np.empty(0, dtype=np.int64)
#: Keys of so many lengths are compared with arrays, those of a length at a time.
_SIZES = 50


@dataclass(frozen=True, slots=True, eq=False)
class Versions:
    """Rows, and for each the place in the row set of the change that it is the outcome of (ascending)."""

    rows: Frame
    places: Ints

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """The last version of a row whose key changed in the row set, and which lacks columns that are at the target.

    They are in the target's row of the framed key ``origin``, as long as nothing has been deleted. ``mask``: the
    columns.
    """

    origin: bytes
    key: bytes
    row: bytes
    place: int
    mask: int


@dataclass(frozen=True, slots=True, eq=False)
class Compacted:
    """The outcome of a row set: every key in it is in exactly one of the groups.

    ``live``: whole rows. ``partial``: by mask of missing columns, rows whose other columns changed in place.
    ``moves``: see there; each may be treated as a member of ``reread`` instead. ``reread``: rows with a value that
    only the source has. ``gone``: framed key columns (in the identity's order) of deleted rows, the origins of moves
    among them.

    seen = live + partial + moves + reread + gone + superseded.
    """

    rowset: RowSet
    live: Versions
    gone: Versions
    partial: tuple[tuple[int, Versions], ...]
    reread: Versions
    moves: tuple[Move, ...]

    @property
    def seen(self) -> int:
        """The changes in the row set."""
        return len(self.rowset)

    @property
    def kept(self) -> int:
        """The distinct keys in the row set."""
        kept = len(self.live.places) + len(self.gone.places)
        if self.partial or self.moves or len(self.reread):
            partial = sum(len(versions) for _, versions in self.partial)
            kept += partial + len(self.reread) + len(self.moves)
        return kept

    @property
    def superseded(self) -> int:
        """The changes that a later one of the same key made void."""
        return self.seen - self.kept


def inserts_only(rowset: RowSet) -> bool:
    """Whether the row set is nothing but new whole rows. Their keys are distinct: the source's identity says so."""
    return not rowset.missing and not rowset.unknown and rowset.ops.tobytes().count(INSERT) == len(rowset)


def compact(rowset: RowSet, *, moving: bool = False) -> Compacted:
    """Keep the last version of each key. ``moving``: rows whose key changed are moves also when they lack nothing."""
    if moving:
        rowset = replace(rowset, moved=_all_moved(rowset))
    rows, ops = rowset.rows, rowset.ops
    if inserts_only(rowset):
        return _grouped(rowset, np.arange(len(rowset), dtype=np.int64), {}, {}, ())
    if len(ops) == 1:
        return _grouped(rowset, np.zeros(1, dtype=np.int64), rowset.missing, {}, (), frozenset(rowset.unknown))
    places = _last(rowset)
    if not rowset.missing and not rowset.unknown and not rowset.moved:
        return _grouped(rowset, places, {}, {}, ())
    if len(places) == len(rowset) and not rowset.moved:
        masks = {place: mask for place, mask in rowset.missing.items() if ops[place] != DELETE}
        return _grouped(rowset, places, masks, {}, (), frozenset(rowset.unknown))
    filled = _Filling(rowset, rows.keys(rowset.relation.key), moving)
    masks, whole, moves, lost = {}, {}, [], set()
    for key, version in filled.alive():
        if version.unknown:
            lost.add(version.place)
        elif version.missing and version.origin is not None:
            if filled.in_place:
                moves.append(Move(version.origin, key, version.row, version.place, version.missing))
            else:
                lost.add(version.place)
        elif version.origin is not None and filled.in_place:
            moves.append(Move(version.origin, key, version.row, version.place, 0))
        elif version.missing:
            masks[version.place] = version.missing
            whole[version.place] = version.row
        else:
            whole[version.place] = version.row
    moves.sort(key=lambda move: move.place)
    return _grouped(rowset, places, masks, whole, tuple(moves), frozenset(lost))


def _last(rowset: RowSet) -> Ints:
    """The place of the last version of each key, ascending. Keys are compared by hashes where these are in order."""
    key, change = rowset.relation.key, rowset.keys
    if change is not None and change.ordered is not None and adjoining(key):
        begins, ends = rowset.rows.span(key[0], len(key))
        places = _last_by_hash(rowset.rows.data, begins, ends, change.hashes, change.ordered)
        if places is not None:
            return places
    keys = rowset.rows.keys(key)
    last = dict(zip(keys, range(len(keys)), strict=True))
    found = np.fromiter(last.values(), dtype=np.int64, count=len(last))
    found.sort()
    return found


def _last_by_hash(data: bytes, begins: Ints, ends: Ints, hashes: Hashes, ordered: Ints) -> Ints | None:
    """The same, for keys at those places; None when two keys have one hash, or keys are of too many lengths."""
    hashes = hashes[ordered]
    again = hashes[1:] == hashes[:-1]
    earlier, later = ordered[:-1][again], ordered[1:][again]
    sizes = ends - begins
    if not np.array_equal(sizes[earlier], sizes[later]):
        return None
    different = np.unique(sizes[earlier]).tolist()
    if len(different) > _SIZES:
        return None
    for size in different:
        alike = sizes[earlier] == size
        before, after = begins[earlier[alike]], begins[later[alike]]
        if not np.array_equal(_bytes_at(data, before, size), _bytes_at(data, after, size)):
            return None
    places: Ints = ordered[np.append(~again, True)]
    places.sort()
    return places


def _bytes_at(data: bytes, begins: Ints, size: int) -> NDArray[np.uint8]:
    """So many bytes from each place on."""
    found: NDArray[np.uint8] = numbers(data, f"V{size}")[begins].view(np.uint8)
    return found


def _grouped(
    rowset: RowSet,
    places: Ints,
    masks: Mapping[int, int],
    changed: dict[int, bytes],
    moves: Sequence[Move],
    lost: frozenset[int] = frozenset(),
) -> Compacted:
    """Sort the last versions into the groups. ``changed``: rows that are not as they came, by place."""
    rows = rowset.rows
    gone, alive = _NONE, places
    if DELETE in rowset.ops.tobytes():
        deleted = rowset.ops[places] == DELETE
        gone, alive = places[deleted], places[~deleted]
    if not (masks or changed or moves or lost):
        live = Versions(rows.take(alive), alive)
        return Compacted(rowset, live, _gone(rowset, gone), (), _none(rows.width), ())
    odd = set(masks) | lost | {move.place for move in moves}
    if odd:
        alive = alive[~np.isin(alive, np.fromiter(odd, dtype=np.int64))]
    by_mask: dict[int, list[int]] = {}
    for place in sorted(set(masks) - lost):
        by_mask.setdefault(masks[place], []).append(place)

    def versions(chosen: Ints) -> Versions:
        if not changed:
            return Versions(rows.take(chosen), chosen)
        picked = [changed.get(place) or rows.row(place) for place in chosen.tolist()]
        return Versions(Frame.of_rows(picked, rows.width), chosen)

    return Compacted(
        rowset,
        versions(alive),
        _gone(rowset, gone),
        tuple((mask, versions(np.array(group, dtype=np.int64))) for mask, group in by_mask.items()),
        versions(np.array(sorted(lost), dtype=np.int64)) if lost else _none(rows.width),
        tuple(moves),
    )


def _gone(rowset: RowSet, places: Ints) -> Versions:
    """The keys of deleted rows."""
    key = rowset.relation.key
    return Versions(rowset.rows.take(places).project(key), places) if len(places) else _none(len(key))


@cache
def _none(width: int) -> Versions:
    return Versions(Frame.empty(width), _NONE)


@dataclass(slots=True)
class _Version:
    """A row as of some change. ``origin``: the key of the target's row that has what is ``missing``; None: its own.

    ``new``: the row was inserted in the row set, and is not at the target.
    """

    place: int
    row: bytes
    missing: int
    unknown: int
    origin: bytes | None
    new: bool = False


def _all_moved(rowset: RowSet) -> dict[int, int]:
    """By the place of the UPDATE of a key change, that of its DELETE: the two have the same order number."""
    deleted = (rowset.order[1:] == rowset.order[:-1]) & (rowset.ops[:-1] == DELETE)
    return {place + 1: place for place in np.flatnonzero(deleted).tolist()}


class _Filling:
    """Follows the versions of the keys that have gaps, in order, and fills each from the one before."""

    def __init__(self, rowset: RowSet, keys: list[bytes], moving: bool) -> None:
        self._rowset = rowset
        self._moving = moving
        self._state: dict[bytes, _Version | None] = {}
        olds = {old: new for new, old in rowset.moved.items()}
        before: dict[int, _Version | None] = {}
        was_here: dict[int, bool] = {}
        followed = {keys[place] for place in (*rowset.missing, *rowset.unknown, *rowset.moved, *olds)}
        ops = rowset.ops.tolist()
        for place, key in enumerate(keys):
            if key not in followed:
                continue
            if ops[place] == DELETE:
                if place in olds:
                    was_here[place] = key in self._state
                    before[place] = self._state.get(key)
                self._state[key] = None
                continue
            missing, unknown = rowset.missing.get(place, 0), rowset.unknown.get(place, 0)
            if (old := rowset.moved.get(place)) is not None:
                self._state[key] = self._fill(
                    place, missing, unknown, before.get(old), was_here.get(old, False), keys[old]
                )
            elif not missing:
                last = self._state.get(key)
                origin, new = (None, ops[place] == INSERT) if last is None else (last.origin, last.new)
                self._state[key] = _Version(place, rowset.rows.row(place), 0, unknown, origin if moving else None, new)
            else:
                self._state[key] = self._fill(place, missing, unknown, self._state.get(key), key in self._state, None)
        alive = ((key, version) for key, version in self._state.items() if version is not None)
        moved = {key: v.origin for key, v in alive if (v.missing or moving) and v.origin is not None}
        #: Whether every moved row stands alone. Rows that change places with each other are left to the source.
        self.in_place = len(set(moved.values())) == len(moved) and not moved.keys() & set(moved.values())

    def _fill(
        self, place: int, missing: int, unknown: int, before: _Version | None, known: bool, old_key: bytes | None
    ) -> _Version:
        """The version at ``place``, with its gaps filled from the version ``before`` it, if that is in the row set."""
        row = self._rowset.rows.row(place)
        if before is None:
            # A row deleted before, in this very row set, has nothing to give: only the source can tell.
            origin = None if known and not missing else old_key
            return _Version(place, row, 0 if known else missing, unknown | (missing if known else 0), origin)
        available = missing & ~before.missing
        if available:
            values, earlier = key_values(row[2:]), key_values(before.row[2:])
            for column in range(len(values)):
                if available >> column & 1:
                    values[column] = earlier[column]
            row = frame_row(values)
        left = missing & before.missing
        origin = (before.origin or old_key) if left or (self._moving and not before.new) else None
        return _Version(place, row, left, unknown | (missing & before.unknown), origin, before.new)

    def alive(self) -> list[tuple[bytes, _Version]]:
        """The last versions that are rows."""
        return [(key, version) for key, version in self._state.items() if version is not None]
