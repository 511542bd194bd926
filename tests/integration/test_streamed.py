"""Large transactions, received while they are under way: a whole pipeline against real servers."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fault.harness import Daemon
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline import status
from towline.demo.server import Server
from towline.errors import SpoolFull
from towline.streaming import Streaming

TABLES = """
CREATE TABLE t (id int PRIMARY KEY, n int, big text);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
CREATE TABLE log (id int PRIMARY KEY, line text);
CREATE TABLE ev (id int PRIMARY KEY, a text);
"""
ROUTES = """\
  - {from: public.t, into: replica.t, on_truncate: delete}
  - {from: public.log, into: replica.log, on_truncate: delete}
  - from: public.ev
    into: replica.ev
    key: [id]
    select: SELECT id, a FROM ev
"""
#: About 100 kB of log, more than the server keeps in memory here.
ROW = "repeat(md5(i::text), 10)"
MANY = f"SELECT i, i, {ROW} FROM generate_series({{}}, {{}}) i"
#: More, which cannot be compressed.
NOISE = "SELECT i, i, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 40) j) FROM"


class Ends:
    """A pipeline whose source sends everything beyond 64 kB while it is under way."""

    def __init__(self, line: Line, stack: contextlib.ExitStack) -> None:
        self.line = line
        self._stack = stack

    def session(self) -> psycopg.Connection[Any]:
        """Another session at the source, in which transactions are under way."""
        return self._stack.enter_context(psycopg.connect(self.line.source))

    def streamed(self) -> int:
        """How many transactions the server has sent in parts."""
        rows = self.line.at_source(
            "SELECT stream_txns FROM pg_stat_replication_slots s JOIN pg_replication_slots USING"
            " (slot_name) WHERE database = current_database()"
        )
        return int(rows[0][0])

    def check(self) -> None:
        """Everything that was committed is at the hub, and nothing else."""
        self.line.run()
        for table in ("t", "log", "ev"):
            self.line.same(f"public.{table}", f"replica.{table}")
        for seen, accounted in self.line.at_hub(
            "SELECT seen, upserted + deleted + superseded + filtered + quarantined FROM towline.ledger"
        ):
            assert seen == accounted


def make(directory: Path, source: str, hub: str, more: str = "", routes: str = ROUTES) -> Line:
    """Set up: both databases, the memory of the source's decoding, and the routes."""
    with psycopg.connect(source, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'").format(name))
    line = Line.make(directory, source, hub, routes, more=f"batch: {{max_rows: 100}}\n{more}")
    line.at_source(TABLES)
    line.at_hub("CREATE SCHEMA replica; CREATE TABLE replica.ev (id int PRIMARY KEY, a text)")
    line.apply()
    return line


@contextlib.contextmanager
def running(line: Line) -> Iterator[None]:
    """A daemon's attempt, beside the test."""
    stopped = threading.Event()
    replication = line.replication(stopping=stopped.is_set)
    thread = threading.Thread(target=lambda: replication.run(until_caught_up=False))
    thread.start()
    try:
        until(lambda: replication.handle.pipeline is not None, 30)
        yield
    finally:
        stopped.set()
        if replication.handle.pipeline is not None:
            replication.handle.pipeline.stop()
        thread.join(30)


def spooled(line: Line) -> tuple[int, int]:
    """What the metrics say is in the spool: transactions, bytes."""
    labels = {"pipeline": line.config.pipeline}
    value = line.metrics.registry.get_sample_value
    return int(value("towline_spool_transactions", labels) or 0), int(value("towline_spool_bytes", labels) or 0)


@pytest.fixture(params=["pg15", "pg18"])
def ends(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Ends]:
    """Empty tables at both ends, copied and streaming."""
    server: Server = request.getfixturevalue(request.param)
    line = make(tmp_path, new_database(server), new_database(hub18))
    line.run()
    with contextlib.ExitStack() as stack:
        yield Ends(line, stack)


def test_interleaved(ends: Ends) -> None:
    """Three large ones at once, among small ones, committed in another order than they began; one is rolled back."""
    one, two, three = ends.session(), ends.session(), ends.session()
    for turn in range(3):
        for number, session in enumerate((one, two, three)):
            first = 10_000 * number + 1_000 * turn
            session.execute(f"INSERT INTO t {MANY.format(first, first + 300)}".encode())
            ends.line.at_source(f"INSERT INTO log VALUES ({10 * turn + number}, 'between')")
    three.execute(b"UPDATE t SET n = -n WHERE id >= 20000")
    three.commit()
    ends.line.at_source("UPDATE t SET n = 7 WHERE id = 20000")
    two.rollback()
    one.execute(b"DELETE FROM t WHERE id < 100")
    one.commit()
    ends.check()
    assert ends.streamed() >= 2
    assert ends.line.at_hub("SELECT n FROM replica.t WHERE id = 20000") == [(7,)]


def test_readers_see_whole_transactions(ends: Ends) -> None:
    """Whoever reads the hub, between any two pieces of a transaction that was sent under way, sees none of it."""
    ends.line.at_source(f"INSERT INTO t {MANY.format(1, 1000)}")
    ends.line.run()
    state = "SELECT count(*), min(n), max(n) FROM replica.t"
    seen: list[tuple[str, tuple[Any, ...]]] = []
    with psycopg.connect(ends.line.hub, autocommit=True) as reader:

        def look(point: str) -> None:
            seen.append((point, reader.execute(state).fetchone() or ()))

        session = ends.session()
        session.execute(b"UPDATE t SET n = -1")
        session.execute(f"INSERT INTO t SELECT i, -1, {ROW} FROM generate_series(1001, 3000) i".encode())
        ends.line.at_source("INSERT INTO log VALUES (1, 'between')")
        ends.line.replication(announce=look).run(until_caught_up=True)
        before = (1000, 1, 1000)
        assert {shown for _, shown in seen} == {before}
        assert ends.line.at_hub("SELECT line FROM replica.log") == [("between",)]
        seen.clear()
        session.commit()
        ends.line.replication(announce=look).run(until_caught_up=True)
    states = [shown for _, shown in seen]
    after = (3000, -1, -1)
    assert states == [before] * states.count(before) + [after] * states.count(after)
    within = [shown for point, shown in seen if point == "within-transaction"]
    assert len(within) > 10 and set(within) == {before}
    assert seen[-1][1] == after and ends.streamed() >= 2  # at each of the two; what came before may be sent again
    ends.check()


def test_subtransactions(ends: Ends) -> None:
    """What was rolled back to a savepoint after it was sent is not applied; what followed is, nested ones too."""
    session = ends.session()
    run = session.execute
    run(f"INSERT INTO t {MANY.format(1, 400)}".encode())
    run(b"SAVEPOINT a")
    run(f"INSERT INTO t {MANY.format(1001, 1400)}".encode())
    run(b"SAVEPOINT b")
    run(b"UPDATE t SET n = 0")
    run(b"ROLLBACK TO b")
    run(f"INSERT INTO t {MANY.format(2001, 2400)}".encode())
    run(b"ROLLBACK TO a")
    run(f"INSERT INTO t {MANY.format(3001, 3400)}".encode())
    run(b"SAVEPOINT c")
    run(b"DELETE FROM t WHERE id <= 10")
    run(f"INSERT INTO t {MANY.format(4001, 4400)}".encode())
    run(b"RELEASE c")
    session.commit()
    ends.check()
    assert ends.streamed() == 1
    assert ends.line.at_hub("SELECT count(*) FROM replica.t") == [(390 + 400 + 400,)]


def test_every_kind_of_change(ends: Ends) -> None:
    """Keys that change, values stored out of line and not sent, TRUNCATE inside, in one large transaction."""
    long = "SELECT i, i, repeat('x', 9000) FROM generate_series({}, {}) i"
    ends.line.at_source(f"INSERT INTO t {long.format(1, 50)}; INSERT INTO log SELECT i FROM generate_series(1, 9) i")
    session = ends.session()
    run = session.execute
    run(b"UPDATE t SET n = n + 1")
    run(b"UPDATE t SET id = id + 1000 WHERE id <= 20")
    run(b"INSERT INTO log SELECT i, repeat('y', 100) FROM generate_series(100, 900) i")
    run(b"TRUNCATE log")
    run(b"INSERT INTO log SELECT i, repeat('z', 100) FROM generate_series(1, 900) i")
    run(b"UPDATE t SET id = id + 1000, n = 0 WHERE id > 1010")
    run(f"INSERT INTO t {long.format(3001, 3050)}".encode())
    run(b"DELETE FROM t WHERE id BETWEEN 3001 AND 3010")
    session.commit()
    ends.check()
    assert ends.streamed() == 2


def test_ddl_inside(ends: Ends) -> None:
    """Columns that come and go within transactions under way, committed or rolled back; others go on between."""
    rolled_back, session = ends.session(), ends.session()
    rolled_back.execute(b"ALTER TABLE ev ADD more int")
    rolled_back.execute(b"INSERT INTO ev SELECT i, repeat('r', 100), i FROM generate_series(1, 900) i")
    ends.line.at_source(f"INSERT INTO t {MANY.format(1, 400)}")
    rolled_back.rollback()
    ends.line.at_source("INSERT INTO ev VALUES (1, 'plain')")
    session.execute(b"INSERT INTO ev SELECT i, repeat('s', 100) FROM generate_series(10, 900) i")
    session.execute(b"SAVEPOINT s")
    session.execute(b"ALTER TABLE ev ADD gone int")
    session.execute(b"INSERT INTO ev SELECT i, repeat('g', 100), i FROM generate_series(1000, 1900) i")
    session.execute(b"ROLLBACK TO s")
    session.execute(b"ALTER TABLE ev ADD stays int DEFAULT 5, ADD also text")
    session.execute(b"INSERT INTO ev SELECT i, repeat('s', 100), 6, 'x' FROM generate_series(2000, 2900) i")
    session.commit()
    ends.line.at_source("INSERT INTO ev VALUES (3000, 'after', 1)")
    ends.line.run()
    assert ends.streamed() >= 2
    ends.line.same("(SELECT id, a FROM ev)", "(SELECT id, a FROM replica.ev)")
    assert ends.line.at_hub("SELECT count(*) FROM replica.ev") == [(1 + 891 + 901 + 1,)]


@pytest.mark.parametrize(("verb", "rows"), [("COMMIT", 400), ("ROLLBACK", 0)])
def test_prepared(verb: str, rows: int, ends: Ends) -> None:
    """A large prepared transaction, sent while it was under way, is applied where it is committed, or not at all."""
    session = ends.session()
    session.execute(f"INSERT INTO t {MANY.format(1, 400)}".encode())
    session.execute(b"PREPARE TRANSACTION 'towline_streamed'")
    session.rollback()
    ends.line.at_source("INSERT INTO log VALUES (1, 'between')")
    with running(ends.line):
        until(lambda: ends.line.at_hub("SELECT count(*) FROM replica.log") == [(1,)], 30)
        until(lambda: spooled(ends.line)[0] == 1, 30)
        assert ends.line.at_hub("SELECT count(*) FROM replica.t") == [(0,)]
        with psycopg.connect(ends.line.source, autocommit=True) as connection:
            connection.execute(f"{verb} PREPARED 'towline_streamed'".encode())
        until(lambda: spooled(ends.line)[0] == 0, 30)
    assert ends.streamed() == 1
    ends.check()
    assert ends.line.at_hub("SELECT count(*) FROM replica.t") == [(rows,)]


def test_what_is_rolled_back_frees_the_spool(ends: Ends) -> None:
    """At once, of a subtransaction too; the metrics show how much is kept."""
    session = ends.session()
    session.execute(f"INSERT INTO t {NOISE} generate_series(1, 500) i".encode())
    with running(ends.line):
        until(lambda: spooled(ends.line)[1] > 100_000, 30)
        _, before = spooled(ends.line)
        session.execute(b"SAVEPOINT a")
        session.execute(f"INSERT INTO t {NOISE} generate_series(1001, 3000) i".encode())
        until(lambda: spooled(ends.line)[1] > before + 700_000, 30)
        session.execute(b"ROLLBACK TO a")
        ends.line.at_source("INSERT INTO log VALUES (1, 'has what was rolled back written to the log')")
        until(lambda: spooled(ends.line)[1] < before + 300_000, 30)
        assert spooled(ends.line)[0] == 1
        session.execute(f"INSERT INTO t {MANY.format(4001, 4400)}".encode())
        session.commit()
        until(lambda: spooled(ends.line) == (0, 0), 30)
        session.execute(f"INSERT INTO t {NOISE} generate_series(5001, 6000) i".encode())
        until(lambda: spooled(ends.line)[1] > 300_000, 30)
        session.rollback()
        ends.line.at_source("INSERT INTO log VALUES (2, 'likewise')")
        until(lambda: spooled(ends.line) == (0, 0), 30)
    ends.check()
    assert ends.line.at_hub("SELECT count(*) FROM replica.t") == [(900,)]


def test_while_tables_are_copied(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Chunks are read while large transactions are under way, begun before, between and after them."""
    line = make(tmp_path, new_database(pg18), new_database(hub18), more="snapshot: {chunk_rows: 300}")
    line.at_source(f"INSERT INTO t {MANY.format(1, 6000)}")
    dice = random.Random(7)

    def write() -> None:
        with psycopg.connect(line.source) as connection:
            for _ in range(60):
                first = dice.randrange(1, 5500)
                connection.execute(f"UPDATE t SET n = n + 1 WHERE id BETWEEN {first} AND {first + 500}".encode())
                connection.execute(f"DELETE FROM t WHERE id BETWEEN {first} AND {first + 5}".encode())
                if dice.random() < 0.3:
                    connection.rollback()
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        line.run()
    finally:
        writer.join()
    line.run()
    line.same("public.t", "replica.t", "id")
    assert line.verify().differing == 0


def test_column_followed(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """A column added within a transaction under way is added at the target too, with the values of all rows."""
    routes = "  - {from: public.*, into: replica.*, on_schema_change: evolve}"
    line = make(tmp_path, new_database(pg18), new_database(hub18), routes=routes)
    line.at_source("INSERT INTO log SELECT i, 'before' FROM generate_series(1, 50) i")
    line.run()
    daemon = Daemon(line.path, tmp_path / "daemon.log")
    try:
        with psycopg.connect(line.source) as session:
            session.execute(b"INSERT INTO log SELECT i, repeat('s', 100) FROM generate_series(1000, 1900) i")
            session.execute(b"ALTER TABLE log ADD more int DEFAULT 5, ADD also text")
            session.execute(b"INSERT INTO log SELECT i, repeat('s', 100), 6, 'x' FROM generate_series(2000, 2900) i")
            session.execute(b"UPDATE log SET also = 'y' WHERE id < 10")
        line.at_source("INSERT INTO log VALUES (3000, 'after', 1, 'z')")
        columns = (
            "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'replica' AND table_name = 'log'"
        )
        rows = "SELECT count(*), sum(more), count(also) FROM {}.log"
        until(
            lambda: line.at_hub(columns) == [(4,)] and line.at_hub(rows.format("replica")) == [(1853, 10162, 911)],
            60,
            daemon.log,
        )
        line.same("(SELECT id, line, more, also FROM log)", "(SELECT id, line, more, also FROM replica.log)")
        assert _streams(line) > 0
    finally:
        daemon.kill()


# ---- What an operator sees of it ------------------------------------------------------------------------------


def shown(line: Line) -> dict[str, Any]:
    """What `towline status --json` has of large transactions."""
    found: dict[str, Any] = status.read(line.config).as_json()["large_transactions"]
    return found


@pytest.mark.parametrize("server", ["pg15", "pg18"])
def test_status(
    server: str, request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Whether large transactions are streamed, or spill at the source, and whether they do since the spool was full."""
    source: Server = request.getfixturevalue(server)
    line = make(tmp_path, new_database(source), new_database(hub18), more="spool: {max_bytes: 1048576}")
    line.run()
    assert shown(line)["streaming"] is None
    daemon = Daemon(line.path, tmp_path / "daemon.log")
    try:
        until(lambda: shown(line)["streaming"] == "on", 30, daemon.log)
        line.at_source(f"INSERT INTO t {MANY.format(1, 400)}")
        until(lambda: shown(line)["streamed"] == 1, 30, daemon.log)
        found = shown(line)
        assert found["streamed_bytes"] > 65536 and (found["spilled"], found["spilled_bytes"]) == (0, 0)
        with psycopg.connect(line.source) as session:
            session.execute(f"INSERT INTO t {NOISE} generate_series(10001, 13000) i".encode())
            until(lambda: shown(line)["streaming"] == "suspended", 30, daemon.log)
            until(lambda: shown(line)["spilled"] > 0, 30, lambda: f"{shown(line)} {daemon.log()}")
        assert shown(line)["spilled_bytes"] > 1 << 20
        until(lambda: line.at_hub("SELECT count(*) FROM replica.t") == [(3400,)], 30, daemon.log)
    finally:
        daemon.kill()
    off = line.path.read_text("utf-8").replace("streaming: auto", "streaming: off")
    line.path.write_text(off, "utf-8")
    assert shown(line)["streaming"] == "off"


# ---- A full spool ---------------------------------------------------------------------------------------------


def test_full(
    pg18: Server,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The source keeps large transactions until those that filled the spool have ended; then it is used again."""
    line = make(tmp_path, new_database(pg18), new_database(hub18), more="spool: {max_bytes: 1048576}")
    line.run()
    caplog.set_level(logging.INFO)
    streaming = Streaming()

    def attempt() -> None:
        line.replication(streaming=streaming).run(until_caught_up=True)

    with psycopg.connect(line.source) as session:
        session.execute(f"INSERT INTO t {NOISE} generate_series(1, 3000) i".encode())
        line.at_source("INSERT INTO log VALUES (1, 'between')")
        with pytest.raises(SpoolFull):
            attempt()
        assert "spool_full" in caplog.text
        attempt()  # although it is under way
        assert line.at_hub("SELECT count(*) FROM replica.log") == [(1,)]
        session.execute(f"INSERT INTO t {NOISE} generate_series(3001, 4000) i".encode())
    attempt()
    line.same("public.t", "replica.t", "id")
    assert streaming.suspended

    def restarted() -> bool:
        line.at_source("SELECT pg_log_standby_snapshot()")
        attempt()
        return not streaming.suspended

    until(restarted, 30)
    before = _streams(line)
    line.at_source(f"INSERT INTO t {MANY.format(10_000, 10_400)}")
    attempt()
    line.same("public.t", "replica.t", "id")
    assert _streams(line) > before


def _streams(line: Line) -> int:
    rows = line.at_source(
        "SELECT sum(stream_txns) FROM pg_stat_replication_slots s JOIN pg_replication_slots USING (slot_name)"
        " WHERE database = current_database()"
    )
    return int(rows[0][0])
