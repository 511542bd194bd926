"""The loop: take a piece of the stream, apply it, commit with its position, acknowledge; copy tables in between.

The order of the last three is the promise: rows, ledger and checkpoint commit in one target transaction, and only then
is the position acknowledged to the source. Whatever is killed in between is repeated or already done, never lost.

``announce`` is called with the name of each point of the loop that is passed (`POINTS`); in production it does
nothing, in fault tests it is where the daemon is killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Protocol

from towline.change import Chunk, Cursor, Piece, Relation
from towline.logs import event
from towline.position import before_page_header, format_lsn
from towline.snapshot import Snapshots
from towline.source import Stream
from towline.target import ChunkLoad, Committed, Reread, RouteState, Target
from towline_transforms.route import Route

log = logging.getLogger(__name__)

POINTS = (
    "opened",  # the stream is open at the checkpoint
    "received",  # a piece was taken from the stream
    "begun",  # the target transaction is to begin with the next statement
    "applied",  # a piece was applied, not committed
    "within-transaction",  # between two pieces of one source transaction
    "chunk-read",  # a chunk was read and accepted
    "chunk-loaded",  # a chunk's rows are in the target transaction
    "committing",  # all is applied, the commit follows
    "committed",  # durable, not acknowledged yet
    "acknowledged",  # the source was told
    "idle-checkpoint",  # about to move the checkpoint of an idle pipeline
    "adopting",  # a table has changed: about to change the target and to note it, in one transaction
    "adopted",  # that is durable
    "looking-again",  # the log showed a change of a table, or a look at the catalogs did
)

#: How soon an idle pipeline moves its checkpoint for a source that asks it to, as it does when it shuts down (seconds).
_ASKED_AFTER = 0.2

#: How often the session with the target is used at least, which the server ends when it is idle for long (seconds).
_HEARTBEAT = 10.0

#: With a chunk under way, how long the loop waits for the stream before it looks at the chunk and its position again
#: (seconds).
_CHUNK_WAIT = 0.005


#: Further behind a chunk than so many bytes of log, the stream goes first, in transactions of its own.
_FAR = 64 << 20


class Stopped(Exception):
    """The pipeline was asked to stop; what was not committed is abandoned."""


class Observer(Protocol):
    """Who wants to know what became durable."""

    def committed(self, committed: Committed, position: int) -> None:
        """A target transaction was committed."""

    def route_state(self, state: RouteState) -> None:
        """A route's snapshot made progress."""


class ChunkReader(Protocol):
    """Reads chunks in a thread of its own, so that the next one is read while the stream goes on."""

    def request(self, route: Route, relation: Relation, after: Cursor | None, limit: int) -> Future[Chunk]:
        """Read the rows after ``after``, once transactions of before the barrier have ended."""


