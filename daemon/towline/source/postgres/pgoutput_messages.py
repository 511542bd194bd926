"""The messages of pgoutput but for changes: bytes to records. For what they mean, see `pgoutput`.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html. Integers are big endian,
strings end with a zero byte, times are microseconds since 2000-01-01 UTC.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from towline.errors import StreamMalformed
from towline_transforms.schema import TableName

#: What times are counted from.
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

_BEGIN = struct.Struct(">cQqI")
_COMMIT = struct.Struct(">cBQQq")


class Begin(NamedTuple):
    """``lsn``: where the commit record starts. (A tuple: transactions may be as many as rows.)"""

    lsn: int
    commit_time: datetime
    xid: int


class Commit(NamedTuple):
    """``end``: the position just after the commit record."""

    lsn: int
    end: int


@dataclass(frozen=True, slots=True)
class SentColumn:
    """A column as it is sent. ``key``: it is part of the replica identity."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class RelationSent:
    """A table as the plugin describes it. ``identity``: pg_class.relreplident."""

    oid: bytes
    name: TableName
    identity: str
    columns: tuple[SentColumn, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables emptied by one statement."""

    oids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message that nothing depends on: ORIGIN, TYPE, MESSAGE."""

    kind: str


class _Reader:
    """Takes a message apart; everything that does not fit raises StreamMalformed."""

    def __init__(self, message: bytes, at: int) -> None:
        self._message = message
        self._at = at
        self.kind = chr(message[at - 1])

    def integer(self, size: int, *, signed: bool = False) -> int:
        value = self.raw(size)
        return int.from_bytes(value, "big", signed=signed)

    def raw(self, size: int) -> bytes:
        value = self._message[self._at : self._at + size]
        if len(value) < size:
            raise self.malformed("it ends early")
        self._at += size
        return value

    def string(self) -> str:
        end = self._message.find(b"\0", self._at)
        if end < 0:
            raise self.malformed("a string has no end")
        value = self._message[self._at : end]
        self._at = end + 1
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self.malformed("a name is not UTF-8") from None

    def done(self) -> None:
        if self._at != len(self._message):
            raise self.malformed("bytes follow it")

    def malformed(self, what: str) -> StreamMalformed:
        return StreamMalformed(f"pgoutput, message {self.kind!r}: {what}")


def parse(message: bytes, at: int = 0) -> Begin | Commit | RelationSent | Truncate | Skipped:
    """Read any message but a change, from offset ``at`` on. Raises StreamMalformed."""
    if len(message) <= at:
        raise StreamMalformed("pgoutput: an empty message")
    if message[at] == ord("B"):
        return _begin(message, at)
    if message[at] == ord("C"):
        return _commit(message, at)
    reader = _Reader(message, at + 1)
    read = _PARSERS.get(message[at])
    if read is None:
        raise reader.malformed("its kind is unknown in protocol version 1")
    parsed = read(reader)
    reader.done()
    return parsed


def _begin(message: bytes, at: int) -> Begin:
    try:
        _, lsn, microseconds, xid = _BEGIN.unpack(message[at:])
        return Begin(lsn, EPOCH + timedelta(microseconds=microseconds), xid)
    except (struct.error, OverflowError):
        raise StreamMalformed(
            "pgoutput, message 'B': it is of a wrong length, or its time beyond the calendar"
        ) from None


def _commit(message: bytes, at: int) -> Commit:
    try:
        _, flags, lsn, end, _ = _COMMIT.unpack(message[at:])
    except struct.error:
        raise StreamMalformed("pgoutput, message 'C': it is of a wrong length") from None
    if flags:
        raise StreamMalformed("pgoutput, message 'C': it has unknown flags")
    return Commit(lsn, end)


def _relation(reader: _Reader) -> RelationSent:
    oid = reader.raw(4)
    schema = reader.string() or "pg_catalog"
    name = TableName(schema, reader.string())
    identity = chr(reader.integer(1))
    if identity not in "dnfi":
        raise reader.malformed("its replica identity is unknown")
    columns = []
    for _ in range(reader.integer(2)):
        flags = reader.integer(1)
        if flags > 1:
            raise reader.malformed("a column has unknown flags")
        columns.append(SentColumn(reader.string(), reader.integer(4), reader.integer(4, signed=True), flags == 1))
    if len({column.name for column in columns}) != len(columns):
        raise reader.malformed("two columns have the same name")
    return RelationSent(oid, name, identity, tuple(columns))


def _truncate(reader: _Reader) -> Truncate:
    count = reader.integer(4)
    if reader.integer(1) > 3:
        raise reader.malformed("it has unknown options")
    return Truncate(tuple(reader.raw(4) for _ in range(count)))


def _type(reader: _Reader) -> Skipped:
    reader.integer(4)
    reader.string()
    reader.string()
    return Skipped("type")


def _origin(reader: _Reader) -> Skipped:
    reader.integer(8)
    reader.string()
    return Skipped("origin")


def _message(reader: _Reader) -> Skipped:
    if reader.integer(1) > 1:
        raise reader.malformed("it has unknown flags")
    reader.integer(8)
    reader.string()
    reader.raw(reader.integer(4))
    return Skipped("message")


_PARSERS: dict[int, Callable[[_Reader], RelationSent | Truncate | Skipped]] = {
    ord("R"): _relation,
    ord("T"): _truncate,
    ord("Y"): _type,
    ord("O"): _origin,
    ord("M"): _message,
}
