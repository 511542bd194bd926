"""Messages that are taken many at once, against the same messages taken one by one."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.source.capture import read
from tests.unit.source.rows import Row, relation, rows_of
from tests.unit.source.test_pgoutput import routed
from tests.unit.source.test_tuples import change
from towline.change import Format, Piece, Relation, Transaction
from towline.errors import TowlineError
from towline.source.postgres import together, tuple_batch
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.pgoutput import Decoder
from towline.source.postgres.routed import Routed
from towline.source.postgres.tuple_batch import TupleBatch

RELATIONS = [relation(name, ["id:int4", "note:text"], ["id"]) for name in ("a", "b")]
ENVELOPE = b"\0\1\0\0\0\0"
#: What is said of a piece.
Told = tuple[list[tuple[str, tuple[Row, ...]]], tuple[Transaction, ...], int | None, tuple[str, ...]]


def begin(xid: int, lsn: int, time: int = 0) -> bytes:
    """A beginning."""
    return b"B" + lsn.to_bytes(8, "big") + time.to_bytes(8, "big", signed=True) + xid.to_bytes(4, "big")


def commit(lsn: int, end: int, flags: int = 0) -> bytes:
    """A commit."""
    return b"C" + bytes((flags,)) + lsn.to_bytes(8, "big") + end.to_bytes(8, "big") + bytes(8)


def described(oid: int, name: str) -> bytes:
    """A table of two columns, the first of which is the key."""
    columns = b"".join(
        bytes((key,)) + column + b"\0" + type_.to_bytes(4, "big") + b"\xff\xff\xff\xff"
        for key, column, type_ in ((1, b"id", 23), (0, b"note", 25))
    )
    return b"R" + oid.to_bytes(4, "big") + b"public\0" + name.encode() + b"\0d\0\2" + columns


def inserted(oid: int, number: int, size: int) -> bytes:
    """An insert."""
    made = change("I", None, [b"%d" % number, b"x" * size if size else None], b"t", b"N")
    return b"I" + oid.to_bytes(4, "big") + made[5:]


def told(piece: Piece) -> Told:
    """All that a piece holds."""
    rows = sorted((str(rowset.relation.name), tuple(rows_of(rowset))) for rowset in piece.rowsets)
    return rows, piece.transactions, piece.end, tuple(str(each.name) for each in piece.truncated)


class Taker:
    """One decoder; the pieces are cut where they are full, and where the test says."""

    def __init__(self, relations: Sequence[Relation], start: int, max_rows: int, max_bytes: int) -> None:
        self.gatherer = Gatherer[TupleBatch](start, max_rows, max_bytes)
        self.decoder = Decoder(Routed(relations), self.gatherer)
        self.pieces: list[Told] = []

    def cut(self, whole: bool) -> None:
        """Cut what is full; ``whole``: and what is whole."""
        gatherer = self.gatherer
        while gatherer.ready or gatherer.full:
            self.pieces.append(told(gatherer.ready.popleft() if gatherer.ready else gatherer.cut_full()))
        if whole and (piece := gatherer.cut()) is not None:
            self.pieces.append(told(piece))

    def run(self, messages: Sequence[bytes], size: int, at_once: bool) -> list[Told] | str:
        """All messages, in blocks of that size. The code of the error that ends it, if one does."""
        try:
            for first in range(0, len(messages), size):
                block = Block.of([ENVELOPE + message for message in messages[first : first + size]], len(ENVELOPE))
                taken = 0
                while taken < len(block):
                    if at_once:
                        taken = self.decoder.take(block, taken)
                    else:
                        self.decoder.feed(block.message(taken), block.at)
                        taken += 1
                    self.cut(whole=False)
                self.cut(whole=True)
        except TowlineError as error:
            return error.code
        return self.pieces


def same(messages: Sequence[bytes], relations: Sequence[Relation], size: int, *bounds: int) -> list[Told] | str:
    """Both ways give the same."""
    with mock.patch.object(together, "FEW", 2), mock.patch.object(tuple_batch, "FEW", 3):
        many = Taker(relations, *bounds).run(messages, size, at_once=True)
    assert many == Taker(relations, *bounds).run(messages, size, at_once=False)
    return many


#: Of a transaction: the tables of its changes (the third is not wanted), and the size of each one's text.
CHANGES = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 3]), st.sampled_from([0, 1, 5, 400])), max_size=8)


@given(
    st.lists(st.tuples(CHANGES, st.sampled_from(["", "", "", "", "message", "again", "truncate"])), max_size=12),
    st.integers(1, 40),
    st.sampled_from([0, 0, 450, 1050]),
    st.sampled_from([2, 5, 1000]),
    st.sampled_from([300, 1 << 20]),
)
@settings(max_examples=300, deadline=None)
def test_the_same_as_one_by_one(
    transactions: list[tuple[list[tuple[int, int]], str]], size: int, start: int, max_rows: int, max_bytes: int
) -> None:
    """Wherever blocks end, whatever is skipped or not wanted, and however much a piece holds."""
    messages = []
    number = 0
    for place, (changes, extra) in enumerate(transactions):
        lsn = 100 * place + 50
        messages.append(begin(place, lsn, place * 1_000_000))
        if not place:
            messages += [described(1, "a"), described(2, "b"), described(3, "unwanted")]
        for oid, length in changes:
            number += 1
            messages.append(inserted(oid, number, length))
        if extra == "message":
            messages.append(b"M\0" + bytes(8) + b"p\0" + bytes(4))
        elif extra == "again":
            messages.append(described(1, "a"))
        elif extra == "truncate":
            messages.append(b"T" + (1).to_bytes(4, "big") + b"\0" + (1).to_bytes(4, "big"))
        messages.append(commit(lsn, lsn + 40))
    found = same(messages, RELATIONS, size, start, max_rows, max_bytes)
    assert not isinstance(found, str)
    wanted = sum(
        oid < 3 for place, (changes, _) in enumerate(transactions) for oid, _ in changes if 100 * place + 50 >= start
    )
    assert sum(len(rows) for piece in found for _, rows in piece[0]) == wanted


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("capture", ["pgoutput-text", "pgoutput-binary"])
def test_a_session(capture: str, size: int) -> None:
    """Of updates, deletes, changed keys, values that were not sent and truncations."""
    format_ = Format.BINARY if capture.endswith("binary") else Format.TEXT
    assert len(same(read(capture), routed(format_), size, 0, 5, 1 << 20)) > 5


WHOLE = [begin(1, 50), described(1, "a"), *(inserted(1, number, 3) for number in range(60)), commit(50, 90)]
NEXT = [begin(2, 150), *(inserted(1, number, 3) for number in range(60, 120)), commit(150, 190)]


@pytest.mark.parametrize(
    "messages",
    [
        [*WHOLE, *NEXT[1:]],  # changes outside of a transaction
        [*WHOLE, commit(50, 90), *NEXT],
        [*WHOLE, NEXT[0], *NEXT],
        [*WHOLE[:-1], *NEXT],
        [*WHOLE, *NEXT[:-1], commit(151, 190)],  # of another transaction
        [*WHOLE, *NEXT[:-1], commit(150, 150)],  # ends before it starts
        [*WHOLE, *NEXT[:-1], commit(150, 190, flags=1)],
        [*WHOLE, *NEXT[:-1], NEXT[-1] + b"\0"],
        [*WHOLE, NEXT[0][:-1], *NEXT[1:]],
        [*WHOLE, begin(2, 150, 1 << 62), *NEXT[1:]],  # beyond the calendar
        [*WHOLE, NEXT[0], inserted(9, 1, 1), *NEXT[1:]],  # of a table that was not described
        [*WHOLE, *NEXT[:30], NEXT[30][:4], *NEXT[31:]],
        [*WHOLE, *NEXT[:30], NEXT[30][:-1], *NEXT[31:]],
        [*WHOLE, *NEXT[:30], b"?", *NEXT[30:]],
        [*WHOLE, *NEXT[:30], b"", *NEXT[30:]],
    ],
)
@pytest.mark.parametrize("size", [5, 1000])
def test_what_is_malformed(messages: list[bytes], size: int) -> None:
    """Is told of in the same way, and nothing is made of what follows it."""
    assert isinstance(same(messages, RELATIONS, size, 0, 1000, 1 << 20), str)


def test_most_is_taken_at_once() -> None:
    """The messages of an ordinary stretch do not come through one by one, nor do those of unwanted tables."""
    messages = [*WHOLE, *NEXT]
    for place in range(3, 40):
        lsn = place * 100
        messages += [begin(place, lsn), *(inserted(1 + row % 2, row, 3) for row in range(30)), commit(lsn, lsn + 9)]
    messages.insert(1, described(2, "b"))
    with mock.patch.object(Decoder, "feed", autospec=True, side_effect=Decoder.feed) as alone:
        taker = Taker([RELATIONS[0]], 0, 1000, 1 << 20)
        taker.run(messages, 10_000, at_once=True)
    assert 0 < alone.call_count < 10
    assert len(taker.pieces) == 1
