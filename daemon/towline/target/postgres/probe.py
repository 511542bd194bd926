"""Asks the target's server about routes what no catalog that was read beforehand can tell.

* Does it take the statements that the route will run? They are prepared, over a stage without rows.
* Which functions does the SELECT come down to, casts and operators included, and are they functions of the row? A
  temporary view of it is made and rolled back: the server notes which functions of its users a view depends on.
  Built-in ones are not noted, so that they are looked up by name.
* Does the role have the privileges, on the tables that are joined too?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import Rollback

from towline.change import Format, Relation
from towline.postgres.session import translating
from towline_transforms.check import functions_called
from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect import stage
from towline_transforms.identifier import quote, quote_table
from towline_transforms.problems import Problem, ProblemKind
from towline_transforms.route import OnDelete, Route

_VIEW = "towline_probe"

_PRIVILEGES = """
SELECT privilege FROM unnest(%s::text[]) AS privilege
WHERE NOT pg_catalog.has_table_privilege(%s, privilege)
"""

#: Tables of which the view reads columns that the role may not read. To make a view one need not be allowed to.
_UNREADABLE = """
SELECT DISTINCT d.refobjid::pg_catalog.regclass::text
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
WHERE r.ev_class = %s::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND d.refobjid <> r.ev_class AND d.refobjsubid > 0
  AND NOT pg_catalog.has_column_privilege(d.refobjid, d.refobjsubid::smallint, 'SELECT')
ORDER BY 1
"""

#: Functions, and those behind operators, on which the view's rule depends.
_OF_VIEW = """
SELECT DISTINCT n.nspname || '.' || p.proname, p.prokind::text, p.provolatile::text, p.proretset
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
LEFT JOIN pg_catalog.pg_operator o
  ON d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = d.refobjid
JOIN pg_catalog.pg_proc p
  ON p.oid = CASE WHEN d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass THEN d.refobjid ELSE o.oprcode::oid END
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE r.ev_class = %s::pg_catalog.regclass
ORDER BY 1
"""

#: Built-in functions of which every form is of one kind that routes cannot have.
_BUILT_IN = """
SELECT p.proname::text, min(p.prokind::text), min(p.provolatile::text), bool_and(p.proretset)
FROM pg_catalog.pg_proc p
WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.proname = ANY (%s)
GROUP BY p.proname
HAVING min(p.prokind::text) = max(p.prokind::text) AND min(p.provolatile::text) = max(p.provolatile::text)
  AND bool_and(p.proretset) = bool_or(p.proretset)
ORDER BY 1
"""


def probe(connection: psycopg.Connection[Any], routes: Sequence[Route], relations: Sequence[Relation]) -> list[Problem]:
    """Everything that the server has against the routes. Routes whose table is yet to be created are left out.

    The connection is in autocommit mode, with the search_path that the daemon's has. Nothing is changed.
    """
    travelling = {relation.name: relation for relation in relations}
    problems: list[Problem] = []
    with translating("target"):
        for route in routes:
            if route.create:
                continue
            refused = list(_statements(connection, route, travelling[route.source.name]))
            problems += refused
            problems += _privileges(connection, route)
            if route.select is not None and not refused:
                problems += _select(connection, route, travelling[route.source.name])
    return problems


def _stages(route: Route, relation: Relation) -> tuple[str, str]:
    """Empty stages of the route's rows and of its keys."""
    binary = relation.format is Format.BINARY
    names = [*route.pseudo, *(["_commit_time"] if dialect.marks_with_time(route) else [])]
    pseudo = [stage.pseudo_column(name) for name in dict.fromkeys(names)]
    time = [stage.pseudo_column("_commit_time")] if dialect.marks_with_time(route) else []
    rows = stage.stage_columns([*relation.columns, *pseudo], binary=binary, route=route)
    keys = stage.stage_columns([*relation.key_columns, *time], binary=binary, route=route)
    return stage.empty_stage(rows), stage.empty_stage(keys)


