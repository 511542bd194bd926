"""Statements that compare what a route makes of staged source rows with what is in its target table.

Rows are compared as they are stored (the operator ``*<>`` on records): numeric 1.0 is not 1.00, json keeps its spaces,
-0 is not 0, and NULL equals NULL. Keys are matched with the ``=`` of their type, as an index does it.

Which columns are compared: all that the route fills, but for those that depend on a pseudo-column (a row's commit
time is not known when it is read from its table).

The stage is a temporary table whose ``_row`` numbers the source's rows. The route's SELECT runs over each of them
LATERALly, so that what it gives can be told to come from this row; the planner pulls such a subquery up, and joins as
usual.

Source: https://www.postgresql.org/docs/current/functions-comparisons.html#COMPOSITE-TYPE-COMPARISON, "record image".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from towline_transforms.dialect.postgres import marks_with_time, select_over
from towline_transforms.dialect.stage import StageColumn
from towline_transforms.identifier import quote, quote_list, quote_table
from towline_transforms.route import PSEUDO_COLUMNS, OnDelete, Route

#: Temporary tables of a comparison, and the columns that are not the route's.
STAGE = "pg_temp.towline_verify_stage"
BEFORE = "pg_temp.towline_verify_before"
SEEN = "pg_temp.towline_verify_seen"
EXTRA = "pg_temp.towline_verify_extra"

TABLES = (STAGE, BEFORE, SEEN, EXTRA)


def compared_columns(route: Route) -> tuple[str, ...]:
    """The target columns whose values are compared, key columns among them."""
    return tuple(
        assignment.column
        for assignment in route.assignments
        if not assignment.pseudo
        and assignment.column != route.mark_column
        and route.target.column(assignment.column).generated is None
    )


def create_stage(columns: Sequence[StageColumn]) -> str:
    """The stage: a source's columns as they travel, and ``_row``."""
    listed = ", ".join(f"{quote(column.name)} {column.wire}" for column in columns)
    return f"CREATE TEMPORARY TABLE {_name(STAGE)} ({listed}, _row bigint) ON COMMIT DELETE ROWS"


def pseudo_values(route: Route, pipeline: str, read_at: str, position: str) -> dict[str, str]:
    """What stands for the pseudo-columns of a row that was read from its table: SQL by name."""
    values = {
        "_commit_time": _literal(read_at),
        "_lsn": _literal(position),
        "_xid": "NULL",
        "_op": "'snapshot'",
        "_source": _literal(pipeline),
    }
    return {name: f"CAST({values[name]} AS {PSEUDO_COLUMNS[name]})" for name in route.pseudo}


def _shown(route: Route, columns: Sequence[StageColumn], pseudo: Mapping[str, str]) -> str:
    """The SELECT list that makes what the route sees of a row ``towline_staged``."""
    items = [
        f"CAST(towline_staged.{quote(column.name)} AS {column.shown}) AS {quote(column.name)}"
        for column in columns
        if column.name in route.columns
    ]
    return ", ".join([*items, *(f"{sql} AS {quote(name)}" for name, sql in pseudo.items())])


def produced(route: Route, columns: Sequence[StageColumn], pseudo: Mapping[str, str]) -> str:
    """A SELECT of ``_row`` and the route's columns over `STAGE`."""
    shown = _shown(route, columns, pseudo)
    if route.select is None:
        return f"SELECT towline_staged._row, {shown} FROM {STAGE} AS towline_staged"
    over = select_over(route, f"(SELECT {shown})")
    return (
        "SELECT towline_staged._row, towline_made.*\n"
        f"FROM {STAGE} AS towline_staged CROSS JOIN LATERAL (\n{over}\n) AS towline_made"
    )


