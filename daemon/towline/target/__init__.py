"""The contract of a target: where rows are made durable.

**One transaction.** ``begin``, any number of ``apply`` and ``load``, then ``commit`` with the position reached: rows,
ledger and checkpoint become durable together or not at all. Nothing is visible to others before.

**Durability.** A synchronous commit is durable when it returns, and so is all that was committed before it, by whomever
(``open`` and ``set_states`` commit so). A crash may undo asynchronous ones, the last ones first and each as a whole;
then the session is lost, too, so that nobody goes on from what was undone.

**Idempotence.** Applying what was applied before leaves the same rows: the newest version of each key wins, deletes of
absent rows do nothing.

**One writer.** ``acquire`` takes the pipeline's session lock; ``open`` raises the epoch in the checkpoint. Each
``begin`` locks the checkpoint row and each ``commit`` names its epoch: whoever has an older one gets `Fenced` and
leaves no trace.

**Failure.** After an error from ``apply``, ``load`` or ``commit`` the transaction is rolled back, by ``rollback`` or
by the server. `TargetUnavailable` and `TargetConflict` say nothing about the rows: the same pieces may be applied
again. When the connection is lost during ``commit``, whether it took place is unknown: the checkpoint tells.

**Concurrency.** One thread. **Shutdown.** ``close`` may be called twice, and from another thread to end a call under
way.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from towline.change import Chunk, Cursor, Piece, Relation
from towline.frame import Frame
from towline.source import Identity
from towline_transforms.route import Route

#: Reads the present rows of some keys from the source (`Tables.fetch`), for values that the log did not carry.
Reread = Callable[[Relation, Frame], Chunk]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The committed state of a pipeline. ``commit_time`` is of the last source transaction applied.

    ``publication``: the OID of the one that the slot can read; None when it is not known, or none is read. ``ahead``:
    rows were read from the source's tables as of up to that position, which may be beyond the checkpoint's.
    """

    position: int
    epoch: int
    identity: Identity
    slot: str
    plugin: str
    commit_time: datetime | None
    updated_at: datetime
    created_at: datetime | None = None
    publication: int | None = None
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class RouteState:
    """How far a route's snapshot is: ``pending`` (changes are skipped), ``copying``, ``streaming``.

    ``cursor``: the source key up to which rows were copied. ``estimate``: rows that the table had when copying began.
    ``sweep``: it is a copy over rows that are there already, and those that the source no longer has are to be removed
    after it; writing a state leaves that as it is.
    """

    route: str
    state: str
    cursor: Cursor | None = None
    copied: int = 0
    estimate: int = 0
    sweep: bool = False


@dataclass(slots=True)
class Counts:
    """What became of a route's rows; the ledger demands seen = the sum of the others.

    A change of key counts as two rows seen: the old one deleted, the new one upserted.
    """

    seen: int = 0
    upserted: int = 0
    deleted: int = 0
    superseded: int = 0
    filtered: int = 0
    quarantined: int = 0

    def add(self, other: Counts) -> None:
        """Add another's figures to this one's."""
        self.seen += other.seen
        self.upserted += other.upserted
        self.deleted += other.deleted
        self.superseded += other.superseded
        self.filtered += other.filtered
        self.quarantined += other.quarantined

    @property
    def accounted(self) -> int:
        """The rows of which it is known what became of them."""
        return self.upserted + self.deleted + self.superseded + self.filtered + self.quarantined

    @property
    def balanced(self) -> bool:
        """Whether every row seen is accounted for."""
        return self.seen == self.accounted


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLoad:
    """A chunk for one route, to be committed with the stream up to ``chunk.high``; ``state``: the route's after it."""

    route: Route
    chunk: Chunk
    state: RouteState


@dataclass(frozen=True, slots=True)
class LedgerRange:
    """One row of a route's ledger. ``begin``: the position that its first batch began at.

    ``operations``: the sum over them, of keys of that ``form`` (see `towline.key_sum`); None when it is not known.
    """

    hour: datetime
    begin: int
    form: str | None
    seen: int
    operations: int | None


@dataclass(frozen=True, slots=True)
class NotedRoute:
    """What the ledger has of a route. ``version``: of its state, changes whenever something of it is copied."""

    state: str
    version: str
    ranges: tuple[LedgerRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Noted:
    """The checkpoint's position, and what the ledger has noted up to there, by route."""

    position: int
    routes: Mapping[str, NotedRoute]


class Checksum(enum.StrEnum):
    """What is known of a route's running checksum; it differs when the source's keys were found to have another."""

    UNKNOWN = "unknown"
    KNOWN = "known"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Committed:
    """What was committed: by route, for metrics.

    ``quarantine``: rows that are set aside and open. ``checksums``: of routes that it tells something new of.
    """

    counts: Mapping[str, Counts] = field(default_factory=dict)
    seconds: float = 0.0
    quarantine: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, Checksum] = field(default_factory=dict)


class Target(Protocol):
    """The writing side of a target, for one pipeline."""

    def acquire(self, timeout: float) -> bool:
        """Try for the session lock, for up to ``timeout`` seconds. False: another daemon has it."""

    def open(self) -> Checkpoint:
        """Raise the epoch and read the checkpoint, which is durable. Raises NotSetUp when `apply` has not run."""

    def states(self) -> Mapping[str, RouteState]:
        """The state of each route that the target knows."""

    def begin(self) -> None:
        """Start the transaction of a batch.

        That this daemon may write is sure only after the first `apply`, `load` or `commit`: these raise Fenced, and
        TargetConflict when another one keeps the checkpoint for too long.
        """

    def apply(self, piece: Piece, active: AbstractSet[str], reread: Reread, prior: ChunkLoad | None = None) -> None:
        """Apply a piece to the routes named in ``active``; others skip it (their snapshot has not begun).

        ``prior``: a chunk that will be loaded in this transaction; its rows count as older versions of what the
        piece changes. Raises RowRefused when one row cannot be applied even alone and in order.
        """

    def load(self, load: ChunkLoad) -> None:
        """Load a chunk's rows, but for the keys that were applied in this transaction (those are newer)."""

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        """Write ledger and checkpoint and commit. Raises Fenced, and LedgerImbalance before anything is committed."""

    def due(self, position: int) -> bool:
        """Whether a commit at that position has something to record, though nothing was applied."""

    def rollback(self) -> None:
        """Abandon the transaction, if there is one."""

    def heartbeat(self) -> None:
        """Keep the session alive while there is nothing to write; in a transaction raises Fenced, too."""

    def set_states(self, states: Sequence[RouteState]) -> None:
        """Record route states in a transaction of its own (fenced like any other)."""

    def close(self) -> None:
        """End the connection; the session lock goes with it."""


class Ledger(Protocol):
    """The reading side of a pipeline's ledger."""

    def noted(self, since: Noted | None = None) -> Noted:
        """What it says now, in one snapshot: of each route the latest range.

        ``since``: what was noted before; then all ranges from that latest one on, and those written to since.
        """
