"""The control tables: their form, and what can be read from them. The writer has its own writing statements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from importlib import resources
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from towline.errors import ControlTablesForeign, ControlTablesOld, NotSetUp
from towline.key_sum import KeySum
from towline.position import format_lsn, parse_lsn
from towline.running_sums import NOT_RUNNING, Answer, Running
from towline.source import Identity
from towline.target import Checkpoint, Counts, LedgerRange, Noted, NotedRoute, RouteState

#: The form of the control tables that this version of Towline reads and writes.
VERSION = 3

#: Every control table; `setup` creates them when one is absent.
TABLES = (
    "version",
    "checkpoint",
    "route_state",
    "ledger",
    "recount",
    "quarantine",
    "source_table",
    "revision",
)

_PRESENT = """
SELECT c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY (%s)
"""

_VERSION = "SELECT v.version FROM {schema}.version AS v"

#: Partly through jsonb: `apply` reads it before it adds what an earlier version lacks.
_CHECKPOINT = """
SELECT position::text, epoch, commit_time, system_identifier, timeline, source_database, slot, plugin, updated_at,
       created_at, (to_jsonb(c)->>'publication')::bigint, coalesce(to_jsonb(c)->>'ahead', '0/0')
FROM {schema}.checkpoint c WHERE pipeline = %s
"""

_STATES = """
SELECT route, state, cursor, copied, estimate, sweep FROM {schema}.route_state WHERE pipeline = %s ORDER BY route
"""

_LEDGER = """
SELECT route, hour, from_position::text, to_position::text,
       seen, upserted, deleted, superseded, filtered, quarantined, applied_at,
       key_form, keys, key_sum, operation_sum, total_keys, total_sum
FROM {schema}.ledger WHERE pipeline = %s ORDER BY route, to_position, hour
"""

_ANSWER = """
SELECT keys, key_sum, total_keys, total_sum FROM {schema}.recount
WHERE pipeline = %s AND route = %s AND position IS NOT NULL
"""

_RUNNING = """
SELECT route, key_form, CASE WHEN state = 'streaming' THEN total_keys END, total_sum, xmin::text
FROM {schema}.route_state WHERE pipeline = %s ORDER BY route
"""

_NOTED = """
SELECT c.position::text, s.route, s.state, s.updated_at::text,
       l.hour, l.from_position::text, l.key_form, l.seen, l.operation_sum
FROM {schema}.checkpoint c
JOIN {schema}.route_state s ON s.pipeline = c.pipeline
LEFT JOIN LATERAL (
  SELECT * FROM {schema}.ledger r WHERE r.pipeline = s.pipeline AND r.route = s.route ORDER BY r.hour DESC LIMIT 1
) AS l ON true
WHERE c.pipeline = %s
"""

#: With hours by route, and a position.
_NOTED_SINCE = """
SELECT c.position::text, s.route, s.state, s.updated_at::text,
       l.hour, l.from_position::text, l.key_form, l.seen, l.operation_sum
FROM {schema}.checkpoint c
JOIN {schema}.route_state s ON s.pipeline = c.pipeline
LEFT JOIN ROWS FROM (unnest(%s::text[]), unnest(%s::timestamptz[])) AS before (route, hour) ON before.route = s.route
LEFT JOIN {schema}.ledger l ON l.pipeline = s.pipeline AND l.route = s.route
  AND (l.hour >= coalesce(before.hour, '-infinity') OR l.to_position > %s::pg_lsn)
WHERE c.pipeline = %s
ORDER BY s.route, l.hour
"""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What became of a route's rows in one hour of the target's clock; positions are of the batches that counted.

    ``keys`` and ``operations``: sums over the changes (None: not known, or of several forms); ``running``: the sum over
    all source keys as of ``to_position``. See `towline.key_sum`.
    """

    route: str
    hour: datetime
    from_position: int
    to_position: int
    counts: Counts
    applied_at: datetime
    keys: KeySum | None = None
    operations: int | None = None
    running: Running = NOT_RUNNING


def script(schema: str) -> list[str]:
    """The statements that make the control tables, in order; each may be repeated."""
    text = resources.files(__package__).joinpath("control.sql").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    template: LiteralString = body  # the file is part of the program
    rendered = sql.SQL(template).format(schema=sql.Identifier(schema), version=sql.Literal(VERSION)).as_string()
    return [statement.strip() for statement in rendered.split(";") if statement.strip()]


