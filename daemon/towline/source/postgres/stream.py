"""The replication stream of a PostgreSQL source, read by a thread of its own.

The reader wakes up once for a burst of messages, not for each: a walsender that is left to fill its socket's buffer
costs half of one that is drained message by message. So while data flow, the reader naps between bursts, for no longer
than a millisecond, since the buffers of a Unix socket are small.

What it reads goes to a decoder and from there into a gatherer. Pieces are cut

* when the consumer waits: at the end of a burst, at the last transaction boundary (small pieces while there is little
  to do, large ones while the consumer is busy);
* when as much is gathered as a piece may hold: at a boundary if there is one, else inside the transaction.

At most two pieces wait for the consumer. When they do and the gatherer is full too, the reader reads no more, and the
server waits. Status updates go out all the while, each with the acknowledged position and never a later one.

With a spool, pgoutput sends large transactions while they are under way (see `streamed`). When one commits, it is
decoded out of the spool where its commit stands in the stream, and the reader reads no more until the consumer has
taken all but the last pieces of it. Positions that the server tells of while transactions are under way are
acknowledged as ever: those commit after them, and the server keeps what it needs to send them again, since the slot's
restart position stays before their beginning (SnapBuildProcessRunningXacts in PostgreSQL's snapbuild.c).
When the spool is full the reader fails with SpoolFull, see `towline.streaming`.
"""

from __future__ import annotations

import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from towline.change import Format, Piece, Relation
from towline.errors import SourceTableChanged, SourceUnavailable, StreamMalformed, TowlineError
from towline.source import Identity
from towline.source.postgres import identity, pgoutput, wal2json
from towline.source.postgres.gather import Gatherer, RowBatch, TupleBatch
from towline.source.postgres.routed import Resolve, Routed
from towline.source.postgres.spool import Spool
from towline.source.postgres.streamed import StreamingDecoder
from towline.source.postgres.walsender import KEEPALIVE, KEEPALIVE_SIZE, XLOG_DATA, XLOG_HEADER, Walsender

#: No message of a walsender is shorter (bytes).
LEAST = min(XLOG_HEADER, KEEPALIVE_SIZE)
#: Pieces that may wait for the consumer.
QUEUED = 2
#: Seconds between status updates when the acknowledged position has moved.
ACKNOWLEDGE_EVERY = 0.1
#: The most and the least seconds between status updates when nothing has.
STATUS_EVERY = (0.2, 10.0)
#: The server is asked for a sign of life after this many seconds without one, and given up after as many again:
#: a dead line is TCP's to notice (see `towline.postgres.session`), and older servers are silent while they decode
#: a large transaction of which nothing is wanted.
SILENCE = 150.0
#: Naps between bursts, seconds.
SHORTEST_NAP, LONGEST_NAP = 0.0001, 0.001
#: After so many bytes, or seconds, of reading in one go the burst is said to be over, so that the consumer gets
#: something, and the server its status updates.
BURST, BURST_SECONDS = 1 << 20, 0.05
#: Bytes that libpq takes from the socket at a time.
RECEIVED = 1 << 14
#: How long `close` waits for the reader.
CLOSE_WITHIN = 1.0


class _Closed(Exception):
    """The stream was closed while the consumer was waited for."""


