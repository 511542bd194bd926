"""One attempt at applying a piece in sets: which statements run over its works, in which order.

The order: what the target must be asked about rows with gaps; staging (both `works`); all deletes, children before
parents; then, parents before children, moves of rows to other keys, updates of rows with gaps, and whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from towline.change import Piece
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.gaps import Gaps, names
from towline.target.postgres.route_statements import RouteStatements
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.staging import Staged
from towline.target.postgres.tally import Tally
from towline.target.postgres.works import Job, Work, Works
from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect.room import make_room, obstacle
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import TableName

#: Tells names of routes.
Routes = Callable[[], frozenset[str]]


class Attempts:
    """Queues what applies a piece. ``routes``: parents first.

    ``copied_again``: asked for the routes whose rows are copied over what is there, and not swept yet; ``marked``:
    these, and those that have been swept since it began. ``copying``: asked for the routes that are being copied.
    ``behind``: asked whether the target's rows of a route are behind, in that changes were set aside or wait.
    ``obstacles``: by route, why no room was made in the attempt queued last.
    """

    def __init__(
        self,
        executor: Executor,
        savepoints: Savepoints,
        direct: Direct,
        statements: RouteStatements,
        works: Works,
        routes: Mapping[TableName, Sequence[Route]],
        rank: Mapping[str, int],
    ) -> None:
        self._executor = executor
        self._savepoints = savepoints
        self._direct = direct
        self._statements = statements
        self._works = works
        self._routes = routes
        self._rank = rank
        self.copied_again: Routes = frozenset
        self.copying: Routes = frozenset
        self.behind: Callable[[Route], bool] = lambda route: False
        self.marked: AbstractSet[str] = frozenset()
        self.obstacles: dict[str, str] = {}
        self._making_room = False

    @property
    def current(self) -> Route | None:
        """The route whose statement was queued last."""
        return self._statements.current

    @property
    def lost(self) -> Mapping[TableName, AbstractSet[bytes]]:
        """See `Works`."""
        return self._works.lost

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Rows of tables that are copied again may be deleted where they are in the way: see `dialect.room`."""
        self._making_room = True
        try:
            yield
        finally:
            self._making_room = False

    def _make_room(self, route: Route, staged: Staged, missing: frozenset[str] = frozenset()) -> None:
        if not self._making_room or route.name not in self.copied_again():
            return
        again = [each for routes in self._routes.values() for each in routes if each.name in self.marked]
        if (reason := obstacle(route, again)) is not None:
            self.obstacles[route.name] = reason
        self._statements.current = route
        for statement in make_room(route, staged.sql(route), missing, again):
            self._executor.run(statement, staged.parameters)

    def queue(self, piece: Piece, job: Job) -> Tally:
        """Queue everything; the tally can be read after a sync."""
        self.obstacles.clear()
        works = self._works.of(piece, job)
        ordered = sorted(
            ((self._rank[route.name], route, work) for work in works for route in work.routes), key=lambda each: each[0]
        )
        tally = Tally()
        for _, route, work in reversed(ordered):
            self._delete(route, work, job, tally)
        for _, route, work in ordered:
            self._write(route, work, job, tally)
        return tally

    # ---- statements ------------------------------------------------------------------------------------------

    def _nothing_there(self, route: Route, work: Work, job: Job) -> bool:
        """Whether the target has none of the rows, so that those which the route filters need not be deleted.

        So it is with rows that were inserted, unless the table is being copied, maybe over what is there, or keeps
        what the source's has lost: by its settings, or since the target refused to delete it.
        """
        if route.name not in work.new_to or route.on_truncate is OnTruncate.IGNORE or self.behind(route):
            return False
        copied = job.chunk is not None or job.prior is not None
        return not copied and route.name not in self.copying() and route.name not in self.copied_again()

    def _delete(self, route: Route, work: Work, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        compacted = work.compacted
        counts.seen += compacted.seen
        counts.superseded += compacted.superseded
        if route.on_delete is OnDelete.IGNORE:
            counts.filtered += len(compacted.gone)
            return
        counts.deleted += len(compacted.gone)
        if (moved := work.gone_but_moved.get(route.name)) is not None:
            self._statements.delete_but(route, *moved)
        elif work.gone is not None:
            self._statements.run("delete", route, work.gone, dialect.delete)
        if route.filtered and not self._nothing_there(route, work, job):
            stages = [work.live, work.fresh.get(route.name)]
            if (gaps := work.gaps.get(route.name)) is not None:
                stages += [s for s, count in zip(work.partial, gaps.updates, strict=True) if count is not None]
                stages += [staged for missing, staged in work.lost if dialect.survives(route, missing)]
            for staged in stages:
                if staged is not None:
                    self._statements.run("unmade", route, staged, dialect.delete_unmade)

    def _write(self, route: Route, work: Work, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        if work.direct:
            if self._copy(route, work):
                counts.upserted += len(work.rowset)
                return
            work.direct = False
            self._works.stage_live(work, job)
        elif route.name in work.new_to and work.live is not None:
            if self._insert(route, work, work.live, tally):
                return
            if route.filtered and route.on_delete is not OnDelete.IGNORE and self._nothing_there(route, work, job):
                self._statements.run("unmade", route, work.live, dialect.delete_unmade)
        if (gaps := work.gaps.get(route.name)) is not None:
            self._write_gaps(route, work, gaps, job, tally)
        for staged in (work.live, work.fresh.get(route.name)):
            if staged is not None:
                self._make_room(route, staged)
                outcome = self._statements.run("upsert", route, staged, dialect.upsert)
                if route.filtered:
                    tally.made(route, len(staged), outcome)
                else:
                    counts.upserted += len(staged)

    def _write_gaps(self, route: Route, work: Work, gaps: Gaps, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        fresh = work.fresh.get(route.name)
        counts.superseded += len(gaps.wanted) - (0 if fresh is None else len(fresh))
        for missing, staged in work.lost:
            # They count as superseded, but what is known of them is due: another row may have their unique values now.
            if dialect.survives(route, missing):
                self._statements.run("update", route, staged, dialect.update, missing)
        for move in gaps.moves:
            origin = self._works.origin(work, move, job)
            row = self._works.moved(work, move, job)
            self._statements.move(route, row, names(work.rowset, move.mask), origin)
            counts.upserted += 1
        for (mask, _), staged, count in zip(work.compacted.partial, work.partial, gaps.updates, strict=True):
            if count is not None:
                self._make_room(route, staged, names(work.rowset, mask))
                outcome = self._statements.run("update", route, staged, dialect.update, names(work.rowset, mask))
                if route.filtered:
                    tally.updated(route, count, outcome)
                else:
                    counts.upserted += count

    def _copy(self, route: Route, work: Work) -> bool:
        """COPY new rows straight into the table. False: some are there already, or the like; nothing was done."""
        self._statements.current = route
        statement = self._direct.statement(route, work.rowset)
        # Whatever it is about: the statements that are tried instead will tell.
        refused = self._savepoints.attempt(
            "towline_direct", lambda: self._executor.copy(statement, work.rowset.rows), without_rows=lambda: None
        )
        self._direct.noted(route, worked=refused is None)
        return refused is None

    def _insert(self, route: Route, work: Work, staged: Staged, tally: Tally) -> bool:
        """Insert what the route makes of new rows. False: as for `_copy`."""
        outcomes: list[Outcome] = []
        refused = self._savepoints.attempt(
            "towline_direct",
            lambda: outcomes.append(self._statements.run("insert", route, staged, dialect.insert)),
            without_rows=lambda: None,
        )
        self._direct.noted(route, worked=refused is None)
        if refused is not None:
            return False
        if route.filtered:
            tally.updated(route, len(staged), outcomes[0])
        else:
            tally.of(route).upserted += len(staged)
        return True