def present(connection: psycopg.Connection[Any], schema: str, *, upgrading: bool = False) -> frozenset[str]:
    """Which control tables exist (and, of ``version``, has its row, of this `VERSION`).

    Raises ControlTablesOld when their version is an earlier one, unless ``upgrading``; ControlTablesForeign when it is
    unknown, or when the schema has tables of those names without one.
    """
    found = frozenset(name for (name,) in connection.execute(_PRESENT, (schema, list(TABLES))))
    if not found:
        return found
    if "version" not in found:
        raise ControlTablesForeign(
            f"schema {schema} has tables {', '.join(sorted(found))}, but none that tells their version"
        )
    try:
        versions = [version for (version,) in connection.execute(_on(_VERSION, schema))]
    except psycopg.errors.UndefinedColumn:
        raise ControlTablesForeign(f"the table {schema}.version is not Towline's", sqlstate="42703") from None
    found_text = ", ".join(map(str, versions))
    if len(versions) == 1 and versions[0] is not None and 1 <= versions[0] < VERSION:
        if not upgrading:
            raise ControlTablesOld(f"the control tables in schema {schema} have version {found_text}, not {VERSION}")
        return found - {"version"}
    if versions and versions != [VERSION]:
        raise ControlTablesForeign(f"the control tables in schema {schema} have version {found_text}, not {VERSION}")
    return found if versions else found - {"version"}


def read_checkpoint(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> Checkpoint | None:
    """The pipeline's checkpoint, or None before `initialise`. The server version of its identity is not kept: 0.

    Raises NotSetUp when there are no control tables.
    """
    rows = _read(connection, _CHECKPOINT, schema, pipeline)
    if not rows:
        return None
    position, epoch, commit_time, system, timeline, database, slot, plugin, updated_at, created_at, *more = rows[0]
    publication, ahead = more
    return Checkpoint(
        parse_lsn(position),
        epoch,
        Identity(system, timeline, database, 0),
        slot,
        plugin,
        commit_time,
        updated_at,
        created_at,
        publication,
        parse_lsn(ahead),
    )


def read_states(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> dict[str, RouteState]:
    """The state of every route that the control tables know, by name. Raises NotSetUp."""
    return {
        route: RouteState(route, state, None if cursor is None else tuple(cursor), copied, estimate, sweep)
        for route, state, cursor, copied, estimate, sweep in _read(connection, _STATES, schema, pipeline)
    }


def read_ledger(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> list[LedgerRow]:
    """The ledger, by route and position. Raises NotSetUp."""
    return [
        LedgerRow(
            route,
            hour,
            parse_lsn(low),
            parse_lsn(high),
            Counts(*counts[:6]),
            counts[6],
            _sum(keys, key_sum),
            None if operations is None else int(operations),
            Running(_sum(total_keys, total_sum), form),
        )
        for route, hour, low, high, *counts, form, keys, key_sum, operations, total_keys, total_sum in _read(
            connection, _LEDGER, schema, pipeline
        )
    ]


def read_running(connection: psycopg.Connection[Any], schema: str, pipeline: str) -> dict[str, Running]:
    """The running sums over source keys, as of the checkpoint. Raises NotSetUp."""
    return {
        route: Running(_sum(keys, total), form, version)
        for route, form, keys, total, version in _read(connection, _RUNNING, schema, pipeline)
    }


def read_noted(connection: psycopg.Connection[Any], schema: str, pipeline: str, since: Noted | None) -> Noted | None:
    """See `towline.target.Ledger`; None before `initialise`."""
    if since is None:
        rows = connection.execute(_on(_NOTED, schema), (pipeline,)).fetchall()
    else:
        latest = {route: noted.ranges[-1].hour for route, noted in since.routes.items() if noted.ranges}
        parameters = (list(latest), list(latest.values()), format_lsn(since.position), pipeline)
        rows = connection.execute(_on(_NOTED_SINCE, schema), parameters).fetchall()
    if not rows:
        return None
    routes: dict[str, NotedRoute] = {}
    for _, route, state, version, hour, begin, form, seen, operations in rows:
        noted = routes.get(route) or NotedRoute(state, version)
        if hour is not None:
            found = LedgerRange(hour, parse_lsn(begin), form, seen, None if operations is None else int(operations))
            noted = replace(noted, ranges=(*noted.ranges, found))
        routes[route] = noted
    return Noted(parse_lsn(rows[0][0]), routes)


def read_answer(connection: psycopg.Connection[Any], schema: str, pipeline: str, route: str) -> Answer | None:
    """What the daemon counted for who asked it to, once it has."""
    row = connection.execute(_on(_ANSWER, schema), (pipeline, route)).fetchone()
    if row is None or (counted := _sum(row[0], row[1])) is None:
        return None
    return Answer(route, counted, _sum(row[2], row[3]), anew=False)


def _sum(keys: int | None, total: Decimal | None) -> KeySum | None:
    return None if keys is None or total is None else KeySum(keys, int(total))


def _on(statement: LiteralString, schema: str) -> sql.Composed:
    return sql.SQL(statement).format(schema=sql.Identifier(schema))


def _read(connection: psycopg.Connection[Any], statement: LiteralString, schema: str, pipeline: str) -> list[Any]:
    try:
        return connection.execute(_on(statement, schema), (pipeline,)).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise NotSetUp(f"the target has no control tables in schema {schema}", sqlstate="42P01") from None
