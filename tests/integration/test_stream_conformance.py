"""One suite, every way of reading PostgreSQL's log: both output plugins, an old server and a new one, each
transaction sent when it has committed, or change by change while it is under way, and a backlog read through SQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.catch_up import Bounds, CatchUp
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, Relation, RowSet
from towline.errors import (
    NotSetUp,
    SlotInUse,
    SlotMissing,
    SlotUnusable,
    SourceRefused,
    SourceTableChanged,
    SourceTruncated,
    SourceUnavailable,
    TowlineError,
)
from towline.position import parse_lsn
from towline.postgres import session
from towline.postgres.catalog import describe
from towline.source.postgres.backlog import Backlog
from towline.source.postgres.catch_up_stream import CatchUpStream
from towline.source.postgres.spool import Spool
from towline.source.postgres.stream import PostgresStream
from towline_transforms.schema import TableName

WAYS = [
    ("pg15", "pgoutput"),
    ("pg15", "wal2json"),
    ("pg18", "pgoutput"),
    ("pg18", "pgoutput", "streamed"),
    ("pg15", "pgoutput", "catching-up"),
    ("pg15", "wal2json", "catching-up"),
    ("pg18", "pgoutput", "catching-up"),
]
#: Every backlog is read through SQL, to its end.
EAGER = Bounds(enter=1, leave=1, confirm=1)
AnyStream = PostgresStream | CatchUpStream
I, U, D = INSERT, UPDATE, DELETE  # noqa: E741


@dataclass
class Settings:
    """What both ways of reading are told. ``streamed``: as in a backlog."""

    dsn: str
    slot: str
    publication: str
    plugin: str
    relations: Sequence[Relation]
    max_rows: int
    max_bytes: int
    resolve: Callable[[TableName], TableName | None] | None
    streamed: bool = False

    def stream(self, start: int, durable: int, spool: Spool | None = None) -> PostgresStream:
        """The replication stream."""
        return PostgresStream(
            self.dsn,
            slot=self.slot,
            publication=self.publication,
            plugin=self.plugin,
            relations=self.relations,
            start=start,
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            resolve=self.resolve,
            spool=spool,
            acknowledged=durable,
            publication_checked=start != durable,
        )

    def backlog(self, start: int, durable: int, decision: CatchUp) -> Backlog:
        """The log up to near its end."""
        return Backlog(
            self.dsn,
            slot=self.slot,
            publication=self.publication,
            plugin=self.plugin,
            relations=self.relations,
            start=start,
            acknowledged=durable,
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            resolve=self.resolve,
            decision=decision,
            partitioned=any(relation.table.partitions for relation in self.relations),
            streamed=self.streamed,
        )


@dataclass
class Source:
    """A database with a slot, and what a test does with it."""

    dsn: str
    plugin: str
    connection: psycopg.Connection
    slot: str
    way: str = ""
    streams: list[AnyStream] = field(default_factory=list)
    behind: bool = False

    def run(self, *statements: str) -> None:
        """Each statement in a transaction of its own."""
        for statement in statements:
            self.connection.execute(statement.encode())

    def value(self, query: str) -> object:
        """The one value that a query returns."""
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def set_up(self, ddl: str, slot: str | None = None) -> None:
        """Make tables, then publication and slot."""
        self.run(ddl, "CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root)")
        self.make_slot(slot or self.slot)

    def make_slot(self, slot: str, plugin: str = "") -> None:
        """A slot that sees what is committed from now on."""
        self.connection.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin or self.plugin))

    def relations(self, *names: str, format_: Format = Format.TEXT) -> list[Relation]:
        """All columns of tables, by ``schema.name``; as of now, where reading is begun anew in between."""
        described = self.position() if self.way == "catching-up" else 0
        tables = [TableName(*name.split(".", 1)) for name in names]
        with session.connect(self.dsn, application_name="test", side="source") as connection:
            catalog = describe(connection, tables)
        found = [catalog.tables[name] for name in tables]
        return [Relation(table, table.columns, format_, described=described) for table in found]

    def open(
        self,
        relations: Sequence[Relation],
        start: int = 0,
        *,
        slot: str = "",
        dsn: str = "",
        plugin: str = "",
        publication: str = "pub",
        max_rows: int = 10_000,
        max_bytes: int = 1 << 22,
        resolve: Callable[[TableName], TableName | None] | None = None,
    ) -> AnyStream:
        """Start reading; closed at the end of the test."""
        names = dsn or self.dsn, slot or self.slot, publication, plugin or self.plugin
        of = Settings(*names, relations, max_rows, max_bytes, resolve)
        stream: AnyStream
        if self.way == "catching-up":
            decision = CatchUp(EAGER)
            stream = CatchUpStream(
                max(start, self.confirmed()),
                stream=of.stream,
                backlog=lambda position, durable: of.backlog(position, durable, decision),
                decision=decision,
                switches=self,
            )
        else:
            stream = of.stream(start, start, Spool(Path("/var/tmp"), 1 << 30) if self.way == "streamed" else None)
        self.streams.append(stream)
        return stream

    def catching_up(self, position: int, behind: int) -> None:
        """See Switches."""
        self.behind = True

    def refused(self, position: int, error: TowlineError) -> None:
        """See Switches."""

    def streaming(self, position: int, caught_up: bool) -> None:
        """See Switches."""
        self.behind = False

    def confirmed(self) -> int:
        """Up to where the slot is confirmed."""
        query = f"SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        return parse_lsn(str(self.value(query)))

    def position(self) -> int:
        """The end of the log now."""
        return parse_lsn(str(self.value("SELECT pg_current_wal_insert_lsn()")))

    def await_release(self) -> None:
        """Until no walsender has the slot."""
        until(
            lambda: self.value(f"SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = '{self.slot}'")
        )

    def read(self, stream: AnyStream, timeout: float = 30.0) -> list[Piece]:
        """All pieces up to the end of the log as it is now, through SQL where that is to be tried."""
        position = self.position()
        if isinstance(stream, CatchUpStream):
            stream.sampled(position, position - 1)
        pieces = read_to(stream, position, timeout)
        while self.behind:  # until it streams again, as a daemon does
            pieces += [piece] if (piece := stream.poll(0.1)) is not None else []
        return pieces

    def changes(self, stream: AnyStream) -> list[Change]:
        """All changes up to the end of the log."""
        return flat(self.read(stream))


#: A table's name, the operation, the row's values as text.
Change = tuple[str, int, tuple[str | None, ...]]


def read_to(stream: AnyStream, position: int, timeout: float = 30.0) -> list[Piece]:
    """All pieces up to a position."""
    pieces: list[Piece] = []
    deadline = time.monotonic() + timeout
    while True:
        piece = stream.poll(0.1)
        if piece is not None:
            pieces.append(piece)
        if max(stream.idle_position, pieces[-1].end or 0 if pieces else 0) >= position and piece is None:
            return pieces
        assert time.monotonic() < deadline, "the stream does not get to the end of the log"


def flat(pieces: Sequence[Piece]) -> list[Change]:
    """The changes of pieces in source order; the names of truncated tables come with operation 0."""
    changes: list[Change] = []
    for piece in pieces:
        changes += [(str(relation.name), 0, ()) for relation in piece.truncated]
        changes += [(row.table, row.op, row.values) for row in rows_of([piece])]
    return changes


@dataclass(frozen=True)
class Row:
    """A row of a piece, with all that is said of it; ``order`` are the numbers of the piece and in the piece."""

    table: str
    op: int
    values: tuple[str | None, ...]
    order: tuple[int, int]
    missing: int
    unknown: int
    moved_from: tuple[str | None, ...] | None


def rows_of(pieces: Sequence[Piece]) -> list[Row]:
    """The rows of pieces in source order."""
    found = []
    for number, piece in enumerate(pieces):
        in_piece = []
        for rows in piece.rowsets:
            assert sorted(rows.order.tolist()) == rows.order.tolist()
            for row in range(len(rows)):
                moved = rows.moved.get(row)
                in_piece.append(
                    Row(
                        str(rows.relation.name),
                        int(rows.ops[row]),
                        values(rows, row),
                        (number, int(rows.order[row])),
                        rows.missing.get(row, 0),
                        rows.unknown.get(row, 0),
                        None if moved is None else values(rows, moved),
                    )
                )
        found += sorted(in_piece, key=lambda row: row.order)  # stable: the rows of one change stay as they are
    return found


def values(rows: RowSet, row: int) -> tuple[str | None, ...]:
    """The values of one row, as text."""
    found = [rows.rows.value(row, column) for column in range(rows.rows.width)]
    return tuple(None if value is None else value.decode() for value in found)


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def source(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Source]:
    """An empty database on one of the servers."""
    server, plugin, *way = request.param
    dsn = new_database(request.getfixturevalue(server))
    with psycopg.connect(dsn, autocommit=True) as connection:
        if way == ["streamed"]:  # for the walsenders of this database: every change as soon as it is decoded
            name = sql.Identifier(connection.info.dbname)
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET debug_logical_replication_streaming = immediate").format(name)
            )
        made = Source(dsn, plugin, connection, f"slot_{connection.info.dbname}", *way)
        yield made
        for stream in made.streams:
            stream.close()


T = "CREATE TABLE t (id int PRIMARY KEY, n int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"
BIG = "repeat('x', 9000)"


# ---- Changes --------------------------------------------------------------------------------------------------


def test_inserts_updates_deletes(source: Source) -> None:
    """Every operation comes with the row's values in source order."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"))
    source.run(
        "INSERT INTO t VALUES (1, 10, 'a'), (2, NULL, '')",
        "UPDATE t SET n = 11 WHERE id = 1",
        "BEGIN; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, 5, E'tab\\t\"quote\" \\\\ é €'); COMMIT",
    )
    assert source.changes(stream) == [
        ("public.t", I, ("1", "10", "a")),
        ("public.t", I, ("2", None, "")),
        ("public.t", U, ("1", "11", "a")),
        ("public.t", D, ("2", None, None)),
        ("public.t", I, ("2", "5", 'tab\t"quote" \\ é €')),
    ]


