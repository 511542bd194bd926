"""A pipeline under fault: a source under load, a hub, and a daemon that can be killed, stopped and replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.fault.shop import HUB, ROUTES, SCHEMA, Shop, fill
from tests.support.sessions import rows
from tests.support.wait import until
from towline import plan, resync
from towline.config import PipelineConfig, load
from towline.position import parse_lsn
from towline.source.postgres.tables import PostgresTables
from towline.target.postgres.control import read_running
from towline.verify import verify

ROOT = Path(__file__).parents[2]


class Daemon:
    """One process of the daemon."""

    def __init__(self, config: Path, log: Path, *kill: str) -> None:
        self._log = log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.daemon", str(config), *kill],
                cwd=ROOT,
                env=environment,
                stderr=file,
                stdout=file,
                stdin=subprocess.DEVNULL,
            )

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text("utf-8", "replace")[-4000:]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def await_exit(self, timeout: float = 60.0) -> int:
        """The exit code; negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {timeout:g} s:\n{self.log()}") from None

    def stop(self) -> None:
        """SIGTERM: it must end by itself within 10 s, with exit code 0."""
        self.signal(signal.SIGTERM)
        assert self.await_exit(10.0) == 0, self.log()


@dataclass
class Fault:
    """Source, hub and pipeline file of one test. ``daemons``: all that were started."""

    source: str
    hub: str
    path: Path
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def config(self) -> PipelineConfig:
        return load(self.path)

    def apply(self) -> None:
        """`towline apply`."""
        with plan.prepare(self.config) as prepared:
            plan.apply(prepared, lambda step: None)

    def resync(self, *routes: str) -> None:
        """`towline resync --yes`."""
        with plan.prepare(self.config, applied=True) as prepared:
            resync.execute(prepared, resync.plan(prepared, routes), lambda line: None)

    def daemon(self, *kill: str) -> Daemon:
        """Start a daemon, to be killed at a point if one is given."""
        daemon = Daemon(self.path, self.path.with_suffix(f".{len(self.daemons)}.log"), *kill)
        self.daemons.append(daemon)
        return daemon

    def epoch(self) -> int:
        """How often a daemon has taken over."""
        row = self.at_hub("SELECT epoch FROM towline.checkpoint")
        return int(row[0][0])

    def at_hub(self, query: str) -> list[tuple[Any, ...]]:
        """Run a statement at the hub; its rows, if it has any."""
        return _rows(self.hub, query)

    def at_source(self, query: str) -> list[tuple[Any, ...]]:
        """Run a statement at the source; its rows, if it has any."""
        return _rows(self.source, query)

    def position(self) -> int:
        """The durable position."""
        return parse_lsn(str(self.at_hub("SELECT position FROM towline.checkpoint")[0][0]))

    def await_position(self, timeout: float = 60.0) -> None:
        """Wait until all that the source has now is durable at the hub, and copied."""
        end = parse_lsn(str(self.at_source("SELECT pg_current_wal_flush_lsn()")[0][0]))
        until(
            lambda: self.position() >= end and self.copied(),
            timeout,
            lambda: f"the hub's checkpoint to reach {end:X}, is {self.position():X}: {self.daemons[-1].log()}",
        )

    def await_sums(self, timeout: float = 60.0) -> None:
        """Wait until the ledger has a running checksum of every route, which `verify` then holds against the source."""
        unknown = "SELECT route FROM towline.route_state WHERE total_sum IS NULL"
        until(lambda: self.at_hub(unknown) == [], timeout, lambda: f"the sums of {self.at_hub(unknown)}")

    def copied(self) -> bool:
        """Whether every route streams."""
        return self.at_hub("SELECT bool_and(state = 'streaming') FROM towline.route_state") == [(True,)]

    def await_progress(self, timeout: float = 60.0) -> None:
        """Wait until the checkpoint has moved."""
        before = self.position()
        until(lambda: self.position() > before, timeout, lambda: f"progress of {self.daemons[-1].log()}")

    def verify(self) -> None:
        """`towline verify` finds nothing, an independent comparison agrees, and the ledger balances.

        So do its sums over source keys, where they are known.
        """
        with plan.prepare(self.config) as prepared:
            report = verify(prepared)
        assert (report.differing, report.unsettled) == (0, 0), report
        assert report.rows > 0
        for table, key in (("item", "id"), ("sale", "id"), ("stock", "warehouse, sku")):
            query = f"SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY {key})) FROM {{}}.{table} t"
            assert self.at_hub(query.format("replica")) == self.at_source(query.format("public")), table
        sums = "seen, upserted + deleted + superseded + filtered + quarantined"
        for seen, accounted in self.at_hub(f"SELECT {sums} FROM towline.ledger"):
            assert seen == accounted
        self._verify_sums(prepared)

    def _verify_sums(self, prepared: plan.Prepared) -> None:
        relations = {relation.name: relation for relation in prepared.relations}
        with psycopg.connect(self.hub, options="-c statement_timeout=0") as connection:
            running = read_running(connection, self.config.target.schema_name, self.config.pipeline)
        with closing(PostgresTables(self.source, slot=self.config.source.slot)) as tables:
            for route in prepared.routes:
                total = running[route.name].total
                counted = tables.count_keys(relations[route.source.name], lambda seen: None)
                assert total in (None, counted.keys), (route.name, total, counted.keys)

    def never_ahead(self) -> None:
        """The slot was not confirmed beyond the checkpoint (promise 2). Read in this order, since both move on."""
        confirmed = self.at_source(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
        )
        assert parse_lsn(str(confirmed[0][0])) <= self.position()


def _rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    return rows(dsn, query, options="-c statement_timeout=0")


@contextmanager
def fault(
    directory: Path,
    source: str,
    hub: str,
    *,
    plugin: str = "pgoutput",
    rows: int = 2000,
    through: tuple[str, str] | None = None,
    source_more: str = "failover: false",
    more: str = "web: {port: 0}",
    set_up: Callable[[Fault], None] | None = None,
) -> Iterator[Fault]:
    """A pipeline that is set up; ``through``: the DSNs that the daemon uses, when they lead through proxies.

    ``source_more`` and ``more``: keys of the pipeline file. ``set_up``: what to do in place of `Fault.apply`.
    """
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(SCHEMA)
        fill(connection, rows)
    with psycopg.connect(hub, autocommit=True) as connection:
        connection.execute(HUB)
    path = directory / "shop.yaml"
    used = through or (source, hub)
    path.write_text(
        "pipeline: shop\n"
        f'source: {{kind: postgres, dsn: "{used[0]}", plugin: {plugin}, {source_more}, '
        f"slot: shop_{os.getpid()}_{id(path)}}}\n"
        f'target: {{kind: postgres, dsn: "{used[1]}"}}\n'
        "batch: {max_rows: 500}\nsnapshot: {chunk_rows: 300}\ncheckpoint_seconds: 0.5\n"
        f"{more}\nlog: {{level: debug}}\n{ROUTES}",
        "utf-8",
    )
    made = Fault(source, hub, path)
    (set_up or Fault.apply)(made)
    try:
        yield made
    finally:
        for daemon in made.daemons:
            if daemon.process.poll() is None:
                daemon.signal(signal.SIGCONT)
                daemon.kill()


@contextmanager
def shop(under: Fault, *, seed: int, rate: float = 150.0, rows: int = 2000, first: int = 0) -> Iterator[Shop]:
    """The shop is open: its transactions run while the block does. ``first``: how many numbers are taken already."""
    writer = Shop(lambda: psycopg.connect(under.source), seed=seed, rate=rate, rows=rows, first=first)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
