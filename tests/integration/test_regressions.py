"""Defects that were found by reading the code with a plan, each proved by the test that would have caught it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.apply_cases import START, WHEN, Batch, Hub
from tests.support.checked import Ends, spec
from tests.support.databases import NewDatabase, create_database, drop_database
from tests.support.line import Line
from tests.support.wait import until
from towline import chunk_reader, pipeline
from towline.change import Chunk, Format, Relation
from towline.demo.server import Server
from towline.errors import RowRefused, TargetTableChanged
from towline.frame import Frame
from towline.postgres.catalog import describe
from towline.source.postgres.relations import relations_of
from towline.source.postgres.tables import PostgresTables
from towline_transforms.route import OnDelete
from towline_transforms.schema import TableName


@pytest.fixture(scope="module")
def database(pg18: Server) -> Iterator[str]:
    """A database for all tests of the file that apply pieces made by hand; each empties it."""
    name = create_database(pg18)
    yield pg18.dsn(name)
    drop_database(pg18, name)


@pytest.fixture
def hub(database: str) -> Iterator[Hub]:
    hub = Hub(database, Format.BINARY)
    yield hub
    hub.close()


class _Killed(Exception):
    """Ends an attempt at a point of its loop."""


# ---- chunks ----------------------------------------------------------------------------------------------------


def test_a_chunk_that_waited_for_a_table_to_be_rewritten_has_its_rows(pg18: Server, new_database: NewDatabase) -> None:
    """A rewritten table looks empty to an older snapshot: a chunk that waits for the rewrite must not say it ended."""
    dsn = new_database(pg18)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE t (id int PRIMARY KEY, v text, other int)")
        admin.execute("INSERT INTO t SELECT n, 'v' || n, n FROM generate_series(1, 1000) n")
        admin.execute("CREATE SCHEMA hub; CREATE TABLE hub.t (id int PRIMARY KEY, v text)")
        ends = Ends(dsn, dsn)
        routes = ends.apply(spec("public.t", "hub.t", "SELECT id, v FROM t"))
        found_there = describe(ends.source, [TableName("public", "t")])
        (relation,) = relations_of(routes, found_there, plugin="pgoutput", server_version=180000)
        ends.close()
        tables = PostgresTables(dsn, slot="none")
        tables.chunk(relation, None, 10)  # what is read once and kept, is
        found: list[int] = []
        with psycopg.connect(dsn) as altering:
            altering.execute("ALTER TABLE t ALTER other TYPE bigint")
            thread = threading.Thread(target=lambda: found.append(len(tables.chunk(relation, None, 5000).rows)))
            thread.start()
            until(lambda: _waiting(admin) == 1)
            altering.commit()
        thread.join(10)
        tables.close()
    assert found == [1000]


def _waiting(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    assert row is not None
    return int(row[0])


# ---- rows with gaps --------------------------------------------------------------------------------------------


def test_a_key_that_changes_into_an_equal_one_with_unchanged_toast(hub: Hub) -> None:
    """1.0 becomes 1.00: the row moves onto itself, and stays."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.n (k numeric PRIMARY KEY, v int, note text);
        CREATE TABLE hub.n (LIKE src.n INCLUDING ALL);
        """,
        spec("src.n", "hub.n"),
    )
    hub.apply(hub.batch().insert("n", k="1.0", v="1", note="long"))
    hub.apply(hub.batch().rekey("n", {"k": "1.0"}, missing="note", k="1.00", v="2"))
    assert hub.rows("SELECT k::text, v, note FROM hub.n") == [("1.00", 2, "long")]


@pytest.mark.parametrize("on_delete", [OnDelete.MARK, OnDelete.IGNORE, OnDelete.DELETE])
def test_a_row_comes_back_through_the_filter_with_unchanged_toast(hub: Hub, on_delete: OnDelete) -> None:
    """What changed while the route did not want the row is not at the target, though a row is."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.o (id int PRIMARY KEY, state text, note text);
        CREATE TABLE hub.o (id int PRIMARY KEY, note text, state text, gone boolean);
        """,
        spec(
            "src.o",
            "hub.o",
            "SELECT id, note, state FROM o WHERE state = 'open'",
            on_delete=on_delete,
            mark_column="gone" if on_delete is OnDelete.MARK else None,
        ),
    )
    hub.apply(hub.batch().insert("o", id="1", state="open", note="old"))
    hub.apply(hub.batch().update("o", id="1", state="held", note="new"))
    hub.source_rows["o"] = [{"id": "1", "state": "open", "note": "new"}]
    hub.apply(hub.batch().update("o", id="1", state="open", missing="note"))
    assert hub.rows("SELECT id, note, state FROM hub.o") == [(1, "new", "open")]


# ---- statements ------------------------------------------------------------------------------------------------


def test_a_row_is_refused_before_many_new_rows_of_another_table(hub: Hub) -> None:
    """An earlier statement's refusal must not be taken for that of the COPY behind it."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.a (id int PRIMARY KEY, code text);
        CREATE TABLE hub.a (id int PRIMARY KEY, code text UNIQUE);
        CREATE TABLE src.b (id int PRIMARY KEY);
        CREATE TABLE hub.b (id int PRIMARY KEY);
        """,
        spec("src.a", "hub.a"),
        spec("src.b", "hub.b"),
    )
    hub.apply(hub.batch().insert("a", id="1", code="x").insert("a", id="2", code="y"))
    batch = hub.batch().update("a", id="1", code="t").update("a", id="2", code="x").update("a", id="1", code="y")
    for number in range(1000):
        batch.insert("b", id=str(number))
    hub.apply(batch)
    assert hub.rows("SELECT * FROM hub.a ORDER BY 1") == [(1, "y"), (2, "x")]
    assert hub.rows("SELECT count(*) FROM hub.b") == [(1000,)]


def test_a_row_that_is_read_again_takes_only_what_the_log_left_out(hub: Hub) -> None:
    """The source is ahead: the row refers there to a parent that the stream will only tell of later."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.p (id int PRIMARY KEY);
        CREATE TABLE src.o (id int PRIMARY KEY, p int, code text, state text, note text);
        CREATE TABLE hub.p (id int PRIMARY KEY);
        CREATE TABLE hub.o (id int PRIMARY KEY, p int REFERENCES hub.p, code text UNIQUE, note text);
        """,
        spec("src.p", "hub.p"),
        spec("src.o", "hub.o", "SELECT id, p, code, note FROM o WHERE state = 'open'"),
    )
    batch = hub.batch().insert("p", id="1").insert("o", id="1", p="1", code="a", state="new", note="n")
    hub.apply(batch.insert("o", id="2", p="1", code="b", state="open", note="m"))
    hub.source_rows["o"] = [{"id": "1", "p": "2", "code": "b", "state": "open", "note": "later"}]
    hub.apply(hub.batch().update("o", id="1", p="1", code="a", state="open", missing="note"))
    assert hub.rows("SELECT * FROM hub.o WHERE id = 1") == [(1, 1, "a", "later")]
    hub.apply(hub.batch().insert("p", id="2").delete("o", id="2"))
    hub.apply(hub.batch().update("o", id="1", p="2", code="b", state="open", note="later"))
    assert hub.rows("SELECT * FROM hub.o") == [(1, 2, "b", "later")]


def test_a_row_that_is_gone_at_the_source_gives_its_unique_value_away(hub: Hub) -> None:
    """Its gaps cannot be filled any more, but what the log says of it makes room for another row."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.t (id int PRIMARY KEY, code text, f float8, note text);
        CREATE TABLE hub.t (id int PRIMARY KEY, code text UNIQUE DEFERRABLE, f float8, note text);
        """,
        spec("src.t", "hub.t"),
    )
    hub.apply(hub.batch().insert("t", id="1", code="a", f="1").insert("t", id="2", code="b", f="2"))
    batch = hub.batch().update("t", id="1", code="c", unknown="f").update("t", id="2", code="a", f="2")
    hub.apply(batch.update("t", id="9", code="n", unknown="f"))
    assert hub.rows("SELECT * FROM hub.t ORDER BY 1") == [(1, "c", 1.0, None), (2, "a", 2.0, None)]
    hub.apply(hub.batch().delete("t", id="1").delete("t", id="9"))
    assert hub.rows("SELECT id FROM hub.t") == [(2,)]
    assert hub.ledger()["src.t"] == (7, 3, 2, 2, 0)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_row_does_not_take_along_what_was_read_ahead(hub: Hub, restarted: bool) -> None:
    """Two rows change places, and one moves on; its place is taken by another row when it is read again."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.t (id int PRIMARY KEY, note text);
        CREATE TABLE hub.t (id int PRIMARY KEY, note text);
        """,
        spec("src.t", "hub.t"),
    )

    def reread(relation: Relation, keys: Frame) -> Chunk:
        return replace(hub.reread(relation, keys), high=START + 0x50)

    def apply(batch: Batch) -> None:
        target.begin()
        target.apply(batch.piece(), {"src.t"}, reread)
        target.commit(START, WHEN)

    target = hub.target()
    apply(hub.batch().insert("t", id="1", note="one").insert("t", id="2", note="two").insert("t", id="3", note="three"))
    # At the source: 1 and 2 change places, 1 (then 2) goes on to 4, and 3 comes to 2.
    hub.source_rows["t"] = [{"id": "1", "note": "two"}, {"id": "4", "note": "one"}, {"id": "2", "note": "three"}]
    swap = hub.batch().rekey("t", {"id": "1"}, missing="note", id="0").rekey("t", {"id": "2"}, missing="note", id="1")
    apply(swap.rekey("t", {"id": "0"}, missing="note", id="2"))
    if restarted:
        target.close()
        target = hub.target()
        target.read_ahead(START + 0x60)
    apply(hub.batch().rekey("t", {"id": "2"}, missing="note", id="4"))
    apply(hub.batch().rekey("t", {"id": "3"}, missing="note", id="2"))
    assert hub.rows("SELECT * FROM hub.t ORDER BY 1") == [(1, "two"), (2, "three"), (4, "one")]


# ---- errors ----------------------------------------------------------------------------------------------------


def test_a_row_for_which_a_function_fails_without_a_code_is_refused(hub: Hub) -> None:
    """It is found among the others, and not taken for an outage that passes."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.t (id int PRIMARY KEY, v text);
        CREATE TABLE hub.t (id int PRIMARY KEY, v text);
        CREATE FUNCTION hub.f() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.v = 'bad' THEN RAISE 'secret %', NEW.v USING ERRCODE = 'XX000'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER t BEFORE INSERT ON hub.t FOR EACH ROW EXECUTE FUNCTION hub.f();
        """,
        spec("src.t", "hub.t"),
    )
    batch = hub.batch()
    for number in range(20):
        batch.insert("t", id=str(number), v="bad" if number == 13 else "good")
    with pytest.raises(RowRefused, match="XX000") as refused:
        hub.apply(batch)
    assert "secret" not in str(refused.value)


def test_a_table_that_may_not_be_written_to_is_no_conflict(hub: Hub) -> None:
    """A publication of the hub's own makes updates fail until a person acts."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.t (id int PRIMARY KEY, v text);
        CREATE TABLE hub.t (id int NOT NULL UNIQUE, v text);
        """,
        spec("src.t", "hub.t"),
    )
    hub.apply(hub.batch().insert("t", id="1", v="a"))
    hub.sql.execute("CREATE PUBLICATION onward FOR TABLE hub.t")
    try:
        with pytest.raises(TargetTableChanged, match="replica identity"):
            hub.apply(hub.batch().update("t", id="1", v="b"))
    finally:
        hub.sql.execute("DROP PUBLICATION onward")


# ---- foreign keys ----------------------------------------------------------------------------------------------

CASCADES = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.p (id int PRIMARY KEY, code text UNIQUE, note text);
CREATE TABLE src.c (id int PRIMARY KEY, p int, code text, note text);
CREATE TABLE hub.p (id int PRIMARY KEY, code text UNIQUE, note text);
CREATE TABLE hub.c (id int PRIMARY KEY, p int REFERENCES hub.p ON DELETE CASCADE ON UPDATE CASCADE,
  code text REFERENCES hub.p (code) ON DELETE CASCADE, note text);
"""


