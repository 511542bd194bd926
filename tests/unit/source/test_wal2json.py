"""The decoder of wal2json over captured messages, and over every way in which these can be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.source.capture import read
from tests.unit.source.rows import Change, changes, relation
from tests.unit.source.test_pgoutput import EXPECTED, routed
from tests.unit.source.test_pgoutput import decode as decode_pgoutput
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, Relation
from towline.errors import SourceTableChanged, SourceTruncated, StreamMalformed
from towline.source.postgres import wal2json
from towline.source.postgres.batches import RowBatch
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.routed import Routed
from towline.source.postgres.wal2json import Decoder

I, U, D = INSERT, UPDATE, DELETE  # noqa: E741


def decode(messages: Sequence[bytes], relations: Sequence[Relation], start: int = 0) -> list[Piece]:
    """All pieces of the messages, cut after the last of them."""
    gatherer = Gatherer[RowBatch](start)
    decoder = Decoder(Routed(relations), gatherer)
    for message in messages:
        decoder.feed(message)
    at_boundary = gatherer.cut()
    return [
        *gatherer.ready,
        *([at_boundary] if at_boundary is not None else []),
        *([gatherer.cut_full()] if not gatherer.empty else []),
    ]


def test_captured() -> None:
    """The captured session gives the rows that the script wrote; nulls of inexact types are marked."""
    found = changes(decode(read("wal2json"), routed(Format.TEXT)))
    assert [change._replace(unknown=0) for change in found] == EXPECTED
    for change in found:
        inexact = 0b1100 if change.table == "item" and change.op in (I, U) else 0
        assert change.unknown == (inexact if inexact and change.values[2] is None else 0)


def test_transactions_are_those_of_pgoutput() -> None:
    """Both plugins tell the same numbers, positions and times of the same transactions."""
    mine = decode(read("wal2json"), routed(Format.TEXT))
    theirs = decode_pgoutput(read("pgoutput-text"), routed(Format.TEXT))
    assert [(piece.transactions, piece.end) for piece in mine] == [(piece.transactions, piece.end) for piece in theirs]


def test_every_prefix_of_every_message() -> None:
    """A message that was cut off anywhere is an error."""
    messages = read("wal2json")
    for number, message in enumerate(messages):
        for size in {*range(min(len(message), 300)), len(message) - 1}:
            with pytest.raises(StreamMalformed):
                decode([*messages[:number], message[:size]], routed(Format.TEXT))


def test_flipped_bytes() -> None:
    """Any byte flipped anywhere: an error of the stream, or other values in rows; never another exception."""
    messages = read("wal2json")
    dice = random.Random(20)
    for number, message in enumerate(messages):
        for place in dice.sample(range(len(message)), min(len(message), 120)):
            flipped = bytearray(message)
            flipped[place] ^= dice.randrange(1, 256)
            with suppress(StreamMalformed, SourceTableChanged, SourceTruncated):
                decode([*messages[:number], bytes(flipped), *messages[number + 1 :]], routed(Format.TEXT))


# ---- Messages made by hand ------------------------------------------------------------------------------------

TIME = "2026-11-23 07:58:10.541354+00"
HEAD = {"xid": 7, "timestamp": TIME, "lsn": "0/1F4"}
B = {"action": "B", **HEAD, "nextlsn": "0/226"}
C = {"action": "C", **HEAD, "nextlsn": "0/226"}
SMALL = [relation("t", ["id:int4", "n:numeric", "v:text"], ["id"])]


def columns(**values: Any) -> list[dict[str, Any]]:
    """A list of columns; the types are those of `SMALL`."""
    oids = {"id": 23, "n": 1700, "v": 25, "more": 25, "ok": 16}
    return [{"name": name, "typeoid": oids[name], "value": value} for name, value in values.items()]


def change(action: str, table: str = "t", **parts: Any) -> dict[str, Any]:
    """A change of a table."""
    return {"action": action, **HEAD, "schema": "public", "table": table, **parts}


def encoded(*messages: Any) -> list[bytes]:
    return [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]


@pytest.mark.parametrize(
    ("token", "value"),
    [
        (b"1", b"1"),
        (b"-0", b"-0"),
        (b"0.10", b"0.10"),
        (b"1e-07", b"1e-07"),
        (b"123456789012345678901234567890.123456789012345678901234567890", None),
        (b"true", b"t"),
        (b"false", b"f"),
        (b'"\\u0001\\"\\\\\\u00e9"', '\x01"\\é'.encode()),
    ],
)
def test_values(token: bytes, value: bytes | None) -> None:
    """Tokens become the text that the type's output function gives, digit by digit."""
    insert = encoded(change("I", columns=columns(id=1, n=2, v="VALUE")))[0].replace(b'"VALUE"', token)
    (found,) = changes(decode(encoded(B, insert, C), SMALL))
    assert found.values[2] == (value if value is not None else token)


