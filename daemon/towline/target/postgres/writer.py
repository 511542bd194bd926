"""The PostgreSQL target: transactions and checkpoint around the `Applier`.

**One writer.** Two locks, for two dangers: that of the session, see `writing_session`; and the epoch in the checkpoint,
see `fence`.

**Round trips.** A small batch costs two: begin, lock the checkpoint and its statements; ledger, checkpoint and commit.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any

import psycopg

from towline.breaker import Breaker
from towline.change import Piece, Relation
from towline.errors import NotSetUp, RowRefused, TowlineError, TransactionRefused
from towline.key_sum import NO_KEYS
from towline.logs import event
from towline.postgres.session import translate
from towline.running_sums import RunningSums
from towline.snapshot import STREAMING
from towline.target import Checkpoint, ChunkLoad, Committed, Counts, Reread, RouteState
from towline.target.postgres import control
from towline.target.postgres.apply import Applier
from towline.target.postgres.attempt import Routes
from towline.target.postgres.executor import Executor
from towline.target.postgres.fence import Fence
from towline.target.postgres.ledger import Control
from towline.target.postgres.quarantine import Quarantine
from towline.target.postgres.staging import Path
from towline.target.postgres.writing_session import Session, WritingSession
from towline_transforms.route import Route

log = logging.getLogger(__name__)

#: How long what was counted in the quarantine is good for, while this daemon does not write to it (seconds).
_RECOUNT = 5.0


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
        self._fence = Fence(
            pipeline, self._control, executing=self._executing, asked=lambda routes: self.sums.ask(routes)
        )
        self._began = 0.0
        self._loaded: list[RouteState] = []  # in the transaction
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
            self._fence.at(checkpoint.epoch, checkpoint.position)
            if (quarantine := self._applying().quarantine) is not None:
                quarantine.load(connection, checkpoint.epoch)
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
        with self._session.call():
            self._fence.note(*self._control.timeline(self._fence.epoch, timeline))

    def note_publication(self, oid: int) -> None:
        """The slot can read the publication of that OID. Raises Fenced."""
        with self._session.call():
            self._fence.note(*self._control.publication(self._fence.epoch, oid))

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
            self._fence.hold()
            self._fence.ask()

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
        with self._session.call(), self._fence.holding():
            if piece.truncated:
                self._fence.hold()  # who empties tables says so of every error
            self.sums.apply(piece, active)
            self._applying().apply(piece, active, self._session.elsewhere(reread), prior)

    def load(self, load: ChunkLoad) -> None:
        """See the contract."""
        with self._session.call(), self._fence.holding():
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
            self._fence.hold()
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
            self._fence.hold()
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
                executor.run(*self._control.ledger(self._fence.position, position, counts, ranges), prepare=True)
            executor.run(*self._control.totals(entries), prepare=True)
        for answer in self.sums.answers:
            executor.run(*self._control.answer(answer, position))
        quarantine = applier.quarantine
        opened = quarantine.count() if quarantine is not None and self._counting(quarantine) else None
        self._fence.commit(position, commit_time, applier.read, synchronous=synchronous)
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
        if self._session.open is None or not self._fence.open:
            return
        with contextlib.suppress(TowlineError), self._session.call():
            self._roll_back()
        if self._sums is not None:
            self._sums.rolled_back()

    def _roll_back(self) -> None:
        applier = self._applying()
        try:
            self._fence.roll_back()
        finally:
            applier.rolled_back()

    def set_states(self, states: Sequence[RouteState]) -> None:
        """See the contract."""
        with self._session.call():
            self._begin()
            self._fence.record((), states)
            self.sums.committed(self._fence.position)

    def adopt(self, statements: Sequence[str], states: Sequence[RouteState]) -> None:
        """Run statements and record route states in one transaction, which is fenced like any other.

        To be called after `open`, before anything is applied: the statements may change the routes' tables.
        """
        with self._session.call():
            self._begin()
            self._fence.record(statements, states)

    def _begin(self, *, replaying: bool = False) -> None:
        """Begin a transaction. ``replaying``: what was applied before will be once more."""
        applier = self._applying()
        if applier.quarantine is not None:
            applier.quarantine.load(self._session.connection, self._fence.epoch)
        self._began = time.monotonic()
        self._loaded = []
        self._fence.begin()
        if not replaying:
            applier.begin()
            self.sums.begin()

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
