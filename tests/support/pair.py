"""A primary and its standby, each of them a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.support.wait import until
from towline import plan
from towline.config import PipelineConfig
from towline.demo.server import Server


@contextmanager
def pair(
    directory: Path, bindir: Path, *, primary: Mapping[str, str] | None = None, standby: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, Server]]:
    """Both, with those settings. The standby reads through a slot of its own, ``standby``."""
    with Server(directory / "primary", bindir, settings=primary, durable=False) as first:
        with psycopg.connect(first.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        second = Server(
            directory / "standby",
            bindir,
            settings={
                "primary_conninfo": first.dsn(),
                "primary_slot_name": "standby",
                "hot_standby_feedback": "on",
                "wal_receiver_status_interval": "1s",
                **(standby or {}),
            },
            durable=False,
        )
        copied = second._account.run(
            [
                *(str(second.bindir / "pg_basebackup"), "-D", str(second.data), "-d", first.dsn()),
                *("-X", "stream", "-R", "-c", "fast"),
            ],
            cwd=second.directory,
        )
        assert copied.returncode == 0, copied.stdout
        (second.data / "postgresql.auto.conf").write_text("")  # the settings above say it
        with second:
            yield first, second


def replayed(first: Server, second: Server) -> None:
    """Wait until the standby shows all that the primary has now."""
    with (
        psycopg.connect(first.dsn(), autocommit=True) as one,
        psycopg.connect(second.dsn(), autocommit=True) as other,
    ):
        row = one.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row is not None
        until(
            lambda: other.execute("SELECT pg_last_wal_replay_lsn() >= %s", row).fetchone() == (True,),
            describe="the standby has replayed",
        )


def promote(server: Server) -> None:
    """Make a standby a primary, and wait until it is."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        assert connection.execute("SELECT pg_promote()").fetchone() == (True,)


def publish(config: PipelineConfig, at_source: Callable[[str], object]) -> None:
    """Make the publication at the primary; the configuration names the standby."""
    with plan.prepare(config) as prepared:
        for step in plan.steps(prepared):
            if "PUBLICATION" in step.sql:
                at_source(step.sql)


@contextmanager
def running_logged(at_source: Callable[[str], object]) -> Iterator[None]:
    """While a slot is made at the standby: it waits for the primary to log which transactions run."""
    done = threading.Event()

    def log_running() -> None:
        while not done.wait(0.1):
            at_source("SELECT pg_log_standby_snapshot()")

    thread = threading.Thread(target=log_running)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
