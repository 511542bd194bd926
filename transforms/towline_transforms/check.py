"""Checks routes against the catalogs of both ends; what is left of a pipeline's routes when every rule holds.

Everything is checked that can be told from the catalogs; what only the target's server can tell (the types of
expressions, whether a function of the admin's own is volatile) is asked by preparing the statements there.
docs/ROUTES.md has every rule with an example.

What reads SELECTs is imported where one is met: without, the daemon starts a good tenth of a second sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from towline_transforms.identifier import suggest, suggest_table
from towline_transforms.identity import check_identity, derived_name, identity_route
from towline_transforms.problems import Problem, ProblemKind, RouteError
from towline_transforms.report import Report
from towline_transforms.route import OnError, Route, RouteSpec
from towline_transforms.schema import Catalog, Table, TableName

_EVERY = "*"


def tables_needed(specs: Sequence[RouteSpec]) -> tuple[tuple[TableName, ...], tuple[TableName, ...]]:
    """Which tables `check_routes` must find described, at the source and at the target.

    A name ``*`` stands for all tables of the schema. Tables that are joined are among the target's, also for a
    SELECT with errors.
    """
    sources: dict[TableName, None] = {}
    targets: dict[TableName, None] = {}
    for spec in specs:
        sources[spec.source] = None
        into = spec.into
        if into.name == _EVERY and spec.source.name != _EVERY:
            into = derived_name(into, spec.source)
        targets[into] = None
        if spec.select is not None:
            from towline_transforms.parse import joined_tables

            targets.update(dict.fromkeys(joined_tables(spec.select)))
    return tuple(sources), tuple(targets)


def expand(specs: Sequence[RouteSpec], source: Catalog) -> tuple[tuple[RouteSpec, ...], tuple[Problem, ...]]:
    """Replace patterns by one route for each table, named as the table is; and the problems in that.

    A table of which another route fills the same target table is left to that route. Partitions are left to their root.
    """
    plain = {(spec.source, derived_name(spec.into, spec.source)) for spec in specs if spec.source.name != _EVERY}
    partitions = {name for table in source.tables.values() for name in table.partitions}
    found: list[RouteSpec] = []
    problems: list[Problem] = []
    for spec in specs:
        if spec.source.name != _EVERY:
            found.append(replace(spec, into=derived_name(spec.into, spec.source)))
            continue
        report = Report(spec.name)
        names = sorted(name for name in source.tables if name.schema == spec.source.schema and name not in partitions)
        if spec.select is not None:
            report.add(
                ProblemKind.SYNTAX,
                "A pattern of tables cannot have a SELECT.",
                "Write a route for each table that needs one.",
            )
        if spec.key:
            report.add(
                ProblemKind.KEY, "A pattern of tables cannot have a key.", "Leave `key` out: each table's own is used."
            )
        if spec.into.name != _EVERY:
            report.add(
                ProblemKind.TARGET_TABLE,
                f"Many tables cannot go into one, {spec.into}.",
                f"Write into: {spec.into.schema}.*",
            )
        if not names:
            schemas = sorted({name.schema for name in source.tables})
            report.add(
                ProblemKind.SOURCE_TABLE,
                f"No table of the source matches {spec.source}.",
                suggest(spec.source.schema, schemas) or "Create the tables first, or correct the schema's name.",
            )
        problems += report.problems
        if report.ok:
            into = ((name, derived_name(spec.into, name)) for name in names)
            found += [
                replace(spec, name=str(name), source=name, into=to, sensitive=_there(spec, source.tables[name]))
                for name, to in into
                if (name, to) not in plain
            ]
    return tuple(found), tuple(problems)


def _there(spec: RouteSpec, table: Table) -> tuple[str, ...]:
    """Of what a pattern masks, the columns that the table has."""
    return tuple(column for column in spec.sensitive if table.has(column))


def check_routes(
    specs: Sequence[RouteSpec], source: Catalog, target: Catalog, *, running: bool = False
) -> tuple[Route, ...]:
    """Check all routes. Raises RouteError with every problem of every route.

    ``running``: for the daemon, which leaves out what was added to a source table until the log has it.
    """
    expanded, early = expand(specs, source)
    problems = list(early)
    problems += _duplicates(expanded)
    routes: list[Route] = []
    for spec in expanded:
        report = Report(spec.name)
        if route := _check(spec, source, target, report, running):
            routes.append(route)
        problems += report.problems
    if problems:
        raise RouteError(problems)
    return tuple(routes)


def functions_called(route: Route) -> frozenset[str]:
    """The functions that a route's SELECT calls, ``schema.name`` where it says so, to look up at the target.

    A checked route calls none that is known and refused; names of types with a modifier may be among them. Names are
    as the catalog has them (`pg_proc.proname`). An identity route calls none.
    """
    if route.select is None:
        return frozenset()
    from sqlglot.errors import SqlglotError

    from towline_transforms.functions import calls
    from towline_transforms.syntax import tokenize

    try:
        tokens = tokenize("stage".join(route.select))
    except SqlglotError as error:  # a checked route was read before
        raise ValueError(f"route {route.name} cannot be read again") from error
    return frozenset(map(str, calls(tokens)))


def _check(spec: RouteSpec, source: Catalog, target: Catalog, report: Report, running: bool) -> Route | None:
    table = source.get(spec.source)
    if table is None:
        near = suggest_table(spec.source, source.tables)
        if _EVERY in spec.source.name:
            near = f"A pattern is {spec.source.schema}.*, all tables of the schema. {near}".rstrip()
        report.add(
            ProblemKind.SOURCE_TABLE,
            f"The source has no table {spec.source}.",
            near or "Correct the name: it is case-sensitive, and has no quotes.",
        )
        return None
    named = check_identity(table, report)
    _check_sensitive(spec, table, report)
    if spec.select is not None:
        from towline_transforms.select_route import select_route

        return select_route(spec, spec.select, table, source, target, report)
    return identity_route(spec, table, target, report, running=running) if named else None


def _check_sensitive(spec: RouteSpec, table: Table, report: Report) -> None:
    """What is to be masked exists, and rows can be set aside without it."""
    for column in spec.sensitive:
        if not table.has(column):
            near = suggest(column, (each.name for each in table.columns))
            report.add(
                ProblemKind.SENSITIVE,
                f"{spec.source} has no such column, which is to be masked.",
                near or "Correct the name in `sensitive`: it is case-sensitive, and has no quotes.",
                column,
            )
        elif column in table.identity and spec.on_error is OnError.QUARANTINE:
            report.add(
                ProblemKind.SENSITIVE,
                f"It is part of the key of {spec.source}, by which refused rows are kept when they are set aside.",
                "Give the table a route of its own with `on_error: halt`, or leave the column out of `sensitive`.",
                column,
            )


def _duplicates(specs: Sequence[RouteSpec]) -> list[Problem]:
    """Names that two routes have, and tables that two routes fill."""
    names: set[str] = set()
    filled: dict[TableName, str] = {}
    problems = []
    for spec in specs:
        report = Report(spec.name)
        if spec.name in names:
            report.add(ProblemKind.DUPLICATE, "Two routes have this name.", "Give each a `name` of its own.")
        names.add(spec.name)
        if spec.into in filled:
            report.add(
                ProblemKind.DUPLICATE,
                f"Route {filled[spec.into]} fills {spec.into} too: rows of one would be taken for those of the other.",
                "Fill a table for each, and unite them in a view at the target.",
            )
        filled.setdefault(spec.into, spec.name)
        problems += report.problems
    return problems
