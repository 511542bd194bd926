"""The target crashes, and truly loses what was committed asynchronously: all comes out exact, and nothing was
acknowledged too early.

The target's server flushes its log of itself only every ten seconds: so a crash loses what was committed since the last
synchronous commit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fault.harness import Daemon, Fault, fault, shop
from tests.integration.apply_cases import START, Hub
from tests.support.checked import PIPELINE, SCHEMA, spec
from tests.support.databases import NewDatabase
from tests.support.sessions import rows
from tests.support.wait import until
from towline.change import Format
from towline.demo.programs import embedded_bindir
from towline.demo.server import Server
from towline.position import parse_lsn
from towline.target.postgres import control, fence
from towline.target.postgres.writer import PostgresTarget

ROWS = 2000
#: So many crashes that lost something, of at most so many.
LOSSES, CRASHES = 3, 12

LATE = {
    "wal_writer_delay": "10s",
    "wal_writer_flush_after": "1GB",
    "wal_buffers": "64MB",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}
#: Makes the target slower than the source, so that work waits and commits are asynchronous.
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT OR UPDATE ON replica.stock FOR EACH STATEMENT EXECUTE FUNCTION slow();
"""
#: Transactions of some hundred rows each.
BACKLOG = """
DO $$ BEGIN FOR n IN 1..80 LOOP
    UPDATE stock SET quantity = quantity + 1 WHERE hashtext(sku) % 8 IN (n % 8, - n % 8); COMMIT;
END LOOP; END $$
"""


@pytest.fixture
def late(scratch: Path) -> Iterator[Server]:
    """A server for the target."""
    with Server(scratch / "late", embedded_bindir(), settings=LATE, durable=False) as server:
        yield server


def confirmed(under: Fault) -> int:
    """What the source was told."""
    found = under.at_source(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
    )
    return parse_lsn(str(found[0][0]))


def crash(under: Fault, daemon: Daemon, late: Server, *, killed: bool) -> bool:
    """The server crashes while the daemon cannot tell anybody anything. Whether a checkpoint was lost."""
    daemon.signal(signal.SIGSTOP)
    shown = under.position()
    if killed:
        late.kill()
    else:
        late.stop("immediate")
    late.start()
    left, told = under.position(), confirmed(under)
    assert told <= left, f"{told:X} was acknowledged, {left:X} is left of {shown:X}"
    daemon.signal(signal.SIGCONT)
    return left < shown


