"""Tuples of pgoutput to framed rows, for all changes of a relation in a piece at once.

A change is the plugin's message, which may stand inside an envelope (the header of XLogData):

    'I' oid           'N' tuple
    'U' oid           'N' tuple        the key is unchanged
    'U' oid 'K' tuple 'N' tuple        the old key, when it changed or a column of it is stored out of line
    'U' oid 'O' tuple 'N' tuple        the whole old row, with REPLICA IDENTITY FULL
    'D' oid 'K' tuple | 'D' oid 'O' tuple

    tuple:   int16 number of columns, then for each of them
             'n'                       NULL
             'u'                       unchanged, and stored out of line: not sent (only in new tuples of updates)
             't' int32 length, text    or
             'b' int32 length, binary  when the stream was asked for it

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.

So a tuple is a row of COPY BINARY (see `towline.frame`) but for a kind byte before each column, and for NULL, which
there is a length of -1. The work is done on the joined bytes of all messages: one pass per column finds where each
value begins (numpy arrays over rows), a mask says which bytes stay, and what stays is copied at once. Only rows that
need a value from somewhere else (an old tuple) are made one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.change import DELETE, INSERT, UPDATE, RowSet
from towline.frame import Frame, frame_row, numbers
from towline.source.postgres.block import PAD
from towline.source.postgres.layout import Layout, bad_kind, malformed, widened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]
else:
    Bytes = Ints = Mask = Any

_NULL, _UNCHANGED = ord("n"), ord("u")
_INSERT, _UPDATE, _DELETE = ord("I"), ord("U"), ord("D")
_NEW, _KEY, _OLD = ord("N"), ord("K"), ord("O")
#: Bytes of a change before its first tuple: kind, OID, marker.
HEAD = 6
#: NULL, in a framed row.
_NULL_VALUE = b"\xff\xff\xff\xff"
#: Dropped bytes are numbered where they are less than one in so many.
_NUMBERED = 16


@dataclass(slots=True)
class _Cells:
    """The columns of many tuples; arrays of shape (columns sent, tuples). A length is 0 without a value."""

    kinds: Bytes
    at: Ints  # of the kind byte
    lengths: Ints
    begin: Ints  # of each tuple
    end: Ints

    def pick(self, rows: Ints) -> _Cells:
        if len(rows) == len(self.begin):
            return self
        return _Cells(self.kinds[:, rows], self.at[:, rows], self.lengths[:, rows], self.begin[rows], self.end[rows])

    def joined(self, other: _Cells, order: Ints) -> _Cells:
        """The tuples of both, in the order given by places in (these + the others)."""
        return _Cells(
            np.concatenate((self.kinds, other.kinds), axis=1)[:, order],
            np.concatenate((self.at, other.at), axis=1)[:, order],
            np.concatenate((self.lengths, other.lengths), axis=1)[:, order],
            np.concatenate((self.begin, other.begin))[order],
            np.concatenate((self.end, other.end))[order],
        )


def row_set(layout: Layout, data: bytes, heads: Ints, ends: Ints, orders: Ints, skip: int = 0) -> RowSet:
    """Frame changes of one relation: each is ``data[head:end]``, and after the last there is `block.PAD`, or more.

    ``skip``: bytes between a change's kind and the OID (an xid, in parts of streamed transactions).
    Raises StreamMalformed when one is not a change of that layout.
    """
    first, last = int(heads[0]), int(ends[-1])
    if first or last + len(PAD) < len(data):  # masks are made of all that is there
        data, heads, ends = data[first : last + len(PAD)], heads - first, ends - first
    return widened(layout, _sent(layout, data, heads, ends, orders, skip))


def _sent(layout: Layout, data: bytes, heads: Ints, ends: Ints, orders: Ints, skip: int) -> RowSet:
    """As `row_set`, of the columns that were sent only."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    tuples = heads + (HEAD + skip)
    if bool((tuples > ends).any()):
        raise malformed(layout, "a change ends before its first tuple")
    kinds, markers = buffer[heads], buffer[tuples - 1]
    _check_markers(layout, kinds, markers)

    has_old = markers != _NEW
    if not has_old.any():
        new = _walk(layout, data, buffer, tuples, ends, new=True)
        _check_ends(layout, new.end, ends, kinds == _INSERT, new)
        rows = _compact(layout, buffer, new, None)
        ops = np.where(kinds == _INSERT, INSERT, UPDATE).astype(np.uint8)
        return RowSet(layout.relation, rows, ops, orders, _missing(layout, new, None))
    return _with_old(layout, data, buffer, kinds, has_old, tuples, ends, orders)


