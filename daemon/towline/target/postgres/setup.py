"""Set-up of a target: what `towline plan` shows and `towline apply` does. Every step may be repeated.

A table that is gone is made anew, and its routes are copied again: its rows were counted as there, and are not.

What exists already is left as it is, but for enums, which get the labels that the source has and the target lacks (each
in its place: the labels of an enum can only be added to, so nothing else is at risk). Any other difference between a
type of the source and the type of that name at the target is a problem (TL-214), for a person to resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from towline.errors import NotSetUp
from towline.position import format_lsn
from towline.postgres import typedefs
from towline.postgres.session import translate, translating
from towline.postgres.typedefs import Definitions, TypeDefinition
from towline.source import Identity, Step
from towline.target.postgres import control, ddl
from towline.target.postgres.ddl import Placement
from towline.target.postgres.resync import ResyncState
from towline_transforms.problems import Problem, ProblemKind
from towline_transforms.route import Route

#: Set-ups of one target take turns, by this advisory lock.
_LOCK = 0x546F776C696E6501

_SCHEMAS = "SELECT nspname::text FROM pg_catalog.pg_namespace"

_TABLES = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""

_INITIALISE = """
INSERT INTO {schema}.checkpoint
    (pipeline, position, system_identifier, timeline, source_database, slot, plugin, publication)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (pipeline) DO NOTHING
"""

_SET_ASIDE_BEFORE = """
UPDATE {schema}.quarantine
SET state = CASE state WHEN 'open' THEN 'superseded' ELSE state END, behind = false,
    resolved_at = CASE state WHEN 'open' THEN now() ELSE resolved_at END,
    reason = CASE state WHEN 'open' THEN 'all routes are copied again' ELSE reason END
WHERE pipeline = %s AND behind
"""

_COPY_AGAIN = """
UPDATE {schema}.route_state
SET state = 'pending', cursor = NULL, copied = 0, estimate = 0, updated_at = now()
WHERE pipeline = %s AND state <> 'pending'
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is still to be done, and the types that stand in the way.

    ``made``: schemas, types, tables, columns. ``states``: the steps that name the routes to a daemon; what it needs at
    the source is to be there by then.
    """

    made: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    states: tuple[Step, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of it, in order."""
        return self.made + self.states


def definitions_for(source: psycopg.Connection[Any], routes: Iterable[Route]) -> Definitions:
    """The user-defined types of the columns that the routes carry or create, from the source's catalog."""
    oids = {
        column.type.oid
        for route in routes
        for column in route.source.columns
        if route.create or column.name in route.columns
    }
    return typedefs.read(source, oids)


def placements(
    connection: psycopg.Connection[Any], routes: Iterable[Route], definitions: Definitions
) -> dict[str, Placement]:
    """For each route, by name, where the source's types are at this target."""
    extensions = typedefs.of_extensions(connection)
    collations = typedefs.collations(connection)
    version = connection.info.server_version
    return {
        route.name: Placement(definitions, route.source.name.schema, route.into.schema, extensions, collations, version)
        for route in routes
    }


def plan(
    connection: psycopg.Connection[Any],
    *,
    schema: str,
    pipeline: str,
    routes: Sequence[Route],
    definitions: Definitions,
    forgetting: bool = True,
) -> Plan:
    """What is to be done at the target. Reads only.

    ``definitions``: see `definitions_for`. ``forgetting``: other routes of the pipeline are no more. Raises
    ControlTablesForeign.
    """
    with translating("target"), connection.transaction():
        connection.execute(
            "SELECT pg_catalog.set_config('search_path', '', true)"
        )  # names are printed with their schema
        found = control.present(connection, schema, upgrading=True)
        steps: list[Step] = []
        if found != frozenset(control.TABLES):
            text = ";\n\n".join(control.script(schema)) + ";"
            steps.append(Step("target", f"control tables in schema {schema}", text))
        placed = placements(connection, routes, definitions)
        created = [route for route in routes if route.create]
        types, problems = _types(connection, [route for route in routes if route.create or route.added], placed)
        known = control.read_states(connection, schema, pipeline) if "route_state" in found else {}
        missing = _missing(connection, created)
        state = ResyncState(connection, schema, pipeline)
        tables = [_table(route, placed[route.name], state if route.name in known else None) for route in missing]
        if tables or types:
            steps += _schemas(connection, schema, created, [name for name, _ in types])
        steps += [step for _, step in types]
        steps += tables
        steps += _columns(routes, placed)
        states = _new_states(schema, pipeline, [route.name for route in routes if route.name not in known])
        if forgetting:
            states += _gone_states(schema, pipeline, sorted(set(known) - {route.name for route in routes}))
    return Plan(tuple(steps), tuple(problems), tuple(states))


