"""What becomes of changes that the target refuses as a whole: they are replayed by halves, down to single ones.

Changes that fail together are cut in two between transactions, as long as there are several, and each half is tried, in
order. A change that fails even alone is tried for each of its routes by itself. A route that refuses it and says
``on_error: quarantine`` has it set aside; one that says ``halt`` ends the batch.

**Order.** Where a change was set aside, the target's row of that key is *behind* (see `quarantine`). Whatever succeeds
later for that key overtakes it, and takes no values from the target's row.

**Waiting.** Inside a source transaction rows may refer to later ones, or have a value that a later change frees: a
change that fails for such a reason (`MAY_PASS`) waits for the end of its transaction, in whatever piece that comes
(see `waiting`), and is tried again there, until nothing more succeeds.

**Tables that are copied again.** A unique value may still be with a row that is out of date: before a change is
refused, room is made for it (see `Attempts.making_room`).

**Constraints that are checked at the end** (`checking`). When the commit itself fails, the batch is replayed with the
constraints checked after each part that is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from towline.change import DELETE, Ints, Piece, RowSet
from towline.errors import RowRefused
from towline.position import format_lsn
from towline.target import Counts
from towline.target.postgres.attempt import Attempts
from towline.target.postgres.executor import Executor
from towline.target.postgres.probe import without_rows as statements_without_rows
from towline.target.postgres.quarantine import Origin, Quarantine
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.tally import Tally
from towline.target.postgres.waiting import OneWaiting, Waiting
from towline.target.postgres.works import Job
from towline_transforms.route import OnDelete, OnError, Route
from towline_transforms.schema import TableName

#: What other changes of the same transaction may put right: foreign keys, unique and exclusion constraints, triggers.
MAY_PASS = ("23503", "23505", "23P01", "P0")
_UNIQUE_VIOLATION = "23505"


class Refusals:
    """Tries pieces, and sorts out what of them is refused. ``quarantine`` None: whatever is refused ends the batch.

    ``counts``: gives a route's figures in the transaction so far, to be added to. ``expected``: by route, the rows that
    will be seen in it at least, those of the piece in hand among them.
    """

    def __init__(
        self,
        executor: Executor,
        savepoints: Savepoints,
        attempts: Attempts,
        routes: Mapping[TableName, Sequence[Route]],
        quarantine: Quarantine | None,
        counts: Callable[[str], Counts],
    ) -> None:
        self._executor = executor
        self._savepoints = savepoints
        self._attempts = attempts
        attempts.behind = self._any_behind
        self._routes = routes
        self._quarantine = quarantine
        self._counts = counts
        self._waiting = Waiting()
        self._within = False
        self._waits = quarantine is not None and any(
            route.on_error is OnError.QUARANTINE for each in routes.values() for route in each
        )
        self.checking = False
        self.expected: dict[str, int] = {}

    def begin(self) -> None:
        """A transaction begins, or was rolled back."""
        self._waiting.clear()
        self.expected = {}

    # ---- trying ----------------------------------------------------------------------------------------------

    def parts(self, piece: Piece) -> Iterator[Piece]:
        """A piece as it is to be applied: the rest of a transaction of which something waits, then what follows.

        Each is to be applied before the next one is asked for, and all of them are to be asked for.
        """
        parts = [piece]
        if self._waiting and len(piece.transactions) > 1:
            first = piece.transactions[1].first
            parts = [piece.between(0, first), piece.between(first, piece.changes)]
        for number, part in enumerate(parts):
            if part.rowsets:
                yield part
            if self._waiting and (number < len(parts) - 1 or part.end is not None):
                self._resolve()

    def hold(self, touched: AbstractSet[bytes]) -> None:
        """A piece was applied; what waits of a transaction that goes on is kept. Raises TransactionRefused."""
        self._waiting.hold(touched)

    def held(self, route: Route) -> int:
        """How many changes of a route wait from earlier pieces."""
        return self._waiting.held(route.name)

    def emptied(self, route: Route) -> None:
        """The route's table was emptied: nothing of it waits any more, or is due."""
        assert self._quarantine is not None
        if void := self._waiting.drop_all(route.name):
            self._counts(route.name).add(Counts(seen=void, superseded=void))
        if behind := list(self._quarantine.behind(route)):
            self._quarantine.overtake(route, behind)

    def attempt(self, piece: Piece, job: Job) -> RowRefused | None:
        """Apply a piece; if the target refuses some of it, everything is as before."""
        return self.attempt_all([(piece, job)])

    def attempt_all(self, parts: Sequence[tuple[Piece, Job]]) -> RowRefused | None:
        """Apply pieces one after the other; if the target refuses some of it, everything is as before."""
        tallies: list[Tally] = []
        guarded = [(self._guarded(piece, job.active), job) for piece, job in parts]

        def queue() -> None:
            tallies.extend(self._attempts.queue(piece, job) for piece, job in guarded)
            if self.checking:
                self._executor.run("SET CONSTRAINTS ALL IMMEDIATE")
                self._executor.run("SET CONSTRAINTS ALL DEFERRED")

        def without_rows() -> None:
            for piece, job in parts:
                for rowset in piece.rowsets:
                    for route in self._active(rowset, job.active):
                        for statement in statements_without_rows(route, rowset.relation):
                            self._executor.run(statement)

        refused = self._savepoints.attempt("towline_piece", queue, without_rows)
        if refused is None:
            for (piece, job), tally in zip(parts, tallies, strict=True):
                for name, counts in tally.counts().items():
                    self._counts(name).add(counts)
                self._overtaken(piece, job)
        return refused

    def halves(self, piece: Piece, job: Job, orders: Ints, refused: RowRefused) -> None:
        """Replay changes that failed together, in order. A change of key is one change, of two rows."""
        if self._waits and not self._within and (len(piece.transactions) < 2 or _one_transaction(piece, orders)):
            self._within = True
            try:
                self._split(piece, job, orders, refused)
                if not _goes_on(piece, orders):
                    self._resolve()
            finally:
                self._within = False
        else:
            self._split(piece, job, orders, refused)

    def _split(self, piece: Piece, job: Job, orders: Ints, refused: RowRefused) -> None:
        if len(orders) == 1:
            self._single(piece, job, refused)
            return
        middle = _middle(piece, orders)
        for half in (orders[:middle], orders[middle:]):
            part = piece.between(int(half[0]), int(half[-1]) + 1)
            if (failed := self.attempt(part, job)) is not None:
                self.halves(part, job, half, failed)

    # ---- single changes --------------------------------------------------------------------------------------

    def _single(self, piece: Piece, job: Job, refused: RowRefused) -> None:
        """A change that failed alone: which of its routes refuse it?"""
        if refused.sqlstate == _UNIQUE_VIOLATION and self._attempts.copied_again() & job.active:
            with self._attempts.making_room():
                if self.attempt(piece, job) is None:
                    return
            refused.hint = _in_the_way(self._attempts.obstacles) or refused.hint
        rowset = piece.rowsets[0]
        routes = [route for route in self._routes.get(rowset.relation.name, ()) if route.name in job.active]
        if not self._waits:
            self._halt(piece, job, refused.hint)
            return
        for route in reversed(routes) if rowset.ops[-1] == DELETE else routes:
            alone = replace(job, active={route.name})
            failed = refused if len(routes) == 1 else self.attempt(piece, alone)
            if failed is None:
                continue
            if len(rowset) == 1:
                self._refused(piece, alone, route, failed, 0)
                continue
            for place in range(len(rowset)):
                half = replace(piece, rowsets=(_only(rowset, place),))
                if (found := self.attempt(half, alone)) is not None:
                    self._refused(half, alone, route, found, place)

    def _refused(self, piece: Piece, job: Job, route: Route, refused: RowRefused, place: int) -> None:
        """One row was refused by one route: it waits, or is set aside."""
        rowset = piece.rowsets[0]
        key = rowset.rows.keys(rowset.relation.key)[0]
        if not refused.sqlstate.startswith(MAY_PASS) and (route.name, key) not in self._waiting:
            self._final(piece, job, route, refused)
            return
        self._waiting.add(OneWaiting((job.number, int(rowset.order[0]), place), route, key, piece, job, refused))

    def _final(self, piece: Piece, job: Job, route: Route, refused: RowRefused) -> None:
        """One row is refused by one route, and nothing will change that."""
        if route.on_error is OnError.HALT:
            self._halt(piece, job, refused.hint)
        else:
            self._set_aside(piece, job, route, refused)

    def _set_aside(self, piece: Piece, job: Job, route: Route, refused: RowRefused) -> None:
        assert self._quarantine is not None
        counts = self._counts(route.name)
        known = replace(counts, seen=max(counts.seen, self.expected.get(route.name, 0)))
        self._quarantine.set_aside(route, piece.rowsets[0], 0, _origin(piece, job), refused, known)
        counts.add(Counts(seen=1, quarantined=1))

    def _halt(self, piece: Piece, job: Job, hint: str) -> None:
        """Run a single change again, statement by statement, to say what it is that the target refuses."""
        self._executor.queueing = False
        try:
            refused = self.attempt(piece, job)
        finally:
            self._executor.queueing = True
        if refused is None:
            return
        where = "a row is refused"
        if (route := self._attempts.current) is not None:
            where = f"route {route.name}: {route.into} refuses a row (key columns: {', '.join(route.key)})"
        if piece.transactions:
            transaction = piece.transactions[int(piece.transaction_of(piece.rowsets[0].order[:1])[0])]
            where += f" of the transaction whose commit is at {format_lsn(transaction.lsn)}"
        raise RowRefused(
            f"{where}: {refused.detail}", hint=hint or refused.hint, sqlstate=refused.sqlstate
        ) from refused

    def _resolve(self) -> None:
        """Try what waits again, in order, until nothing more succeeds; the rest is refused."""
        progress = True
        while progress and self._waiting:
            progress = False
            for one in self._waiting.in_order():
                if not self._waiting.take(one):
                    continue  # overtaken
                failed = self.attempt(one.piece, one.job)
                if failed is None:
                    progress = True
                else:
                    one.refused = failed
                    self._waiting.add(one)
        for one in self._waiting.in_order():
            self._final(one.piece, one.job, one.route, one.refused)
        self._waiting.clear()

    # ---- keys that are behind --------------------------------------------------------------------------------

    @property
    def _watching(self) -> bool:
        return self._quarantine is not None and (self._quarantine.watching or bool(self._waiting))

    def _any_behind(self, route: Route) -> bool:
        return bool(self._waiting) or (self._quarantine is not None and bool(self._quarantine.behind(route)))

    def _behind(self, route: Route, key: bytes) -> bool:
        """Whether a change of the key was set aside, or waits."""
        assert self._quarantine is not None
        return key in self._quarantine.behind(route) or (route.name, key) in self._waiting

    def _active(self, rowset: RowSet, active: AbstractSet[str]) -> list[Route]:
        return [route for route in self._routes.get(rowset.relation.name, ()) if route.name in active]

    def _guarded(self, piece: Piece, active: AbstractSet[str]) -> Piece:
        """The piece, with what a row lacks to be read from the source where the target's row is behind."""
        if not self._watching or not any(rowset.missing for rowset in piece.rowsets):
            return piece
        return replace(piece, rowsets=tuple(self._not_lent(rowset, active) for rowset in piece.rowsets))

    def _not_lent(self, rowset: RowSet, active: AbstractSet[str]) -> RowSet:
        keys = rowset.rows.keys(rowset.relation.key) if rowset.missing else []
        routes = self._active(rowset, active)
        missing, unknown = dict(rowset.missing), dict(rowset.unknown)
        for place, mask in rowset.missing.items():
            named = {keys[place], keys[rowset.moved.get(place, place)]}
            if any(self._behind(route, key) for route in routes for key in named):
                del missing[place]
                unknown[place] = unknown.get(place, 0) | mask
        return replace(rowset, missing=missing, unknown=unknown) if len(missing) < len(rowset.missing) else rowset

    def _overtaken(self, piece: Piece, job: Job) -> None:
        """A piece was applied: what was set aside of its keys before is void.

        Not of rows that lacked what only the source had, and that are no longer there: their end is yet to come.
        """
        if not self._watching:
            return
        assert self._quarantine is not None
        for rowset in piece.rowsets:
            routes = self._active(rowset, job.active) if len(rowset) else []
            if not routes:
                continue
            last = dict(zip(rowset.rows.keys(rowset.relation.key), range(len(rowset)), strict=True))
            lost = self._attempts.lost.get(rowset.relation.name) or set()
            for route in routes:
                done = [key for key in last if self._behind(route, key) and key not in lost]
                if route.on_delete is OnDelete.IGNORE:  # the target keeps the row, so that its last version is due
                    done = [key for key in done if int(rowset.ops[last[key]]) != DELETE]
                for key in done:
                    void = self._waiting.drop(route.name, key, (job.number, int(rowset.order[last[key]])))
                    self._counts(route.name).add(Counts(seen=void, superseded=void))
                if behind := [key for key in done if key in self._quarantine.behind(route)]:
                    self._quarantine.overtake(route, behind)