def _with_old(
    layout: Layout,
    data: bytes,
    buffer: Bytes,
    kinds: Bytes,
    has_old: Mask,
    tuples: Ints,
    ends: Ints,
    orders: Ints,
) -> RowSet:
    """The general case: some changes have an old tuple, and some of them yield a deletion."""
    with_old = np.flatnonzero(has_old)
    with_new = np.flatnonzero(kinds != _DELETE)
    old = _walk(layout, data, buffer, tuples[with_old], ends[with_old], new=False)
    new_at = tuples.copy()
    updated = kinds[with_old] == _UPDATE
    if bool((old.kinds[list(layout.key)] != layout.value).any()):
        raise malformed(layout, "an old tuple lacks a column of the key")
    if bool((buffer[old.end[updated]] != _NEW).any()):
        raise malformed(layout, "an update has no new tuple")
    new_at[with_old] = old.end + 1
    new = _walk(layout, data, buffer, new_at[with_new], ends[with_new], new=True)
    tuple_ends = ends.copy()
    tuple_ends[with_new] = new.end
    tuple_ends[with_old[~updated]] = old.end[~updated]
    _check_ends(layout, tuple_ends, ends, kinds[with_new] == _INSERT, new)

    old_of = {int(change): place for place, change in enumerate(with_old)}
    new_of = {int(change): place for place, change in enumerate(with_new)}
    fills = _fills(layout, data, old, new, old_of, with_new)
    moved = [
        change
        for change in with_old[updated].tolist()
        if _key_changed(layout, data, old, old_of[change], new, new_of[change])
    ]
    deleting = np.sort(np.concatenate((with_old[~updated], np.array(moved, dtype=np.int64))))
    # Rows in source order; the deletion of an update comes before its new row.
    merge = np.argsort(np.concatenate((deleting * 2, with_new * 2 + 1)), kind="stable")
    gone = old.pick(np.searchsorted(with_old, deleting))
    all_ = gone.joined(new, merge)
    is_gone = merge < len(deleting)
    rows = _compact(layout, buffer, all_, is_gone)

    changes = np.concatenate((deleting, with_new))[merge]
    row_of = {int(change): row for row, change in enumerate(changes) if not is_gone[row]}
    filled = {row_of[int(with_new[place])]: values for place, values in fills.items()}
    if filled:
        rows = _refill(layout, data, all_, rows, filled)
    missing = _missing(layout, all_, filled)
    ops = np.where(is_gone, DELETE, np.where(kinds[changes] == _INSERT, INSERT, UPDATE)).astype(np.uint8)
    order = orders[changes]
    back = {row_of[change]: row_of[change] - 1 for change in moved if row_of[change] in missing}
    return RowSet(layout.relation, rows, ops, order, missing, {}, back)


def _check_markers(layout: Layout, kinds: Bytes, markers: Bytes) -> None:
    new, old = markers == _NEW, (markers == _KEY) | (markers == _OLD)
    fine = ((kinds == _INSERT) & new) | ((kinds == _UPDATE) & (new | old)) | ((kinds == _DELETE) & old)
    if not fine.all():
        raise malformed(layout, "a change has a tuple of a wrong kind")


def _check_ends(layout: Layout, found: Ints, ends: Ints, inserted: Mask, new: _Cells) -> None:
    if not np.array_equal(found, ends):
        raise malformed(layout, "bytes follow the last tuple of a change")
    if bool(((new.kinds == _UNCHANGED).any(axis=0) & inserted).any()):
        raise malformed(layout, "a value of an inserted row was not sent")