def test_transactions_over_several_tables_keep_their_order(source: Source) -> None:
    """Order numbers go through all tables of a piece, and each belongs to the transaction that made the change."""
    source.set_up("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int)")
    stream = source.open(source.relations("public.a", "public.b"))
    source.run(
        "BEGIN; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); INSERT INTO a VALUES (2); COMMIT",
        "INSERT INTO c VALUES (1)",
        "BEGIN; INSERT INTO b VALUES (2); INSERT INTO c VALUES (2); DELETE FROM a WHERE id = 1; COMMIT",
    )
    pieces = source.read(stream)
    assert flat(pieces) == [
        ("public.a", I, ("1",)),
        ("public.b", I, ("1",)),
        ("public.a", I, ("2",)),
        ("public.b", I, ("2",)),
        ("public.a", D, ("1",)),
    ]
    listed = [transaction for piece in pieces for transaction in piece.transactions]
    assert len(listed) == 2
    for transaction in listed:
        committed = source.value(f"SELECT pg_xact_commit_timestamp('{transaction.xid}'::xid)")
        assert transaction.commit_time == committed


def test_subtransactions_and_aborts(source: Source) -> None:
    """What was rolled back, wholly or to a savepoint, is not there."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"))
    source.run(
        "BEGIN; INSERT INTO t VALUES (1); ROLLBACK",
        "BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; INSERT INTO t VALUES (3); ROLLBACK TO s;"
        " INSERT INTO t VALUES (4); SAVEPOINT s; INSERT INTO t VALUES (5); RELEASE s; COMMIT",
        "BEGIN; INSERT INTO t VALUES (6); PREPARE TRANSACTION 'towline_conformance'",
        "INSERT INTO t VALUES (7)",
        "COMMIT PREPARED 'towline_conformance'",
    )
    assert [row[0] for _, _, row in source.changes(stream)] == ["2", "4", "5", "7", "6"]


def test_key_change(source: Source) -> None:
    """A changed key is a deletion of the old one and an update with the new one, with one order number."""
    source.set_up(T)
    source.run(f"INSERT INTO t VALUES (1, 10, {BIG})")
    stream = source.open(source.relations("public.t"), source.position())
    source.run("UPDATE t SET id = 2, big = 'small'", f"UPDATE t SET big = {BIG}", "UPDATE t SET id = 3")
    rows = rows_of(source.read(stream))
    assert [(row.op, row.values) for row in rows] == [
        (D, ("1", None, None)),
        (U, ("2", "10", "small")),
        (U, ("2", "10", "x" * 9000)),
        (D, ("2", None, None)),
        (U, ("3", "10", None)),
    ]
    assert rows[0].order == rows[1].order < rows[2].order < rows[3].order == rows[4].order
    assert [row.missing for row in rows] == [0, 0, 0, 0, 0b100]
    assert [row.moved_from for row in rows] == [None, None, None, None, ("2", None, None)]


def test_unchanged_toast(source: Source) -> None:
    """A value stored out of line that an update did not touch is missing, not NULL."""
    source.set_up(T)
    source.run(f"INSERT INTO t VALUES (1, 10, {BIG}), (2, 10, NULL)")
    stream = source.open(source.relations("public.t"), source.position())
    source.run("UPDATE t SET n = 11")
    rows = rows_of(source.read(stream))
    assert [(row.values, row.missing, row.moved_from) for row in rows] == [
        (("1", "11", None), 0b100, None),
        (("2", "11", None), 0, None),
    ]


def test_key_stored_out_of_line(source: Source) -> None:
    """A key that was not sent with the new row is taken from the old one."""
    source.set_up("CREATE TABLE t (id text PRIMARY KEY, n int); ALTER TABLE t ALTER id SET STORAGE EXTERNAL")
    source.run("INSERT INTO t VALUES (repeat('k', 2600), 1)")
    stream = source.open(source.relations("public.t"), source.position())
    source.run("UPDATE t SET n = 2", "DELETE FROM t")
    assert source.changes(stream) == [("public.t", U, ("k" * 2600, "2")), ("public.t", D, ("k" * 2600, None))]


def test_replica_identity_full(source: Source) -> None:
    """With REPLICA IDENTITY FULL nothing is missing, and the key is still the primary key."""
    source.set_up(T + "; ALTER TABLE t REPLICA IDENTITY FULL")
    stream = source.open(source.relations("public.t"))
    source.run(
        f"INSERT INTO t VALUES (1, 10, {BIG})",
        "UPDATE t SET n = 11",
        "UPDATE t SET id = 2",
        "DELETE FROM t",
    )
    rows = rows_of(source.read(stream))
    assert [(row.op, row.values) for row in rows] == [
        (I, ("1", "10", "x" * 9000)),
        (U, ("1", "11", "x" * 9000)),
        (D, ("1", None, None)),
        (U, ("2", "11", "x" * 9000)),
        (D, ("2", None, None)),
    ]
    assert not any(row.missing or row.moved_from for row in rows)


def test_replica_identity_using_index(source: Source) -> None:
    """The columns of the index name the row; changing the primary key is an ordinary update."""
    source.set_up(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, region int NOT NULL, n int);"
        "CREATE UNIQUE INDEX t_code ON t (region, code); ALTER TABLE t REPLICA IDENTITY USING INDEX t_code"
    )
    (relation,) = source.relations("public.t")
    assert set(relation.table.identity) == {"region", "code"}
    stream = source.open([relation])
    source.run(
        "INSERT INTO t VALUES (1, 'a', 7, 0)",
        "UPDATE t SET id = 2",
        "UPDATE t SET code = 'b', n = 1",
        "DELETE FROM t",
    )
    assert source.changes(stream) == [
        ("public.t", I, ("1", "a", "7", "0")),
        ("public.t", U, ("2", "a", "7", "0")),
        ("public.t", D, (None, "a", "7", None)),
        ("public.t", U, ("2", "b", "7", "1")),
        ("public.t", D, (None, "b", "7", None)),
    ]


def test_truncate(source: Source) -> None:
    """A truncation is at the head of a piece, and what came before it is in an earlier one."""
    source.set_up("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int)")
    stream = source.open(source.relations("public.a", "public.b"))
    source.run(
        "INSERT INTO a VALUES (1)",
        "TRUNCATE a, b, c",
        "TRUNCATE c",
        "BEGIN; INSERT INTO a VALUES (2); TRUNCATE a; INSERT INTO a VALUES (3); COMMIT",
    )
    pieces = source.read(stream)
    changes = flat(pieces)
    assert changes[0] == ("public.a", I, ("1",))
    assert set(changes[1:3]) == {("public.a", 0, ()), ("public.b", 0, ())}
    assert changes[3:] == [("public.a", I, ("2",)), ("public.a", 0, ()), ("public.a", I, ("3",))]
    (inside,) = (piece for piece in pieces if piece.end is None)
    assert flat([inside])[-1] == ("public.a", I, ("2",))


# ---- Pieces and positions -------------------------------------------------------------------------------------


def test_large_transaction_is_cut(source: Source) -> None:
    """A transaction larger than a piece comes in pieces, of which only the last has an end."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"), max_rows=100)
    source.run("INSERT INTO t VALUES (0)", "INSERT INTO t SELECT i FROM generate_series(1, 950) i")
    pieces = [piece for piece in source.read(stream) if piece.transactions]
    assert [row[0] for _, _, row in flat(pieces)] == [str(number) for number in range(951)]
    assert all(piece.changes <= 100 for piece in pieces)
    assert [piece.end is None for piece in pieces][-10:] == [True] * 9 + [False]
    xid = pieces[-1].transactions[0].xid
    assert all(piece.transactions[-1].xid == xid for piece in pieces[-10:])
    assert all(piece.transactions[0].first == 0 for piece in pieces)


