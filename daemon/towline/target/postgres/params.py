"""Statement parameters made of framed bytes, without a look at the values.

The binary form of an array holds each element as its length and its bytes, which is how a frame holds a value: a
column of a frame becomes an array by joining its values behind a header.

Source: ``array_recv`` in PostgreSQL's ``arrayfuncs.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from towline.frame import Frame, frame_value

#: Dimensions, whether there are NULLs, the element type, and of the one dimension the length and the first index.
_HEADER = struct.Struct("!iiIii")
#: An array without elements has no dimensions.
_EMPTY = struct.Struct("!iiI")
#: OIDs of bigint and text.
_BIGINT, _TEXT = 20, 25


@dataclass(frozen=True, slots=True)
class Raw:
    """A value in binary form; its type is the one that the statement casts the parameter to."""

    data: bytes


class RawDumper(Dumper):
    """Passes the bytes of a `Raw` on."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: Raw) -> bytes:
        """The bytes as they are."""
        return obj.data


def register(connection: psycopg.Connection[Any]) -> None:
    """Let statements of this connection take `Raw` parameters."""
    connection.adapters.register_dumper(Raw, RawDumper)


def arrays(columns: Sequence[bytes], count: int, oids: Sequence[int]) -> list[Raw]:
    """Columns of so many rows (at least one), see `towline.columns`, as arrays of elements of the types given."""
    return [Raw(_HEADER.pack(1, 1, oid, count, 1) + column) for oid, column in zip(oids, columns, strict=True)]


def bigints(numbers: Sequence[int]) -> Raw:
    """Some numbers as an array of bigint. psycopg makes arrays value by value, which takes ten times as long."""
    return _array(_BIGINT, [struct.pack("!iq", 8, number) for number in numbers])


def texts(strings: Sequence[str | None]) -> Raw:
    """Some strings as an array of text, for a session whose encoding is UTF-8."""
    return _array(_TEXT, [frame_value(None if each is None else each.encode()) for each in strings])


def _array(oid: int, elements: Sequence[bytes]) -> Raw:
    if not elements:
        return Raw(_EMPTY.pack(0, 1, oid))
    return Raw(_HEADER.pack(1, 1, oid, len(elements), 1) + b"".join(elements))


def values(frame: Frame) -> list[Raw | None]:
    """All values, row by row."""
    rows = (split(frame.row(row)) for row in range(len(frame)))
    return [None if value is None else Raw(value) for row in rows for value in row]


def split(row: bytes) -> list[bytes | None]:
    """The values of a framed row."""
    found: list[bytes | None] = []
    at = 2
    end = len(row)
    while at < end:
        length = int.from_bytes(row[at : at + 4], "big", signed=True)
        at += 4
        if length < 0:
            found.append(None)
        else:
            found.append(row[at : at + length])
            at += length
    return found
