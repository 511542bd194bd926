"""Changes of one relation as pgoutput sent them, until a piece is cut: single messages, or runs of a block."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.change import Relation, RowSet
from towline.source.postgres import few_tuples, tuples
from towline.source.postgres.batches import join
from towline.source.postgres.block import Block
from towline.source.postgres.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any

#: Fewer tuples than this are framed one by one.
FEW = 40
#: As many values are framed together: what is worked on then stays in the processor's cache, however wide the table.
BLOCK = 40_000
#: Messages that lie so far apart that the bytes between are more than so many times theirs are put together first.
APART = 2
#: Changes that are less than one in so many bytes of a block do not keep it in memory.
SPARSE = 4


@dataclass(slots=True, eq=False)
class Run:
    """Changes within a block, not necessarily next to each other: each begins with its kind. See `Block.data`."""

    data: bytes
    heads: Ints
    ends: Ints
    orders: Ints

    def __len__(self) -> int:
        return len(self.heads)

    def part(self, first: int, stop: int | None = None) -> Run:
        """Some of them."""
        span = slice(first, stop)
        return Run(self.data, self.heads[span], self.ends[span], self.orders[span])

    def messages(self) -> list[bytes]:
        """Each by itself."""
        data = self.data
        return [data[head:end] for head, end in zip(self.heads.tolist(), self.ends.tolist(), strict=True)]

    def alone(self) -> Run:
        """The same, without what is between."""
        return _run(self.messages(), self.orders)

    @property
    def apart(self) -> bool:
        """Whether most of the bytes from the first to the last are of other messages."""
        return int(self.ends[-1] - self.heads[0]) > APART * int((self.ends - self.heads).sum())


def runs_by_table(data: bytes, heads: Ints, ends: Ints, orders: Ints, which: Ints) -> Iterator[tuple[int, Run]]:
    """Changes of several tables as a run of each, with its number. ``which``: by change, the number of its table."""
    few = int((ends - heads).sum()) * SPARSE < len(data)
    by_table = np.argsort(which, kind="stable")
    for of in np.split(by_table, np.flatnonzero(np.diff(which[by_table])) + 1):
        if len(of):
            run = Run(data, heads[of], ends[of], orders[of])
            yield int(which[of[0]]), run.alone() if few else run


@dataclass(slots=True)
class TupleBatch:
    """Messages of pgoutput. ``runs`` come before ``messages``, each of which is still in its envelope: the tuple's
    change begins at offset ``at``.

    ``skip``: bytes between a change's kind and the OID of its table.
    """

    layout: Layout
    at: int
    skip: int = 0
    messages: list[bytes] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def relation(self) -> Relation:
        """Whose changes these are."""
        return self.layout.relation

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self.runs)) + len(self.orders)

    def add(self, run: Run) -> None:
        """Changes that follow."""
        self._settle()
        self.runs.append(run)

    def _settle(self) -> None:
        """Make a run of single messages."""
        if self.messages:
            self.runs.append(_run([message[self.at :] for message in self.messages], np.array(self.orders)))
            self.messages, self.orders = [], []

    def before(self, order: int) -> int:
        """How many have a lower number."""
        count = 0
        for run in self.runs:
            if run.orders[-1] >= order:
                return count + int(np.searchsorted(run.orders, order))
            count += len(run)
        return count + bisect_left(self.orders, order)

    def shift(self, by: int) -> None:
        """Take ``by`` from every number."""
        self.orders = [order - by for order in self.orders]
        for run in self.runs:
            run.orders = run.orders - by

    def split(self, count: int) -> TupleBatch:
        """Take the first ``count`` changes away, and return them."""
        head = TupleBatch(self.layout, self.at, self.skip)
        while count and self.runs:
            run = self.runs[0]
            if len(run) > count:
                head.runs.append(run.part(0, count))
                self.runs[0] = run.part(count)
                return head
            head.runs.append(self.runs.pop(0))
            count -= len(run)
        head.messages, head.orders = self.messages[:count], self.orders[:count]
        del self.messages[:count], self.orders[:count]
        return head

    def row_set(self) -> RowSet:
        """Frame them. Raises StreamMalformed."""
        if not self.runs and len(self.messages) < FEW:
            return few_tuples.row_set(self.layout, self.messages, self.orders, self.at, self.skip)
        self._settle()
        runs = self.runs
        if any(run.apart for run in runs):
            runs = [_run([m for run in runs for m in run.messages()], np.concatenate([run.orders for run in runs]))]
        if len(runs) == 1 and len(runs[0]) < FEW:
            return few_tuples.row_set(self.layout, runs[0].messages(), runs[0].orders.tolist(), 0, self.skip)
        block = max(FEW, BLOCK // len(self.layout.places))
        parts = [run.part(first, first + block) for run in runs for first in range(0, len(run), block)]
        return join([tuples.row_set(self.layout, p.data, p.heads, p.ends, p.orders, self.skip) for p in parts])


def _run(messages: list[bytes], orders: Ints) -> Run:
    """One run of messages without envelopes."""
    block = Block.of(messages)
    return Run(block.data, block.begins, block.ends, orders)
