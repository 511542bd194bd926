"""One run of one cell: a pipeline of its own, brought to the phase, struck by the fault, and taken stock of."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.faults import verifier, workload
from tests.faults.accounts import Account, Mark, account, mark
from tests.faults.bench import Bench
from tests.faults.phases import Phase
from tests.faults.puppet import DAEMON, VERIFY, Puppet
from tests.faults.small_disk import small_disk
from tests.support.databases import create_database
from tests.support.pair import pair, publish, replayed, running_logged
from tests.support.proxy import Proxy
from tests.support.sessions import rows
from tests.support.wait import until
from towline import plan, quarantine, resync
from towline.config import load
from towline.demo.programs import embedded_bindir
from towline.demo.server import Server
from towline.differences import Keys
from towline.errors import Action
from towline.position import parse_lsn
from towline.target.postgres.control import read_running
from towline.verify import verify

TRANSACTIONS = 60
#: Seconds until something that must happen counts as not happening: long, since the machine may have other work.
PATIENCE = 150.0

#: How often a point is passed for certain while there is something to strike: at one of these passings it is done.
_PASSINGS = {
    **{"chunk-read": 6, "chunk-loaded": 6, "received": 2, "begun": 2, "applied": 2, "within-transaction": 1},
    **{"committing": 2, "committed": 2, verifier.POINT: 8},
}

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to. ``seconds``: from the end of the fault until what the source had then was durable."""

    account: Account
    seconds: float


