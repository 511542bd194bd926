"""Reading a server's catalogs into the shapes of `towline_transforms.schema`, for both ends.

A handful of statements (catalog.sql) for any number of tables, in one snapshot where the session is idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from towline.postgres import statements
from towline_transforms.schema import ActingKey, Catalog, Column, ForeignKey, SqlType, Table, TableName, TypeKind

_SQL = statements.load("towline.postgres", "catalog.sql")

#: OIDs below this are assigned by hand and the same in every version; initdb assigns those from here on.
_FIRST_ASSIGNED_OID = 10000

#: Built-in types whose binary form is of no use elsewhere: OIDs of the server's own objects, what cannot be received.
_LOCAL_PREFIXES = ("reg", "pg_")
_PORTABLE = frozenset({"pg_lsn", "pg_snapshot"})
#: tsquery's receive function refuses the empty query that its send function writes, and sorts the others' operands.
_UNFAITHFUL = frozenset({"tsquery"})

_KINDS = {
    "a": TypeKind.ARRAY,
    "e": TypeKind.ENUM,
    "d": TypeKind.DOMAIN,
    "c": TypeKind.COMPOSITE,
    "r": TypeKind.RANGE,
    "m": TypeKind.MULTIRANGE,
}

Row = tuple[Any, ...]


def describe(connection: psycopg.Connection, names: Collection[TableName]) -> Catalog:
    """The tables of those names that exist, and the database's user-defined types.

    A name ``*`` stands for all ordinary and partitioned tables of its schema that the log holds: without partitions,
    unlogged and temporary tables, and tables of extensions. Views and foreign tables are described only by name.
    Raises psycopg.Error; the caller knows which end it is (`towline.postgres.session.translating`).
    """
    with _consistent(connection):
        relations = _run(
            connection, "tables", schemas=[name.schema for name in names], names=[name.name for name in names]
        )
        oids: list[int] = [row[0] for row in relations]
        columns = _grouped(_run(connection, "columns", oids=oids))
        types = _Types.read(connection, {(row[2], row[3]) for rows in columns.values() for row in rows})
        indexes = _grouped(_run(connection, "indexes", oids=oids))
        foreign_keys = _grouped(_run(connection, "foreign_keys", oids=oids))
        acting_keys = _grouped(_run(connection, "acting_keys", oids=oids))
        roots = [row[0] for row in relations if row[3] == "p"]
        partitions = _grouped(_run(connection, "partitions", oids=roots))
        user_types = frozenset((schema, name) for schema, name in _run(connection, "user_types"))
    tables = {}
    for row in sorted(relations, key=lambda row: (row[1], row[2])):
        oid = row[0]
        table = _table(row, columns[oid], types, indexes[oid], foreign_keys[oid], partitions[oid])
        if acting := acting_keys[oid]:
            keys = (ActingKey(TableName(*names), tuple(key), follows) for _, *names, key, follows in acting)
            table = replace(table, acting_keys=tuple(keys))
        tables[table.name] = table
    return Catalog(tables, connection.info.server_version, user_types)


@contextmanager
def _consistent(connection: psycopg.Connection) -> Iterator[None]:
    """An empty search_path, and one snapshot for all statements unless a transaction is open already."""
    idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if idle:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        before = connection.execute("SELECT pg_catalog.current_setting('search_path')").fetchone()
        connection.execute("SELECT pg_catalog.set_config('search_path', '', true)")
        yield
        connection.execute("SELECT pg_catalog.set_config('search_path', %s, true)", before)


def _run(connection: psycopg.Connection, statement: str, **parameters: Sequence[object]) -> list[Row]:
    return connection.execute(_SQL[statement], parameters).fetchall()


def _grouped(rows: Sequence[Row]) -> Mapping[int, list[Row]]:
    """Rows by their first column."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[0]].append(row)
    return groups


# ---- Tables ---------------------------------------------------------------------------------------------------