def test_what_a_crash_undoes_was_not_acknowledged(
    pg18: Server, late: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The target crashes again and again, and comes back at an earlier checkpoint: rows and ledger are exact in the
    end, and at no time was the source told of more than the checkpoint that came back.
    """
    with fault(tmp_path, new_database(pg18), new_database(late), rows=ROWS) as under:
        under.at_hub(SLOW)
        daemon = under.daemon()
        with shop(under, seed=61, rows=ROWS):
            until(under.copied, 60, daemon.log)
            lost = crashes = 0
            while lost < LOSSES:
                assert crashes < CRASHES, f"only {lost} of {crashes} crashes lost something"
                under.at_source(BACKLOG)
                for _ in range(3):  # of which the first may be synchronous, since it is long after the last
                    under.await_progress()
                lost += crash(under, daemon, late, killed=crashes % 2 == 0)
                crashes += 1
        under.await_position()
        under.await_sums()
        daemon.stop()
        under.verify()
        under.never_ahead()


def test_a_copy_that_is_undone_goes_on_from_before(
    pg18: Server, late: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Chunks that a crash undoes are copied once more, and counted once."""
    with fault(tmp_path, new_database(pg18), new_database(late), rows=20 * ROWS) as under:
        under.at_hub(SLOW)
        daemon, crashes, left, undone = under.daemon(), 0, 0, False
        copied = "SELECT sum(copied) FROM towline.route_state HAVING bool_or(state = 'copying' AND copied > 0)"
        while not undone:
            assert crashes < CRASHES, f"no chunk was undone by {crashes} crashes"
            # The chunk after the first one that is seen: that one may be synchronous, since it is long after the last.
            for _ in range(2):
                until(partial(under.at_hub, f"{copied} AND sum(copied) > {left}"), 60, daemon.log)
                left = under.at_hub("SELECT sum(copied) FROM towline.route_state")[0][0]
            daemon.signal(signal.SIGSTOP)
            before = under.at_hub("SELECT sum(copied) FROM towline.route_state")[0][0]
            late.kill()
            late.start()
            left = under.at_hub("SELECT sum(copied) FROM towline.route_state")[0][0]
            under.never_ahead()
            undone = left < before
            crashes += 1
            daemon.signal(signal.SIGCONT)
        under.await_position()
        under.await_sums()
        daemon.stop()
        under.verify()
        under.never_ahead()


# ---- one target, commit by commit -----------------------------------------------------------------------------


@pytest.fixture
def hub(late: Server, new_database: NewDatabase) -> Iterator[Hub]:
    made = Hub(new_database(late), Format.TEXT)
    tables = "CREATE SCHEMA src; CREATE TABLE src.item (id int PRIMARY KEY)"
    made.set_up(
        f"{tables}; CREATE SCHEMA hub; CREATE TABLE hub.item (id int PRIMARY KEY)", spec("src.item", "hub.item")
    )
    yield made
    made.close()


def commit(hub: Hub, target: PostgresTarget, number: int, *, synchronous: bool) -> None:
    target.begin()
    target.apply(hub.batch().insert("item", id=str(number)).piece(), {"src.item"}, hub.reread)
    target.commit(START + number, None, synchronous=synchronous)


def crashed(hub: Hub, late: Server) -> tuple[list[int], int, int]:
    """What a crash leaves: rows, how many of them the ledger has, and how far the checkpoint is."""
    late.kill()
    late.start()
    with psycopg.connect(hub.dsn, autocommit=True) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM hub.item ORDER BY id").fetchall()]
        checkpoint = control.read_checkpoint(connection, SCHEMA, PIPELINE)
        seen = sum(row.counts.seen for row in control.read_ledger(connection, SCHEMA, PIPELINE))
    assert checkpoint is not None
    return ids, seen, checkpoint.position - START


def test_a_crash_undoes_asynchronous_commits_whole(hub: Hub, late: Server) -> None:
    """Rows, ledger and checkpoint are those of one and the same commit: the last synchronous one."""
    target = hub.target()
    for number in range(1, 6):
        commit(hub, target, number, synchronous=number == 3)
    assert hub.rows("SELECT count(*) FROM hub.item") == [(5,)]
    assert crashed(hub, late) == ([1, 2, 3], 3, 3)


@pytest.mark.parametrize("default", ["off", "on"])
def test_a_synchronous_commit_keeps_all_before_it(hub: Hub, late: Server, default: str) -> None:
    """Also where the database has it off; and where the server begins to while the session lasts."""
    if default == "off":
        name = sql.Identifier(hub.sql.info.dbname)
        hub.sql.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    target = hub.target()
    late.configure(synchronous_commit="off")
    late.reload()
    until(lambda: rows(late.dsn(), "SHOW synchronous_commit") == [("off",)])
    for number in range(1, 6):
        commit(hub, target, number, synchronous=number == 5)
    assert crashed(hub, late) == ([1, 2, 3, 4, 5], 5, 5)


def test_the_next_to_open_makes_durable_what_it_goes_on_from(hub: Hub, late: Server) -> None:
    """A stream begins at the checkpoint that was read then, and may have that acknowledged."""
    target = hub.target()
    commit(hub, target, 1, synchronous=False)
    target.close()
    other = hub.closed_target()
    assert other.acquire(5) and other.open().position == START + 1
    assert crashed(hub, late) == ([1], 1, 1)


@pytest.mark.parametrize("way", ["off", "local", "remote_write", "on", "remote_apply"])
def test_what_a_synchronous_commit_waits_for_is_the_session_s(late: Server, way: str) -> None:
    """More than ``on`` is kept, and less; but off is not. The session has its own setting again afterwards."""
    with psycopg.connect(late.dsn(options=f"-c synchronous_commit={way}"), autocommit=True) as session:
        for statement, wanted in ((fence.SYNCHRONOUS, "on" if way == "off" else way), (fence.ASYNCHRONOUS, "off")):
            with session.transaction():
                session.execute(statement)
                assert session.execute("SHOW synchronous_commit").fetchone() == (wanted,)
            assert session.execute("SHOW synchronous_commit").fetchone() == (way,)