def test_bytes_bound_a_piece(source: Source) -> None:
    """Large rows make small pieces."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"), max_bytes=100_000)
    source.run("INSERT INTO t SELECT i, i, repeat('x', 9000) FROM generate_series(1, 60) i")
    pieces = [piece for piece in source.read(stream) if piece.rowsets]
    assert sum(piece.changes for piece in pieces) == 60
    assert all(len(rows.rows.data) < 120_000 for piece in pieces for rows in piece.rowsets)


def test_a_busy_consumer_gets_larger_pieces(source: Source) -> None:
    """Transactions that come while no piece is asked for are gathered into one."""
    source.set_up(T)
    for number in range(50):
        source.run(f"INSERT INTO t VALUES ({number})")
    stream = source.open(source.relations("public.t"))
    until(lambda: stream.received_position >= source.position())
    pieces = [piece for piece in read_to(stream, source.position()) if piece.rowsets]
    assert len(pieces) == 1
    assert len(pieces[0].transactions) == 50
    assert [transaction.first for transaction in pieces[0].transactions] == list(range(50))
    assert pieces[0].transaction_of(pieces[0].rowsets[0].order).tolist() == list(range(50))


def test_resume(source: Source) -> None:
    """From the end of any piece on, the stream yields what followed it, exactly."""
    source.set_up(T)
    for number in range(12):
        source.run(f"BEGIN; INSERT INTO t VALUES ({number}, 0); UPDATE t SET n = 1 WHERE id = {number}; COMMIT")
    relations = source.relations("public.t")
    stream = source.open(relations, max_rows=4)
    pieces = source.read(stream)
    stream.close()
    everything = flat(pieces)
    ends = [piece.end for piece in pieces]
    assert len(everything) == 24
    for number, end in enumerate(ends):
        if end is None:
            continue
        source.await_release()
        again = source.open(relations, end)
        assert flat(source.read(again)) == flat(pieces[number + 1 :])
        again.close()


def test_acknowledged_is_what_the_slot_confirms(source: Source) -> None:
    """The slot's confirmed position follows the acknowledged one, and never passes it."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"))
    source.run("INSERT INTO t VALUES (1)")
    pieces = source.read(stream)
    source.run("INSERT INTO t VALUES (2)")
    later = source.read(stream)
    ends = [[piece.end for piece in some if piece.end is not None][-1] for some in (pieces, later)]
    assert source.confirmed() <= ends[0]
    stream.acknowledge(ends[0])
    until(lambda: source.confirmed() == ends[0])
    stream.acknowledge(ends[1])
    stream.acknowledge(ends[0])  # never goes back
    until(lambda: source.confirmed() == ends[1])
    stream.close()
    assert source.confirmed() == ends[1]


