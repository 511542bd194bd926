"""What a checked route does at a PostgreSQL target, as SQL text over a stage relation (see `dialect.stage`).

Rows are written only where they differ, and they differ when their images do (the operator ``*<>`` on records): what is
stored must be the source's bytes, and to ``IS DISTINCT FROM`` numeric 1.0 and 1.00, '1 mon' and '30 days', or -0 and 0
are the same, while json, xml and point have no operator for it at all.

Keys are matched with the ``=`` of the target column's type, so that its unique index is used. A key that is computed
for a delete is cast to that type first.

Source: https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT;
https://www.postgresql.org/docs/current/functions-comparisons.html#COMPOSITE-TYPE-COMPARISON, "record image".
"""

from __future__ import annotations

from collections.abc import Sequence

from towline_transforms.dialect.stage import PLACE, type_name
from towline_transforms.identifier import fold, quote, quote_list, quote_table
from towline_transforms.route import Assignment, OnDelete, Route
from towline_transforms.schema import SqlType, TypeKind

#: Types whose modifier is a length: a cast to it cuts, where an assignment refuses.
_CUT_BY_CASTS = frozenset({"varchar", "bpchar", "bit", "varbit"})


def select_over(route: Route, stage: str) -> str:
    """The route's SELECT with ``stage`` (SQL that can stand behind FROM) in place of the source table."""
    if route.select is not None:
        head, tail = route.select
        return f"{head}{stage}{tail}"
    columns = ", ".join(f"s.{quote(each.column)}" for each in route.assignments)
    return f"SELECT {columns} FROM {stage} AS s"


def upsert(route: Route, stage: str) -> str:
    """Write what the route makes of the staged rows, all of their columns.

    For a filtered route the statement returns one row with the number of rows that were made; other routes make as
    many as are staged. A row that ``on_delete: mark`` had marked is unmarked.
    """
    columns = _written(route)
    changing = [column for column in columns if not route.target.column(column).identity_always]
    update = "NOTHING"
    if changing:
        sets = ", ".join(f"{quote(column)} = EXCLUDED.{quote(column)}" for column in changing)
        old = ", ".join(f"t.{quote(column)}" for column in changing)
        new = ", ".join(f"EXCLUDED.{quote(column)}" for column in changing)
        # Without the casts, the parser would compare two ROWs column by column, by an operator of the columns' types.
        differs = f"ROW({old})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({new})::pg_catalog.record"
        update = f"UPDATE SET {sets}\nWHERE {differs}"
    over = select_over(route, stage)
    produced = "produced" if route.filtered else f"(\n{over}\n)"
    merge = f"{_insert_from(route, produced)}\nON CONFLICT ({quote_list(route.key)}) DO {update}"
    if not route.filtered:
        return merge
    produced = f"WITH produced AS MATERIALIZED (\n{over}\n)"
    return f"{produced}, merged AS (\n{merge}\n)\nSELECT pg_catalog.count(*) FROM produced"


def insert(route: Route, stage: str) -> str:
    """As `upsert`, where no row is at the target yet: that costs half. Else the target's key is violated.

    The statement returns nothing; it inserts as many rows as the route makes.
    """
    return _insert_from(route, f"(\n{select_over(route, stage)}\n)")


def delete(route: Route, keys: str) -> str | None:
    """Delete (or mark) the target's rows of staged source keys. None: the route ignores deletes.

    ``keys`` is a stage of the identity's columns and, when `marks_with_time`, of ``_commit_time``.
    """
    time = ["_commit_time"] if marks_with_time(route) else []
    return _remove(route, _key_select(route, keys, time))


def delete_but(route: Route, keys: str, kept: str) -> str:
    """As `delete`, for a `movable` route, without the target's rows of the staged keys ``kept``.

    A key may change into one of other bytes that is equal at the target: what is to be deleted at the place where the
    row goes would be the row itself.
    """
    match = " AND ".join(_match(route, name, "o") for name in route.key)
    statement = _remove(route, _key_select(route, keys, []))
    return f"{statement}\nAND NOT EXISTS (SELECT FROM (\n{_key_select(route, kept, [])}\n) AS o WHERE {match})"


def delete_unmade(route: Route, stage: str) -> str | None:
    """Delete (or mark) the target's rows of staged source rows of which the filtered route makes none. None: as for
    `delete`.

    When `marks_with_time`, the stage has ``_commit_time``.
    """
    time = ["_commit_time"] if marks_with_time(route) else []
    made = ", ".join(f"{_cast(route, name, f'p.{quote(name)}')} AS {quote(name)}" for name in route.key)
    same = " AND ".join(f"{_equal(route, name, f'k.{quote(name)}', f'p.{quote(name)}')}" for name in route.key)
    absent = (
        f"SELECT k.* FROM (\n{_key_select(route, stage, time)}\n) AS k\n"
        f"WHERE NOT EXISTS (SELECT FROM produced AS p WHERE {same})"
    )
    over = f"WITH produced AS MATERIALIZED (\nSELECT {made} FROM (\n{select_over(route, stage)}\n) AS p\n)\n"
    return _remove(route, absent, over)


