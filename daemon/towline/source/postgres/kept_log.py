"""Log that the source keeps so that it can be read a second time: see `towline.operations_verifier`.

What keeps it is a temporary copy of the pipeline's slot, which ends with its session. The slot itself is left alone.
All that is wanted is decoded by one statement at the end, as a gulp of the backlog is
(`towline.source.postgres.backlog`).
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from towline import catch_up
from towline.change import Piece, Relation
from towline.errors import NotSetUp, StreamMalformed
from towline.source import Identity
from towline.source.postgres import decoding, identity, slot_checks
from towline.source.postgres.batches import RowBatch
from towline.source.postgres.copy_rows import CopyRows
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.handover import BURST
from towline.source.postgres.routed import Resolve, Routed
from towline.source.postgres.slot_copy import Refused, SlotCopy
from towline.source.postgres.tuple_batch import TupleBatch

#: Of a piece, changes and bytes: it is only added up.
MAX_ROWS, MAX_BYTES = 50_000, 8 << 20


class PostgresKeptLog:
    """Implements `towline.source.KeptLog`, from where the slot is confirmed now; that is never beyond a checkpoint.

    ``server``: the one that is to be read. The constructor connects and raises what keeps the log from being kept:
    another server, a standby, one that is too old (see `towline.catch_up.SINCE`), a slot that cannot be read or copied.
    """

    def __init__(
        self,
        dsn: str,
        *,
        slot: str,
        plugin: str,
        publication: str,
        relations: Sequence[Relation],
        resolve: Resolve,
        server: Identity,
        application_name: str,
    ) -> None:
        self._slot = slot
        self._plugin = plugin
        self._publication = publication
        self._routed = Routed(relations, resolve)
        with _refusals():
            self._session = SlotCopy(dsn, slot=slot, application_name=application_name, purpose="verify")
        try:
            with _refusals():
                self._keep(server)
        except BaseException:
            self._session.close()
            raise

    def _keep(self, server: Identity) -> None:
        session = self._session
        found = session.identify()
        identity.same(server, found)
        if found.in_recovery:
            raise NotSetUp("the source is a standby")
        if not catch_up.possible(found.server_version):
            raise NotSetUp(f"with the source's version, {found.server_version}, a copy of a slot is not safe")
        refused = slot_checks.problem(self._slot, session.slot(), plugin=self._plugin, database=found.database)
        if refused is not None:
            raise refused
        session.copy()

    def held(self) -> int:
        """See the contract."""
        with _refusals():
            return self._session.end() - self._session.copied().restart

    def pieces(self, after: int, upto: int) -> Iterator[Piece]:
        """See the contract. Raises StreamMalformed, and SourceTableChanged where a table was changed."""
        bounds = decoding.Bounds(after, MAX_ROWS, MAX_BYTES)
        with _refusals():
            if self._plugin == "pgoutput":
                opened = decoding.of_pgoutput(self._routed, self._publication, bounds)
            else:
                partitioned = self._session.any_partitioned([r.table.oid for r in self._routed.relations])
                opened = decoding.of_wal2json(self._routed, bounds, partitioned=partitioned)
            for piece in self._read(opened, upto):
                # The statement ends with the first record that ends at the position or, where that is behind the header
                # of an empty page, beyond it. Applied is what has its commit record before: see `Gatherer.begin`.
                beyond = next((each.first for each in piece.transactions if each.lsn >= upto), None)
                yield piece if beyond is None else piece.between(0, beyond)

    def _read(self, opened: decoding.Decoding, upto: int) -> Iterator[Piece]:
        session, decoder, gatherer = self._session, opened.decoder, opened.gatherer
        session.begin(upto, opened.options)
        rows = CopyRows()
        while not session.done:
            messages, events = session.receive(BURST)
            session.notices.check(self._routed)
            if not messages and not session.done:
                _await(session.socket, events)
            block, first = rows.of(messages), 0
            while first < len(block):
                first = decoder.take(block, first)
                yield from _cut(gatherer)
        session.notices.check(self._routed)
        if not rows.ended or gatherer.open is not None:
            raise StreamMalformed("the statement that reads the log has ended inside a transaction or a row")
        if (piece := gatherer.cut()) is not None:
            yield piece

    def close(self) -> None:
        """See the contract."""
        if self._session.waiting is not None:  # another thread waits for an answer
            self._session.hang_up()
            return
        if not self._session.done:
            self._session.cancel()
        self._session.close()


def _cut(gatherer: Gatherer[TupleBatch] | Gatherer[RowBatch]) -> Iterator[Piece]:
    """The pieces that are complete."""
    while gatherer.ready or gatherer.full:
        yield gatherer.ready.popleft() if gatherer.ready else gatherer.cut_full()


def _await(socket: int, events: int) -> None:
    poll = select.poll()
    poll.register(socket, events)
    poll.poll()


@contextmanager
def _refusals() -> Iterator[None]:
    """There is no other way to have what the server refuses."""
    try:
        yield
    except Refused as refused:
        raise refused.error from refused
