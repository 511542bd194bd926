"""A standby becomes the primary while the daemon runs: it goes on exactly, or halts and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.pair import pair, promote, publish, replayed, running_logged
from tests.support.wait import until
from towline.demo.programs import embedded_bindir
from towline.demo.server import Server
from towline.errors import SourceUnavailable
from towline.metrics import Metrics
from towline.replication import Replication
from towline.source.postgres.tables import PostgresTables
from towline.status import read

ROWS = 300


@dataclass
class Failover:
    """Two servers, of which the daemon's dsn names both."""

    primary: Server
    standby: Server
    under: Fault

    @property
    def slot(self) -> str:
        return self.under.config.source.slot

    def synchronized(self) -> bool:
        """Whether the standby's copy of the slot would outlive a promotion."""
        with psycopg.connect(self.standby.dsn()) as connection:
            row = connection.execute(
                "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s", (self.slot,)
            ).fetchone()
        return row == (True,)

    def cut_off(self) -> None:
        """The standby gets no more of what is written."""
        with psycopg.connect(self.standby.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            until(lambda: not connection.execute("SELECT FROM pg_stat_wal_receiver").fetchall())

    def fail_over(self) -> None:
        """The primary dies, the standby takes its place."""
        self.primary.kill()
        promote(self.standby)
        self.under.source = self.standby.dsn()


@pytest.fixture
def failover(
    request: pytest.FixtureRequest, scratch: Path, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> Iterator[Failover]:
    """PostgreSQL 18 twice. Parameters: what the pipeline says of its source, and settings of the primary."""
    source, settings = request.param
    name = f"failover_{request.node.name[-12:].strip(']')}"
    with pair(scratch / name, embedded_bindir(), primary=settings, standby={"sync_replication_slots": "on"}) as (
        primary,
        standby,
    ):
        dsn = primary.dsn(
            host="127.0.0.1,127.0.0.1", port=f"{primary.port},{standby.port}", target_session_attrs="read-write"
        )
        hub = new_database(hub18)
        with fault(tmp_path, primary.dsn(), hub, rows=ROWS, through=(dsn, hub), source_more=source) as under:
            yield Failover(primary, standby, under)


WITH_SLOT = ("failover: true", {"synchronized_standby_slots": "standby"})


@pytest.mark.parametrize("failover", [WITH_SLOT], indirect=True, ids=["synced"])
def test_a_promotion_is_followed(failover: Failover) -> None:
    """Under load, with the slot copied: the daemon goes on from its checkpoint, nothing lost or doubled."""
    under = failover.under
    daemon = under.daemon()
    with shop(under, seed=21, rows=ROWS):
        under.await_progress()
        until(failover.synchronized, 60, lambda: failover.standby.log_tail())
        under.await_progress()
    # The target has nothing that the standby lacks: the slot waits for it.
    failover.fail_over()
    until(lambda: "event=timeline_followed" in daemon.log(), 60, daemon.log)
    with shop(under, seed=22, rows=ROWS, first=10_000):
        under.await_progress()
    under.await_position()
    daemon.stop()
    under.verify()
    under.never_ahead()
    assert under.at_hub("SELECT timeline FROM towline.checkpoint") == [(2,)]
    again = under.daemon()  # the timeline is noted: the next start has nothing to ask
    until(lambda: "event=replicating" in again.log(), 30, again.log)
    assert "event=timeline_followed" not in again.log()
    again.stop()


@pytest.mark.parametrize("failover", [("failover: true", {})], indirect=True, ids=["between"])
def test_another_server_between_two_connections(failover: Failover, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that was checked has all that the target has; the one that would stream, a moment later, has lost
    some of it. The stream's own connection is held against what was checked.
    """
    under = failover.under
    daemon = under.daemon()
    under.await_position()
    until(failover.synchronized, 60, lambda: failover.standby.log_tail())
    failover.cut_off()
    under.at_source("INSERT INTO item VALUES (77777, 'lost', 1)")
    under.await_position()
    daemon.stop()
    original = PostgresTables.end_walsender

    def fail_over(tables: PostgresTables, name: str) -> bool:
        """After the checks, before the stream: the former primary lives on, and takes no more connections."""
        (failover.primary.data / "pg_hba.conf").write_text("local all all trust\n", "utf-8")
        failover.primary.reload()
        promote(failover.standby)
        return original(tables, name)

    monkeypatch.setattr(PostgresTables, "end_walsender", fail_over)
    replication = Replication(
        under.config,
        metrics=Metrics("shop"),
        stopping=lambda: False,
        role=lambda role: None,
        announce=lambda point: None,
    )
    before = under.position()
    with pytest.raises(SourceUnavailable, match="another server answers"):
        replication.run(until_caught_up=True)
    assert under.position() == before


@pytest.mark.parametrize("failover", [("failover: true", {})], indirect=True, ids=["behind"])
def test_a_promotion_that_lost_transactions(failover: Failover) -> None:
    """The standby was behind what the target has: the daemon halts with the code that says so, and resync mends it."""
    under = failover.under
    daemon = under.daemon()
    under.await_position()
    until(failover.synchronized, 60, lambda: failover.standby.log_tail())
    failover.cut_off()
    under.at_source("INSERT INTO item VALUES (77777, 'lost', 1)")
    under.await_position()
    failover.fail_over()
    assert daemon.await_exit(60) == 3
    assert "code=TL-326" in daemon.log()
    assert "towline resync" in daemon.log()
    under.resync()
    last = under.daemon()
    under.await_position()
    until(lambda: not under.at_hub("SELECT FROM towline.route_state WHERE sweep"), 30, last.log)
    last.stop()
    assert under.at_hub("SELECT FROM replica.item WHERE id = 77777") == []
    under.verify()


@pytest.mark.parametrize("failover", [("failover: false", {})], indirect=True, ids=["noslot"])
def test_a_promotion_without_the_slot(failover: Failover) -> None:
    """The standby has no copy of the slot: the promoted server has none, and the daemon says so."""
    under = failover.under
    daemon = under.daemon()
    under.await_position()
    replayed(failover.primary, failover.standby)
    failover.fail_over()
    assert daemon.await_exit(60) == 3
    assert "code=TL-304" in daemon.log() or "code=TL-326" in daemon.log()


def test_a_standby_as_source_is_promoted(
    scratch: Path, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The daemon reads from the standby, which becomes the primary under it: it goes on, also after a restart."""
    with pair(scratch / "standby_source", embedded_bindir()) as (primary, standby):
        hub = new_database(hub18)

        def set_up(under: Fault) -> None:
            """The publication at the primary, the slot at the standby, for which the primary logs what runs."""
            replayed(primary, standby)
            publish(under.config, under.at_source)
            replayed(primary, standby)
            with running_logged(under.at_source):
                under.apply()

        with fault(tmp_path, primary.dsn(), hub, rows=ROWS, through=(standby.dsn(), hub), set_up=set_up) as under:
            daemon = under.daemon()
            with shop(under, seed=23, rows=ROWS):
                under.await_progress()
                until(under.copied, 60, daemon.log)
            replayed(primary, standby)
            primary.stop()
            promote(standby)
            under.source = standby.dsn()
            with shop(under, seed=24, rows=ROWS, first=10_000):
                until(lambda: "event=timeline_followed" in daemon.log(), 60, daemon.log)
                under.await_progress()
            under.await_position()
            daemon.stop()
            under.verify()
            assert under.at_hub("SELECT timeline FROM towline.checkpoint") == [(2,)]


def test_a_standby_that_follows_a_promoted_server(
    scratch: Path, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Its control file is of the timeline before, long after it has replayed more: every verb says the true one."""
    with pair(scratch / "follows", embedded_bindir(), standby={"checkpoint_timeout": "1h"}) as (primary, standby):
        line = Line.make(tmp_path, standby.dsn(), new_database(hub18), "  - {from: public.t, into: replica.t}")
        line.source = primary.dsn()
        line.at_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        replayed(primary, standby)
        primary.stop()
        (primary.data / "standby.signal").touch()
        primary.start()
        promote(primary)
        line.at_source("INSERT INTO t VALUES (2)")
        replayed(primary, standby)
        publish(line.config, line.at_source)
        replayed(primary, standby)
        with running_logged(line.at_source):
            line.apply()
        with psycopg.connect(standby.dsn()) as connection:
            known = connection.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
        assert known == (1,)
        assert line.at_hub("SELECT timeline FROM towline.checkpoint") == [(2,)]
        line.at_source("INSERT INTO t VALUES (3)")
        replayed(primary, standby)
        line.run()
        assert line.at_hub("SELECT count(*) FROM replica.t") == [(3,)]
        assert read(line.config).errors == ()