def delete_all(route: Route) -> str:
    """Empty the target table (mark all its rows) after a TRUNCATE at the source. With `marks_with_time`, ``$1`` is the
    time.

    DELETE rather than TRUNCATE: it needs no privilege beyond what replication has, does not lock readers out, fires
    row triggers, and respects foreign keys row by row.
    """
    table = quote_table(route.into)
    if route.on_delete is OnDelete.MARK and route.mark_column is not None:
        value = "$1::pg_catalog.timestamptz" if marks_with_time(route) else "true"
        return f"UPDATE {table} AS t SET {quote(route.mark_column)} = {value}"
    return f"DELETE FROM {table}"


def update(route: Route, stage: str, missing: frozenset[str]) -> str:
    """Change, in rows that the target has, the columns that do not depend on the source columns that are
    ``missing``.
    """
    sets = _sets(route, missing)
    match = " AND ".join(_match(route, name, "p") for name in route.key)
    return (
        f"UPDATE {quote_table(route.into)} AS t SET {sets}\nFROM (\n{select_over(route, stage)}\n) AS p WHERE {match}"
    )


def move(route: Route, stage: str, missing: frozenset[str], old_key: str) -> str:
    """As `update`, for the one staged row, but the target's row is found by the staged key it had, ``old_key``."""
    match = " AND ".join(_match(route, name, "o") for name in route.key)
    return (
        f"UPDATE {quote_table(route.into)} AS t SET {_sets(route, missing)}\n"
        f"FROM (\n{select_over(route, stage)}\n) AS p, (\n{_key_select(route, old_key, [])}\n) AS o WHERE {match}"
    )


def count_present(route: Route, keys: str) -> str:
    """How many of the staged source keys have a row at the target."""
    match = " AND ".join(_match(route, name, "k") for name in route.key)
    return (
        f"SELECT pg_catalog.count(*) FROM (\n{_key_select(route, keys, [])}\n) AS k\n"
        f"JOIN {quote_table(route.into)} AS t ON {match}"
    )


def movable(route: Route) -> bool:
    """Whether a changed key can be changed in place: the row is simply another one afterwards."""
    fixed = any(route.target.column(name).identity_always for name in route.key)
    return not route.filtered and not fixed and route.on_delete is OnDelete.DELETE


def must_move(route: Route) -> bool:
    """Whether a changed key has to be changed in place, where that can be: deleting the row under its old key would
    make a foreign key delete or change rows that refer to it and that the source keeps.
    """
    if not route.target.acting_keys or not movable(route):
        return False
    key = set(route.key)
    return any(each.follows or key.isdisjoint(each.columns) for each in route.target.acting_keys)


def absent(route: Route, stage: str) -> str:
    """The numbers (`PLACE`) of staged rows whose key the target does not have (or has marked as deleted), though the
    route makes a row of them.
    """
    match = " AND ".join(_match(route, name, "k") for name in route.key)
    if route.on_delete is OnDelete.MARK and route.mark_column is not None:
        # What changed since it was marked is not in it.
        match += f" AND t.{quote(route.mark_column)} IS {'NULL' if marks_with_time(route) else 'NOT TRUE'}"
    statement = (
        f"SELECT k.{PLACE} FROM (\n{_key_select(route, stage, [PLACE])}\n) AS k\n"
        f"WHERE NOT EXISTS (SELECT FROM {quote_table(route.into)} AS t WHERE {match})"
    )
    if route.filtered:
        same = " AND ".join(
            _equal(route, name, f"k.{quote(name)}", _cast(route, name, f"p.{quote(name)}")) for name in route.key
        )
        statement += f"\nAND EXISTS (SELECT FROM (\n{select_over(route, stage)}\n) AS p WHERE {same})"
    return statement


def marks_with_time(route: Route) -> bool:
    """Whether a delete writes the time of its commit into the mark column (else: true)."""
    if route.on_delete is not OnDelete.MARK or route.mark_column is None:
        return False
    return _base(route.target.column(route.mark_column).type).name != "bool"


def survives(route: Route, missing: frozenset[str]) -> bool:
    """Whether it can be told without the ``missing`` source columns if the route makes a row, and if the target's row
    has them as they were before: one that stays there while the filter leaves it out does not follow the source.
    """
    return not route.filter_sources & missing and not (route.filtered and route.on_delete is OnDelete.IGNORE)