def execute(connection: psycopg.Connection[Any], steps: Iterable[Step]) -> None:
    """Do the steps, each in a transaction of its own. The connection is in autocommit mode.

    What was done before an error stays; planning again shows the rest.
    """
    try:
        connection.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (_LOCK,))
        for step in steps:
            try:
                connection.execute(step.sql.encode())
            except psycopg.Error as error:
                translated = translate(error, "target")
                translated.detail = f"{step.title}: {translated.detail}"
                raise translated from error
        connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (_LOCK,))
    except psycopg.Error as error:
        raise translate(error, "target") from error


def initialise(
    connection: psycopg.Connection[Any],
    *,
    schema: str,
    pipeline: str,
    position: int,
    identity: Identity,
    slot: str,
    plugin: str,
    publication: int | None = None,
) -> bool:
    """Write the pipeline's first checkpoint, once its slot exists. False: there is one, and it is left alone.

    With a new checkpoint, every route is copied anew: what was copied before belongs to another position.
    Raises NotSetUp.
    """
    values = (
        pipeline,
        format_lsn(position),
        identity.system_identifier,
        identity.timeline,
        identity.database,
        slot,
        plugin,
        publication,
    )
    try:
        with connection.transaction():
            written = connection.execute(_on(_INITIALISE, schema), values).rowcount == 1
            if written:
                connection.execute(_on(_COPY_AGAIN, schema), (pipeline,))
                connection.execute(_on(_SET_ASIDE_BEFORE, schema), (pipeline,))
            return written
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise NotSetUp(f"the target has no control tables in schema {schema}", sqlstate="42P01") from None
    except psycopg.Error as error:
        raise translate(error, "target") from error


def _on(statement: LiteralString, schema: str) -> sql.Composed:
    return sql.SQL(statement).format(schema=sql.Identifier(schema))


def _types(
    connection: psycopg.Connection[Any], created: Sequence[Route], placed: dict[str, Placement]
) -> tuple[list[tuple[tuple[str, str], Step]], list[Problem]]:
    """The steps that make the types of the tables to be created, each with the name of its type."""
    wanted: dict[tuple[str, str], tuple[TypeDefinition, Placement, Route]] = {}
    for route in created:
        placement = placed[route.name]
        names = route.added if route.added else [column.name for column in route.target.columns]
        oids = [column.type.oid for column in route.source.columns if column.name in names]
        for definition in placement.definitions.closure(oids):
            wanted.setdefault(placement.name_of(definition), (definition, placement, route))
    existing = typedefs.find(connection, wanted.keys()) if wanted else {}
    steps: list[tuple[tuple[str, str], Step]] = []
    problems: list[Problem] = []
    for name, (definition, placement, route) in wanted.items():
        shown = ".".join(name)
        there = existing.get(name)
        if there is None:
            statement = ddl.create_type(definition, placement)
            if statement is None:
                problems.append(_missing_type(route, definition, shown))
            else:
                steps.append((name, Step("target", f"type {shown}", statement)))
            continue
        difference = ddl.type_difference(definition, there, placement)
        if difference is not None:
            detail = f"The type {shown} at the target {difference}."
            remedy = "Drop or change it, so that it is the same as the source's."
            problems.append(Problem(ProblemKind.TYPE, route.name, "", detail, remedy))
        elif definition.kind == "e":
            steps += [
                (name, Step("target", f"label of type {shown}", text)) for text in ddl.add_labels(definition, there)
            ]
    return steps, problems


