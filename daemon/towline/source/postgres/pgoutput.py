"""pgoutput, the built-in output plugin, protocol version 1: messages in, changes gathered.

    session     :=  ( transaction | message )*
    transaction :=  BEGIN ( ORIGIN | TYPE | RELATION | INSERT | UPDATE | DELETE | TRUNCATE | message )* COMMIT
    message     :=  MESSAGE            (pg_logical_emit_message; not asked for, skipped)

Whole transactions come in commit order, never interleaved (version 1 has neither streaming of transactions under way,
for which see `streamed`, nor two-phase commit). A RELATION tells of a table's columns before its first change in the
session and again when it may have changed; INSERT, UPDATE and DELETE name the table by OID only, and their tuples have
exactly those columns.

Of a change only its kind and its table are looked at here: what costs time for every row is done in `tuples`, for all
rows at once. A table that no longer has what its routes need is an error only when a change of it comes.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from towline.change import Format
from towline.errors import SourceTableChanged, StreamMalformed
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.layout import Layout, layout_of
from towline.source.postgres.pgoutput_messages import Begin, Commit, RelationSent, Skipped, Truncate, parse
from towline.source.postgres.routed import NEWEST, Routed, lacking, whole_tables
from towline.source.postgres.together import UNSURE, Together
from towline.source.postgres.tuple_batch import TupleBatch

CHANGES = frozenset((b"I", b"U", b"D"))


def options(publication: str, format_: Format, *, streaming: bool = False) -> dict[str, str]:
    """What to ask of the plugin. ``binary`` and ``streaming`` (see `streamed`) are known to servers from 14 on."""
    asked = {"proto_version": "1", "publication_names": '"' + publication.replace('"', '""') + '"'}
    if streaming:
        asked |= {"proto_version": "2", "streaming": "on"}
    if format_ is Format.BINARY:
        asked["binary"] = "true"
    return asked


#: What is known of tables by OID: the layout; None when the table is not wanted; why its changes cannot be taken.
Layouts = dict[bytes, Layout | SourceTableChanged | None]


class Decoder:
    """Takes messages one by one and adds what is wanted to the gatherer."""

    def __init__(self, routed: Routed, gatherer: Gatherer[TupleBatch]) -> None:
        self._routed = routed
        self._gatherer = gatherer
        self._layouts: Layouts = {}
        #: By OID: the columns that were sent before, by their places. What was there once and is absent, was dropped.
        self._seen: dict[bytes, frozenset[int]] = {}
        #: By OID: what was sent of it last.
        self._sent: dict[bytes, RelationSent] = {}
        self._eras = list(routed.eras)
        self._together = Together(gatherer, known=self._surely, settled=self._settled, feed=self.feed)

    def take(self, block: Block, first: int = 0) -> int:
        """Take the messages of a block from the number ``first`` on, until there are no more or a piece is full.

        Returns the number of the one to go on with. Raises as `feed` does.
        """
        return self._together.take(block, first)

    def _surely(self, oid: bytes) -> object:
        known = self._layouts.get(oid, UNSURE)
        return UNSURE if isinstance(known, SourceTableChanged) else known

    def _settled(self, lsn: int) -> bool:
        return not self._eras or lsn < self._eras[0]

    def changes(self, messages: Iterator[bytes], at: int = 0) -> bytes | None:
        """Take messages as long as they are changes of tables that were looked up, and a piece has room for them.

        Returns the first that is another one, which is for `feed`; None when there are no more, or no more room.
        """
        return self._changes(messages, at, 0)

    def feed(self, message: bytes, at: int = 0) -> None:
        """Take the message that begins at offset ``at``, and ends with the bytes.

        Raises StreamMalformed and SourceTableChanged. The tuples of changes are only looked at when a piece is cut.
        """
        if message[at : at + 1] in CHANGES:
            self._change(message, at)
        else:
            self._take(message, at)

    def _changes(self, messages: Iterator[bytes], at: int, skip: int) -> bytes | None:
        """As `changes`; ``skip``: bytes between the kind of a change and the OID of its table.

        All that is done for every single change in the reader is here, and nothing else should be.
        """
        gatherer = self._gatherer
        find, end = gatherer.active.get, at + 5 + skip
        order, size = gatherer.order, gatherer.size
        max_order, max_size = gatherer.max_rows, gatherer.max_bytes
        try:
            for message in messages:
                batch = find(message[at:end])
                if batch is None:
                    return message
                batch.messages.append(message)
                batch.orders.append(order)
                order += 1
                size += len(message)
                if order >= max_order or size >= max_size:
                    break
            return None
        finally:
            gatherer.order, gatherer.size = order, size

    def _change(self, message: bytes, at: int, skip: int = 0) -> None:
        """Take a change whose table may not have been looked up since the transaction began or a piece was cut."""
        gatherer = self._gatherer
        known = self._known(message[at + 1 + skip : at + 5 + skip])
        if known is None or gatherer.skipping:
            return
        batch = gatherer.batch((known, at, skip), lambda: TupleBatch(known, at, skip))
        if batch is not None:
            gatherer.active[message[at : at + 5 + skip]] = batch
            batch.messages.append(message)
            batch.orders.append(gatherer.order)
            gatherer.order += 1
            gatherer.size += len(message)

    def _take(self, message: bytes, at: int) -> None:
        """Take a message that is not a change."""
        self._control(parse(message, at))

    def _known(self, oid: bytes) -> Layout | None:
        if self._gatherer.open is None:
            raise StreamMalformed("pgoutput: a change outside of transactions")
        try:
            known = self._layouts[oid]
        except KeyError:
            raise StreamMalformed(f"pgoutput: a change of a table that was not described (OID {oid.hex()})") from None
        if isinstance(known, SourceTableChanged):
            if self._gatherer.skipping:
                return None
            raise known
        return known

    def _control(self, parsed: Begin | Commit | RelationSent | Truncate | Skipped) -> None:
        if isinstance(parsed, Begin):
            self._begin(parsed.xid, parsed.lsn, parsed.commit_time)
        elif isinstance(parsed, Commit):
            self._gatherer.commit(parsed.lsn, parsed.end)
        elif isinstance(parsed, RelationSent):
            self._describe(parsed)
        elif isinstance(parsed, Truncate):
            self._truncate(parsed)

    def _begin(self, xid: int, lsn: int, commit_time: datetime) -> None:
        """A transaction begins. From some on, something else is expected of tables that were described before."""
        self._gatherer.begin(xid, lsn, commit_time)
        if self._eras and lsn >= self._eras[0]:
            self._eras = [position for position in self._eras if position > lsn]
            for sent in list(self._sent.values()):
                self._lay_out(sent)

    def _describe(self, sent: RelationSent) -> None:
        self._sent[sent.oid] = sent
        self._lay_out(sent)

    def _lay_out(self, sent: RelationSent) -> None:
        lsn = self._gatherer.open[1] if self._gatherer.open is not None else NEWEST
        try:
            relation = self._routed.identified(int.from_bytes(sent.oid, "big"), sent.name, lsn)
            if relation is None:
                self._layouts[sent.oid] = None
                self._gatherer.forget()
                return
            new = layout_of(sent, relation, lsn)
            seen = self._seen.get(sent.oid, frozenset()) if not relation.described else frozenset()
            for place in new.absent:
                if place in seen:
                    raise lacking(sent.name, relation.columns[place].name)
            self._seen[sent.oid] = seen.union(new.places)
        except SourceTableChanged as change:
            self._layouts[sent.oid] = change
            self._gatherer.forget()
            return
        known = self._layouts.get(sent.oid)
        if not (isinstance(known, Layout) and known.same(new)):
            self._layouts[sent.oid] = new
            self._gatherer.forget()

    def _truncate(self, truncate: Truncate) -> None:
        layouts = [layout for oid in truncate.oids if (layout := self._known(oid)) is not None]
        lsn = self._gatherer.open[1] if self._gatherer.open is not None else NEWEST
        self._gatherer.truncate(whole_tables([(layout.sent, layout.relation) for layout in layouts], lsn))