def _written(route: Route) -> dict[str, str]:
    """The columns that a whole row sets, and where each value comes from: the SELECT is ``p``."""
    values = {each.column: f"p.{quote(each.column)}" for each in route.assignments}
    if (mark := _unmark(route)) is not None:
        values[mark[0]] = mark[1]
    return values


def _insert_from(route: Route, produced: str) -> str:
    values = _written(route)
    fixed = any(route.target.column(column).identity_always for column in values)
    return (
        f"INSERT INTO {quote_table(route.into)} AS t ({quote_list(values)})"
        f"{' OVERRIDING SYSTEM VALUE' if fixed else ''}\n"
        f"SELECT {', '.join(values.values())} FROM {produced} AS p"
    )


def _remove(route: Route, keys: str, prefix: str = "") -> str | None:
    if route.on_delete is OnDelete.IGNORE:
        return None
    match = " AND ".join(_match(route, name, "k") for name in route.key)
    table = quote_table(route.into)
    if route.on_delete is OnDelete.MARK and route.mark_column is not None:
        value = "k._commit_time" if marks_with_time(route) else "true"
        mark = f"{quote(route.mark_column)} = {value}"
        return f"{prefix}UPDATE {table} AS t SET {mark}\nFROM (\n{keys}\n) AS k WHERE {match}"
    return f"{prefix}DELETE FROM {table} AS t USING (\n{keys}\n) AS k WHERE {match}"


def _unmark(route: Route) -> tuple[str, str] | None:
    """The mark column and its value in a row that is alive."""
    if route.on_delete is not OnDelete.MARK or route.mark_column is None:
        return None
    return route.mark_column, "NULL" if marks_with_time(route) else "false"


def _sets(route: Route, missing: frozenset[str]) -> str:
    """Assignments of all columns that can be computed without ``missing``."""
    sets = [
        f"{quote(each.column)} = p.{quote(each.column)}"
        for each in route.assignments
        if not each.sources & missing and not route.target.column(each.column).identity_always
    ]
    if (mark := _unmark(route)) is not None:
        sets.append(f"{quote(mark[0])} = {mark[1]}")
    # A key that is GENERATED ALWAYS and nothing else: DEFAULT would change it, so that a no-op on another column must
    # do.
    return ", ".join(sets) or _no_change(route)


def _no_change(route: Route) -> str:
    column = next(c.name for c in route.target.columns if not c.identity_always and c.generated is None)
    return f"{quote(column)} = t.{quote(column)}"


def _key_select(route: Route, stage: str, extra: Sequence[str]) -> str:
    """The key columns of staged rows, by the target's names and types, and ``extra`` columns of the stage."""
    by_column = {each.column: each for each in route.assignments}
    items = [f"{_cast(route, name, _expression(route, by_column[name]))} AS {quote(name)}" for name in route.key]
    alias = quote(_alias(route))
    items += [f"{alias}.{quote(name)} AS {quote(name)}" for name in extra]
    return f"SELECT {', '.join(items)} FROM {stage} AS {alias}"


def _expression(route: Route, assignment: Assignment) -> str:
    return f"s.{quote(assignment.column)}" if route.identity else f"(\n{assignment.sql}\n)"


def _alias(route: Route) -> str:
    """The name by which the key's expressions refer to the source table. They depend on no other."""
    if route.identity:
        return "s"
    import sqlglot  # see `towline_transforms.check`
    from sqlglot import exp

    key = set(route.key)
    for assignment in route.assignments:
        if assignment.column in key:
            for column in sqlglot.parse_one(assignment.sql, dialect="postgres").find_all(exp.Column):
                if isinstance(table := column.args.get("table"), exp.Identifier):
                    return fold(table.name, quoted=bool(table.args.get("quoted")))
    return "s"


def _base(sql_type: SqlType) -> SqlType:
    while sql_type.kind is TypeKind.DOMAIN and sql_type.element is not None:
        sql_type = sql_type.element
    return sql_type


def _cast(route: Route, column: str, value: str) -> str:
    """The value as the target's key column holds it, so that its index serves, but never cut to a length."""
    base = _base(route.target.column(column).type)
    return f"{value}::{type_name(base) if base.name in _CUT_BY_CASTS else base.sql}"


def _match(route: Route, column: str, alias: str) -> str:
    """A target row ``t`` has the key of ``alias``."""
    value = f"{alias}.{quote(column)}"
    if alias == "p":  # straight from the SELECT, not cast yet
        value = _cast(route, column, value)
    return _equal(route, column, f"t.{quote(column)}", value)


def _equal(route: Route, column: str, left: str, right: str) -> str:
    """``=`` of the column's type; that of a type which is not built in is found by the search_path."""
    operator = "OPERATOR(pg_catalog.=)" if _base(route.target.column(column).type).builtin else "="
    return f"{left} {operator} {right}"
