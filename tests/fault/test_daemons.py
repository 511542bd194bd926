"""Two daemons, stopped daemons, and servers that go away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Daemon, Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 500


@pytest.fixture
def under(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Fault]:
    source, hub = new_database(pg18), new_database(hub18)
    with fault(tmp_path, source, hub, rows=ROWS) as made:
        yield made


def active(under: Fault, daemon: Daemon) -> None:
    until(lambda: "event=replicating" in daemon.log(), 30, daemon.log)


def finish(under: Fault, daemon: Daemon) -> None:
    """Caught up, stopped, equal."""
    under.await_position()
    daemon.stop()
    under.verify()
    under.never_ahead()


def test_a_second_daemon_waits_and_takes_over(under: Fault) -> None:
    """The second is the standby while the first lives, and carries on when it is killed."""
    first = under.daemon()
    active(under, first)
    second = under.daemon()
    until(lambda: "event=standby" in second.log(), 30, second.log)
    with shop(under, seed=1, rows=ROWS):
        under.await_progress()
        assert under.epoch() == 1
        first.kill()
        until(lambda: under.epoch() == 2, 30, second.log)
        under.await_progress()
    finish(under, second)


def test_a_standby_takes_over_after_a_table_changed(under: Fault) -> None:
    """It began to wait with another table than the one that it then has to replicate."""
    under.path.write_text(under.path.read_text("utf-8") + "defaults: {on_schema_change: evolve}\n", "utf-8")
    first = under.daemon()
    active(under, first)
    second = under.daemon()
    until(lambda: "event=standby" in second.log(), 30, second.log)
    under.at_source("ALTER TABLE item ADD seen int DEFAULT 1; UPDATE item SET seen = id WHERE id % 2 = 0")
    added = "SELECT FROM pg_attribute WHERE attrelid = 'replica.item'::regclass AND attname = 'seen'"
    until(lambda: under.at_hub(added) != [], 30, first.log)
    first.kill()
    until(lambda: under.epoch() == 2, 30, second.log)
    under.at_source("UPDATE item SET seen = -id WHERE id % 3 = 0; INSERT INTO item VALUES (-1, 'new', 1)")
    finish(under, second)


def test_a_standby_can_be_stopped(under: Fault) -> None:
    """SIGTERM ends a waiting daemon too."""
    first = under.daemon()
    active(under, first)
    second = under.daemon()
    until(lambda: "event=standby" in second.log(), 30, second.log)
    second.stop()
    finish(under, first)


def test_a_stale_daemon_cannot_write(under: Fault) -> None:
    """A frozen daemon whose sessions were ended is replaced; when it wakes up it becomes the standby."""
    first = under.daemon()
    with shop(under, seed=2, rows=ROWS):
        active(under, first)
        under.await_progress()
        first.signal(signal.SIGSTOP)
        under.at_hub(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'towline%'"
        )
        under.at_source(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'towline%'"
        )
        second = under.daemon()
        active(under, second)
        under.await_progress()
        first.signal(signal.SIGCONT)
        until(lambda: "event=standby" in first.log(), 60, first.log)
        assert under.epoch() == 2
        under.await_progress()
    first.stop()
    finish(under, second)


def test_a_stale_transaction_is_fenced(under: Fault) -> None:
    """Frozen between applying and committing, with its session alive and its lock stolen: the commit is refused."""
    first = under.daemon()
    with shop(under, seed=3, rows=ROWS):
        active(under, first)
        under.await_progress()
    under.await_position()
    first.signal(signal.SIGSTOP)
    under.at_hub("UPDATE towline.checkpoint SET epoch = epoch + 1")
    under.at_source("INSERT INTO item SELECT 1000000, 'late', 1")
    first.signal(signal.SIGCONT)
    until(lambda: "code=TL-404" in first.log(), 30, first.log)
    finish(under, first)


def test_the_target_restarts(under: Fault, hub18: Server) -> None:
    """Immediate shutdown of the hub in the middle of the load, twice."""
    daemon = under.daemon()
    with shop(under, seed=4, rows=ROWS):
        active(under, daemon)
        for _ in range(2):
            under.await_progress()
            hub18.kill()
            until(lambda: "code=TL-401" in daemon.log(), 30, daemon.log)
            hub18.start()
            under.await_progress()
    finish(under, daemon)


def test_the_source_restarts(under: Fault, pg18: Server) -> None:
    """The same with the source."""
    daemon = under.daemon()
    with shop(under, seed=5, rows=ROWS):
        active(under, daemon)
        for _ in range(2):
            under.await_progress()
            pg18.stop("immediate")
            until(lambda: "code=TL-301" in daemon.log(), 30, daemon.log)
            pg18.start()
            under.await_progress()
    finish(under, daemon)


def test_reload_takes_a_new_table(under: Fault) -> None:
    """SIGHUP after `apply`: a table that matches the pattern is copied and streamed, the daemon stays up."""
    daemon = under.daemon()
    with shop(under, seed=6, rows=ROWS):
        active(under, daemon)
        under.await_progress()
        under.at_source("CREATE TABLE late (id int PRIMARY KEY, v text)")
        under.at_source("INSERT INTO late SELECT n, 'v' || n FROM generate_series(1, 1000) n")
        under.apply()
        daemon.signal(signal.SIGHUP)
        until(lambda: "event=reloaded" in daemon.log(), 30, daemon.log)
        under.at_source("UPDATE late SET v = 'changed' WHERE id % 2 = 0")
    under.await_position()
    rows = "SELECT id, v FROM {}.late ORDER BY id"
    assert under.at_hub(rows.format("replica")) == under.at_source(rows.format("public"))
    finish(under, daemon)


def test_a_wrong_reload_is_refused(under: Fault) -> None:
    """SIGHUP with a broken file: the old configuration stays in force."""
    daemon = under.daemon()
    active(under, daemon)
    good = under.path.read_text("utf-8")
    under.path.write_text(good + "nonsense: true\n", "utf-8")
    daemon.signal(signal.SIGHUP)
    until(lambda: "event=reload_refused" in daemon.log(), 30, daemon.log)
    under.path.write_text(good, "utf-8")
    with shop(under, seed=8, rows=ROWS):
        under.await_progress()
    finish(under, daemon)


def test_a_reload_that_is_ahead_of_apply_is_refused(under: Fault) -> None:
    """A route that has no state yet: the daemon goes on as before, and takes the file after `apply`."""
    daemon = under.daemon()
    active(under, daemon)
    under.at_source("CREATE SCHEMA other; CREATE TABLE other.thing (id int PRIMARY KEY)")
    good = under.path.read_text("utf-8")
    under.path.write_text(good + "  - {from: other.thing, into: replica.thing}\n", "utf-8")
    daemon.signal(signal.SIGHUP)
    until(lambda: "event=reload_refused" in daemon.log(), 30, daemon.log)
    assert "code=TL-503" in daemon.log() and "other.thing" in daemon.log()
    with shop(under, seed=8, rows=ROWS):
        under.await_progress()
    under.apply()
    daemon.signal(signal.SIGHUP)
    until(lambda: "event=reloaded" in daemon.log(), 30, daemon.log)
    under.at_source("INSERT INTO other.thing SELECT generate_series(1, 100)")
    under.await_position()
    assert under.at_hub("SELECT count(*) FROM replica.thing") == [(100,)]
    finish(under, daemon)
    assert "event=stopped" in daemon.log()


def test_stopped_inside_a_large_transaction(under: Fault) -> None:
    """SIGTERM while a transaction of many pieces is applied: it is abandoned, and repeated by the next daemon."""
    daemon = under.daemon()
    active(under, daemon)
    under.await_position()
    under.at_source("INSERT INTO stock SELECT 'big', n::text, n FROM generate_series(1, 100000) n")
    daemon.stop()
    under.never_ahead()
    finish(under, under.daemon())


def test_stopped_while_the_target_does_not_answer(under: Fault) -> None:
    """SIGTERM while the batch waits for another session's lock: abandoned, exit 0 within 10 s, nothing lost."""
    daemon = under.daemon()
    active(under, daemon)
    under.await_position()
    with psycopg.connect(under.hub) as blocker:
        blocker.execute("LOCK TABLE replica.stock")
        under.at_source("UPDATE stock SET quantity = quantity + 1")
        until(
            lambda: under.at_hub("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL")[0][0] > 0,
            30,
        )
        daemon.stop()
    under.never_ahead()
    finish(under, under.daemon())


