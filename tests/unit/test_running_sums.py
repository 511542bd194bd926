"""The running sums of a pipeline, and counts beside the stream: exact whenever they are known."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from tests.unit.test_snapshot import route
from towline.change import DELETE, INSERT, Format, Piece, Relation, RowSet, Transaction, Visibility
from towline.errors import LedgerImbalance
from towline.frame import Frame
from towline.key_sum import NO_KEYS, KeySum, key_form, sum_of
from towline.recount import Recount
from towline.running_sums import Answer, Running, RunningSums
from towline.source import KeyCount
from towline.target import Checksum, Counts

ROUTE = route("t")
RELATION = Relation(ROUTE.source, ROUTE.source.columns, Format.BINARY)
FORM = key_form(RELATION)


def frame(keys: list[int]) -> Frame:
    return Frame.of_values([[key.to_bytes(8, "big")] for key in keys], 1)


def keys(*numbers: int) -> KeySum:
    return sum_of(frame(list(numbers)), RELATION)


def piece(
    end: int,
    *transactions: tuple[int, list[tuple[int, int]]],
    truncated: bool = False,
    relation: Relation = RELATION,
) -> Piece:
    """Transactions by xid, each with its changes (operation, key)."""
    changes = [change for _, made in transactions for change in made]
    firsts = np.cumsum([0, *(len(made) for _, made in transactions)]).tolist()
    rowset = RowSet(
        relation,
        frame([key for _, key in changes]),
        np.array([op for op, _ in changes], dtype=np.uint8),
        np.arange(len(changes)),
    )
    told = tuple(
        Transaction(xid, end - 1, datetime.now(UTC), first)
        for (xid, _), first in zip(transactions, firsts, strict=False)
    )
    return Piece((rowset,), told, end, (RELATION,) if truncated else ())


def sums(total: KeySum | None, form: str = FORM) -> RunningSums:
    return RunningSums([ROUTE], [RELATION], {"t": Running(total, form)}, ["t"])


def commit(running: RunningSums, *pieces: Piece) -> KeySum | None:
    """Apply pieces and commit; returns the running sum."""
    running.begin()
    for each in pieces:
        running.apply(each, {"t"})
    seen = sum(len(rowset) for each in pieces for rowset in each.rowsets)
    position = pieces[-1].end or 0
    entries = running.entries(position, {"t": Counts(seen=seen, upserted=seen)})
    running.committed(position)
    return entries["t"].total


def test_a_known_sum_is_followed() -> None:
    """Inserts add, deletes take away, a TRUNCATE leaves what comes after it."""
    running = sums(keys(1, 2))
    assert commit(running, piece(10, (5, [(INSERT, 3), (DELETE, 1)]))) == keys(2, 3)
    assert commit(running, piece(20, (6, [(INSERT, 9)]), truncated=True)) == keys(9)
    running.begin()
    assert running.entries(30, {}) == {}


def test_a_sum_of_another_form_is_void() -> None:
    """Nothing follows from a sum over other columns, or of a route that is being copied; TRUNCATE makes it known."""
    running = sums(keys(1), "text (id bigint)")
    assert running.checksums() == {"t": Checksum.UNKNOWN}
    assert running.uncounted() == [RELATION]
    assert commit(running, piece(10, (5, [(INSERT, 3)]))) is None
    assert commit(running, piece(20, (6, [(INSERT, 9)]), truncated=True)) == keys(9)
    assert running.uncounted() == []
    copying = RunningSums([ROUTE], [RELATION], {"t": Running(keys(1), FORM)}, [])
    assert (copying.checksums(), copying.uncounted()) == ({"t": Checksum.UNKNOWN}, [])


def test_a_key_that_changes_on_the_way_voids_the_sum() -> None:
    """A table may be changed while the daemon runs: other columns leave the sum as it is, another key does not."""
    running = sums(keys(1, 2))
    wider = replace(ROUTE.source, row_estimate=99)
    assert (
        commit(running, piece(10, (5, [(INSERT, 3)]), relation=Relation(wider, wider.columns, Format.BINARY)))
        is not None
    )
    text = Relation(ROUTE.source, ROUTE.source.columns, Format.TEXT)
    assert commit(running, piece(20, (6, [(INSERT, 4)]), relation=text)) is None
    assert running.uncounted() == [text]
    assert commit(running, piece(30, (7, [(INSERT, 5)]), relation=text)) is None


def test_loading_a_chunk_voids_the_sum() -> None:
    """What was known before a table is copied again is of another time."""
    running = sums(keys(1, 2))
    running.begin()
    running.load("t", 5, last=True)
    assert running.entries(10, {"t": Counts(seen=5, upserted=5)})["t"].total is None
    assert running.committed(10) == {"t": Checksum.UNKNOWN}
    assert running.uncounted() == [RELATION]


@pytest.mark.parametrize(
    "counts", [Counts(seen=1, upserted=1), Counts(seen=2, upserted=1), Counts(seen=3, upserted=3), None]
)
def test_an_imbalance_is_an_error_before_anything_is_durable(counts: Counts | None) -> None:
    """Rows that were not seen, seen twice, or of which nobody says what became of them."""
    running = sums(keys(1))
    running.begin()
    running.apply(piece(10, (5, [(INSERT, 3), (DELETE, 1)])), {"t"})
    with pytest.raises(LedgerImbalance) as caught:
        running.entries(10, {"t": counts} if counts is not None else {})
    assert (caught.value.route, caught.value.rows > 0) == ("t", True)


def test_a_count_is_made_exact_by_what_its_snapshot_does_not_see() -> None:
    """Transactions that commit around the snapshot, seen and unseen, before and after it is known."""
    running = sums(None)
    assert commit(running, piece(1010, (5, [(INSERT, 1), (INSERT, 2)]))) is None
    recount = Recount(RELATION)
    running.follow(recount)
    assert recount.following.is_set()
    commit(running, piece(1020, (6, [(INSERT, 3)]), (7, [(INSERT, 4)])))
    recount.looked(Visibility(7, 9, frozenset({7})))
    snapshot = Visibility(7, 10, frozenset({7}))  # 7 has committed, but is not visible yet; 9 is
    recount.began(snapshot)
    commit(running, piece(1030, (9, [(DELETE, 1)]), (11, [(INSERT, 5), (DELETE, 3)])))
    recount.counted(KeyCount(keys(2, 3), snapshot, 1040))
    assert not running.due(1030), "what the snapshot saw is not applied yet"
    assert commit(running, piece(1040, (12, [(DELETE, 4)]))) == keys(2, 5)
    assert recount.over.is_set()
    assert running.uncounted() == []


def test_counts_in_any_order_of_events() -> None:
    """Random transactions, some becoming visible late, and a count at any time: the sum is that of the keys."""
    chosen = random.Random(7)
    for _ in range(200):
        running, recount = sums(None), Recount(RELATION)
        there: set[int] = set()
        running.follow(recount)
        applied: list[tuple[int, list[tuple[int, int]]]] = []
        taken_at, told_at = sorted(chosen.sample(range(1, 12), 2))
        taken: tuple[KeySum, Visibility] | None = None
        total = None
        for step in range(1, 14):
            key = chosen.randrange(6)
            made = (step, [(DELETE, key) if key in there else (INSERT, key)])
            there ^= {key}
            if step == taken_at:
                # It sees what was applied but for a few of the last ones, and may see one that was not applied yet.
                unseen = {xid for xid, _ in applied[-3:] if chosen.random() < 0.5}
                early = chosen.random() < 0.5
                seen = [each for each in applied if each[0] not in unseen] + ([made] if early else [])
                taken = (
                    sum((signed(each) for each in seen), NO_KEYS),
                    Visibility(min(unseen, default=step), step + early, frozenset(unseen)),
                )
                recount.began(taken[1])
            total = commit(running, piece(1000 + step * 10, made))
            applied.append(made)
            if step == told_at and taken is not None:
                recount.counted(KeyCount(taken[0], taken[1], 1000 + taken_at * 10))
        assert total == keys(*there)


def signed(transaction: tuple[int, list[tuple[int, int]]]) -> KeySum:
    total = NO_KEYS
    for op, key in transaction[1]:
        total = total + keys(key) if op == INSERT else total - keys(key)
    return total


def test_who_asks_is_told() -> None:
    """A count of a route whose sum is known is compared at one position; asked to, it takes the sum's place."""
    running = sums(keys(1, 2))
    for anew, after in ((False, keys(1, 2, 8)), (True, keys(1, 8, 9))):
        running.ask({"t": anew, "gone": True})
        assert running.uncounted() == [RELATION]
        recount = Recount(RELATION)
        running.follow(recount)
        recount.began(Visibility(100, 100))
        recount.counted(KeyCount(keys(1), Visibility(100, 100), 10))
        running.begin()
        key = 9 if anew else 8
        running.apply(piece(20, (200, [(INSERT, key)])), {"t"})
        total = running.entries(20, {"t": Counts(seen=1, upserted=1)})["t"].total
        before = keys(1, 2, 8, 9) if anew else keys(1, 2, 8)
        assert running.answers == (Answer("t", keys(1, key), before, anew),)
        assert total == (keys(1, 9) if anew else after)
        assert running.committed(20) == {"t": Checksum.KNOWN if anew else Checksum.DIFFERS}
        assert running.uncounted() == []


def test_a_truncation_or_a_rollback_ends_a_count() -> None:
    """The count of before says nothing then."""
    running = sums(keys(1))
    for truncated in (True, False):
        recount = Recount(RELATION)
        running.begin()
        running.follow(recount)
        assert not recount.following.is_set()
        running.committed(0)
        assert recount.following.is_set()
        if truncated:
            commit(running, piece(20, (6, []), truncated=True))
        else:
            running.rolled_back()
        assert recount.over.is_set()
        assert not running.due(1000)
