"""The PostgreSQL target: transactions, epoch and checkpoint around the `Applier`.

**One writer.** Two locks, for two dangers: that of the session, see `writing_session`; and the *epoch* in the
checkpoint, which is raised by whoever starts: a daemon that was suspended and comes back finds another's epoch with the
first statements of a transaction, and gets `Fenced`; what else it had sent with them is rolled back.

**Round trips.** A small batch costs two: begin, lock the checkpoint and its statements; ledger, checkpoint and commit.

**Durability.** An asynchronous commit does not wait for the server's log to be flushed; the server does that within
three times its ``wal_writer_delay``, and a crash before undoes the commit. A synchronous one flushes the log up to its
own record, and so the records of all that committed before it; then it waits for synchronous standbys, if there are
any. Source: https://www.postgresql.org/docs/current/wal-async-commit.html
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg

from towline.breaker import Breaker
from towline.change import Piece, Relation
from towline.errors import Fenced, NotSetUp, RowRefused, TargetUnavailable, TowlineError, TransactionRefused
from towline.key_sum import NO_KEYS
from towline.logs import event
from towline.position import format_lsn, parse_lsn
from towline.postgres.session import translate
from towline.running_sums import RunningSums
from towline.snapshot import STREAMING
from towline.target import Checkpoint, ChunkLoad, Committed, Counts, Reread, RouteState
from towline.target.postgres import control
from towline.target.postgres.apply import Applier
from towline.target.postgres.attempt import Routes
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.ledger import Control
from towline.target.postgres.quarantine import Quarantine
from towline.target.postgres.staging import Path
from towline.target.postgres.writing_session import Session, WritingSession
from towline_transforms.route import Route

log = logging.getLogger(__name__)

#: How long what was counted in the quarantine is good for, while this daemon does not write to it (seconds).
_RECOUNT = 5.0

#: How a transaction commits, said in it just before. The synchronous way is that of the session, which may be more than
#: ``on``, but never off, whatever the settings of the server have become since the session began.
ASYNCHRONOUS = "SET LOCAL synchronous_commit = off"
SYNCHRONOUS = """
SELECT pg_catalog.set_config('synchronous_commit', CASE way WHEN 'off' THEN 'on' ELSE way END, true)
FROM pg_catalog.current_setting('synchronous_commit') AS way
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
        self._session = WritingSession(
            dsn,
            pipeline=pipeline,
            schema=schema,
            predecessor=predecessor,
            connected=self._apply_over,
            failed=self._abandon,
        )
        self._pipeline = pipeline
        self._schema = schema
        self._routes, self._relations = tuple(routes), tuple(relations)
        self._path, self._direct = path, direct
        self._control = Control(schema, pipeline)
        self._sums: RunningSums | None = None
        self._applier: Applier | None = None
        self._epoch = 0
        self._position = 0
        self._began = 0.0
        self._open = False  # a transaction
        self._held: Outcome | None = None  # the checkpoint, in a transaction that has just begun
        self._loaded: list[RouteState] = []  # in it
        self._breaker = breaker or Breaker()
        self._counted = 0.0

    # ---- sessions --------------------------------------------------------------------------------------------

    def acquire(self, timeout: float) -> bool:
        """See the contract."""
        return self._session.lock(timeout)

    def open(self) -> Checkpoint:
        """See the contract."""
        with self._session.call():
            connection = self._session.connection
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
        with self._session.call():
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
        with self._session.call():
            connection = self._session.connection
            self._executing().sync()
            return control.read_states(connection, self._schema, self._pipeline)

    @property
    def quarantined(self) -> Mapping[str, int]:
        """Rows (not their changes) by route that are in the quarantine and open, as of `open` or the last commit."""
        quarantine = self._applying().quarantine
        return quarantine.opened if quarantine is not None else {}

    def heartbeat(self) -> None:
        """See the contract."""
        with self._session.call():
            self._hold()
            self._ask()

    def close(self) -> None:
        """See the contract."""
        self._session.close()

    @property
    def session(self) -> Session | None:
        """What the server knows the session by; None before there was one."""
        return self._session.own

    @property
    def called(self) -> float | None:
        """Since when the loop is in a call that needs an answer of the target's (monotonic); None when it is not."""
        return self._session.called

    @property
    def traffic(self) -> int | None:
        """Bytes that have passed on the line. May be asked by any thread."""
        return self._session.traffic

    # ---- transactions ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See the contract."""
        with self._session.call():
            self._begin()

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See the contract."""
        with self._session.call(), self._holding():
            if piece.truncated:
                self._hold()  # who empties tables says so of every error
            self.sums.apply(piece, active)
            self._applying().apply(piece, active, self._session.elsewhere(reread), prior)

    def load(self, load: ChunkLoad) -> None:
        """See the contract."""
        with self._session.call(), self._holding():
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
        with self._session.call():
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
        if self._session.open is None or not self._open:
            return
        with contextlib.suppress(TowlineError), self._session.call():
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
        with self._session.call():
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
        with self._session.call():
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
            applier.quarantine.load(self._session.connection, self._epoch)
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
        held = self._held
        if not held.done:
            self._executing().sync()
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

    def _apply_over(self, connection: psycopg.Connection[Any]) -> None:
        """Rows are applied over the connection from now on."""
        self._applier = Applier(
            connection,
            pipeline=self._pipeline,
            routes=self._routes,
            relations=self._relations,
            path=self._path,
            direct=self._direct,
            quarantine=(self._schema, self._breaker),
        )

    def _abandon(self) -> None:
        """The driver failed: what is queued has no answer any more."""
        if self._applier is not None:
            self._applier.executor.abandon()

    def reroute(self, routes: Sequence[Route], relations: Sequence[Relation]) -> None:
        """Go on with routes that were prepared anew: a standby may have waited for days. Not inside a transaction."""
        self._routes, self._relations = tuple(routes), tuple(relations)
        if self._applier is not None:
            self._apply_over(self._session.connection)

    def _executing(self) -> Executor:
        return self._applying().executor

    def _applying(self) -> Applier:
        if self._applier is None:
            raise TowlineError("the target is used before it was acquired")
        return self._applier
