"""Queries on the present state of a PostgreSQL source: see `towline.source.Tables`.

Rows are read by COPY in a REPEATABLE READ transaction that begins with a look at its own snapshot and at the log's
position. Their values have the very form that the stream has: the type's binary form where the relation travels
as binary, else the text of its output function (a cast to text differs for bool, char(n), inet and others).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import psycopg
from psycopg import sql
from psycopg.sql import Composable

from towline.change import Chunk, Cursor, Format, Relation, Visibility
from towline.errors import NotSetUp, SourceQueryFailed, SourceTableChanged
from towline.frame import Frame
from towline.postgres import catalog, line, session, statements
from towline.source import Identity, KeyCount, LargeTransactions, SlotState
from towline.source.postgres import identity, key_count, look, published, rows
from towline.source.postgres.high import High, Look
from towline.source.postgres.key_order import EQUAL, KeyOrder, base_type, column_sql, type_sql
from towline_transforms.schema import Catalog, Column, TableName, TypeKind

_SQL = statements.load("towline.source.postgres", "tables.sql")

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: Beyond this a chunk ends early, so that wide rows do not fill the memory.
MAX_CHUNK_BYTES = 32 << 20

#: Keys in one statement of `fetch`; fewer where each is a parameter of its own.
_FETCH_KEYS = 5000
_FETCH_PARAMETERS = 2000

#: Types whose binary form is their text: text, varchar, char(n), json.
_TEXT_OIDS = frozenset({25, 1043, 1042, 114})
_TEXT_ARRAY_OID = 1009

#: The version that has pg_stat_replication_slots.
COUNTED_SINCE = 140000

_SECONDS_TO_CLOSE = 2.0
#: Between two looks whether a walsender has ended (seconds).
_LOOK_AGAIN = 0.05


class PostgresTables:
    """One session with the source. Calls of several threads wait for each other; `close` ends one under way.

    ``max_chunk_bytes``: where `chunk` stops before its limit of rows.
    """

    def __init__(self, dsn: str, *, slot: str, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        """Raises SourceUnavailable, SourceRefused."""
        self._slot = slot
        self._max_chunk_bytes = max_chunk_bytes
        self._lock = threading.Lock()
        self._orders: dict[tuple[TableName, tuple[str, ...]], KeyOrder] = {}
        self._connection = session.connect(dsn, application_name=f"towline {slot}", side="source")
        self._high = High(self._flushed, self._writer_delay)

    def at_work(self, pid: int, started: int) -> bool:
        """See the contract."""
        with self._session() as connection:
            row = connection.execute(_SQL["at_work"], {"pid": pid, "started": started}).fetchone()
        return row is not None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """See the contract."""
        with line.within(self._connection, seconds):
            yield

    # ---- The server ----------------------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """Which server and database this is."""
        with self._session() as connection:
            return identity.read(connection)

    def slot(self) -> SlotState:
        """The slot as it is now."""
        with self._session() as connection:
            row = connection.execute(_SQL["slot"], {"slot": self._slot}).fetchone()
        return SlotState(False) if row is None else SlotState(True, *row)

    def large_transactions(self) -> LargeTransactions | None:
        """What became of those at the slot; None where the server does not count them (before 14), or has no slot."""
        with self._session() as connection:
            if connection.info.server_version < COUNTED_SINCE:
                return None
            row = connection.execute(_SQL["large"], {"slot": self._slot}).fetchone()
        return None if row is None else LargeTransactions(*row)

    def end_walsender(self, application_name: str, timeout: float = 5.0) -> bool:
        """End the stream of that name from the slot, and wait until the slot is free. False when there is none to end.

        A daemon whose line was cut without the server's noticing leaves its walsender behind, and that keeps the slot
        until ``wal_sender_timeout``. Only for who knows, by the pipeline's lock, that the name's owner is no more.
        """
        deadline = time.monotonic() + timeout
        ended = False
        parameters = {"slot": self._slot, "name": application_name}
        with self._session() as connection:
            try:
                while connection.execute(_SQL["end_walsender"], parameters).fetchall():
                    ended = True
                    if time.monotonic() > deadline:
                        break
                    time.sleep(_LOOK_AGAIN)
            except psycopg.errors.InsufficientPrivilege:  # then it has to be waited for
                return False
        return ended

    def position(self) -> int:
        """The end of the log now, as far as it is flushed."""
        with self._session():
            return self._flushed()

    def visibility(self) -> Visibility:
        """A snapshot taken now."""
        with self._session() as connection:
            return _look(connection).visibility

    def horizon(self) -> Visibility:
        """A snapshot taken now, of which ``xmax`` is beyond every transaction that runs.

        The server's own ends at the newest transaction that has ended: newer ones that run are not in it.
        """
        with self._session() as connection:
            seen = _look(connection).visibility
            rows = connection.execute(_SQL["running"]).fetchall()
        newest = max((seen.whole(xid) for (xid,) in rows), default=0)
        return replace(seen, xmax=max(seen.xmax, newest + 1))

    def describe(self, names: Sequence[TableName]) -> Catalog:
        """The tables of those names; see `towline.postgres.catalog.describe`."""
        with self._session() as connection:
            return catalog.describe(connection, names)

    def footprint(self, oids: Sequence[int], publication: str) -> str:
        """See `towline.source.postgres.look.footprint`."""
        with self._session() as connection:
            return look.footprint(connection, oids, publication)

    def publication(self, name: str, relations: Sequence[Relation]) -> tuple[published.Standing, NotSetUp | None]:
        """How a publication has the tables of those relations, and what it lacks for them."""
        with self._session() as connection:
            oids = [relation.table.oid for relation in relations]
            return published.standing(connection, name, oids), published.lacking(connection, name, relations)

    def root_of(self, name: TableName) -> TableName | None:
        """The partitioned table at whose root a partition is; None when that table is none."""
        with self._session() as connection:
            row = connection.execute(_SQL["root"], {"schema": name.schema, "name": name.name}).fetchone()
        return None if row is None else TableName(*row)

    # ---- Rows ----------------------------------------------------------------------------------------------------

    def chunk(self, relation: Relation, after: Cursor | None, limit: int) -> Chunk:
        """Up to ``limit`` rows that follow ``after``, fewer when they are wide."""
        with self._session() as connection:
            order = self._order(relation)
            where = [] if after is None else [order.after(after)]
            statement = sql.SQL("{} LIMIT {}").format(_select(relation, order, where), sql.Literal(limit))
            with _snapshot(connection, relation, order) as look:
                found, cut = rows.copy_out(connection, _copy(statement, connection), self._max_chunk_bytes)
            frame = Frame.of_rows(found, len(relation.columns))
            upto = _last_key(connection, relation, frame) if cut or len(frame) == limit else None
            return Chunk(relation, frame, upto, look.visibility, self._high.of(look), look.at)

    def between(self, relation: Relation, after: Cursor | None, upto: Cursor | None) -> Chunk:
        """All rows after ``after`` and up to and with ``upto``; the chunk's ``upto`` is that bound."""
        with self._session() as connection:
            order = self._order(relation)
            where = [] if after is None else [order.after(after)]
            where += [] if upto is None else [order.upto(upto)]
            statement = _select(relation, order, where)
            with _snapshot(connection, relation, order) as look:
                found, _ = rows.copy_out(connection, _copy(statement, connection))
            frame = Frame.of_rows(found, len(relation.columns))
            return Chunk(relation, frame, upto, look.visibility, self._high.of(look), look.at)

    def fetch(self, relation: Relation, keys: Frame) -> Chunk:
        """The present rows of those keys, in any order."""
        width = len(relation.columns)
        with self._session() as connection:
            order = self._order(relation)
            flat = relation.format is Format.TEXT or all(base_type(c.type).array_oid for c in relation.key_columns)
            step = _FETCH_KEYS if flat else _FETCH_PARAMETERS // keys.width
            frames = []
            with _snapshot(connection, relation, order) as look:
                for start in range(0, len(keys), step):
                    part = Frame.of_rows(
                        [keys.row(row) for row in range(start, min(start + step, len(keys)))], keys.width
                    )
                    frames.append(_fetch(connection, relation, order, part, flat))
            frame = Frame.concat(frames, width) if frames else Frame.empty(width)
            return Chunk(relation, frame, None, look.visibility, self._high.of(look), look.at)

    def count_keys(self, relation: Relation, began: Callable[[Visibility], None]) -> KeyCount:
        """The sum over all keys of the table.

        None while transactions are under way of a standby's primary: it does not tell which of them it sees.
        """
        with self._session() as connection:
            order = self._order(relation)
            with _snapshot(connection, relation, order) as look:
                if not look.exact:
                    return KeyCount(None, look.visibility, look.inserted)
                began(look.visibility)
                found = key_count.count_keys(connection, relation, _from(relation, order))
            return KeyCount(found, look.visibility, self._high.of(look))

    def close(self) -> None:
        """End the connection; a call under way in another thread fails with SourceUnavailable."""
        idle = self._lock.acquire(timeout=0)
        if not idle and not self._connection.closed:
            # libpq may not be called from two threads, but the socket below it may be shut, if it is still there.
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
            idle = self._lock.acquire(timeout=_SECONDS_TO_CLOSE)
        if idle:
            self._connection.close()
            self._lock.release()

    # ---- How -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection]:
        with self._lock, session.translating("source"):
            yield self._connection

    def _flushed(self) -> int:
        row = self._connection.execute(_SQL["flushed"]).fetchone()
        assert row is not None
        position: int = row[0]
        return position

    def _writer_delay(self) -> float:
        row = self._connection.execute(_SQL["writer_delay"]).fetchone()
        assert row is not None
        return float(row[0]) / 1000

    def _order(self, relation: Relation) -> KeyOrder:
        key = relation.name, relation.table.identity
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = KeyOrder.read(self._connection, relation)
        return order


