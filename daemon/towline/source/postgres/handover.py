"""Between a reader's thread and the consumer of its stream: pieces one way, acknowledged positions the other.

Pieces are cut

* when the consumer waits: at the end of a burst, at the last transaction boundary (small pieces while there is little
  to do, large ones while the consumer is busy). As long as the source has more to send than fits into a burst, pieces
  are some time apart: each is a transaction at the target, which costs as much as a thousand rows;
* when as much is gathered as a piece may hold: at a boundary if there is one, else inside the transaction.

A few pieces wait for the consumer, of a bounded number of bytes. When they do and the gatherer is full too, the reader
reads no more, and the server waits.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections import deque

from towline.change import Piece
from towline.errors import StreamMalformed, TowlineError
from towline.source.postgres.batches import RowBatch
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.tuple_batch import TupleBatch

#: Pieces that may wait for the consumer, however large they are.
QUEUED = 2
#: Naps between bursts, seconds.
SHORTEST_NAP, LONGEST_NAP = 0.0001, 0.001
#: Of this many bytes read in one go the burst is said to be over, so that the consumer gets something.
BURST = 1 << 20
#: Seconds between pieces of a source that has much to send.
APART = 0.02
#: Bytes that libpq takes from the socket at a time.
RECEIVED = 1 << 14


class Closed(Exception):
    """The stream was closed while the consumer was waited for."""


class Handover:
    """``position``: where reading begins. ``acknowledged``: what is durable; it may be before that.

    ``ahead``: more than `QUEUED` pieces may wait while they have not more bytes than that.
    """

    def __init__(
        self,
        gatherer: Gatherer[TupleBatch] | Gatherer[RowBatch],
        *,
        position: int,
        acknowledged: int,
        ahead: int = 0,
    ) -> None:
        self._gatherer = gatherer
        self._ahead = ahead
        # Shared, under the lock; the reader may look at them without it.
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._bytes = 0
        self._error: TowlineError | None = None
        self._waiting = False  # the consumer came for a piece and got none
        self._idle = position
        self._wanted = 0
        self._received = position
        self.acknowledged = acknowledged
        self.closing = False
        #: Nothing follows the pieces that wait.
        self.ended = False
        self._woken = False
        self._stalled = False  # the reader reads no more until a piece is taken
        #: What the source was told of `acknowledged`; where that is looked at now and then (`Backlog`), none of it.
        self.reported = acknowledged
        # The reader's own.
        self.told = position  # the newest position with everything before it decoded
        self._whole = True  # the piece that was pushed last ended at a transaction's end
        self._pushed_at = -math.inf
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)

    # ---- the consumer's thread -------------------------------------------------------------------------------

    def poll(self, timeout: float) -> Piece | None:
        """The next piece, or None when none came within ``timeout`` seconds, or the stream has ended.

        Raises the reader's error, then always.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._pieces:
                if self._error is not None:
                    raise self._error
                if self.ended:
                    return None
                if not self._waiting:
                    self._waiting = True
                    self._wake()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)
            self._waiting = False
            piece = self._pieces.popleft()
            self._bytes -= _size(piece)
            if self._stalled:
                self._stalled = False
                self._wake()
            return piece

    def acknowledge(self, position: int) -> None:
        """Everything before the position is durable; never goes back. The first one after a report wakes the reader."""
        with self._changed:
            if position > self.acknowledged:
                if self.acknowledged <= self.reported:
                    self._wake()
                self.acknowledged = position

    @property
    def ready(self) -> bool:
        """See `towline.source.Stream`."""
        with self._changed:
            return bool(self._pieces)

    @property
    def drained(self) -> bool:
        """Whether the stream has ended, and all its pieces were taken."""
        with self._changed:
            return self.ended and not self._pieces

    @property
    def idle_position(self) -> int:
        """See `towline.source.Stream`."""
        with self._changed:
            return 0 if self._pieces else self._idle

    @property
    def received_position(self) -> int:
        """See `towline.source.Stream`."""
        with self._changed:
            return self._received

    @property
    def awaited_position(self) -> int:
        """See `towline.source.Stream`."""
        with self._changed:
            return self._wanted

    def close(self) -> None:
        """Ask the reader to end."""
        with self._changed:
            self.closing = True
            self._wake()

    def _wake(self) -> None:
        """Make the reader look up, with the lock held."""
        if not self._woken and self._wake_in >= 0:
            self._woken = True
            os.write(self._wake_in, b"!")

    # ---- the reader's thread ---------------------------------------------------------------------------------

    def room(self) -> bool:
        """Cut as long as there is more than a piece holds. False when the consumer has to take one first."""
        gatherer = self._gatherer
        while gatherer.ready or gatherer.full:
            with self._changed:
                self._stalled = len(self._pieces) >= QUEUED and self._bytes >= self._ahead
                if self._stalled:
                    return False
            self.push(gatherer.ready.popleft() if gatherer.ready else gatherer.cut_full())
        return True

    @property
    def busy(self) -> bool:
        """Whether the consumer is at work, or has not come yet: it wakes the reader when it does."""
        with self._changed:
            return not self._waiting

    def push(self, piece: Piece) -> None:
        """Give the consumer a piece."""
        with self._changed:
            self.told = max(self.told, piece.end or 0)
            self._whole = piece.end is not None
            self._idle = 0
            self._pushed_at = time.monotonic()
            self._pieces.append(piece)
            self._bytes += _size(piece)
            self._changed.notify_all()

    def offer(self, position: int, apart: float = 0.0) -> None:
        """At the end of a burst: cut for a consumer that waits, and publish the positions.

        ``apart``: not so soon after the last piece (seconds).
        """
        gatherer = self._gatherer
        due = not apart or time.monotonic() - self._pushed_at >= apart
        if self.room() and due and self._waiting and not self._pieces:
            piece = gatherer.cut()
            if piece is not None:
                self.push(piece)
        with self._changed:
            self._received = position
            self._idle = self.told if gatherer.empty else 0

    def want(self, position: int) -> None:
        """The source would like to have this acknowledged."""
        with self._changed:
            self._wanted = position

    @property
    def whole(self) -> bool:
        """Whether `hand_over` ends with a whole transaction."""
        gatherer = self._gatherer
        if gatherer.at_boundary:
            return True
        return gatherer.ready[-1].end is not None if gatherer.ready else self._whole

    def hand_over(self) -> None:
        """Push the whole transactions that are gathered: before the place at which a table has changed, or at the
        end, they are applied first."""
        gatherer = self._gatherer
        while gatherer.ready:
            self.push(gatherer.ready.popleft())
        if (piece := gatherer.cut()) is not None:
            self.push(piece)

    def fail_after(self, error: TowlineError) -> None:
        """Hand over what is whole before the place of the error; or up to a row in it that is malformed."""
        try:
            self.hand_over()
        except StreamMalformed as malformed:  # rows are looked at when a piece is cut
            self.fail(malformed)
        else:
            self.fail(error)

    def fail(self, error: TowlineError) -> None:
        """What the consumer gets after the pieces that wait."""
        with self._changed:
            self._error = error
            self._idle = 0
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing follows."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def sleep(self, seconds: float, socket: int = -1, events: int = 0) -> None:
        """Until the consumer wants something, the socket is ready for the events, or the time is over."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        if socket >= 0:
            poll.register(socket, events)
        poll.poll(max(seconds, 0.0) * 1000 + 1)
        with self._changed:
            if self._woken:
                os.read(self._wake_out, 1)
                self._woken = False

    def release(self) -> None:
        """The reader ends."""
        with self._changed:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = -1


def _size(piece: Piece) -> int:
    return sum(len(rows.rows.data) for rows in piece.rowsets)