def test_null_that_may_be_a_value() -> None:
    """In a numeric column it is unknown; in a text column it is NULL; a column left out is missing."""
    messages = encoded(
        B,
        change("I", columns=columns(id=1, n=None, v=None)),
        change("U", columns=columns(id=1, n=None), identity=columns(id=1)),
        C,
    )
    assert changes(decode(messages, SMALL)) == [
        Change("t", I, (b"1", None, None), 0, 0b10),
        Change("t", U, (b"1", None, None), 0b100, 0b10),
    ]


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        ([b"[]"], StreamMalformed, "not an object"),
        ([b"{"], StreamMalformed, "not JSON"),
        ([b"[" * 100_000], StreamMalformed, "not JSON"),
        ([b'{"action":"I","value":NaN}'], StreamMalformed, "not JSON"),
        ([b'{"action":"\xff"}'], StreamMalformed, "not JSON"),
        ([{}], StreamMalformed, "unknown action"),
        ([{"action": ["B"]}], StreamMalformed, "unknown action"),
        ([B, B], StreamMalformed, "begins inside another"),
        ([C], StreamMalformed, "does not belong to the transaction"),
        ([B, {**C, "lsn": "0/1F5"}], StreamMalformed, "does not belong to the transaction"),
        ([{**B, "lsn": "1F4"}], StreamMalformed, "lsn is not a position"),
        ([{**B, "lsn": 5}], StreamMalformed, "lsn is not a position"),
        ([{**B, "xid": "x"}], StreamMalformed, "xid is not"),
        ([{**B, "xid": None}], StreamMalformed, "no xid"),
        ([{**B, "timestamp": "soon"}], StreamMalformed, "timestamp is not a time"),
        ([{**B, "timestamp": TIME[:-3]}], StreamMalformed, "no time zone"),
        ([B, {"action": "C", "lsn": "0/1F4"}], StreamMalformed, "no nextlsn"),
        ([change("I", columns=columns(id=1, n=1, v="x"))], StreamMalformed, "outside of transactions"),
        ([change("T")], StreamMalformed, "outside of transactions"),
        ([B, change("I")], StreamMalformed, "has no columns"),
        ([B, change("I", columns=[1])], StreamMalformed, "not a list of names"),
        ([B, change("I", columns=[{"name": []}])], StreamMalformed, "not a list of names"),
        ([B, change("I", columns=[{"name": "id"}])], StreamMalformed, "not a list of names"),
        ([B, change("I", columns=columns(id=[1], n=1, v="x"))], StreamMalformed, "neither text"),
        ([B, change("I", columns=columns(id=1, n=1, v="\udcff"))], StreamMalformed, "not Unicode"),
        ([B, change("I", columns=columns(id=None, n=1, v="x"))], StreamMalformed, "no value for column id of the key"),
        ([B, change("D")], StreamMalformed, "has no identity"),
        ([B, change("D", identity=columns(id=None))], StreamMalformed, "no value for column id of the key"),
        ([B, change("U", columns=columns(id=1, n=1, v="x"))], StreamMalformed, "has no identity"),
        ([B, change("I", columns=columns(n=1, v="x"))], SourceTableChanged, r"public\.t has no column id"),
        (
            [B, change("U", columns=columns(n=1, v="x"), identity=columns(n=1))],
            SourceTableChanged,
            "column id .* identity",
        ),
        ([B, change("D", identity=columns(v="x"))], SourceTableChanged, "column id .* replica identity"),
        (
            [B, change("I", columns=[{"name": "id", "typeoid": 20, "value": 1}])],
            SourceTableChanged,
            r"column id of public\.t is of the type with OID 20",
        ),
        ([B, change("T", table="part"), C], SourceTruncated, r"public\.part"),
    ],
)
def test_malformed(messages: list[Any], error: type[Exception], said: str) -> None:
    """Each way of being wrong is said, with table and column where there are any."""
    relations = [*SMALL, relation("root", ["id:int4"], ["id"], partitions=["part"])]
    with pytest.raises(error, match=said):
        decode(encoded(*messages), relations)


