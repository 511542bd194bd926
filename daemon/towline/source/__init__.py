"""The contract of a source: where changes come from.

A source has two sides, each with its own connection, so that one can wait while the other works:

* a *stream*, read by one thread, of the log from a position on;
* *tables*: queries on the present state, for snapshots, verification and re-reading.

**Order.** Pieces come in commit order; transactions are never interleaved. A piece that ends inside a transaction
(``end is None``) is followed by the rest of it. Transactions that end at or before the start position are left out.

**Durability.** A source forgets nothing after the position that was last acknowledged. The pipeline acknowledges
only what a target has committed. Opening a stream again at that position yields what followed it, exactly.

**Failure.** A lost connection is an error (`SourceUnavailable`), never repaired inside: the supervisor
restarts the pipeline from the durable checkpoint. After an error an object is only good for ``close``.

**Concurrency.** `Stream.poll` and `Stream.acknowledge` may be called from one thread while the source's own reader
thread receives; keepalives are answered by the reader, with the acknowledged position, however long the caller takes.

**Shutdown.** ``close`` returns within a second or two, whatever the other end does; it may be called twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from towline.change import Chunk, Cursor, Piece, Relation, Visibility
from towline.frame import Frame
from towline.key_sum import KeySum
from towline_transforms.schema import Catalog, TableName


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that `plan` shows and `apply` does, on one side. ``sql`` can be read and run by hand."""

    side: str  # 'source' or 'target'
    title: str
    sql: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What `check` found: an error (nothing will work) or a warning. ``remedy``: a statement or a sentence."""

    code: str
    fatal: bool
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database this is: a checkpoint belongs to exactly one. A standby is the same as its primary.

    ``started``: when the server was started, in microseconds; it tells two servers apart that are copies of each other.
    """

    system_identifier: str
    timeline: int
    database: str
    server_version: int
    in_recovery: bool = field(default=False, compare=False)
    started: int = field(default=0, compare=False)

    def same_server(self, other: Identity) -> bool:
        """Whether it is the same, neither restarted nor promoted since. A standby's timeline may be out of date."""
        return (
            self.system_identifier == other.system_identifier
            and self.started == other.started
            and self.database == other.database
            and self.in_recovery == other.in_recovery
            and (self.timeline == other.timeline or self.in_recovery)
        )


@dataclass(frozen=True, slots=True)
class SlotState:
    """The slot as the source sees it. Positions are 0 where the server says NULL.

    ``invalidation``: pg_replication_slots.invalidation_reason, or ``conflict`` where the server only has that word.
    ``failover``: standbys have a copy of it; ``synchronized``: it is such a copy, and the server still a standby.
    ``catching_up``: a daemon reads its backlog through a temporary copy of it.
    """

    exists: bool
    confirmed: int = 0
    restart: int = 0
    active_pid: int = 0
    retained_bytes: int = 0
    wal_status: str = ""
    plugin: str = ""
    database: str = ""
    logical: bool = True
    invalidation: str = ""
    failover: bool = False
    synchronized: bool = False
    catching_up: bool = False


@dataclass(frozen=True, slots=True)
class LargeTransactions:
    """Those that outgrew the source's memory while it decoded the log for the slot, since its statistics began.

    ``asked``: whether who streams from the slot has asked for them while they are under way; None when nobody streams
    from it, or the server does not say. A transaction may be among the streamed and among the spilled.
    """

    streamed: int = 0
    streamed_bytes: int = 0
    spilled: int = 0
    spilled_bytes: int = 0
    asked: bool | None = None


@dataclass(frozen=True, slots=True)
class KeyCount:
    """The keys of a table in one source snapshot. ``keys``: None when the source cannot tell their sum.

    ``high``: a position of the source's log before which all ends that the snapshot sees.
    """

    keys: KeySum | None
    visibility: Visibility
    high: int


class Stream(Protocol):
    """The log of the source, from a position on."""

    def poll(self, timeout: float) -> Piece | None:
        """The next piece, or None when none came within ``timeout`` seconds.

        While none is taken, the source gathers more transactions into the next piece, up to its bounds; beyond them
        it stops reading. Raises the reader's error (SourceUnavailable, StreamMalformed, SourceTableChanged, …).
        """

    @property
    def ready(self) -> bool:
        """Whether a piece waits, which `poll` would return at once."""

    def acknowledge(self, position: int) -> None:
        """Tell the source that everything before ``position`` is durable at the target. Never goes back."""

    @property
    def idle_position(self) -> int:
        """Up to where the source has sent all there is, when nothing of it waits to be polled; else 0.

        It moves on while other tables or databases are written to, so that an idle pipeline can advance its checkpoint.
        """

    @property
    def received_position(self) -> int:
        """The newest log position that the source has told of, applied or not."""

    @property
    def awaited_position(self) -> int:
        """A position that the source would like to have acknowledged soon: it may wait for that in order to stop."""

    def close(self) -> None:
        """End the connection and the reader thread."""


class Tables(Protocol):
    """Queries on the source's present state. One thread; every call may raise SourceUnavailable."""

    def identity(self) -> Identity:
        """Which server and database this is."""

    def slot(self) -> SlotState:
        """The slot as it is now."""

    def position(self) -> int:
        """The end of the log now, as far as it is flushed: every commit that cannot be lost ends at or before it."""

    def visibility(self) -> Visibility:
        """A snapshot taken now."""

    def horizon(self) -> Visibility:
        """A snapshot taken now, of which ``xmax`` is beyond every transaction that runs."""

    def footprint(self, oids: Sequence[int], publication: str) -> str:
        """A text that is another one when the tables of those OIDs, or what is published of them, have changed."""

    def describe(self, names: Sequence[TableName]) -> Catalog:
        """The tables of those names; a name ``*`` stands for all ordinary and partitioned tables of the schema."""

    def chunk(self, relation: Relation, after: Cursor | None, limit: int) -> Chunk:
        """Up to ``limit`` rows that follow ``after`` in the order of the relation's key; None: from the first."""

    def between(self, relation: Relation, after: Cursor | None, upto: Cursor | None) -> Chunk:
        """All rows after ``after`` and up to and with ``upto``, as they are now (None: no bound)."""

    def fetch(self, relation: Relation, keys: Frame) -> Chunk:
        """The present rows of those keys (framed key columns, in the identity's order); absent ones are left out."""

    def count_keys(self, relation: Relation, began: Callable[[Visibility], None]) -> KeyCount:
        """The sum over all keys of the table, in one snapshot: a scan. ``began`` is told the snapshot before it."""

    def at_work(self, pid: int, started: int) -> bool:
        """Whether a session of ours runs a statement and does not wait for its client. ``started``: microseconds."""

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """End the connection when the block takes longer than that: what is asked in it is answered at once."""

    def close(self) -> None:
        """End the connection."""


class KeptLog(Protocol):
    """The log from some position on, which the source keeps so that it can be read a second time.

    It ends with its connection. Not for two threads at once. After an error it is only good for ``close``.
    """

    def held(self) -> int:
        """How many bytes of log the source holds back for it by now."""

    def pieces(self, after: int, upto: int) -> Iterator[Piece]:
        """The changes of the transactions that end after one position and not after the other; once only.

        Both are ends of what was read from the log before. Truncations may be left out.
        """

    def close(self) -> None:
        """End the connection, and have the source keep nothing for it. May be called twice, and from another thread to
        end a call under way.
        """
