"""Compares the tables of two databases without any help of Towline: shape, number of rows, checksum of all rows.

PostgreSQL prints each row (``t::text``) on both sides under the same settings; rows are put in the order of that text,
byte by byte, so that neither collations nor physical order matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
    "work_mem": "64MB",
}
TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
SHAPE = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = to_regnamespace(%s) AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
CHECKSUM = sql.SQL("""
SELECT count(*), md5(coalesce(string_agg(line, E'\\n' ORDER BY line COLLATE "C"), ''))
FROM (SELECT t::text AS line FROM {} AS t) AS lines
""")


@dataclass(frozen=True, slots=True)
class Content:
    """What a table holds: columns with type and nullability, number of rows, checksum of their text."""

    shape: tuple[tuple[str, str, bool], ...]
    rows: int
    checksum: str


def contents(dsn: str, schema: str) -> dict[str, Content]:
    """Every table of a schema, as one snapshot sees them."""
    with psycopg.connect(dsn, application_name="comparison") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        for name, value in SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        tables = sorted(name for (name,) in connection.execute(TABLES, (schema,)))
        return {table: _content(connection, schema, table) for table in tables}


def _content(connection: psycopg.Connection[tuple[object, ...]], schema: str, table: str) -> Content:
    shape = tuple((str(n), str(t), bool(nn)) for n, t, nn in connection.execute(SHAPE, (schema, table)))
    row = connection.execute(CHECKSUM.format(sql.Identifier(schema, table))).fetchone()
    assert row is not None
    return Content(shape, int(str(row[0])), str(row[1]))


def differences(source: dict[str, Content], target: dict[str, Content]) -> list[str]:
    """A line for each table that is not the same on both sides."""
    lines = [f"{table}: only at the source" for table in sorted(source.keys() - target.keys())]
    lines += [f"{table}: only at the target" for table in sorted(target.keys() - source.keys())]
    for table in sorted(source.keys() & target.keys()):
        here, there = source[table], target[table]
        if here.shape != there.shape:
            lines.append(f"{table}: columns {sorted(set(here.shape) ^ set(there.shape))}")
        elif here.rows != there.rows:
            lines.append(f"{table}: {here.rows} rows at the source, {there.rows} at the target")
        elif here.checksum != there.checksum:
            lines.append(f"{table}: {here.rows} rows on both sides, but not the same")
    return lines
