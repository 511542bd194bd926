"""The order of a table's identity, in SQL: exactly that of the unique index over it.

Comparing with any other operators or collation than the index's own could leave rows out (two keys that are equal
under one collation are two rows under another), besides being slow. Operators are named with their schema,
since those of extensions (citext) are not on the session's search_path.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import psycopg
from psycopg import sql
from psycopg.sql import Composable

from towline.change import Cursor, Relation
from towline.errors import SourceTableChanged
from towline.postgres import statements
from towline_transforms.schema import SqlType, TypeKind

_SQL = statements.load("towline.source.postgres", "tables.sql")

#: Places in a b-tree operator family, from 0.
LESS, LESS_OR_EQUAL, EQUAL, GREATER_OR_EQUAL, GREATER = range(5)


def base_type(type_: SqlType) -> SqlType:
    """The type under a domain: a literal of it is not held against the domain's constraints."""
    while type_.kind is TypeKind.DOMAIN and type_.element is not None:
        type_ = type_.element
    return type_


def column_sql(name: str) -> Composable:
    """A column of the table that is read, which every query calls ``t``."""
    return sql.SQL("t.{}").format(sql.Identifier(name))


def type_sql(type_: SqlType) -> Composable:
    """The type's name, which the server has quoted."""
    return sql.SQL(type_.sql)  # of format_type


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the identity, its operators (schema, name) by strategy, and the index's collation if it differs."""

    name: str
    type: SqlType
    operators: tuple[tuple[str, str], ...]
    collation: tuple[str, str] | None

    @property
    def sql(self) -> Composable:
        """The column, with the index's collation."""
        column = column_sql(self.name)
        if self.collation is None:
            return column
        return sql.SQL("{} COLLATE {}").format(column, sql.Identifier(*self.collation))

    def operator(self, strategy: int) -> Composable:
        """The operator of that strategy."""
        schema, name = self.operators[strategy]
        return sql.SQL("OPERATOR({}.{})").format(
            sql.Identifier(schema),
            sql.SQL(name),  # of pg_operator: operator characters only
        )

    def compare(self, strategy: int, value: Composable) -> Composable:
        """The column compared with a value."""
        return sql.SQL("{} {} {}").format(self.sql, self.operator(strategy), value)

    def literal(self, text: str) -> Composable:
        """A value in text form."""
        return sql.SQL("{}::{}").format(sql.Literal(text), type_sql(base_type(self.type)))


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """A table's identity as its index orders it. ``partitioned``: rows are in the partitions of the table."""

    columns: tuple[KeyColumn, ...]
    partitioned: bool

    @classmethod
    def read(cls, connection: psycopg.Connection, relation: Relation) -> KeyOrder:
        """Find the index over the relation's identity. Raises SourceTableChanged when there is none now."""
        rows = connection.execute(
            _SQL["key_order"],
            {
                "schema": relation.name.schema,
                "name": relation.name.name,
                "columns": [column.name for column in relation.key_columns],
            },
        ).fetchall()
        if not rows:
            raise SourceTableChanged(
                f"table {relation.name} has no unique index over its identity "
                f"({', '.join(relation.table.identity)}), or does not exist"
            )
        columns = tuple(
            KeyColumn(
                column.name,
                column.type,
                tuple(zip(schemas, names, strict=True)),
                (collation_schema, collation) if collation else None,
            )
            for column, (_, schemas, names, collation_schema, collation) in zip(relation.key_columns, rows, strict=True)
        )
        return cls(columns, partitioned=rows[0][0] == "p")

    @property
    def order_by(self) -> Composable:
        """The columns for ORDER BY, ascending."""
        return sql.SQL(", ").join(
            sql.SQL("{} USING {}").format(column.sql, column.operator(LESS)) for column in self.columns
        )

    def after(self, cursor: Cursor) -> Composable:
        """A condition: the key follows ``cursor``."""
        return self._compare(cursor, GREATER, GREATER, GREATER_OR_EQUAL)

    def upto(self, cursor: Cursor) -> Composable:
        """A condition: the key is ``cursor`` or precedes it."""
        return self._compare(cursor, LESS, LESS_OR_EQUAL, LESS_OR_EQUAL)

    def _compare(self, cursor: Cursor, strict: int, last: int, lead: int) -> Composable:
        """Compare row-wise: by ``strict``, the last column by ``last``; ``lead`` then holds for the first one."""
        pairs = [(column, column.literal(text)) for column, text in zip(self.columns, cursor, strict=True)]
        if all(one.operators == other.operators for one, other in pairwise(self.columns)):
            columns = sql.SQL(", ").join(column.sql for column, _ in pairs)
            values = sql.SQL(", ").join(value for _, value in pairs)
            return sql.SQL("({}) {} ({})").format(columns, self.columns[0].operator(last), values)
        # A row comparison has one operator for all columns; where they differ it is written out. The condition on the
        # first column is what an index can begin with.
        column, value = pairs[-1]
        condition = column.compare(last, value)
        for column, value in reversed(pairs[:-1]):
            condition = sql.SQL("({} OR {} AND {})").format(
                column.compare(strict, value), column.compare(EQUAL, value), condition
            )
        column, value = pairs[0]
        return sql.SQL("{} AND {}").format(column.compare(lead, value), condition)