def test_idle_position(source: Source) -> None:
    """It follows what others write to the log, but not past something that waits to be polled."""
    source.set_up(T + "; CREATE TABLE unpublished (id int)")
    stream = source.open(source.relations("public.t"))
    source.run("INSERT INTO unpublished SELECT generate_series(1, 1000)")
    source.run("SELECT pg_logical_emit_message(true, 'a', 'b')")
    before = source.position()
    assert not flat(source.read(stream))
    assert stream.idle_position >= before
    assert not stream.ready
    source.run("INSERT INTO t VALUES (1)")
    until(lambda: stream.idle_position == 0)
    assert stream.received_position > before
    assert flat(source.read(stream)) == [("public.t", I, ("1", None, None))]
    assert stream.idle_position > before


@pytest.mark.parametrize("source", [("pg15", "pgoutput")], indirect=True)
def test_both_plugins_tell_the_same(source: Source) -> None:
    """Transactions have the same numbers, positions and times, and rows the same bytes, whatever the plugin."""
    other = "wal2json"
    types = (
        "id int8, b bool, f float8, r real, n numeric, t text, c char(5), y bytea, d date, s timestamptz, i interval,"
        " j jsonb, a int[], m money, o oid, x xid"
    )
    source.set_up(f"CREATE TABLE t ({types}, PRIMARY KEY (id, b, n, c, y))")
    source.make_slot(source.slot + "_2", other)
    row = (
        "1, true, 1e-7, 1.5, 1.10, E'\\u0001\"\\\\é', 'ab', '\\x00ff', '0044-03-15 BC', '20230-01-01 00:00:00.5+02',"
        "'1 mon -2 days 03:04:05.6', '{\"a\": [1.0, null]}', '{1,NULL}', 5, 4000000000, '7'"
    )
    source.run(
        f"INSERT INTO t VALUES ({row})",
        "UPDATE t SET f = '-0', r = 1e20, id = 2",
        "UPDATE t SET b = false, n = 1.1, c = 'x', y = ''",
        "DELETE FROM t",
    )
    relations = source.relations("public.t")
    first = source.read(source.open(relations, max_rows=1))
    second = source.read(source.open(relations, max_rows=1, slot=source.slot + "_2", plugin=other))
    assert flat(first) == flat(second)
    assert len(flat(first)) == 6
    assert transactions(first) == transactions(second)


