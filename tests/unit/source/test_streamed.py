"""The decoder of transactions that come while they are under way: captured bytes, interleavings, and wrong ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from tests.unit.source.capture import read
from tests.unit.source.rows import Change, Row, changes, feed, relation, rows_of
from tests.unit.source.test_pgoutput import EXPECTED, SMALL, B, C, I, R, decode, ins, routed
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, Relation
from towline.errors import SourceTableChanged, SourceTruncated, StreamMalformed
from towline.source.postgres import streamed as streamed_module
from towline.source.postgres import under_way
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.routed import Routed
from towline.source.postgres.streamed import StreamingDecoder
from towline.source.postgres.tuple_batch import TupleBatch


class Memory:
    """Keeps transactions in a list; ``dropped`` counts those that were forgotten."""

    def __init__(self) -> None:
        self.kept: list[MemoryTransaction] = []

    def open(self) -> MemoryTransaction:
        self.kept.append(MemoryTransaction(self))
        return self.kept[-1]

    def settle(self) -> None:
        """There is always room."""


class MemoryTransaction:
    def __init__(self, memory: Memory) -> None:
        self.messages: list[bytes] = []
        self.additions = 0
        self._memory = memory

    def add(self, messages: Sequence[bytes]) -> None:
        self.messages += messages
        self.additions += 1

    @property
    def count(self) -> int:
        return len(self.messages)

    def cut(self, count: int) -> None:
        del self.messages[count:]

    def blocks(self) -> Iterator[Block]:
        yield Block.of(self.messages[:3])
        yield Block.of(self.messages[3:])

    def drop(self) -> None:
        self._memory.kept.remove(self)


def unpaced() -> None:
    """As fast as can be."""


#: Another table that is routed.
OTHER = relation("u", ["id:int4", "v:text"], ["id"])


def pieces_of(messages: Sequence[bytes], max_rows: int, max_bytes: int) -> list[Piece]:
    """All pieces of the messages, each of which is taken as soon as it is full."""
    gatherer = Gatherer[TupleBatch](0, max_rows, max_bytes)
    taken: list[Piece] = []

    def pace() -> None:
        while gatherer.full:
            taken.append(gatherer.cut_full())

    decoder = StreamingDecoder(Routed([*SMALL, OTHER]), gatherer, Memory(), pace)
    for message in messages:
        decoder.feed(message)
    while (piece := gatherer.cut()) is not None:
        taken.append(piece)
    assert gatherer.empty
    return taken


def streamed(
    messages: Sequence[bytes], relations: Sequence[Relation] = SMALL, start: int = 0, left: int = 0
) -> list[Piece]:
    """All pieces of the messages; ``left`` transactions are under way after the last."""
    memory = Memory()
    gatherer = Gatherer[TupleBatch](start)
    decoder = StreamingDecoder(Routed(relations), gatherer, memory, unpaced)
    feed(decoder, (b"envelope" + message for message in messages), 8)
    assert len(memory.kept) == left
    at_boundary = gatherer.cut()
    assert gatherer.empty
    return [*gatherer.ready, *([at_boundary] if at_boundary is not None else [])]


def S(xid: int, first: int = 1) -> bytes:
    return b"S" + xid.to_bytes(4, "big") + bytes((first,))


def commit(xid: int, lsn: int) -> bytes:
    return b"c" + xid.to_bytes(4, "big") + b"\0" + lsn.to_bytes(8, "big") + (lsn + 50).to_bytes(8, "big") + bytes(8)


def abort(xid: int, subxid: int) -> bytes:
    return b"A" + xid.to_bytes(4, "big") + subxid.to_bytes(4, "big")


def of(xid: int, message: bytes) -> bytes:
    """The message as it stands in a part."""
    return message[:1] + xid.to_bytes(4, "big") + message[1:]


ID, V, MORE = ("id", 23, 1), ("v", 25, 0), ("more", 23, 0)
T = R(ID, V)
OID = T[1:5]


def row(n: int, v: str = "x") -> bytes:
    return ins(b"%d" % n, v.encode())


def ids(pieces: Sequence[Piece]) -> list[int]:
    """The first columns of all rows."""
    return [int(change.values[0] or b"") for change in changes(pieces)]


# ---- Captured bytes -------------------------------------------------------------------------------------------


def test_captured() -> None:
    """The captured session, streamed change by change, gives the rows that the script wrote."""
    assert changes(streamed(read("pgoutput-streamed"), routed(Format.TEXT))) == EXPECTED


def test_resume_skips_what_was_applied() -> None:
    """From the end of any transaction on, exactly the later ones are yielded."""
    messages = read("pgoutput-streamed")
    relations = routed(Format.TEXT)
    for number, message in enumerate(messages):
        if message[:1] == b"c":
            seen = len(changes(streamed(messages[: number + 1], relations)))
            end = int.from_bytes(message[14:22], "big")
            assert changes(streamed(messages, relations, start=end)) == EXPECTED[seen:]


def test_every_prefix_of_every_message() -> None:
    """A message that was cut off anywhere is an error, at once or at the commit."""
    messages = read("pgoutput-streamed")
    for number, message in enumerate(messages):
        for size in {*range(min(len(message), 24)), len(message) - 1}:
            if size >= 9 and unwanted(message, messages):
                continue
            with pytest.raises(StreamMalformed):
                streamed([*messages[:number], message[:size], *messages[number + 1 :]], routed(Format.TEXT))


def unwanted(message: bytes, messages: Sequence[bytes]) -> bool:
    """A change of a table that is not routed: its tuple is not looked at."""
    names = {m[5:9]: m[9:].split(b"\0")[1] for m in messages if m[:1] == b"R"}
    return message[:1] in (b"I", b"U", b"D") and names[message[5:9]] == b"unwanted"


def test_flipped_bytes() -> None:
    """Any byte flipped anywhere: an error of the stream, or other values in rows; never another exception."""
    messages = read("pgoutput-streamed")
    dice = random.Random(20)
    for number, message in enumerate(messages):
        places = range(len(message)) if len(message) < 12 else dice.sample(range(len(message)), 12)
        for place in places:
            flipped = bytearray(message)
            flipped[place] ^= dice.randrange(1, 256)
            memory, gatherer = Memory(), Gatherer[TupleBatch](0)
            decoder = StreamingDecoder(Routed(routed(Format.TEXT)), gatherer, memory, unpaced)
            with suppress(StreamMalformed, SourceTableChanged, SourceTruncated):
                for each in [*messages[:number], bytes(flipped), *messages[number + 1 :]]:
                    decoder.feed(each)
                gatherer.cut()


# ---- Interleaved ----------------------------------------------------------------------------------------------


def test_commit_order() -> None:
    """Transactions are gathered where they commit, whole ones among them, whenever their parts came."""
    pieces = streamed(
        [
            *(S(7), of(7, T), of(7, row(1)), b"E", S(8), of(8, T), of(8, row(2)), b"E"),
            *(B, T, row(3), C, S(7, 0), of(7, row(4)), b"E", commit(8, 600), commit(7, 700)),
        ]
    )
    assert ids(pieces) == [3, 2, 1, 4]
    assert [(t.xid, t.lsn) for t in pieces[0].transactions] == [(7, 500), (8, 600), (7, 700)]
    assert pieces[-1].end == 750


def test_rolled_back() -> None:
    """Subtransactions that were rolled back are left out, wholly rolled back transactions forgotten."""
    messages = [S(7), of(7, T), of(7, row(1)), of(8, row(2)), of(9, row(3)), b"E"]
    messages += [abort(7, 9), S(7, 0), of(7, T), of(7, row(4)), of(10, row(5)), b"E"]
    assert ids(streamed([*messages, abort(7, 10), commit(7, 700)])) == [1, 2, 4]
    assert ids(streamed([*messages, abort(7, 10), abort(7, 11), commit(7, 700)])) == [1, 2, 4]
    assert ids(streamed([*messages, abort(7, 7)])) == []
    assert ids(streamed([*messages, abort(11, 12)], left=1)) == []


def test_rolled_back_with_what_is_inside() -> None:
    """In whatever order the server names the inner ones, and whichever of them was written in first."""
    before = [S(7), of(7, T), of(7, row(1)), of(10, row(2)), of(9, row(3)), of(11, row(4)), of(9, row(5)), b"E"]
    after = [S(7, 0), of(7, T), of(12, row(6)), b"E", commit(7, 700)]
    for ended in ((9, 10, 11), (10, 11, 9), (11, 10, 9)):
        assert ids(streamed([*before, *(abort(7, subxid) for subxid in ended), *after])) == [1, 6]
    assert ids(streamed([*before[:-2], b"E", abort(7, 11), *after])) == [1, 2, 3, 6]


def test_rolled_back_where_xids_begin_anew() -> None:
    """The counter of xids has 32 bits; 3 comes after 4294967295."""
    top, low = (1 << 32) - 2, (1 << 32) - 1
    messages = [S(top), of(top, T), of(top, row(1)), of(low, row(2)), of(3, row(3)), of(4, row(4)), b"E"]
    assert ids(streamed([*messages, abort(top, 3), abort(top, 4), commit(top, 700)])) == [1, 2]
    assert ids(streamed([*messages, abort(top, low), commit(top, 700)])) == [1]


def test_xid_used_again() -> None:
    """After its end, an xid may come back as another transaction's."""
    once = [S(7), of(7, T), of(7, row(1)), b"E"]
    assert ids(streamed([*once, abort(7, 7), *once, commit(7, 700), *once, commit(7, 800)])) == [1, 1]


