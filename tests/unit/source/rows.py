"""Relations made by hand, and what pieces hold as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from towline.change import Format, Piece, Relation, RowSet
from towline_transforms.schema import Column, SqlType, Table, TableName

OIDS = {
    "bool": 16, "bytea": 17, "int4": 23, "text": 25, "float8": 701, "timestamptz": 1184, "numeric": 1700,
}  # fmt: skip


def relation(
    name: str,
    columns: Sequence[str],
    key: Sequence[str],
    *,
    format_: Format = Format.TEXT,
    schema: str = "public",
    partitions: Sequence[str] = (),
) -> Relation:
    """A relation whose columns are written ``name:type``."""
    made = tuple(
        Column(column.split(":")[0], SqlType(OIDS[type_], "pg_catalog", type_, type_))
        for column in columns
        for type_ in [column.split(":")[1]]
    )
    table = Table(
        TableName(schema, name),
        made,
        identity=tuple(key),
        partitions=tuple(TableName(schema, partition) for partition in partitions),
    )
    return Relation(table, made, format_)


class Row(NamedTuple):
    """A row of a row set, with all that is said of it."""

    op: int
    values: tuple[bytes | None, ...]
    order: int
    missing: int
    unknown: int
    moved: int | None


class Decoder(Protocol):
    """Of pgoutput."""

    def feed(self, message: bytes, at: int = 0) -> None:
        """Take any message."""

    def changes(self, messages: Iterator[bytes], at: int = 0) -> bytes | None:
        """Take changes; the first message that is another one is returned."""


def feed(decoder: Decoder, messages: Iterable[bytes], at: int = 0) -> None:
    """Feed the messages as the reader of a stream does, while there is room for all."""
    rest = iter(messages)
    message = next(rest, None)
    while message is not None:
        decoder.feed(message, at)
        message = decoder.changes(rest, at)


def rows_of(rows: RowSet) -> list[Row]:
    """The rows of a row set, whose numbers must ascend: what applies it takes the last row of a key for the newest."""
    assert sorted(rows.order.tolist()) == rows.order.tolist()
    return [
        Row(
            int(rows.ops[row]),
            tuple(rows.rows.value(row, column) for column in range(rows.rows.width)),
            int(rows.order[row]),
            rows.missing.get(row, 0),
            rows.unknown.get(row, 0),
            rows.moved.get(row),
        )
        for row in range(len(rows))
    ]


class Change(NamedTuple):
    """A change in source order; operation 0 is a truncation."""

    table: str
    op: int
    values: tuple[bytes | None, ...]
    missing: int = 0
    unknown: int = 0


def changes(pieces: Sequence[Piece]) -> list[Change]:
    """All changes of pieces, in source order."""
    found: list[Change] = []
    for piece in pieces:
        found += [Change(relation.name.name, 0, ()) for relation in piece.truncated]
        in_piece = [
            (row.order, Change(rows.relation.name.name, row.op, row.values, row.missing, row.unknown))
            for rows in piece.rowsets
            for row in rows_of(rows)
        ]
        found += [change for _, change in sorted(in_piece, key=lambda pair: pair[0])]
    return found
