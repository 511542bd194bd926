"""Identity routes: each column of the source table goes into the target's column of the same name."""

from __future__ import annotations

from dataclasses import replace

from towline_transforms.identifier import quote, quote_list, quote_table, suggest
from towline_transforms.placement import Placement, TypeMissing
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.route import Assignment, OnDelete, OnSchemaChange, Route, RouteSpec
from towline_transforms.schema import Catalog, Column, SqlType, Table, TableName
from towline_transforms.target import check_always, check_mark, marked, unfilled

_TIMESTAMPTZ = SqlType(
    oid=1184, schema="pg_catalog", name="timestamptz", sql="timestamp with time zone", array_oid=1185
)


def identity_route(
    spec: RouteSpec, source: Table, catalog: Catalog, report: Report, *, running: bool = False
) -> Route | None:
    """Check an identity route; None when something is wrong, which is reported then.

    ``running``: a column that the target lacks is left out with OnSchemaChange.HALT too; the log tells when it counts.
    """
    placement = Placement(spec.source.schema, spec.into.schema, catalog)
    found = catalog.get(spec.into)
    target = _derived(spec, source, placement, report) if found is None else found
    columns = tuple(column.name for column in source.columns if column.generated is None)
    added: list[Column] = []
    left_out: tuple[str, ...] = ()
    if found is not None:
        lacking = [name for name in columns if not found.has(name) and name not in source.identity]
        if spec.on_schema_change is OnSchemaChange.EVOLVE:
            added = [_placed(source.column(name), placement, report) for name in lacking]
            found = target = replace(found, columns=(*found.columns, *added))
        elif spec.on_schema_change is OnSchemaChange.IGNORE or running:
            left_out = tuple(lacking)
            columns = tuple(name for name in columns if name not in left_out)
        _match_columns(spec, source, found, columns, placement, report)
    key = _key(spec, source, target, report)
    check_always(spec, target, columns, key, report)
    check_mark(spec, target, columns, report)
    if not report.ok:
        return None
    return Route(
        name=spec.name,
        source=source,
        target=target,
        select=None,
        columns=columns,
        assignments=tuple(Assignment(name, quote(name), frozenset({name})) for name in columns),
        key=key,
        filtered=False,
        filter_sources=frozenset(),
        pseudo=(),
        on_delete=spec.on_delete,
        mark_column=spec.mark_column if spec.on_delete is OnDelete.MARK else None,
        on_truncate=spec.on_truncate,
        create=found is None,
        on_error=spec.on_error,
        on_schema_change=spec.on_schema_change,
        sensitive=frozenset(spec.sensitive),
        added=tuple(column.name for column in added),
        left_out=left_out,
    )


def _placed(column: Column, placement: Placement, report: Report) -> Column:
    """A column to add to the target's table: of the same type, nullable."""
    try:
        kind = placement.place(column.type)
    except TypeMissing as missing:
        report.add(ProblemKind.TYPE, missing.detail, missing.remedy, column.name)
        kind = column.type
    return Column(column.name, kind, collation=column.collation)


def _derived(spec: RouteSpec, source: Table, placement: Placement, report: Report) -> Table:
    """The table to create: the source's columns, types, NOT NULL and primary key."""
    columns = []
    for column in source.columns:
        try:
            kind = placement.place(column.type)
        except TypeMissing as missing:
            report.add(ProblemKind.TYPE, missing.detail, missing.remedy, column.name)
            kind = column.type
        columns.append(replace(column, type=kind, has_default=False, identity_always=False))
    if spec.on_delete is OnDelete.MARK and spec.mark_column and not source.has(spec.mark_column):
        columns.append(Column(spec.mark_column, _TIMESTAMPTZ))
    primary = source.primary_key or source.identity
    keys = [primary]
    if set(source.identity) != set(primary):
        keys.append(source.identity)
    return Table(name=spec.into, columns=tuple(columns), primary_key=primary, unique_keys=tuple(keys))