def _origin(piece: Piece, job: Job) -> Origin:
    """Where the one change of a piece comes from."""
    order = int(piece.rowsets[0].order[0])
    chunk = job.chunk
    if chunk is not None:
        return Origin(chunk.high, order, chunk.read_at, None, snapshot=True)
    place = int(piece.transaction_of(np.array([order]))[0])
    transaction = piece.transactions[place]
    ordinal = order - transaction.first + (job.earlier if place == 0 else 0)
    return Origin(transaction.lsn, ordinal, transaction.commit_time, transaction.xid)


def _only(rowset: RowSet, place: int) -> RowSet:
    """One row of a change of key by itself. What it lacks cannot be at the target: the other half is apart."""
    gaps = rowset.missing.get(place, 0) | rowset.unknown.get(place, 0)
    return RowSet(
        rowset.relation,
        rowset.rows.take(np.array([place])),
        rowset.ops[place : place + 1],
        rowset.order[place : place + 1],
        {},
        {0: gaps} if gaps else {},
    )


def _in_the_way(obstacles: Mapping[str, str]) -> str:
    """What to do when no room could be made, by route; empty when it was not refused."""
    return " ".join(
        f"Route {name}: another row at the target has the unique value still, and is not deleted to make room, since "
        f"{reason}. If it has another value at the source now, or is gone there, give it another one at the target, "
        "and start again."
        for name, reason in obstacles.items()
    )


def _one_transaction(piece: Piece, orders: Ints) -> bool:
    first, last = piece.transaction_of(orders[[0, -1]])
    return bool(first == last)


def _goes_on(piece: Piece, orders: Ints) -> bool:
    """Whether the transaction of these changes goes on in the next piece."""
    if not piece.transactions or piece.end is not None:
        return False
    return int(piece.transaction_of(orders[-1:])[0]) == len(piece.transactions) - 1


def _middle(piece: Piece, orders: Ints) -> int:
    """Where to cut changes in two: between transactions, if they are of several, and near the middle."""
    middle = len(orders) // 2
    if len(piece.transactions) < 2:
        return middle
    starts = np.unique(np.searchsorted(orders, [transaction.first for transaction in piece.transactions]))
    starts = starts[(starts > 0) & (starts < len(orders))]
    return int(starts[np.abs(starts - middle).argmin()]) if len(starts) else middle
