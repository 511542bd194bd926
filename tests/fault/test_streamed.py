"""Large transactions under way while the daemon is killed, its spool is full, or its disk lies."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fault.harness import Daemon, Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.demo.server import Server
from towline.position import parse_lsn

#: More than what the server keeps in memory here, and some pieces.
LARGE = "INSERT INTO stock SELECT 'W{0}', 'S' || n, n, repeat(md5(n::text), 8) FROM generate_series(1, 2500) n"
#: The same, which cannot be compressed: some megabytes.
NOISE = (
    "INSERT INTO stock SELECT 'N{0}', 'S' || n, n, (SELECT string_agg(md5(random()::text || n || j), '')"
    " FROM generate_series(1, 40) j) FROM generate_series(1, 2500) n"
)


@contextmanager
def streaming(
    source: Server, hub: Server, new_database: NewDatabase, directory: Path, more: str = ""
) -> Iterator[Fault]:
    """A pipeline whose source sends everything beyond 64 kB while it is under way."""
    dsn = new_database(source)
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'").format(name))
    spool = directory / "spool"
    spool.mkdir()
    with fault(
        directory, dsn, new_database(hub), rows=300, more=f"web: {{port: 0}}\nspool: {{directory: {spool}{more}}}"
    ) as under:
        yield under


@contextmanager
def large(under: Fault, name: str, statement: str = LARGE) -> Iterator[psycopg.Connection[Any]]:
    """A session with a large transaction under way. It is rolled back if the test does not commit it."""
    with psycopg.connect(under.source) as session:
        session.execute(statement.format(name).encode())
        yield session
        session.rollback()


def start(under: Fault, *kill: str) -> Daemon:
    """A daemon, which has copied the tables."""
    daemon = under.daemon(*kill)
    until(under.copied, 60, daemon.log)
    return daemon


def streamed(under: Fault) -> int:
    """How many parts the server has sent."""
    rows = under.at_source(
        "SELECT stream_count FROM pg_stat_replication_slots s JOIN pg_replication_slots USING (slot_name)"
        " WHERE database = current_database()"
    )
    return int(rows[0][0])


def await_parts(under: Fault, beyond: int, daemon: Daemon) -> None:
    """Until more parts have been sent than so many."""
    until(lambda: streamed(under) > beyond + 2, 30, daemon.log)


def finish(under: Fault) -> None:
    """Caught up with the source, stopped, equal."""
    under.await_position()
    under.daemons[-1].stop()
    under.verify()
    under.never_ahead()


@pytest.mark.parametrize("server", ["pg15", "pg18"])
def test_killed_while_spooling(
    server: str, request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """With transactions under way, idle checkpoints moving on beyond their beginning: nothing of them is lost."""
    with streaming(request.getfixturevalue(server), hub18, new_database, tmp_path) as under:
        start(under)
        with large(under, "one") as one, large(under, "two"):
            for _ in range(2):
                daemon, before = under.daemons[-1], streamed(under)
                one.execute(LARGE.format(f"one-{before}").encode())
                await_parts(under, before, daemon)
                under.at_source("SELECT pg_logical_emit_message(true, 'idle', 'x')")
                now = parse_lsn(str(under.at_source("SELECT pg_current_wal_lsn()")[0][0]))
                under.at_source("SELECT pg_logical_emit_message(true, 'idle', 'x')")
                until(lambda now=now: under.position() >= now, 30, daemon.log)  # type: ignore[misc]
                daemon.kill()
                under.never_ahead()
                under.daemon()
            one.commit()
        under.daemons[-1].kill()  # between its commit and its coming, or in the middle of that
        under.daemon()
        finish(under)
        assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse LIKE 'W%'") == [(7500,)]
        assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("point", ["within-transaction", "committing"])
def test_killed_while_replaying(
    point: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """At named points while transactions are applied out of the spool, with small ones between."""
    with streaming(pg18, hub18, new_database, tmp_path) as under:
        start(under).stop()
        with shop(under, seed=21, rows=300):
            for kill in range(2):
                with large(under, f"{point}-{kill}") as session:
                    daemon = under.daemon(point, str(2 + kill))
                    session.commit()
                assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
                under.never_ahead()
        under.daemon()
        finish(under)
        assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse LIKE 'W%'") == [(5000,)]
        assert streamed(under) > 0


def test_full(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """The daemon goes on without a person, also while what filled the spool is under way; later it streams again."""
    with streaming(pg18, hub18, new_database, tmp_path, ", max_bytes: 1048576") as under:
        daemon = start(under)
        with large(under, "one", NOISE) as session:
            until(lambda: "spool_full" in daemon.log(), 30, daemon.log)
            under.at_source("INSERT INTO stock VALUES ('small', 'one', 1)")
            under.await_position()
            assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse = 'small'") == [(1,)]
            session.commit()

        def resumed() -> bool:
            under.at_source("SELECT pg_log_standby_snapshot()")  # as the server does by itself every 15 s
            return "streaming_resumed" in daemon.log()

        until(resumed, 30, daemon.log)
        before = streamed(under)
        under.at_source(LARGE.format("again"))
        finish(under)
        assert streamed(under) > before


def test_out_of_disk(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """The system refuses to write more than a megabyte to a file: a full spool, whatever `max_bytes` says."""
    with streaming(pg18, hub18, new_database, tmp_path) as under:
        daemon = start(under)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with large(under, "one", NOISE) as session:
            until(lambda: "spool_full" in daemon.log(), 30, daemon.log)
            session.commit()
        finish(under)
        assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse = 'None'") == [(2500,)]


def test_directory_gone(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """What was mounted there is away while the daemon runs: it goes on without, and uses it again when it is back."""
    with streaming(pg18, hub18, new_database, tmp_path) as under:
        daemon = start(under)
        (tmp_path / "spool").rmdir()
        with large(under, "one", NOISE) as session:
            until(lambda: "TL-338" in daemon.log(), 30, daemon.log)
            under.at_source("INSERT INTO stock VALUES ('small', 'one', 1)")
            under.await_position()
            session.commit()
        under.await_position()
        assert "streaming_resumed" not in daemon.log()
        (tmp_path / "spool").mkdir()

        def resumed() -> bool:
            under.at_source("SELECT pg_log_standby_snapshot()")
            return "streaming_resumed" in daemon.log()

        until(resumed, 30, daemon.log)
        before = streamed(under)
        under.at_source(LARGE.format("again"))
        finish(under)
        assert streamed(under) > before
        assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse = 'None'") == [(2500,)]


def test_corrupt(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """What changed on the daemon's disk is found out, and read again from the source."""
    with streaming(pg18, hub18, new_database, tmp_path) as under:
        daemon = start(under)
        with large(under, "one", NOISE) as session:
            files = until(lambda: spool_files(daemon, tmp_path / "spool"), 30, daemon.log)
            with files[0].open("r+b", buffering=0) as file:
                file.seek(1000)
                file.write(b"not what was written")
            session.commit()
        finish(under)
        assert "TL-337" in daemon.log()
        assert under.at_hub("SELECT count(*) FROM replica.stock WHERE warehouse = 'None'") == [(2500,)]


def spool_files(daemon: Daemon, directory: Path) -> list[Path]:
    """The daemon's nameless files in a directory, once they hold something."""
    found = Path(f"/proc/{daemon.process.pid}/fd").iterdir()
    files = [file for file in found if file.is_symlink() and os.readlink(file).startswith(str(directory))]
    return [file for file in files if file.stat().st_size > 10_000]