def test_a_parents_key_changes_under_a_cascading_foreign_key(hub: Hub) -> None:
    """The children of a parent that gets another key are not deleted with the old one."""
    hub.set_up(CASCADES, spec("src.p", "hub.p"), spec("src.c", "hub.c"))
    hub.apply(
        hub.batch()
        .insert("p", id="1", code="x", note="n")
        .insert("c", id="1", p="1", note="long")
        .insert("c", id="2", code="x")
    )
    hub.apply(
        hub.batch().rekey("p", {"id": "1"}, id="2", code="x", note="n").update("c", id="1", p="2", missing="note")
    )
    assert hub.reread_keys == []
    hub.apply(hub.batch().rekey("p", {"id": "7"}, id="8", code="z").rekey("p", {"id": "2"}, id="1", code="x", note="m"))
    assert hub.rows("SELECT * FROM hub.p ORDER BY 1") == [(1, "x", "m"), (8, "z", None)]
    assert hub.rows("SELECT * FROM hub.c ORDER BY 1") == [(1, 1, None, "long"), (2, None, "x", None)]
    assert hub.ledger()["src.p"] == (7, 4, 3, 0, 0)


# ---- signs of life ---------------------------------------------------------------------------------------------


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    return Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.*, into: replica.*}")


def test_an_idle_session_is_used_more_often_than_the_checkpoint_moves(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's server ends sessions that are idle for a minute; `checkpoint_seconds` may be an hour."""
    monkeypatch.setattr(pipeline, "_HEARTBEAT", 0.1)
    line.path.write_text(line.path.read_text().replace("checkpoint_seconds: 0.5", "checkpoint_seconds: 3600"))
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    line.apply()
    stop = threading.Event()
    attempt = line.replication(stop.is_set)
    thread = threading.Thread(target=attempt.run, kwargs={"until_caught_up": False})
    thread.start()
    used: set[object] = set()
    try:
        until(lambda: line.at_hub("SELECT count(*) FROM towline.route_state WHERE state = 'streaming'") == [(1,)])

        def used_often() -> bool:
            query = (
                "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
                " AND application_name LIKE 'towline%'"
            )
            used.update(line.at_hub(query))
            return len(used) > 2

        until(used_often)
    finally:
        stop.set()
        if attempt.handle.pipeline is not None:
            attempt.handle.pipeline.stop()
        thread.join(20)


def test_a_large_transaction_shows_signs_of_life(line: Line) -> None:
    """What takes long, but goes on, is not taken for dead: each piece of it counts."""
    line.path.write_text(line.path.read_text() + "batch: {max_rows: 10}\n")
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    line.apply()
    line.run()
    beats: list[float] = []

    def announce(point: str) -> None:
        if point == "within-transaction" and attempt.handle.pipeline is not None:
            beats.append(attempt.handle.pipeline.beat)

    attempt = line.replication(announce=announce)
    line.at_source("INSERT INTO t SELECT generate_series(1, 100)")
    attempt.run(until_caught_up=True)
    assert len(beats) > 3 and len(set(beats)) == len(beats)


def test_a_snapshot_says_what_it_waits_for(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A prepared transaction that was forgotten would hold it up for good, without a word."""
    monkeypatch.setattr(chunk_reader, "_BARRIER_SAY", 0.1)
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    line.apply()
    attempt = line.replication()
    thread = threading.Thread(target=attempt.run, kwargs={"until_caught_up": True})
    with psycopg.connect(line.source, autocommit=True) as admin:
        admin.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'")
        thread.start()
        try:
            until(lambda: "snapshot_waits" in caplog.text)
        finally:
            admin.execute("COMMIT PREPARED 'forgotten'")
            thread.join(20)
    assert line.same("t", "replica.t") == 1


def test_a_commit_that_waits_for_a_standby_is_not_undone_by_a_chunk(line: Line) -> None:
    """It was applied by the attempt before; the chunk of this one must wait until it is visible."""
    line.path.write_text(line.path.read_text() + "snapshot: {chunk_rows: 10}\n")
    line.at_source(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 30) n"
    )
    line.apply()
    chunks: list[str] = []

    def stop_after_first_chunk(point: str) -> None:
        if point == "chunk-loaded":
            chunks.append(point)
        if point == "chunk-read" and chunks:
            raise _Killed

    with pytest.raises(_Killed):
        line.replication(announce=stop_after_first_chunk).run(until_caught_up=True)
    with psycopg.connect(line.source, autocommit=True) as admin, psycopg.connect(line.source) as waiting:
        waiting.execute("SET synchronous_commit = on")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        until(lambda: admin.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",))
        waiting.execute("UPDATE t SET v = 'new' WHERE id = 30")
        committing = threading.Thread(target=waiting.commit)
        committing.start()
        try:
            seen = "SELECT v FROM replica.t WHERE id = 30"

            def stop_when_applied(point: str) -> None:
                if point == "committed" and line.at_hub(seen) == [("new",)]:
                    raise _Killed

            with pytest.raises(_Killed):
                line.replication(announce=stop_when_applied).run(until_caught_up=False)
            attempt = line.replication()
            thread = threading.Thread(target=attempt.run, kwargs={"until_caught_up": True})
            thread.start()
            thread.join(3)  # it would have ended by now
        finally:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            committing.join(20)
        thread.join(20)
    assert line.same("t", "replica.t") == 30
