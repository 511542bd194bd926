"""The loop: take a piece of the stream, apply it, commit with its position, acknowledge; copy tables in between.

The order of the last three is the promise: rows, ledger and checkpoint commit in one target transaction, and only when
that is durable is the position acknowledged to the source. Whatever is killed in between is repeated or already done,
never lost.

While more is waiting already, commits are *asynchronous*: the target does not wait for its disk, and a crash of it may
undo the last of them, whole transactions, from the end. Their positions are acknowledged after a synchronous commit
that follows, since that makes durable all that was committed before it. There is one before the loop waits for
anything or ends, and one a second; so what is told to be done is done, and the source keeps the log of a second more. A
crash of the target ends its session, and so the attempt: the next one begins at the checkpoint that is left.

``announce`` is called with the name of each point of the loop that is passed (`POINTS`); in production it does
nothing, in fault tests it is where the daemon is killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Protocol

from towline.change import Chunk, Cursor, Piece, Relation
from towline.errors import TargetConflict, TargetUnavailable, TowlineError
from towline.logs import event
from towline.position import before_page_header, format_lsn
from towline.snapshot import STREAMING, Snapshots
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
    "committed",  # at the target, not acknowledged yet
    "acknowledged",  # the source was told, after a synchronous commit
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

#: How long commits may go on without a synchronous one (seconds): so long is the log at most of which the source is not
#: told that it is done.
_SYNCHRONOUS_EVERY = 1.0

#: Further behind a chunk than so many bytes of log, the stream goes first, in transactions of its own.
_FAR = 64 << 20


class Stopped(Exception):
    """The pipeline was asked to stop; what was not committed is abandoned."""


class Observer(Protocol):
    """Who wants to know what was committed."""

    def committed(self, committed: Committed, flushed: int) -> None:
        """A target transaction was committed. ``flushed``: the checkpoint that is durable."""

    def route_state(self, state: RouteState) -> None:
        """A route's snapshot made progress."""


class ChunkReader(Protocol):
    """Reads chunks in a thread of its own, so that the next one is read while the stream goes on."""

    def request(self, route: Route, relation: Relation, after: Cursor | None, limit: int) -> Future[Chunk]:
        """Read the rows after ``after``, once transactions of before the barrier have ended."""


class Pipeline:
    """One source, one target, many routes; runs in the thread that calls `run`.

    ``copying``: false when no tables are to be copied, and `run` need not wait for that.
    ``checkpoint``: the position that is committed. ``flushed``: that of the last synchronous commit, which no crash of
    the target undoes. ``reached``: the position up to which nothing is left to apply; it is ahead of the checkpoint
    while the source writes nothing that is routed. ``shown``: the position up to which the target has everything, and
    shows it; as far as ``reached``, but while a transaction is open.
    ``unfinished``: whether something beside the loop is still to be done before it has caught up.
    ``synchronous_every``: how long commits may be asynchronous (seconds); 0: none is.
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
        synchronous_every: float = _SYNCHRONOUS_EVERY,
    ) -> None:
        self.checkpoint = self.flushed = self.reached = self.shown = position
        self._unflushed = False  # something is committed that is not durable, be it at the same position
        self._synchronous_every = synchronous_every
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
        self._touched = self._spoken = self.beat = self._flushed_at = time.monotonic()

    def stop(self) -> None:
        """Ask `run` to return at the next safe place. May be called from a signal handler or another thread."""
        self._stop.set()

    def run(self, until: int | None = None) -> None:
        """Replicate until stopped or, with ``until``, until every route streams and that position is durable.

        All that is committed is durable then. Raises the coded errors of source and target; what is committed is
        durable then too, but where the target cannot be asked for it.
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
                    self.shown = self.reached = max(self.reached, self._stream.idle_position)
                    self._rest(until)
                elif piece.rowsets or piece.truncated or piece.end is None:
                    self._batch(piece)
                else:  # nothing of it is routed: the checkpoint moves with the next commit, or when it is due
                    self.shown = self.reached = piece.end
                    self._rest(until)
        except Stopped:
            log.debug("stopped inside a batch")
        except (TargetUnavailable, TargetConflict):
            raise
        except TowlineError:
            self._target.rollback()
            with contextlib.suppress(TowlineError):
                self._flush()
            raise
        finally:
            self._target.rollback()
        if self._flush():
            self._acknowledge()

    @property
    def durable(self) -> int:
        """The position up to which the target has everything, even after a crash; as far as ``shown``, but while
        something is not flushed."""
        return self.flushed if self._unflushed else self.shown

    # ---- the stream ------------------------------------------------------------------------------------------

    def _batch(self, piece: Piece) -> None:
        """Apply the transactions of a piece, and the rest of the last one, in one target transaction."""
        self._announce("received")
        self._target.begin()
        self._announce("begun")
        self._apply(piece, None)
        self._commit(synchronous=not self._hurried())

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

    def _hurried(self) -> bool:
        """Whether the next transaction can begin at once, so that nobody should wait for the target's disk now."""
        if self._stop.is_set() or time.monotonic() - self._flushed_at >= self._synchronous_every:
            return False
        return self._stream.ready or (self._chunk is not None and self._chunk[1].done())

    def _commit(self, *, synchronous: bool) -> None:
        """Commit what was applied with the position reached; when that is durable, and only then, acknowledge it."""
        self._announce("committing")
        committed = self._target.commit(self.reached, self._commit_time, synchronous=synchronous)
        self._announce("committed")
        self.checkpoint = self.shown = self.reached
        self._unflushed = not synchronous
        if synchronous:
            self.flushed, self._flushed_at = self.checkpoint, time.monotonic()
            self._acknowledge()
        self._touched = self._spoken = time.monotonic()
        self._observer.committed(committed, self.flushed)

    def _acknowledge(self) -> None:
        self._stream.acknowledge(self.flushed)
        self._announce("acknowledged")

    def _flush(self) -> bool:
        """Make durable what is committed, and nothing else: what was applied after it is abandoned. False: it is."""
        if not self._unflushed:
            return False
        self._target.begin()
        self._target.commit(self.checkpoint, None, synchronous=True)
        self.flushed, self._unflushed = self.checkpoint, False
        return True

    def _rest(self, until: int | None) -> None:
        """Nothing to apply: see to it that what was committed is durable; and move the checkpoint on with the source's
        log now and then, so that it can be recycled."""
        rested = time.monotonic() - self._touched
        asked = self._stream.awaited_position > self.checkpoint and rested >= _ASKED_AFTER
        due = asked or rested >= self._checkpoint_seconds
        wanted = until is not None and self._settled and self.reached >= until
        if (self.reached > self.checkpoint and (due or wanted)) or self._target.due(self.reached):
            self._announce("idle-checkpoint")
            self._target.begin()
            self._commit(synchronous=True)
        elif self._unflushed and not self._hurried():
            self._target.begin()
            self._commit(synchronous=True)
        else:
            self._breathe()

    def _caught_up(self, until: int | None) -> bool:
        reached = until is not None and self._settled and self.checkpoint >= until and not self._unflushed
        return reached and not self._unfinished()

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
        # The last one is told of at once: whoever waits for a copy to be complete relies on it.
        self._commit(synchronous=load.state.state == STREAMING or not self._hurried())
        self._ready = None
        self._snapshots.committed(load.state)
        self._observer.route_state(load.state)
        event(
            log,
            logging.INFO if load.state.state == STREAMING else logging.DEBUG,
            "chunk_committed",
            route=load.route.name,
            state=load.state.state,
            copied=load.state.copied,
            lsn=format_lsn(self.checkpoint),
        )
