"""The source's tables as a pipeline took them in, kept at the target: with them, what has changed since can be told.

Who writes: the daemon, in a transaction that holds the checkpoint (`PostgresTarget.adopt`); and `towline apply`, which
only marks them as accepted, and says by the revision that it was run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from towline.errors import NotSetUp
from towline.position import format_lsn, parse_lsn

_READ = """
SELECT route, "table"::text, columns, position::text, since::text, accepted, to_jsonb(s)->>'published'
FROM {schema}.source_table s WHERE pipeline = %(pipeline)s AND (%(route)s::text IS NULL OR route = %(route)s)
"""

_WRITE = """
INSERT INTO {schema}.source_table (pipeline, route, "table", columns, position, since, accepted, published, updated_at)
VALUES ({pipeline}, {route}, {table}, {columns}::text[], {position}, {since}, false, {published}, now())
ON CONFLICT (pipeline, route) DO UPDATE SET "table" = EXCLUDED."table", columns = EXCLUDED.columns,
  position = EXCLUDED.position, since = EXCLUDED.since, accepted = false, published = EXCLUDED.published,
  updated_at = now()
"""

_ACCEPT = (
    "UPDATE {schema}.source_table SET accepted = true WHERE pipeline = {pipeline} AND route = ANY ({routes}::text[])"
)

_FORGET = "DELETE FROM {schema}.source_table WHERE pipeline = {pipeline} AND route = ANY ({routes}::text[])"

_UNPUBLISH = "UPDATE {schema}.source_table SET published = NULL WHERE pipeline = {pipeline}"

_REVISION = "SELECT number FROM {schema}.revision WHERE pipeline = %s"

_REVISE = """
INSERT INTO {schema}.revision AS r (pipeline, number, applied_at) VALUES (%s, 1, now())
ON CONFLICT (pipeline) DO UPDATE SET number = r.number + 1, applied_at = now()
"""

#: Route, table (see `towline.table_record`), columns, position, by column the position of `since`, accepted, published.
Row = tuple[str, str, tuple[str, ...], int, Mapping[str, int], bool, str | None]


def read(connection: psycopg.Connection[Any], schema: str, pipeline: str, route: str | None = None) -> list[Row]:
    """Every table that is remembered, by route; that of one route. Raises NotSetUp."""
    try:
        rows = connection.execute(_on(_READ, schema), {"pipeline": pipeline, "route": route}).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise NotSetUp(f"schema {schema} of the target lacks a control table", sqlstate="42P01") from None
    return [
        (of, table, tuple(columns), parse_lsn(position), json.loads(since), accepted, published)
        for of, table, columns, position, since, accepted, published in rows
    ]


def write(schema: str, pipeline: str, row: Row) -> str:
    """The statement that remembers a table; it is no longer marked as accepted."""
    route, table, columns, position, since, _, published = row
    return _text(
        _WRITE,
        schema,
        pipeline=pipeline,
        route=route,
        table=table,
        columns=list(columns),
        position=format_lsn(position),
        since=json.dumps(dict(since), sort_keys=True),
        published=published,
    )


def accept(schema: str, pipeline: str, routes: Sequence[str]) -> str:
    """The statement by which the next attempt takes those routes' tables as they are then."""
    return _text(_ACCEPT, schema, pipeline=pipeline, routes=list(routes))


def forget(schema: str, pipeline: str, routes: Sequence[str]) -> str:
    """The statement that forgets the tables of routes that are no more."""
    return _text(_FORGET, schema, pipeline=pipeline, routes=list(routes))


def unpublish(schema: str, pipeline: str) -> str:
    """The statement to run before the publication is changed: what it is then is no trace of somebody else's doing."""
    return _text(_UNPUBLISH, schema, pipeline=pipeline)


def revision(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> int:
    """How often `apply` was run. 0 where that is not kept yet."""
    try:
        row = connection.execute(_on(_REVISION, schema), (pipeline,)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return 0
    return int(row[0]) if row is not None else 0


def revise(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> None:
    """Say that `apply` was run."""
    connection.execute(_on(_REVISE, schema), (pipeline,))


def _on(statement: LiteralString, schema: str) -> sql.Composed:
    return sql.SQL(statement).format(schema=sql.Identifier(schema))


def _text(statement: LiteralString, schema: str, **values: object) -> str:
    literals = {name: sql.Literal(value) for name, value in values.items()}
    return sql.SQL(statement).format(schema=sql.Identifier(schema), **literals).as_string().strip()
