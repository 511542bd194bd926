"""A backlog read through SQL: where it stops, and what the source may refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import psycopg
import pytest

from tests.integration.test_stream_conformance import EAGER, Change, Settings, T, flat, read_to
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.catch_up import Bounds, CatchUp
from towline.change import INSERT, Format, Relation
from towline.demo.server import Server
from towline.errors import NotSetUp, SlotAhead, SourceTableChanged, SourceUnavailable, TowlineError
from towline.position import parse_lsn
from towline.postgres import session
from towline.postgres.catalog import describe
from towline.source.postgres import backlog, slot_copy
from towline.source.postgres.block import Block
from towline.source.postgres.catch_up_stream import POINTS, CatchUpStream
from towline.source.postgres.pgoutput import Decoder
from towline.source.postgres.stream import PostgresStream
from towline.source.postgres.turns import Turns
from towline_transforms.schema import TableName


@dataclass
class Source:
    """A database with table t and a slot; a stream over it, and what that told."""

    dsn: str
    slot: str
    connection: psycopg.Connection
    told: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    stream: CatchUpStream | None = None

    def run(self, *statements: str) -> None:
        """Each statement in a transaction of its own."""
        for statement in statements:
            self.connection.execute(statement.encode())

    def value(self, query: str) -> object:
        """The one value that a query returns."""
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def position(self, query: str = "SELECT pg_current_wal_insert_lsn()") -> int:
        """A position; the end of the log."""
        return parse_lsn(str(self.value(query)))

    def confirmed(self) -> int:
        """Up to where the slot is confirmed."""
        return self.position(f"SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{self.slot}'")

    def copies(self) -> int:
        """How many temporary slots there are."""
        query = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()"
        return int(str(self.value(query)))

    def open(
        self,
        bounds: Bounds = EAGER,
        dsn: str = "",
        max_rows: int = 1000,
        streamed: bool = False,
        straight: bool = False,
        start: int = 0,
    ) -> CatchUpStream:
        """A stream at the slot's position, which is told of the source's end as it is now; ``straight``: at once.

        ``start``: another position, up to which all is durable.
        """
        with session.connect(self.dsn, application_name="test", side="source") as connection:
            name = TableName("public", "t")
            table = describe(connection, [name]).tables[name]
        relation = Relation(table, table.columns, Format.TEXT, described=1)
        of = Settings(dsn or self.dsn, self.slot, "pub", "pgoutput", [relation], max_rows, 1 << 22, None, streamed)
        decision, confirmed = CatchUp(bounds), self.confirmed()
        start = start or confirmed
        self.stream = CatchUpStream(
            start,
            stream=of.stream,
            backlog=lambda position, durable: of.backlog(position, durable, decision),
            decision=decision,
            switches=self,
            sample=(self.position(), confirmed) if straight else (0, 0),
            announce=self.points.append,
        )
        self.stream.sampled(self.position(), confirmed)
        return self.stream

    def catching_up(self, position: int, behind: int) -> None:
        """See Switches."""
        assert behind > 0
        self.told.append("catching up")

    def refused(self, position: int, error: TowlineError) -> None:
        """See Switches."""
        self.told.append(error.detail)

    def streaming(self, position: int, caught_up: bool) -> None:
        """See Switches."""
        self.told.append("streaming" if caught_up else "streaming the rest")


@pytest.fixture(params=["pg15", "pg18"])
def source(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Source]:
    """On one of the servers."""
    dsn = new_database(request.getfixturevalue(request.param))
    with psycopg.connect(dsn, autocommit=True) as connection:
        made = Source(dsn, f"slot_{connection.info.dbname}", connection)
        made.run(T, "CREATE PUBLICATION pub FOR ALL TABLES")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (made.slot,))
        yield made
        if made.stream is not None:
            made.stream.close()


ROWS = "INSERT INTO t SELECT i, i, repeat('x', 500) FROM generate_series({}, {}) i"


def insert(source: Source, transactions: int = 50, rows: int = 100) -> list[str]:
    """Insert rows; returns their keys."""
    source.run(*(ROWS.format(first, first + rows - 1) for first in range(1, transactions * rows, rows)))
    return [str(number) for number in range(1, transactions * rows + 1)]


def until_error(stream: CatchUpStream, kind: type[TowlineError], match: str) -> list[str | None]:
    """The keys of what comes before the error."""
    found: list[str | None] = []

    def take() -> None:
        while True:
            piece = stream.poll(10)
            found.extend(row[0] for _, _, row in flat([piece] if piece is not None else []))

    with pytest.raises(kind, match=match):
        take()
    return found


def test_in_gulps(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """All comes, in order, by two sessions in turns; the slot follows what was acknowledged and nothing else; then the
    stream goes on."""
    sessions: set[int] = set()
    swap = Turns.swap

    def noted(turns: Turns) -> slot_copy.SlotCopy:
        session = swap(turns)
        sessions.add(id(session))
        return session

    monkeypatch.setattr(Turns, "swap", noted)
    keys = insert(source)
    stream = source.open(Bounds(enter=1, leave=1, least=300_000, most=300_000, follow=1 << 30, confirm=1))
    began, end, acknowledged = source.confirmed(), source.position(), source.confirmed()
    found: list[Change] = []
    moved = False  # while the backlog is read
    while len(found) < len(keys):
        piece = stream.poll(10)
        confirmed = source.confirmed()
        assert confirmed <= acknowledged
        moved |= confirmed > began and "switching" not in source.points
        if piece is not None:
            found += flat([piece])
            if piece.end is not None:
                acknowledged = piece.end
                stream.acknowledge(acknowledged)
    assert [row[0] for _, _, row in found] == keys
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", "streaming"])
    assert moved
    assert source.points.count("gulp-read") >= 3
    assert len(sessions) == 2
    assert source.points[-2:] == ["switching", "switched"]
    assert set(source.points) == set(POINTS)
    assert source.copies() == 0
    source.run("INSERT INTO t VALUES (0)")
    assert flat(read_to(stream, source.position())) == [("public.t", INSERT, ("0", None, None))]
    stream.acknowledge(end)
    until(lambda: source.confirmed() >= end)


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_gulp_has_yielded_is_told(source: Source, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whoever decides how long the next one is: of two sessions, of the gulp before the one under way."""
    asked: list[tuple[int, int, int]] = []
    gulp = CatchUp.gulp

    def noted(decision: CatchUp, end: int, position: int, restart: int, yielded: int = 0) -> int:
        upto = gulp(decision, end, position, restart, yielded)
        asked.append((position, upto, yielded))
        return upto

    monkeypatch.setattr(CatchUp, "gulp", noted)
    monkeypatch.setattr(backlog, "BURST", 1 << 16)  # which come one after the other
    if alone:
        monkeypatch.setattr(Turns, "_second", lambda turns: None)
    keys = insert(source)
    stream = source.open(Bounds(enter=1, leave=1, least=900_000, most=900_000, follow=1 << 30))
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", "streaming"])
    lag = 1 if alone else 2  # with one session, each is asked for twice
    gulps = asked[::2] if alone else asked
    assert [yielded for _, _, yielded in gulps[:lag]] == [0] * lag
    assert len(gulps) > lag + 1
    read = [(position, upto) for position, upto, _ in gulps if upto]  # 0 is the answer near the end of the log
    for (position, upto), (_, _, yielded) in zip(read, gulps[lag:], strict=False):
        assert 0.6 * (upto - position) < yielded < 1_000_000, asked  # rows of 500 bytes are most of the log


