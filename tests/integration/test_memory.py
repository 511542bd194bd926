"""Bounded memory (promise 8), whether large transactions come while they are under way or when they have committed,
and when the target takes less than the source writes.

`make huge` does the same with ten million rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fault.harness import Daemon
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.proxy import Proxy
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 1_000_000
LIMIT = 256 * 1024 * 1024
#: What a backlog of `WRITTEN` bytes may cost.
MORE, WRITTEN = {"off": 64 << 20, "auto": 112 << 20}, 120 << 20


def peak(daemon: Daemon) -> int:
    """The most memory that the process had resident so far (bytes)."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Settings:
    """Of the pipeline file, and of the source's decoding; the defaults where nothing is said."""

    streaming: str = "auto"
    catch_up: str = "auto"
    memory: str = "64MB"


def large(
    rows: int,
    settings: Settings,
    source: Server,
    hub: Server,
    new_database: NewDatabase,
    directory: Path,
    patience: float,
) -> int:
    """Rows inserted in one transaction, and deleted in part in another; returns the daemon's peak of memory (bytes).

    What outgrows the source's memory has to come while it is under way, if it is to, and not to spill there.
    """
    routes = "  - {from: public.*, into: replica.*}"
    ends = new_database(source), new_database(hub)
    streaming = settings.streaming
    line = Line.make(directory, *ends, routes, streaming=streaming, catch_up=settings.catch_up)
    line.at_source("CREATE TABLE big (id bigint PRIMARY KEY, v int)")
    with psycopg.connect(line.source, autocommit=True) as connection:
        name, memory = sql.Identifier(connection.info.dbname), sql.Literal(settings.memory)
        connection.execute(sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = {}").format(name, memory))
    line.apply()
    line.run()  # the first copy, of nothing
    daemon = Daemon(line.path, directory / "daemon.log")
    try:
        until(lambda: "event=replicating" in daemon.log(), 30, daemon.log)
        for statement in (
            f"INSERT INTO big SELECT n, n FROM generate_series(1, {rows}) n",
            "DELETE FROM big WHERE id % 10 = 7",
        ):
            line.at_source(statement)
            count = "SELECT count(*), sum(v) FROM {}.big"
            wanted = line.at_source(count.format("public"))
            until(lambda: line.at_hub(count.format("replica")) == wanted, patience, daemon.log)  # noqa: B023
        assert line.same("(SELECT * FROM big WHERE id < 5000)", "(SELECT * FROM replica.big WHERE id < 5000)", "id")
        sent = line.at_source(
            "SELECT stream_txns, spill_txns FROM pg_stat_replication_slots s"
            " JOIN pg_replication_slots USING (slot_name) WHERE database = current_database()"
        )
        assert [txns > 0 for txns in sent[0]] == [streaming == "auto", streaming == "off"], f"{sent} {daemon.log()}"
        found = peak(daemon)
        daemon.stop()
        return found
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(catch_up="off", memory="1MB"),
        Settings(streaming="off", catch_up="off", memory="1MB"),
    ],
    ids=["defaults", "little memory at the source", "not streamed"],
)
def test_a_transaction_of_a_million_rows(
    settings: Settings, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The daemon stays under 256 MB."""
    found = large(ROWS, settings, pg18, hub18, new_database, tmp_path, 150)
    assert found < LIMIT, f"{found / 2**20:.0f} MB"


def test_a_backlog_of_hot_keys(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Pieces are larger while later changes make most of them void: 100,000 changes of 5,000 rows, of a kilobyte each,
    read through SQL."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.*, into: replica.*}")
    line.at_source("CREATE TABLE hot (id int PRIMARY KEY, n int, v text)")
    line.at_source("INSERT INTO hot SELECT n, 0, repeat('x', 1000) FROM generate_series(1, 5000) n")
    line.apply()
    line.run()  # the first copy
    line.at_source(
        """DO $$ BEGIN
            FOR i IN 1..500 LOOP UPDATE hot SET n = n + i WHERE id % 25 = i % 25; COMMIT; END LOOP;
        END $$"""
    )
    daemon = Daemon(line.path, tmp_path / "daemon.log")
    try:
        wanted = line.at_source("SELECT sum(n) FROM hot")
        until(lambda: line.at_hub("SELECT sum(n) FROM replica.hot") == wanted, 60, daemon.log)
        assert line.same("hot", "replica.hot", "id") == 5000
        assert "catching_up" in daemon.log()
        found = peak(daemon)
        daemon.stop()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
    assert found < LIMIT, f"{found / 2**20:.0f} MB"


def stands(value: Callable[[], object], seconds: float) -> Callable[[], bool]:
    """A condition: the value has been the same for so long."""
    last, since = value(), time.monotonic()

    def condition() -> bool:
        nonlocal last, since
        if (now := value()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    return condition


@pytest.mark.parametrize("catch_up", ["off", "auto"])
def test_a_slow_line_to_the_target(
    catch_up: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """What the target does not take stays with the source, whose walsender waits; a line that is fast again has it.

    With the backlog read through SQL more of it is held in advance.
    """
    with Proxy(hub18.port, window=32 * 1024) as proxy:
        source, hub = new_database(pg18), new_database(hub18)
        routes = "  - {from: public.*, into: replica.*}"
        line = Line.make(tmp_path, source, proxy.dsn(hub), routes, catch_up=catch_up)
        direct = Line(source, hub, line.path, line.metrics)
        line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text)")
        line.apply()
        daemon = Daemon(line.path, tmp_path / "daemon.log")

        def carried() -> bool:
            count = "SELECT count(*), sum(id) FROM {}.t"
            return direct.at_hub(count.format("replica")) == direct.at_source(count.format("public"))

        def write(first: int) -> None:
            """4000 rows, 4 MB of log."""
            rows = f"generate_series({first * 4000}, {first * 4000 + 3999}) n"
            direct.at_source(f"INSERT INTO t SELECT n, repeat(chr(65 + n % 26), 950) FROM {rows}")

        def sent() -> object:
            return direct.at_source(
                "SELECT sent_lsn FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid"
                " WHERE database = current_database()"
            )

        try:
            for first in range(6):
                write(first)
            until(carried, 60, daemon.log)
            before = peak(daemon)
            proxy.delay(0.2)  # of 32 KB at most each: 160 KB/s
            begin = direct.at_source("SELECT pg_current_wal_flush_lsn()")[0][0]
            for first in range(6, 6 + WRITTEN // (4 << 20)):
                write(first)
            if catch_up == "auto":
                until(lambda: "catching_up" in daemon.log(), 30, daemon.log)
            until(stands(sent, 1.0), 30, daemon.log)
            ((written,),) = direct.at_source("SELECT pg_current_wal_flush_lsn() - %s::pg_lsn", begin)
            assert written > WRITTEN
            if catch_up == "off":
                ((waiting,),) = direct.at_source(
                    "SELECT pg_current_wal_flush_lsn() - sent_lsn"
                    " FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid"
                    " WHERE database = current_database()"
                )
                assert waiting > WRITTEN / 2, f"{waiting / 2**20:.0f} MB wait at the source"
            proxy.delay(0)
            until(carried, 60, daemon.log)
            more = peak(daemon) - before
            assert more < MORE[catch_up], f"{more / 2**20:.0f} MB more for {written / 2**20:.0f} MB of log"
            assert direct.same("t", "replica.t", "id") > 30_000
            daemon.stop()
            assert "attempt_failed" not in daemon.log()
        finally:
            if daemon.process.poll() is None:
                daemon.kill()
