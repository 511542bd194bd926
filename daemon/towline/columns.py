"""The values of frames column by column, joined as they are framed: what arrays are made of.

There are several ways to the same bytes, for few rows and for many, and for the rows of many tables. A call of numpy
costs about a microsecond however few rows it is about, and finding values takes dozens of them: a piece may hold a few
rows of each of hundreds of tables, so that their frames are joined and looked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.frame import Frame, FrameError, int32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any

#: Up to so many values, slicing them in one loop costs less than finding them with numpy, to slice them then.
_FEW = 200
#: From so many rows on, values of a column that are of one size are copied by numpy.
_MANY = 32


def columns(frame: Frame) -> list[bytes]:
    """The framed values of each column, joined. Raises FrameError when the rows do not have these columns."""
    if len(frame) * frame.width <= _FEW:
        return _of_few(frame)
    offsets, lengths = frame.fields()
    return [b"".join(_values(frame.data, *each)) for each in zip(offsets, lengths, strict=True)]


def columns_of_each(frames: Sequence[Frame]) -> list[list[bytes]]:
    """`columns` of each of some frames. Raises FrameError as that does."""
    filled = sorted((frame for frame in frames if len(frame)), key=lambda frame: -frame.width)
    if len(filled) < 2:
        return [columns(frame) for frame in frames]
    joined = Frame.concat(filled, filled[0].width)
    counts = _having(filled)
    try:
        offsets, lengths = _fields(joined, counts)
    except FrameError:  # which of them it is, that one will say
        return [columns(frame) for frame in frames]
    parts = [
        _Parts(joined.data, offsets[column, :count], lengths[column, :count]) for column, count in enumerate(counts)
    ]
    found: dict[int, list[bytes]] = {}
    row = 0
    for frame in filled:
        found[id(frame)] = [part.between(row, row + len(frame)) for part in parts[: frame.width]]
        row += len(frame)
    return [found[id(frame)] if len(frame) else [b""] * frame.width for frame in frames]


class _Parts:
    """A column of the rows of some frames, of which parts are wanted."""

    def __init__(self, data: bytes, offsets: Ints, lengths: Ints) -> None:
        self._values = _values(data, offsets, lengths)
        self._size = 0 if len(self._values) > 1 else len(self._values[0]) // len(offsets)

    def between(self, low: int, high: int) -> bytes:
        """The framed values of some rows, joined."""
        if self._size:
            return self._values[0][low * self._size : high * self._size]
        return b"".join(self._values[low:high])


def _values(data: bytes, offsets: Ints, lengths: Ints) -> list[bytes]:
    """The framed values of a column one by one; when there are many, and all of one size, in one."""
    if len(lengths) >= _MANY and bool((lengths == lengths[0]).all()):
        size = 4 + max(int(lengths[0]), 0)
        anywhere: NDArray[np.void] = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))
        return [anywhere[offsets - 4].tobytes()]
    begins, ends = offsets - 4, offsets + np.maximum(lengths, 0)
    return [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _fields(joined: Frame, counts: Sequence[int]) -> tuple[Ints, Ints]:
    """As `Frame.fields`, of rows of which the first ``count`` have a column; what the others lack is not set."""
    data, at, ends = joined.data, joined.starts[:-1] + 2, joined.starts[1:]
    offsets: Ints = np.empty((joined.width, len(joined)), dtype=np.int64)
    lengths: Ints = np.empty((joined.width, len(joined)), dtype=np.int64)
    for column, count in enumerate([*counts, 0]):
        if bool((at[count:] != ends[count : len(at)]).any()):
            raise FrameError("rows do not have the columns that they should have")
        at = at[:count]
        if bool((at + 4 > ends[:count]).any()):
            raise FrameError(f"a row ends inside column {column + 1}")
        if count:
            length = int32(data, at)
            at = at + 4
            offsets[column, :count] = at
            lengths[column, :count] = length
            at = at + np.maximum(length, 0)
    return offsets, lengths


def _having(frames: Sequence[Frame]) -> list[int]:
    """For each column, how many rows have it; of frames of which the widest come first."""
    counts = [0] * frames[0].width
    rows = 0
    for frame, narrower in zip(frames, [*(frame.width for frame in frames[1:]), 0], strict=True):
        rows += len(frame)
        counts[narrower : frame.width] = [rows] * (frame.width - narrower)
    return counts


def _of_few(frame: Frame) -> list[bytes]:
    """The same as `columns`, value by value."""
    pieces: list[list[bytes]] = [[] for _ in range(frame.width)]
    data = frame.data
    for start, row_end in pairwise(frame.starts.tolist()):
        at = start + 2
        for number, column in enumerate(pieces, 1):
            length = int.from_bytes(data[at : at + 4], "big", signed=True)
            end = at + 4 + max(length, 0)
            if end > row_end:
                raise FrameError(f"a row ends inside column {number} of {frame.width}")
            column.append(data[at:end])
            at = end
        if at != row_end:
            raise FrameError(f"rows do not have {frame.width} columns")
    return [b"".join(column) for column in pieces]
