"""How the tuples of a table, as pgoutput sends them, become rows of a relation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from towline.change import DELETE, Format, Relation, RowSet
from towline.errors import SourceTableChanged, StreamMalformed
from towline.source.postgres.pgoutput_messages import RelationSent
from towline.source.postgres.routed import NEWEST, check_added, lacking
from towline_transforms.schema import TableName


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the tuples of a relation are laid out, as its last Relation message said.

    ``places``: for each column sent, its place among the relation's columns, or -1 when it is not wanted.
    ``sent``: the table's name in the log, which may be a partition's. Columns of the relation that were not sent are
    ``absent``, by their places: the log is from before they were there.
    """

    relation: Relation
    places: tuple[int, ...]
    sent: TableName
    wanted: tuple[int, ...] = field(init=False)  # columns sent that are wanted, in the order sent
    absent: tuple[int, ...] = field(init=False)
    ordered: tuple[int, ...] = field(init=False)  # the same, in the relation's order
    key: tuple[int, ...] = field(init=False)  # columns sent that make up the key, in the order sent
    reorder: tuple[int, ...] = field(init=False)  # from the order sent to the relation's, for Frame.project
    value: int = field(init=False)  # the kind byte of a value

    def __post_init__(self) -> None:
        wanted = tuple(sent for sent, place in enumerate(self.places) if place >= 0)
        ordered = tuple(sorted(wanted, key=self.places.__getitem__))
        present = {self.places[sent] for sent in wanted}
        set_ = object.__setattr__
        set_(self, "wanted", wanted)
        set_(self, "key", tuple(sent for sent in wanted if self.places[sent] in self.relation.key))
        set_(self, "ordered", ordered)
        set_(self, "absent", tuple(place for place in range(len(self.relation.columns)) if place not in present))
        set_(self, "reorder", tuple(map(wanted.index, ordered)))
        set_(self, "value", ord("b") if self.relation.format is Format.BINARY else ord("t"))

    def same(self, other: Layout) -> bool:
        """Whether tuples of both can be framed together."""
        return self.relation is other.relation and self.places == other.places and self.sent == other.sent


def layout_of(sent: RelationSent, relation: Relation, lsn: int = NEWEST) -> Layout:
    """How tuples of a table become rows of the relation, in a transaction whose commit record starts at ``lsn``.

    A column may be absent, or of another type, where the log is from before the relation was described: then it is
    not taken from there, as if it had not been sent. Columns come in the order of their numbers, so that another
    order means that names are of other columns. Raises SourceTableChanged, naming table and column.
    """
    by_name = {column.name: number for number, column in enumerate(sent.columns)}
    places = [-1] * len(sent.columns)
    untrusted = relation.untrusted(lsn)
    newer = lsn >= relation.described
    for place, column in enumerate(relation.columns):
        number = by_name.get(column.name)
        if number is None:
            # Without a position it cannot be told from one that was not there yet; the decoder knows what was.
            if place in relation.key or (relation.described and newer and column.name not in untrusted):
                raise lacking(sent.name, column.name)
            continue
        if sent.columns[number].type_oid != column.type.oid:
            if newer or place in relation.key:
                raise SourceTableChanged(
                    f"column {column.name} of {sent.name} is of the type with OID {sent.columns[number].type_oid} in "
                    f"the log at this point, and not {column.type.sql} (OID {column.type.oid})"
                )
            continue
        if place in relation.key and not sent.columns[number].key:
            raise SourceTableChanged(
                f"column {column.name} of {sent.name} is not part of the replica identity in the log at this point"
            )
        if place in relation.key or column.name not in untrusted:
            places[number] = place
    check_added(sent.name, relation, by_name, lsn)
    taken = [place for place in places if place >= 0]
    if relation.described and newer and sent.name == relation.name and taken != sorted(taken):
        raise SourceTableChanged(f"names of columns of {sent.name} are of other columns in the log at this point")
    return Layout(relation, tuple(places), sent.name)


def widened(layout: Layout, rows: RowSet) -> RowSet:
    """The row set with absent columns put in, as NULLs whose value must be read from the source."""
    if not layout.absent:
        return rows
    frame = rows.rows
    for _ in layout.absent:
        frame = frame.append_column([None] * len(frame))
    present = [place for place in range(len(layout.relation.columns)) if place not in layout.absent]
    at = {place: column for column, place in enumerate((*present, *layout.absent))}
    frame = frame.project([at[place] for place in range(len(at))])
    mask = sum(1 << place for place in layout.absent)
    unknown = {row: mask for row in np.flatnonzero(rows.ops != DELETE).tolist()}
    return replace(rows, rows=frame, unknown=unknown)


def malformed(layout: Layout, what: str) -> StreamMalformed:
    """The error for changes that are not of that layout."""
    return StreamMalformed(f"pgoutput, changes of {layout.relation.name}: {what}")


def bad_kind(layout: Layout, column: int, kind: int) -> StreamMalformed:
    """The error for a column (by its number among those sent) whose kind byte is not one that can be."""
    place = layout.places[column]
    name = layout.relation.columns[place].name if place >= 0 else f"number {column + 1}"
    if kind in b"tb":
        sent, due = ("text", "binary") if kind == ord("t") else ("binary", "text")
        return malformed(layout, f"column {name} came as {sent} in a stream of {due} values")
    return malformed(layout, f"column {name} is of unknown kind {kind}")
