"""Rows as framed bytes: the form in which values cross the daemon, never interpreted.

A framed row is a tuple of PostgreSQL's ``COPY … (FORMAT binary)``: the number of columns (int16, big
endian), then for each column the length of its value (int32, -1 for NULL) and its bytes. The values are
either binary (``typsend``) or the text form (``typoutput``) of the source, see `towline.change.Format`;
a text value framed like this is also what ``textrecv`` reads, so both travel through COPY BINARY.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".

All the work here is done column by column over all rows at once (numpy), since a loop over rows and
columns in Python costs several times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Mask = NDArray[np.bool_]
else:
    Ints = Mask = Any

#: What opens and closes a COPY BINARY stream: signature, flags, header extension; and the file trailer.
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"


#: Up to so many values, a loop over them costs less than a dozen calls of numpy for each column.
_FEW = 200
#: The same for finding the keys of so many rows.
_FEW_KEYS = 24


class FrameError(ValueError):
    """The bytes are not rows of the width they are said to have."""


def numbers(data: bytes, form: str) -> Any:
    """The number of that form (big endian, as ``>u4``) that begins at any byte: an array to be indexed by places."""
    size = np.dtype(form).itemsize
    return np.ndarray((len(data) - size + 1,), dtype=form, buffer=data, strides=(1,))


def int32(data: bytes, at: Ints) -> Ints:
    """The big-endian int32 at each of the offsets."""
    if not len(at):
        return np.empty(0, dtype=np.int64)
    value: Ints = numbers(data, ">i4")[at].astype(np.int64)
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """``len(starts) - 1`` rows of ``width`` columns; row *i* is ``data[starts[i]:starts[i + 1]]``."""

    data: bytes
    starts: Ints
    width: int
    _fields: list[tuple[Ints, Ints]] = field(default_factory=list, init=False, repr=False)
    _spans: dict[tuple[int, int], tuple[Ints, Ints]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of_rows(cls, rows: Sequence[bytes | memoryview], width: int) -> Frame:
        """Join rows that are framed already."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)).cumsum(out=starts[1:])
        return cls(b"".join(rows), starts, width)

    @classmethod
    def of_values(cls, rows: Sequence[Sequence[bytes | None]], width: int) -> Frame:
        """Frame rows given value by value; for few rows and for decoders of text."""
        return cls.of_rows([frame_row(row) for row in rows], width)

    @classmethod
    def empty(cls, width: int) -> Frame:
        """No rows. (All tables of a piece have empty frames, which are the same.)"""
        if (found := _EMPTY.get(width)) is None:
            found = _EMPTY[width] = cls(b"", np.zeros(1, dtype=np.int64), width)
        return found

    @classmethod
    def concat(cls, frames: Sequence[Frame], width: int) -> Frame:
        """All rows of the frames, one after the other."""
        if len(frames) == 1:
            return frames[0]
        starts = np.concatenate([np.zeros(1, dtype=np.int64), *[frame.starts[1:] for frame in frames]])
        sizes = [len(frame.data) for frame in frames]
        starts[1:] += np.repeat(np.cumsum([0, *sizes[:-1]]), [len(frame.starts) - 1 for frame in frames])
        return cls(b"".join([frame.data for frame in frames]), starts, width)

    def row(self, index: int) -> bytes:
        """The framed bytes of one row."""
        return self.data[int(self.starts[index]) : int(self.starts[index + 1])]

    def fields(self) -> tuple[Ints, Ints]:
        """Where each value begins, and its length (-1: NULL); both of shape (width, rows).

        Raises FrameError when rows do not have exactly ``width`` columns that fill them.
        """
        if self._fields:
            return self._fields[0]
        count = len(self)
        if count * self.width <= _FEW:
            self._fields.append(self._fields_of_few())
            return self._fields[0]
        offsets = np.empty((self.width, count), dtype=np.int64)
        lengths = np.empty((self.width, count), dtype=np.int64)
        at = self.starts[:-1] + 2
        ends = self.starts[1:]
        for column in range(self.width):
            if count and int((at + 4 - ends).max()) > 0:
                raise FrameError(f"a row ends inside column {column + 1} of {self.width}")
            length = int32(self.data, at)
            offsets[column] = at + 4
            lengths[column] = length
            at = at + 4 + np.maximum(length, 0)
        if count and not np.array_equal(at, ends):
            raise FrameError(f"rows do not have {self.width} columns")
        self._fields.append((offsets, lengths))
        return offsets, lengths

    def _fields_of_few(self) -> tuple[Ints, Ints]:
        """The same as `fields`, value by value."""
        offsets: list[list[int]] = [[] for _ in range(self.width)]
        lengths: list[list[int]] = [[] for _ in range(self.width)]
        data = self.data
        bounds = self.starts.tolist()
        for start, end in pairwise(bounds):
            at = start + 2
            for column in range(self.width):
                if at + 4 > end:
                    raise FrameError(f"a row ends inside column {column + 1} of {self.width}")
                length = int.from_bytes(data[at : at + 4], "big", signed=True)
                at += 4
                offsets[column].append(at)
                lengths[column].append(length)
                at += max(length, 0)
            if at != end:
                raise FrameError(f"rows do not have {self.width} columns")
        shape = self.width, len(bounds) - 1
        return np.array(offsets, dtype=np.int64).reshape(shape), np.array(lengths, dtype=np.int64).reshape(shape)

    def span(self, first: int, count: int) -> tuple[Ints, Ints]:
        """Where ``count`` columns from ``first`` on begin, with the length of the first value, and where they end.

        Cheaper than `fields` when there are many columns after them. Raises FrameError when a row ends before.
        """
        if (found := self._spans.get((first, count))) is None:
            found = self._spans[first, count] = self._span(first, count)
        return found

    def _span(self, first: int, count: int) -> tuple[Ints, Ints]:
        if self._fields:
            offsets, lengths = self._fields[0]
            last = first + count - 1
            return offsets[first] - 4, offsets[last] + np.maximum(lengths[last], 0)
        at = begins = self.starts[:-1] + 2
        for column in range(first + count):
            if column == first:
                begins = at
            if len(self) and int((at + 4 - self.starts[1:]).max()) > 0:
                raise FrameError(f"a row ends inside column {column + 1} of {self.width}")
            at = at + 4 + np.maximum(int32(self.data, at), 0)
        if len(self) and int((at - self.starts[1:]).max()) > 0:
            raise FrameError(f"a row ends inside column {first + count} of {self.width}")
        return begins, at

    def tell_span(self, first: int, count: int, begins: Ints, ends: Ints) -> None:
        """What `span` is to return, for who has found it already."""
        self._spans[first, count] = begins, ends

    def value(self, row: int, column: int) -> bytes | None:
        """One value; None for NULL."""
        offsets, lengths = self.fields()
        length = int(lengths[column, row])
        if length < 0:
            return None
        at = int(offsets[column, row])
        return self.data[at : at + length]

    def column(self, column: int) -> list[bytes | None]:
        """All values of one column."""
        offsets, lengths = self.fields()
        data = self.data
        return [
            None if length < 0 else data[at : at + length]
            for at, length in zip(offsets[column].tolist(), lengths[column].tolist(), strict=True)
        ]

    def keys(self, columns: Sequence[int]) -> list[bytes]:
        """The framed bytes of some columns of each row: equal bytes mean the same key.

        A row's key begins with the length of its first value, so that ('a', 'bc') is not ('ab', 'c').
        Raises FrameError when rows end before the last of the columns.
        """
        data = self.data
        if adjoining(columns):
            first, count = columns[0], len(columns)
            if len(self) <= _FEW_KEYS and (first, count) not in self._spans:
                return self._keys_of_few(first, count)
            begins, ends = self.span(first, count)
            return [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        offsets, lengths = self.fields()
        parts = [
            [data[at - 4 : at + length] for at, length in zip(starts, sizes, strict=True)]
            for starts, sizes in ((offsets[c].tolist(), lengths[c].clip(0).tolist()) for c in columns)
        ]
        return [b"".join(pieces) for pieces in zip(*parts, strict=True)]

    def _keys_of_few(self, first: int, count: int) -> list[bytes]:
        """The same as `keys`, row by row."""
        keys: list[bytes] = []
        data = self.data
        for start, end in pairwise(self.starts.tolist()):
            at = begin = start + 2
            for column in range(first + count):
                if column == first:
                    begin = at
                if at + 4 > end:
                    raise FrameError(f"a row ends inside column {column + 1} of {self.width}")
                at += 4 + max(int.from_bytes(data[at : at + 4], "big", signed=True), 0)
            if at > end:
                raise FrameError(f"a row ends inside column {first + count} of {self.width}")
            keys.append(data[begin:at])
        return keys

    def take(self, rows: Ints) -> Frame:
        """The rows of those indices, in that order."""
        if not len(rows):
            return Frame.empty(self.width)
        if len(rows) == len(self) and bool((rows == np.arange(len(self))).all()):
            return self
        starts = self.starts.tolist()
        data = self.data
        return Frame.of_rows([data[starts[i] : starts[i + 1]] for i in rows.tolist()], self.width)

    def project(self, columns: Sequence[int]) -> Frame:
        """The same rows with only those columns, in that order."""
        if list(columns) == list(range(self.width)):
            return self
        if not len(self):
            return Frame.empty(len(columns))
        head = len(columns).to_bytes(2, "big")
        return Frame.of_rows([head + key for key in self.keys(columns)], len(columns))

    def append_column(self, values: Sequence[bytes | None]) -> Frame:
        """The same rows with one more column at the end."""
        head = (self.width + 1).to_bytes(2, "big")
        starts = self.starts.tolist()
        data = self.data
        return Frame.of_rows(
            [head + data[starts[i] + 2 : starts[i + 1]] + frame_value(value) for i, value in enumerate(values)],
            self.width + 1,
        )

    def copy_data(self) -> bytes:
        """The rows as a whole COPY BINARY stream."""
        return b"".join((COPY_HEADER, self.data, COPY_TRAILER))


_EMPTY: dict[int, Frame] = {}


def adjoining(columns: Sequence[int]) -> bool:
    """Whether the columns follow each other, so that their values are together in a row."""
    return len(columns) == 1 or list(columns) == list(range(columns[0], columns[0] + len(columns)))


def frame_value(value: bytes | None) -> bytes:
    """One framed value: its length and its bytes."""
    if value is None:
        return b"\xff\xff\xff\xff"
    return len(value).to_bytes(4, "big") + value


def frame_row(values: Sequence[bytes | None]) -> bytes:
    """One framed row."""
    return len(values).to_bytes(2, "big") + b"".join(map(frame_value, values))


def key_values(key: bytes) -> list[bytes | None]:
    """Take a key of `Frame.keys` apart into its values."""
    values: list[bytes | None] = []
    at = 0
    while at < len(key):
        length = int.from_bytes(key[at : at + 4], "big", signed=True)
        at += 4
        values.append(None if length < 0 else key[at : at + length])
        at += max(length, 0)
    return values