def test_truncate() -> None:
    """It stands at its place among the rows."""
    truncate = b"T" + (1).to_bytes(4, "big") + b"\0" + (99).to_bytes(4, "big")
    pieces = streamed([S(7), of(7, T), of(7, row(1)), of(7, truncate), of(7, row(2)), b"E", commit(7, 700)])
    assert changes(pieces) == [Change("t", I, (b"1", b"x")), Change("t", 0, ()), Change("t", I, (b"2", b"x"))]


def test_table_not_routed() -> None:
    """Its rows are not kept, until a description says that the table is another one."""
    other = R(ID, V, name="other")
    memory = Memory()
    gatherer = Gatherer[TupleBatch](0)
    decoder = StreamingDecoder(Routed(SMALL), gatherer, memory, unpaced)
    for message in [S(7), of(7, other), of(7, row(1)), of(7, T), of(7, row(2)), b"E"]:
        decoder.feed(message)
    assert [message[:1] for message in memory.kept[0].messages] == [b"R", b"R", b"I"]
    decoder.feed(commit(7, 700))
    assert ids([gatherer.cut_full()]) == [2]


def test_changes_are_kept_many_at_a_time() -> None:
    """Those of tables and subtransactions that are known already; a rollback and a description begin anew."""
    memory = Memory()
    decoder = StreamingDecoder(Routed(SMALL), Gatherer[TupleBatch](0), memory, unpaced)
    for message in [S(7), of(7, T), of(7, row(1)), of(8, row(2)), of(9, row(3))]:
        decoder.feed(message)
    (kept,) = memory.kept
    there, additions = kept.count, kept.additions
    assert decoder.changes(iter([of(8, row(4)), of(7, row(5)), of(9, row(6)), of(8, row(7))])) is None
    assert (kept.count, kept.additions) == (there + 4, additions + 1)
    for message in [b"E", abort(7, 8), S(7, 0)]:
        decoder.feed(message)
    assert kept.count == there - 2
    again = of(8, row(8))
    assert decoder.changes(iter([again])) is again  # nothing is known any more
    other = R(ID, V, name="other")
    for message in [of(7, other), of(7, row(9)), of(7, row(10)), of(7, T), of(7, row(11)), b"E", commit(7, 700)]:
        decoder.feed(message)
    assert ids([decoder._gatherer.cut_full()]) == [1, 11]