def test_reload_alone_takes_a_new_table(under: Fault) -> None:
    """SIGHUP without `apply`: the daemon does what is to be done for it; one without a key disturbs nobody."""
    daemon = under.daemon()
    with shop(under, seed=9, rows=ROWS):
        active(under, daemon)
        under.await_progress()
        under.at_source("CREATE TABLE late (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text)")
        under.at_source("INSERT INTO late SELECT n, 'v' || n FROM generate_series(1, 1000) n")
        daemon.signal(signal.SIGHUP)
        until(lambda: "event=tables_added" in daemon.log(), 30, daemon.log)
        assert "event=table_not_added" in daemon.log()
        under.at_source("UPDATE late SET v = 'changed' WHERE id % 2 = 0")
        under.at_source("DROP TABLE keyless")
    under.await_position()
    rows = "SELECT id, v FROM {}.late ORDER BY id"
    assert under.at_hub(rows.format("replica")) == under.at_source(rows.format("public"))
    finish(under, daemon)


def test_a_table_that_changes_ends_the_daemon(under: Fault) -> None:
    """Exit code 3; what it was and is, as fields of an event; the error is told once."""
    daemon = under.daemon()
    active(under, daemon)
    under.await_position()
    under.at_source("ALTER TABLE item RENAME COLUMN note TO title; UPDATE item SET title = 'x' WHERE id = 1")
    assert daemon.await_exit(30) == 3
    said = daemon.log()
    assert 'difference="column renamed" column=note was=note now=title action=halt' in said
    assert "code=TL-316" in said


def test_a_route_is_copied_again_under_a_running_daemon(under: Fault) -> None:
    """`towline resync ROUTE`: the daemon begins anew, copies it under load, and removes what is not there."""
    daemon = under.daemon()
    active(under, daemon)
    with shop(under, seed=9, rows=ROWS):
        under.await_progress()
        under.at_hub("INSERT INTO replica.stock VALUES ('nowhere', 'none', 1); DELETE FROM hub.open_sale")
        under.resync("public.stock", "open_sale")
        until(lambda: under.at_hub("SELECT FROM towline.route_state WHERE sweep") == [], 60, daemon.log)
    assert under.at_hub("SELECT FROM replica.stock WHERE warehouse = 'nowhere'") == []
    finish(under, daemon)
