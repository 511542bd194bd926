"""The replication stream of a PostgreSQL source, read by a thread of its own.

The reader wakes up once for a burst of messages, not for each: a walsender that is left to fill its socket's buffer
costs half of one that is drained message by message. So while data come, the reader naps between bursts: for no longer
than a millisecond while the consumer waits, or two while it is at work. The buffer of a Unix socket takes 200 kB, each
message with all that the kernel has around it, so that some 170 changes fill it, half a millisecond's work of a
walsender that has a backlog to send; and then it waits. So while data *flow*, naps are shorter than that.

What it reads goes to a decoder and from there into a gatherer; `handover` says when pieces are cut and handed on.
Status updates go out all the while, each with the acknowledged position and never a later one.

With a spool, pgoutput sends large transactions while they are under way (see `streamed`). When one commits, it is
decoded out of the spool where its commit stands in the stream, and the reader reads no more until the consumer has
taken all but the last pieces of it. Positions that the server tells of while transactions are under way are
acknowledged as ever: those commit after them, and the server keeps what it needs to send them again, since the slot's
restart position stays before their beginning (SnapBuildProcessRunningXacts in PostgreSQL's snapbuild.c).
When the spool is full the reader fails with SpoolFull, see `towline.streaming`.
"""

from __future__ import annotations

import math
import select
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from towline.change import Piece, Relation
from towline.errors import SourceTableChanged, SourceUnavailable, StreamMalformed, TowlineError
from towline.source import Identity
from towline.source.postgres import decoding, identity
from towline.source.postgres.handover import APART, BURST, LONGEST_NAP, RECEIVED, SHORTEST_NAP, Closed, Handover
from towline.source.postgres.routed import Resolve, Routed
from towline.source.postgres.spool import Spool
from towline.source.postgres.walsender import KEEPALIVE, KEEPALIVE_SIZE, XLOG_DATA, XLOG_HEADER, Walsender

#: No message of a walsender is shorter (bytes).
LEAST = min(XLOG_HEADER, KEEPALIVE_SIZE)
#: Seconds between status updates when the acknowledged position has moved.
ACKNOWLEDGE_EVERY = 0.1
#: The most and the least seconds between status updates when nothing has.
STATUS_EVERY = (0.2, 10.0)
#: The server is asked for a sign of life after this many seconds without one, and given up after as many again:
#: a dead line is TCP's to notice (see `towline.postgres.session`), and older servers are silent while they decode
#: a large transaction of which nothing is wanted.
SILENCE = 150.0
#: So many seconds of reading in one go are a burst, too, so that the server gets its status updates.
BURST_SECONDS = 0.05
#: Naps (seconds; poll adds a millisecond) while the consumer is at work, which wakes the reader when it comes for more.
#: They become longer as long as nothing comes, and beyond the longest the reader waits for the socket.
BUSY_NAP, LONGEST_BUSY_NAP = 0.001, 0.016
#: Data flow when so many bytes wait for a burst, and then for as long as so many do; how long the reader naps meanwhile
#: (seconds; the kernel adds to it).
FLOW, FLOWS = RECEIVED, RECEIVED // 8
FLOWING_NAP = 0.0002
#: How long `close` waits for the reader.
CLOSE_WITHIN = 1.0


