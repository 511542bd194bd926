"""It stops rather than guesses (promise 5): what is found at start decides, with an error of its own for each case."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from towline import catch_up
from towline.demo.server import Server
from towline.errors import (
    ColumnChanged,
    NotSetUp,
    RoutesRefused,
    SlotAhead,
    SlotInUse,
    SlotMissing,
    SlotUnusable,
    SourceReplaced,
    SourceTruncated,
    SourceUnavailable,
    TimelineUnrelated,
)
from towline.status import read

ROUTES = "  - {from: public.*, into: replica.*}"


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """A table of three rows, replicated once."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), ROUTES)
    line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text)")
    line.at_source("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    line.apply()
    line.run()
    line.same("t", "replica.t")
    return line


def slot(line: Line) -> str:
    return line.config.source.slot


def test_nothing_is_set_up(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """`run` before `apply` says what to run."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), ROUTES)
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    with pytest.raises(NotSetUp):
        line.run()


def test_apply_twice_changes_nothing(line: Line) -> None:
    """`apply` is safe to repeat, and keeps the checkpoint."""
    before = line.at_hub("SELECT position, epoch, created_at FROM towline.checkpoint")
    line.apply()
    assert line.at_hub("SELECT position, epoch, created_at FROM towline.checkpoint") == before
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    line.run()
    assert line.same("t", "replica.t") == 4


def test_the_slot_is_gone(line: Line) -> None:
    """A dropped slot is not made anew in silence: what happened since would be missing."""
    line.at_source("SELECT pg_drop_replication_slot(%s)", slot(line))
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    with pytest.raises(SlotMissing):
        line.run()
    with pytest.raises(SlotMissing):
        line.apply()


def test_the_slot_is_ahead(line: Line) -> None:
    """Somebody else read from the slot."""
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    line.at_source("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", slot(line))
    with pytest.raises(SlotAhead):
        line.run()


def test_the_slot_is_another(line: Line) -> None:
    """A slot of that name, of another plugin."""
    line.at_source("SELECT pg_drop_replication_slot(%s)", slot(line))
    line.at_source("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", slot(line))
    with pytest.raises(SlotUnusable):
        line.run()


def test_the_server_is_another(line: Line) -> None:
    """The address leads to another server than the checkpoint's."""
    line.at_hub("UPDATE towline.checkpoint SET system_identifier = '42'")
    with pytest.raises(SourceReplaced):
        line.run()


def test_the_database_is_another(line: Line, pg18: Server, new_database: NewDatabase) -> None:
    """The same server, another database."""
    other = new_database(pg18)
    with psycopg.connect(other) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    text = line.path.read_text("utf-8").replace(line.source, other)
    line.path.write_text(text, "utf-8")
    with pytest.raises(SourceReplaced):
        line.run()


def test_the_source_was_promoted(line: Line) -> None:
    """Another timeline: the log may have parted from the one that the checkpoint is of."""
    line.at_hub("UPDATE towline.checkpoint SET timeline = timeline + 1")
    with pytest.raises(TimelineUnrelated):
        line.run()
    assert [trouble.code for trouble in read(line.config).errors] == ["TL-327"]


def test_the_slot_is_not_for_failover(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """`failover: true` was written into the file, and `apply` has not been run: the start says what no standby has."""
    text = line.path.read_text("utf-8")
    line.path.write_text(text.replace("plugin: pgoutput", "plugin: pgoutput, failover: true"), "utf-8")
    line.run()
    assert "slot_not_for_failover" in caplog.text
    caplog.clear()
    line.apply()
    line.run()
    assert "slot_not_for_failover" not in caplog.text


@pytest.mark.parametrize("behind", [False, True], ids=["streamed", "behind"])
def test_the_slot_is_in_use(line: Line, behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hubs by mistake: one slot has one reader. It is said at once, and is nothing against catching up later."""
    refused: list[float] = []
    if behind:
        monkeypatch.setattr(catch_up, "BOUNDS", catch_up.Bounds(enter=1, leave=1, follow=1 << 30, again=1 << 20))
        monkeypatch.setattr(catch_up.CatchUp, "refused", lambda self, now: refused.append(now))
    name = slot(line)
    with psycopg.connect(line.source, autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    position = line.at_source("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", name)
    line.at_hub("UPDATE towline.checkpoint SET position = %s", position[0][0])
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    reader = psycopg.pq.PGconn.connect(f"{line.source} replication=database".encode())
    try:
        command = f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names '{name}')"
        assert reader.exec_(command.encode()).status == psycopg.pq.ExecStatus.COPY_BOTH
        with pytest.raises(SlotInUse):
            line.run()
        assert not refused
    finally:
        reader.finish()


def test_a_needed_column_is_gone(line: Line) -> None:
    """The target still has the column: the pipeline halts at the change, and says what it is."""
    line.at_source("ALTER TABLE t RENAME COLUMN v TO w")
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    with pytest.raises(ColumnChanged, match=r"public\.t: column renamed: v \(was v, is w\)"):
        line.run()


def test_truncate_halts(line: Line) -> None:
    """`on_truncate: halt` is the default; the target keeps its rows, and the position stays before it."""
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    line.at_source("TRUNCATE t")
    for _ in range(2):
        with pytest.raises(SourceTruncated):
            line.run()
    assert len(line.at_hub("SELECT FROM replica.t")) >= 3
    line.path.write_text(line.path.read_text("utf-8").replace("replica.*}", "replica.*, on_truncate: delete}"), "utf-8")
    line.at_source("INSERT INTO t VALUES (5, 'e')")
    line.run()
    assert line.at_hub("SELECT id FROM replica.t") == [(5,)]


def test_the_source_is_away(line: Line) -> None:
    """An outage is worth a retry, and names no secret."""
    text = line.path.read_text("utf-8").replace(line.source, "host=127.0.0.1 port=1 user=u password=sesame dbname=d")
    line.path.write_text(text, "utf-8")
    with pytest.raises(SourceUnavailable) as caught:
        line.run()
    assert "sesame" not in f"{caught.value} {caught.value.advice}"


def test_rows_that_are_read_again_are_noted(line: Line) -> None:
    """How far ahead of the log the target may be is durable with the rows: a failover needs to know."""
    line.at_source("CREATE TABLE big (id int PRIMARY KEY, n int, v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL")
    line.at_source("INSERT INTO big VALUES (1, 1, repeat('x', 100000))")
    line.apply()
    line.run()
    assert line.at_hub("SELECT ahead::text FROM towline.checkpoint") == [("0/0",)]
    line.at_hub("DELETE FROM replica.big")
    line.at_source("UPDATE big SET n = 2")  # the log leaves v out, since it has not changed
    line.run()
    assert line.same("big", "replica.big") == 1
    assert line.at_hub("SELECT ahead > '0/0' FROM towline.checkpoint") == [(True,)]


def test_new_tables_of_a_pattern_do_not_stop_the_others(line: Line) -> None:
    """A migration adds tables, one of them without a key: `run` goes on without them, `apply` says what is wrong."""
    line.at_source("CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE keyless (id int)")
    line.at_source("INSERT INTO later VALUES (1); INSERT INTO t VALUES (4, 'd')")
    line.run()
    assert line.same("t", "replica.t") == 4
    with pytest.raises(RoutesRefused):
        line.apply()
    line.at_source("ALTER TABLE keyless ADD PRIMARY KEY (id)")
    line.apply()
    line.run()
    assert line.same("later", "replica.later") == 1
    assert line.verify().differing == 0
