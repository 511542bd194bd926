"""pgoutput, many messages of a block at once.

What `pgoutput.Decoder` does message by message is done here with arrays over the beginnings, changes and commits of a
stretch of the stream: which transaction and table each change belongs to, how much a piece has room for, and what is
gathered at the last commit. All else is left to the decoder, message by message: other messages, and stretches in which
anything is not as it should be or as it mostly is (a change outside of transactions, a table that was not described, a
transaction that was applied already), so that errors are raised there, at their place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from towline.change import Transaction
from towline.frame import numbers
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Boundary, Gatherer, Many
from towline.source.postgres.layout import Layout
from towline.source.postgres.pgoutput_messages import EPOCH
from towline.source.postgres.tuple_batch import Run, TupleBatch, runs_by_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any

#: Fewer messages than this are taken one by one.
FEW = 48
#: What a table is when the decoder has to look at its changes itself.
UNSURE: Final = object()

_BEGIN, _COMMIT = ord("B"), ord("C")
_BEGIN_SIZE, _COMMIT_SIZE, _CHANGE_SIZE = 21, 26, 5
#: By kind: whether it is a change, and whether it is anything that is looked at here.
_IS_CHANGE = np.isin(np.arange(256), list(b"IUD"))
_IS_COMMON = np.isin(np.arange(256), list(b"IUDBC"))
#: Of commit times, microseconds since `EPOCH`: a calendar has no others.
_FIRST, _LAST = ((each - EPOCH) // timedelta(microseconds=1) for each in (
    datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
))  # fmt: skip


class Together:
    """``known``: the layout of a table by its OID (four bytes), None when it is not wanted, or `UNSURE`.

    ``settled``: whether nothing else is expected of tables up to a transaction whose commit record starts there.
    ``feed``: takes a single message, from an offset on.
    """

    def __init__(
        self,
        gatherer: Gatherer[TupleBatch],
        *,
        known: Callable[[bytes], object],
        settled: Callable[[int], bool],
        feed: Callable[[bytes, int], None],
    ) -> None:
        self._gatherer = gatherer
        self._known = known
        self._settled = settled
        self._feed = feed

    def take(self, block: Block, first: int) -> int:
        """Take messages from the number ``first`` on until there are no more, or a piece is full.

        Returns the number of the one to go on with. Raises what the decoder raises.
        """
        kinds = block.bytes[np.minimum(block.begins + block.at, len(block.data) - 1)]
        others = np.flatnonzero(~_IS_COMMON[kinds[first:]]) + first
        for stop in (*others.tolist(), len(block)):
            while first < stop and not self._gatherer.full:
                taken = self._stretch(block.part(first, stop), kinds[first:stop]) if stop - first >= FEW else 0
                first = first + taken if taken else self._one_by_one(block, first, stop)
            if first < len(block) and not self._gatherer.full:
                first = self._one_by_one(block, first, first + 1)
            if self._gatherer.full:
                break
        return first

    def _one_by_one(self, block: Block, first: int, stop: int) -> int:
        for number in range(first, stop):
            self._feed(block.message(number), block.at)
            if self._gatherer.full:
                return number + 1
        return stop

    def _stretch(self, block: Block, kinds: Any) -> int:
        """Take changes, beginnings and commits, as many as a piece has room for. Returns how many; 0: none, they are
        to be taken one by one."""
        gatherer = self._gatherer
        transactions = _Transactions.of(block, kinds, gatherer.open)
        if gatherer.skipping or transactions is None or not transactions.after(gatherer.start, self._settled):
            return 0
        changes = np.flatnonzero(_IS_CHANGE[kinds])
        heads = block.begins + block.at
        oids = numbers(block.data, ">u4")[heads[changes] + 1]
        if len(oids) and bool((oids == oids[0]).all()):
            tables, which = oids[:1], np.zeros(len(oids), dtype=np.int64)
        else:
            tables, which = np.unique(oids, return_inverse=True)
        layouts = [self._known(int(oid).to_bytes(4, "big")) for oid in tables]
        if any(layout is UNSURE for layout in layouts):
            return 0
        if None in layouts:
            wanted = np.array([layout is not None for layout in layouts])[which]
            changes, which = changes[wanted], which[wanted]
        sizes = np.cumsum(block.ends[changes] - block.begins[changes])
        room = gatherer.room(sizes)
        if len(changes) >= room and changes[room - 1] + 1 < len(block):
            stop = int(changes[room - 1]) + 1
            return self._stretch(block.part(0, stop), kinds[:stop])

        orders = gatherer.order + np.arange(len(changes))
        for table, run in runs_by_table(block.data, heads[changes], block.ends[changes], orders, which):
            self._add(layouts[table], block.at, run)
        gatherer.extend(transactions.many(changes, sizes, gatherer.order, gatherer.listed))
        return len(block)

    def _add(self, layout: object, at: int, run: Run) -> None:
        assert isinstance(layout, Layout)
        self._gatherer.gathered((layout, at, 0), lambda: TupleBatch(layout, at)).add(run)


class _Transactions:
    """The beginnings and commits of a stretch. Transactions are numbered: 0 was under way before, if one was.

    ``begun``, ``committed``: up to each message, how many beginnings and commits there are.
    """

    def __init__(self, under_way: tuple[int, int, datetime] | None, begun: Ints, committed: Ints) -> None:
        self._under_way = under_way
        self._begun, self._committed = begun, committed
        self._lsns: list[int] = []
        self._xids: list[int] = []
        self._times: list[int] = []
        self._ends: list[int] = []

    @classmethod
    def of(cls, block: Block, kinds: Any, under_way: tuple[int, int, datetime] | None) -> _Transactions | None:
        """None when they are not as they should be."""
        begins, commits = kinds == _BEGIN, kinds == _COMMIT
        made = cls(under_way, np.cumsum(begins), np.cumsum(commits))
        inside = made._begun - made._committed + (under_way is not None)
        heads = block.begins + block.at
        due = np.where(begins, _BEGIN_SIZE, np.where(commits, _COMMIT_SIZE, 0))
        sizes = block.ends - heads
        fine = np.where(due == 0, (sizes >= _CHANGE_SIZE) & (inside == 1), (sizes == due) & (inside == begins))
        if not fine.all():
            return None
        begins, commits = heads[begins], heads[commits]
        lsns, positions, times = (numbers(block.data, form) for form in (">u8", ">u8", ">i8"))
        made._lsns, made._times = lsns[begins + 1].tolist(), times[begins + 9].tolist()
        made._xids = numbers(block.data, ">u4")[begins + 17].tolist()
        made._ends = positions[commits + 10].tolist()
        starts = lsns[commits + 2].tolist()
        due_starts = made._lsns if under_way is None else [under_way[1], *made._lsns]
        if block.bytes[commits + 1].any() or starts != due_starts[: len(starts)]:
            return None
        if not all(map(int.__gt__, made._ends, starts)) or not all(_FIRST <= time <= _LAST for time in made._times):
            return None
        return made

    def after(self, start: int, settled: Callable[[int], bool]) -> bool:
        """Whether all that begin here are wanted, and nothing else is expected of tables in them."""
        return not self._lsns or (min(self._lsns) >= start and settled(max(self._lsns)))

    def many(self, changes: Ints, sizes: Ints, order: int, listed: bool) -> Many:
        """What comes of it. ``changes``: the wanted messages; ``sizes``: of all up to each; ``order``: of the first."""
        before = self._under_way is not None
        number = self._begun[changes] - (not before)  # of the transaction
        count = len(self._lsns) + before
        upto = np.cumsum(np.bincount(number, minlength=count)) if count else np.zeros(0, dtype=np.int64)
        firsts = np.concatenate((np.zeros(1, dtype=np.int64), upto[:-1]))
        with_changes = np.flatnonzero(upto > firsts).tolist() if count else []
        fresh = [each for each in with_changes if each or not (before and listed)]
        first_of = firsts.tolist()
        transactions = [Transaction(*self._at(each), order + first_of[each]) for each in fresh]
        boundary = None
        if self._ends:
            last = len(self._ends) - 1
            inside = int(upto[last])
            size = int(sizes[inside - 1]) if inside else 0
            boundary = Boundary(inside, size, sum(each <= last for each in fresh), self._ends[-1])
        total = int(sizes[-1]) if len(sizes) else 0
        if len(self._ends) == count:
            return Many(transactions, len(changes), total, boundary, None, False)
        under_way = count - 1
        still = listed and before and under_way == 0
        return Many(transactions, len(changes), total, boundary, self._at(under_way), still or under_way in fresh[-1:])

    def _at(self, number: int) -> tuple[int, int, datetime]:
        if self._under_way is not None:
            if not number:
                return self._under_way
            number -= 1
        return self._xids[number], self._lsns[number], EPOCH + timedelta(microseconds=self._times[number])