class Trial:
    """What a fault may touch. Lines lead through proxies; the harness itself goes to the servers directly.

    ``seed``: all that is drawn comes from it. ``point``: where the fault strikes, one of the phase's; ``passings``: at
    one of how many passings of it (0: of all that there are for certain). ``standby``: the source has one, with a copy
    of the slot; ``from_standby``: the daemon reads from one, and the slot is there. ``far_behind``: a few hundred
    kilobytes of log are far behind for the daemons, and there are more when it strikes.
    """

    def __init__(
        self,
        bench: Bench,
        directory: Path,
        phase: Phase,
        plugin: str,
        seed: str,
        *,
        point: str = "",
        passings: int = 0,
        options: str = "",
        standby: bool = False,
        from_standby: bool = False,
        far_behind: bool = False,
        small_spool: bool = False,
        prepare: Callable[[Trial], None] | None = None,
    ) -> None:
        self.bench = bench
        self._small_spool = small_spool
        self._options = options
        self._standby = standby
        self._from_standby = from_standby
        self._far_behind = far_behind
        self._prepare = prepare
        self.pair: tuple[Server, ...] = ()
        self.source = self.hub = ""  # dsns
        self.name: dict[str, Any] = {}
        self.phase = phase
        self.plugin = plugin
        self.random = random.Random(f"fault {seed}")
        self.point = point or phase.points[0]
        first = far_behind and phase is Phase.SNAPSHOT  # all of the backlog comes with the first chunk
        self.passing = 1 if first else self.random.randint(1, passings or _PASSINGS[self.point])
        self.stack = ExitStack()
        self.puppets: list[Puppet] = []
        self.verifier: Puppet | None = None
        self.directory = directory / f"trial-{next(_numbers)}"
        self.directory.mkdir()
        self.path = self.directory / "matrix.yaml"
        self._writer = workload.Writer(lambda: psycopg.connect(self.source), workload.transactions(seed, TRANSACTIONS))
        self._since: Mark | None = None
        self._over: tuple[float, int] | None = None
        self._seconds = 0.0
        self._entries = self._backlogs = 0
        self._checks: list[Callable[[Trial], None]] = []
        self._resynced = False
        self.verified = True
        self.over_and_done = False
        self._abandoned = False

    # ---- for faults ------------------------------------------------------------------------------------------

    @property
    def daemon(self) -> Puppet:
        """The daemon that was started last."""
        return self.puppets[-1]

    @property
    def source_server(self) -> Server:
        """The source's server; of a pair, the one that was the primary at first."""
        return self.pair[0] if self.pair else self.bench.source(self.plugin)

    @property
    def target_server(self) -> Server:
        """The target's server."""
        return self.bench.target

    def server(self, side: str) -> Server:
        """The server of a side."""
        return self.source_server if side == "source" else self.target_server

    def start(self, pause: tuple[str, int] | None = None) -> Puppet:
        """Start a daemon."""
        assert not self._abandoned, "the trial was abandoned"
        log = self.directory / f"daemon-{len(self.puppets)}.log"
        options = ["--copies", *(["--drops"] if self._far_behind else [])]
        self.puppets.append(Puppet(DAEMON, self.path, log, pause, *options))
        return self.daemon

    def kill(self) -> None:
        """SIGKILL of the daemon that was started last."""
        self.daemon.kill()
        self.never_ahead()

    def go(self) -> None:
        """Let what is paused go on, and the source write the second half."""
        for puppet in self.puppets:
            puppet.go()
        if self.verifier is not None:
            self.verifier.go()
        self._writer.resume()

    def write_all(self) -> None:
        """Wait until the source has written everything."""
        self._writer.finish(PATIENCE)

    def over(self) -> None:
        """The fault is over: from now on the time to recover counts, until a row that is written now is durable."""
        self._entries += 1
        self.at("source", "INSERT INTO journal VALUES (%s, 0)", -self._entries)
        flushed = self.at("source", "SELECT pg_current_wal_flush_lsn()")
        self._over = (time.monotonic(), parse_lsn(str(flushed[0][0])))

    def at_rest(self, check: Callable[[Trial], None]) -> None:
        """Have that checked at the end, when all has come to rest."""
        self._checks.append(check)

    def fall_behind(self) -> None:
        """Have the source write some hundreds of kilobytes."""
        self._backlogs += 1
        self.at("source", workload.backlog(self._backlogs))

    def at(self, side: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement at the source or the target; its rows, if it has any."""
        return rows(self.source if side == "source" else self.hub, query, parameters)

    def sessions(self, side: str, which: str = "true") -> list[int]:
        """The process ids of the daemon's sessions there; ``which``: a condition on pg_stat_activity."""
        query = f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'towline%%' AND {which}"
        name = self.name
        return [int(pid) for (pid,) in self.at(side, query + " AND datname = %s", name[side])]

    def epoch(self) -> int:
        """How often a daemon has taken over."""
        return int(self.at("target", "SELECT epoch FROM towline.checkpoint")[0][0])

    def position(self) -> int:
        """The durable position."""
        return parse_lsn(str(self.at("target", "SELECT position FROM towline.checkpoint")[0][0]))

    def apply(self) -> None:
        """`towline apply`."""
        with plan.prepare(load(self.path)) as prepared:
            plan.apply(prepared, lambda step: None)

    def _apply_at_standby(self) -> None:
        """The publication at the primary, the slot at the standby, for which the primary logs what runs."""
        replayed(*self.pair)
        publish(load(self.path), lambda statement: self.at("source", statement))
        replayed(*self.pair)
        with running_logged(lambda statement: self.at("source", statement)):
            self.apply()

    def moved(self, server: Server) -> None:
        """The source is another server from now on."""
        self.source = server.dsn(self.name["source"])

    def hook(self, body: str) -> None:
        """What the target does with each row that is inserted or updated, from now on: PL/pgSQL that returns it."""
        replace = "CREATE OR REPLACE FUNCTION audit.hook() RETURNS trigger LANGUAGE plpgsql AS "
        self.at("target", f"{replace}$hook$ BEGIN {body} END $hook$")

    def retry_quarantined(self) -> None:
        """`towline quarantine retry --all`."""
        with plan.prepare(load(self.path), applied=True) as prepared:
            quarantine.retry(prepared)

    def resync(self, *routes: str) -> None:
        """`towline resync`: everything is copied again, over what is there. No figure of the ledger is known then."""
        with plan.prepare(load(self.path), applied=True) as prepared:
            resync.execute(prepared, resync.plan(prepared, routes), lambda line: None)
        self._since, self._resynced = None, True

    def copied_again(self) -> None:
        """A table is to be copied again: what the ledger sees of it is no figure that is known."""
        self._since = None

    def edit(self, this: str, by: str) -> None:
        """Replace something in the pipeline file."""
        text = self.path.read_text("utf-8")
        assert this in text, f"no {this} in the pipeline file"
        self.path.write_text(text.replace(this, by, 1), "utf-8")

    def halted(self, code: str) -> None:
        """The daemon must end by itself, saying that a person must act, with that code."""
        exit_code = self.daemon.await_exit(PATIENCE)
        assert exit_code == Action.STOP, f"exit code {exit_code}: {self.daemon.log()}"
        assert self.daemon.logged(code), f"no {code} in the log: {self.daemon.log()}"

    # ---- the run ---------------------------------------------------------------------------------------------

    def run(self, hit: Callable[[Trial], None]) -> Outcome:
        """Run it all. Raises AssertionError where something is not as it must be, beside lost and doubled rows."""
        try:
            with self.stack:
                self._set_up()
                self._reach()
                hit(self)
                self.never_ahead()
                if self._over is None:
                    self.over()
                self.go()
                self._recover()
                self._writer.finish(PATIENCE)
                self._end_verifier()
                return Outcome(self._take_stock(), self._seconds)
        finally:
            self.over_and_done = True

    def abandon(self) -> None:
        """Have it fail soon; may be called by another thread."""
        self._abandoned = True
        for puppet in (*self.puppets, *([self.verifier] if self.verifier is not None else [])):
            if puppet.alive:
                puppet.process.kill()

    def _set_up(self) -> None:
        bench, stack = self.bench, self.stack
        bench.mend()
        if self._from_standby:
            self.pair = stack.enter_context(pair(self.directory, embedded_bindir()))
            self.source = self.source_server.dsn(create_database(self.source_server))
        elif self._standby:
            self.pair = stack.enter_context(
                pair(
                    self.directory,
                    embedded_bindir(),
                    primary={"synchronized_standby_slots": "standby"},
                    standby={"sync_replication_slots": "on"},
                )
            )
            self.source = self.source_server.dsn(create_database(self.source_server))
        else:
            self.source = bench.database(self.source_server, stack)
        self.hub = bench.database(self.target_server, stack)
        self.name = {
            "source": psycopg.conninfo.conninfo_to_dict(self.source)["dbname"],
            "target": psycopg.conninfo.conninfo_to_dict(self.hub)["dbname"],
        }
        stack.callback(bench.mend)
        self.proxies = {
            "source": stack.enter_context(Proxy(self.source_server.port, wire=True)),
            "target": stack.enter_context(Proxy(self.target_server.port, wire=True)),
        }
        if self.pair:
            self.proxies["standby"] = stack.enter_context(Proxy(self.pair[1].port, wire=True))
        if self._small_spool:
            stack.enter_context(small_disk(self._spool))
        stack.callback(self._end_processes)
        with psycopg.connect(self.source, autocommit=True) as connection:
            connection.execute(workload.SOURCE)
            workload.fill(connection)
        with psycopg.connect(self.hub, autocommit=True) as connection:
            connection.execute(workload.TARGET)
        self.path.write_text(self._configuration(), "utf-8")
        if self._prepare is not None:
            self._prepare(self)
        if self._from_standby:
            self._apply_at_standby()
        else:
            self.apply()

    @property
    def _spool(self) -> Path:
        return self.directory / "spool"

    def _configuration(self) -> str:
        source, target = self.proxies["source"].dsn(self.source), self.proxies["target"].dsn(self.hub)
        more = ""
        if self._from_standby:
            source = self.proxies["standby"].dsn(self.source)
        elif self.pair:
            ports = f"{self.proxies['source'].port},{self.proxies['standby'].port}"
            hosts = "127.0.0.1,127.0.0.1"
            source = psycopg.conninfo.make_conninfo(source, host=hosts, port=ports, target_session_attrs="read-write")
            more = ", failover: true"
        spool = f"spool: {{directory: {self._spool}}}\n" if self._small_spool else ""
        slot = f"matrix_{os.getpid()}_{self.directory.name.replace('-', '_')}"
        named = f"plugin: {self.plugin}, slot: {slot}, publication: {slot}{more}"
        return (
            "pipeline: matrix\n"
            f'source: {{kind: postgres, dsn: "{source}", {named}}}\n'
            f'target: {{kind: postgres, dsn: "{target}"}}\n'
            f"batch: {{max_rows: {40 if self._far_behind else 220}}}\n"
            "snapshot: {chunk_rows: 250}\ncheckpoint_seconds: 0.5\nweb: {port: 0}\n"
            f"defaults: {{{self._options}}}\nlog: {{level: debug}}\n{spool}{workload.ROUTES}"
        )

    def _reach(self) -> None:
        """Bring the pipeline to the phase: someone waits at the point then, and half of the work is on its way."""
        at = (self.point, self.passing)
        if self._far_behind:
            self._reach_behind(at)
            return
        if self.phase is Phase.SNAPSHOT:
            self.start(at)
            self._writer.start()
            self.daemon.await_paused(PATIENCE)
            return
        self.start()
        self.await_rest()
        if self._standby:
            until(lambda: self._synchronized(), PATIENCE, self.pair[1].log_tail)
            self.await_rest()
        self._since = self._mark()
        if self.phase is Phase.VERIFYING:
            log = self.directory / "verify.log"
            self.verifier = Puppet(VERIFY, self.path, log, at)
            self._writer.start()
            self.verifier.await_paused(PATIENCE)
            return
        self.daemon.pause_at(*at)
        self._writer.start()
        self.daemon.await_paused(PATIENCE)

    def _reach_behind(self, at: tuple[str, int]) -> None:
        """The same, with a daemon that is started when half of the work, and more, has been written."""
        if self.phase is not Phase.SNAPSHOT:
            self.start()
            self.await_rest()
            self._since = self._mark()
            self.daemon.stop()
        self._writer.start()
        until(lambda: self._writer.half_written, PATIENCE)
        self.fall_behind()
        self.start(at)
        self.daemon.await_paused(PATIENCE)
        assert self.daemon.logged("event=catching_up"), f"it does not read through SQL: {self.daemon.log()}"
        assert not self.daemon.logged("event=caught_up"), f"it streams again already: {self.daemon.log()}"
        self.at_rest(lambda trial: trial.daemon.await_logged("event=caught_up", timeout=PATIENCE))

    def await_rest(self) -> None:
        """Wait until every table is copied (and swept), and all that the source has is durable at the target."""
        end = parse_lsn(str(self.at("source", "SELECT pg_current_wal_flush_lsn()")[0][0]))
        until(
            lambda: self._ended() or (self.position() >= end and self._copied()),
            PATIENCE,
            lambda: f"the target to reach {end:X}, is at {self.position():X}: {self.daemon.log()}",
        )
        assert not self._ended(), f"no daemon is left: {self.daemon.log()}"

    def _ended(self) -> bool:
        return not any(puppet.alive for puppet in self.puppets)

    def _synchronized(self) -> bool:
        """Whether the standby's copy of the slot would outlive a promotion."""
        with psycopg.connect(self.pair[1].dsn()) as connection:
            row = connection.execute(
                "SELECT bool_and(synced AND NOT temporary) FROM pg_replication_slots WHERE database = %s",
                (self.name["source"],),
            ).fetchone()
        return row == (True,)

    def _copied(self) -> bool:
        return self.at("target", "SELECT bool_and(state = 'streaming' AND NOT sweep) FROM towline.route_state") == [
            (True,)
        ]

    def _recover(self) -> None:
        assert self._over is not None
        since, end = self._over
        recovered = until(
            lambda: self._ended() or self.position() >= end, PATIENCE, lambda: f"no recovery: {self.daemon.log()}"
        )
        assert recovered and not self._ended(), f"no daemon is left: {self.daemon.log()}"
        self._seconds = time.monotonic() - since

    def _end_verifier(self) -> None:
        """It may have been cut off, or have met a table that changes (both of which a retry cures); it may never have
        found a difference.
        """
        if self.verifier is None:
            return
        code = self.verifier.await_exit(PATIENCE * 2)
        assert code in (0, Action.RETRY), f"verify ended with exit code {code}: {self.verifier.log()}"

    def _mark(self) -> Mark:
        with psycopg.connect(self.source) as source, psycopg.connect(self.hub) as hub:
            return mark(source, hub)

    def _take_stock(self) -> Account:
        self.await_rest()
        for check in self._checks:
            check(self)
        self._await_sums()
        for puppet in self.puppets:
            if puppet.alive:
                puppet.stop()
        self.never_ahead()
        with psycopg.connect(self.source) as source, psycopg.connect(self.hub) as hub:
            taken = account(source, hub, self._since, resynced=self._resynced)
        with plan.prepare(load(self.path)) as prepared:
            report = verify(prepared)
        checksums = {route.route: route.checksum for route in report.routes}
        wrong = bool(report.exit_code) or set(checksums.values()) != {Keys.EQUAL}
        assert not wrong or taken.findings, f"verify finds what nobody else does: {report.lines()}, {checksums}"
        self.verified = not wrong
        return taken

    def _await_sums(self) -> None:
        """Wait until the ledger has a running sum of the source's keys for every route."""

        def known() -> bool:
            with psycopg.connect(self.hub) as hub:
                found = read_running(hub, "towline", "matrix")
            routes = [str(name) for (name,) in self.at("target", "SELECT route FROM towline.route_state")]
            return all(name in found and found[name].total is not None for name in routes)

        until(lambda: self._ended() or known(), PATIENCE, lambda: f"sums over the keys: {self.daemon.log()}")

    def never_ahead(self) -> None:
        """The slot is not confirmed beyond the checkpoint. Read in this order, since both move on."""
        query = (
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
        )
        read = self.pair[1].dsn(self.name["source"]) if self._from_standby else self.source
        for (confirmed,) in rows(read, query):  # none, when the fault was that it was dropped
            assert parse_lsn(str(confirmed)) <= self.position(), "the slot was confirmed beyond the checkpoint"

    def _end_processes(self) -> None:
        self._writer.abandon()
        for puppet in (*self.puppets, *([self.verifier] if self.verifier is not None else [])):
            puppet.kill()
