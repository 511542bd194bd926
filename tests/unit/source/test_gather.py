"""Cutting what was gathered: whatever is cut when, the pieces together hold the same changes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.source.rows import Change, changes, relation
from towline.change import INSERT, UPDATE, Piece
from towline.frame import frame_row
from towline.source.postgres.batches import FramedRow, RowBatch
from towline.source.postgres.gather import Gatherer

RELATIONS = [relation(name, ["id:int4"], ["id"]) for name in ("a", "b", "c")]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

#: A transaction is a list of steps: add to a relation, truncate some, cut at a boundary, cut what there is.
STEP = st.one_of(
    st.sampled_from([("add", (0,)), ("add", (1,)), ("add", (2,))]),
    st.tuples(st.just("truncate"), st.sampled_from([(0,), (1, 2), (0, 1)])),
    st.sampled_from([("cut", ()), ("full", ())]),
)
TRANSACTIONS = st.lists(st.tuples(st.lists(STEP, max_size=6), st.sampled_from(["", "cut", "full"])), max_size=7)


def gather(transactions: list[tuple[list[tuple[str, tuple[int, ...]]], str]]) -> tuple[list[Piece], list[Change]]:
    """The pieces, and the changes that they should hold."""
    gatherer = Gatherer[RowBatch](0)
    pieces: list[Piece] = []
    wanted: list[Change] = []
    number = 0

    def cut(how: str) -> None:
        pieces.extend(gatherer.ready)
        gatherer.ready.clear()
        if how == "cut":
            piece = gatherer.cut()
            if piece is not None:
                pieces.append(piece)
        elif how == "full" and gatherer.order:
            pieces.append(gatherer.cut_full())

    for xid, (steps, after) in enumerate(transactions):
        gatherer.begin(xid, xid * 100 + 50, NOW)
        for what, places in steps:
            if what == "add":
                number += 1
                row = b"%d" % number
                of = RELATIONS[places[0]]
                batch = gatherer.batch(places[0], lambda of=of: RowBatch(of))  # type: ignore[misc]
                assert batch is not None
                batch.rows.append(FramedRow(frame_row([row]), INSERT))
                batch.orders.append(gatherer.order)
                gatherer.order += 1
                wanted.append(Change(of.name.name, INSERT, (row,)))
            elif what == "truncate":
                gatherer.truncate([RELATIONS[place] for place in places])
                wanted += [Change(RELATIONS[place].name.name, 0, ()) for place in places]
            else:
                cut(what)
        gatherer.commit(xid * 100 + 50, xid * 100 + 99)
        cut(after)
    cut("cut")
    assert gatherer.empty
    return pieces, wanted


def once(found: list[Change]) -> list[Change]:
    """Truncations that follow each other, each relation once."""
    kept: list[Change] = []
    since: set[str] = set()
    for change in found:
        if change.op:
            since.clear()
        elif change.table in since:
            continue
        else:
            since.add(change.table)
        kept.append(change)
    return kept


@settings(derandomize=True, deadline=None, max_examples=500)
@given(TRANSACTIONS)
def test_pieces_hold_what_was_gathered(transactions: list[tuple[list[tuple[str, tuple[int, ...]]], str]]) -> None:
    """All changes in order; ends at commits only; transactions in order with the numbers of their first changes."""
    pieces, wanted = gather(transactions)
    assert once(changes(pieces)) == once(wanted)
    ends = [piece.end for piece in pieces if piece.end is not None]
    assert ends == sorted(set(ends))
    assert all(end % 100 == 99 for end in ends)
    if transactions:
        assert pieces[-1].end == (len(transactions) - 1) * 100 + 99
    for before, piece in zip([None, *pieces], pieces, strict=False):
        firsts = [transaction.first for transaction in piece.transactions]
        assert firsts == sorted(firsts)
        assert not firsts or firsts[0] == 0
        assert bool(firsts) or not (piece.rowsets or piece.truncated)
        if before is not None and before.end is None:
            assert piece.transactions[0].xid == before.transactions[-1].xid
        if before is not None and before.end is not None and piece.transactions:
            assert piece.transactions[0].lsn >= before.end
        if piece.end is not None and piece.transactions:
            assert piece.transactions[-1].lsn < piece.end
        orders = sorted(order for rows in piece.rowsets for order in rows.order.tolist())
        assert orders == list(range(len(orders)))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(TRANSACTIONS)
def test_rows_belong_to_their_transactions(transactions: list[tuple[list[tuple[str, tuple[int, ...]]], str]]) -> None:
    """Each row is found to be of the transaction that added it, wherever the cuts are."""
    pieces, _ = gather(transactions)
    number = 0
    owner = {}
    for xid, (steps, _) in enumerate(transactions):
        for what, _ in steps:
            if what == "add":
                number += 1
                owner[b"%d" % number] = xid
    for piece in pieces:
        for rows in piece.rowsets:
            places = piece.transaction_of(rows.order).tolist()
            assert [piece.transactions[place].xid for place in places] == [owner[v] for v in rows.rows.column(0) if v]


@pytest.mark.parametrize(("keys", "bound"), [(400, 1000), (600, 500)])
def test_a_piece_of_hot_keys_is_followed_by_a_larger_one(keys: int, bound: int) -> None:
    """While half of a piece's changes are void, or more. One without changes, as before a TRUNCATE, says nothing."""
    gatherer = Gatherer[RowBatch](0, 500, 10_000)
    gatherer.begin(1, 150, NOW)
    for _ in range(3):  # it does not add up
        gatherer.max_rows = 800  # so that there are as many changes as are wanted here
        batch = gatherer.batch(0, lambda: RowBatch(RELATIONS[0]))
        assert batch is not None
        batch.rows = [FramedRow(frame_row([b"%d" % (number % keys)]), UPDATE) for number in range(800)]
        batch.orders = list(range(800))
        gatherer.order = 800
        assert gatherer.full
        gatherer.cut_full()
        assert (gatherer.max_rows, gatherer.max_bytes) == (bound, 20 * bound)
    gatherer.commit(150, 160)
    gatherer.begin(2, 250, NOW)
    gatherer.truncate([RELATIONS[1]])
    gatherer.cut_full()
    assert gatherer.max_rows == 500
