"""The target's side of a comparison: source rows are staged, run through their route, and held against its table.

A session of its own, beside the daemon's: every look is one short transaction that takes no lock that a writer would
wait for. What outlives a look are temporary tables of keys; only keys and the rows of one chunk are ever held.

Which statements: `towline_transforms.dialect.compare`. What to make of the answers: `towline.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import psycopg
from psycopg import sql

from towline.change import Chunk, Format, Relation
from towline.errors import NotSetUp, TowlineError
from towline.frame import COPY_HEADER, Frame
from towline.postgres.session import connect, translating
from towline.running_sums import Answer, Running
from towline.target import Checkpoint, ChunkLoad, Noted, RouteState
from towline.target.postgres import control
from towline.target.postgres.apply import Applier
from towline.target.postgres.source_text import framed_keys
from towline_transforms.dialect import compare as dialect
from towline_transforms.dialect.compare import Comparison
from towline_transforms.dialect.postgres import marks_with_time
from towline_transforms.dialect.stage import StageColumn, stage_columns
from towline_transforms.identifier import quote, quote_list
from towline_transforms.route import Route

#: Keys are looked up by the target's index: to hash or to merge, the planner would read the whole table for each chunk.
_BY_INDEX = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"

_ASIDE = "SELECT DISTINCT key FROM {} WHERE pipeline = %s AND route = %s AND state = 'open'"
_ASK = """
INSERT INTO {}.recount (pipeline, route, anew) VALUES (%s, %s, %s)
ON CONFLICT (pipeline, route) DO UPDATE SET anew = EXCLUDED.anew, requested_at = now(),
    position = NULL, keys = NULL, key_sum = NULL, total_keys = NULL, total_sum = NULL