class PostgresStream:
    """Changes of ``relations`` from position ``start`` on; implements `towline.source.Stream`.

    ``max_rows`` and ``max_bytes`` (of the plugin's messages) bound a piece. ``resolve`` names the root of a partition
    that was not known when the relations were described; it is called in the reader's thread. ``spool``: where
    transactions under way are kept (pgoutput, servers from 14 on); None: each is sent when it has committed.
    ``server``: the one that was found fit to be read; SourceUnavailable when another one is behind the dsn by now.

    The constructor connects and starts replication: it takes up to the dsn's ``connect_timeout`` (10 seconds by
    default) and raises SourceUnavailable, SourceRefused, SlotMissing, SlotInUse, SlotUnusable, PluginRefused, NotSetUp,
    SourceSettings.
    """

    def __init__(
        self,
        dsn: str,
        *,
        slot: str,
        publication: str,
        plugin: str,
        relations: Sequence[Relation],
        start: int,
        max_rows: int,
        max_bytes: int,
        resolve: Resolve | None = None,
        application_name: str = "",
        spool: Spool | None = None,
        server: Identity | None = None,
    ) -> None:
        self._spool = spool
        routed = Routed(relations, resolve)
        self._routed = routed
        self._walsender = Walsender(dsn, application_name=application_name or f"towline {slot}")
        try:
            if server is not None:
                identity.same(server, self._walsender.identify())
            self._walsender.check_slot(slot, plugin)
            timeout = self._walsender.timeout()
            self._decoder: pgoutput.Decoder | wal2json.Decoder
            self._gatherer: Gatherer[TupleBatch] | Gatherer[RowBatch]
            if plugin == "pgoutput":
                self._walsender.check_publication(publication, routed)
                binary = any(relation.format is Format.BINARY for relation in relations)
                format_ = Format.BINARY if binary else Format.TEXT
                options = pgoutput.options(publication, format_, streaming=spool is not None)
                tuples = self._gatherer = Gatherer[TupleBatch](start, max_rows, max_bytes)
                if spool is not None:
                    self._decoder = StreamingDecoder(routed, tuples, spool, self._pace)
                else:
                    self._decoder = pgoutput.Decoder(routed, tuples)
            else:
                names = [(relation.name.schema, relation.name.name) for relation in relations]
                options = wal2json.options(relations, partitioned=self._walsender.any_partitioned(names))
                rows = Gatherer[RowBatch](start, max_rows, max_bytes)
                self._gatherer, self._decoder = rows, wal2json.Decoder(routed, rows)
            self._walsender.start(slot, start, options)
        except BaseException:
            self._walsender.close()
            if spool is not None:
                spool.close()
            raise
        least, most = STATUS_EVERY
        self._status_every = min(max(timeout / 4, least), most) if timeout else most

        # Shared with the caller's thread, under the lock.
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._error: TowlineError | None = None
        self._waiting = False  # the consumer came for a piece and got none
        self._idle = 0
        self._wanted = 0
        self._acknowledged = start
        self._received = start
        self._closing = False
        self._woken = False
        # The reader's own.
        self._told = 0  # the newest keepalive's position, with everything before it decoded
        self._reported = -1
        self._status_at = -math.inf
        self._heard_at = time.monotonic()

        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._reader = threading.Thread(target=self._run, name=f"towline-stream-{slot}", daemon=True)
        self._reader.start()

    # ---- the caller's thread ---------------------------------------------------------------------------------

    def poll(self, timeout: float) -> Piece | None:
        """The next piece, or None when none came within ``timeout`` seconds; raises the reader's error, then always."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._pieces:
                if self._error is not None:
                    raise self._error
                if not self._waiting:
                    self._waiting = True
                    self._wake()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)
            self._waiting = False
            piece = self._pieces.popleft()
            self._wake()  # it may have stopped reading
            return piece

    def acknowledge(self, position: int) -> None:
        """Tell the server, within a fraction of a second, that everything before the position is durable."""
        with self._changed:
            if position > self._acknowledged:
                self._acknowledged = position
                self._wake()

    @property
    def spooled(self) -> tuple[int, int]:
        """How many transactions under way are kept, and how many bytes of files they take."""
        return (self._spool.transactions, self._spool.bytes) if self._spool is not None else (0, 0)

    @property
    def idle_position(self) -> int:
        """Up to where the server has sent all there is, when nothing of it waits to be polled; else 0."""
        with self._changed:
            return 0 if self._pieces else self._idle

    @property
    def received_position(self) -> int:
        """The newest log position that the server has told of."""
        with self._changed:
            return self._received

    @property
    def awaited_position(self) -> int:
        """What the server last asked to have acknowledged (it waits for that when it is being shut down)."""
        with self._changed:
            return self._wanted

    def close(self) -> None:
        """End the reader and the connection."""
        with self._changed:
            self._closing = True
            self._wake()
        self._reader.join(CLOSE_WITHIN)

    def _wake(self) -> None:
        """Make the reader look up, with the lock held."""
        if not self._woken and self._wake_in >= 0:
            self._woken = True
            os.write(self._wake_in, b"!")

    # ---- the reader's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read()
        except SourceTableChanged as error:
            self._fail(self._handed_over(error))
        except TowlineError as error:
            self._fail(error)
        finally:  # also of a defect, which then goes on to threading.excepthook
            defect = sys.exception()
            if defect is not None:
                self._fail(TowlineError(f"the reader of the source's stream failed with {type(defect).__name__}"))
            self._walsender.close()
            if self._spool is not None:
                self._spool.close()
            with self._changed:
                os.close(self._wake_in)
                os.close(self._wake_out)
                self._wake_in = -1

    def _handed_over(self, error: TowlineError) -> TowlineError:
        """Before the place at which a table has changed, all transactions are whole: they are applied first.

        Returns what comes after them: the error, or that of a row among them, which was not looked at before.
        """
        gatherer = self._gatherer
        try:
            while gatherer.ready:
                self._push(gatherer.ready.popleft())
            if (piece := gatherer.cut()) is not None:
                self._push(piece)
        except StreamMalformed as malformed:
            return malformed
        return error

    def _fail(self, error: TowlineError) -> None:
        with self._changed:
            self._error = error
            self._idle = 0
            self._changed.notify_all()

    def _read(self) -> None:
        nap = SHORTEST_NAP
        with suppress(_Closed):
            while not self._closing:
                self._await_room()
                if self._burst():
                    time.sleep(nap)
                    nap = min(nap * 2, LONGEST_NAP)
                else:
                    nap = SHORTEST_NAP
                    self._sleep(reading=True)
        if self._acknowledged > self._reported:
            self._walsender.send_status(self._acknowledged)

    def _burst(self) -> bool:
        """Read what there is, and give the consumer what it waits for. False when there was nothing."""
        gatherer, walsender = self._gatherer, self._walsender
        feed, changes = self._decoder.feed, self._decoder.changes
        position = self._received
        began = time.monotonic()
        heard = False
        for _ in range(BURST // RECEIVED):
            if time.monotonic() - began > BURST_SECONDS:
                break
            walsender.receive()
            messages = walsender.messages()
            message = next(messages, None)
            if message is None:
                break
            heard = True
            gatherer.received = time.time()
            while message is not None:  # of changes, only some come through here
                if len(message) < LEAST:
                    raise StreamMalformed("a message of the walsender is too short for what it should say")
                if message[0] == XLOG_DATA:
                    feed(message, XLOG_HEADER)
                    position = max(position, int.from_bytes(message[9:17], "big"))
                else:
                    position = max(position, self._keepalive(message))
                message = None if gatherer.full else changes(messages, XLOG_HEADER)
            if gatherer.full and not self._room():
                break
        walsender.check_notices(self._routed)
        if heard:
            self._heard_at = time.monotonic()
        self._offer(position)
        return heard

    def _keepalive(self, message: bytes) -> int:
        """Take a keepalive, and answer if it asks for that. Returns its position."""
        if message[0] != KEEPALIVE or len(message) != KEEPALIVE_SIZE:
            raise StreamMalformed("a message of the walsender is neither data nor a keepalive")
        position = int.from_bytes(message[1:9], "big")
        if self._gatherer.open is None:
            self._told = max(self._told, position)
        if message[17]:
            with self._changed:
                self._wanted = position
            self._status_at = -math.inf
            self._report()
        return position

    def _room(self) -> bool:
        """Cut as long as there is more than a piece holds. False when the consumer has to take one first."""
        gatherer = self._gatherer
        while gatherer.ready or gatherer.full:
            if len(self._pieces) >= QUEUED:
                return False
            self._push(gatherer.ready.popleft() if gatherer.ready else gatherer.cut_full())
        return True

    def _pace(self) -> None:
        """Until there is room for more of a spooled transaction: as fast as the consumer takes the pieces."""
        self._heard_at = time.monotonic()
        self._await_room()

    def _await_room(self) -> None:
        """Until not more is gathered than a piece holds. Raises _Closed when nobody wants it any more."""
        while not self._closing:
            self._report()
            if self._room():
                return
            self._sleep(reading=False)
            self._heard_at = time.monotonic()  # the silence is of our making
        raise _Closed

    def _offer(self, position: int) -> None:
        """At the end of a burst: cut for a consumer that waits, and publish the positions."""
        gatherer = self._gatherer
        if self._room() and self._waiting and not self._pieces:
            piece = gatherer.cut()
            if piece is not None:
                self._push(piece)
        with self._changed:
            self._received = position
            self._idle = self._told if gatherer.empty else 0

    def _push(self, piece: Piece) -> None:
        with self._changed:
            self._told = max(self._told, piece.end or 0)
            self._idle = 0
            self._pieces.append(piece)
            self._changed.notify_all()

    def _report(self) -> None:
        """Send a status update when one is due. Raises SourceUnavailable after a long silence."""
        now = time.monotonic()
        if now - self._heard_at > 2 * SILENCE:
            raise SourceUnavailable(
                f"the source has sent nothing for {2 * SILENCE:.0f} seconds, not even when asked to"
            )
        acknowledged = self._acknowledged
        if now - self._status_at >= self._report_every(acknowledged):
            self._walsender.send_status(acknowledged, ask=now - self._heard_at > SILENCE)
            self._reported = acknowledged
            self._status_at = now

    def _report_every(self, acknowledged: int) -> float:
        return ACKNOWLEDGE_EVERY if acknowledged > self._reported else self._status_every

    def _sleep(self, *, reading: bool) -> None:
        """Until data come (when ``reading``), the caller's thread wants something, or a status update is due."""
        due = self._status_at + self._report_every(self._acknowledged) - time.monotonic()
        sending = not self._walsender.flush()
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        if reading:
            poll.register(self._walsender.socket, select.POLLIN | (select.POLLOUT if sending else 0))
        elif sending:
            due = min(due, ACKNOWLEDGE_EVERY)
        poll.poll(max(due, 0.0) * 1000 + 1)
        with self._changed:
            if self._woken:
                os.read(self._wake_out, 1)
                self._woken = False
