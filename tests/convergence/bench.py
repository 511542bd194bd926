"""A pipeline that histories are run on, one after the other: databases and slot are kept, rows are put back."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.convergence.comparison import COUNTED, Comparison, Diverged
from tests.convergence.histories import Cut, History, Kill, Meanwhile, Phase, Transaction
from tests.convergence.schema import Schema
from tests.support.databases import create_database, drop_database
from tests.support.line import Line
from tests.support.proxy import Proxy
from tests.support.wait import until
from towline.catch_up import Bounds, CatchUp
from towline.demo.server import Server
from towline.errors import Action, TowlineError
from towline.position import parse_lsn
from towline.replication import Replication

#: What a session of a daemon's is called ('towline …' at both ends); the tests' own have no such name.
#: Whether a transaction keeps others from reading a table, as TRUNCATE and most of ALTER TABLE do.
_LOCKS_OUT = (
    "SELECT 1 FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock' AND relation >= 16384 LIMIT 1"
)
_LEFT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'towline%'"
_STREAMED = """
SELECT stream_count FROM pg_stat_replication_slots WHERE slot_name = %s
"""
#: How a backlog is read of a schema that is to be behind: whatever there is of it, which a transaction of a few hundred
#: rows makes several gulps of.
SIPS = Bounds(enter=1, leave=1, least=50_000, most=50_000, follow=1 << 30, again=1 << 20, confirm=1)
_RETRIES = 20
_HELD_FOR = 3

_numbers = itertools.count(1)


class Killed(BaseException):
    """The daemon is no more; not an error that anything may handle."""


class Bench:
    """Source, hub and pipeline of one schema and plugin. ``histories``, ``faults``: how many there were.

    ``counted``: changes at the source that the ledger was held against. ``gulps``: of what was behind.
    """

    def __init__(self, schema: Schema, plugin: str, source: Server, hub: Server, directory: Path) -> None:
        self.schema, self.plugin = schema, plugin
        self.histories = self.faults = self.transactions = self.counted = self.gulps = 0
        self._directory = directory
        self._servers = source, hub
        self._stack = ExitStack()
        self._open()

    def _open(self) -> None:
        source, hub = self._servers
        databases = create_database(source), create_database(hub)
        self._stack.callback(drop_database, hub, databases[1])
        self._stack.callback(drop_database, source, databases[0])
        self._dsn = source.dsn(databases[0]), hub.dsn(databases[1])
        self._writers = [self._connect(0), self._connect(0)]
        self._hub = self._connect(1)
        self._proxies = tuple(self._stack.enter_context(Proxy(server.port)) for server in self._servers)
        self._writers[0].execute(self.schema.source.encode())
        if not self.schema.changing:
            self._writers[0].execute(COUNTED.encode())
        if self.schema.streamed:
            name = sql.Identifier(databases[0])
            memory = sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'")
            self._writers[0].execute(memory.format(name))
        self._hub.execute(self.schema.hub.encode())
        self._line = self._make_line(20_000, 20_000)
        self._line.apply()

    def close(self) -> None:
        """Drop the databases."""
        self._stack.close()

    def _connect(self, side: int) -> psycopg.Connection:
        connection = psycopg.connect(
            self._dsn[side], autocommit=True, options="-c client_min_messages=error -c lock_timeout=100ms"
        )
        return self._stack.enter_context(connection)

    def _make_line(self, chunk_rows: int, max_rows: int) -> Line:
        more = f"{self.schema.more}\nsnapshot: {{chunk_rows: {chunk_rows}}}\nbatch: {{max_rows: {max_rows}}}"
        return Line.make(self._directory, *self._dsn, self.schema.routes, plugin=self.plugin, more=more)

    def parts(self) -> int:
        """How many parts of transactions under way the source has sent."""
        ((parts,),) = self._writers[0].execute(_STREAMED, (self._line.config.source.slot,)).fetchall()
        return int(parts)

    # ---- a history -------------------------------------------------------------------------------------------

    def play(self, history: History) -> None:
        """From the beginning to its end. Raises Diverged, and the errors that stop a pipeline."""
        self.histories += 1
        self._reset(history)
        comparison = Comparison(self.schema, self._writers[0], self._hub, self._line)
        for phase in history.phases:
            for transaction in phase.before:
                self._transact(transaction)
            late, copying = self._run(phase)
            late |= any(each.end == "not synchronous" for each in phase.before)
            if late:  # what took place meanwhile, or was not flushed yet, is beyond where that run went
                self._writers[0].execute("SELECT pg_logical_emit_message(true, 'test', 'flushed with all before it')")
                self._run(Phase())
            self.counted += comparison.hold(copying=copying)
        if history.verify:
            report = self._line.verify()
            if report.exit_code:
                raise Diverged(f"verify: {'; '.join(report.lines())}")

    def _reset(self, history: History) -> None:
        """Other rows at the source, none at the hub, and the pipeline at the beginning of its copying."""
        if self.schema.changing and self.histories > 1:
            self.close()
            self._open()
        line = self._line
        text = line.path.read_text("utf-8").split("snapshot:")[0]
        routes = self.schema.routes
        line.path.write_text(
            f"{text}snapshot: {{chunk_rows: {history.chunk_rows}}}\nbatch: {{max_rows: {history.max_rows}}}\n"
            f"routes:\n{routes}\n",
            "utf-8",
        )
        writer, slot, name = self._writers[0], line.config.source.slot, line.config.pipeline
        writer.execute(sql.SQL("TRUNCATE {} CASCADE").format(_names(self.schema.tables)))
        writer.execute(self.schema.fill.format(rows=history.rows).encode())
        if not self.schema.changing:
            writer.execute("TRUNCATE counted.change")
        self._await_no_daemon()
        (position,) = writer.execute(
            "SELECT end_lsn FROM pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", (slot,)
        ).fetchone() or ("",)
        with self._hub.transaction():
            self._hub.execute(sql.SQL("TRUNCATE {} CASCADE").format(_names(self.schema.copies)))
            self._hub.execute("UPDATE towline.checkpoint SET position = %s WHERE pipeline = %s", (position, name))
            self._hub.execute(
                "UPDATE towline.route_state SET state = 'pending', cursor = NULL, copied = 0, key_form = NULL,"
                " total_keys = NULL, total_sum = NULL WHERE pipeline = %s",
                (name,),
            )
            self._hub.execute("DELETE FROM towline.ledger WHERE pipeline = %s", (name,))
            self._hub.execute("DELETE FROM towline.quarantine WHERE pipeline = %s", (name,))

    def _await_no_daemon(self) -> None:
        for connection in (self._writers[0], self._hub):
            until(lambda c=connection: c.execute(_LEFT).fetchone() == (0,), 20, "the daemon's sessions to end")  # type: ignore[misc]

    # ---- transactions ----------------------------------------------------------------------------------------

    def _transact(self, transaction: Transaction) -> None:
        with self._begun(transaction, self._writers[0]):
            pass

    @contextmanager
    def _begun(self, transaction: Transaction, writer: psycopg.Connection) -> Iterator[None]:
        """Its statements; it ends, as it is said to, with the block."""
        self.transactions += 1
        writer.execute("BEGIN")
        if transaction.end == "not synchronous":
            writer.execute("SET LOCAL synchronous_commit = off")
        for step in transaction.steps:
            writer.execute("SAVEPOINT here")
            try:
                writer.execute(step.sql.encode())
            except psycopg.Error:
                writer.execute("ROLLBACK TO here")
            else:
                if step.undone:
                    writer.execute("ROLLBACK TO here")
            writer.execute("RELEASE here")
        if transaction.message:
            writer.execute("SELECT pg_logical_emit_message(true, 'test', 'message')")
        yield
        if transaction.end.startswith("prepare"):
            writer.execute(f"PREPARE TRANSACTION 'history {id(self)}'".encode())
            verb = "ROLLBACK" if transaction.end.endswith("rollback") else "COMMIT"
            writer.execute(f"{verb} PREPARED 'history {id(self)}'".encode())
        else:
            writer.execute("ROLLBACK" if transaction.end == "rollback" else "COMMIT")

    # ---- the pipeline ----------------------------------------------------------------------------------------

    def _run(self, phase: Phase) -> tuple[bool, bool]:
        """Run until caught up, through the phase's fault. Whether anything happened at the source meanwhile, and
        whether any rows were copied.
        """
        holder = self._writers[1]
        telling = _Telling(
            phase,
            self._transact,
            lambda transaction: self._begun(transaction, holder),
            lambda: holder.execute(_LOCKS_OUT).fetchone() is not None,
        )
        fault = phase.fault
        for _ in range(_RETRIES):
            config = self._line.config
            if isinstance(fault, Cut):
                side = 0 if fault.end == "source" else 1
                proxy = self._proxies[side]
                part = config.source if fault.end == "source" else config.target
                through = part.model_copy(update={"dsn": type(part.dsn)(proxy.dsn(self._dsn[side]))})
                config = config.model_copy(update={fault.end.replace("hub", "target"): through})
                proxy.cut_after(fault.after, up=fault.up)
            attempt = Replication(
                config,
                metrics=self._line.metrics,
                stopping=lambda: False,
                role=lambda role: None,
                announce=telling.announce,
                catch_up=CatchUp(SIPS) if self.schema.behind else None,  # each is to begin with it, however many fail
            )
            try:
                attempt.run(until_caught_up=True)
                return telling.happened, telling.copying
            except Killed:
                self.faults += 1
            except TowlineError as error:
                if error.action is not Action.RETRY:
                    raise
                self.faults += isinstance(fault, Cut)
            finally:
                fault = None
                self.gulps += telling.gulps
                telling.end_held()
                self._never_ahead()
        raise Diverged(f"not caught up after {_RETRIES} attempts")

    def _never_ahead(self) -> None:
        name, slot = self._line.config.pipeline, self._line.config.source.slot
        (confirmed,) = self._writers[0].execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", (slot,)
        ).fetchone() or ("0/0",)
        (durable,) = self._hub.execute(
            "SELECT position::text FROM towline.checkpoint WHERE pipeline = %s", (name,)
        ).fetchone() or ("0/0",)
        if parse_lsn(confirmed) > parse_lsn(durable):
            raise Diverged(f"{confirmed} was acknowledged, {durable} is durable")


class _Telling:
    """What the loop's points set off in one phase. Used by the loop's thread, and by no other while that runs."""

    def __init__(
        self,
        phase: Phase,
        transact: Callable[[Transaction], None],
        begun: Callable[[Transaction], Any],
        locks_out: Callable[[], bool],
    ) -> None:
        self._meanwhile: list[Meanwhile] = list(phase.meanwhile)
        self._kill = phase.fault if isinstance(phase.fault, Kill) else None
        self._transact, self._begun, self._locks_out = transact, begun, locks_out
        self._passed: Counter[str] = Counter()
        self._held: tuple[ExitStack, int] | None = None
        self._thread = threading.get_ident()
        self.happened = self.copying = False
        self.gulps = 0

    def announce(self, point: str) -> None:
        """For `Pipeline`."""
        nth = self._passed[point]
        self._passed.update((point, ""))
        self.copying |= point == "chunk-read"
        self.gulps += point == "gulp-read"
        if self._held is not None:
            stack, left = self._held
            self._held = stack, left - 1
            if left <= 1:
                self.end_held()
        for each in [each for each in self._meanwhile if (each.point, each.nth) == (point, nth)]:
            self._meanwhile.remove(each)
            self.happened = True
            if each.transaction.end == "held" and self._held is None:
                stack = ExitStack()
                stack.enter_context(self._begun(each.transaction))
                self._held = stack, _HELD_FOR
                if self._locks_out():  # the loop may have to wait for it, and nobody else would end it
                    self.end_held()
            else:
                self._transact(each.transaction)
        passed = {(point, nth), ("", self._passed[""] - 1)}
        if self._kill is not None and (self._kill.point, self._kill.nth) in passed:
            self._kill = None
            raise Killed

    def end_held(self) -> None:
        """End the transaction that is open."""
        if self._held is not None:
            stack, _ = self._held
            self._held = None
            stack.close()


def _names(tables: tuple[str, ...]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(*table.split(".")) for table in tables)
