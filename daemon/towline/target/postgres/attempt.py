"""One attempt at applying a piece in sets: which rows are staged, and which statements run over them, in which order.

The order: what the target must be asked about rows with gaps; staging; all deletes, children before parents; then,
parents before children, moves of rows to other keys, updates of rows with gaps, and whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from towline.change import Chunk, Piece, RowSet
from towline.columns import columns_of_each
from towline.compact import Compacted, Move, Versions, compact, inserts_only
from towline.frame import Frame
from towline.target import ChunkLoad, Reread
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.gaps import Gaps, Whole, names, without
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.staging import Kind, Path, Shape, Staged, Stages, few
from towline.target.postgres.stamps import Stamps
from towline.target.postgres.tally import Tally
from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect.room import make_room, obstacle
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import TableName


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What stays the same while a piece is applied, as a whole or by halves.

    ``touched``: framed keys of the chunk of ``prior`` that were changed before in this transaction. ``chunk``: the
    rows are of a chunk. ``earlier``: of the first source transaction, how many changes were in earlier pieces.
    ``number``: the piece's number in the target transaction.
    """

    stamps: Stamps
    active: AbstractSet[str]
    reread: Reread
    prior: ChunkLoad | None
    touched: AbstractSet[bytes] = frozenset()
    chunk: Chunk | None = None
    earlier: int = 0
    number: int = 0


@dataclass(slots=True, eq=False)
class _Work:
    """A relation's part of a piece, the routes that it goes to, and its stages. Those of single routes are by name.

    ``direct``: the rows go straight into the one route's table. ``new_to``: the routes for which no row is to be at
    the target yet.
    """

    shape: Shape
    rowset: RowSet
    routes: tuple[Route, ...]
    compacted: Compacted
    direct: bool = False
    new_to: frozenset[str] = frozenset()
    gone: Staged | None = None
    live: Staged | None = None
    partial: list[Staged] = field(default_factory=list)
    gaps: dict[str, Gaps] = field(default_factory=dict)
    gone_but_moved: dict[str, tuple[Staged, Staged]] = field(default_factory=dict)
    fresh: dict[str, Staged] = field(default_factory=dict)
    lost: list[tuple[frozenset[str], Staged]] = field(default_factory=list)


#: Tells names of routes.
Routes = Callable[[], frozenset[str]]