def _look(connection: psycopg.Connection) -> Look:
    row = connection.execute(_SQL["look"]).fetchone()
    assert row is not None
    snapshot, in_recovery, position, flushed, at = row
    xmin, xmax, in_progress = snapshot.split(":")
    if in_recovery:
        # A standby does not list the transactions in progress: only what is below all of them is surely visible.
        seen = Visibility(int(xmin), int(xmin))
        return Look(seen, position, flushed, at, exact=xmin == xmax, replayed=True)
    listed = frozenset(map(int, in_progress.split(","))) if in_progress else frozenset()
    return Look(Visibility(int(xmin), int(xmax), listed), position, flushed, at)


@contextmanager
def _snapshot(connection: psycopg.Connection, relation: Relation, order: KeyOrder) -> Iterator[Look]:
    """A transaction that sees one snapshot throughout, of a table that is stored where it was when that was taken.

    To a snapshot of before, a table that was rewritten (by ALTER TABLE) or replaced is empty, without an error. Who
    reads waits for that to end, with the snapshot in hand: then it is time for another one.
    """
    table = _from(relation, order).as_bytes(connection).replace(b"%", b"%%")
    as_seen = _SQL["as_seen"].replace(b"{table}", table)
    names = {
        "schema": relation.name.schema,
        "name": relation.name.name,
        "columns": [column.name for column in relation.columns],
        "types": [column.type.oid for column in relation.columns],
    }
    while True:
        connection.execute(_BEGIN)
        try:
            look = _look(connection)
            row = connection.execute(as_seen, names).fetchone()  # it has the table's lock from here on
            if row is not None and row[0]:
                if row[1]:
                    raise SourceTableChanged(f"{relation.name} has other columns now: {', '.join(row[1])}")
                yield look
                return
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")  # nothing was written; it may be in error


