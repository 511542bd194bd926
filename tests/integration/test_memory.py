"""Bounded memory (promise 8)."""

from __future__ import annotations

from pathlib import Path

from tests.fault.harness import Daemon
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 1_000_000
LIMIT = 300 * 1024 * 1024


def peak(daemon: Daemon) -> int:
    """The most memory that the process had resident so far (bytes)."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_a_transaction_of_a_million_rows(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Inserted, updated and deleted in one transaction each, the daemon stays under 300 MB."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.*, into: replica.*}")
    line.at_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, a text, b numeric, c timestamptz DEFAULT now(),"
        " d jsonb DEFAULT '{\"k\": 1}')"
    )
    line.apply()
    daemon = Daemon(line.path, tmp_path / "daemon.log")
    try:
        count = "SELECT count(*), coalesce(sum(b), 0) FROM {}.big"
        for statement in (
            f"INSERT INTO big SELECT n, 'row ' || n, n FROM generate_series(1, {ROWS}) n",
            "UPDATE big SET b = b + 1",
        ):
            line.at_source(statement)
            wanted = line.at_source(count.format("public"))
            until(lambda: line.at_hub(count.format("replica")) == wanted, 240, daemon.log)  # noqa: B023
        assert (
            line.same("(SELECT * FROM big WHERE id % 100 = 7)", "(SELECT * FROM replica.big WHERE id % 100 = 7)", "id")
            == ROWS // 100
        )
        line.at_source("DELETE FROM big")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.big") == [(0,)], 240, daemon.log)
        assert peak(daemon) < LIMIT, f"{peak(daemon) / 2**20:.0f} MB"
        daemon.stop()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