def without_rows(route: Route, relation: Relation) -> list[str]:
    """The statements that the route runs, over stages without rows."""
    rows, keys = _stages(route, relation)
    statements = [dialect.upsert(route, rows), dialect.delete(route, keys)]
    if route.filtered:
        statements.append(dialect.delete_unmade(route, rows))
    return [statement for statement in statements if statement is not None]


def _statements(connection: psycopg.Connection[Any], route: Route, relation: Relation) -> Iterator[Problem]:
    for statement in without_rows(route, relation):
        try:
            connection.execute(f"PREPARE {_VIEW} AS {statement}".encode())
            connection.execute(f"DEALLOCATE {_VIEW}".encode())
        except psycopg.errors.ProgrammingError as error:
            said = error.diag.message_primary or "no reason given"
            detail = f"The target refuses the statement: {said}{f' ({error.sqlstate})' if error.sqlstate else ''}."
            remedy = error.diag.message_hint or "Correct the SELECT so that each column has the type of the target's."
            yield Problem(ProblemKind.STATEMENT, route.name, error.diag.column_name or "", detail, remedy)
            return


def _privileges(connection: psycopg.Connection[Any], route: Route) -> Iterator[Problem]:
    wanted = ["SELECT", "INSERT", "UPDATE"] + (["DELETE"] if route.on_delete is OnDelete.DELETE else [])
    table = quote_table(route.into)
    missing = [name for (name,) in connection.execute(_PRIVILEGES, (wanted, table))]
    if missing:
        granted = ", ".join(missing)
        role = connection.info.user
        quoted = quote(role)
        yield Problem(
            ProblemKind.TARGET_TABLE,
            route.name,
            "",
            f"The role {role} lacks {granted} on {route.into}.",
            f"Run at the target: GRANT {granted} ON {table} TO {quoted};",
        )


def _select(connection: psycopg.Connection[Any], route: Route, relation: Relation) -> Iterator[Problem]:
    """What is wrong with the tables that the SELECT joins, and with the functions that it calls."""
    rows, _ = _stages(route, relation)
    found: list[tuple[str, str, str, bool]] = []
    with connection.transaction():
        connection.execute(f"CREATE TEMPORARY VIEW {_VIEW} AS {dialect.select_over(route, rows)}".encode())
        unreadable = [name for (name,) in connection.execute(_UNREADABLE, (f"pg_temp.{_VIEW}",))]
        found += connection.execute(_OF_VIEW, (f"pg_temp.{_VIEW}",)).fetchall()
        raise Rollback
    role = connection.info.user
    for table in unreadable:  # as SQL: the server has quoted it
        yield _problem(
            route,
            ProblemKind.TARGET_TABLE,
            f"The role {role} may not read all that the SELECT takes from {table}.",
            f"Run at the target: GRANT SELECT ON {table} TO {quote(role)};",
        )
    called = [name.removeprefix("pg_catalog.") for name in functions_called(route)]
    found += connection.execute(_BUILT_IN, ([name for name in called if "." not in name],)).fetchall()
    for name, kind, volatility, returns_set in found:
        if kind == "a":
            yield _problem(
                route,
                ProblemKind.AGGREGATE,
                f"{name} is an aggregate: it is about many rows, and a route sees one at a time.",
                "Replicate the rows and aggregate them in a view at the target.",
            )
        elif kind == "w":
            yield _problem(
                route,
                ProblemKind.WINDOW,
                f"{name} is a window function: it looks at other rows, and a route sees one at a time.",
                "Replicate the rows and use the window function in a view at the target.",
            )
        elif returns_set:
            yield _problem(
                route,
                ProblemKind.FUNCTION,
                f"{name} returns a set, and a route gives one row for a row.",
                "Use a function that returns one value.",
            )
        elif volatility == "v":
            yield _problem(
                route,
                ProblemKind.FUNCTION,
                f"{name} is declared VOLATILE: the same row would not give the same result.",
                "If its result depends on its arguments and on tables alone: ALTER FUNCTION … STABLE (or IMMUTABLE).",
            )


def _problem(route: Route, kind: ProblemKind, detail: str, remedy: str) -> Problem:
    return Problem(kind, route.name, "", detail, remedy)
