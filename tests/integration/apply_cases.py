"""Pieces by hand, and a hub to apply them to: what the tests of the PostgreSQL target share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from tests.support.checked import PIPELINE, SCHEMA, Ends
from towline.breaker import Breaker, Limits
from towline.change import DELETE, INSERT, UPDATE, Chunk, Format, Piece, Relation, RowSet, Transaction, Visibility
from towline.frame import Frame
from towline.source import Identity
from towline.target.postgres import control, setup
from towline.target.postgres.staging import Path
from towline.target.postgres.writer import PostgresTarget
from towline_transforms.route import Route, RouteSpec
from towline_transforms.schema import TableName

START = 0x1000
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_SCHEMAS = (
    "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')"
)
Values = dict[str, str | None]


@dataclass
class Hub:
    """A database that is source and target at once: schema ``src`` is described, never read; schema ``hub`` is
    written.
    """

    dsn: str
    form: Format
    path: Path | None = None
    direct: bool = True
    limits: Limits | None = None
    routes: tuple[Route, ...] = ()
    relations: dict[str, Relation] = field(default_factory=dict)
    reread_keys: list[list[bytes]] = field(default_factory=list)
    source_rows: dict[str, list[Values]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ends = Ends(self.dsn, self.dsn)
        self.sql = self.ends.target
        self._encoded: dict[tuple[str, str | None], bytes | None] = {}
        self.targets: list[PostgresTarget] = []

    def set_up(self, script: str, *specs: RouteSpec) -> None:
        """Make the tables (in a database without others) and the control tables, and check the routes."""
        for (schema,) in self.rows(_SCHEMAS):
            self.sql.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        self.sql.execute(script.encode())
        self.routes = self.ends.apply(*specs)
        identity = Identity("1", 1, "src", 180000)
        setup.initialise(
            self.sql, schema=SCHEMA, pipeline=PIPELINE, position=START, identity=identity, slot="s", plugin="pgoutput"
        )
        for route in self.routes:
            wanted = {name for each in self.routes if each.source.name == route.source.name for name in each.columns}
            columns = tuple(column for column in route.source.columns if column.name in wanted)
            self.relations[route.source.name.name] = Relation(route.source, columns, self.form)

    def target(self) -> PostgresTarget:
        """A target that has been opened."""
        target = self.closed_target()
        assert target.acquire(5)
        target.open()
        return target

    def closed_target(self) -> PostgresTarget:
        """A target that has not."""
        target = PostgresTarget(
            self.dsn,
            pipeline=PIPELINE,
            schema=SCHEMA,
            routes=self.routes,
            relations=tuple(self.relations.values()),
            path=self.path,
            direct=self.direct,
            breaker=Breaker(self.limits),
        )
        self.targets.append(target)
        return target

    def close(self) -> None:
        """End all sessions."""
        for target in self.targets:
            target.close()
        self.ends.close()

    def encode(self, sql_type: str, text: str | None) -> bytes | None:
        """A value, given as its text form, in the relations' form."""
        if text is None or self.form is Format.TEXT:
            return None if text is None else text.encode()
        key = sql_type, text
        if key not in self._encoded:
            cursor = self.sql.cursor(binary=True)
            cursor.execute(f"SELECT %s::text::{sql_type}".encode(), (text,))
            assert cursor.pgresult is not None
            self._encoded[key] = cursor.pgresult.get_value(0, 0)
        return self._encoded[key]

    def row(self, relation: Relation, values: Values) -> list[bytes | None]:
        """The values of a row of the relation; those not given are NULL."""
        unknown = values.keys() - {column.name for column in relation.columns}
        assert not unknown, unknown
        return [self.encode(column.type.sql, values.get(column.name)) for column in relation.columns]

    def batch(self) -> Batch:
        """A piece to be filled."""
        return Batch(self)

    def chunk(self, table: str, rows: Sequence[Values], high: int = START) -> Chunk:
        """Rows read from the source."""
        relation = self.relations[table]
        frame = Frame.of_values([self.row(relation, values) for values in rows], len(relation.columns))
        return Chunk(relation, frame, None, Visibility(1, 1), high, WHEN)

    def reread(self, relation: Relation, keys: Frame) -> Chunk:
        """Serves ``source_rows`` of the relation, and notes the keys asked for."""
        wanted = keys.keys(range(keys.width))
        self.reread_keys.append(wanted)
        chunk = self.chunk(relation.name.name, self.source_rows.get(relation.name.name, []))
        found = chunk.rows.keys(relation.key) if len(chunk.rows) else []
        rows = chunk.rows.take(np.array([row for row, key in enumerate(found) if key in wanted], dtype=np.int64))
        return Chunk(relation, rows, None, chunk.visibility, chunk.high, chunk.read_at)

    def apply(self, *batches: Batch | Piece, target: PostgresTarget | None = None, at: int | None = None) -> Any:
        """Apply pieces in one transaction; returns what was committed."""
        target = target or (self.targets[0] if self.targets else self.target())
        active = {route.name for route in self.routes}
        target.begin()
        for batch in batches:
            target.apply(batch.piece() if isinstance(batch, Batch) else batch, active, self.reread)
        return target.commit(at or START, WHEN)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.sql.execute(query.encode()).fetchall()

    def ledger(self) -> dict[str, tuple[int, ...]]:
        """By route: seen, upserted, deleted, superseded, filtered; every row of it balances."""
        found: dict[str, tuple[int, ...]] = {}
        for row in control.read_ledger(self.sql, SCHEMA, PIPELINE):
            counts = row.counts
            assert counts.balanced
            figures = (counts.seen, counts.upserted, counts.deleted, counts.superseded, counts.filtered)
            old = found.get(row.route, (0,) * 5)
            found[row.route] = tuple(a + b for a, b in zip(old, figures, strict=True))
        return found


