"""Bounded memory (promise 8), whether large transactions come while they are under way or when they have committed.

`make huge` does the same with ten million rows.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fault.harness import Daemon
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 1_000_000
LIMIT = 256 * 1024 * 1024


def peak(daemon: Daemon) -> int:
    """The most memory that the process had resident so far (bytes)."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def large(
    rows: int, streaming: str, source: Server, hub: Server, new_database: NewDatabase, directory: Path, patience: float
) -> int:
    """Rows inserted in one transaction, and deleted in part in another; returns the daemon's peak of memory (bytes)."""
    line = Line.make(
        directory, new_database(source), new_database(hub), "  - {from: public.*, into: replica.*}", streaming=streaming
    )
    line.at_source("CREATE TABLE big (id bigint PRIMARY KEY, v int)")
    with psycopg.connect(line.source, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = '1MB'").format(name))
    line.apply()
    line.run()  # the first copy, of nothing
    daemon = Daemon(line.path, directory / "daemon.log")
    try:
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
        assert [txns > 0 for txns in sent[0]] == [streaming == "auto", streaming == "off"]
        found = peak(daemon)
        daemon.stop()
        return found
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


@pytest.mark.parametrize("streaming", ["auto", "off"])
def test_a_transaction_of_a_million_rows(
    streaming: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The daemon stays under 256 MB."""
    found = large(ROWS, streaming, pg18, hub18, new_database, tmp_path, 150)
    assert found < LIMIT, f"{found / 2**20:.0f} MB"
