"""Applies rows to the tables of routes, inside a transaction that someone else begins and ends.

A piece is first tried as a whole, in sets: per relation only the last version of each key, all deletes before all
upserts, parents before children (deletes the other way round). That can violate constraints which held at the source
at each commit, when unique values are swapped, say. Then the server goes back to the savepoint before the piece, and it
is replayed in source order: by halves, cut between transactions as long as there are several, down to single changes.
What fails even alone is the row that the target refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg

from towline.change import INSERT, Chunk, Ints, Piece, Relation, RowSet
from towline.errors import RowRefused, SourceTruncated
from towline.frame import Frame
from towline.position import format_lsn
from towline.postgres.session import translate
from towline.snapshot import copy_order
from towline.target import ChunkLoad, Counts, Reread
from towline.target.postgres import params
from towline.target.postgres.attempt import Attempts, Job
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Executor
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.staging import Path, Shape, Stages
from towline.target.postgres.stamps import Stamps
from towline.target.postgres.tally import Tally
from towline_transforms.dialect import postgres as dialect
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import TableName


class Applier:
    """Applies pieces and chunks over a connection (in autocommit mode, so that transactions are explicit statements).

    ``path`` and ``direct`` force a way of staging and forbid COPY straight into tables, for tests. Between `begin` and
    the next one, ``counts`` gathers what became of each route's rows. ``executor`` is for statements before, between
    and after; nothing of it is queued when a method returns.
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
        self._attempts = Attempts(
            self.executor,
            self._stages,
            self._savepoints,
            Direct(direct and path is None),
            self._routes,
            self._rank,
            {relation.name: Shape.of(relation, self._routes.get(relation.name, ())) for relation in relations},
        )
        self._touched: set[bytes] = set()
        self._truncated: set[TableName] = set()
        self._began = self._stages.mark()
        self.counts: dict[str, Counts] = {}

    def read_ahead(self, position: int) -> None:
        """Rows may have been read from the source up to that position, in this session or another one before it."""
        self._attempts.ahead = max(self._attempts.ahead, position)

    # ---- transactions ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction has begun."""
        self._stages.begin()
        self._began = self._stages.mark()
        self._touched.clear()
        self._truncated.clear()
        self.counts = {}

    def rolled_back(self) -> None:
        """The transaction was rolled back."""
        self._stages.restore(self._began)
        self.counts = {}

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See `towline.target.Target.apply`. Raises RowRefused, SourceTruncated, TargetUnavailable, TargetConflict."""
        for relation in self._children_first(piece.truncated):
            self._truncate(piece, relation, active)
        if not piece.rowsets:
            return
        self._whole_or_halves(piece, Job(Stamps(piece, self._pipeline), active, reread, prior, self._touched))
        self._touched |= self._keys_of_prior(piece, prior)

    def load(self, load: ChunkLoad) -> None:
        """See `towline.target.Target.load`; the route's state is left to the caller. Raises as `apply` does."""
        chunk, route = load.chunk, load.route
        rows = chunk.rows
        if chunk.relation.name in self._truncated:
            rows = Frame.empty(rows.width)  # what was inserted since is in the stream
        elif self._touched and len(rows):
            keys = rows.keys(chunk.relation.key)
            keep = [row for row, key in enumerate(keys) if key not in self._touched]
            rows = rows.take(np.array(keep, dtype=np.int64))
        excluded = len(chunk.rows) - len(rows)
        self._add({route.name: Counts(seen=excluded, superseded=excluded)})
        if len(rows):
            ops = np.full(len(rows), INSERT, dtype=np.uint8)
            rowset = RowSet(chunk.relation, rows, ops, np.arange(len(rows), dtype=np.int64))
            job = Job(Stamps(chunk, self._pipeline), {route.name}, _nothing_to_read, None)
            self._whole_or_halves(Piece((rowset,), (), None), job)

    # ---- as a whole, or by halves ----------------------------------------------------------------------------

    def _whole_or_halves(self, piece: Piece, job: Job) -> None:
        try:
            self._stages.empty()
        except psycopg.Error as error:
            self.executor.abandon()
            raise translate(error, "target") from error
        if self._try(piece, job) is not None:
            # By halves, what a later one changes may have been changed by an earlier one: newer than in the chunk.
            job = replace(job, touched=job.touched | self._keys_of_prior(piece, job.prior))
            self._halves(piece, job, np.unique(np.concatenate([rowset.order for rowset in piece.rowsets])))

    @staticmethod
    def _keys_of_prior(piece: Piece, prior: ChunkLoad | None) -> set[bytes]:
        """The keys that a piece changes of the relation whose chunk will be loaded."""
        keys: set[bytes] = set()
        for rowset in piece.rowsets if prior is not None else ():
            if prior is not None and rowset.relation.name == prior.chunk.relation.name and len(rowset):
                keys.update(rowset.rows.keys(rowset.relation.key))
        return keys

    def _halves(self, piece: Piece, job: Job, orders: Ints) -> None:
        """Replay changes that failed together, in order. A change of key is one change, of two rows."""
        if len(orders) == 1:
            self._refuse(piece, job)
            return
        middle = _middle(piece, orders)
        for half in (orders[:middle], orders[middle:]):
            part = piece.between(int(half[0]), int(half[-1]) + 1)
            if self._try(part, job) is not None:
                self._halves(part, job, half)

    def _refuse(self, piece: Piece, job: Job) -> None:
        """Run a single change again, statement by statement, to say what it is that the target refuses."""
        self.executor.queueing = False
        try:
            refused = self._try(piece, job)
        finally:
            self.executor.queueing = True
        if refused is None:
            return
        where = "a row is refused"
        if (route := self._attempts.current) is not None:
            where = f"route {route.name}: {route.into} refuses a row (key columns: {', '.join(route.key)})"
        if piece.transactions:
            transaction = piece.transactions[int(piece.transaction_of(piece.rowsets[0].order[:1])[0])]
            where += f" of the transaction whose commit is at {format_lsn(transaction.lsn)}"
        raise RowRefused(f"{where}: {refused.detail}", hint=refused.hint, sqlstate=refused.sqlstate) from refused

    def _try(self, piece: Piece, job: Job) -> RowRefused | None:
        """Apply a piece; if the target refuses some of it, everything is as before."""
        tallies: list[Tally] = []
        refused = self._savepoints.attempt("towline_piece", lambda: tallies.append(self._attempts.queue(piece, job)))
        if refused is None:
            self._add(tallies[0].counts())
        return refused

    def _add(self, tally: Mapping[str, Counts]) -> None:
        for name, counts in tally.items():
            self.counts.setdefault(name, Counts()).add(counts)

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


def _middle(piece: Piece, orders: Ints) -> int:
    """Where to cut changes in two: between transactions, if they are of several, and near the middle."""
    middle = len(orders) // 2
    if len(piece.transactions) < 2:
        return middle
    starts = np.unique(np.searchsorted(orders, [transaction.first for transaction in piece.transactions]))
    starts = starts[(starts > 0) & (starts < len(orders))]
    return int(starts[np.abs(starts - middle).argmin()]) if len(starts) else middle


def _nothing_to_read(relation: Relation, keys: Frame) -> Chunk:
    raise AssertionError("rows of a chunk are whole")
