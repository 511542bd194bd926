"""A target in memory, for identity routes: the contract of `towline.target` without a server.

`MemoryStore` is what is committed: it outlives targets, and several targets may share it, as daemons share a database.
Rows are kept as the framed bytes that came, by the framed key of the source's identity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from towline.change import Piece, Relation, RowSet
from towline.compact import Move, Versions, compact
from towline.errors import Fenced, NotSetUp, SourceTruncated, TargetUnavailable, TowlineError
from towline.frame import Frame, frame_row, key_values
from towline.position import format_lsn
from towline.target import Checkpoint, ChunkLoad, Committed, Counts, Reread, RouteState
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import TableName

Rows = dict[bytes, bytes]


@dataclass(eq=False)
class MemoryStore:
    """What is committed: rows by route and key, checkpoint, route states and ledger.

    ``unflushed``: what it was before each of the commits that a crash may undo.
    """

    checkpoint: Checkpoint | None = None
    rows: dict[str, Rows] = field(default_factory=dict)
    states: dict[str, RouteState] = field(default_factory=dict)
    ledger: dict[str, Counts] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    unflushed: list[MemoryStore] = field(default_factory=list)

    def commits(self, *, synchronous: bool) -> None:
        """To be called before anything is changed by a commit."""
        if synchronous:
            self.unflushed.clear()
        else:
            ledger = {route: replace(counts) for route, counts in self.ledger.items()}
            self.unflushed.append(MemoryStore(self.checkpoint, dict(self.rows), dict(self.states), ledger))

    def crash(self, lost: int) -> None:
        """Undo the last commits, so many of ``unflushed``. Whoever is connected is to be closed."""
        if lost:
            before = self.unflushed[-lost]
            self.checkpoint, self.rows, self.states = before.checkpoint, before.rows, before.states
            self.ledger = before.ledger
        self.unflushed.clear()


@dataclass(eq=False)
class _Transaction:
    rows: dict[str, Rows]
    began: float
    states: dict[str, RouteState] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    touched: set[bytes] = field(default_factory=set)
    truncated: set[TableName] = field(default_factory=set)


class MemoryTarget:
    """Implements `towline.target.Target`. Raises ValueError for routes that are not identity routes or that mark
    deletes.
    """

    def __init__(self, store: MemoryStore, routes: Sequence[Route]) -> None:
        for route in routes:
            if not route.identity or route.on_delete is OnDelete.MARK:
                raise ValueError(f"route {route.name} needs a target that can run its SELECT or mark rows")
        self._store = store
        self._routes = tuple(routes)
        self._epoch = -1
        self._locked = False
        self._closed = threading.Event()
        self._transaction: _Transaction | None = None

    def acquire(self, timeout: float) -> bool:
        """See the contract."""
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            if self._store.lock.acquire(timeout=max(0.0, min(0.05, deadline - time.monotonic()))):
                self._locked = True
                return True
            if time.monotonic() >= deadline:
                return False
        raise TargetUnavailable("the target was closed")

    def open(self) -> Checkpoint:
        """See the contract."""
        checkpoint = self._store.checkpoint
        if checkpoint is None:
            raise NotSetUp("the store has no checkpoint")
        self._epoch = checkpoint.epoch + 1
        self._store.commits(synchronous=True)
        self._store.checkpoint = replace(checkpoint, epoch=self._epoch)
        return self._store.checkpoint

    def states(self) -> Mapping[str, RouteState]:
        """See the contract."""
        return dict(self._store.states)

    def begin(self) -> None:
        """See the contract."""
        self._checkpoint()
        if self._transaction is not None:
            raise TowlineError("a transaction was begun inside another one")
        rows = {route.name: dict(self._store.rows.get(route.name, {})) for route in self._routes}
        self._transaction = _Transaction(rows, time.monotonic())

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """See the contract."""
        transaction = self._current()
        for relation in piece.truncated:
            self._truncate(transaction, relation, active)
        for rowset in piece.rowsets:
            for route in self._routes:
                if route.source.name == rowset.relation.name and route.name in active:
                    self._apply(transaction, route, rowset, reread, prior)
            if prior is not None and prior.chunk.relation.name == rowset.relation.name and len(rowset):
                transaction.touched.update(rowset.rows.keys(rowset.relation.key))

    def load(self, load: ChunkLoad) -> None:
        """See the contract."""
        transaction = self._current()
        chunk = load.chunk
        table = transaction.rows[load.route.name]
        counts = transaction.counts.setdefault(load.route.name, Counts())
        void = chunk.relation.name in transaction.truncated
        for place, key in enumerate(chunk.rows.keys(chunk.relation.key) if len(chunk.rows) else ()):
            counts.seen += 1
            if void or key in transaction.touched:
                counts.superseded += 1
            else:
                counts.upserted += 1
                table[key] = chunk.rows.row(place)
        transaction.states[load.route.name] = load.state

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        """See the contract."""
        transaction, checkpoint = self._current(), self._checkpoint()
        if position < checkpoint.position:
            raise TowlineError(f"a commit at {format_lsn(position)} is before the checkpoint")
        counts = {name: each for name, each in transaction.counts.items() if each.seen}
        self._store.commits(synchronous=synchronous)
        self._store.rows.update(transaction.rows)
        self._store.states.update(transaction.states)
        for name, each in counts.items():
            self._store.ledger.setdefault(name, Counts()).add(each)
        latest = commit_time or checkpoint.commit_time
        self._store.checkpoint = replace(
            checkpoint, position=position, commit_time=latest, updated_at=datetime.now(UTC)
        )
        self._transaction = None
        return Committed(counts, time.monotonic() - transaction.began)

    def due(self, position: int) -> bool:
        """See the contract. There is nothing but the figures."""
        return False

    def rollback(self) -> None:
        """See the contract."""
        self._transaction = None

    def heartbeat(self) -> None:
        """See the contract."""
        if self._closed.is_set():
            raise TargetUnavailable("the target was closed")

    def set_states(self, states: Sequence[RouteState]) -> None:
        """See the contract."""
        self._checkpoint()
        self._store.commits(synchronous=True)
        self._store.states.update({state.route: state for state in states})

    def close(self) -> None:
        """See the contract."""
        self._closed.set()
        self._transaction = None
        if self._locked:
            self._locked = False
            self._store.lock.release()

    def _checkpoint(self) -> Checkpoint:
        if self._closed.is_set():
            raise TargetUnavailable("the target was closed")
        checkpoint = self._store.checkpoint
        if checkpoint is None or checkpoint.epoch != self._epoch:
            self._transaction = None
            raise Fenced(f"epoch {self._epoch} has been superseded")
        return checkpoint

    def _current(self) -> _Transaction:
        self._checkpoint()
        if self._transaction is None:
            raise TowlineError("there is no transaction")
        return self._transaction

    def _truncate(self, transaction: _Transaction, relation: Relation, active: AbstractSet[str]) -> None:
        transaction.truncated.add(relation.name)
        for route in self._routes:
            if route.source.name != relation.name or route.name not in active:
                continue
            if route.on_truncate is OnTruncate.HALT:
                raise SourceTruncated(f"route {route.name}: {relation.name} was truncated")
            if route.on_truncate is OnTruncate.DELETE and route.on_delete is OnDelete.DELETE:
                transaction.rows[route.name].clear()

    def _apply(
        self, transaction: _Transaction, route: Route, rowset: RowSet, reread: Reread, prior: ChunkLoad | None
    ) -> None:
        """Deletes, moves, rows with gaps, whole rows; then what had to be read again."""
        if not len(rowset):
            return
        table = transaction.rows[route.name]
        counts = transaction.counts.setdefault(route.name, Counts())
        compacted = compact(rowset)
        counts.seen += compacted.seen
        counts.superseded += compacted.superseded
        wanted = compacted.reread.places.tolist()
        moved: list[tuple[Move, bytes]] = []
        for move in compacted.moves:
            if route.on_delete is OnDelete.DELETE and move.origin in table:
                moved.append((move, table[move.origin]))
            else:
                wanted.append(move.place)
        gone = compacted.gone.rows
        keys = gone.keys(range(gone.width)) if len(gone) else []
        if route.on_delete is OnDelete.IGNORE:
            counts.filtered += len(keys)
        else:
            counts.deleted += len(keys)
            for key in keys:
                table.pop(key, None)
        for move, old in moved:
            table[move.key] = _completed(move.row, old, move.mask)
            counts.upserted += 1
        known = _chunk_rows(prior, rowset.relation)
        for mask, versions in compacted.partial:
            for key, row, place in _each(versions, rowset.relation):
                whole = table.get(key) or (None if key in transaction.touched else known.get(key))
                if whole is None:
                    wanted.append(place)
                else:
                    table[key] = _completed(row, whole, mask)
                    counts.upserted += 1
        for key, row, _ in _each(compacted.live, rowset.relation):
            table[key] = row
            counts.upserted += 1
        if wanted:
            places = np.array(sorted(wanted), dtype=np.int64)
            chunk = reread(rowset.relation, rowset.rows.take(places).project(rowset.relation.key))
            table.update(_rows_by_key(chunk.rows, rowset.relation))
            counts.upserted += len(chunk.rows)
            counts.superseded += len(wanted) - len(chunk.rows)


def _each(versions: Versions, relation: Relation) -> list[tuple[bytes, bytes, int]]:
    """Key, row and place of each version."""
    if not len(versions):
        return []
    keys = versions.rows.keys(relation.key)
    return [
        (key, versions.rows.row(at), place)
        for at, (key, place) in enumerate(zip(keys, versions.places.tolist(), strict=True))
    ]


def _rows_by_key(rows: Frame, relation: Relation) -> Rows:
    return {key: rows.row(at) for at, key in enumerate(rows.keys(relation.key))} if len(rows) else {}


def _chunk_rows(prior: ChunkLoad | None, relation: Relation) -> Rows:
    if prior is None or prior.chunk.relation.name != relation.name:
        return {}
    return _rows_by_key(prior.chunk.rows, relation)


def _completed(row: bytes, old: bytes, mask: int) -> bytes:
    """The row with the columns of the mask from the old one."""
    pairs = zip(key_values(row[2:]), key_values(old[2:]), strict=True)
    return frame_row([before if mask >> place & 1 else now for place, (now, before) in enumerate(pairs)])
