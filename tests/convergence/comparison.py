"""What must hold after every run: the same rows, or their newest in the quarantine, and books that agree."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg

from tests.convergence.schema import Schema
from tests.support.line import Line

#: Counts the changes of every table in a schema that no route is from; a change of key counts twice, as in the ledger.
#: Rows are added only, so that transactions side by side do not wait for each other.
COUNTED = """
CREATE SCHEMA counted;
CREATE TABLE counted.change (name text, rows int);
CREATE FUNCTION counted.count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rows int := 1;
    name text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        FOREACH name IN ARRAY TG_ARGV[1]::text[] LOOP
            IF to_jsonb(OLD)->name IS DISTINCT FROM to_jsonb(NEW)->name THEN rows := 2; END IF;
        END LOOP;
    END IF;
    INSERT INTO counted.change VALUES (TG_ARGV[0], rows);
    RETURN NULL;
END $$;
DO $$
DECLARE
    it record;
BEGIN
    FOR it IN
        SELECT c.oid::regclass AS name, c.relname, (
            SELECT array_agg(a.attname) FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
                AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
        ) AS key
        FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE format('CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW'
            ' EXECUTE FUNCTION counted.count(%L, %L)', it.name, it.relname, it.key);
    END LOOP;
END $$;
"""
_SEEN = """
SELECT r.route, coalesce(l.seen, 0), r.copied FROM towline.route_state r
LEFT JOIN (SELECT route, sum(seen) AS seen FROM towline.ledger GROUP BY 1) l USING (route)
"""
_NEWEST = """
SELECT DISTINCT ON (key) key::json->>'id', "row", not_sent FROM towline.quarantine WHERE state = 'open'
ORDER BY key, id DESC
"""


class Diverged(AssertionError):
    """Source and target differ, or the books are wrong."""


class Comparison:
    """Of one history, after each of its phases."""

    def __init__(self, schema: Schema, source: psycopg.Connection, hub: psycopg.Connection, line: Line) -> None:
        self._schema, self._source, self._hub, self._line = schema, source, hub, line
        self._counts: dict[str, tuple[int, int]] = {}

    def hold(self, *, copying: bool) -> int:
        """Compare now. ``copying``: whether anything was copied since the last time.

        Returns how many changes the ledger was held against. Raises Diverged.
        """
        self._compare()
        if self._schema.refused:
            self._compare_set_aside()
        # Not where columns change: what is read again is seen again.
        return 0 if self._schema.changing else self._compare_counts(copying=copying)

    def _compare(self) -> None:
        for there, here in self._equal():
            should = self._source.execute(there.encode()).fetchall()
            rows = self._hub.execute(here.encode()).fetchall()
            if rows != should:
                lacking, extra = _less(should, rows), _less(rows, should)
                raise Diverged(f"{here}: the hub lacks {_short(lacking)} and has {_short(extra)} instead")
        sums = self._hub.execute(
            "SELECT seen, upserted + deleted + superseded + filtered + quarantined FROM towline.ledger"
        ).fetchall()
        if any(seen != accounted for seen, accounted in sums):
            raise Diverged(f"the ledger does not balance: {sums}")

    def _compare_set_aside(self) -> None:
        """Just the rows that the target refuses are in the quarantine, each as the source has it now."""
        (table,) = self._schema.tables
        rows = self._source.execute(
            f"SELECT id::text, (SELECT json_object_agg(key, value) FROM jsonb_each_text(to_jsonb(t))) FROM {table} t"
            f" WHERE {self._schema.refused}".encode()
        )
        should: dict[str, dict[str, str | None]] = dict(rows.fetchall())
        kept = {key: (row, not_sent) for key, row, not_sent in self._hub.execute(_NEWEST)}
        if kept.keys() != should.keys():
            raise Diverged(f"set aside are {sorted(kept)}, to be refused {sorted(should)}")
        for key, (row, not_sent) in kept.items():
            if row is None or row != {name: value for name, value in should[key].items() if name not in not_sent}:
                raise Diverged(f"set aside is {str(row)[:300]} without {not_sent}, not {str(should[key])[:300]}")

    def _compare_counts(self, *, copying: bool) -> int:
        """What the ledger has seen since the last time is what the source's own triggers counted of what committed.

        While a table is copied, changes of rows that are still to be copied are not seen, and it is not more than both.
        """
        tables = {spec.name: spec.source.name for spec in self._line.config.specs()}
        changed: dict[str, int] = dict(
            self._source.execute("SELECT name, sum(rows) FROM counted.change GROUP BY 1").fetchall()
        )
        held = 0
        for route, seen, copied in self._hub.execute(_SEEN).fetchall():
            counts = seen, changed.get(tables.get(route, route.partition(".")[2]), 0)
            before = self._counts.get(route, (0, 0))
            self._counts[route] = counts
            came, should = counts[0] - before[0], counts[1] - before[1] + (copied if copying else 0)
            if came > should or (came < should and not copying):
                raise Diverged(f"the ledger has seen {came} rows of {route}, of {should}, {copied} copied: {copying}")
            held += 0 if copying else should
        return held

    def _equal(self) -> list[tuple[str, str]]:
        """The queries, with the columns that the source's table has now."""
        if not self._schema.changing:
            return list(self._schema.equal)
        rows = self._source.execute(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped ORDER BY attname",
            (self._schema.tables[0],),
        )
        columns = ", ".join(name for (name,) in rows)
        return [(there.format(columns=columns), here.format(columns=columns)) for there, here in self._schema.equal]


def _less(these: list[tuple[Any, ...]], those: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list((Counter(these) - Counter(those)).elements())


def _short(rows: list[tuple[Any, ...]]) -> str:
    return ", ".join(str(row)[:200] for row in rows[:5]) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