def test_more_subtransactions_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their changes are kept all the same, and go with them."""
    monkeypatch.setattr(under_way, "HEADS", 3)
    inside = [of(8 + n % 20, row(n)) for n in range(100)]
    messages = [S(7), of(7, T), *inside, b"E"]
    assert ids(streamed([*messages, commit(7, 700)])) == list(range(100))
    assert ids(streamed([*messages, abort(7, 20), commit(7, 700)])) == list(range(12))


@pytest.mark.parametrize(
    ("max_rows", "max_bytes"), [(7, 1 << 20), (1 << 20, 150), (5, 120), (1, 1), (1 << 20, 1 << 20)]
)
@pytest.mark.parametrize("few", [1, 8, 1000])
@pytest.mark.parametrize("tables", [1, 2])
def test_pieces_are_cut_where_they_are_full(
    max_rows: int, max_bytes: int, few: int, tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many changes of a transaction are taken at a time: after the same change, and none is left out."""
    monkeypatch.setattr(streamed_module, "FEW", few)
    second = R(ID, V, name="u", oid=98)
    rows = [row(n, "v" * (n % 9)) for n in range(40)]
    dice = random.Random(max_rows)
    for number in range(len(rows)):
        if tables == 2 and dice.random() < 0.3:
            rows[number] = rows[number][:1] + second[1:5] + rows[number][5:]
    parts = [S(7), of(7, T), of(7, second), *(of(7, each) for each in rows), b"E", commit(7, 700)]
    pieces = pieces_of(parts, max_rows, max_bytes)
    expected: list[list[int]] = [[]]
    size = 0
    for number, each in enumerate(rows):
        expected[-1].append(number)
        size += len(of(7, each))
        if len(expected[-1]) >= max_rows or size >= max_bytes:
            expected.append([])
            size = 0
    assert [sorted(ids([piece])) for piece in pieces if piece.rowsets] == [numbers for numbers in expected if numbers]