def _match_columns(
    spec: RouteSpec, source: Table, target: Table, columns: tuple[str, ...], placement: Placement, report: Report
) -> None:
    """Every column has its counterpart, of a type that holds its values exactly; the target's others need no value.

    What the target generates by itself it may only do so where the source does.
    """
    for name in columns:
        kind = source.column(name).type
        if not target.has(name):
            report.add(
                ProblemKind.TARGET_TABLE,
                f"{spec.into} has no such column. {suggest(name, (c.name for c in target.columns))}".rstrip(),
                f"ALTER TABLE {quote_table(spec.into)} ADD COLUMN {quote(name)} {_sql(kind, placement)}; "
                "or write a SELECT that names the columns to fill. The rows that are there already get its values from "
                "the source.",
                name,
            )
        elif target.column(name).generated is not None:
            report.add(
                ProblemKind.TARGET_TABLE,
                f"It is generated at the target {spec.into}, and has values of its own at the source.",
                f"ALTER TABLE {quote_table(spec.into)} ALTER COLUMN {quote(name)} DROP EXPRESSION; "
                "or write a SELECT that leaves it out.",
                name,
            )
        elif not placement.carries(kind, target.column(name).type):
            report.add(
                ProblemKind.TYPE,
                f"It is {kind.sql} at the source and {target.column(name).type.sql} at the target {spec.into}.",
                f"ALTER TABLE {quote_table(spec.into)} ALTER COLUMN {quote(name)} TYPE {_sql(kind, placement)}; "
                "or write a SELECT with a cast.",
                name,
            )
    for column in unfilled(target, marked(spec, columns)):
        report.add(
            ProblemKind.NOT_NULL,
            f"It is NOT NULL without a default at the target {spec.into}, and the source has no such column.",
            f"ALTER TABLE {quote_table(spec.into)} ALTER COLUMN {quote(column)} DROP NOT NULL; or SET DEFAULT ...;",
            column,
        )


def _sql(kind: SqlType, placement: Placement) -> str:
    try:
        return placement.place(kind).sql
    except TypeMissing:
        return kind.sql


def _key(spec: RouteSpec, source: Table, target: Table, report: Report) -> tuple[str, ...]:
    """The target's key that consists of the columns of the source's identity."""
    identity = source.identity
    listed = ", ".join(identity)
    if spec.key and set(spec.key) != set(identity):
        report.add(
            ProblemKind.KEY,
            f"The key ({', '.join(spec.key)}) is not the source's replica identity ({listed}).",
            f"Leave `key` out, or write key: [{listed}].",
            spec.key[0] if len(spec.key) == 1 else "",
        )
        return identity
    keys = [key for key in (target.primary_key, *target.unique_keys) if key]
    found = next((key for key in keys if set(key) == set(identity)), None)
    if found is None:
        report.add(
            ProblemKind.TARGET_KEY,
            f"The target {spec.into} has no unique key over ({listed}), by which the source names its rows.",
            f"ALTER TABLE {quote_table(spec.into)} ADD UNIQUE ({quote_list(identity)});",
        )
        return identity
    return spec.key or found


def check_identity(table: Table, report: Report) -> bool:
    """Whether the source's log names the rows of the table; reported with the statements to choose from when not."""
    name = quote_table(table.name)
    if not table.identity:
        statements = [f"ALTER TABLE {name} ADD PRIMARY KEY (...);"]
        usable = [key for key in table.unique_keys if all(table.column(column).not_null for column in key)]
        statements += [
            f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX <the unique index on {', '.join(k)}>;" for k in usable
        ]
        if table.primary_key:
            statements = [f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"]
        elif not usable:
            statements.append(
                f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX <a unique index over NOT NULL columns>;"
            )
        report.add(
            ProblemKind.IDENTITY,
            table.identity_reason or f"{table.name} has no primary key and no other replica identity.",
            f"Run at the source one of: {' '.join(statements)} REPLICA IDENTITY FULL alone is not enough: "
            "it needs a unique index over NOT NULL columns too. If a pattern has brought in a table that is not to be "
            "replicated, list the others one by one.",
        )
        return False
    for column in table.identity:
        if table.column(column).generated is not None:
            report.add(
                ProblemKind.IDENTITY,
                f"The replica identity of {table.name} has a generated column, which the log does not carry.",
                f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX <a unique index over ordinary NOT NULL columns>;",
                column,
            )
    return not any(table.column(column).generated is not None for column in table.identity)


def derived_name(pattern: TableName, name: TableName) -> TableName:
    """The target's name for a table that a pattern stands for."""
    return TableName(pattern.schema, name.name if pattern.name == "*" else pattern.name)
