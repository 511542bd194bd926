"""A backlog that is read through SQL: whatever ends that, nothing is lost, and nothing is applied twice."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.demo.server import Server
from towline.source.postgres.catch_up_stream import POINTS

ROWS = 2000
KILLS_AT_RANDOM = 3

#: Transactions of one row, some with a value stored out of line, of about 20 MB of log.
BACKLOG = """
DO $$ BEGIN
  FOR i IN 1..1000 LOOP
    UPDATE stock SET quantity = quantity + 1, remark = repeat(md5(i::text), 600) WHERE sku = 'sku-' || i;
    INSERT INTO private.journal (line) VALUES (repeat('x', 500));
    COMMIT;
  END LOOP;
END $$
"""


@pytest.fixture
def under(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Fault]:
    """A pipeline whose tables are copied, and no daemon."""
    with fault(tmp_path, new_database(pg18), new_database(hub18), rows=ROWS) as made:
        made.path.write_text(made.path.read_text().replace("max_rows: 500", "max_rows: 20"))
        copied(made)
        yield made


def copied(under: Fault) -> None:
    """Have the tables copied, and the daemon stopped."""
    first = under.daemon()
    until(under.copied, 30, first.log)
    first.stop()


def fall_behind(under: Fault) -> None:
    """Write a backlog."""
    with psycopg.connect(under.source, autocommit=True) as connection:
        connection.execute(BACKLOG.encode())


def all_is_right(under: Fault, *, told: str = "caught_up") -> None:
    """The last daemon gets to the end, has told of an event, and source and hub are equal."""
    under.await_position()
    last = under.daemons[-1]
    until(lambda: f"event={told}" in last.log(), 30, last.log)
    last.stop()
    under.verify()
    under.never_ahead()
    assert copies(under) == 0


def copies(under: Fault) -> int:
    """How many temporary slots there are in the source's database."""
    query = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()"
    return int(under.at_source(query)[0][0])