def transactions(pieces: Sequence[Piece]) -> list[object]:
    return [
        (transaction.xid, transaction.lsn, transaction.commit_time, piece.end)
        for piece in pieces
        for transaction in piece.transactions
    ]


# ---- Waiting and refusing -------------------------------------------------------------------------------------


def test_keepalives_are_answered_while_nobody_polls(source: Source) -> None:
    """The server keeps the connection for longer than its timeout, with the reader stopped by back-pressure."""
    source.set_up(T)
    dsn = psycopg.conninfo.make_conninfo(source.dsn, options="-c wal_sender_timeout=1s")
    stream = source.open(source.relations("public.t"), dsn=dsn, max_rows=100)
    source.run("INSERT INTO t SELECT i, i, repeat('x', 900) FROM generate_series(1, 30000) i")
    began = source.value("SELECT clock_timestamp()")
    until(
        lambda: source.value(
            f"SELECT coalesce(max(reply_time) > '{began}'::timestamptz + '3 s', false) FROM pg_stat_replication r"
            f" JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = '{source.slot}'"
        )
    )
    assert len(source.changes(stream)) == 30000


def test_back_pressure(source: Source) -> None:
    """A consumer that takes nothing makes the reader stop after a few pieces; nothing is lost by it."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"), max_bytes=200_000)
    source.run("INSERT INTO t SELECT i, i, repeat('x', 900) FROM generate_series(1, 40000) i")
    end = source.position()
    positions: list[int] = []

    def stalled() -> bool:
        positions.append(stream.received_position)
        return len(positions) > 25 and len(set(positions[-25:])) == 1

    until(stalled)
    assert stream.ready
    assert stream.received_position < end  # 40 MB do not fit into the pieces and the socket's buffers
    assert stream.idle_position == 0
    assert [row[0] for _, _, row in flat(read_to(stream, end))] == [str(number) for number in range(1, 40001)]


def test_slot_in_use(source: Source) -> None:
    """A second reader is told who has the slot, and may try again later."""
    source.set_up(T)
    relations = source.relations("public.t")
    first = source.open(relations)
    with pytest.raises(SlotInUse):
        source.open(relations)
    first.close()
    source.await_release()
    source.open(relations)


def test_slot_missing(source: Source) -> None:
    """A slot that does not exist is not made anew: changes would be lost."""
    source.set_up(T)
    with pytest.raises(SlotMissing):
        source.open(source.relations("public.t"), slot="no_such_slot")


def test_slot_of_another_kind(source: Source) -> None:
    """A slot of another plugin, or a physical one, is refused before it sends something."""
    source.set_up(T)
    relations = source.relations("public.t")
    source.make_slot(source.slot + "_other", "test_decoding")
    with pytest.raises(SlotUnusable):
        source.open(relations, slot=source.slot + "_other")
    physical = source.slot + "_physical"
    source.run(f"SELECT pg_create_physical_replication_slot('{physical}')")
    try:
        with pytest.raises(SlotUnusable):
            source.open(relations, slot=physical)
    finally:
        source.run(f"SELECT pg_drop_replication_slot('{physical}')")


def test_slot_of_another_database(source: Source, new_database: NewDatabase, request: pytest.FixtureRequest) -> None:
    """The slot must belong to the database that the dsn names."""
    source.set_up(T)
    server = next(name for name in ("pg15", "pg18") if name in request.node.name)
    elsewhere = new_database(request.getfixturevalue(server))
    with pytest.raises(SlotUnusable):
        source.open(source.relations("public.t"), dsn=elsewhere)


def test_role_without_replication(source: Source) -> None:
    """A role that lacks REPLICATION is refused with the privilege it needs."""
    source.set_up(T)
    role = f"plain_{source.slot}"
    source.run(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        with pytest.raises(SourceRefused):
            dsn = psycopg.conninfo.make_conninfo(source.dsn, user=role, password="x")
            source.open(source.relations("public.t"), dsn=dsn)
    finally:
        source.run(f"DROP ROLE {role}")


def test_terminated(source: Source) -> None:
    """The loss of the connection is raised from poll, and again each time."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"))
    until(lambda: source.value(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{source.slot}'"))
    source.run(f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{source.slot}'")
    for _ in range(2):
        with pytest.raises(SourceUnavailable):
            read_to(stream, source.position() + 1)
    assert stream.idle_position == 0


def test_close_is_quick_and_repeatable(source: Source) -> None:
    """Even with back-pressure on, close ends reader and connection, and frees the slot."""
    source.set_up(T)
    stream = source.open(source.relations("public.t"), max_rows=10)
    source.run("INSERT INTO t SELECT i, i, repeat('x', 900) FROM generate_series(1, 20000) i")
    until(lambda: stream.received_position > 0)
    began = time.monotonic()
    stream.close()
    stream.close()
    assert time.monotonic() - began < 1.5
    source.await_release()


# ---- Names, partitions, changed tables ------------------------------------------------------------------------


NAMES = ["Straße", 'we"ird', "a.b", "c,d", "e f", "g*h", "*", "back\\slash", "it's", "日本", "tab\there", "%s", "$1"]


def test_names(source: Source) -> None:
    """Any name of a schema, a table or a column is found, and no other table is taken for it."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in NAMES]
    source.set_up(
        "".join(
            f"CREATE SCHEMA {name}; CREATE TABLE {name}.{name} ({name} int PRIMARY KEY, other text);"
            f"CREATE TABLE {name}.decoy (id int PRIMARY KEY);"
            for name in quoted
        )
    )
    names = [TableName(name, name) for name in NAMES]
    with session.connect(source.dsn, application_name="test", side="source") as connection:
        tables = describe(connection, names).tables
    stream = source.open([Relation(tables[name], tables[name].columns, Format.TEXT) for name in names])
    for name in quoted:
        source.run(f"INSERT INTO {name}.decoy VALUES (1)", f"INSERT INTO {name}.{name} VALUES (1, 'x')")
        source.run(f"TRUNCATE {name}.{name}")
    assert source.changes(stream) == [
        change for name in NAMES for change in ((f"{name}.{name}", I, ("1", "x")), (f"{name}.{name}", 0, ()))
    ]


PARTITIONED = """
    CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
    CREATE TABLE p2 (v text, gone int, id int NOT NULL PRIMARY KEY);
    ALTER TABLE p2 DROP COLUMN gone;
    ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200);
"""


def test_partitions_come_as_their_root(source: Source) -> None:
    """Also those with another order of columns, those made later in another schema, and rows that move between them."""
    source.set_up(PARTITIONED)

    def root(name: TableName) -> TableName | None:
        return TableName("public", "p") if name.name == "p3" else None

    stream = source.open(source.relations("public.p"), resolve=root)
    source.run(
        "INSERT INTO p VALUES (1, 'a'), (101, 'b')",
        "UPDATE p SET v = 'c' WHERE id = 101",
        "CREATE SCHEMA later",
        "CREATE TABLE later.p3 PARTITION OF p FOR VALUES FROM (200) TO (300)",
        "INSERT INTO p VALUES (201, 'd')",
        "UPDATE p SET id = 102 WHERE id = 1",
        "DELETE FROM p WHERE id = 101",
    )
    assert source.changes(stream) == [
        ("public.p", I, ("1", "a")),
        ("public.p", I, ("101", "b")),
        ("public.p", U, ("101", "c")),
        ("public.p", I, ("201", "d")),
        ("public.p", D, ("1", None)),
        ("public.p", I, ("102", "a")),
        ("public.p", D, ("101", None)),
    ]


def test_truncated_root(source: Source) -> None:
    """Truncating a partitioned table empties its relation, once."""
    source.set_up(PARTITIONED)
    stream = source.open(source.relations("public.p"))
    source.run("INSERT INTO p VALUES (1, 'a')", "TRUNCATE p", "INSERT INTO p VALUES (2, 'b')")
    assert source.changes(stream) == [
        ("public.p", I, ("1", "a")),
        ("public.p", 0, ()),
        ("public.p", I, ("2", "b")),
    ]


def test_truncated_partition(source: Source) -> None:
    """A partition truncated by itself stops the stream where the plugin tells of it; pgoutput leaves it out."""
    source.set_up(PARTITIONED)
    stream = source.open(source.relations("public.p"))
    source.run("TRUNCATE p1")
    if source.plugin == "wal2json":
        with pytest.raises(SourceTruncated, match=r"public\.p1"):
            source.read(stream)
    else:
        assert not source.changes(stream)


def test_added_columns(source: Source) -> None:
    """New columns are left out until a route asks for them."""
    source.set_up("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    stream = source.open(source.relations("public.t"))
    source.run(
        "INSERT INTO t VALUES (1, 'a1', 'b1')",
        "ALTER TABLE t ADD new text DEFAULT 'n'",
        "INSERT INTO t VALUES (2, 'a2', 'b2')",
    )
    assert source.changes(stream) == [("public.t", I, (str(n), f"a{n}", f"b{n}")) for n in range(1, 3)]


@pytest.mark.parametrize("source", [way for way in WAYS if "catching-up" not in way], indirect=True)
def test_reordered_columns(source: Source) -> None:
    """Columns are found by name; whether that is still the same column is only asked from a known position on."""
    source.set_up("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    stream = source.open(source.relations("public.t"))
    source.run(
        "BEGIN; INSERT INTO t VALUES (1, 'a1', 'b1'); ALTER TABLE t DROP a; ALTER TABLE t ADD a text;"
        " INSERT INTO t (id, a, b) VALUES (2, 'a2', 'b2'); COMMIT",
    )
    assert source.changes(stream) == [("public.t", I, (str(n), f"a{n}", f"b{n}")) for n in range(1, 3)]


@pytest.mark.parametrize(
    ("ddl", "named"),
    [
        ("ALTER TABLE t DROP n", "n"),
        ("ALTER TABLE t RENAME n TO m", "n"),
        ("ALTER TABLE t ALTER n TYPE bigint", "n"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD other int PRIMARY KEY DEFAULT 5", "id"),
    ],
)
def test_changed_table(source: Source, ddl: str, named: str) -> None:
    """A wanted column that is gone or changed stops the stream, naming table and column."""
    source.set_up(T)
    source.run("INSERT INTO t VALUES (1, 1, 'x')")
    stream = source.open(source.relations("public.t"))
    source.run(ddl)
    assert source.changes(stream) == [("public.t", I, ("1", "1", "x"))]
    source.run("UPDATE t SET big = 'y'")
    with pytest.raises(SourceTableChanged, match=rf"column {named} .*public\.t|public\.t .*column {named}"):
        read_to(stream, source.position() + 1)


# ---- One plugin alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [way for way in WAYS if way[1] == "pgoutput"], indirect=True)
class TestPgoutput:
    """What only pgoutput has: publications, and binary values."""

    def test_publication_missing(self, source: Source) -> None:
        """New servers would go on without the publication, and send nothing."""
        source.set_up(T)
        with pytest.raises(NotSetUp):
            source.open(source.relations("public.t"), publication="no such publication")

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ("DROP PUBLICATION pub; CREATE PUBLICATION pub FOR TABLE other", "public.t"),
            ("ALTER PUBLICATION pub SET (publish = 'insert, update, truncate')", "deletes"),
        ],
    )
    def test_publication_lacks_something(self, source: Source, changed: str, named: str) -> None:
        """What a publication leaves out would be lost without a word."""
        source.set_up(T + "; CREATE TABLE other (id int PRIMARY KEY)")
        source.run(changed)
        with pytest.raises(NotSetUp, match=named):
            source.open(source.relations("public.t"))

    def test_publication_dropped(self, source: Source) -> None:
        """Also when it goes away later."""
        source.set_up(T)
        stream = source.open(source.relations("public.t"))
        source.run("DROP PUBLICATION pub", "INSERT INTO t VALUES (1)")
        with pytest.raises(NotSetUp):
            read_to(stream, source.position() + 1)

    def test_binary_rows_are_rows_of_copy(self, source: Source) -> None:
        """The framed rows, copied into a table of the same columns, are the rows of the source."""
        columns = "id int, b bool, n numeric, t text, c char(5), y bytea, s timestamptz, i interval, j jsonb, u uuid"
        source.set_up(f"CREATE TABLE t ({columns}, PRIMARY KEY (id)); CREATE TABLE copied (LIKE t)")
        (relation,) = source.relations("public.t", format_=Format.BINARY)
        stream = source.open([relation])
        source.run(
            "INSERT INTO t SELECT g, g % 2 = 0, CASE g % 3 WHEN 0 THEN 'NaN' ELSE g / 7.0 END, repeat('é', g % 300),"
            " nullif(g % 5, 0), decode(md5(g::text), 'hex'), 'epoch'::timestamptz + g * interval '1 day',"
            " g * interval '1 min', jsonb_build_object('g', g), md5(g::text)::uuid FROM generate_series(1, 9000) g"
        )
        for piece in source.read(stream):
            for rows in piece.rowsets:
                with source.connection.cursor().copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
                    copy.write(rows.rows.copy_data())
        assert source.value("SELECT count(*) FROM (TABLE t EXCEPT TABLE copied) d") == 0
        assert source.value("SELECT count(*) FROM copied") == 9000


@pytest.mark.parametrize("source", [("pg15", "wal2json")], indirect=True)
class TestWal2json:
    """What wal2json cannot tell."""

    def test_nan_is_unknown(self, source: Source) -> None:
        """A null where the type has values that JSON has no number for is marked, others are not."""
        source.set_up("CREATE TABLE t (id int PRIMARY KEY, f float8, r float4, n numeric, i int, a numeric[])")
        stream = source.open(source.relations("public.t"))
        source.run("INSERT INTO t VALUES (1, 'NaN', '-Infinity', 'NaN', NULL, '{NaN}'), (2, 0, 1, 2, NULL, NULL)")
        assert [(row.values, row.unknown, row.missing) for row in rows_of(source.read(stream))] == [
            (("1", None, None, None, None, "{NaN}"), 0b1110, 0),
            (("2", "0", "1", "2", None, None), 0, 0),
        ]

    def test_table_that_lost_its_identity(self, source: Source) -> None:
        """wal2json would leave such updates out, with a warning in its log."""
        source.set_up(T + "; CREATE TABLE other (id int)")
        stream = source.open(source.relations("public.t"))
        source.run("DROP PUBLICATION pub", "INSERT INTO other VALUES (1)", "UPDATE other SET id = 2")
        source.run("INSERT INTO t VALUES (1)", "ALTER TABLE t REPLICA IDENTITY NOTHING")
        assert source.changes(stream) == [("public.t", I, ("1", None, None))]
        source.run("UPDATE t SET n = 2")
        with pytest.raises(SourceTableChanged, match=r"public\.t"):
            read_to(stream, source.position() + 1)