class PostgresStream:
    """Changes of ``relations`` from position ``start`` on; implements `towline.source.Stream`.

    ``max_rows`` and ``max_bytes`` (of the plugin's messages) bound a piece. ``resolve`` names the root of a partition
    that was not known when the relations were described; it is called in the reader's thread. ``spool``: where
    transactions under way are kept (pgoutput, servers from 14 on); None: each is sent when it has committed.
    ``server``: the one that was found fit to be read; SourceUnavailable when another one is behind the dsn by now.
    ``acknowledged``: what is durable, when that is before ``start``. ``publication_checked``: it was, before the log
    up to ``start`` was read.

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
        acknowledged: int | None = None,
        publication_checked: bool = False,
    ) -> None:
        self._spool = spool
        routed = Routed(relations, resolve)
        bounds = decoding.Bounds(start, max_rows, max_bytes)
        self._routed = routed
        self._walsender = Walsender(dsn, application_name=application_name or f"towline {slot}")
        try:
            if server is not None:
                identity.same(server, self._walsender.identify())
            self._walsender.check_slot(slot, plugin)
            timeout = self._walsender.timeout()
            #: Whether some of the relations are partitioned tables, as far as the plugin has to be told (wal2json).
            self.partitioned = False
            if plugin == "pgoutput":
                if not publication_checked:
                    self._walsender.check_publication(publication, routed)
                opened = decoding.of_pgoutput(routed, publication, bounds, spool, self._pace)
            else:
                names = [(relation.name.schema, relation.name.name) for relation in relations]
                self.partitioned = self._walsender.any_partitioned(names)
                opened = decoding.of_wal2json(routed, bounds, partitioned=self.partitioned)
            self._decoder, self._gatherer = opened.decoder, opened.gatherer
            self._walsender.start(slot, start, opened.options)
        except BaseException:
            self._walsender.close()
            if spool is not None:
                spool.close()
            raise
        least, most = STATUS_EVERY
        self._status_every = min(max(timeout / 4, least), most) if timeout else most

        acknowledged = start if acknowledged is None else acknowledged
        self._handover = Handover(self._gatherer, position=start, acknowledged=acknowledged)
        # The reader's own.
        self._status_at = -math.inf
        self._flowing = False
        self._heard_at = time.monotonic()
        self._reader = threading.Thread(target=self._run, name=f"towline-stream-{slot}", daemon=True)
        self._reader.start()

    # ---- the caller's thread ---------------------------------------------------------------------------------

    def poll(self, timeout: float) -> Piece | None:
        """The next piece, or None when none came within ``timeout`` seconds; raises the reader's error, then always."""
        return self._handover.poll(timeout)

    def acknowledge(self, position: int) -> None:
        """Tell the server, within a fraction of a second, that everything before the position is durable."""
        self._handover.acknowledge(position)

    @property
    def ready(self) -> bool:
        """Whether a piece waits, which `poll` would return at once."""
        return self._handover.ready

    @property
    def spooled(self) -> tuple[int, int]:
        """How many transactions under way are kept, and how many bytes of files they take."""
        return (self._spool.transactions, self._spool.bytes) if self._spool is not None else (0, 0)

    @property
    def idle_position(self) -> int:
        """Up to where the server has sent all there is, when nothing of it waits to be polled; else 0."""
        return self._handover.idle_position

    @property
    def received_position(self) -> int:
        """The newest log position that the server has told of."""
        return self._handover.received_position

    @property
    def awaited_position(self) -> int:
        """What the server last asked to have acknowledged (it waits for that when it is being shut down)."""
        return self._handover.awaited_position

    def close(self) -> None:
        """End the reader and the connection."""
        self._handover.close()
        self._reader.join(CLOSE_WITHIN)

    # ---- the reader's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read()
        except SourceTableChanged as error:
            self._handover.fail_after(error)
        except TowlineError as error:
            self._handover.fail(error)
        finally:  # also of a defect, which then goes on to threading.excepthook
            defect = sys.exception()
            if defect is not None:
                self._handover.fail(
                    TowlineError(f"the reader of the source's stream failed with {type(defect).__name__}")
                )
            self._walsender.close()
            if self._spool is not None:
                self._spool.close()
            self._handover.release()

    def _read(self) -> None:
        nap = SHORTEST_NAP
        with suppress(Closed):
            while not self._handover.closing:
                self._await_room()
                heard = self._burst()
                if self._flowing:
                    time.sleep(FLOWING_NAP)
                elif self._handover.busy and (heard or nap < LONGEST_BUSY_NAP):
                    nap = BUSY_NAP if heard else max(nap, BUSY_NAP) * 2
                    self._handover.sleep(nap)
                elif heard:
                    nap = min(nap, LONGEST_NAP)
                    time.sleep(nap)
                    nap *= 2
                else:
                    nap = SHORTEST_NAP
                    self._sleep(reading=True)
        if self._handover.acknowledged > self._handover.reported:
            self._walsender.send_status(self._handover.acknowledged)

    def _burst(self) -> bool:
        """Read what there is, and give the consumer what it waits for. False when there was nothing."""
        gatherer, walsender = self._gatherer, self._walsender
        feed, changes = self._decoder.feed, self._decoder.changes
        position = self._handover.received_position
        began = time.monotonic()
        self._flowing = walsender.waiting() >= (FLOWS if self._flowing else FLOW)
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
            if gatherer.full and not self._handover.room():
                break
        walsender.notices.check(self._routed)
        if heard:
            self._heard_at = time.monotonic()
        self._handover.offer(position, APART if self._flowing else 0.0)
        return heard

    def _keepalive(self, message: bytes) -> int:
        """Take a keepalive, and answer if it asks for that. Returns its position."""
        if message[0] != KEEPALIVE or len(message) != KEEPALIVE_SIZE:
            raise StreamMalformed("a message of the walsender is neither data nor a keepalive")
        position = int.from_bytes(message[1:9], "big")
        if self._gatherer.open is None:
            self._handover.told = max(self._handover.told, position)
        if message[17]:
            self._handover.want(position)
            self._status_at = -math.inf
            self._report()
        return position

    def _pace(self) -> None:
        """Until there is room for more of a spooled transaction: as fast as the consumer takes the pieces."""
        self._heard_at = time.monotonic()
        self._await_room()

    def _await_room(self) -> None:
        """Until not more is gathered than a piece holds. Raises Closed when nobody wants it any more."""
        while not self._handover.closing:
            self._report()
            if self._handover.room():
                return
            self._sleep(reading=False)
            self._heard_at = time.monotonic()  # the silence is of our making
        raise Closed

    def _report(self) -> None:
        """Send a status update when one is due. Raises SourceUnavailable after a long silence."""
        now = time.monotonic()
        if now - self._heard_at > 2 * SILENCE:
            raise SourceUnavailable(
                f"the source has sent nothing for {2 * SILENCE:.0f} seconds, not even when asked to"
            )
        acknowledged = self._handover.acknowledged
        if now - self._status_at >= self._report_every(acknowledged):
            self._walsender.send_status(acknowledged, ask=now - self._heard_at > SILENCE)
            self._handover.reported = acknowledged
            self._status_at = now

    def _report_every(self, acknowledged: int) -> float:
        return ACKNOWLEDGE_EVERY if acknowledged > self._handover.reported else self._status_every

    def _sleep(self, *, reading: bool) -> None:
        """Until data come (when ``reading``), the caller's thread wants something, or a status update is due."""
        due = self._status_at + self._report_every(self._handover.acknowledged) - time.monotonic()
        sending = not self._walsender.flush()
        if reading:
            events = select.POLLIN | (select.POLLOUT if sending else 0)
            self._handover.sleep(due, self._walsender.socket, events)
        else:
            self._handover.sleep(min(due, ACKNOWLEDGE_EVERY) if sending else due)
