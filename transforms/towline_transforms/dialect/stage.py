"""Stage relations as PostgreSQL text: what holds the source's rows while a route's SELECT runs over it.

A stage is named by a piece of SQL that can stand behind FROM: a table, or a parenthesised SELECT. Its columns are those
of the source that travel, then the pseudo-columns that its routes refer to. Each column has two types: the *wire* type,
in which its bytes are loaded, and the *shown* type, which a route's SELECT sees.

Values that come in text form are loaded as text and cast with the type's own input function. Type modifiers are left
out, since the values obeyed them at the source; the target column's own apply when the row is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from towline_transforms.identifier import quote
from towline_transforms.route import PSEUDO_COLUMNS, Route
from towline_transforms.schema import Column, SqlType, TypeKind

#: An extra column of a stage: the number of the row, from 1.
PLACE = "_towline_place"

_TEXT = SqlType(25, "pg_catalog", "text", "text")
_PSEUDO_TYPES = {
    "_commit_time": SqlType(1184, "pg_catalog", "timestamptz", "timestamp with time zone"),
    "_lsn": SqlType(3220, "pg_catalog", "pg_lsn", "pg_lsn"),
    "_xid": SqlType(20, "pg_catalog", "int8", "bigint"),
    "_op": _TEXT,
    "_source": _TEXT,
}
assert _PSEUDO_TYPES.keys() == PSEUDO_COLUMNS.keys()


@dataclass(frozen=True, slots=True)
class StageColumn:
    """A column of a stage: the type of its bytes, and the type that routes see. ``oid`` is the wire type's."""

    name: str
    wire: str
    shown: str
    oid: int
    is_array: bool


def type_name(sql_type: SqlType) -> str:
    """A type without its modifier: ``numeric(10,2)`` is ``"pg_catalog"."numeric"``."""
    return f"{quote(sql_type.schema)}.{quote(sql_type.name)}"


def pseudo_column(name: str) -> Column:
    """A pseudo-column, as a column of a table."""
    return Column(name, _PSEUDO_TYPES[name])


def stage_columns(columns: Sequence[Column], *, binary: bool, route: Route | None = None) -> tuple[StageColumn, ...]:
    """How columns of a source are staged. ``route`` says what it makes of user-defined types; None: text."""
    return tuple(_stage_column(column, binary, route) for column in columns)


def _stage_column(column: Column, binary: bool, route: Route | None) -> StageColumn:
    wire = _wire_type(column.type) if binary else _TEXT
    shown = type_name(_shown_type(column, route))
    return StageColumn(column.name, type_name(wire), shown, wire.oid, wire.is_array)


def _wire_type(sql_type: SqlType) -> SqlType:
    """The built-in type that reads the binary form of a value: an enum's is its label, a domain's is its base's."""
    if sql_type.kind is TypeKind.DOMAIN and sql_type.element is not None:
        return _wire_type(sql_type.element)
    if sql_type.kind is TypeKind.ENUM:
        return _TEXT
    return sql_type


def _shown_type(column: Column, route: Route | None) -> SqlType:
    """A built-in type as it is; a user-defined one as the target has it (identity routes), its base, or text."""
    sql_type = column.type
    if sql_type.builtin:
        return sql_type
    if route is not None and route.identity and route.target.has(column.name):
        return route.target.column(column.name).type
    while sql_type.kind is TypeKind.DOMAIN and sql_type.element is not None:
        sql_type = sql_type.element
    return sql_type if sql_type.builtin else _TEXT


def table_stage(table: str, columns: Sequence[StageColumn], *, place: bool = False) -> str:
    """A table that holds the wire forms. ``table`` is SQL already."""
    if all(column.wire == column.shown for column in columns):
        return table
    return f"(SELECT {_shown(columns, place)} FROM {table} AS w)"


def unnest_stage(columns: Sequence[StageColumn], *, first: int = 1, place: bool = False) -> str:
    """Arrays of wire forms as parameters from ``$first`` on, one for each column. No column may be an array itself."""
    calls = ", ".join(f"pg_catalog.unnest(${first + i}::{column.wire}[])" for i, column in enumerate(columns))
    names = ", ".join([quote(column.name) for column in columns] + ([PLACE] if place else []))
    ordinal = " WITH ORDINALITY" if place else ""
    return f"(SELECT {_shown(columns, place)} FROM ROWS FROM ({calls}){ordinal} AS w ({names}))"


def rows_stage(columns: Sequence[StageColumn], count: int, *, first: int = 1, place: bool = False) -> str:
    """Some rows, value by value: the wire forms as parameters from ``$first`` on, row after row."""
    names = [quote(column.name) for column in columns] + ([PLACE] if place else [])
    rows = []
    for row in range(count):
        begin = first + row * len(columns)
        values = [f"${begin + i}::{column.wire}" for i, column in enumerate(columns)]
        values += [f"{row + 1}::pg_catalog.int8"] if place else []
        rows.append(f"({', '.join(values)})")
    return f"(SELECT {_shown(columns, place)} FROM (VALUES {', '.join(rows)}) AS w ({', '.join(names)}))"


def empty_stage(columns: Sequence[StageColumn]) -> str:
    """No rows, for looking at statements and having a server check them."""
    values = ", ".join(f"NULL::{column.shown} AS {quote(column.name)}" for column in columns)
    return f"(SELECT {values} WHERE false)"


def create_stage(table: str, columns: Sequence[StageColumn], *, place: bool = False) -> str:
    """The temporary table that `table_stage` reads."""
    definitions = [f"{quote(column.name)} {column.wire}" for column in columns]
    if place:
        definitions.append(f"{PLACE} pg_catalog.int8")
    return f"CREATE TEMPORARY TABLE {table} ({', '.join(definitions)}) ON COMMIT DELETE ROWS"


def _shown(columns: Sequence[StageColumn], place: bool) -> str:
    """The SELECT list that turns wire forms into what routes see."""
    items = [
        f"w.{quote(column.name)}"
        if column.shown == column.wire
        else f"{_read(f'w.{quote(column.name)}', column.shown)} AS {quote(column.name)}"
        for column in columns
    ]
    return ", ".join([*items, f"w.{PLACE}"] if place else items)


def _read(value: str, shown: str) -> str:
    """Text, read as a type. A cast does it as the type's input function does, but for regclass, which looks a name up.

    There, an array's input function is made to call the element's, which also reads ``-`` and numbers.
    """
    if shown != '"pg_catalog"."regclass"':
        return f"{value}::{shown}"
    escaped = f"pg_catalog.replace(pg_catalog.replace({value}, '\\', '\\\\'), '\"', '\\\"')"
    literal = f"('{{\"' OPERATOR(pg_catalog.||) {escaped} OPERATOR(pg_catalog.||) '\"}}')"
    return f'({literal}::"pg_catalog"."_regclass")[1]'