def _text(column: Column) -> Composable:
    """The column's text as its output function prints it, as a value of type text."""
    value = column_sql(column.name)
    under = base_type(column.type)
    if under.oid in _TEXT_OIDS or under.kind is TypeKind.ENUM:
        return value  # what is sent in binary form is the text
    # num_nonnulls, since a composite whose fields are all null IS NULL without being so.
    return sql.SQL("CASE WHEN pg_catalog.num_nonnulls({0}) = 1 THEN pg_catalog.concat({0}) END").format(value)


def _columns(relation: Relation) -> Composable:
    if relation.format is Format.BINARY:
        return sql.SQL(", ").join(column_sql(column.name) for column in relation.columns)
    return sql.SQL(", ").join(_text(column) for column in relation.columns)


def _from(relation: Relation, order: KeyOrder) -> Composable:
    """The table without tables that inherit from it (which are tables of their own), but with its partitions."""
    only = sql.SQL("") if order.partitioned else sql.SQL("ONLY ")
    return sql.SQL("{}{} AS t").format(only, sql.Identifier(relation.name.schema, relation.name.name))


def _select(relation: Relation, order: KeyOrder, where: Sequence[Composable]) -> Composable:
    return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
        _columns(relation), _from(relation, order), sql.SQL(" AND ").join([sql.SQL("true"), *where]), order.order_by
    )