class Pipeline:
    """One source, one target, many routes; runs in the thread that calls `run`.

    ``copying``: false when no tables are to be copied, and `run` need not wait for that.
    ``checkpoint``: the position that is durable. ``reached``: the position up to which nothing is left to apply; it is
    ahead of the checkpoint while the source writes nothing that is routed. ``durable``: the position up to which the
    target has everything, and shows it; as far as ``reached``, but while a transaction is open.
    ``unfinished``: whether something beside the loop is still to be done before it has caught up.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        target: Target,
        reader: ChunkReader,
        reread: Reread,
        snapshots: Snapshots,
        relations: tuple[Relation, ...],
        position: int,
        chunk_rows: int,
        checkpoint_seconds: float,
        observer: Observer,
        announce: Callable[[str], None] = lambda point: None,
        unfinished: Callable[[], bool] = lambda: False,
        copying: bool = True,
    ) -> None:
        self.checkpoint = self.reached = self.durable = position
        self._unfinished = unfinished
        self._stream = stream
        self._target = target
        self._reader = reader
        self._reread = reread
        self._snapshots = snapshots
        self._relations = {relation.name: relation for relation in relations}
        self._chunk_rows = chunk_rows
        self._checkpoint_seconds = checkpoint_seconds
        self._observer = observer
        self._announce = announce
        self._copying = copying
        self._stop = threading.Event()
        self._chunk: tuple[Route, Future[Chunk]] | None = None
        self._ready: ChunkLoad | None = None
        self._commit_time: datetime | None = None
        self._touched = self._spoken = self.beat = time.monotonic()

    def stop(self) -> None:
        """Ask `run` to return at the next safe place. May be called from a signal handler or another thread."""
        self._stop.set()

    def run(self, until: int | None = None) -> None:
        """Replicate until stopped or, with ``until``, until every route streams and that position is durable.

        Raises the coded errors of source and target; the durable state is then the last commit.
        """
        self._announce("opened")
        try:
            while not self._stop.is_set() and not self._caught_up(until):
                self.beat = time.monotonic()
                self._want_chunk()
                if self._ready is not None and self._ready.chunk.high - self.reached <= _FAR:
                    self._load_chunk(self._ready)
                    continue
                piece = self._stream.poll(_CHUNK_WAIT if self._chunk is not None else 0.5)
                if piece is None:
                    self.durable = self.reached = max(self.reached, self._stream.idle_position)
                    self._rest(until)
                elif piece.rowsets or piece.truncated or piece.end is None:
                    self._batch(piece)
                else:  # nothing of it is routed: the checkpoint moves with the next commit, or when it is due
                    self.durable = self.reached = piece.end
                    self._rest(until)
        except Stopped:
            log.debug("stopped inside a batch")
        finally:
            self._target.rollback()

    # ---- the stream ------------------------------------------------------------------------------------------

    def _batch(self, piece: Piece) -> None:
        """Apply the transactions of a piece, and the rest of the last one, in one target transaction."""
        self._announce("received")
        self._target.begin()
        self._announce("begun")
        self._apply(piece, None)
        self._commit()

    def _apply(self, piece: Piece, prior: ChunkLoad | None) -> None:
        """Apply a piece and, when it ends inside a transaction, those that follow, up to a transaction's end."""
        active = self._snapshots.active | ({prior.route.name} if prior is not None else set())
        while True:
            self._target.apply(piece, active, self._reread, prior)
            self._snapshots.applied(transaction.xid for transaction in piece.transactions)
            if piece.transactions:
                self._commit_time = piece.transactions[-1].commit_time
            self.beat = self._spoken = time.monotonic()
            self._announce("applied")
            if piece.end is not None:
                self.reached = piece.end
                return
            self._announce("within-transaction")
            if self._stop.is_set():
                raise Stopped
            piece = self._await_piece()

    def _await_piece(self) -> Piece:
        """The next piece, however long it takes, keeping the target's session alive meanwhile."""
        while (piece := self._stream.poll(0.5)) is None:
            self._breathe()
        return piece

    def _breathe(self) -> None:
        """What is due while nothing happens. Raises Stopped."""
        if self._stop.is_set():
            raise Stopped
        self.beat = time.monotonic()
        if self.beat - self._spoken >= _HEARTBEAT:
            self._target.heartbeat()
            self._spoken = self.beat

    def _commit(self) -> None:
        """Make what was applied durable with the position reached; then, and only then, acknowledge it."""
        self._announce("committing")
        committed = self._target.commit(self.reached, self._commit_time)
        self._announce("committed")
        self.checkpoint = self.durable = self.reached
        self._stream.acknowledge(self.checkpoint)
        self._announce("acknowledged")
        self._touched = self._spoken = time.monotonic()
        self._observer.committed(committed, self.checkpoint)

    def _rest(self, until: int | None) -> None:
        """Nothing to apply: move the checkpoint on with the source's log now and then, so that it can be recycled."""
        rested = time.monotonic() - self._touched
        asked = self._stream.awaited_position > self.checkpoint and rested >= _ASKED_AFTER
        due = asked or rested >= self._checkpoint_seconds
        wanted = until is not None and self._settled and self.reached >= until
        if (self.reached > self.checkpoint and (due or wanted)) or self._target.due(self.reached):
            self._announce("idle-checkpoint")
            self._target.begin()
            self._commit()
        else:
            self._breathe()

    def _caught_up(self, until: int | None) -> bool:
        return until is not None and self._settled and self.checkpoint >= until and not self._unfinished()

    @property
    def _settled(self) -> bool:
        return self._snapshots.done or not self._copying

    # ---- snapshots -------------------------------------------------------------------------------------------

    def _want_chunk(self) -> None:
        """Have the next chunk read, and take one that is there. A chunk that may not be used is read again."""
        if self._snapshots.done or not self._copying:
            return
        if self._ready is not None:
            if self._snapshots.accepts(self._ready.chunk):
                return
            self._ready = None  # while it waited for the stream, a transaction was applied that it does not see
        if self._chunk is None:
            self._request()
        elif self._chunk[1].done():
            route, future = self._chunk
            self._chunk = None
            chunk = future.result()
            if not self._snapshots.accepts(chunk):
                self._request()
                return
            self._announce("chunk-read")
            self._ready = ChunkLoad(route, chunk, self._snapshots.after(route, chunk))

    def _request(self, after: ChunkLoad | None = None) -> None:
        """Ask for the next chunk, or for the one that will be next when ``after`` has committed."""
        wanted = self._snapshots.next()
        if after is not None and after.state.cursor is not None:
            wanted = (after.route, after.state.cursor)
        if wanted is not None:
            route, cursor = wanted
            relation = self._relations[route.source.name]
            self._chunk = (route, self._reader.request(route, relation, cursor, self._chunk_rows))

    def _load_chunk(self, load: ChunkLoad) -> None:
        """Apply the stream up to the chunk's ``high``, load the chunk, and commit both together."""
        high = before_page_header(load.chunk.high)
        if load.state.cursor is not None:
            self._request(load)
        self._target.begin()
        self._announce("begun")
        while self.reached < high:
            piece = self._stream.poll(_CHUNK_WAIT)
            if piece is not None:
                self._apply(piece, load)
            else:
                self.reached = max(self.reached, self._stream.idle_position)
                self._breathe()
        self._target.load(load)
        self._announce("chunk-loaded")
        self._commit()
        self._ready = None
        self._snapshots.committed(load.state)
        self._observer.route_state(load.state)
        event(
            log,
            logging.INFO if load.state.state == "streaming" else logging.DEBUG,
            "chunk_committed",
            route=load.route.name,
            state=load.state.state,
            copied=load.state.copied,
            lsn=format_lsn(self.checkpoint),
        )