def _walk(layout: Layout, data: bytes, buffer: Bytes, begin: Ints, ends: Ints, *, new: bool) -> _Cells:
    """Find the columns of the tuples that begin at those offsets and end at or before ``ends``."""
    width, count = len(layout.places), len(begin)
    words = numbers(data, ">u4")
    if bool((begin + 2 > ends).any()):
        raise malformed(layout, "a tuple ends before its number of columns")
    if bool(((buffer[begin].astype(np.int64) << 8 | buffer[begin + 1]) != width).any()):
        raise malformed(layout, f"a tuple does not have {width} columns")
    kinds = np.empty((width, count), dtype=np.uint8)
    places = np.empty((width + 1, count), dtype=np.int64)
    lengths = np.zeros((width, count), dtype=np.int64)
    places[0] = begin + 2
    column = 0
    try:
        for column, (at, after, length) in enumerate(zip(places[:-1], places[1:], lengths, strict=True)):
            kinds[column] = kind = buffer[at]
            length[:] = words[at + 1]
            if kind.tobytes().count(layout.value) == count:
                np.add(at, length, out=after)
                after += 5
            else:
                has_value = kind == layout.value
                _check_ranges(layout, places[: column + 1], ends)  # rather than the kind of what is no column
                _check_kinds(layout, column, kind[~has_value], new=new)
                length *= has_value
                np.add(at, length, out=after)
                after += 1 + 4 * has_value
    except IndexError:  # a length reaches beyond all messages
        raise malformed(layout, f"a change ends inside column {column} of {width}") from None
    _check_ranges(layout, places, ends)
    return _Cells(kinds, places[:-1], lengths, begin, places[-1])


def _check_ranges(layout: Layout, places: Ints, ends: Ints) -> None:
    """Columns begin, and end, within their messages."""
    beyond = places > ends
    if beyond.any():
        column = int(beyond.any(axis=1).argmax())
        raise malformed(layout, f"a change ends inside column {column} of {len(layout.places)}")


def _check_kinds(layout: Layout, column: int, kinds: Bytes, *, new: bool) -> None:
    fine = (kinds == _NULL) | ((kinds == _UNCHANGED) & new)
    if fine.all():
        return
    raise bad_kind(layout, column, int(kinds[~fine][0]))


def _compact(layout: Layout, buffer: Bytes, cells: _Cells, keys_only: Mask | None) -> Frame:
    """Copy the wanted columns of the tuples out, as framed rows; those of ``keys_only`` with the rest NULL."""
    count = len(cells.begin)
    width = len(layout.wanted)
    keep = _within(cells.begin, cells.end, len(buffer))
    keep[cells.at] = False
    nulls, sizes = cells.kinds != layout.value, cells.lengths + 4
    if keys_only is not None or width != len(layout.places):
        dropped = nulls.copy()
        for sent, place in enumerate(layout.places):
            if place < 0:
                dropped[sent] = True
            elif keys_only is not None and sent not in layout.key:
                dropped[sent] |= keys_only
        for sent in np.flatnonzero((dropped > nulls).any(axis=1)).tolist():
            gone = dropped[sent] & ~nulls[sent]
            at = cells.at[sent][gone]
            _unmark(keep, at + 1, at + 5 + cells.lengths[sent][gone])
        wanted = list(layout.wanted)
        nulls = dropped[wanted]
        sizes = np.where(nulls, 4, sizes[wanted])
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(sizes.sum(axis=0) + 2, out=starts[1:])
    kept = buffer[keep]
    if width != len(layout.places):  # the number of columns, as it is now
        before = np.cumsum(nulls.sum(axis=0)) - nulls.sum(axis=0)
        heads = starts[:-1] - before * len(_NULL_VALUE)
        kept[heads], kept[heads + 1] = width >> 8, width & 0xFF
    return Frame(_fill(kept, starts, sizes, nulls), starts, width).project(layout.reorder)