def _copy(statement: Composable, connection: psycopg.Connection) -> bytes:
    return sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(statement).as_bytes(connection)


def _last_key(connection: psycopg.Connection, relation: Relation, frame: Frame) -> Cursor:
    """The text form of the last row's key."""
    last = Frame.of_rows([frame.row(len(frame) - 1)], frame.width)  # alone, so that only it is taken apart
    values = [last.value(0, place) for place in relation.key]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise SourceQueryFailed(f"table {relation.name} has NULL in a column of its identity")
    if relation.format is Format.BINARY:
        types = [base_type(column.type).oid for column in relation.key_columns]
        outputs = sql.SQL(", ").join(sql.SQL(f"pg_catalog.concat(${n + 1})") for n in range(len(types)))
        (texts,) = rows.query(connection, sql.SQL("SELECT {}").format(outputs).as_bytes(connection), known, types)
        known = [text for text in texts if text is not None]
    try:
        return tuple(value.decode() for value in known)
    except UnicodeDecodeError:
        raise SourceQueryFailed(f"table {relation.name} has a key that is not valid in UTF-8") from None


def _fetch(connection: psycopg.Connection, relation: Relation, order: KeyOrder, keys: Frame, flat: bool) -> Frame:
    """One statement's worth of `PostgresTables.fetch`."""
    under = [base_type(column.type) for column in relation.key_columns]
    names = [sql.Identifier(f"k{place}") for place in range(keys.width)]
    places = [sql.SQL(f"${n + 1}") for n in range(keys.width)]
    if flat:
        text = relation.format is Format.TEXT
        types = [_TEXT_ARRAY_OID if text else type_.array_oid for type_ in under]
        values = [_array(keys, place, 25 if text else type_.oid) for place, type_ in enumerate(under)]
        source = sql.SQL("unnest({})").format(sql.SQL(", ").join(places))
    else:
        # There is no array of arrays, so that the values come one by one.
        types = [type_.oid for type_ in under] * len(keys)
        values = [value or b"" for row in range(len(keys)) for value in (keys.value(row, n) for n in range(keys.width))]
        lists = [
            sql.SQL("({})").format(
                sql.SQL(", ").join(sql.SQL(f"${row * keys.width + n + 1}") for n in range(keys.width))
            )
            for row in range(len(keys))
        ]
        source = sql.SQL("(VALUES {})").format(sql.SQL(", ").join(lists))
    given = [sql.SQL("k.{}::{}").format(name, type_sql(type_)) for name, type_ in zip(names, under, strict=True)]
    match = sql.SQL(" AND ").join(
        column.compare(EQUAL, value) for column, value in zip(order.columns, given, strict=True)
    )
    statement = sql.SQL("SELECT {} FROM {} WHERE EXISTS (SELECT FROM {} AS k({}) WHERE {})").format(
        _columns(relation), _from(relation, order), source, sql.SQL(", ").join(names), match
    )
    found = rows.query(connection, statement.as_bytes(connection), values, types)
    return Frame.of_values(found, len(relation.columns))


def _array(keys: Frame, column: int, element_oid: int) -> bytes:
    """One column of the keys as an array in binary form: its elements are framed as they are in rows."""
    header = b"".join(number.to_bytes(4, "big") for number in (1, 0, element_oid, len(keys), 1))
    return header + b"".join(keys.keys([column]))
