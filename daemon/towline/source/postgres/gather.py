"""Changes gathered into pieces.

A decoder tells of the beginnings and ends of transactions and adds changes; the reader decides when to cut. What is
gathered between two cuts is kept by relation, each change with its order number in the piece to come, so that a cut
at the last transaction boundary only has to find that number in each relation's list. Rows are framed at the cut.

    begin ── batch/add … ── commit(end)         a transaction is listed once it has a change that is wanted
             truncate                           what came before goes into a piece of its own

Not for several threads at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from towline.change import Piece, Relation, RowSet, Transaction
from towline.errors import StreamMalformed
from towline.key_sum import added_up
from towline.source.postgres.batches import Batch, in_order, join

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any

#: More than a piece can have.
UNBOUNDED = 1 << 62

B = TypeVar("B", bound=Batch)


class Boundary(NamedTuple):
    """What had been gathered at the last commit since the last cut. (A tuple: there is one for each transaction.)"""

    order: int
    size: int
    transactions: int
    end: int


class Many(NamedTuple):
    """What `Gatherer.extend` takes. ``transactions``: those to be listed, with order numbers as they are in the piece.

    ``changes`` and ``size``: of all that was added. ``boundary``: of it, what was there at the last commit, if there
    was one. ``open``: the transaction that is under way after it (xid, start of its commit record, its time), and
    whether it is ``listed``.
    """

    transactions: Sequence[Transaction]
    changes: int
    size: int
    boundary: Boundary | None
    open: tuple[int, int, datetime] | None
    listed: bool


class Gatherer(Generic[B]):
    """What was decoded since the last cut. ``order`` and ``size`` are added to by whoever adds changes to a batch.

    ``active``: batches by whatever the decoder looks them up with; the decoder adds to it, once it has asked for the
    batch. There are none until the transaction under way has a change that is wanted; then those of the transaction
    before are there again, since most change the same tables. ``max_rows`` and ``max_bytes``: how much a piece may
    hold: what it was made with or, while later changes make half of a piece void, twice as much, since little of it is
    left for the target.
    """

    def __init__(self, start: int, max_rows: int = UNBOUNDED, max_bytes: int = UNBOUNDED) -> None:
        self.max_rows = self._rows = max_rows
        self.max_bytes = self._bytes = max_bytes
        self.order = 0
        self.size = 0
        self.received = 0.0  # when the last bytes came (`time.time`), for the pieces
        self.active: dict[object, B] = {}
        self._resting: dict[object, B] = {}  # what was active, until the next transaction is listed
        self.ready: deque[Piece] = deque()
        self.open: tuple[int, int, datetime] | None = None  # xid, start of the commit record, its time
        self.skipping = False  # the transaction under way ended at or before the start position
        self._start = start
        self._listed = False
        self._batches: dict[object, B] = {}
        self._transactions: list[Transaction] = []
        self._truncated: list[Relation] = []
        self._boundary: Boundary | None = None

    # ---- for decoders ----------------------------------------------------------------------------------------

    def begin(self, xid: int, lsn: int, commit_time: datetime) -> None:
        """A transaction begins. It is skipped when its commit record starts before the start position."""
        if self.open is not None:
            raise StreamMalformed("a transaction begins inside another one")
        self.open = (xid, lsn, commit_time)
        self.skipping = lsn < self._start
        self._rest()

    def commit(self, lsn: int, end: int) -> None:
        """It ends; its commit record spans ``lsn`` to ``end``."""
        if self.open is None or self.open[1] != lsn or end <= lsn:
            raise StreamMalformed("a commit does not belong to the transaction before it")
        self.open = None
        self._rest()
        if not self.skipping:
            self._boundary = Boundary(self.order, self.size, len(self._transactions), end)

    def _rest(self) -> None:
        """No transaction is listed."""
        self._listed = False
        if self.active:
            self._resting, self.active = self.active, {}

    def forget(self) -> None:
        """Batches are to be asked for again: what is known of a table has changed."""
        self._resting, self.active = {}, {}

    def batch(self, key: object, make: Callable[[], B]) -> B | None:
        """The batch to add a change of the transaction under way to; ``key`` tells batches apart within a piece.

        None when the transaction was applied already. Raises StreamMalformed outside of transactions.
        """
        if not self._list():
            return None
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = make()
        return batch

    def gathered(self, key: object, make: Callable[[], B]) -> B:
        """The batch to add changes to whose transactions are told of with `extend`."""
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = make()
        return batch

    @property
    def start(self) -> int:
        """Transactions whose commit record starts before this are skipped."""
        return self._start

    @property
    def listed(self) -> bool:
        """Whether the transaction under way is listed: a change of it was wanted."""
        return self._listed

    def extend(self, many: Many) -> None:
        """Many transactions, or parts of them, at once, whose changes were put into batches (`gathered`)."""
        if many.boundary is not None:
            order, size, transactions, end = many.boundary
            listed = len(self._transactions) + transactions
            self._boundary = Boundary(self.order + order, self.size + size, listed, end)
        self._transactions += many.transactions
        self.order += many.changes
        self.size += many.size
        self.open, self._listed = many.open, many.listed
        self.skipping = False
        self.forget()

    def truncate(self, relations: Sequence[Relation]) -> None:
        """The transaction under way empties relations: what was gathered before goes into pieces of its own."""
        if self.open is None:
            raise StreamMalformed("a change outside of transactions")
        if self.skipping or not relations:
            return
        if self._transactions or self._truncated:
            if self._boundary is not None and self._boundary.transactions:
                self.ready.append(self._cut_boundary())
            if self.order:
                self.ready.append(self._cut_inside())
        self._boundary = None  # a position alone: the commit of this transaction will tell of a later one
        self._list()
        self._truncated += [
            relation for relation in relations if not any(relation is known for known in self._truncated)
        ]

    def _list(self) -> bool:
        if self.open is None:
            raise StreamMalformed("a change outside of transactions")
        if self.skipping:
            return False
        if not self._listed:
            self._transactions.append(Transaction(*self.open, first=self.order))
            self._listed = True
            self.active, self._resting = self._resting, {}
        return True

    # ---- for the reader --------------------------------------------------------------------------------------

    def start_at(self, position: int) -> None:
        """Skip transactions from here on whose commit record starts before the position."""
        self._start = max(self._start, position)

    @property
    def full(self) -> bool:
        """Whether as much was gathered as a piece may hold."""
        return self.order >= self.max_rows or self.size >= self.max_bytes

    def room(self, sizes: Ints) -> int:
        """How many of the changes whose sizes add up to these there is room for, with the one that fills the piece.

        Not to be asked when it is `full`, as it may be after a cut: what is left may be more than the next piece holds.
        """
        assert not self.full
        return min(self.max_rows - self.order, 1 + int(np.searchsorted(sizes, self.max_bytes - self.size)))

    @property
    def at_boundary(self) -> bool:
        """Whether there is something to cut at a transaction boundary."""
        return self._boundary is not None

    @property
    def empty(self) -> bool:
        """Whether everything that was decoded has been cut, and no transaction is under way."""
        return self.open is None and self._boundary is None and not self._batches and not self._truncated

    def cut(self) -> Piece | None:
        """A piece that ends at the last transaction boundary; None when none was passed since the last cut."""
        return self._cut_boundary() if self._boundary is not None else None

    def cut_full(self) -> Piece:
        """A piece of as much as there is, up to a boundary if there are changes before it; else it ends inside."""
        if self._boundary is not None and self._boundary.transactions:
            return self._cut_boundary()
        self._boundary = None
        return self._cut_inside()

    def _cut_boundary(self) -> Piece:
        boundary = cast(Boundary, self._boundary)
        heads: list[B] = []
        rest: dict[object, B] = {}
        for key, batch in self._batches.items():
            count = batch.before(boundary.order)
            if count == len(batch):
                heads.append(batch)
                continue
            if count:
                heads.append(batch.split(count))
            batch.shift(boundary.order)
            rest[key] = batch
        listed = self._transactions[: boundary.transactions]
        piece = self._piece(heads, listed, boundary.end)
        self._batches = rest
        self._transactions = [
            transaction._replace(first=transaction.first - boundary.order)
            for transaction in self._transactions[boundary.transactions :]
        ]
        self.order -= boundary.order
        self.size -= boundary.size
        return piece

    def _cut_inside(self) -> Piece:
        piece = self._piece(list(self._batches.values()), self._transactions, None)
        self._batches = {}
        self._transactions = [self._transactions[-1]._replace(first=0)] if self._listed else []
        self.order = self.size = 0
        return piece

    def _piece(self, batches: Sequence[B], transactions: Sequence[Transaction], end: int | None) -> Piece:
        rowsets: dict[int, list[RowSet]] = {}  # by the identity of the relation, which is slow to hash
        for batch in batches:
            rowsets.setdefault(id(batch.relation), []).append(batch.row_set())
        joined = tuple(parts[0] if len(parts) == 1 else in_order(join(parts)) for parts in rowsets.values())
        # Keys are added up here, in the reader's thread: the target waits for the consumer's between two pieces.
        piece = Piece(added_up(joined), tuple(transactions), end, tuple(self._truncated), self.received)
        self.forget()
        self._truncated = []
        self._boundary = None
        self._stretch(piece)
        return piece

    def _stretch(self, piece: Piece) -> None:
        """Have the next piece as large as this one lets expect that it is worth."""
        changes = sum(map(len, piece.rowsets))
        different = sum(rowset.keys.different for rowset in piece.rowsets if rowset.keys is not None)
        factor = 2 if changes and different * 2 <= changes else 1
        self.max_rows, self.max_bytes = self._rows * factor, self._bytes * factor
