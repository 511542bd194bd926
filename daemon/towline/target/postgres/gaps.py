"""Rows of a piece that the log carried with gaps: what of them can be changed in place, and what must be read again.

For each route: a changed row without its unchanged TOAST columns is an UPDATE of the others, if the target has the row
and if the route's filter does not need what is missing; else the whole row is needed. It is completed from a chunk
that is loaded in the same transaction, or read again from the source (one call for a relation).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from towline.change import RowSet
from towline.compact import Compacted, Move, Versions
from towline.frame import Frame, frame_row, key_values
from towline.target import ChunkLoad, Reread


@dataclass(slots=True, eq=False)
class Gaps:
    """What one route makes of a row set's rows with gaps, by place in the row set.

    ``updates``: for each of the row set's partial groups, how many rows are whole enough to be updated or filtered, or
    None when the route's filter cannot tell. ``moves``: those done in place. ``wanted``: places of rows that are
    needed whole.
    """

    updates: list[int | None] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)


class Whole:
    """Whole versions of rows with gaps, as far as there are any: places in the row set, and rows.

    Only what the log left out is taken from elsewhere. The source's present row may be ahead of the stream in its other
    columns too, and refer to what the target does not have yet, or have a unique value that another row has still.
    """

    def __init__(self, rowset: RowSet, compacted: Compacted, places: Iterable[int], reread: Reread) -> None:
        self._rowset = rowset
        self._gaps = _gaps(rowset, compacted)
        self._rows: dict[int, bytes] = {}
        self._reread = reread
        self._open: list[int] = []
        for place in sorted(places):
            row, mask = self._gaps[place]
            if mask:
                self._open.append(place)
            else:  # a move of a row that the target does not have
                self._rows[place] = row

    def fill(self, compacted: Compacted, prior: ChunkLoad | None, touched: AbstractSet[bytes]) -> None:
        """Complete partial rows from a chunk, unless it may be older than what was applied (``touched`` keys)."""
        if prior is None or prior.chunk.relation.name != self._rowset.relation.name or not self._open:
            return
        key = self._rowset.relation.key
        chunk = prior.chunk.rows
        at = {framed: row for row, framed in enumerate(chunk.keys(key))} if len(chunk) else {}
        wanted = set(self._open)
        for mask, versions in compacted.partial:
            for index, (place, framed) in enumerate(
                zip(versions.places.tolist(), versions.rows.keys(key), strict=True)
            ):
                if place in wanted and framed in at and framed not in touched:
                    self._rows[place] = _completed(versions.rows.row(index), chunk.row(at[framed]), mask)
        self._open = [place for place in self._open if place not in self._rows]

    def read(self) -> int:
        """Read the other rows from the source; rows that are no longer there stay open. Returns where its log was."""
        if not self._open:
            return 0
        relation = self._rowset.relation
        keys = self._rowset.rows.take(np.array(self._open, dtype=np.int64)).project(relation.key)
        chunk = self._reread(relation, keys)
        found = chunk.rows.keys(relation.key) if len(chunk.rows) else []
        at = {framed: row for row, framed in enumerate(found)}
        for place, framed in zip(self._open, keys.keys(range(keys.width)), strict=True):
            if framed in at:
                row, mask = self._gaps[place]
                self._rows[place] = _completed(row, chunk.rows.row(at[framed]), mask)
        return chunk.high

    def lost(self) -> list[tuple[int, Versions]]:
        """After `read`, by mask: rows with gaps that are no longer at the source, though their end has not come yet."""
        by_mask: dict[int, list[int]] = {}
        for place in self._open:
            if place not in self._rows:
                by_mask.setdefault(self._gaps[place][1], []).append(place)
        width = self._rowset.rows.width
        return [
            (mask, Versions(Frame.of_rows([self._gaps[place][0] for place in places], width), np.array(places)))
            for mask, places in by_mask.items()
        ]

    def versions(self, places: Iterable[int]) -> Versions:
        """The rows of those places that are there, in order."""
        chosen = sorted(place for place in places if place in self._rows)
        frame = Frame.of_rows([self._rows[place] for place in chosen], self._rowset.rows.width)
        return Versions(frame, np.array(chosen, dtype=np.int64))


def _gaps(rowset: RowSet, compacted: Compacted) -> dict[int, tuple[bytes, int]]:
    """By place: each row with gaps, and a mask of the columns that it lacks."""
    found = {move.place: (move.row, move.mask) for move in compacted.moves}
    for mask, versions in compacted.partial:
        found.update((place, (versions.rows.row(i), mask)) for i, place in enumerate(versions.places.tolist()))
    for place in compacted.reread.places.tolist():
        found[place] = rowset.rows.row(place), rowset.missing.get(place, 0) | rowset.unknown.get(place, 0)
    return found


def _completed(row: bytes, chunk: bytes, mask: int) -> bytes:
    """The row with the columns of the mask from the chunk's row."""
    pairs = zip(key_values(row[2:]), key_values(chunk[2:]), strict=True)
    return frame_row([old if mask >> place & 1 else new for place, (new, old) in enumerate(pairs)])


def names(rowset: RowSet, mask: int) -> frozenset[str]:
    """The columns of a mask."""
    return frozenset(column.name for place, column in enumerate(rowset.relation.columns) if mask >> place & 1)


def without(versions: Versions, keys: AbstractSet[bytes]) -> Versions:
    """The versions (of key columns alone) whose framed key is not among those given."""
    framed = versions.rows.keys(range(versions.rows.width)) if len(versions) else []
    keep = np.array([index for index, key in enumerate(framed) if key not in keys], dtype=np.int64)
    return Versions(versions.rows.take(keep), versions.places[keep])