def _table(
    relation: Row,
    columns: Sequence[Row],
    types: _Types,
    indexes: Sequence[Row],
    foreign_keys: Sequence[Row],
    partitions: Sequence[Row],
) -> Table:
    oid, schema, name, relkind, persistence, replica_identity, estimate = relation
    found = [
        _Index(tuple(key), primary, replica, immediate, not_null)
        for _, primary, replica, immediate, key, not_null in indexes
    ]
    identity, reason = _identity(relkind, persistence, replica_identity, found)
    return Table(
        name=TableName(schema, name),
        columns=tuple(_column(row, types) for row in columns),
        primary_key=next((index.columns for index in found if index.primary), ()),
        identity=identity,
        identity_reason=reason,
        replica_identity_full=replica_identity == "f",
        unique_keys=tuple(dict.fromkeys(index.columns for index in found if index.immediate)),
        foreign_keys=tuple(
            ForeignKey(key, tuple(ours), TableName(to_schema, to_name), tuple(theirs), deferrable)
            for _, key, to_schema, to_name, ours, theirs, deferrable in foreign_keys
        ),
        partitions=tuple(TableName(leaf_schema, leaf) for _, leaf_schema, leaf, _, _ in partitions),
        leaves=tuple((leaf, attached) for _, _, _, leaf, attached in partitions),
        oid=oid,
        row_estimate=estimate,
    )


def _column(row: Row, types: _Types) -> Column:
    _, name, oid, typmod, not_null, has_default, generated, identity_always, collation, number = row
    return Column(
        name=name,
        type=types.sql_type(oid, typmod),
        not_null=not_null or types.domain_says(oid, "not_null"),
        has_default=has_default or (generated is None and types.domain_says(oid, "has_default")),
        generated=generated,
        identity_always=identity_always,
        collation=collation,
        number=number,
    )


@dataclass(frozen=True, slots=True)
class _Index:
    columns: tuple[str, ...]
    primary: bool
    replica_identity: bool
    immediate: bool
    not_null: bool


def _identity(
    relkind: str, persistence: str, replica_identity: str, indexes: Sequence[_Index]
) -> tuple[tuple[str, ...], str]:
    """The columns by which the log names a row, or why there are none."""
    if relkind not in "rp":
        return (), "It is not a table, and the log has no changes of it."
    if persistence != "p":
        return (), "It is unlogged or temporary: the log has no changes of it. ALTER TABLE … SET LOGGED."
    if replica_identity == "n":
        return (), "Its replica identity is NOTHING. ALTER TABLE … REPLICA IDENTITY DEFAULT, or USING INDEX …"
    if replica_identity == "i":
        chosen = [index for index in indexes if index.replica_identity]
        missing = "The index of its replica identity is gone. ALTER TABLE … REPLICA IDENTITY DEFAULT, or USING INDEX …"
    elif replica_identity == "f":
        chosen = [index for index in indexes if index.immediate and index.not_null]  # the primary key comes first
        missing = "Its replica identity is FULL, but no unique index over NOT NULL columns tells its rows apart."
    else:
        chosen = [index for index in indexes if index.primary and index.immediate]
        missing = (
            "Its primary key is deferrable, which the log cannot use."
            if any(index.primary for index in indexes)
            else "It has no primary key, and no index is its replica identity."
        )
    return (chosen[0].columns, "") if chosen else ((), missing)


# ---- Types ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Type:
    """A row of pg_type. ``inner``: element, base, subtype or range; ``attributes``: of a composite."""

    oid: int
    schema: str
    name: str
    kind: TypeKind
    array_oid: int
    inner: int
    inner_typmod: int
    attributes: tuple[int, ...]
    sendable: bool
    not_null: bool
    has_default: bool
    extension: str | None


