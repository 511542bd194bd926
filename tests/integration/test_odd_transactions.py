"""Transactions that end otherwise than by COMMIT, or hold nothing that is wanted: right, and cheap, for each plugin."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline.demo.server import Server
from towline.position import parse_lsn

WAYS = [("pg18", "pgoutput"), ("pg15", "wal2json")]


@pytest.fixture(params=WAYS, ids="-".join)
def line(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Line]:
    """A table with rows, set up but not copied; chunks of 40 rows."""
    name, plugin = request.param
    server: Server = request.getfixturevalue(name)
    routes = "  - {from: public.t, into: replica.t}"
    line = Line.make(
        tmp_path, new_database(server), new_database(hub18), routes, plugin=plugin, more="snapshot: {chunk_rows: 40}"
    )
    line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text, big text)")
    line.at_source("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    line.at_source("CREATE TABLE unrouted (id bigint GENERATED ALWAYS AS IDENTITY, v text)")
    line.at_source("INSERT INTO t SELECT n, 'v' || n, repeat('x', 3000) FROM generate_series(1, 100) n")
    line.apply()
    yield line
    for (gid,) in line.at_source("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        execute(line, f"ROLLBACK PREPARED '{gid}'")


def execute(line: Line, *statements: str) -> None:
    """Each by itself, in autocommit mode."""
    with psycopg.connect(line.source, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def prepare(line: Line, gid: str, *statements: str) -> None:
    """A prepared transaction."""
    execute(line, "BEGIN", *statements, f"PREPARE TRANSACTION '{gid}'")


def equal(line: Line) -> None:
    line.run()
    line.same("t", "replica.t")


def committed(line: Line) -> float:
    """How many transactions the target has had."""
    return line.metrics.registry.get_sample_value("towline_batches_total", {"pipeline": line.config.pipeline}) or 0.0


def test_two_phases(line: Line) -> None:
    """A prepared transaction is nothing until it is committed, also when the daemon is another by then."""
    equal(line)
    gid = line.config.pipeline
    prepare(line, f"{gid}-a", "UPDATE t SET v = 'two phases' WHERE id <= 10", "INSERT INTO t VALUES (200, 'a', 'b')")
    prepare(line, f"{gid}-b", "DELETE FROM t WHERE id > 90")
    execute(line, "UPDATE t SET v = 'meanwhile' WHERE id = 50")
    line.run()
    assert line.at_hub("SELECT count(*), count(*) FILTER (WHERE v = 'two phases') FROM replica.t") == [(100, 0)]
    assert line.at_hub("SELECT v FROM replica.t WHERE id = 50") == [("meanwhile",)]
    execute(line, f"COMMIT PREPARED '{gid}-a'", f"ROLLBACK PREPARED '{gid}-b'")
    line.run()
    assert line.at_hub("SELECT count(*), count(*) FILTER (WHERE v = 'two phases') FROM replica.t") == [(101, 10)]
    line.same("t", "replica.t")


def test_prepared_before_the_copy(line: Line) -> None:
    """Prepared before the daemon began to listen: the copy waits for its end, and misses none of it."""
    gid = line.config.pipeline
    prepare(line, gid, "UPDATE t SET v = 'two phases' WHERE id % 3 = 0", "DELETE FROM t WHERE id = 7")
    opened = threading.Event()
    replication = line.replication(announce=lambda point: opened.set() if point == "opened" else None)
    thread = threading.Thread(target=lambda: replication.run(until_caught_up=True))
    thread.start()
    assert opened.wait(20)
    execute(line, "INSERT INTO t VALUES (300, 'streamed while it waits', NULL)", f"COMMIT PREPARED '{gid}'")
    thread.join(30)
    assert not thread.is_alive()
    line.same("t", "replica.t")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_prepared_between_chunks(line: Line, end: str) -> None:
    """Prepared before one chunk is read and ended after a later one was: neither seen too early nor missed."""
    gid = line.config.pipeline
    chunks = 0

    def disturb(point: str) -> None:
        nonlocal chunks
        if point != "chunk-loaded":
            return
        chunks += 1
        if chunks == 1:  # rows that are copied, rows of the chunk under way, and rows that follow
            changed = "UPDATE t SET v = 'two phases' WHERE id % 2 = 0"
            prepare(line, gid, changed, "DELETE FROM t WHERE id IN (1, 45, 99)")
        if chunks == 2:
            execute(line, f"{end} PREPARED '{gid}'")

    line.replication(announce=disturb).run(until_caught_up=True)
    assert chunks == 3
    equal(line)


def test_subtransactions(line: Line) -> None:
    """What was rolled back to a savepoint is not there; what was released is, in its order, with large values too."""
    equal(line)
    execute(
        line,
        "BEGIN",
        "UPDATE t SET v = 'kept' WHERE id = 1",
        "SAVEPOINT a",
        "UPDATE t SET v = 'lost', big = repeat('lost', 2000) WHERE id <= 50",
        "DELETE FROM t WHERE id = 2",
        "SAVEPOINT b",
        "INSERT INTO t VALUES (400, 'lost', repeat('y', 9000))",
        "ROLLBACK TO a",
        "UPDATE t SET id = 500 WHERE id = 3",
        "SAVEPOINT c",
        "UPDATE t SET v = 'in a released one', big = repeat('kept', 2000) WHERE id = 500",
        "SAVEPOINT d",
        "TRUNCATE t",
        "ROLLBACK TO d",
        "RELEASE c",
        "INSERT INTO t VALUES (3, 'again', NULL)",
        "COMMIT",
    )
    execute(line, "BEGIN", "DELETE FROM t", "ROLLBACK")
    execute(line, "BEGIN", "SAVEPOINT a", "DELETE FROM t", "ROLLBACK TO a", "COMMIT")
    equal(line)
    assert line.at_hub("SELECT v FROM replica.t WHERE id IN (1, 3, 500) ORDER BY id") == [
        ("kept",),
        ("again",),
        ("in a released one",),
    ]


def test_many_subtransactions(line: Line) -> None:
    """More than a backend keeps in memory, every other one rolled back."""
    equal(line)
    execute(
        line,
        """DO $$ BEGIN FOR n IN 1000..1299 LOOP
             BEGIN
               INSERT INTO t VALUES (n, 'sub', NULL);
               IF n % 2 = 0 THEN RAISE EXCEPTION 'rolled back'; END IF;
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
           END LOOP; END $$""",
    )
    equal(line)
    assert line.at_hub("SELECT count(*) FROM replica.t WHERE v = 'sub'") == [(150,)]


def test_messages(line: Line) -> None:
    """Logical messages, of transactions or not, are none of ours and change nothing."""
    equal(line)
    execute(
        line,
        "SELECT pg_logical_emit_message(false, 'outside', 'x')",
        "SELECT pg_logical_emit_message(true, 'alone', repeat('x', 100000))",
        "BEGIN",
        "INSERT INTO t VALUES (600, 'with a message', NULL)",
        "SELECT pg_logical_emit_message(true, 'inside', '{\"action\": \"I\"}')",
        "SELECT pg_logical_emit_message(false, 'at once', 'x')",
        "UPDATE t SET v = 'after it' WHERE id = 600",
        "COMMIT",
        "BEGIN",
        "SELECT pg_logical_emit_message(false, 'rolled back', 'x')",
        "ROLLBACK",
    )
    equal(line)
    assert line.at_hub("SELECT v FROM replica.t WHERE id = 600") == [("after it",)]


def nothing(line: Line) -> None:
    with psycopg.connect(line.source, autocommit=True) as connection:
        for _ in range(400):
            connection.execute("SELECT pg_current_xact_id()")


def unrouted(line: Line) -> None:
    with psycopg.connect(line.source, autocommit=True) as connection:
        for _ in range(400):
            connection.execute("INSERT INTO unrouted (v) VALUES (repeat('x', 1000))")


def rolled_back(line: Line) -> None:
    with psycopg.connect(line.source, autocommit=True) as connection:
        for _ in range(200):
            with connection.transaction(force_rollback=True):
                connection.execute("UPDATE t SET v = 'no'")


def messages(line: Line) -> None:
    with psycopg.connect(line.source, autocommit=True) as connection:
        for _ in range(400):
            connection.execute("SELECT pg_logical_emit_message(true, 'p', repeat('x', 1000))")


@pytest.mark.parametrize("write", [nothing, unrouted, rolled_back, messages], ids=lambda write: write.__name__)
def test_what_concerns_nobody_is_cheap(line: Line, write: Callable[[Line], None]) -> None:
    """The checkpoint passes it, and so does the slot, with a few transactions at the target instead of one for each."""
    equal(line)
    before, ledger = committed(line), line.at_hub("SELECT sum(seen) FROM towline.ledger")
    write(line)
    end = parse_lsn(str(line.at_source("SELECT pg_current_wal_flush_lsn()")[0][0]))
    line.run()
    assert parse_lsn(str(line.at_hub("SELECT position FROM towline.checkpoint")[0][0])) >= end - 48  # a page's header
    assert line.at_hub("SELECT sum(seen) FROM towline.ledger") == ledger
    assert committed(line) - before <= 10
    slot = line.config.source.slot
    query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s"
    until(lambda: line.at_source(query, f"{end - 48 >> 32:X}/{end - 48 & 0xFFFFFFFF:X}", slot) == [(True,)], 10)
