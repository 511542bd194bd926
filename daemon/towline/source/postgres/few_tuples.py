"""Tuples of pgoutput to framed rows, one by one: the same as `tuples`, for less than a few dozen rows.

Below that number, working column by column over all rows costs more in calls than it saves. The format: see `tuples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from towline.change import DELETE, INSERT, UPDATE, RowSet
from towline.frame import Frame, frame_row
from towline.source.postgres.layout import Layout, bad_kind, malformed, widened
from towline.source.postgres.tuples import HEAD

_NULL, _UNCHANGED = ord("n"), ord("u")
_INSERT, _UPDATE, _DELETE = ord("I"), ord("U"), ord("D")
_NEW, _KEY, _OLD = ord("N"), ord("K"), ord("O")


class _Unsent:
    """Stands for a value that was not sent."""


UNSENT: Final = _Unsent()

Values = list[bytes | _Unsent | None]


def row_set(layout: Layout, messages: Sequence[bytes], orders: Sequence[int], at: int, skip: int = 0) -> RowSet:
    """Frame the changes of one relation; ``messages`` hold one each, from offset ``at`` on. ``skip``: see `tuples`.

    Raises StreamMalformed when a message is not a change of that layout.
    """
    rows: list[bytes] = []
    ops: list[int] = []
    order: list[int] = []
    missing: dict[int, int] = {}
    moved: dict[int, int] = {}
    for message, number in zip(messages, orders, strict=True):
        op, old, new = _change(layout, message, at, skip)
        gone = old is not None and (new is None or _key_changed(layout, old, new))
        if gone and old is not None:
            rows.append(_frame_key(layout, old))
            ops.append(DELETE)
            order.append(number)
        if new is not None:
            framed, mask = _frame_new(layout, new, old)
            if mask:
                missing[len(rows)] = mask
                if gone:
                    moved[len(rows)] = len(rows) - 1
            rows.append(framed)
            ops.append(op)
            order.append(number)
    framed_rows = RowSet(
        layout.relation,
        Frame.of_rows(rows, len(layout.wanted)),
        np.array(ops, dtype=np.uint8),
        np.array(order, dtype=np.int64),
        missing,
        {},
        moved,
    )
    return widened(layout, framed_rows)


def _change(layout: Layout, message: bytes, at: int, skip: int) -> tuple[int, Values | None, Values | None]:
    """The operation, the old tuple and the new one."""
    begin = at + HEAD + skip
    if begin > len(message):
        raise malformed(layout, "a change ends before its first tuple")
    kind, marker = message[at], message[begin - 1]
    old: Values | None = None
    new: Values | None = None
    if marker in (_KEY, _OLD) and kind in (_UPDATE, _DELETE):
        old, begin = _tuple(layout, message, begin, new=False)
        if any(old[sent] is None for sent in layout.key):
            raise malformed(layout, "an old tuple lacks a column of the key")
        if kind == _UPDATE:
            if message[begin : begin + 1] != b"N":
                raise malformed(layout, "an update has no new tuple")
            begin += 1
    elif marker != _NEW or kind not in (_INSERT, _UPDATE):
        raise malformed(layout, "a change has a tuple of a wrong kind")
    if kind != _DELETE:
        new, begin = _tuple(layout, message, begin, new=True)
        if kind == _INSERT and UNSENT in new:
            raise malformed(layout, "a value of an inserted row was not sent")
    if begin != len(message):
        raise malformed(layout, "bytes follow the last tuple of a change")
    return INSERT if kind == _INSERT else UPDATE, old, new


def _tuple(layout: Layout, message: bytes, at: int, *, new: bool) -> tuple[Values, int]:
    """The values of the tuple that begins there, and where it ends."""
    width, value_kind, end = len(layout.places), layout.value, len(message)
    if at + 2 > end:
        raise malformed(layout, "a tuple ends before its number of columns")
    if int.from_bytes(message[at : at + 2], "big") != width:
        raise malformed(layout, f"a tuple does not have {width} columns")
    at += 2
    values: Values = []
    for column in range(width):
        kind = message[at] if at < end else _NULL
        if kind == value_kind:
            begin = at + 5
            at = begin + int.from_bytes(message[at + 1 : begin], "big")
            values.append(message[begin:at])
        elif kind == _NULL:
            at += 1
            values.append(None)
        elif kind == _UNCHANGED and new:
            at += 1
            values.append(UNSENT)
        else:
            raise bad_kind(layout, column, kind)
        if at > end:
            raise malformed(layout, f"a change ends inside column {column + 1} of {width}")
    return values, at


def _key_changed(layout: Layout, old: Values, new: Values) -> bool:
    return any(new[sent] is not UNSENT and new[sent] != old[sent] for sent in layout.key)


def _frame_key(layout: Layout, old: Values) -> bytes:
    row: list[bytes | None] = [None] * len(layout.wanted)
    for column, sent in enumerate(layout.ordered):
        value = old[sent] if sent in layout.key else None
        row[column] = value if isinstance(value, bytes) else None
    return frame_row(row)


def _frame_new(layout: Layout, new: Values, old: Values | None) -> tuple[bytes, int]:
    row: list[bytes | None] = [None] * len(layout.wanted)
    mask = 0
    for column, sent in enumerate(layout.ordered):
        value = new[sent]
        if value is UNSENT:
            before = old[sent] if old is not None else None
            if before is None:
                mask |= 1 << layout.places[sent]
            value = before
        row[column] = value if isinstance(value, bytes) else None
    return frame_row(row), mask