READING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND query LIKE 'COPY (SELECT data FROM pg_logical_slot_get%'
"""


def seen(under: Fault) -> None:
    """Wait until the daemon, which looks each second, has seen how long the log is now."""
    since = under.at_source("SELECT clock_timestamp()")[0][0].isoformat()
    looked = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_wal_lsn_diff%'"
        f" AND query_start > '{since}'::timestamptz + interval '1.5 s' AND pid <> pg_backend_pid()"
    )
    until(lambda: under.at_source(looked))


@contextmanager
def held_up(under: Fault) -> Iterator[None]:
    """The hub lets nobody change the rows that the backlog changes, while the block runs."""
    with psycopg.connect(under.hub) as connection:
        connection.execute("SELECT FROM replica.stock FOR UPDATE")
        yield


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(point: str, under: Fault) -> None:
    """Killed when it passes the point, after the first and the second gulp, while the shop goes on."""
    with shop(under, seed=POINTS.index(point), rows=ROWS):
        for count in ("1", "2") if point == "gulp-read" else ("1",):
            fall_behind(under)
            daemon = under.daemon("--sips", point, count)
            assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
            under.never_ahead()
        fall_behind(under)
        under.daemon("--sips")
    all_is_right(under)


def test_killed_at_random(under: Fault) -> None:
    """At moments that nobody chose, while a backlog grows."""
    moments = random.Random(4)
    with shop(under, seed=98, rate=300, rows=ROWS) as writer:
        for kill in range(KILLS_AT_RANDOM):
            if kill % 3 == 0:
                fall_behind(under)
            daemon = under.daemon("--sips")
            epoch = under.epoch()
            until(lambda epoch=epoch: under.epoch() > epoch, 30, daemon.log)  # type: ignore[misc]
            wait = writer.transactions + moments.randint(0, 150)
            until(lambda wait=wait: writer.transactions >= wait, 30)  # type: ignore[misc]
            daemon.kill()
            under.never_ahead()
        fall_behind(under)
        under.daemon("--sips")
    all_is_right(under)


def test_killed_with_wal2json(pg15: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """The same with the other plugin and an older server."""
    with fault(tmp_path, new_database(pg15), new_database(hub18), plugin="wal2json", rows=ROWS) as under:
        copied(under)
        with shop(under, seed=7, rows=ROWS):
            fall_behind(under)
            daemon = under.daemon("--sips", "gulp-read", "1")
            assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
            under.never_ahead()
            fall_behind(under)
            under.daemon("--sips")
        all_is_right(under)


def test_the_connection_is_cut_inside_a_gulp(under: Fault) -> None:
    """The next attempt reads the backlog through another copy; that of before is gone."""
    fall_behind(under)
    with held_up(under):
        daemon = under.daemon("--sips")
        until(lambda: under.at_source(READING), 30, daemon.log)
        under.at_source(READING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
    # A reader that waits for the consumer to take something notices nothing until then.
    until(lambda: "event=attempt_failed" in daemon.log(), 30, daemon.log)
    all_is_right(under)


def test_the_statement_is_cancelled_inside_a_gulp(under: Fault) -> None:
    """Then the rest is streamed, and that is told."""
    fall_behind(under)
    with held_up(under):
        daemon = under.daemon("--sips")
        until(lambda: under.at_source(READING), 30, daemon.log)
        under.at_source(READING.replace("SELECT pid", "SELECT pg_cancel_backend(pid)"))
        until(lambda: not under.at_source(READING), 30, daemon.log)
    all_is_right(under, told="catch_up_refused")


def test_the_source_restarts_inside_a_gulp(under: Fault, pg18: Server) -> None:
    """The copy is gone with the server, the slot is where it was."""
    fall_behind(under)
    with held_up(under):
        daemon = under.daemon("--sips")
        until(lambda: under.at_source(READING), 30, daemon.log)
        pg18.restart("immediate")
    fall_behind(under)
    all_is_right(under)


def test_no_slot_is_left(under: Fault, pg18: Server) -> None:
    """Without room for a copy the backlog is streamed."""
    fall_behind(under)
    made: list[str] = []
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        try:
            with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
                while True:
                    made.append(f"filler_{len(made)}")
                    connection.execute("SELECT pg_create_physical_replication_slot(%s)", (made[-1],))
            daemon = under.daemon("--sips")
            until(lambda: "event=catch_up_refused" in daemon.log(), 30, daemon.log)
            assert "code=TL-" in daemon.log()
            under.await_position()
        finally:
            for slot in made[:-1]:
                connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    all_is_right(under, told="catch_up_refused")


def test_it_falls_behind_while_it_runs(under: Fault) -> None:
    """A hub that stands still makes a backlog; when it goes on, that is read through SQL."""
    daemon = under.daemon("--sips")
    under.await_position()
    before = daemon.log().count("event=caught_up")
    with held_up(under):
        fall_behind(under)
        seen(under)
    until(lambda: daemon.log().count("event=caught_up") > before, 30, daemon.log)
    with shop(under, seed=5, rows=ROWS) as writer:
        until(lambda: writer.transactions > 100)
    all_is_right(under)


def test_somebody_else_confirms_the_slot(under: Fault) -> None:
    """While the slot itself is free, what others do to it does not go unseen."""
    fall_behind(under)
    with held_up(under):
        daemon = under.daemon("--sips")
        until(lambda: under.at_source(READING), 30, daemon.log)
        slot = under.config.source.slot
        under.at_source(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())")
    assert daemon.await_exit() == 3, daemon.log()
    assert "code=TL-307" in daemon.log()


def test_stopped_inside_a_gulp(under: Fault) -> None:
    """SIGTERM ends the statement at the source, too."""
    fall_behind(under)
    with held_up(under):
        daemon = under.daemon("--sips")
        until(lambda: under.at_source(READING), 30, daemon.log)
        daemon.signal(signal.SIGTERM)
        assert daemon.await_exit(10.0) == 0, daemon.log()
        until(lambda: not copies(under))
    under.daemon("--sips")
    all_is_right(under)
