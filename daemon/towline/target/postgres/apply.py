"""Applies rows to the tables of routes, inside a transaction that someone else begins and ends.

A piece is first tried as a whole, in sets: per relation only the last version of each key, all deletes before all
upserts, parents before children (deletes the other way round). That can violate constraints which held at the source
at each commit, when unique values are swapped, say. Then the server goes back to the savepoint before the piece, and it
is replayed in source order, and what fails even alone is the row that the target refuses (`refusals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg

from towline.breaker import Breaker
from towline.change import INSERT, Chunk, Piece, Relation, RowSet
from towline.errors import RowRefused, SourceTruncated
from towline.frame import Frame
from towline.position import format_lsn
from towline.postgres.session import translate
from towline.snapshot import copy_order
from towline.target import ChunkLoad, Counts, Reread
from towline.target.postgres import params
from towline.target.postgres.attempt import Attempts, Routes
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Executor
from towline.target.postgres.quarantine import Quarantine
from towline.target.postgres.refusals import Refusals
from towline.target.postgres.route_statements import RouteStatements
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.staging import Path, Shape, Stages
from towline.target.postgres.stamps import Stamps
from towline.target.postgres.works import Job, Works
from towline_transforms.dialect import postgres as dialect
from towline_transforms.route import OnDelete, OnError, OnTruncate, Route
from towline_transforms.schema import TableName

#: What a batch may hold to be replayed when its commit is refused (rows): with more, it is let go of. A piece of hot
#: keys has 100,000 by default, and some fit beside a chunk.
_REPLAYED = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What `Applier.apply` was called with."""

    piece: Piece
    active: AbstractSet[str]
    reread: Reread
    prior: ChunkLoad | None


