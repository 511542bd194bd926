"""Applies rows to the tables of routes, inside a transaction that someone else begins and ends.

A piece is first tried as a whole, in sets: per relation only the last version of each key, all deletes before all
upserts, parents before children (deletes the other way round). That can violate constraints which held at the source
at each commit, when unique values are swapped, say. Then the server goes back to the savepoint before the piece, and it
is replayed in source order by halves, down to single changes; what fails even alone is the row that the target refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg

from towline.change import INSERT, Chunk, Piece, Relation, RowSet
from towline.compact import Compacted, Move, Versions, compact, inserts_only
from towline.errors import RowRefused, SourceTruncated
from towline.frame import Frame
from towline.position import format_lsn
from towline.postgres.session import translate
from towline.snapshot import copy_order
from towline.target import ChunkLoad, Counts, Reread
from towline.target.postgres import params
from towline.target.postgres.direct import Direct
from towline.target.postgres.executor import Executor
from towline.target.postgres.gaps import Gaps, Whole, names, without
from towline.target.postgres.staging import Kind, Path, Shape, Staged, Stages
from towline.target.postgres.stamps import Stamps
from towline_transforms.dialect import postgres as dialect
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import TableName

_SAVEPOINT = "SAVEPOINT towline_piece"
_RELEASE = "RELEASE SAVEPOINT towline_piece"
_BACK = "ROLLBACK TO SAVEPOINT towline_piece"


@dataclass(slots=True, eq=False)
class _Work:
    """A relation's part of a piece, and the routes that it goes to."""

    shape: Shape
    rowset: RowSet
    routes: tuple[Route, ...]
    compacted: Compacted
    direct: bool = False
    gone: Staged | None = None
    live: Staged | None = None
    partial: list[Staged] = field(default_factory=list)
    gaps: dict[str, Gaps] = field(default_factory=dict)
    gone_of: dict[str, Staged | None] = field(default_factory=dict)  # of routes that move rows in place
    fresh: dict[str, Staged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What stays the same while a piece is applied, as a whole or by halves."""

    stamps: Stamps
    active: AbstractSet[str]
    reread: Reread
    prior: ChunkLoad | None


class Applier:
    """Applies pieces and chunks over a connection (in autocommit mode, so that transactions are explicit statements).

    ``path`` and ``direct`` force a way of staging and forbid COPY straight into tables, for tests. Between `begin` and
    the next one, ``counts`` gathers what became of each route's rows. Raises the errors of
    `towline.postgres.session.translate`.
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
        self._pipeline = pipeline
        self._executor = Executor(connection)
        self._stages = Stages(self._executor, path=path)
        self._direct = Direct(direct and path is None)
        self._routes = copy_order(routes)
        self._rank = {route.name: rank for rank, route in enumerate(self._routes)}
        by_source: dict[TableName, list[Route]] = {}
        for route in self._routes:
            by_source.setdefault(route.source.name, []).append(route)
        self._by_source = by_source
        self._shapes = {r.name: Shape.of(r, by_source.get(r.name, [])) for r in relations}
        self._statements: dict[tuple[object, ...], str | None] = {}
        self._touched: set[bytes] = set()
        self._truncated: set[TableName] = set()
        self._began = self._stages.mark()
        self._current: Route | None = None
        self.counts: dict[str, Counts] = {}

    # ---- transactions ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction has begun."""
        self._stages.begin()
        self._began = self._stages.mark()
        self._touched = set()
        self._truncated = set()
        self.counts = {}

    def rolled_back(self) -> None:
        """The transaction was rolled back."""
        self._stages.restore(self._began)
        self.counts = {}

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See `towline.target.Target.apply`."""
        for relation in self._ordered_truncations(piece):
            self._truncate(piece, relation, active)
        if not piece.rowsets:
            return
        job = _Job(Stamps(piece, self._pipeline), active, reread, prior)
        self._whole_or_halves(piece, job)
        if prior is not None:
            name = prior.chunk.relation.name
            for rowset in piece.rowsets:
                if rowset.relation.name == name and len(rowset):
                    self._touched.update(rowset.rows.keys(rowset.relation.key))

    def load(self, load: ChunkLoad) -> None:
        """See `towline.target.Target.load`; the route's state is left to the caller."""
        chunk, route = load.chunk, load.route
        rows = chunk.rows
        if chunk.relation.name in self._truncated:
            rows = Frame.empty(rows.width)  # what was inserted since is in the stream
        elif self._touched and len(rows):
            keep = [row for row, key in enumerate(rows.keys(chunk.relation.key)) if key not in self._touched]
            rows = rows.take(np.array(keep, dtype=np.int64))
        excluded = len(chunk.rows) - len(rows)
        self._add({route.name: Counts(seen=excluded, superseded=excluded)})
        if not len(rows):
            return
        ops = np.full(len(rows), INSERT, dtype=np.uint8)
        rowset = RowSet(chunk.relation, rows, ops, np.arange(len(rows), dtype=np.int64))
        piece = Piece((rowset,), (), None)
        self._whole_or_halves(piece, _Job(Stamps(chunk, self._pipeline), {route.name}, _nothing_to_read, None))

    # ---- as a whole, or by halves ----------------------------------------------------------------------------

    def _whole_or_halves(self, piece: Piece, job: _Job) -> None:
        self._stages.empty()
        if self._try(piece, job) is None:
            return
        orders = np.unique(np.concatenate([rowset.order for rowset in piece.rowsets]))
        self._halves(piece, job, orders)

    def _halves(self, piece: Piece, job: _Job, orders: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Replay changes that failed together, in order. A change of key is one change, of two rows."""
        if len(orders) == 1:
            self._refuse(piece, job)
            return
        middle = len(orders) // 2
        for half in (orders[:middle], orders[middle:]):
            part = piece.between(int(half[0]), int(half[-1]) + 1)
            if self._try(part, job) is not None:
                self._halves(part, job, half)

    def _refuse(self, piece: Piece, job: _Job) -> None:
        """Run a single change again, statement by statement, to say what it is that the target refuses."""
        self._executor.queueing = False
        try:
            refused = self._try(piece, job)
        finally:
            self._executor.queueing = True
        if refused is None:
            return
        where = ""
        if self._current is not None:
            columns = ", ".join(self._current.key)
            where = f"route {self._current.name}: {self._current.into} refuses a row (key columns: {columns})"
        if piece.transactions:
            transaction = piece.transactions[int(piece.transaction_of(piece.rowsets[0].order[:1])[0])]
            where += f" of the transaction whose commit is at {format_lsn(transaction.lsn)}"
        raise RowRefused(f"{where}: {refused.detail}", hint=refused.hint, sqlstate=refused.sqlstate)

    def _try(self, piece: Piece, job: _Job) -> RowRefused | None:
        """Apply a piece; if the target refuses some of it, everything is as before."""
        mark = self._stages.mark()
        try:
            self._executor.run(_SAVEPOINT)
            tally = self._attempt(piece, job)
            self._executor.run(_RELEASE)
            self._executor.sync()
        except psycopg.Error as error:
            refused = self._refused(error)
            self._back(mark, _BACK, _RELEASE)
            return refused
        self._add(tally())
        return None

    def _refused(self, error: psycopg.Error) -> RowRefused:
        """The error as one of the rows. Raises it as what it is when it is not."""
        self._executor.abandon()
        translated = translate(error, "target")
        if not isinstance(translated, RowRefused):
            raise translated from error
        return translated

    def _back(self, mark: Any, *statements: str) -> None:
        """Go back to a savepoint."""
        try:
            for statement in statements:
                self._executor.run(statement)
            self._executor.sync()
        except psycopg.Error as error:
            self._executor.abandon()
            raise translate(error, "target") from error
        self._stages.restore(mark)

    def _add(self, tally: Mapping[str, Counts]) -> None:
        for name, counts in tally.items():
            self.counts.setdefault(name, Counts()).add(counts)

    # ---- one attempt -----------------------------------------------------------------------------------------

    def _attempt(self, piece: Piece, job: _Job) -> Callable[[], dict[str, Counts]]:
        """Queue everything that applies the piece. Returns what counts it, once all results are there."""
        works = [work for rowset in piece.rowsets if (work := self._work(rowset, job)) is not None]
        for work in works:
            self._close_gaps(work, job)
        for work in works:
            self._stage(work, job)
        ordered = sorted(
            ((self._rank[route.name], route, work) for work in works for route in work.routes), key=lambda each: each[0]
        )
        tally = _Tally()
        for _, route, work in reversed(ordered):
            self._current = route
            self._delete(route, work, tally)
        for _, route, work in ordered:
            self._current = route
            self._write(route, work, job, tally)
        return tally.counts

    def _work(self, rowset: RowSet, job: _Job) -> _Work | None:
        shape = self._shapes.get(rowset.relation.name)
        routes = [r for r in self._by_source.get(rowset.relation.name, ()) if r.name in job.active]
        if shape is None or not routes or not len(rowset):
            return None
        work = _Work(shape, rowset, tuple(routes), compact(rowset))
        work.direct = len(routes) == 1 and inserts_only(rowset) and self._direct.wanted(routes[0], rowset)
        return work

    def _close_gaps(self, work: _Work, job: _Job) -> None:
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
        whole = Whole(rowset, set().union(*(gaps.wanted for gaps in work.gaps.values())), job.reread)
        whole.fill(compacted, job.prior, self._touched)
        whole.read()
        for slot, route in enumerate(work.routes):
            versions = whole.versions(work.gaps[route.name].wanted)
            if len(versions):
                rows = job.stamps.append(versions.rows, rowset, versions.places, work.shape.pseudo)
                work.fresh[route.name] = self._stages.load(work.shape, Kind.ROWS, rows, slot=slot + 1)

    def _gaps(self, route: Route, work: _Work, job: _Job, checks: list[Callable[[], None]]) -> Gaps:
        """Ask the target which of the rows with gaps it has; ``checks`` are run when it has answered."""
        gaps = Gaps(wanted=set(work.compacted.reread.places.tolist()))
        self._current = route
        for group, ((mask, versions), staged) in enumerate(zip(work.compacted.partial, work.partial, strict=True)):
            places = versions.places.tolist()
            if not dialect.survives(route, names(work.rowset, mask)):
                gaps.updates.append(None)
                gaps.wanted.update(places)
                continue
            gaps.updates.append(len(places))
            cursors = self._run("absent", route, staged, lambda sql: dialect.absent(route, sql))
            checks.append(_absentees(gaps, group, places, cursors, single=staged.path is Path.SINGLE))
        for move in work.compacted.moves:
            if not dialect.movable(route):
                gaps.wanted.add(move.place)
                continue
            origin = self._origin(work, move, job)
            (cursor,) = self._run("present", route, origin, lambda sql: dialect.count_present(route, sql))
            checks.append(_moved(gaps, move, cursor))
        return gaps

    def _origin(self, work: _Work, move: Move, job: _Job) -> Staged:
        width = len(work.rowset.relation.key)
        key = Versions(Frame.of_rows([width.to_bytes(2, "big") + move.origin], width), np.array([move.place]))
        return self._stages.load(work.shape, Kind.KEYS, self._keys(work, key, job), path=Path.SINGLE)

    def _keys(self, work: _Work, keys: Versions, job: _Job) -> Frame:
        time = ("_commit_time",) if work.shape.key_time else ()
        return job.stamps.append(keys.rows, work.rowset, keys.places, time)

    def _stage(self, work: _Work, job: _Job) -> None:
        """Stage keys to be deleted and whole rows."""
        compacted = work.compacted
        if len(compacted.gone) and any(route.on_delete is not OnDelete.IGNORE for route in work.routes):
            work.gone = self._stages.load(work.shape, Kind.KEYS, self._keys(work, compacted.gone, job))
        for slot, route in enumerate(work.routes):
            if (gaps := work.gaps.get(route.name)) is not None and gaps.moves:
                gone = self._gone_but_moved(compacted, gaps.moves)
                work.gone_of[route.name] = self._stages.load(
                    work.shape, Kind.KEYS, self._keys(work, gone, job), slot=slot + 1
                )
        if not work.direct:
            self._stage_live(work, job)

    def _stage_live(self, work: _Work, job: _Job) -> None:
        live = work.compacted.live
        if len(live):
            rows = job.stamps.append(live.rows, work.rowset, live.places, work.shape.pseudo)
            work.live = self._stages.load(work.shape, Kind.ROWS, rows)

    def _gone_but_moved(self, compacted: Compacted, moves: Sequence[Move]) -> Versions:
        """What to delete when rows move in place: not where they come from, but what is left where they go."""
        gone = compacted.gone
        width = gone.rows.width
        stays = without(gone, gone.rows.keys(range(width)), {move.origin: move for move in moves})
        arrivals = Frame.of_rows([width.to_bytes(2, "big") + move.key for move in moves], width)
        places = np.concatenate([stays.places, np.array([move.place for move in moves], dtype=np.int64)])
        return Versions(Frame.concat([stays.rows, arrivals], width), places)

    def _delete(self, route: Route, work: _Work, tally: _Tally) -> None:
        counts = tally.of(route)
        compacted = work.compacted
        counts.seen += compacted.seen
        counts.superseded += compacted.superseded
        if route.on_delete is OnDelete.IGNORE:
            counts.filtered += len(compacted.gone)
        else:
            counts.deleted += len(compacted.gone)
        gone = work.gone_of.get(route.name, work.gone)
        if gone is not None:
            self._run("delete", route, gone, lambda sql: dialect.delete(route, sql))
        if route.filtered:
            stages = [work.live, work.fresh.get(route.name)]
            if (gaps := work.gaps.get(route.name)) is not None:
                stages += [s for s, count in zip(work.partial, gaps.updates, strict=True) if count is not None]
            for staged in stages:
                if staged is not None:
                    self._run("unmade", route, staged, lambda sql: dialect.delete_unmade(route, sql))

    def _write(self, route: Route, work: _Work, job: _Job, tally: _Tally) -> None:
        counts = tally.of(route)
        if work.direct:
            if self._copy(route, work):
                counts.upserted += len(work.rowset)
                return
            work.direct = False
            self._stage_live(work, job)
        if (gaps := work.gaps.get(route.name)) is not None:
            self._write_gaps(route, work, gaps, job, tally)
        for staged in (work.live, work.fresh.get(route.name)):
            if staged is not None:
                cursors = self._run("upsert", route, staged, lambda sql: dialect.upsert(route, sql))
                if route.filtered:
                    tally.made(route, len(staged), cursors)
                else:
                    counts.upserted += len(staged)

    def _write_gaps(self, route: Route, work: _Work, gaps: Gaps, job: _Job, tally: _Tally) -> None:
        counts = tally.of(route)
        fresh = work.fresh.get(route.name)
        counts.superseded += len(gaps.wanted) - (0 if fresh is None else len(fresh))
        for move in gaps.moves:
            self._move(route, work, move, job)
            counts.upserted += 1
        for (mask, _), staged, count in zip(work.compacted.partial, work.partial, gaps.updates, strict=True):
            if count is None:
                continue
            missing = names(work.rowset, mask)
            cursors = self._run("update", route, staged, lambda sql: dialect.update(route, sql, missing), missing)  # noqa: B023
            if route.filtered:
                tally.updated(route, count, cursors)
            else:
                counts.upserted += count

    def _move(self, route: Route, work: _Work, move: Move, job: _Job) -> None:
        origin = self._origin(work, move, job)
        row = Frame.of_rows([move.row], work.rowset.rows.width)
        row = job.stamps.append(row, work.rowset, np.array([move.place]), work.shape.pseudo)
        staged = self._stages.load(work.shape, Kind.ROWS, row, path=Path.SINGLE)
        missing = names(work.rowset, move.mask)
        first = len(staged.parameters[0]) + 1
        key = ("move", route.name, missing, *staged.key)
        if (statement := self._statements.get(key)) is None:
            statement = dialect.move(route, staged.sql(route), missing, origin.sql(route, first))
            self._statements[key] = statement
        self._executor.run(statement, (*staged.parameters[0], *origin.parameters[0]), prepare=True)

    def _copy(self, route: Route, work: _Work) -> bool:
        """COPY new rows straight into the table. False: some are there already, or the like; nothing was done."""
        mark = self._stages.mark()
        try:
            self._executor.run("SAVEPOINT towline_direct")
            self._executor.copy(self._direct.statement(route, work.rowset), work.rowset.rows)
            self._executor.run("RELEASE SAVEPOINT towline_direct")
        except psycopg.Error as error:
            self._refused(error)
            self._back(mark, "ROLLBACK TO SAVEPOINT towline_direct", "RELEASE SAVEPOINT towline_direct")
            self._direct.failed(route)
            return False
        self._direct.worked(route)
        return True

    def _run(
        self, verb: str, route: Route, staged: Staged, build: Callable[[str], str | None], *details: object
    ) -> list[psycopg.RawCursor[Any]]:
        """Queue a statement over a stage, once for each of its parts. The text is made once and kept."""
        key = (verb, route.name, *details, *staged.key)
        if key not in self._statements:
            self._statements[key] = build(staged.sql(route))
        statement = self._statements[key]
        if statement is None:
            return []
        return [self._executor.run(statement, part, prepare=staged.prepare) for part in staged.parameters]

    # ---- truncations -----------------------------------------------------------------------------------------

    def _ordered_truncations(self, piece: Piece) -> list[Relation]:
        """Children first."""
        ranks = {name: max(self._rank[route.name] for route in routes) for name, routes in self._by_source.items()}
        return sorted(piece.truncated, key=lambda relation: -ranks.get(relation.name, 0))

    def _truncate(self, piece: Piece, relation: Relation, active: AbstractSet[str]) -> None:
        self._truncated.add(relation.name)
        for route in self._by_source.get(relation.name, ()):
            if route.name not in active or route.on_truncate is OnTruncate.IGNORE:
                continue
            if route.on_truncate is OnTruncate.HALT:
                where = (
                    f" by the transaction whose commit is at {format_lsn(piece.transactions[0].lsn)}"
                    if piece.transactions
                    else ""
                )
                raise SourceTruncated(f"route {route.name}: {relation.name} was truncated{where}")
            if route.on_delete is OnDelete.IGNORE:
                continue
            parameters: tuple[object, ...] = ()
            if dialect.marks_with_time(route):
                parameters = (piece.transactions[0].commit_time,)
            try:
                self._executor.run(dialect.delete_all(route), parameters)
                self._executor.sync()
            except psycopg.Error as error:
                self._executor.abandon()
                translated = translate(error, "target")
                translated.detail = f"route {route.name}: {route.into} cannot be emptied: {translated.detail}"
                raise translated from error


class _Tally:
    """Counts of one attempt; some are known only when the results are there."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._made: list[tuple[Counts, int, list[psycopg.RawCursor[Any]]]] = []
        self._updated: list[tuple[Counts, int, list[psycopg.RawCursor[Any]]]] = []

    def of(self, route: Route) -> Counts:
        """The route's figures."""
        return self._counts.setdefault(route.name, Counts())

    def made(self, route: Route, staged: int, cursors: list[psycopg.RawCursor[Any]]) -> None:
        """Statements that return how many of the staged rows the route made rows of."""
        self._made.append((self.of(route), staged, cursors))

    def updated(self, route: Route, staged: int, cursors: list[psycopg.RawCursor[Any]]) -> None:
        """Statements whose row count says it."""
        self._updated.append((self.of(route), staged, cursors))

    def counts(self) -> dict[str, Counts]:
        """The figures by route, after all results have come."""
        for counts, staged, cursors in self._made:
            made = sum(cursor.fetchall()[0][0] for cursor in cursors)
            counts.upserted += made
            counts.filtered += staged - made
        for counts, staged, cursors in self._updated:
            made = sum(cursor.rowcount for cursor in cursors)
            counts.upserted += made
            counts.filtered += staged - made
        return self._counts


def _absentees(
    gaps: Gaps, group: int, places: list[int], cursors: list[psycopg.RawCursor[Any]], *, single: bool
) -> Callable[[], None]:
    """Takes the rows that the target does not have out of a group of updates, when the answer is there."""

    def check() -> None:
        found = set()
        for part, cursor in enumerate(cursors):
            for (number,) in cursor.fetchall():
                found.add(places[part if single else number - 1])
        gaps.updates[group] = len(places) - len(found)
        gaps.wanted.update(found)

    return check


def _moved(gaps: Gaps, move: Move, cursor: psycopg.RawCursor[Any]) -> Callable[[], None]:
    """Sorts a move by whether the target has the row that moves, when the answer is there."""

    def check() -> None:
        if cursor.fetchall()[0][0]:
            gaps.moves.append(move)
        else:
            gaps.wanted.add(move.place)

    return check


def _nothing_to_read(relation: Relation, keys: Frame) -> Chunk:
    raise AssertionError("rows of a chunk are whole")