def stage_keys(route: Route) -> str:
    """The identity of each staged row as text, with its ``_row``."""
    keys = ", ".join(f"towline_staged.{quote(name)}::text" for name in route.source.identity)
    return f"SELECT towline_staged._row, ARRAY[{keys}]::text[] FROM {STAGE} AS towline_staged ORDER BY 1"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The statements for one route. ``produced``: a SELECT of ``_row`` and the route's columns over `STAGE`.

    ``alive``: a condition on a row ``x`` of the target: it is not marked as deleted.
    """

    route: Route
    produced: str
    alive: str

    @property
    def _target(self) -> str:
        return quote_table(self.route.into)

    def _cast(self, column: str, alias: str = "p") -> str:
        """The produced value as the target stores it."""
        return f"CAST({alias}.{quote(column)} AS {self.route.target.column(column).type.sql})"

    def _match(self, alias: str) -> str:
        return " AND ".join(f"x.{quote(name)} = {alias}.{quote(name)}" for name in self.route.key)

    def _keys_text(self, alias: str) -> str:
        return "ARRAY[" + ", ".join(f"{alias}.{quote(name)}::text" for name in self.route.key) + "]::text[]"

    @property
    def _version(self) -> str:
        """Tells whether a target row was written to between two looks; NULL when there is none."""
        return "x.tableoid::text || ' ' || x.ctid::text || ' ' || x.xmin::text"

    def _typed(self) -> str:
        """The rows that are made, as the target would store them."""
        columns = dict.fromkeys([*self.route.key, *compared_columns(self.route)])
        values = ", ".join(f"{self._cast(name)} AS {quote(name)}" for name in columns)
        return f"SELECT p._row, {values}\nFROM (\n{self.produced}\n) AS p"

    def look(self, *, note: bool) -> str:
        """Mismatches of the staged rows: ``_row``, version, key as text, columns that differ (NULL: missing).

        With ``note``, the keys that were produced are also written to `SEEN`.
        """
        columns = compared_columns(self.route)
        differ = _differ([f"p.{quote(name)}" for name in columns], [f"x.{quote(name)}" for name in columns])
        each = ", ".join(
            f"CASE WHEN {_differ([f'p.{quote(name)}'], [f'x.{quote(name)}'])} THEN {_literal(name)} END"
            for name in columns
        )
        noted = f",\nnoted AS (INSERT INTO {SEEN} SELECT {quote_list(self.route.key)} FROM produced)" if note else ""
        dead, mark = "", ""
        if self.route.on_delete is OnDelete.MARK and self.route.mark_column is not None:
            dead = f" OR NOT ({self.alive})"
            mark = f", CASE WHEN NOT ({self.alive}) THEN {_literal(self.route.mark_column)} END"
        return (
            f"WITH produced AS MATERIALIZED (\n{self._typed()}\n){noted}\n"
            f"SELECT p._row, {self._version}, {self._keys_text('p')},\n"
            f"  CASE WHEN x.tableoid IS NOT NULL THEN array_remove(ARRAY[{each}{mark}]::text[], NULL) END\n"
            f"FROM produced AS p LEFT JOIN {self._target} AS x ON {self._match('p')}\n"
            f"WHERE x.tableoid IS NULL OR {differ}{dead}"
        )

    def counterparts(self) -> str:
        """For each row that is made: ``_row``, key as text, the target's row as text by column (NULL: none)."""
        values = ", ".join(f"x.{quote(column.name)}::text" for column in self.route.target.columns)
        return (
            f"SELECT p._row, {self._keys_text('p')},\n"
            f"  CASE WHEN x.tableoid IS NOT NULL THEN ARRAY[{values}]::text[] END\n"
            f"FROM (\n{self._typed()}\n) AS p\n"
            f"LEFT JOIN {self._target} AS x ON {self._match('p')} ORDER BY 1"
        )

    def remember(self) -> str:
        """Keep the keys that the target has now: only these can be extra."""
        keys = ", ".join(f"x.{quote(name)}" for name in self.route.key)
        return f"CREATE TEMPORARY TABLE {_name(BEFORE)} AS SELECT {keys} FROM {self._target} AS x WHERE {self.alive}"

    def prepare_seen(self) -> str:
        """An empty table for the keys that source rows produce."""
        return f"CREATE TEMPORARY TABLE {_name(SEEN)} AS SELECT {quote_list(self.route.key)} FROM {BEFORE} WITH NO DATA"

    def leftovers(self) -> str:
        """Keep the keys of `BEFORE` that no row produced and the target still has, with numbers and versions."""
        seen = " AND ".join(f"s.{quote(name)} = b.{quote(name)}" for name in self.route.key)
        keys = ", ".join(f"b.{quote(name)}" for name in self.route.key)
        return (
            f"CREATE TEMPORARY TABLE {_name(EXTRA)} AS\n"
            f"SELECT row_number() OVER () AS _row, {self._version} AS _version, {keys}\n"
            f"FROM {BEFORE} AS b JOIN {self._target} AS x ON {self._match('b')}\n"
            f"WHERE ({self.alive}) AND NOT EXISTS (SELECT FROM {SEEN} AS s WHERE {seen})"
        )

    def withdraw(self) -> str:
        """Take from `EXTRA` the keys that the staged rows produce."""
        match = " AND ".join(f"e.{quote(name)} = p.{quote(name)}" for name in self.route.key)
        keys = ", ".join(f"{self._cast(name)} AS {quote(name)}" for name in self.route.key)
        return f"DELETE FROM {EXTRA} AS e USING (SELECT {keys} FROM (\n{self.produced}\n) AS p) AS p WHERE {match}"

    def drop_changed(self, after: int, upto: int) -> str:
        """Take from a range of `EXTRA` the keys whose row is gone, marked, or was written to."""
        unchanged = f"{self._match('e')} AND {self._version} = e._version AND ({self.alive})"
        return (
            f"DELETE FROM {EXTRA} AS e WHERE e._row > {after:d} AND e._row <= {upto:d}\n"
            f"AND NOT EXISTS (SELECT FROM {self._target} AS x WHERE {unchanged})"
        )

    def page(self, after: int, limit: int) -> str:
        """A page of `EXTRA`: ``_row`` and key as text. ``after``: the last ``_row`` of the page before."""
        return f"SELECT e._row, {self._keys_text('e')} {_page(after, limit)}"

    def source_keys(self, types: Mapping[str, str | None], after: int, limit: int) -> str:
        """The keys of such a page as COPY BINARY prints them, in the same order.

        ``types``: by column, in which type's binary form; None for the text of its output function.
        """
        columns = ", ".join(
            f"pg_catalog.concat(e.{quote(name)})" if type_ is None else f"CAST(e.{quote(name)} AS {type_})"
            for name, type_ in types.items()
        )
        return f"COPY (SELECT {columns} {_page(after, limit)}) TO STDOUT (FORMAT binary)"

    def forget(self, rows: Sequence[int]) -> str:
        """Take numbered keys from `EXTRA`."""
        return f"DELETE FROM {EXTRA} AS e WHERE {_numbered(rows)}"

    def remove(self, rows: Sequence[int]) -> str:
        """Delete, or mark, the target's rows of numbered keys, if nothing has written to them since."""
        unchanged = f"{_numbered(rows)} AND {self._match('e')} AND {self._version} = e._version AND ({self.alive})"
        if self.route.on_delete is OnDelete.MARK and self.route.mark_column is not None:
            value = "now()" if marks_with_time(self.route) else "true"
            marked = f"{quote(self.route.mark_column)} = {value}"
            return f"UPDATE {self._target} AS x SET {marked} FROM {EXTRA} AS e WHERE {unchanged}"
        return f"DELETE FROM {self._target} AS x USING {EXTRA} AS e WHERE {unchanged}"


def _differ(left: Sequence[str], right: Sequence[str]) -> str:
    """Whether two rows have different images. Of two bare ROW()s the operator would be asked of each pair of values."""
    return f"ROW({', '.join(left)})::record OPERATOR(pg_catalog.*<>) ROW({', '.join(right)})::record"


def _numbered(rows: Sequence[int]) -> str:
    return f"e._row = ANY ('{{{','.join(map(str, rows))}}}'::bigint[])"


def _page(after: int, limit: int) -> str:
    return f"FROM {EXTRA} AS e WHERE e._row > {after:d} ORDER BY e._row LIMIT {limit:d}"


def _name(qualified: str) -> str:
    return qualified.removeprefix("pg_temp.")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
