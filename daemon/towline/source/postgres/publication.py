"""The publication that pgoutput reads: exactly the routed tables and, where the server can, exactly their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.sql import Composable

from towline.change import Relation
from towline.postgres import statements
from towline_transforms.schema import TableName

_SQL = statements.load("towline.source.postgres", "setup.sql")

_COLUMN_LISTS_SINCE = 150000

_OPTIONS = sql.SQL("publish = 'insert, update, delete, truncate', publish_via_partition_root = true")

#: By table, the columns to publish; None for all, those of later days among them.
Columns = Mapping[TableName, tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A partition with its own replica identity: ``kind`` is pg_class.relreplident, ``columns`` are of its index."""

    root: TableName
    name: TableName
    kind: str
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class Published:
    """A publication as it is. ``other``: it has row filters or whole schemas, which are none of ours."""

    all_tables: bool
    options_right: bool
    owned: bool
    columns: Mapping[TableName, frozenset[str] | None]
    other: bool


def names_of(relations: Iterable[Relation]) -> dict[str, list[str]]:
    """The tables as parameters ``schemas`` and ``tables``."""
    names = [relation.name for relation in relations]
    return {"schemas": [name.schema for name in names], "tables": [name.name for name in names]}


def leaves_of(connection: psycopg.Connection, relations: Iterable[Relation]) -> list[Leaf]:
    """The partitions of those relations that are partitioned."""
    return [
        Leaf(TableName(schema, name), TableName(leaf_schema, leaf), kind, frozenset(columns))
        for schema, name, leaf_schema, leaf, kind, columns in connection.execute(_SQL["leaves"], names_of(relations))
    ]


def wanted(relations: Sequence[Relation], leaves: Iterable[Leaf], server_version: int) -> Columns:
    """What is to be published.

    There is a list of columns only where some are left out: a list keeps the owner of a table from dropping the columns
    on it. With REPLICA IDENTITY FULL the server allows no list (it would refuse updates).
    """
    full = {leaf.root for leaf in leaves if leaf.kind == "f"}
    columns: dict[TableName, tuple[str, ...] | None] = {}
    for relation in relations:
        table = relation.table
        routed = tuple(column.name for column in relation.columns)
        by_default = {column.name for column in table.columns if column.generated is None}
        whole = (
            server_version < _COLUMN_LISTS_SINCE
            or table.replica_identity_full
            or table.name in full
            or set(routed) == by_default
        )
        columns[table.name] = None if whole else routed
    return columns


def read(connection: psycopg.Connection, publication: str) -> Published | None:
    """The publication of that name, if there is one."""
    row = connection.execute(_SQL["publication"], {"publication": publication}).fetchone()
    if row is None:
        return None
    oid, all_tables, via_root, all_operations, owned = row
    since_15 = connection.info.server_version >= _COLUMN_LISTS_SINCE
    tables = connection.execute(_SQL["published_15" if since_15 else "published_13"], {"oid": oid}).fetchall()
    return Published(
        all_tables=all_tables,
        options_right=via_root and all_operations,
        owned=owned,
        columns={
            TableName(schema, name): None if columns is None else frozenset(columns)
            for schema, name, columns, _ in tables
        },
        other=any(name == "*" or filtered for _, name, _, filtered in tables),
    )


def changes(publication: str, found: Published | None, columns: Columns) -> list[tuple[str, Composable]]:
    """The statements, with titles, that make the publication what it should be; none when it is."""
    name = sql.Identifier(publication)
    if found is None:
        create = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(name, _tables(columns), _OPTIONS)
        return [(f"publication {publication} of {_count(columns)}", create)]
    needed: list[tuple[str, Composable]] = []
    as_sets = {table: None if listed is None else frozenset(listed) for table, listed in columns.items()}
    if not found.all_tables and (found.other or found.columns != as_sets):
        change = sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(name, _tables(columns))
        needed.append((f"publication {publication}, changed to {_count(columns)}", change))
    if not found.options_right:
        change = sql.SQL("ALTER PUBLICATION {} SET ({})").format(name, _OPTIONS)
        needed.append((f"publication {publication}, changed to publish all changes, under the names of roots", change))
    return needed


def extension(publication: str, found: Published, relations: Iterable[Relation]) -> Composable | None:
    """The statement that adds columns of relations to the lists of a publication; None when none is missing.

    What else is published stays. Row filters cannot be kept by such a statement: then it is None, too.
    """
    listed: dict[TableName, tuple[str, ...] | None] = {
        table: None if columns is None else tuple(sorted(columns)) for table, columns in found.columns.items()
    }
    lacking = False
    for relation in relations:
        columns = listed.get(relation.name)
        if columns is None:
            continue
        missing = [column.name for column in relation.columns if column.name not in columns]
        listed[relation.name] = (*columns, *missing)
        lacking = lacking or bool(missing)
    if not lacking or found.other:
        return None
    return sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(sql.Identifier(publication), _tables(listed))


def addition(publication: str, found: Published | None, columns: Columns) -> Composable | None:
    """The statement that adds tables that are not published; None when all are."""
    if found is None or found.all_tables:
        return None
    new = {table: listed for table, listed in columns.items() if table not in found.columns}
    if not new:
        return None
    tables = sql.SQL(", ").join(_table(table, listed) for table, listed in new.items())
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publication), tables)


def suffices(found: Published | None, columns: Columns) -> bool:
    """Whether all that is wanted is published, and in the right way, though there may be more."""
    if found is None or not found.options_right:
        return False
    if found.all_tables:
        return True
    return not found.other and all(
        table in found.columns
        and ((there := found.columns[table]) is None or (listed is not None and there.issuperset(listed)))
        for table, listed in columns.items()
    )


def _count(columns: Columns) -> str:
    return f"{len(columns)} table" if len(columns) == 1 else f"{len(columns)} tables"


def _tables(columns: Columns) -> Composable:
    """Tables without those that inherit from them; partitions always go with their root."""
    return sql.SQL(", ").join(_table(table, listed) for table, listed in columns.items())


def _table(table: TableName, listed: tuple[str, ...] | None) -> Composable:
    part: Composable = sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name))
    if listed is not None:
        part = sql.SQL("{} ({})").format(part, sql.SQL(", ").join(map(sql.Identifier, listed)))
    return part
