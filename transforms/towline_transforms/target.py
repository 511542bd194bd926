"""What a route needs of its target table, whatever its columns are computed from."""

from __future__ import annotations

from collections.abc import Collection

from towline_transforms.identifier import quote, quote_table, suggest
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.route import OnDelete, RouteSpec
from towline_transforms.schema import Column, Table, TypeKind

_TIMES = frozenset({"timestamp", "timestamptz", "date"})


def unfilled(target: Table, filled: Collection[str]) -> list[str]:
    """The target's columns that must have a value and get none."""
    return [
        column.name
        for column in target.columns
        if (column.not_null or column.name in target.primary_key)
        and not column.has_default
        and not column.identity_always
        and column.generated is None
        and column.name not in filled
    ]


def marked(spec: RouteSpec, filled: Collection[str]) -> set[str]:
    """``filled`` and the mark column, which is written with every row."""
    mark = spec.mark_column if spec.on_delete is OnDelete.MARK else None
    return {*filled, mark} if mark else set(filled)


def check_mark(spec: RouteSpec, target: Table, filled: Collection[str], report: Report) -> None:
    """`on_delete: mark` needs a column of the target to mark rows in, which the route does not fill."""
    if spec.on_delete is not OnDelete.MARK:
        return
    name = spec.mark_column or ""
    add = f"ALTER TABLE {quote_table(spec.into)} ADD COLUMN {quote(name or 'deleted_at')} timestamptz;"
    if not name:
        report.add(
            ProblemKind.TARGET_TABLE, "`on_delete: mark` has no column to mark.", "Name it: mark_column: deleted_at."
        )
    elif not target.has(name):
        near = suggest(name, [column.name for column in target.columns])
        report.add(ProblemKind.TARGET_TABLE, f"The mark column is not in {spec.into}. {near}".rstrip(), add, name)
    elif name in filled:
        report.add(
            ProblemKind.DUPLICATE,
            "The mark column is filled by the route as well, so that the next update would take the mark away.",
            "Mark another column, or leave this one out of the SELECT.",
            name,
        )
    else:
        _check_mark_column(target.column(name), report)


def _check_mark_column(column: Column, report: Report) -> None:
    """A boolean is true for a deleted row and false else; a time is that of the delete and NULL else."""
    base = column.type
    while base.kind is TypeKind.DOMAIN and base.element is not None:
        base = base.element
    if base.name not in {"bool", *_TIMES} or column.generated is not None:
        detail = f"The mark column is {column.type.sql}; it must be boolean, date, timestamp or timestamptz."
        report.add(ProblemKind.TARGET_TABLE, detail, "Mark another column.", column.name)
    elif base.name in _TIMES and column.not_null:
        detail = "The mark column is NOT NULL, but has no time in rows that are not deleted."
        report.add(ProblemKind.NOT_NULL, detail, "Drop its NOT NULL, or mark a boolean column.", column.name)


def check_key(spec: RouteSpec, target: Table, report: Report) -> tuple[str, ...]:
    """The columns by which the route finds its rows; empty, and reported, when they are no unique key of the target."""
    key = spec.key or target.primary_key
    if not key:
        report.add(
            ProblemKind.TARGET_KEY,
            f"The target {spec.into} has no primary key, and the route names no key.",
            f"ALTER TABLE {quote_table(spec.into)} ADD PRIMARY KEY (...); or write key: [...] with a unique key.",
        )
        return ()
    if missing := [name for name in key if not target.has(name)]:
        for name in missing:
            report.add(
                ProblemKind.TARGET_KEY,
                f"The key names a column that {spec.into} does not have.",
                suggest(name, [column.name for column in target.columns]) or "Correct `key`.",
                name,
            )
        return ()
    keys = [set(columns) for columns in (target.primary_key, *target.unique_keys) if columns]
    if set(key) not in keys:
        known = "; ".join(
            ", ".join(columns) for columns in dict.fromkeys((target.primary_key, *target.unique_keys)) if columns
        )
        columns = ", ".join(map(quote, key))
        report.add(
            ProblemKind.TARGET_KEY,
            f"({', '.join(key)}) is no unique key of {spec.into}." + (f" It has: {known}." if known else ""),
            f"ALTER TABLE {quote_table(spec.into)} ADD UNIQUE ({columns}); or name another key.",
        )
        return ()
    for name in key:
        if not target.column(name).not_null and name not in target.primary_key:
            report.add(
                ProblemKind.TARGET_KEY,
                f"The key column may be NULL in {spec.into}, and NULLs are not equal: it would not be found again.",
                f"ALTER TABLE {quote_table(spec.into)} ALTER COLUMN {quote(name)} SET NOT NULL;",
                name,
            )
    return key