class Applier:
    """Applies pieces and chunks over a connection (in autocommit mode, so that transactions are explicit statements).

    ``quarantine``: the schema of the control tables, and the breaker that watches over what is set aside there; None:
    a row that is refused is always an error.

    ``path`` and ``direct`` force a way of staging and forbid COPY straight into tables, for tests. Between `begin` and
    the next one, ``counts`` gathers what became of each route's rows. ``executor`` is for statements before, between
    and after. When a method returns, nothing is queued in it that can fail; but something may be, so that it is to be
    synced before the connection is used in another way.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        pipeline: str,
        routes: Sequence[Route],
        relations: Sequence[Relation],
        path: Path | None = None,
        direct: bool = True,
        quarantine: tuple[str, Breaker] | None = None,
    ) -> None:
        params.register(connection)
        ordered = copy_order(routes)
        self._pipeline = pipeline
        self._rank = {route.name: rank for rank, route in enumerate(ordered)}
        self._routes: dict[TableName, list[Route]] = {}
        for route in ordered:
            self._routes.setdefault(route.source.name, []).append(route)
        self.executor = Executor(connection)
        self._stages = Stages(self.executor, path=path)
        self._savepoints = Savepoints(self.executor, self._stages)
        straight = Direct(direct and path is None)
        statements = RouteStatements(self.executor)
        shapes = {relation.name: Shape.of(relation, self._routes.get(relation.name, ())) for relation in relations}
        self._works = Works(self._stages, straight, statements, self._routes, shapes)
        self._attempts = Attempts(
            self.executor, self._savepoints, straight, statements, self._works, self._routes, self._rank
        )
        self.quarantine: Quarantine | None = None
        if quarantine is not None:
            self.quarantine = Quarantine(
                self.executor,
                self._savepoints,
                schema=quarantine[0],
                pipeline=pipeline,
                routes=routes,
                relations=relations,
                breaker=quarantine[1],
            )
        self._refusals = Refusals(
            self.executor, self._savepoints, self._attempts, self._routes, self.quarantine, self._counts_of
        )
        self._sets_aside = quarantine is not None and any(r.on_error is OnError.QUARANTINE for r in routes)
        self._kept: list[_Kept | ChunkLoad] = []
        self._kept_rows = 0
        self._continued: tuple[int, int] | None = None
        self._number = 0
        #: Keys of the chunk that will be loaded which were changed before in this transaction.
        self._touched: set[bytes] = set()
        self._chunk_keys: tuple[Chunk, frozenset[bytes]] | None = None
        self._truncated: set[TableName] = set()
        self._began = self._stages.mark()
        self.counts: dict[str, Counts] = {}

    def read_ahead(self, position: int) -> None:
        """Rows may have been read from the source up to that position, in this session or another one before it."""
        self._works.ahead = max(self._works.ahead, position)

    @property
    def read(self) -> int:
        """Up to where the source's log was when rows were last read from it again; 0: none were."""
        return self._works.read

    def copied_again(self, ask: Routes, marked: AbstractSet[str], copying: Routes) -> None:
        """Whom to ask which routes are copied, and which of them over what is there: see `Attempts`."""
        attempts = self._attempts
        attempts.copied_again, attempts.marked, attempts.copying = ask, marked, copying

    # ---- transactions ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction has begun."""
        self._forget()
        self._kept = []
        self._kept_rows = 0

    def committed(self) -> None:
        """The transaction was committed: nothing of it needs to be at hand any more."""
        self._kept = []

    def rolled_back(self) -> None:
        """The transaction was rolled back."""
        self._stages.restore(self._began)
        self.counts = {}
        self._refusals.begin()
        if self.quarantine is not None:
            self.quarantine.rolled_back()

    def _forget(self) -> None:
        self._stages.begin()
        self._began = self._stages.mark()
        self._touched.clear()
        self._chunk_keys = None
        self._truncated.clear()
        self._continued = None
        self.counts = {}
        self._number = 0
        self._refusals.begin()
        if self.quarantine is not None:
            self.quarantine.begin()

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See `towline.target.Target.apply`. Raises RowRefused, SourceTruncated, TargetUnavailable, TargetConflict."""
        if self._sets_aside:
            self._keep(_Kept(piece, active, reread, prior), piece.changes)
        for relation in self._children_first(piece.truncated):
            self._truncate(piece, relation, active)
        self._number += 1
        stamps, earlier = Stamps(piece, self._pipeline), self._earlier(piece) if piece.rowsets else 0
        job = Job(stamps, active, reread, prior, self._touched, earlier=earlier, number=self._number)
        for part in self._refusals.parts(piece):
            self._whole_or_halves(part, job)
            self._touched |= self._keys_of_prior(part, prior)
        self._refusals.hold(self._touched)
        self._settle()

    def load(self, load: ChunkLoad) -> None:
        """See `towline.target.Target.load`; the route's state is left to the caller. Raises as `apply` does."""
        if self._sets_aside:
            self._keep(load, len(load.chunk.rows))
        chunk, route = load.chunk, load.route
        rows = chunk.rows
        if chunk.relation.name in self._truncated:
            rows = Frame.empty(rows.width)  # what was inserted since is in the stream
        elif self._touched and len(rows):
            keys = rows.keys(chunk.relation.key)
            keep = [row for row, key in enumerate(keys) if key not in self._touched]
            rows = rows.take(np.array(keep, dtype=np.int64))
        excluded = len(chunk.rows) - len(rows)
        self._counts_of(route.name).add(Counts(seen=excluded, superseded=excluded))
        if len(rows):
            ops = np.full(len(rows), INSERT, dtype=np.uint8)
            rowset = RowSet(chunk.relation, rows, ops, np.arange(len(rows), dtype=np.int64))
            job = Job(Stamps(chunk, self._pipeline), {route.name}, _nothing_to_read, None, chunk=chunk)
            self._whole_or_halves(Piece((rowset,), (), None), job)
        self._settle()

    def _settle(self) -> None:
        """What was queued after the last attempt (rows that are set aside) may fail: see to it here."""
        if not self.executor.settled:
            self.executor.sync()

    def attempt(self, pieces: Mapping[str, Piece], reread: Reread) -> RowRefused | None:
        """Apply a piece for each of some routes, and check every constraint after them; if the target refuses some of
        it, all is as before.

        For who tries rows apart from the stream, without a quarantine of its own.
        """
        parts = [
            (piece, Job(Stamps(piece, self._pipeline), {route}, reread, None))
            for route, piece in sorted(pieces.items(), key=lambda each: self._rank[each[0]])
        ]
        self._refusals.checking = True
        try:
            refused = self._refusals.attempt_all(parts)
            self.executor.sync()
            return refused
        finally:
            self._refusals.checking = False

    # ---- a commit that is refused ------------------------------------------------------------------------------

    @property
    def sets_aside(self) -> bool:
        """Whether rows may be set aside, so that it is worth finding out which of them makes the commit fail."""
        return self._sets_aside

    @property
    def replayable(self) -> bool:
        """Whether all that was applied since `begin` is at hand, in whole source transactions."""
        return bool(self._kept)

    def replay(self) -> None:
        """Apply all of it once more, in a transaction that has just begun, with the constraints checked on the way."""
        kept = self._kept
        self._forget()
        self._refusals.checking = True
        try:
            for each in kept:
                if isinstance(each, ChunkLoad):
                    self.load(each)
                else:
                    self.apply(each.piece, each.active, each.reread, each.prior)
        finally:
            self._refusals.checking = False

    def _keep(self, applied: _Kept | ChunkLoad, rows: int) -> None:
        """Remember what is applied, as long as it is not too much, and no transaction is larger than a piece."""
        if self._refusals.checking:
            return
        first = self._kept_rows == 0 and not self._kept
        self._kept_rows += rows
        whole = isinstance(applied, ChunkLoad) or applied.piece.end is not None
        if whole and self._kept_rows <= _REPLAYED and (first or self._kept):
            self._kept.append(applied)
        else:
            self._kept = []
            self._kept_rows = _REPLAYED + 1

    # ---- as a whole, or by halves ----------------------------------------------------------------------------

    def _whole_or_halves(self, piece: Piece, job: Job) -> None:
        try:
            self._stages.empty()
        except psycopg.Error as error:
            self.executor.abandon()
            raise translate(error, "target") from error
        if self._sets_aside:
            self._expect(piece, job.active)
        refused = self._refusals.attempt(piece, job)
        if refused is not None:
            # By halves, what a later one changes may have been changed by an earlier one: newer than in the chunk.
            job = replace(job, touched=job.touched | self._keys_of_prior(piece, job.prior))
            orders = np.unique(np.concatenate([rowset.order for rowset in piece.rowsets]))
            self._refusals.halves(piece, job, orders, refused)

    def _expect(self, piece: Piece, active: AbstractSet[str]) -> None:
        """Tell how many rows of each route there will be, so that the share of those set aside can be told early."""
        for rowset in piece.rowsets:
            for route in self._routes.get(rowset.relation.name, ()):
                if route.name in active:
                    before = self._counts_of(route.name).seen + self._refusals.held(route)
                    self._refusals.expected[route.name] = before + len(rowset)

    def _earlier(self, piece: Piece) -> int:
        """How many changes of the piece's first transaction earlier pieces had."""
        if not piece.transactions:
            return 0
        first, last = piece.transactions[0], piece.transactions[-1]
        earlier = self._continued[1] if self._continued is not None and self._continued[0] == first.lsn else 0
        held = piece.changes - last.first + (earlier if first is last else 0)
        self._continued = (last.lsn, held) if piece.end is None else None
        return earlier

    def _keys_of_prior(self, piece: Piece, prior: ChunkLoad | None) -> set[bytes]:
        """The keys that a piece changes among those of the chunk that will be loaded: no more, however large it is."""
        keys: set[bytes] = set()
        for rowset in piece.rowsets if prior is not None else ():
            if prior is not None and rowset.relation.name == prior.chunk.relation.name and len(rowset):
                keys.update(self._keys_of_chunk(prior.chunk).intersection(rowset.rows.keys(rowset.relation.key)))
        return keys

    def _keys_of_chunk(self, chunk: Chunk) -> frozenset[bytes]:
        if self._chunk_keys is None or self._chunk_keys[0] is not chunk:
            self._chunk_keys = chunk, frozenset(chunk.rows.keys(chunk.relation.key) if len(chunk.rows) else ())
        return self._chunk_keys[1]

    def _counts_of(self, route: str) -> Counts:
        return self.counts.setdefault(route, Counts())

    # ---- truncations -----------------------------------------------------------------------------------------

    def _children_first(self, relations: Sequence[Relation]) -> list[Relation]:
        def rank(relation: Relation) -> int:
            return max((self._rank[route.name] for route in self._routes.get(relation.name, ())), default=0)

        return sorted(relations, key=rank, reverse=True)

    def _truncate(self, piece: Piece, relation: Relation, active: AbstractSet[str]) -> None:
        """Do what each route does about a TRUNCATE. The rows that go are not in the ledger: nobody counted them."""
        self._truncated.add(relation.name)
        for route in self._routes.get(relation.name, ()):
            if route.name not in active or route.on_truncate is OnTruncate.IGNORE:
                continue
            if route.on_truncate is OnTruncate.HALT:
                at = f" by the transaction whose commit is at {format_lsn(piece.transactions[0].lsn)}"
                raise SourceTruncated(
                    f"route {route.name}: {relation.name} was truncated{at if piece.transactions else ''}"
                )
            if route.on_delete is OnDelete.IGNORE:
                continue
            timed = dialect.marks_with_time(route)
            try:
                self.executor.run(dialect.delete_all(route), (piece.transactions[0].commit_time,) if timed else ())
                self.executor.sync()
            except psycopg.Error as error:
                self.executor.abandon()
                translated = translate(error, "target")
                translated.detail = f"route {route.name}: {route.into} cannot be emptied: {translated.detail}"
                raise translated from error
            if self.quarantine is not None:
                self._refusals.emptied(route)


def _nothing_to_read(relation: Relation, keys: Frame) -> Chunk:
    raise AssertionError("rows of a chunk are whole")