# ---- Descriptions of tables -----------------------------------------------------------------------------------

WIDE = R(V, MORE, ID)


def wide(n: int) -> bytes:
    return ins(b"x", b"5", b"%d" % n)


def test_descriptions_are_the_transactions_own() -> None:
    """What a transaction under way was told of a table holds for no other one."""
    part = [S(7), of(7, WIDE), of(7, wide(2)), b"E"]
    assert ids(streamed([B, T, row(1), C, *part, B, row(3), C], left=1)) == [1, 3]
    assert ids(streamed([B, T, row(1), C, *part, abort(7, 7), B, row(3), C])) == [1, 3]
    with pytest.raises(StreamMalformed, match="not described"):
        streamed([*part, B, wide(3), C], left=1)


def test_descriptions_hold_after_the_commit() -> None:
    """The server does not repeat what a transaction that committed was told."""
    part = [S(7), of(7, WIDE), of(7, wide(2)), b"E", commit(7, 400)]
    assert ids(streamed([B, T, row(1), C.replace(b"\x02\x26", b"\x02\x00"), *part], start=0)) == [1, 2]
    assert ids(streamed([*part, B, wide(3), C])) == [2, 3]
    assert ids(streamed([B, T, row(1), C, *part[:-1], commit(7, 600), B, wide(3), C])) == [1, 2, 3]


def test_the_later_description_holds() -> None:
    """Of a table described to two transactions, what came last is what the server goes on with."""
    before = [S(7), of(7, T), of(7, row(1)), b"E"]
    assert ids(streamed([*before, B, WIDE, wide(2), C, commit(7, 600), B, wide(3), C])) == [2, 1, 3]
    other = [S(8), of(8, WIDE), of(8, wide(2)), b"E"]
    assert ids(streamed([*before, *other, commit(8, 600), commit(7, 700), B, wide(3), C])) == [2, 1, 3]
    assert ids(streamed([*before, *other, commit(7, 600), commit(8, 700), B, wide(3), C])) == [1, 2, 3]


def test_descriptions_of_what_was_rolled_back() -> None:
    """They are forgotten with it: the server describes the table again."""
    messages = [S(7), of(7, T), of(7, row(1)), of(8, WIDE), of(8, wide(2)), b"E", abort(7, 8)]
    assert ids(streamed([*messages, S(7, 0), of(7, T), of(7, row(3)), b"E", commit(7, 600), B, row(4), C])) == [1, 3, 4]


