"""The log up to near its end, read through SQL: see `towline.catch_up` for when that is done.

A reader's thread copies the slot into a temporary one and reads that in gulps, each by one statement that decodes the
log up to a position. Since a statement yields nothing before it has decoded all of it, two sessions take turns, each
with a copy of its own: while a gulp is read from one, the other passes over that stretch of the log and decodes the
next (`Turns`). The slot itself stands at what was acknowledged or before it, and is moved there now and then, so that
the source can remove log. So whatever ends the reader loses the copies, and nothing else.

The messages are those of the stream, and the decoder is the same. Gulps end with whole transactions. Whatever the
server refuses, and whatever its plugin warns of, is left to the stream, from the last transaction that was handed over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from towline.catch_up import CatchUp
from towline.change import Piece, Relation
from towline.errors import (
    NotSetUp,
    SlotAhead,
    SlotInUse,
    SourceTableChanged,
    SourceUnavailable,
    StreamMalformed,
    TowlineError,
)
from towline.position import format_lsn
from towline.source import Identity, SlotState
from towline.source.postgres import decoding, identity, slot_checks
from towline.source.postgres.block import Block
from towline.source.postgres.copy_rows import CopyRows
from towline.source.postgres.handover import BURST, LONGEST_NAP, SHORTEST_NAP, Closed, Handover
from towline.source.postgres.routed import Resolve, Routed
from towline.source.postgres.slot_copy import Refused, SlotCopy
from towline.source.postgres.turns import Turns

#: Bytes of pieces that may wait for the consumer, so that the next gulp is decoded meanwhile.
AHEAD = 24 << 20
#: How long the walsender that was reading may take to end by itself, and then to release the slot (seconds). One that
#: decodes what nobody wants looks for its client rarely.
ENDED_WITHIN, RELEASED_WITHIN = 2.0, 10.0
#: A consumer that takes nothing for so long makes it end: the statement's snapshot keeps the source from removing dead
#: rows while it is open (seconds).
PATIENCE = 60.0
#: How long `close` waits for the reader before the statement under way is cancelled, and then for its end (seconds).
_CLOSE_AT_ONCE, _CLOSE_WITHIN = 0.05, 1.0


class Backlog:
    """Changes of ``relations`` from position ``start`` on, until near the end of the log.

    For the arguments see `towline.source.postgres.stream.PostgresStream`; ``acknowledged`` is what is durable, and
    ``partitioned`` what the stream has found (wal2json). ``streamed``: it brings large transactions while they are
    under way, or would.

    When all has been taken, `drained`, the stream is to go on at ``position``; ``refused`` says what the server
    refused, if it did, and ``left`` that more is left, which is better streamed. `poll` raises what a stream raises,
    and SlotAhead when somebody else has confirmed the slot.
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
        acknowledged: int,
        max_rows: int,
        max_bytes: int,
        resolve: Resolve | None = None,
        application_name: str = "",
        server: Identity | None = None,
        decision: CatchUp,
        partitioned: bool,
        streamed: bool,
    ) -> None:
        self._dsn = dsn
        self._slot = slot
        self._plugin = plugin
        self._server = server
        self._application_name = application_name or f"towline {slot}"
        self._decision = decision
        self._streamed = streamed
        self._routed = Routed(relations, resolve)
        bounds = decoding.Bounds(start, max_rows, max_bytes)
        if plugin == "pgoutput":
            opened = decoding.of_pgoutput(self._routed, publication, bounds)
        else:
            opened = decoding.of_wal2json(self._routed, bounds, partitioned=partitioned)
        self._decoder, self._gatherer, self._options = opened.decoder, opened.gatherer, opened.options
        self.position = start
        self.refused: TowlineError | None = None
        self.left = False
        #: How many gulps were read.
        self.gulps = 0
        self._yielded = 0  # bytes of messages, by the gulp read last
        self._handover = Handover(self._gatherer, position=start, acknowledged=acknowledged, ahead=AHEAD)
        self._turns = Turns(self._connect, self._options)
        self._reader = threading.Thread(target=self._run, name=f"towline-backlog-{slot}", daemon=True)
        self._reader.start()

    # ---- the caller's thread ---------------------------------------------------------------------------------

    def poll(self, timeout: float) -> Piece | None:
        """See `towline.source.Stream`; None at once when all has been taken."""
        return self._handover.poll(timeout)

    def acknowledge(self, position: int) -> None:
        """See `towline.source.Stream`."""
        self._handover.acknowledge(position)

    @property
    def ready(self) -> bool:
        """See `towline.source.Stream`."""
        return self._handover.ready

    @property
    def drained(self) -> bool:
        """Whether the reader has ended without an error, and all its pieces were taken."""
        return self._handover.drained

    @property
    def idle_position(self) -> int:
        """See `towline.source.Stream`."""
        return self._handover.idle_position

    @property
    def received_position(self) -> int:
        """See `towline.source.Stream`."""
        return self._handover.received_position

    @property
    def awaited_position(self) -> int:
        """See `towline.source.Stream`."""
        return self._handover.awaited_position

    @property
    def waiting(self) -> SlotCopy | None:
        """The session, while it waits for an answer of the source's. May be asked by any thread."""
        session = self._turns.reading
        return session if session is not None and session.waiting is not None else None

    def close(self) -> None:
        """End the reader, the statement under way at the server, and the copy of the slot."""
        self._handover.close()
        self._reader.join(_CLOSE_AT_ONCE)
        if self._reader.is_alive():
            self._turns.cancel()
            self._reader.join(_CLOSE_WITHIN)
            if self._reader.is_alive():  # nobody would watch over its line any more
                self._turns.hang_up()

    # ---- the reader's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        handover = self._handover
        try:
            with suppress(Closed):
                try:
                    self._read()
                except Refused as refused:
                    self._fall_back(refused.error)
                else:
                    handover.hand_over()
                self.position = handover.told
                handover.end()
        except SourceTableChanged as error:
            handover.fail_after(error)
        except TowlineError as error:
            handover.fail(error)
        finally:  # also of a defect, which then goes on to threading.excepthook
            defect = sys.exception()
            if defect is not None:
                handover.fail(TowlineError(f"the reader of the source's backlog failed with {type(defect).__name__}"))
            self._turns.close()
            handover.release()

    def _fall_back(self, error: TowlineError) -> None:
        """Leave what follows the last whole transaction to the stream; that is not possible within one."""
        self._check_closing()
        if not self._handover.whole:
            raise error
        self._handover.hand_over()
        self.refused = error

    def _connect(self) -> SlotCopy:
        """A session with the server that is to be read."""
        self._check_closing()
        session = SlotCopy(self._dsn, slot=self._slot, application_name=self._application_name)
        try:
            found = session.identify()
            if self._server is not None:
                identity.same(self._server, found)
        except BaseException:
            session.close()
            raise
        return session

    def _read(self) -> None:
        turns, decision = self._turns, self._decision
        session = turns.open()
        self._await_release(session)
        self._advance(session, beginning=True)
        session.copy()
        restart, end = session.copied().restart, session.end()
        position = yielded = self._handover.told
        upto = decision.gulp(end, position, restart, self._yielded)
        if upto:
            turns.begin(upto)
        while upto:
            if following := decision.gulp(end, upto, restart, self._yielded):
                turns.begin_next(upto, following)
            self._gulp(session, upto)
            copied = session.copied()
            position, restart, end = max(position, copied.confirmed), copied.restart, session.end()
            self._gatherer.start_at(position)  # a record may reach beyond the end of the gulp that it was read with
            self._handover.told = max(self._handover.told, position)
            self._handover.offer(position)
            decision.gulped()
            self.gulps += 1
            self._advance(session)
            if turns.next is not None:
                upto, session = following, turns.swap()
            elif upto := decision.gulp(end, position, restart, self._yielded):
                turns.begin(upto)
            if self._yielded:
                yielded = position
            elif upto and self._streamed and decision.barren(time.monotonic(), position - yielded):
                self.left = True
                return

    def _await_release(self, session: SlotCopy) -> None:
        """The walsender that was reading may not have ended yet."""
        began, asked = time.monotonic(), False
        while pid := session.slot().active_pid:
            waited = time.monotonic() - began
            if waited > ENDED_WITHIN and not asked:
                session.end_walsender()
                asked = True
            if waited > ENDED_WITHIN + RELEASED_WITHIN:
                raise Refused(SlotInUse(f"the process {pid} is streaming from the replication slot {self._slot}"))
            self._handover.sleep(0.01)
            self._check_closing()

    def _advance(self, session: SlotCopy, *, beginning: bool = False) -> None:
        """Confirm the slot up to what was acknowledged, when it is time, unless somebody has it; that is told at the
        switch."""
        self._check_closing()
        state, acknowledged = session.slot(), self._handover.acknowledged
        self._check(state, acknowledged)
        if state.failover and session.standbys_first():
            raise Refused(NotSetUp("the slot is for failover, and synchronized_standby_slots is set"))
        if session.idle_slots_end():
            raise Refused(NotSetUp("the slot idles meanwhile, and idle_replication_slot_timeout is set"))
        due = self._decision.confirm(acknowledged, state.confirmed, beginning=beginning)
        if due and not state.active_pid:
            try:
                session.advance(acknowledged)
            except Refused as refused:
                if not isinstance(refused.error, SlotInUse):
                    raise

    def _check(self, state: SlotState, acknowledged: int) -> None:
        refused = slot_checks.problem(self._slot, state, plugin=self._plugin, database=state.database)
        if refused is not None:
            raise refused
        if state.confirmed > acknowledged:
            raise SlotAhead(
                f"slot {self._slot} was confirmed up to {format_lsn(state.confirmed)}, "
                f"what is durable ends at {format_lsn(acknowledged)}"
            )

    def _gulp(self, session: SlotCopy, upto: int) -> None:
        """Read what the statement yields."""
        self._yielded = 0
        rows = CopyRows()
        nap = SHORTEST_NAP
        while not session.done:
            self._await_room()
            messages, events = session.receive(BURST)
            if messages:
                self._check_notices(session)
                self._take(rows.of(messages))
                self._handover.offer(upto)
                session.heard()
                time.sleep(nap)
                nap = min(nap * 2, LONGEST_NAP)
            elif not session.done:
                nap = SHORTEST_NAP
                session.waits()
                self._handover.sleep(1.0, session.socket, events)
        self._check_notices(session)
        session.heard()
        if not rows.ended or self._gatherer.open is not None:
            raise StreamMalformed("the statement that reads the log has ended inside a transaction or a row")

    def _take(self, block: Block) -> None:
        if not len(block):
            return
        self._yielded += block.size
        self._gatherer.received = time.time()
        first = self._decoder.take(block)
        while first < len(block):
            self._await_room()
            first = self._decoder.take(block, first)

    def _check_notices(self, session: SlotCopy) -> None:
        """They come before the rows, and do not say where in the gulp: the stream comes to the place."""
        try:
            session.notices.check(self._routed)
        except (SourceTableChanged, NotSetUp) as error:
            raise Refused(error) from error

    def _await_room(self) -> None:
        """Until not more is gathered than a piece holds. Raises Closed when nobody wants it any more."""
        began = time.monotonic()
        while True:
            self._check_closing()
            if self._handover.room():
                return
            if time.monotonic() - began > PATIENCE and self._handover.whole:
                raise Refused(SourceUnavailable(f"nothing was taken of it for {PATIENCE:.0f} seconds"))
            self._handover.sleep(min(1.0, PATIENCE))

    def _check_closing(self) -> None:
        if self._handover.closing:
            raise Closed
