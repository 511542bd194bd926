"""The PostgreSQL target: transactions, session lock, epoch and checkpoint around the `Applier`.

**One writer.** Two locks, for two dangers. The *session lock* is an advisory lock on `ledger.lock_key`: the server
releases it when the session ends, so that a standby may go on. The *epoch* in the checkpoint is raised by whoever
starts: a daemon that was suspended and comes back finds another's epoch with the first statements of a transaction, and
gets `Fenced`; what else it had sent with them is rolled back. A daemon that is frozen, with its connection alive, loses
both session and transaction to the server's idle timeouts (`_IDLE`).

**Round trips.** A small batch costs two: begin, lock the checkpoint and its statements; ledger, checkpoint and commit.

**Durability.** An asynchronous commit does not wait for the server's log to be flushed; the server does that within
three times its ``wal_writer_delay``, and a crash before undoes the commit. A synchronous one flushes the log up to its
own record, and so the records of all that committed before it; then it waits for synchronous standbys, if there are
any. Source: https://www.postgresql.org/docs/current/wal-async-commit.html
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg

from towline.breaker import Breaker
from towline.change import Chunk, Piece, Relation
from towline.errors import Fenced, NotSetUp, RowRefused, TargetUnavailable, TowlineError, TransactionRefused
from towline.frame import Frame
from towline.key_sum import NO_KEYS
from towline.logs import event
from towline.position import format_lsn, parse_lsn
from towline.postgres.line import hang_up, traffic, within
from towline.postgres.session import connect, translate
from towline.running_sums import RunningSums
from towline.snapshot import STREAMING
from towline.target import Checkpoint, ChunkLoad, Committed, Counts, Reread, RouteState
from towline.target.postgres import control
from towline.target.postgres.apply import Applier
from towline.target.postgres.attempt import Routes
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.ledger import Control, lock_key
from towline.target.postgres.quarantine import Quarantine
from towline.target.postgres.staging import Path
from towline_transforms.route import Route

log = logging.getLogger(__name__)

#: How long a session may be idle, in a transaction or not, before the server ends it (milliseconds). The pipeline's
#: heartbeat is several times as frequent.
_IDLE = 60_000
#: How long a statement waits for a lock that another session holds (milliseconds): then TargetConflict.
_LOCK_WAIT = 30_000
#: How often a standby tries for the lock (seconds).
_POLL = 0.2
#: How long the server may take to say whether the lock is free (seconds): a standby's line may be dead.
_ANSWER = 30.0
#: How long what was counted in the quarantine is good for, while this daemon does not write to it (seconds).
_RECOUNT = 5.0

_SETTINGS = {
    "idle_in_transaction_session_timeout": _IDLE,
    "lock_timeout": _LOCK_WAIT,
    # Stages have few rows and targets many, mostly in memory: with the default of 4, a join with a stage of some
    # thousand keys would rather read the whole target than look the keys up in its index.
    "random_page_cost": 1.1,
}


#: How a transaction commits, said in it just before. The synchronous way is that of the session, which may be more than
#: ``on``, but never off, whatever the settings of the server have become since the session began.
ASYNCHRONOUS = "SET LOCAL synchronous_commit = off"
SYNCHRONOUS = """
SELECT pg_catalog.set_config('synchronous_commit', CASE way WHEN 'off' THEN 'on' ELSE way END, true)
FROM pg_catalog.current_setting('synchronous_commit') AS way
"""

#: A server process and when it began, which tells it from a later one of the same number.
Session = tuple[int, datetime]

_OWN_SESSION = "SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
_END_SESSION = """
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %s AND backend_start = %s
"""


class PostgresTarget:
    """Implements `towline.target.Target`. Nothing is connected before `acquire`.

    ``schema`` holds the control tables. ``path`` and ``direct`` are for tests, see `Applier`. ``predecessor``: the
    ``session`` of this daemon's last connection, which is ended if the server still has it. ``breaker``: of the
    quarantine, which may remember what was before this target.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pipeline: str,
        schema: str,
        routes: Sequence[Route],
        relations: Sequence[Relation],
        path: Path | None = None,
        direct: bool = True,
        predecessor: Session | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self._predecessor = predecessor
        self.session: Session | None = None
        self._dsn = dsn
        self._pipeline = pipeline
        self._schema = schema
        self._routes, self._relations = tuple(routes), tuple(relations)
        self._path, self._direct = path, direct
        self._control = Control(schema, pipeline)
        self._sums: RunningSums | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._applier: Applier | None = None
        self._epoch = 0
        self._position = 0
        self._began = 0.0
        self._open = False  # a transaction
        self._held: Outcome | None = None  # the checkpoint, in a transaction that has just begun
        self._loaded: list[RouteState] = []  # in it
        self._breaker = breaker or Breaker()
        self._counted = 0.0
        self._closing = threading.Event()
        self._calling: int | None = None
        self._called: float | None = None

    # ---- sessions --------------------------------------------------------------------------------------------

    def acquire(self, timeout: float) -> bool:
        """See the contract. A lock that another session holds is tried for again and again, since waiting for it in
        the server would hold a snapshot, and with it the vacuum of the target, for as long.
        """
        deadline = time.monotonic() + timeout
        with self._call():
            connection = self._connected()
            while True:
                with within(connection, _ANSWER):
                    locked = connection.execute(
                        "SELECT pg_try_advisory_lock(%s)", (lock_key(self._schema, self._pipeline),)
                    ).fetchone()
                if locked is not None and locked[0]:
                    return True
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.wait(min(_POLL, left)):
                    return False

    def open(self) -> Checkpoint:
        """See the contract."""
        with self._call():
            connection = self._connected()
            executor = self._executing()
            try:
                raised = executor.run(*self._control.raise_epoch())
                executor.sync()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                raise NotSetUp(f"the target has no control tables in schema {self._schema}", sqlstate="42P01") from None
            checkpoint = control.read_checkpoint(connection, self._schema, self._pipeline) if raised.rowcount else None
            if checkpoint is None:
                raise NotSetUp(f"the target has no checkpoint of pipeline {self._pipeline}")
            self._epoch, self._position = checkpoint.epoch, checkpoint.position
            if (quarantine := self._applying().quarantine) is not None:
                quarantine.load(connection, self._epoch)
            self._sums = self._read_sums(connection)
            return checkpoint

    def copied_again(self, ask: Routes, marked: AbstractSet[str], copying: Routes) -> None:
        """Whom to ask which routes are copied over what is there, so that room is made where rows are in the way.

        ``marked``: those that were when this began; some may have been swept since. ``copying``: whom to ask which are
        being copied, for the first time or again.
        """
        self._applying().copied_again(ask, marked, copying)

    def note_timeline(self, timeline: int) -> None:
        """The checkpoint's position is in the history of that timeline, on which the source is now. Raises Fenced."""
        self._note(*self._control.timeline(self._epoch, timeline))

    def note_publication(self, oid: int) -> None:
        """The slot can read the publication of that OID. Raises Fenced."""
        self._note(*self._control.publication(self._epoch, oid))

    def _note(self, statement: str, parameters: Sequence[object]) -> None:
        with self._call():
            executor = self._executing()
            noted = executor.run(statement, parameters)
            executor.sync()
            if noted.rowcount != 1:
                raise self._fenced()

    def _read_sums(self, connection: psycopg.Connection[Any]) -> RunningSums:
        states = control.read_states(connection, self._schema, self._pipeline)
        streaming = [route for route, state in states.items() if state.state == STREAMING]
        known = control.read_running(connection, self._schema, self._pipeline)
        return RunningSums(self._routes, self._relations, known, streaming)

    @property
    def sums(self) -> RunningSums:
        """The sums over the routes' source keys, from `open` on."""
        if self._sums is None:
            raise TowlineError("the target is used before it was opened")
        return self._sums

    def read_ahead(self, position: int) -> None:
        """Attempts before this one may have read rows again from the source as it was up to that position.

        To be called after `acquire`, before anything is applied.
        """
        self._applying().read_ahead(position)

    def states(self) -> Mapping[str, RouteState]:
        """See the contract."""
        with self._call():
            return control.read_states(self._connected(), self._schema, self._pipeline)

    @property
    def quarantined(self) -> Mapping[str, int]:
        """Rows (not their changes) by route that are in the quarantine and open, as of `open` or the last commit."""
        quarantine = self._applying().quarantine
        return quarantine.opened if quarantine is not None else {}

    def heartbeat(self) -> None:
        """See the contract."""
        with self._call():
            self._hold()
            self._ask()

    def close(self) -> None:
        """See the contract."""
        self._closing.set()
        connection = self._connection
        if connection is None or connection.closed:
            return
        if self._calling in (None, threading.get_ident()):
            connection.close()
            return
        # Another thread is inside libpq: have the server end the statement, then cut the line under both.
        with contextlib.suppress(psycopg.Error):
            connection.cancel_safe(timeout=1.0)
        hang_up(connection)

    @property
    def called(self) -> float | None:
        """Since when the loop is in a call that needs an answer of the target's (monotonic); None when it is not."""
        return self._called

    def _elsewhere(self, reread: Reread) -> Reread:
        """What a call asks the source, however long that takes, is not the target's silence."""

        def asked(relation: Relation, keys: Frame) -> Chunk:
            self._called = None
            try:
                return reread(relation, keys)
            finally:
                self._called = time.monotonic()

        return asked

    @property
    def traffic(self) -> int | None:
        """Bytes that have passed on the line, see `towline.postgres.line.traffic`. May be asked by any thread."""
        connection = self._connection
        return traffic(connection) if connection is not None and not connection.closed else None

    # ---- transactions ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See the contract."""
        with self._call():
            self._begin()

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See the contract."""
        with self._call(), self._holding():
            if piece.truncated:
                self._hold()  # who empties tables says so of every error
            self.sums.apply(piece, active)
            self._applying().apply(piece, active, self._elsewhere(reread), prior)

    def load(self, load: ChunkLoad) -> None:
        """See the contract."""
        with self._call(), self._holding():
            self._applying().load(load)
            executor = self._executing()
            executor.run(*self._control.state(load.state))
            executor.sync()
            self._loaded.append(load.state)
            self.sums.load(load.route.name, len(load.chunk.rows), last=load.state.state == STREAMING)

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        """See the contract. When constraints that were put off are violated, and rows may be set aside, the batch is
        replayed in a transaction of its own that finds these rows.
        """
        with self._call():
            self._hold()
            try:
                return self._commit(position, commit_time, synchronous)
            except psycopg.Error as error:
                self._executing().abandon()
                refused = translate(error, "target")
                if not isinstance(refused, RowRefused) or not self._applying().sets_aside:
                    raise refused from error
                if not self._applying().replayable:
                    raise TransactionRefused(refused.detail, sqlstate=refused.sqlstate) from error
            loaded = self._loaded
            self._roll_back()
            self._begin(replaying=True)
            self._hold()
            self._applying().replay()
            for state in loaded:
                self._executing().run(*self._control.state(state))
            return self._commit(position, commit_time, synchronous)

    def _commit(self, position: int, commit_time: datetime | None, synchronous: bool) -> Committed:
        applier, executor = self._applying(), self._executing()
        counts = {name: each for name, each in applier.counts.items() if each.seen}
        entries = self.sums.entries(position, counts)
        if entries:
            # Constraints that were put off are checked here, where nothing is committed yet.
            executor.run("SET CONSTRAINTS ALL IMMEDIATE")
            if ranges := {route: entry for route, entry in entries.items() if entry.seen or entry.keys != NO_KEYS}:
                executor.run(*self._control.ledger(self._position, position, counts, ranges), prepare=True)
            executor.run(*self._control.totals(entries), prepare=True)
        for answer in self.sums.answers:
            executor.run(*self._control.answer(answer, position))
        quarantine = applier.quarantine
        opened = quarantine.count() if quarantine is not None and self._counting(quarantine) else None
        self._finish(executor, position, commit_time, synchronous)
        applier.committed()
        checksums = self.sums.committed(position)
        if quarantine is None:
            return Committed(counts, time.monotonic() - self._began, checksums=checksums)
        quarantine.committed(counts, opened)
        self._tell(counts)
        return Committed(counts, time.monotonic() - self._began, quarantine.opened, checksums)

    def _counting(self, quarantine: Quarantine) -> bool:
        """Whether to count what is in the quarantine: when it was written to; and now and then, since people do it,
        too.
        """
        now = time.monotonic()
        due = quarantine.changed or (any(quarantine.opened.values()) and now - self._counted >= _RECOUNT)
        if due:
            self._counted = now
        return due

    def _tell(self, counts: Mapping[str, Counts]) -> None:
        for name, each in counts.items():
            if each.quarantined:
                event(
                    log,
                    logging.WARNING,
                    "rows_quarantined",
                    pipeline=self._pipeline,
                    route=name,
                    rows=each.quarantined,
                    remedy="towline quarantine list",
                )

    def due(self, position: int) -> bool:
        """See the contract."""
        return self.sums.due(position)

    def rollback(self) -> None:
        """See the contract. A connection that is gone has rolled back already."""
        connection = self._connection
        if connection is None or connection.closed or not self._open:
            return
        with contextlib.suppress(TowlineError), self._call():
            self._roll_back()
        if self._sums is not None:
            self._sums.rolled_back()

    def _roll_back(self) -> None:
        self._open, self._held = False, None
        applier, executor = self._applying(), self._executing()
        try:
            executor.abandon()
            executor.run("ROLLBACK")
            executor.sync()
        finally:
            applier.rolled_back()

    def set_states(self, states: Sequence[RouteState]) -> None:
        """See the contract."""
        with self._call():
            self._begin()
            self._hold()
            executor = self._executing()
            for state in states:
                executor.run(*self._control.state(state))
            executor.run("COMMIT")
            executor.sync()
            self._open = False
            self.sums.committed(self._position)

    def adopt(self, statements: Sequence[str], states: Sequence[RouteState]) -> None:
        """Run statements and record route states in one transaction, which is fenced like any other.

        To be called after `open`, before anything is applied: the statements may change the routes' tables.
        """
        with self._call():
            self._begin()
            self._hold()
            executor = self._executing()
            for statement in statements:
                executor.run(statement)
            for state in states:
                executor.run(*self._control.state(state))
            executor.run("COMMIT")
            executor.sync()
            self._open = False

    def _begin(self, *, replaying: bool = False) -> None:
        """Begin a transaction that holds the checkpoint. ``replaying``: what was applied before will be once more.

        What the server says to that is looked at with the answers to the first statements that follow, see `_holding`:
        a round trip less for each batch.
        """
        if self._open:
            raise TowlineError("a transaction was begun inside another one")
        applier, executor = self._applying(), self._executing()
        if applier.quarantine is not None:
            applier.quarantine.load(self._connected(), self._epoch)
        self._began = time.monotonic()
        self._loaded = []
        self._open = True
        executor.run("BEGIN", prepare=True)
        self._held = executor.run(*self._control.hold(self._epoch), prepare=True)
        executor.run("SET CONSTRAINTS ALL DEFERRED", prepare=True)
        if not replaying:
            applier.begin()
            self.sums.begin()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """What is done may be done for nothing, and fail for that reason, when the checkpoint is not held: see to it
        that nothing is made of it.
        """
        try:
            yield
        except (psycopg.Error, TowlineError):
            if self._held is not None and self._held.done and not self._held.rows:
                raise self._fenced() from None
            raise
        self._hold()

    def _hold(self) -> None:
        """Look at what the server said to `_begin`. Raises Fenced."""
        if self._held is None:
            return
        self._executing().sync()
        held = self._held
        if not held.rows:  # it stays so: whatever is called next is told the same
            raise self._fenced() if held.done else TargetUnavailable("the transaction has not begun")
        self._held = None
        position, asked = held.rows[0]
        self._position = parse_lsn(position or "")
        if asked == "t":
            self._ask()

    def _ask(self) -> None:
        """See for which routes somebody wants the keys counted."""
        executor = self._executing()
        wanted = executor.run(*self._control.asked())
        executor.sync()
        self.sums.ask({route or "": anew == "t" for route, anew in wanted.rows})

    def _finish(self, executor: Executor, position: int, commit_time: datetime | None, synchronous: bool) -> None:
        """Move the checkpoint and commit. The checkpoint is held, and so is its epoch: only the position can be
        wrong.
        """
        if position < self._position:
            raise TowlineError(
                f"a commit at {format_lsn(position)} is before the checkpoint {format_lsn(self._position)}"
            )
        moved = self._control.advance(self._epoch, position, commit_time, self._applying().read)
        advanced = executor.run(*moved, prepare=True)
        executor.run(SYNCHRONOUS if synchronous else ASYNCHRONOUS, prepare=True)
        executor.run("COMMIT")
        executor.sync()
        self._open = False
        if advanced.rowcount != 1:
            raise self._fenced()
        self._position = position

    def _fenced(self) -> Fenced:
        return Fenced(f"epoch {self._epoch} of pipeline {self._pipeline} has been superseded")

    # ---- the connection --------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = connect(
                self._dsn, application_name=f"towline {self._pipeline}", side="target", search_path=None
            )
            self._connection = connection
            settings = dict(_SETTINGS)
            if connection.info.server_version >= 140000:
                settings["idle_session_timeout"] = _IDLE
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
            self._end_predecessor(connection)
            self._applier = self._new_applier(connection)
        return self._connection

    def _new_applier(self, connection: psycopg.Connection[Any]) -> Applier:
        return Applier(
            connection,
            pipeline=self._pipeline,
            routes=self._routes,
            relations=self._relations,
            path=self._path,
            direct=self._direct,
            quarantine=(self._schema, self._breaker),
        )

    def _end_predecessor(self, connection: psycopg.Connection[Any]) -> None:
        """End the session that this daemon had before, and note the new one.

        When its line was cut at our end only, the server would keep it, with the lock, until it has been idle too long.
        """
        if self._predecessor is not None:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute(_END_SESSION, self._predecessor)
        row = connection.execute(_OWN_SESSION).fetchone()
        self.session = (row[0], row[1]) if row is not None else None

    def reroute(self, routes: Sequence[Route], relations: Sequence[Relation]) -> None:
        """Go on with routes that were prepared anew: a standby may have waited for days. Not inside a transaction."""
        self._routes, self._relations = tuple(routes), tuple(relations)
        if self._connection is not None:
            self._applier = self._new_applier(self._connection)

    def _executing(self) -> Executor:
        return self._applying().executor

    def _applying(self) -> Applier:
        if self._applier is None:
            raise TowlineError("the target is used before it was acquired")
        return self._applier

    @contextmanager
    def _call(self) -> Iterator[None]:
        """A call of the contract: notes who is inside, and translates the driver's errors."""
        if self._closing.is_set():
            raise TargetUnavailable("the connection to the target was closed")
        self._calling = threading.get_ident()
        self._called = time.monotonic()
        try:
            yield
        except psycopg.Error as error:
            if self._applier is not None:
                self._applier.executor.abandon()
            raise translate(error, "target") from error
        finally:
            self._calling = self._called = None
