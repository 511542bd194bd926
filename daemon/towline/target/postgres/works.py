"""What a piece has for each relation, made ready for the statements that are to run over it: what the target must be
asked about rows with gaps, and the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from towline.change import Chunk, Piece, RowSet
from towline.columns import columns_of_each
from towline.compact import Compacted, Move, Versions, compact, inserts_only
from towline.frame import Frame
from towline.target import ChunkLoad, Reread
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Outcome
from towline.target.postgres.gaps import Gaps, Whole, names, without
from towline.target.postgres.route_statements import RouteStatements
from towline.target.postgres.staging import Kind, Path, Shape, Staged, Stages, few
from towline.target.postgres.stamps import Stamps
from towline_transforms.dialect import postgres as dialect
from towline_transforms.route import OnDelete, Route
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
class Work:
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


class Works:
    """Makes the works of pieces. ``routes``: by source table.

    ``ahead``: a position of the source's log before which the target's rows may hold what was read from the source, not
    from the log. At the key of a row there may have been another one by then, so that until then no row takes along,
    to another key, what the target has at its key. ``lost``: of the piece made ready last, the keys of rows whose gaps
    could not be filled any more, since their end is yet to come. ``read``: up to where the source's log was when rows
    were read again in this session.
    """

    def __init__(
        self,
        stages: Stages,
        direct: Direct,
        statements: RouteStatements,
        routes: Mapping[TableName, Sequence[Route]],
        shapes: Mapping[TableName, Shape],
    ) -> None:
        self._stages = stages
        self._direct = direct
        self._statements = statements
        self._routes = routes
        self._shapes = shapes
        self._trusting = True
        self.ahead = self.read = 0
        self.lost: dict[TableName, set[bytes]] = {}

    def of(self, piece: Piece, job: Job) -> list[Work]:
        """The works of a piece, staged. May ask the target, and so end the executor's queue."""
        self._trusting = not piece.transactions or piece.transactions[0].lsn >= self.ahead
        self.lost.clear()
        works = [work for rowset in piece.rowsets if (work := self._work(rowset, job)) is not None]
        for work in works:
            self._close_gaps(work, job)
        self._stage_all(works, job)
        return works

    def stage_live(self, work: Work, job: Job) -> None:
        """Stage whole rows that were to go another way."""
        work.live = self._stages.load(work.shape, Kind.ROWS, self._live(work, job))

    def origin(self, work: Work, move: Move, job: Job) -> Staged:
        """The key that a row moves from, staged."""
        width = len(work.rowset.relation.key)
        key = Versions(Frame.of_rows([width.to_bytes(2, "big") + move.origin], width), np.array([move.place]))
        return self._stages.load(work.shape, Kind.KEYS, self._keys(work, key, job), path=Path.VALUES)

    def moved(self, work: Work, move: Move, job: Job) -> Staged:
        """The row that moves, staged."""
        row = Frame.of_rows([move.row], work.rowset.rows.width)
        row = job.stamps.append(row, work.rowset, np.array([move.place]), work.shape.pseudo)
        return self._stages.load(work.shape, Kind.ROWS, row, path=Path.VALUES)

    def _work(self, rowset: RowSet, job: Job) -> Work | None:
        shape = self._shapes.get(rowset.relation.name)
        routes = tuple(r for r in self._routes.get(rowset.relation.name, ()) if r.name in job.active)
        if shape is None or not routes or not len(rowset):
            return None
        moving = any(dialect.must_move(route) for route in routes)
        work = Work(shape, rowset, routes, compact(rowset, moving=moving))
        if inserts_only(rowset):
            work.new_to = frozenset(route.name for route in routes if self._direct.wanted(route, rowset))
            work.direct = len(routes) == 1 and bool(work.new_to) and self._direct.fits(routes[0], rowset)
        return work

    # ---- gaps ------------------------------------------------------------------------------------------------

    def _close_gaps(self, work: Work, job: Job) -> None:
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
        self._statements.sync()
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

    def _gaps(self, route: Route, work: Work, job: Job, checks: list[Callable[[], None]]) -> Gaps:
        """Ask the target which of the rows with gaps it has; ``checks`` are run when it has answered."""
        gaps = Gaps(wanted=set(work.compacted.reread.places.tolist()))
        for group, ((mask, versions), staged) in enumerate(zip(work.compacted.partial, work.partial, strict=True)):
            places = versions.places.tolist()
            if not dialect.survives(route, names(work.rowset, mask)):
                gaps.updates.append(None)
                gaps.wanted.update(places)
                continue
            gaps.updates.append(len(places))
            outcome = self._statements.run("absent", route, staged, dialect.absent)
            checks.append(_absentees(gaps, group, places, outcome))
        for move in work.compacted.moves:
            if not dialect.movable(route) or (move.mask and not self._trusting):
                gaps.wanted.add(move.place)
                continue
            outcome = self._statements.run("present", route, self.origin(work, move, job), dialect.count_present)
            checks.append(_moved(gaps, move, outcome))
        return gaps

    # ---- staging ---------------------------------------------------------------------------------------------

    def _keys(self, work: Work, keys: Versions, job: Job) -> Frame:
        time = ("_commit_time",) if work.shape.key_time else ()
        return job.stamps.append(keys.rows, work.rowset, keys.places, time)

    def _stage_all(self, works: Sequence[Work], job: Job) -> None:
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

    def _gone(self, work: Work, job: Job) -> Frame | None:
        gone = work.compacted.gone
        if not len(gone) or all(route.on_delete is OnDelete.IGNORE for route in work.routes):
            return None
        return self._keys(work, gone, job)

    def _live(self, work: Work, job: Job) -> Frame:
        live = work.compacted.live
        return job.stamps.append(live.rows, work.rowset, live.places, work.shape.pseudo)

    def _stage_moves(self, work: Work, job: Job) -> None:
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