@pytest.mark.parametrize("offset", [0, 8, 23, 24, 4000])
def test_where_gulps_meet(source: Source, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions divide the log between them, wherever a gulp ends: within a record, at its end, or in the header of
    a page, behind which a record comes with both. Nothing is left out, and nothing comes twice."""
    page, count = 8192, 3000
    monkeypatch.setattr(
        CatchUp,
        "gulp",
        lambda self, end, position, restart, yielded: (
            upto if (upto := (position // page + 1) * page + offset) < end else 0
        ),
    )
    rows = f"DO $$ BEGIN FOR i IN 1..{count} LOOP INSERT INTO t VALUES (i, i, NULL); COMMIT; END LOOP; END $$"
    source.run("SET synchronous_commit = off", rows, "SET synchronous_commit = on", "CHECKPOINT")
    stream = source.open(Bounds(enter=1, leave=1))
    found = flat(read_to(stream, source.position()))
    assert [row[0] for _, _, row in found] == [str(number) for number in range(1, count + 1)]
    assert source.points.count("gulp-read") > 20
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", "streaming"])  # others write, too


def test_no_second_slot(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session does, if there is no slot for another."""
    copies = []

    def copy(session: slot_copy.SlotCopy) -> None:
        copies.append(session)
        if len(copies) > 1:
            raise slot_copy.Refused(NotSetUp("all replication slots are in use"))
        there(session)

    there = slot_copy.SlotCopy.copy
    monkeypatch.setattr(slot_copy.SlotCopy, "copy", copy)
    keys = insert(source)
    stream = source.open(Bounds(enter=1, leave=1, least=300_000, most=300_000, follow=1 << 30))
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", "streaming"])
    assert len(copies) == 2


def test_far_behind_at_the_start(source: Source) -> None:
    """The backlog is begun at once, and no stream before it."""
    keys = insert(source)
    stream = source.open(straight=True)
    assert isinstance(stream._now, backlog.Backlog)
    assert source.told == []  # who is told may not have begun himself
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", "streaming"])


def test_a_slot_that_stands_far_behind_at_the_start(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is moved to what is durable before it is copied: what was before is not sent, only to be left out."""
    sizes: list[int] = []
    take = Decoder.take

    def noted(decoder: Decoder, block: Block, first: int = 0) -> int:
        sizes.append(block.size)
        return take(decoder, block, first)

    monkeypatch.setattr(Decoder, "take", noted)
    insert(source)
    durable = source.position()
    source.run(ROWS.format(5001, 5010))
    bounds = Bounds(enter=1, leave=1_000, follow=1 << 30, again=1 << 30)
    stream = source.open(bounds, straight=True, start=durable)
    keys = [row[0] for _, _, row in flat(read_to(stream, source.position()))]
    assert keys == [str(number) for number in range(5001, 5011)]
    assert 5_000 < sum(sizes) < 10_000


def test_not_far_behind_at_the_start(source: Source) -> None:
    """The stream is begun."""
    keys = insert(source, 2, 10)
    stream = source.open(Bounds(enter=1 << 30), straight=True)
    assert isinstance(stream._now, PostgresStream)
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
    assert source.told == []


def test_a_transaction_larger_than_a_piece(source: Source) -> None:
    """It is not left within one, though the stream would be near."""
    keys = insert(source, 1, 5000)
    stream = source.open(max_rows=300)
    pieces = read_to(stream, source.position())
    assert [row[0] for _, _, row in flat(pieces)] == keys
    assert [piece.end is None for piece in pieces if piece.rowsets] == [True] * 16 + [False]


@pytest.mark.parametrize(
    ("barren", "streamed", "then"),
    [(300_000, True, "streaming the rest"), (300_000, False, "streaming"), (1 << 30, True, "streaming")],
)
def test_a_transaction_larger_than_a_gulp(source: Source, barren: int, streamed: bool, then: str) -> None:
    """It comes once, and from the stream if that brings it while it is under way: it is left to that after so much log
    that yields nothing."""
    source.run(ROWS.format(1, 3000))
    source.run(ROWS.format(3001, 13000))
    source.run(ROWS.format(13001, 16000))
    bounds = Bounds(enter=1, leave=1, least=300_000, most=300_000, follow=1 << 30, barren=barren)
    stream = source.open(bounds, streamed=streamed)
    found = flat(read_to(stream, source.position()))
    assert [row[0] for _, _, row in found] == [str(number) for number in range(1, 16001)]
    until(lambda: stream.poll(0.1) is None and source.told == ["catching up", then])
    assert source.copies() == 0


def test_a_consumer_that_takes_nothing(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not hold back the source's vacuum for long: the statement ends, and the rest is streamed."""
    monkeypatch.setattr(backlog, "PATIENCE", 0.3)
    monkeypatch.setattr(backlog, "AHEAD", 100_000)
    keys = insert(source, 400, 100)
    stream = source.open()
    first = None
    while first is None:
        first = stream.poll(10)
    until(lambda: source.copies() > 0)
    until(lambda: source.copies() == 0)
    found = flat([first, *read_to(stream, source.position())])
    assert [row[0] for _, _, row in found] == keys
    assert source.told == ["catching up", "nothing was taken of it for 0 seconds", "streaming the rest"]


def test_limits_on_time(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a role or a database are for people: they do not end a gulp."""
    monkeypatch.setattr(backlog, "AHEAD", 100_000)
    keys = insert(source, 200, 100)
    source.run(f"ALTER DATABASE {source.connection.info.dbname} SET statement_timeout = '2s'")
    stream = source.open()
    age = "SELECT max(now() - query_start) > '2.5 s' FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT data FROM%'"
    pieces = [piece for _ in range(3) if (piece := stream.poll(10)) is not None]
    until(lambda: source.value(age + " AND datname = current_database()"))
    assert [row[0] for _, _, row in flat([*pieces, *read_to(stream, source.position())])] == keys
    assert source.told == ["catching up", "streaming"]


def test_no_connection_left(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a walsender are counted apart: the backlog is streamed."""

    def connect(dsn: str, **options: object) -> psycopg.Connection:
        raise SourceUnavailable("sorry, too many clients already")

    monkeypatch.setattr(slot_copy, "session", SimpleNamespace(connect=connect))
    keys = insert(source, 20, 10)
    assert [row[0] for _, _, row in flat(read_to(source.open(), source.position()))] == keys
    assert source.told == ["catching up", "sorry, too many clients already", "streaming the rest"]


def test_a_walsender_that_does_not_look_up(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, since nobody listens to it any more."""
    monkeypatch.setattr(backlog, "ENDED_WITHIN", 0.1)
    keys = insert(source, 20, 10)
    stream = source.open()
    left = stream._now
    with monkeypatch.context() as patch:
        patch.setattr(left, "close", lambda: None)
        assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
    left.close()
    assert source.told == ["catching up", "streaming"]


def test_a_limit_on_temporary_files(source: Source) -> None:
    """Does, and the backlog is streamed."""
    keys = insert(source, 200, 100)
    name = source.connection.info.dbname
    source.run(f"ALTER DATABASE {name} SET temp_file_limit = '1MB'", f"ALTER DATABASE {name} SET work_mem = '1MB'")
    assert [row[0] for _, _, row in flat(read_to(source.open(), source.position()))] == keys
    assert source.told[0] == "catching up"
    assert "temp_file_limit" in source.told[1]


def test_a_publication_that_goes_away(source: Source) -> None:
    """What the server says of that, or its plugin warns of, is left to the stream, with its own error."""
    stream = source.open()
    keys = insert(source, 3, 10)
    source.run("DROP PUBLICATION pub", "INSERT INTO t VALUES (0)")
    stream.sampled(source.position(), source.confirmed())
    found = until_error(stream, NotSetUp, "publication")
    assert found in (keys, [])


@pytest.mark.parametrize("gone", ["DROP COLUMN n", "ALTER n TYPE text"])
def test_a_table_that_changes_inside_the_backlog(source: Source, gone: str) -> None:
    """All that is before the change is handed on."""
    stream = source.open()
    keys = insert(source, 20, 10)
    source.run(f"ALTER TABLE t {gone}", "INSERT INTO t (id) VALUES (0)")
    stream.sampled(source.position(), source.confirmed())
    assert until_error(stream, SourceTableChanged, "column n") == keys


def test_a_slot_that_others_confirm(source: Source) -> None:
    """Is noticed at the next gulp."""
    insert(source)
    stream = source.open(Bounds(enter=1, leave=1, least=300_000, most=300_000, follow=1 << 30))
    while stream.poll(10) is None:
        pass
    source.run(f"SELECT pg_replication_slot_advance('{source.slot}', pg_current_wal_flush_lsn())")
    until_error(stream, SlotAhead, "was confirmed up to")


def test_a_slot_for_failover(pg18: Server, new_database: NewDatabase, source: Source) -> None:
    """While the server sends nothing of it that named standbys lack, neither is it read in another way."""
    if source.connection.info.server_version < 170000:
        return
    source.run(f"SELECT pg_drop_replication_slot('{source.slot}')")
    create = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', failover => true)"
    source.connection.execute(create, (source.slot,))
    keys = insert(source, 3, 10)
    pg18.configure(synchronized_standby_slots="no_such_standby")
    pg18.reload()
    try:
        stream = source.open()
        until(lambda: stream.poll(0.1) is None and len(source.told) >= 2)
        assert "synchronized_standby_slots" in source.told[1]
    finally:
        pg18.configure(synchronized_standby_slots="")
        pg18.reload()
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys


def test_slots_that_may_not_idle(pg18: Server, source: Source) -> None:
    """Where the server invalidates slots that nobody streams from, the stream is not left."""
    if source.connection.info.server_version < 180000:
        return
    keys = insert(source, 3, 10)
    pg18.configure(idle_replication_slot_timeout="1d")
    pg18.reload()
    try:
        stream = source.open()
        until(lambda: stream.poll(0.1) is None and len(source.told) >= 2)
        assert "idle_replication_slot_timeout" in source.told[1]
    finally:
        pg18.configure(idle_replication_slot_timeout="0")
        pg18.reload()
    assert [row[0] for _, _, row in flat(read_to(stream, source.position()))] == keys