def test_columns_from_before_they_were_added() -> None:
    """What an insert does not have, or an update that could not have it stored out of line, must be read again."""
    relations = [relation("t", ["id:int4", "ok:bool", "v:text"], ["id"])]
    (piece,) = decode(
        encoded(
            B,
            change("I", columns=columns(id=1)),
            change("U", columns=columns(id=1), identity=columns(id=1)),
            change("D", identity=columns(id=1)),
            C,
        ),
        relations,
    )
    (rows,) = piece.rowsets
    assert (rows.unknown, rows.missing) == ({0: 0b110, 1: 0b010}, {1: 0b100})


def test_column_that_was_dropped() -> None:
    """What was there once and is absent is not taken for a column that is yet to come."""
    relations = [relation("t", ["id:int4", "ok:bool", "v:text"], ["id"])]
    whole = change("I", columns=columns(id=1, ok=True, v="x"))
    toasted = change("U", columns=columns(id=1, ok=True), identity=columns(id=1))
    assert len(changes(decode(encoded(B, whole, toasted, C), relations))) == 2
    for dropped in (
        change("I", columns=columns(id=2, v="x")),
        change("U", columns=columns(id=1, v="x"), identity=columns(id=1)),
    ):
        with pytest.raises(SourceTableChanged, match=r"public\.t has no column ok"):
            decode(encoded(B, whole, dropped, C), relations)


def test_column_added_to_a_table_copied_as_it_is() -> None:
    """It must not go unseen; where routes name their columns, it is none of theirs."""
    messages = encoded(B, change("I", columns=columns(id=1, n=1, v="x", more=5)), C)
    (small,) = SMALL
    assert changes(decode(messages, [small])) == [Change("t", I, (b"1", b"1", b"x"))]
    with pytest.raises(SourceTableChanged, match=r"public\.t has a column more"):
        decode(messages, [replace(small, whole=True)])


def test_nothing_is_wrong_in_what_was_applied_or_is_unwanted() -> None:
    """Transactions before the start position, and tables that are not routed, are not looked into."""
    bad = change("I", columns=columns(id=1))
    assert changes(decode(encoded(B, bad, C), SMALL, start=501)) == []
    assert changes(decode(encoded(B, change("I", table="other"), {"action": "M", **HEAD}, C), SMALL)) == []


def test_truncated_partitions_go_with_their_root() -> None:
    """The partitions that are named after the root are not truncations of their own."""
    relations = [relation("root", ["id:int4"], ["id"], partitions=["part"])]
    messages = encoded(B, change("T", table="root"), change("T", table="part"), C)
    assert changes(decode(messages, relations)) == [Change("root", 0, ())]


def test_options() -> None:
    """Names in the list of tables have what has a meaning in it escaped; with partitioned tables there is no list."""
    odd = relation("a.b, c*'\\", ["id:int4"], ["id"], schema="S x")
    assert wal2json.options([odd, *SMALL], partitioned=False)["add-tables"] == r"S\ x.a\.b\,\ c\*\'\\,public.t"
    assert "add-tables" not in wal2json.options([odd], partitioned=True)
