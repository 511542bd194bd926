"""Rows of the target that stand in the way of a copy over them, and what refers to them.

When a table is copied again over what is there (`towline resync`), a row that has not been copied yet may hold a unique
value that belongs to another row by now. It is out of date: it comes again with its own chunk, or is gone at the
source. So it is deleted. (To give both their values in one statement is no way out: the server checks an immediate
unique key row by row.) What refers to it is deleted before it, in tables that are copied again themselves: what of
that is at the source comes again with its chunk, or is mended by the sweep that follows every such copy.

Nothing is deleted that would not come again (`obstacle`): no row of a route that keeps what the source deletes, and
none with which the server would delete or change rows of a table that is not copied again, or that is kept. What
refers to the row without such an action stays where it is, and the server then refuses to delete the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from towline_transforms.dialect.postgres import select_over
from towline_transforms.identifier import quote, quote_table
from towline_transforms.route import OnDelete, Route
from towline_transforms.schema import TableName


def make_room(route: Route, stage: str, missing: frozenset[str], again: Sequence[Route]) -> list[str]:
    """The statements, in order; none when the target has no unique key that could be in the way, or an `obstacle`.

    ``stage`` and ``missing``: as for `postgres.upsert` and `postgres.update`. ``again``: the routes whose tables are
    copied again.
    """
    statements: list[str] = []
    if obstacle(route, again) is not None:
        return statements
    for unique in _unique_keys(route, missing):
        conditions = [f"t.{quote(name)} = p.{quote(name)}" for name in unique]
        other = " AND ".join(f"t.{quote(name)} = p.{quote(name)}" for name in route.key)
        where = f"{' AND '.join(conditions)} AND NOT ({other})"
        over = f"(\n{select_over(route, stage)}\n) AS p"
        rows = f"SELECT t.* FROM {quote_table(route.into)} AS t, {over} WHERE {where}"
        statements += _referring(route.into, rows, again, frozenset({route.into}))
        statements.append(f"DELETE FROM {quote_table(route.into)} AS t USING {over} WHERE {where}")
    return statements


def obstacle(route: Route, again: Sequence[Route]) -> str | None:
    """Why no room is made in a route's table, if it has a unique key that could be in the way; else None."""
    if next(_unique_keys(route, frozenset()), None) is None:
        return None
    if route.on_delete is not OnDelete.DELETE:
        return f"the route keeps rows that are gone at the source (on_delete: {route.on_delete})"
    removable = {each.into for each in again if each.on_delete is OnDelete.DELETE}
    for emptied in (route, *_reached(route.into, again, frozenset({route.into}))):
        for acting in emptied.target.acting_keys:
            if acting.table not in removable:
                return (
                    f"rows of {acting.table}, which are kept or not copied again, would be deleted or changed with it"
                )
    return None


def _unique_keys(route: Route, missing: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """The target's unique keys, beside the route's own, that the route fills from columns that are there."""
    if missing and not route.identity:
        return
    filled = {each.column for each in route.assignments} - missing
    for unique in route.target.unique_keys:
        if set(unique) != set(route.key) and filled.issuperset(unique):
            yield unique


def _reached(table: TableName, again: Sequence[Route], seen: frozenset[TableName]) -> Iterator[Route]:
    """The routes of whose tables rows are deleted with those of a table, see `_referring`."""
    for route in again:
        if route.into in seen or route.on_delete is not OnDelete.DELETE:
            continue
        if any(key.referenced == table for key in route.target.foreign_keys):
            yield route
            yield from _reached(route.into, again, seen | {route.into})


def _referring(table: TableName, rows: str, again: Sequence[Route], seen: frozenset[TableName]) -> Iterator[str]:
    """Deletes of what refers to rows of a table, what is referred to last."""
    for route in again:
        if route.into in seen or route.on_delete is not OnDelete.DELETE:
            continue
        for key in route.target.foreign_keys:
            if key.referenced != table:
                continue
            columns = ", ".join(f"c.{quote(name)}" for name in key.columns)
            referenced = ", ".join(f"r.{quote(name)}" for name in key.referenced_columns)
            where = f"({columns}) IN (SELECT {referenced} FROM (\n{rows}\n) AS r)"
            child = f"{quote_table(route.into)} AS c WHERE {where}"
            yield from _referring(route.into, f"SELECT c.* FROM {child}", again, seen | {route.into})
            yield f"DELETE FROM {child}"