def test_rows_of_one_layout_from_both_sides() -> None:
    """Rows out of the spool and rows as they come stand in different envelopes, also in one piece."""
    pieces = streamed([S(7), of(7, T), of(7, row(1)), b"E", commit(7, 300), B, row(2), C])
    assert len(pieces) == 1
    assert ids(pieces) == [1, 2]


def test_rows_in_order_whatever_their_descriptions() -> None:
    """A streamed transaction between two whole ones brings its own description of their table."""
    part = [S(7), of(7, T), of(7, row(5, "streamed")), b"E"]
    moved = b"U" + OID + b"K\0\2t\0\0\0\0015n" + b"N\0\2t\0\0\0\0016u"  # a key changes, a value is unchanged
    (piece,) = streamed([*part, B, T, row(1, "one"), C, commit(7, 600), B, moved, C])
    (rows,) = piece.rowsets
    assert rows_of(rows) == [
        Row(INSERT, (b"1", b"one"), 0, 0, 0, None),
        Row(INSERT, (b"5", b"streamed"), 1, 0, 0, None),
        Row(DELETE, (b"5", None), 2, 0, 0, None),
        Row(UPDATE, (b"6", None), 2, 2, 0, 2),
    ]


# ---- Wrong ones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b""], "an empty message"),
        ([S(7), b""], "cannot stand in a part"),
        ([b"S\0\0\0\7"], "wrong length"),
        ([S(7, 0)], "a later one of one that is not"),
        ([S(7, 2)], "a first part"),
        ([S(0)], "a first part"),
        ([S(7), b"E", S(7)], "a first part of a transaction that is known"),
        ([b"E"], "does not stand between transactions"),
        ([S(7), b"E\0"], "wrong length"),
        ([S(7), S(8)], "cannot stand in a part"),
        ([S(7), B], "cannot stand in a part"),
        ([S(7), C], "cannot stand in a part"),
        ([S(7), commit(7, 500)], "cannot stand in a part"),
        ([S(7), abort(7, 7)], "cannot stand in a part"),
        ([S(7), b"O\0"], "ends early"),
        ([S(7), b"T\0\0"], "ends early"),
        ([B, S(7)], "does not stand between transactions"),
        ([B, commit(7, 500)], "does not stand between transactions"),
        ([commit(7, 500)], "nothing was sent"),
        ([S(7), b"E", commit(7, 500)[:-1]], "wrong length"),
        ([S(7), b"E", commit(7, 500)[:5] + b"\1" + commit(7, 500)[6:]], "unknown flags"),
        ([S(7), b"E", commit(7, 500)[:-8] + b"\x7f" + b"\xff" * 7], "beyond the calendar"),
        ([S(7), b"E", commit(7, 500)[:14] + bytes(8) + commit(7, 500)[22:]], "does not belong"),
        ([S(7), b"E", abort(7, 7)[:-1]], "wrong length"),
        ([S(7), of(7, row(1)), b"E", commit(7, 500)], "was not described"),
        ([S(7), of(7, T), b"I\0\0\0\7", b"E", commit(7, 500)], "was not described"),
        ([S(7), of(7, T), of(7, row(1)), of(7, row(2))[:8], of(7, row(3)), b"E", commit(7, 500)], "was not described"),
        ([S(7), of(7, T), of(7, row(1)), of(7, row(2))[:9], of(7, row(3)), b"E", commit(7, 500)], "ends before"),
        ([S(7), b"P\0\0\0\7"], "cannot stand in a part"),
    ],
)
def test_malformed(messages: list[bytes], said: str) -> None:
    """Each way of being wrong is said."""
    with pytest.raises(StreamMalformed, match=said):
        streamed(messages)


def test_not_asked_for() -> None:
    """Without streaming its messages are unknown."""
    for message in (S(7), b"E", commit(7, 500), abort(7, 7)):
        with pytest.raises(StreamMalformed, match="kind is unknown"):
            decode([message], SMALL)
    assert relation("t", ["id:int4"], ["id"]).key == (0,)