"""
_ASKED = "SELECT FROM {}.recount WHERE pipeline = %s AND route = %s AND position IS NULL"
_WITHDRAW = "DELETE FROM {}.recount WHERE pipeline = %s AND route = %s"
_LOCK = "SELECT FROM {}.checkpoint WHERE pipeline = %s FOR UPDATE"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A staged row whose counterpart is not what the route makes of it.

    ``row``: its place in the frame. ``version``: of the target's row, changes with every write to it; None when it is
    missing. ``key``: the target's key as text. ``columns``: those that differ.
    """

    row: int
    version: str | None
    key: tuple[str | None, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extra:
    """A key that the target has and that no source row produced. ``row`` numbers it among the extras."""

    row: int
    key: tuple[str | None, ...]


class TargetComparison:
    """Looks at one route's table. Made by `CompareSession.route`."""

    def __init__(
        self, session: CompareSession, route: Route, relation: Relation, columns: tuple[StageColumn, ...]
    ) -> None:
        self.route = route
        self.relation = relation
        self._session = session
        self._connection = session.connection
        self._sql = comparison(route, columns, session.pipeline)

    def remember(self) -> None:
        """Keep the keys that the target has now; a later row is no candidate for an extra one."""
        with translating("target"):
            self._connection.execute(self._sql.remember().encode())
            self._connection.execute(self._sql.prepare_seen().encode())

    def look(self, rows: Frame, *, note: bool = False) -> list[Mismatch]:
        """Compare source rows with the target as it is now. ``note``: remember which keys they produced."""
        with self._staged(rows) as cursor:
            cursor.execute(_BY_INDEX)
            cursor.execute(self._sql.look(note=note).encode())
            found = cursor.fetchall()
        return [Mismatch(row, version, tuple(key), tuple(columns or ())) for row, version, key, columns in found]

    def leftovers(self) -> int:
        """Find the keys that no row produced; returns how many there are."""
        with translating("target"):
            self._connection.execute(f"ANALYZE {dialect.BEFORE}".encode())
            self._connection.execute(f"ANALYZE {dialect.SEEN}".encode())
            return self._connection.execute(self._sql.leftovers().encode()).rowcount

    def withdraw(self, rows: Frame) -> None:
        """Take from the leftovers what these source rows produce."""
        with self._staged(rows) as cursor:
            cursor.execute(self._sql.withdraw().encode())

    def drop_changed(self, after: int, upto: int) -> None:
        """Take from the leftovers numbered above ``after``, up to ``upto``, what is gone or was written to since."""
        with translating("target"), self._connection.transaction():
            self._connection.execute(_BY_INDEX)
            self._connection.execute(self._sql.drop_changed(after, upto).encode())

    def page(self, after: int, limit: int) -> list[Extra]:
        """Leftovers with a number above ``after``."""
        with translating("target"):
            rows = self._connection.execute(self._sql.page(after, limit).encode()).fetchall()
        return [Extra(row, tuple(key)) for row, key in rows]

    def quarantined(self) -> frozenset[bytes]:
        """The source keys, framed, of which changes are set aside now and wait for a person."""
        with translating("target"):
            return self._session.quarantined(self.route, self.relation)

    def source_keys(self, after: int, limit: int) -> Frame:
        """The same page as source keys (for identity routes, whose key is the source's), in the relation's format."""
        relation = self.relation
        binary = relation.format is Format.BINARY
        types = {column.name: column.wire for column in stage_columns(relation.key_columns, binary=binary)}
        statement = self._sql.source_keys(types if binary else dict.fromkeys(types), after, limit).encode()
        with translating("target"), self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            data = b"".join(bytes(block) for block in copy)
        return _rows_of(data, len(types))

    def forget(self, rows: Sequence[int]) -> None:
        """Take numbered leftovers away."""
        with translating("target"):
            self._connection.execute(self._sql.forget(rows).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A transaction between two of the daemon's: both begin by locking the checkpoint."""
        with translating("target"), self._connection.transaction():
            self._session.lock_checkpoint()
            yield

    def write(self, chunk: Chunk) -> None:
        """Write what the route makes of source rows, inside `locked`; RowRefused when of none."""
        applier = self._session.applier
        applier.begin()
        try:
            with translating("target"), self._connection.transaction():
                self._connection.execute("SET CONSTRAINTS ALL DEFERRED")
                applier.load(ChunkLoad(self.route, chunk, RouteState(self.route.name, "streaming")))
                applier.executor.sync()
                self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except TowlineError:
            applier.rolled_back()
            raise

    def remove(self, rows: Sequence[int]) -> int:
        """Delete (or mark) numbered leftovers, inside `locked`, unless they were written to; returns how many."""
        with translating("target"):
            return self._connection.execute(self._sql.remove(rows).encode()).rowcount

    @property
    def invertible(self) -> bool:
        """Whether a target key can be looked up at the source: it is the source's identity, as it is."""
        return self.route.identity and set(self.route.key) == set(self.route.source.identity)

    @contextmanager
    def _staged(self, rows: Frame) -> Iterator[psycopg.Cursor[Any]]:
        with translating("target"), self._connection.transaction(), self._connection.cursor() as cursor:
            stage(cursor, self.relation, rows)
            yield cursor


def stage(cursor: psycopg.Cursor[Any], relation: Relation, rows: Frame) -> None:
    """Fill the stage, which the transaction found empty, with numbered rows."""
    numbered = rows.append_column([number.to_bytes(8, "big") for number in range(len(rows))])
    columns = [*(column.name for column in relation.columns), "_row"]
    with cursor.copy(f"COPY {dialect.STAGE} ({quote_list(columns)}) FROM STDIN (FORMAT binary)".encode()) as copy:
        copy.write(numbered.copy_data())


class CompareSession:
    """A connection for comparisons with one pipeline's target. Raises as `towline.postgres.session.connect` does."""

    def __init__(self, dsn: str, *, schema: str, pipeline: str, routes: Sequence[tuple[Route, Relation]]) -> None:
        self._connection = connect(dsn, application_name=f"towline {pipeline} verify", side="target", search_path=None)
        self._schema = schema
        self._pipeline = pipeline
        #: Writes what a repair mends. One for the session: it keeps temporary tables and prepared statements there.
        self.applier = Applier(
            self._connection,
            pipeline=pipeline,
            routes=[route for route, _ in routes],
            relations=list({relation.name: relation for _, relation in routes}.values()),
            direct=False,
        )

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The session, between comparisons."""
        return self._connection

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self._pipeline

    @property
    def schema(self) -> str:
        """The schema of the control tables."""
        return self._schema

    def lock_checkpoint(self) -> None:
        """Hold the pipeline's checkpoint until the transaction ends: the daemon waits with its next batch."""
        statement = sql.SQL(_LOCK).format(sql.Identifier(self._schema))
        self._connection.execute(statement, (self._pipeline,))

    def checkpoint(self) -> Checkpoint:
        """The pipeline's checkpoint. Raises NotSetUp when there is none."""
        with translating("target"):
            found = control.read_checkpoint(self._connection, self._schema, self._pipeline)
        if found is None:
            raise NotSetUp(f"the target has no checkpoint of the pipeline {self._pipeline}")
        return found

    def states(self) -> dict[str, RouteState]:
        """The states of the pipeline's routes."""
        with translating("target"):
            return control.read_states(self._connection, self._schema, self._pipeline)

    def quarantined(self, route: Route, relation: Relation) -> frozenset[bytes]:
        """The source keys of a route, framed, that have open entries."""
        statement = sql.SQL(_ASIDE).format(sql.Identifier(self._schema, "quarantine"))
        keys = [key for (key,) in self._connection.execute(statement, (self._pipeline, route.name))]
        return frozenset(framed_keys(self._connection, relation, keys)) if keys else frozenset()

    # ---- the ledger's sums -----------------------------------------------------------------------------------

    def noted(self, since: Noted | None = None) -> Noted:
        """See `towline.target.Ledger`. Raises NotSetUp when there is no checkpoint."""
        with translating("target"):
            found = control.read_noted(self._connection, self._schema, self._pipeline, since)
        if found is None:
            raise NotSetUp(f"the target has no checkpoint of the pipeline {self._pipeline}")
        return found

    def running(self, route: str) -> Running | None:
        """A route's running sum as of the checkpoint; None for a route that is not known."""
        with translating("target"):
            return control.read_running(self._connection, self._schema, self._pipeline).get(route)

    def ask(self, route: str, *, anew: bool) -> None:
        """Ask the daemon to count a route's source keys."""
        with translating("target"):
            self._connection.execute(self._in_schema(_ASK), (self._pipeline, route, anew))

    def answer(self, route: str) -> Answer | None:
        """What the daemon found, once it has."""
        with translating("target"):
            return control.read_answer(self._connection, self._schema, self._pipeline, route)

    def asked(self, route: str) -> bool:
        """Whether the daemon has still to do what it was asked for."""
        with translating("target"):
            return bool(self._connection.execute(self._in_schema(_ASKED), (self._pipeline, route)).fetchall())

    def withdraw(self, route: str) -> None:
        """Take back what was asked for, answered or not."""
        with translating("target"):
            self._connection.execute(self._in_schema(_WITHDRAW), (self._pipeline, route))

    def _in_schema(self, statement: LiteralString) -> sql.Composed:
        return sql.SQL(statement).format(sql.Identifier(self._schema))

    @contextmanager
    def route(self, route: Route, relation: Relation) -> Iterator[TargetComparison]:
        """A comparison for one route; its temporary tables go with it."""
        columns = stage_columns(relation.columns, binary=relation.format is Format.BINARY, route=route)
        self.drop_tables()
        with translating("target"):
            self._connection.execute(dialect.create_stage(columns).encode())
        try:
            yield TargetComparison(self, route, relation, columns)
        finally:
            if not self._connection.closed:
                self.drop_tables()

    def drop_tables(self) -> None:
        """Drop the temporary tables of a comparison."""
        with translating("target"):
            self._connection.execute(f"DROP TABLE IF EXISTS {', '.join(dialect.TABLES)}".encode())

    def close(self) -> None:
        """End the session."""
        self._connection.close()


def comparison(route: Route, columns: Sequence[StageColumn], pipeline: str) -> Comparison:
    """The statements for a route over a stage of those columns."""
    pseudo = dialect.pseudo_values(route, pipeline, "epoch", "0/0")
    return Comparison(route, dialect.produced(route, columns, pseudo), _alive(route))


def _alive(route: Route) -> str:
    """A condition on a target row ``x``: it is not marked as deleted."""
    if route.mark_column is None:
        return "TRUE"
    mark = f"x.{quote(route.mark_column)}"
    return f"{mark} IS NULL" if marks_with_time(route) else f"{mark} IS NOT TRUE"


def _rows_of(data: bytes, width: int) -> Frame:
    """The rows of a COPY BINARY stream without OIDs."""
    at = len(COPY_HEADER)
    starts = [0]
    rows = []
    while data[at : at + 2] != b"\xff\xff":
        begin = at
        at += 2
        for _ in range(width):
            length = int.from_bytes(data[at : at + 4], "big", signed=True)
            at += 4 + max(length, 0)
        rows.append(data[begin:at])
        starts.append(starts[-1] + at - begin)
    return Frame(b"".join(rows), np.array(starts, dtype=np.int64), width)