@dataclass(slots=True)
class _Types:
    """The types of some columns and what those are made of."""

    known: dict[int, _Type] = field(default_factory=dict)
    formats: dict[tuple[int, int], str] = field(default_factory=dict)
    _made: dict[tuple[int, int], SqlType] = field(default_factory=dict)

    @classmethod
    def read(cls, connection: psycopg.Connection, used: Collection[tuple[int, int]]) -> _Types:
        """``used``: OIDs and typmods."""
        types = cls()
        wanted = {oid for oid, _ in used}
        while wanted:
            for row in _run(connection, "types", oids=sorted(wanted)):
                (
                    oid,
                    schema,
                    name,
                    kind,
                    array,
                    inner,
                    typmod,
                    attributes,
                    sendable,
                    not_null,
                    has_default,
                    extension,
                ) = row
                types.known[oid] = _Type(
                    oid=oid,
                    schema=schema,
                    name=name,
                    kind=_KINDS.get(kind, TypeKind.BASE),
                    array_oid=array,
                    inner=inner,
                    inner_typmod=typmod,
                    attributes=tuple(attributes),
                    sendable=sendable,
                    not_null=not_null,
                    has_default=has_default,
                    extension=extension,
                )
            parts = {part for known in types.known.values() for part in (known.inner, *known.attributes) if part}
            wanted = parts - types.known.keys()
        pairs = sorted({pair for use in used for pair in types._chain(*use)})
        rows = _run(connection, "formats", oids=[oid for oid, _ in pairs], typmods=[typmod for _, typmod in pairs])
        types.formats = {(oid, typmod): text for oid, typmod, text in rows}
        return types

    def _inner_typmod(self, known: _Type, typmod: int) -> int:
        """An array hands its typmod to its elements; a domain has one of its own for its base."""
        if known.kind is TypeKind.ARRAY:
            return typmod
        return known.inner_typmod if known.kind is TypeKind.DOMAIN else -1

    def _chain(self, oid: int, typmod: int) -> Iterator[tuple[int, int]]:
        while oid:
            yield oid, typmod
            known = self.known[oid]
            oid, typmod = known.inner, self._inner_typmod(known, typmod)

    def sql_type(self, oid: int, typmod: int) -> SqlType:
        """The type with that OID and typmod."""
        made = self._made.get((oid, typmod))
        if made is None:
            known = self.known[oid]
            made = SqlType(
                oid=oid,
                schema=known.schema,
                name=known.name,
                sql=self.formats[oid, typmod],
                kind=known.kind,
                binary=self._binary(known),
                array_oid=known.array_oid,
                element=self.sql_type(known.inner, self._inner_typmod(known, typmod)) if known.inner else None,
                extension=known.extension,
            )
            self._made[oid, typmod] = made
        return made

    def _binary(self, known: _Type) -> bool:
        """Whether the binary form means the same at another server (see `SqlType.binary`)."""
        match known.kind:
            case TypeKind.ENUM:
                return True  # its label
            case TypeKind.DOMAIN | TypeKind.RANGE | TypeKind.MULTIRANGE:
                return self._binary(self.known[known.inner])
            case TypeKind.ARRAY:
                return self._embeddable(known.inner)
            case TypeKind.COMPOSITE:
                return all(map(self._embeddable, known.attributes))
            case _:
                portable = known.name in _PORTABLE or not known.name.startswith(_LOCAL_PREFIXES)
                portable = portable and known.name not in _UNFAITHFUL
                return known.oid < _FIRST_ASSIGNED_OID and known.sendable and portable

    def _embeddable(self, oid: int) -> bool:
        """Arrays and composites hold the OIDs of what they are made of: those must be the same everywhere."""
        part = self.known[oid]
        return oid < _FIRST_ASSIGNED_OID and part.kind is not TypeKind.COMPOSITE and self._binary(part)

    def domain_says(self, oid: int, what: str) -> bool:
        """Whether a domain, or a domain below it, is NOT NULL or has a default."""
        known = self.known[oid]
        while known.kind is TypeKind.DOMAIN:
            if getattr(known, what):
                return True
            known = self.known[known.inner]
        return False