class Attempts:
    """Queues what applies a piece. ``routes``: parents first. ``current``: the route whose statement was queued
    last.

    ``ahead``: a position of the source's log before which the target's rows may hold what was read from the source, not
    from the log. At the key of a row there may have been another one by then, so that until then no row takes along,
    to another key, what the target has at its key. ``lost``: of the attempt queued last, the keys of rows whose gaps
    could not be filled any more, since their end is yet to come. ``read``: up to where the source's log was when rows
    were read again in this session.

    ``copied_again``: asked for the routes whose rows are copied over what is there, and not swept yet; ``marked``:
    these, and those that have been swept since it began. ``copying``: asked for the routes that are being copied.
    ``behind``: asked whether the target's rows of a route are behind, in that changes were set aside or wait.
    ``obstacles``: by route, why no room was made in the attempt queued last.
    """

    def __init__(
        self,
        executor: Executor,
        stages: Stages,
        savepoints: Savepoints,
        direct: Direct,
        routes: Mapping[TableName, Sequence[Route]],
        rank: Mapping[str, int],
        shapes: Mapping[TableName, Shape],
    ) -> None:
        self._executor = executor
        self._stages = stages
        self._savepoints = savepoints
        self._direct = direct
        self._routes = routes
        self._rank = rank
        self._shapes = shapes
        self._statements: dict[tuple[object, ...], str | None] = {}
        self.current: Route | None = None
        self.ahead = self.read = 0
        self.copied_again: Routes = frozenset
        self.copying: Routes = frozenset
        self.behind: Callable[[Route], bool] = lambda route: False
        self.marked: AbstractSet[str] = frozenset()
        self.obstacles: dict[str, str] = {}
        self._making_room = False
        self._trusting = True
        self.lost: dict[TableName, set[bytes]] = {}

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
        self.current = route
        for statement in make_room(route, staged.sql(route), missing, again):
            self._executor.run(statement, staged.parameters)

    def queue(self, piece: Piece, job: Job) -> Tally:
        """Queue everything; the tally can be read after a sync."""
        self._trusting = not piece.transactions or piece.transactions[0].lsn >= self.ahead
        self.lost.clear()
        self.obstacles.clear()
        works = [work for rowset in piece.rowsets if (work := self._work(rowset, job)) is not None]
        for work in works:
            self._close_gaps(work, job)
        self._stage_all(works, job)
        ordered = sorted(
            ((self._rank[route.name], route, work) for work in works for route in work.routes), key=lambda each: each[0]
        )
        tally = Tally()
        for _, route, work in reversed(ordered):
            self._delete(route, work, job, tally)
        for _, route, work in ordered:
            self._write(route, work, job, tally)
        return tally

    def _work(self, rowset: RowSet, job: Job) -> _Work | None:
        shape = self._shapes.get(rowset.relation.name)
        routes = tuple(r for r in self._routes.get(rowset.relation.name, ()) if r.name in job.active)
        if shape is None or not routes or not len(rowset):
            return None
        moving = any(dialect.must_move(route) for route in routes)
        work = _Work(shape, rowset, routes, compact(rowset, moving=moving))
        if inserts_only(rowset):
            work.new_to = frozenset(route.name for route in routes if self._direct.wanted(route, rowset))
            work.direct = len(routes) == 1 and bool(work.new_to) and self._direct.fits(routes[0], rowset)
        return work

    # ---- gaps ------------------------------------------------------------------------------------------------

    def _close_gaps(self, work: _Work, job: Job) -> None:
        """Find out which rows with gaps can be changed in place, and get the others whole."""
        compacted, rowset = work.compacted, work.rowset
        if not (compacted.partial or compacted.moves or len(compacted.reread)):
            return
        for slot, (_, versions) in enumerate(compacted.partial):
            rows = job.stamps.append(versions.rows, rowset, versions.places, work.shape.pseudo)
            work.partial.append(self._stages.load(work.shape, Kind.NUMBERED, rows, slot=slot))
        checks: list[Callable[[], None]] = []
        for route in work.routes:
            work.gaps[route.name] = self._gaps(route, work, job, checks)
        self._executor.sync()
        for check in checks:
            check()
        whole = Whole(rowset, compacted, set().union(*(gaps.wanted for gaps in work.gaps.values())), job.reread)
        whole.fill(compacted, job.prior, job.touched)
        self.read = max(self.read, whole.read())
        self.ahead = max(self.ahead, self.read, job.prior.chunk.high if job.prior is not None else 0)
        for slot, route in enumerate(work.routes):
            versions = whole.versions(work.gaps[route.name].wanted)
            if len(versions):
                rows = job.stamps.append(versions.rows, rowset, versions.places, work.shape.pseudo)
                work.fresh[route.name] = self._stages.load(work.shape, Kind.ROWS, rows, slot=slot + 1)
        for slot, (mask, versions) in enumerate(whole.lost(), len(work.routes) + 1):
            self.lost.setdefault(rowset.relation.name, set()).update(versions.rows.keys(rowset.relation.key))
            rows = job.stamps.append(versions.rows, rowset, versions.places, work.shape.pseudo)
            work.lost.append((names(rowset, mask), self._stages.load(work.shape, Kind.ROWS, rows, slot=slot)))

    def _gaps(self, route: Route, work: _Work, job: Job, checks: list[Callable[[], None]]) -> Gaps:
        """Ask the target which of the rows with gaps it has; ``checks`` are run when it has answered."""
        gaps = Gaps(wanted=set(work.compacted.reread.places.tolist()))
        for group, ((mask, versions), staged) in enumerate(zip(work.compacted.partial, work.partial, strict=True)):
            places = versions.places.tolist()
            if not dialect.survives(route, names(work.rowset, mask)):
                gaps.updates.append(None)
                gaps.wanted.update(places)
                continue
            gaps.updates.append(len(places))
            outcome = self._run("absent", route, staged, dialect.absent)
            checks.append(_absentees(gaps, group, places, outcome))
        for move in work.compacted.moves:
            if not dialect.movable(route) or (move.mask and not self._trusting):
                gaps.wanted.add(move.place)
                continue
            outcome = self._run("present", route, self._origin(work, move, job), dialect.count_present)
            checks.append(_moved(gaps, move, outcome))
        return gaps

    def _origin(self, work: _Work, move: Move, job: Job) -> Staged:
        """The key that a row moves from, staged."""
        width = len(work.rowset.relation.key)
        key = Versions(Frame.of_rows([width.to_bytes(2, "big") + move.origin], width), np.array([move.place]))
        return self._stages.load(work.shape, Kind.KEYS, self._keys(work, key, job), path=Path.VALUES)

    # ---- staging ---------------------------------------------------------------------------------------------

    def _keys(self, work: _Work, keys: Versions, job: Job) -> Frame:
        time = ("_commit_time",) if work.shape.key_time else ()
        return job.stamps.append(keys.rows, work.rowset, keys.places, time)

    def _stage_all(self, works: Sequence[_Work], job: Job) -> None:
        """Stage keys to be deleted and whole rows. The columns of what travels as arrays are found together."""
        gone = [self._gone(work, job) for work in works]
        live = [None if work.direct or not len(work.compacted.live) else self._live(work, job) for work in works]
        together = [rows for rows in (*gone, *live) if rows is not None and few(rows)]
        found = {id(rows): columns for rows, columns in zip(together, columns_of_each(together), strict=True)}
        for work, keys, rows in zip(works, gone, live, strict=True):
            if keys is not None:
                work.gone = self._stages.load(work.shape, Kind.KEYS, keys, found=found.get(id(keys)))
            self._stage_moves(work, job)
            if rows is not None:
                work.live = self._stages.load(work.shape, Kind.ROWS, rows, found=found.get(id(rows)))

    def _gone(self, work: _Work, job: Job) -> Frame | None:
        gone = work.compacted.gone
        if not len(gone) or all(route.on_delete is OnDelete.IGNORE for route in work.routes):
            return None
        return self._keys(work, gone, job)

    def _live(self, work: _Work, job: Job) -> Frame:
        live = work.compacted.live
        return job.stamps.append(live.rows, work.rowset, live.places, work.shape.pseudo)

    def _stage_moves(self, work: _Work, job: Job) -> None:
        """Stage the keys that rows move to, and those that they come from."""
        compacted = work.compacted
        for slot, route in enumerate(work.routes):
            if (gaps := work.gaps.get(route.name)) is not None and gaps.moves:
                keys = self._keys(work, _gone_but_moved(compacted, gaps.moves), job)
                kept = self._keys(work, _origins(compacted, gaps.moves), job)
                work.gone_but_moved[route.name] = (
                    self._stages.load(work.shape, Kind.KEYS, keys, slot=2 * slot + 1),
                    self._stages.load(work.shape, Kind.KEYS, kept, slot=2 * slot + 2),
                )

    # ---- statements ------------------------------------------------------------------------------------------

    def _nothing_there(self, route: Route, work: _Work, job: Job) -> bool:
        """Whether the target has none of the rows, so that those which the route filters need not be deleted.

        So it is with rows that were inserted, unless the table is being copied, maybe over what is there, or keeps
        what the source's has lost: by its settings, or since the target refused to delete it.
        """
        if route.name not in work.new_to or route.on_truncate is OnTruncate.IGNORE or self.behind(route):
            return False
        copied = job.chunk is not None or job.prior is not None
        return not copied and route.name not in self.copying() and route.name not in self.copied_again()

    def _delete(self, route: Route, work: _Work, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        compacted = work.compacted
        counts.seen += compacted.seen
        counts.superseded += compacted.superseded
        if route.on_delete is OnDelete.IGNORE:
            counts.filtered += len(compacted.gone)
            return
        counts.deleted += len(compacted.gone)
        if (moved := work.gone_but_moved.get(route.name)) is not None:
            self._delete_but(route, *moved)
        elif work.gone is not None:
            self._run("delete", route, work.gone, dialect.delete)
        if route.filtered and not self._nothing_there(route, work, job):
            stages = [work.live, work.fresh.get(route.name)]
            if (gaps := work.gaps.get(route.name)) is not None:
                stages += [s for s, count in zip(work.partial, gaps.updates, strict=True) if count is not None]
                stages += [staged for missing, staged in work.lost if dialect.survives(route, missing)]
            for staged in stages:
                if staged is not None:
                    self._run("unmade", route, staged, dialect.delete_unmade)

    def _delete_but(self, route: Route, gone: Staged, kept: Staged) -> None:
        key = ("delete but", route.name, *gone.key, *kept.key)
        statement = self._statements.get(key)
        if statement is None:
            names = gone.sql(route), kept.sql(route, len(gone.parameters) + 1)
            statement = self._statements[key] = dialect.delete_but(route, *names)
        self.current = route
        self._executor.run(statement, (*gone.parameters, *kept.parameters), prepare=gone.prepare and kept.prepare)

    def _write(self, route: Route, work: _Work, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        if work.direct:
            if self._copy(route, work):
                counts.upserted += len(work.rowset)
                return
            work.direct = False
            work.live = self._stages.load(work.shape, Kind.ROWS, self._live(work, job))
        elif route.name in work.new_to and work.live is not None:
            if self._insert(route, work, work.live, tally):
                return
            if route.filtered and route.on_delete is not OnDelete.IGNORE and self._nothing_there(route, work, job):
                self._run("unmade", route, work.live, dialect.delete_unmade)
        if (gaps := work.gaps.get(route.name)) is not None:
            self._write_gaps(route, work, gaps, job, tally)
        for staged in (work.live, work.fresh.get(route.name)):
            if staged is not None:
                self._make_room(route, staged)
                outcome = self._run("upsert", route, staged, dialect.upsert)
                if route.filtered:
                    tally.made(route, len(staged), outcome)
                else:
                    counts.upserted += len(staged)

    def _write_gaps(self, route: Route, work: _Work, gaps: Gaps, job: Job, tally: Tally) -> None:
        counts = tally.of(route)
        fresh = work.fresh.get(route.name)
        counts.superseded += len(gaps.wanted) - (0 if fresh is None else len(fresh))
        for missing, staged in work.lost:
            # They count as superseded, but what is known of them is due: another row may have their unique values now.
            if dialect.survives(route, missing):
                self._run("update", route, staged, dialect.update, missing)
        for move in gaps.moves:
            self._move(route, work, move, job)
            counts.upserted += 1
        for (mask, _), staged, count in zip(work.compacted.partial, work.partial, gaps.updates, strict=True):
            if count is not None:
                self._make_room(route, staged, names(work.rowset, mask))
                outcome = self._run("update", route, staged, dialect.update, names(work.rowset, mask))
                if route.filtered:
                    tally.updated(route, count, outcome)
                else:
                    counts.upserted += count

    def _move(self, route: Route, work: _Work, move: Move, job: Job) -> None:
        """Give the target's row another key, and what changed with it."""
        origin = self._origin(work, move, job)
        row = Frame.of_rows([move.row], work.rowset.rows.width)
        row = job.stamps.append(row, work.rowset, np.array([move.place]), work.shape.pseudo)
        staged = self._stages.load(work.shape, Kind.ROWS, row, path=Path.VALUES)
        missing = names(work.rowset, move.mask)
        key = ("move", route.name, missing, *staged.key)
        statement = self._statements.get(key)
        if statement is None:
            old_key = origin.sql(route, len(staged.parameters) + 1)
            statement = self._statements[key] = dialect.move(route, staged.sql(route), missing, old_key)
        self.current = route
        self._executor.run(statement, (*staged.parameters, *origin.parameters), prepare=True)

    def _copy(self, route: Route, work: _Work) -> bool:
        """COPY new rows straight into the table. False: some are there already, or the like; nothing was done."""
        self.current = route
        statement = self._direct.statement(route, work.rowset)
        # Whatever it is about: the statements that are tried instead will tell.
        refused = self._savepoints.attempt(
            "towline_direct", lambda: self._executor.copy(statement, work.rowset.rows), without_rows=lambda: None
        )
        self._direct.noted(route, worked=refused is None)
        return refused is None

    def _insert(self, route: Route, work: _Work, staged: Staged, tally: Tally) -> bool:
        """Insert what the route makes of new rows. False: as for `_copy`."""
        outcomes: list[Outcome] = []
        refused = self._savepoints.attempt(
            "towline_direct",
            lambda: outcomes.append(self._run("insert", route, staged, dialect.insert)),
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

    def _run(
        self, verb: str, route: Route, staged: Staged, build: Callable[..., str | None], *details: object
    ) -> Outcome:
        """Queue a statement over a stage. Its text is made once and kept. The route must not ignore it."""
        key = (verb, route.name, *details, *staged.key)
        if key not in self._statements:
            self._statements[key] = build(route, staged.sql(route), *details)
        statement = self._statements[key]
        assert statement is not None
        self.current = route
        return self._executor.run(statement, staged.parameters, prepare=staged.prepare)


def _gone_but_moved(compacted: Compacted, moves: Sequence[Move]) -> Versions:
    """What to delete when rows move in place: not where they come from, but what is left where they go."""
    stays = without(compacted.gone, {move.origin for move in moves})
    arrivals = _keys_of(compacted, moves, [move.key for move in moves])
    rows = Frame.concat([stays.rows, arrivals.rows], stays.rows.width)
    return Versions(rows, np.concatenate([stays.places, arrivals.places]))


def _origins(compacted: Compacted, moves: Sequence[Move]) -> Versions:
    """Where rows come from that move in place."""
    return _keys_of(compacted, moves, [move.origin for move in moves])


def _keys_of(compacted: Compacted, moves: Sequence[Move], keys: Sequence[bytes]) -> Versions:
    width = compacted.gone.rows.width
    rows = Frame.of_rows([width.to_bytes(2, "big") + key for key in keys], width)
    return Versions(rows, np.array([move.place for move in moves], dtype=np.int64))


def _absentees(gaps: Gaps, group: int, places: list[int], outcome: Outcome) -> Callable[[], None]:
    """Takes the rows that the target does not have out of a group of updates, when the answer is there."""

    def check() -> None:
        found = {places[int(row[0] or 0) - 1] for row in outcome.rows}
        gaps.updates[group] = len(places) - len(found)
        gaps.wanted.update(found)

    return check


def _moved(gaps: Gaps, move: Move, outcome: Outcome) -> Callable[[], None]:
    """Sorts a move by whether the target has the row that moves, when the answer is there."""

    def check() -> None:
        if outcome.rows[0][0] != "0":
            gaps.moves.append(move)
        else:
            gaps.wanted.add(move.place)

    return check
