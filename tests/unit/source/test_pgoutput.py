"""The decoder of pgoutput over captured bytes, and over every way in which these can be wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.unit.source.capture import read
from tests.unit.source.rows import Change, changes, feed, relation
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, Relation
from towline.errors import SourceTableChanged, SourceTruncated, StreamMalformed
from towline.source.postgres import pgoutput
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.pgoutput import Decoder
from towline.source.postgres.pgoutput_messages import Begin, Commit, parse
from towline.source.postgres.routed import Routed
from towline.source.postgres.tuple_batch import TupleBatch
from towline_transforms.schema import TableName

I, U, D = INSERT, UPDATE, DELETE  # noqa: E741
LONG = b"n" * 2100
WHOLE = b"w" * 2100


def routed(format_: Format) -> list[Relation]:
    """What is wanted of the captured tables: not the column ``spare``, nor the one of an enum."""
    item = [
        "id:int4",
        "code:text",
        "price:numeric",
        "weight:float8",
        "ok:bool",
        "raw:bytea",
        "at:timestamptz",
        "note:text",
    ]
    return [
        relation("item", item, ["id"], format_=format_),
        relation("Whole Row", ["id:int4", "note:text"], ["id"], format_=format_),
        relation("by_index", ["id:int4", "code:text", "n:int4"], ["code"], format_=format_),
    ]


#: The captured changes of the relations above, in text; both plugins give these.
EXPECTED = [
    Change("item", I, (b"1", b"a", b"1.10", b"1e-07", b"t", b"\\x00ff", b"2024-02-29 12:00:00.000001+00", LONG)),
    Change("item", I, (b"2", b"", b"0.00", b"-0", b"f", b"\\x", b"0044-03-15 00:00:00+00 BC", 'é "quoted"\n'.encode())),
    Change("item", U, (b"1", b"a", b"2.00", b"1e-07", b"t", b"\\x00ff", b"2024-02-29 12:00:00.000001+00", None), 0x80),
    Change("item", D, (b"1", None, None, None, None, None, None, None)),
    Change("item", U, (b"3", b"a", b"2.00", b"1e-07", b"t", b"\\x00ff", b"2024-02-29 12:00:00.000001+00", None), 0x80),
    Change("item", D, (b"2", None, None, None, None, None, None, None)),
    Change("item", U, (b"4", b"", b"0.00", b"-0", b"f", b"\\x", b"0044-03-15 00:00:00+00 BC", b"short")),
    Change("item", D, (b"4", None, None, None, None, None, None, None)),
    Change("Whole Row", I, (b"1", WHOLE)),
    Change("Whole Row", U, (b"1", WHOLE)),
    Change("Whole Row", D, (b"1", None)),
    Change("Whole Row", U, (b"2", WHOLE)),
    Change("Whole Row", D, (b"2", None)),
    Change("by_index", I, (b"1", b"x", b"1")),
    Change("by_index", U, (b"2", b"x", b"1")),
    Change("by_index", D, (None, b"x", None)),
    Change("by_index", U, (b"2", b"y", b"1")),
    Change("by_index", D, (None, b"y", None)),
    Change("item", I, (b"5", None, None, None, None, None, None, None)),
    Change("item", 0, ()),
    Change("by_index", 0, ()),
    Change("item", I, (b"6", None, None, None, None, None, None, None)),
    Change("item", I, (b"7", None, None, None, None, None, None, None)),
    Change("item", I, (b"8", b"narrower", None, None, None, None, None, None)),
]


def decode(messages: Sequence[bytes], relations: Sequence[Relation], start: int = 0) -> list[Piece]:
    """All pieces of the messages, cut after the last of them."""
    gatherer = Gatherer[TupleBatch](start)
    decoder = Decoder(Routed(relations), gatherer)
    feed(decoder, messages)
    at_boundary = gatherer.cut()
    return [
        *gatherer.ready,
        *([at_boundary] if at_boundary is not None else []),
        *([gatherer.cut_full()] if not gatherer.empty else []),
    ]


def test_text() -> None:
    """The captured session gives the rows that the script wrote."""
    assert changes(decode(read("pgoutput-text"), routed(Format.TEXT))) == EXPECTED


def test_binary() -> None:
    """The same session in binary: the same changes, with the values as the types send them."""
    binary = changes(decode(read("pgoutput-binary"), routed(Format.BINARY)))
    assert [(change.table, change.op, change.missing) for change in binary] == [
        (change.table, change.op, change.missing) for change in EXPECTED
    ]
    assert binary[0].values[:6] == (
        b"\0\0\0\1",
        b"a",
        bytes.fromhex("0002000000000002000103e8"),
        bytes.fromhex("3e7ad7f29abcaf48"),
        b"\1",
        b"\x00\xff",
    )
    assert binary[0].values[7] == LONG


def test_transactions() -> None:
    """Each transaction with a wanted change is listed once, with the position where its commit starts."""
    messages = read("pgoutput-text")
    begins = [parsed for message in messages if isinstance(parsed := parse_control(message), Begin)]
    pieces = decode(messages, routed(Format.TEXT))
    listed = {
        (transaction.xid, transaction.lsn, transaction.commit_time) for p in pieces for transaction in p.transactions
    }
    wanted = [begin for begin in begins if begin.xid != begins[8].xid]  # the one with a logical message only
    assert listed == {(begin.xid, begin.lsn, begin.commit_time) for begin in wanted}


def parse_control(message: bytes) -> object:
    """A message that is no change, parsed."""
    return parse(message) if message[:1] not in (b"I", b"U", b"D") else None


def test_resume_skips_what_was_applied() -> None:
    """From the end of any transaction on, exactly the later ones are yielded."""
    messages = read("pgoutput-text")
    relations = routed(Format.TEXT)
    commits = [number for number, message in enumerate(messages) if message[:1] == b"C"]
    for number in commits:
        commit = parse(messages[number])
        assert isinstance(commit, Commit)
        seen = len(changes(decode(messages[: number + 1], relations)))
        assert changes(decode(messages, relations, start=commit.end)) == EXPECTED[seen:]


def broken(messages: Sequence[bytes], number: int, message: bytes) -> None:
    """Decode with one message replaced: an error of the stream, or (when the change is harmless) none."""
    decode([*messages[:number], message, *messages[number + 1 :]], routed(Format.TEXT))


def test_every_prefix_of_every_message() -> None:
    """A message that was cut off anywhere is an error, whatever its kind."""
    for name, format_ in (("pgoutput-text", Format.TEXT), ("pgoutput-binary", Format.BINARY)):
        messages = read(name)
        for number, message in enumerate(messages):
            for size in {*range(min(len(message), 120)), len(message) - 1}:
                if size >= 5 and unwanted(message, messages):
                    continue
                with pytest.raises(StreamMalformed):
                    decode([*messages[:number], message[:size]], routed(format_))
        for number, message in enumerate(messages):
            if unwanted(message, messages):
                continue
            with pytest.raises(StreamMalformed):
                decode([*messages[:number], message + b"\0"], routed(format_))


def unwanted(message: bytes, messages: Sequence[bytes]) -> bool:
    """A change of a table that is not routed: its tuple is not looked at."""
    names = {m[1:5]: m[5:].split(b"\0")[1] for m in messages if m[:1] == b"R"}
    return message[:1] in (b"I", b"U", b"D") and names[message[1:5]] == b"unwanted"


def test_flipped_bytes() -> None:
    """Any byte flipped anywhere: an error of the stream, or other values in rows; never another exception."""
    messages = read("pgoutput-text")
    dice = random.Random(20)
    for number, message in enumerate(messages):
        places = range(len(message)) if len(message) < 150 else dice.sample(range(len(message)), 150)
        for place in places:
            flipped = bytearray(message)
            flipped[place] ^= dice.randrange(1, 256)
            with suppress(StreamMalformed, SourceTableChanged, SourceTruncated):
                broken(messages, number, bytes(flipped))


B = b"B" + (500).to_bytes(8, "big") + bytes(8) + (7).to_bytes(4, "big")
C = b"C\0" + (500).to_bytes(8, "big") + (550).to_bytes(8, "big") + bytes(8)


def R(*columns: tuple[str, int, int], name: str = "t", identity: str = "d", oid: int = 99) -> bytes:
    """A Relation message; columns are name, type OID, flags."""
    described = b"".join(
        bytes((flags,)) + column.encode() + b"\0" + type_.to_bytes(4, "big") + b"\xff" * 4
        for column, type_, flags in columns
    )
    head = b"R" + oid.to_bytes(4, "big") + b"public\0" + name.encode() + b"\0" + identity.encode()
    return head + len(columns).to_bytes(2, "big") + described


def ins(*values: bytes, oid: int = 99) -> bytes:
    """An Insert message."""
    row = b"".join(b"t" + len(value).to_bytes(4, "big") + value for value in values)
    return b"I" + oid.to_bytes(4, "big") + b"N" + len(values).to_bytes(2, "big") + row


ID, V, N = ("id", 23, 1), ("v", 25, 0), ("n", 23, 0)
SMALL = [relation("t", ["id:int4", "v:text"], ["id"])]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b""], "an empty message"),
        ([b"S\0\0\0\1\1"], "kind is unknown"),
        ([b"\xff"], "kind is unknown"),
        ([B, B], "begins inside another"),
        ([C], "does not belong to the transaction"),
        ([B, C[:9] + b"\7" + C[10:]], "does not belong to the transaction"),
        ([B, b"C\1" + C[2:]], "unknown flags"),
        ([B, C[:10] + bytes(8) + C[18:]], "does not belong to the transaction"),
        ([B[:9] + b"\x7f" + b"\xff" * 7 + B[17:]], "beyond the calendar"),
        ([R(ID, V), ins(b"1", b"x")], "outside of transactions"),
        ([B, ins(b"1", b"x")], "was not described"),
        ([b"T\0\0\0\1\0\0\0\0\x63"], "outside of transactions"),
        ([B, b"T\0\0\0\1\0\0\0\0\x63"], "was not described"),
        ([B, b"T\xff\xff\xff\xff\0"], "ends early"),
        ([B, b"T\0\0\0\0\x08"], "unknown options"),
        ([R(ID, V, identity="z")], "identity is unknown"),
        ([R(ID, ID)], "same name"),
        ([R(("id", 23, 3))], "unknown flags"),
        ([R(ID).replace(b"id", b"\xff\xff")], "not UTF-8"),
        ([B, R(ID, V), ins(b"1"), C], "does not have 2 columns"),
    ],
)
def test_malformed(messages: list[bytes], said: str) -> None:
    """Each way of being wrong is said."""
    with pytest.raises(StreamMalformed, match=said):
        decode(messages, SMALL)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (R(V), r"public\.t has no column id"),
        (R(ID, ("v", 1043, 0)), r"column v of public\.t is of the type with OID 1043"),
        (R(("id", 23, 0), V), r"column id of public\.t is not part of the replica identity"),
    ],
)
def test_table_changed(described: bytes, said: str) -> None:
    """A table that no longer fits is an error at its first change, and not before."""
    assert changes(decode([described, B, C], SMALL)) == []
    assert changes(decode([described, B, ins(b"1", b"x"), C], SMALL, start=501)) == []
    with pytest.raises(SourceTableChanged, match=said):
        decode([described, B, ins(b"1", b"x"), C], SMALL)


def test_column_from_before_it_was_added() -> None:
    """Rows logged before a column was there are to be read again; what was there once and is not, was dropped."""
    more = relation("t", ["id:int4", "n:int4", "v:text"], ["id"])
    messages = [B, R(V, ID), ins(b"a", b"1"), R(V, ID, N), ins(b"b", b"2", b"5"), C]
    assert changes(decode(messages, [more])) == [
        Change("t", I, (b"1", None, b"a"), unknown=0b010),
        Change("t", I, (b"2", b"5", b"b")),
    ]
    with pytest.raises(SourceTableChanged, match=r"public\.t has no column n"):
        decode([*messages, B, R(V, ID), ins(b"a", b"3"), C], [more])


def test_column_added_to_a_table_copied_as_it_is() -> None:
    """It must not go unseen; where routes name their columns, it is none of theirs."""
    messages = [B, R(ID, V, ("more", 23, 0)), ins(b"1", b"x", b"5"), C]
    assert changes(decode(messages, SMALL)) == [Change("t", I, (b"1", b"x"))]
    with pytest.raises(SourceTableChanged, match=r"public\.t has a column more"):
        decode(messages, [replace(SMALL[0], whole=True)])


def test_layout_that_changes_inside_a_transaction() -> None:
    """Rows before and after a new description are framed each by its own, and come as one row set."""
    (piece,) = decode(
        [B, R(ID, V), ins(b"1", b"a"), R(V, ("more", 23, 0), ID), ins(b"b", b"?", b"2"), R(ID, V), ins(b"3", b"c"), C],
        SMALL,
    )
    assert len(piece.rowsets) == 1
    assert changes([piece]) == [Change("t", I, (n, v)) for n, v in ((b"1", b"a"), (b"2", b"b"), (b"3", b"c"))]


def test_partitions() -> None:
    """Partitions, known or found out, are rows of their root; truncated by themselves they stop the stream."""
    root = relation("t", ["id:int4", "v:text"], ["id"], partitions=["known"])
    asked = []

    def resolve(name: TableName) -> TableName | None:
        asked.append(name.name)
        return root.name if name.name == "found" else None

    gatherer = Gatherer[TupleBatch](0)
    decoder = Decoder(Routed([root], resolve), gatherer)
    for number, name in enumerate(["known", "found", "other", "found"]):
        decoder.feed(R(ID, V, name=name, oid=number))
    decoder.feed(B)
    for number in range(4):
        decoder.feed(ins(b"%d" % number, b"x", oid=number))
    assert changes([gatherer.cut_full()]) == [Change("t", I, (n, b"x")) for n in (b"0", b"1", b"3")]
    assert asked == ["found", "other"]
    with pytest.raises(SourceTruncated, match=r"public\.known"):
        decoder.feed(b"T\0\0\0\1\0\0\0\0\0")


def test_unwanted_tables_cost_no_piece() -> None:
    """A transaction without wanted changes only moves the position."""
    gatherer = Gatherer[TupleBatch](0)
    decoder = Decoder(Routed(SMALL), gatherer)
    for message in [B, R(ID, name="other"), ins(b"1"), b"M\0" + bytes(8) + b"p\0\0\0\0\1c", C]:
        decoder.feed(message)
    piece = gatherer.cut()
    assert piece is not None
    assert (piece.rowsets, piece.transactions, piece.end) == ((), (), 550)


def test_options() -> None:
    """What the plugin is asked for; the publication's name is quoted as an identifier."""
    assert pgoutput.options('a"b', Format.TEXT) == {"proto_version": "1", "publication_names": '"a""b"'}
    assert pgoutput.options("p", Format.BINARY)["binary"] == "true"