def _within(begin: Ints, end: Ints, size: int) -> Mask:
    """Which of so many bytes are in the ranges, which do not overlap and ascend."""
    edges = np.zeros(2 * len(begin) + 2, dtype=np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = begin, end, size
    within: Mask = np.repeat(np.arange(2 * len(begin) + 1) & 1 == 1, np.diff(edges))
    return within


def _unmark(keep: Mask, begin: Ints, end: Ints) -> None:
    """Clear the ranges, which do not overlap and ascend."""
    lengths = end - begin
    if int(lengths.sum()) * _NUMBERED > len(keep):
        # Numbers of bytes take 24 times the room of these. So much is dropped of a few columns only.
        keep &= ~_within(begin, end, len(keep))
        return
    first = np.cumsum(lengths) - lengths
    keep[np.repeat(begin - first, lengths) + np.arange(int(lengths.sum()))] = False


def _fill(kept: Bytes, starts: Ints, sizes: Ints, nulls: Mask) -> bytes:
    """The kept bytes, with a length of -1 put in for each null."""
    count = int(nulls.sum())
    if not count:
        return kept.tobytes()
    at = (np.cumsum(sizes, axis=0) - sizes + (starts[:-1] + 2)).T[nulls.T]  # ascending
    if count > nulls.shape[1]:
        out = np.full(int(starts[-1]), 0xFF, dtype=np.uint8)
        taken = np.ones(len(out), dtype=np.bool_)
        taken[at[:, None] + np.arange(len(_NULL_VALUE))] = False
        out[taken] = kept
        return out.tobytes()
    data = kept.tobytes()
    cuts = (at - np.arange(count) * len(_NULL_VALUE)).tolist()
    return _NULL_VALUE.join([data[begin:end] for begin, end in pairwise([0, *cuts, len(data)])])


def _value(layout: Layout, data: bytes, cells: _Cells, sent: int, row: int) -> bytes | None:
    if cells.kinds[sent, row] != layout.value:
        return None
    at = int(cells.at[sent, row]) + 5
    return data[at : at + int(cells.lengths[sent, row])]


def _key_changed(layout: Layout, data: bytes, old: _Cells, before: int, new: _Cells, after: int) -> bool:
    return any(
        int(new.kinds[sent, after]) != _UNCHANGED
        and _value(layout, data, old, sent, before) != _value(layout, data, new, sent, after)
        for sent in layout.key
    )


def _fills(
    layout: Layout, data: bytes, old: _Cells, new: _Cells, old_of: dict[int, int], with_new: Ints
) -> dict[int, dict[int, bytes]]:
    """Values that new tuples do not have but old ones do: by new tuple, by column sent."""
    fills: dict[int, dict[int, bytes]] = {}
    for sent in layout.wanted:
        for row in np.flatnonzero(new.kinds[sent] == _UNCHANGED).tolist():
            before = old_of.get(int(with_new[row]))
            value = _value(layout, data, old, sent, before) if before is not None else None
            if value is not None:
                fills.setdefault(row, {})[sent] = value
    return fills


def _refill(layout: Layout, data: bytes, cells: _Cells, rows: Frame, filled: dict[int, dict[int, bytes]]) -> Frame:
    """Make the rows anew that take values from an old tuple."""
    made = {
        row: frame_row([values.get(sent, _value(layout, data, cells, sent, row)) for sent in layout.ordered])
        for row, values in filled.items()
    }
    return Frame.of_rows([made.get(row) or rows.row(row) for row in range(len(rows))], rows.width)


def _missing(layout: Layout, cells: _Cells, filled: dict[int, dict[int, bytes]] | None) -> dict[int, int]:
    """By row, a bit mask of the places of the values that were not sent. Old tuples have none."""
    missing: dict[int, int] = {}
    unchanged = cells.kinds == _UNCHANGED
    if not unchanged.any():
        return missing
    for sent in layout.wanted:
        for row in np.flatnonzero(unchanged[sent]).tolist():
            if filled is None or sent not in filled.get(row, ()):
                missing[row] = missing.get(row, 0) | 1 << layout.places[sent]
    return missing