def _missing_type(route: Route, definition: TypeDefinition, shown: str) -> Problem:
    if definition.extension is not None:
        detail = f"The type {shown} belongs to the extension {definition.extension}, which the target does not have."
        remedy = f"Run CREATE EXTENSION {ddl.identifier(definition.extension)} at the target."
    else:
        detail = f"The type {shown} does not exist at the target, and is made of functions that only its author has."
        remedy = "Create it at the target as it was created at the source."
    return Problem(ProblemKind.TYPE, route.name, "", detail, remedy)


def _missing(connection: psycopg.Connection[Any], created: Sequence[Route]) -> list[Route]:
    """The routes whose table is not there."""
    names = [route.into for route in created]
    rows = connection.execute(_TABLES, ([name.schema for name in names], [name.name for name in names]))
    existing = {(schema, name) for schema, name in rows}
    return [route for route in created if (route.into.schema, route.into.name) not in existing]


def _table(route: Route, placement: Placement, state: ResyncState | None) -> Step:
    """The step that makes a route's table. ``state``: where its route is known, and is to be copied again: in the same
    transaction, so that no daemon takes an empty table for one with all its rows.
    """
    statement = ddl.create_table(route, placement)
    if state is None:
        return Step("target", f"table {route.into}", statement)
    return Step(
        "target",
        f"table {route.into}, which is gone, and its rows are copied again",
        f"{state.marking([route.name])};\n{statement}",
    )


def _columns(routes: Sequence[Route], placed: dict[str, Placement]) -> list[Step]:
    return [
        Step("target", f"column {name} of {route.into}", ddl.add_column(route, name, placed[route.name]))
        for route in routes
        for name in route.added
    ]


def additions(
    connection: psycopg.Connection[Any], routes: Sequence[Route], definitions: Definitions
) -> tuple[list[Step], list[Problem]]:
    """The steps that add columns to tables that exist, with their types; see `definitions_for`. Reads only."""
    with connection.transaction():
        connection.execute("SELECT pg_catalog.set_config('search_path', '', true)")
        placed = placements(connection, routes, definitions)
        types, problems = _types(connection, routes, placed)
        schemas = _schemas(connection, "", [], [name for name, _ in types])
    return [*schemas, *(step for _, step in types), *_columns(routes, placed)], problems


def _schemas(
    connection: psycopg.Connection[Any], control_schema: str, created: Sequence[Route], types: Sequence[tuple[str, str]]
) -> list[Step]:
    existing = {name for (name,) in connection.execute(_SCHEMAS)} | {control_schema}
    needed = dict.fromkeys([*(route.into.schema for route in created), *(schema for schema, _ in types)])
    return [
        Step("target", f"schema {name}", f"CREATE SCHEMA IF NOT EXISTS {ddl.identifier(name)}")
        for name in needed
        if name not in existing
    ]


def _new_states(schema: str, pipeline: str, new: Sequence[str]) -> list[Step]:
    """Rows of new routes."""
    if not new:
        return []
    statement = sql.SQL(
        "INSERT INTO {}.route_state (pipeline, route, state)\n"
        "SELECT {}, route, 'pending' FROM unnest({}::text[]) AS route\n"
        "ON CONFLICT (pipeline, route) DO NOTHING"
    ).format(sql.Identifier(schema), sql.Literal(pipeline), sql.Literal(list(new)))
    count = "1 route" if len(new) == 1 else f"{len(new)} routes"
    return [Step("target", f"first copy of {count}", statement.as_string())]


def _gone_states(schema: str, pipeline: str, gone: Sequence[str]) -> list[Step]:
    """The end of rows of routes that are no longer configured; they are copied anew if they return."""
    if not gone:
        return []
    statement = sql.SQL("DELETE FROM {}.route_state WHERE pipeline = {} AND route = ANY ({}::text[])").format(
        sql.Identifier(schema), sql.Literal(pipeline), sql.Literal(list(gone))
    )
    count = "1 route is" if len(gone) == 1 else f"{len(gone)} routes are"
    return [Step("target", f"{count} no longer configured", statement.as_string())]