class Batch:
    """Changes, in order; each call is one, by the source table's name. A call of `commit` begins another
    transaction.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._order = 0
        self._changes: dict[str, list[tuple[int, int, list[bytes | None], int, int, int | None]]] = {}
        self._transactions = [Transaction(700, START, WHEN, 0)]
        self._truncated: list[Relation] = []

    def insert(self, table: str, **values: str | None) -> Batch:
        """A new row."""
        return self._add(table, INSERT, values)

    def update(self, table: str, missing: str = "", unknown: str = "", **values: str | None) -> Batch:
        """A new version; ``missing`` and ``unknown`` name columns."""
        return self._add(table, UPDATE, values, missing, unknown)

    def delete(self, table: str, **key: str | None) -> Batch:
        """The end of a row."""
        return self._add(table, DELETE, key)

    def rekey(self, table: str, old: Values, missing: str = "", **values: str | None) -> Batch:
        """A new version with another key."""
        self._add(table, DELETE, old)
        self._order -= 1
        place = len(self._changes[table]) - 1
        return self._add(table, UPDATE, values, missing, moved=place if missing else None)

    def truncate(self, table: str) -> Batch:
        """Before everything else of the batch."""
        self._truncated.append(self._hub.relations[table])
        return self

    def commit(self) -> Batch:
        """What follows is of another transaction."""
        last = self._transactions[-1]
        self._transactions.append(Transaction(last.xid + 1, last.lsn + 0x100, WHEN, self._order))
        return self

    def piece(self, end: int | None = START) -> Piece:
        """All of it."""
        rowsets = []
        for table, changes in self._changes.items():
            relation = self._hub.relations[table]
            order, ops, rows, missing, unknown, moved = zip(*changes, strict=True)
            rowsets.append(
                RowSet(
                    relation,
                    Frame.of_values(rows, len(relation.columns)),
                    np.array(ops, dtype=np.uint8),
                    np.array(order, dtype=np.int64),
                    {place: mask for place, mask in enumerate(missing) if mask},
                    {place: mask for place, mask in enumerate(unknown) if mask},
                    {place: old for place, old in enumerate(moved) if old is not None},
                )
            )
        return Piece(tuple(rowsets), tuple(self._transactions), end, tuple(self._truncated))

    def _add(
        self, table: str, op: int, values: Values, missing: str = "", unknown: str = "", moved: int | None = None
    ) -> Batch:
        relation = self._hub.relations[table]
        masks = [relation.places(set(names.split())) for names in (missing, unknown)]
        change = (self._order, op, self._hub.row(relation, values), masks[0], masks[1], moved)
        self._changes.setdefault(table, []).append(change)
        self._order += 1
        return self


def name(text: str) -> TableName:
    """``schema.table``."""
    schema, _, table = text.partition(".")
    return TableName(schema, table)


def count_of(connection: psycopg.Connection[Any], table: str) -> int:
    """How many rows a table has."""
    row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])
