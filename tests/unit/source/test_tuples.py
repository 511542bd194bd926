"""Framing of pgoutput's tuples, for many at once and one by one, against a decoder as simple as can be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.source.rows import Row, relation, rows_of
from towline.change import DELETE, INSERT, UPDATE, Format, RowSet
from towline.errors import StreamMalformed
from towline.source.postgres import few_tuples, tuples
from towline.source.postgres.block import Block
from towline.source.postgres.layout import Layout

#: A value that was not sent.
UNSENT = object()
ENVELOPE = b"w" + bytes(24)
Framer = Callable[[Layout, Sequence[bytes], Sequence[int], int], RowSet]


def together(layout: Layout, messages: Sequence[bytes], orders: Sequence[int], at: int, skip: int = 0) -> RowSet:
    """All tuples at once, out of the midst of a block."""
    block = Block.of([b"before", *messages, b"after it"], at)
    heads, ends = block.begins[1:-1] + at, block.ends[1:-1]
    return tuples.row_set(layout, block.data, heads, ends, np.array(orders, dtype=np.int64), skip)


FRAMERS: list[Framer] = [together, few_tuples.row_set]

Value = object  # bytes, None or UNSENT
#: Operation, old tuple, new tuple.
Made = tuple[str, list[Value] | None, list[Value] | None]
Case = tuple[Layout, list[Made], list[bytes]]


def tuple_bytes(values: Sequence[Value], kind: bytes) -> bytes:
    """A tuple as pgoutput writes it."""
    out = [len(values).to_bytes(2, "big")]
    for value in values:
        if value is None:
            out.append(b"n")
        elif isinstance(value, bytes):
            out.append(kind + len(value).to_bytes(4, "big") + value)
        else:
            out.append(b"u")
    return b"".join(out)


def change(op: str, old: Sequence[Value] | None, new: Sequence[Value] | None, kind: bytes, marker: bytes) -> bytes:
    """A change as pgoutput writes it."""
    out = op.encode() + (99).to_bytes(4, "big")
    if old is not None:
        out += marker + tuple_bytes(old, kind)
    if new is not None:
        out += b"N" + tuple_bytes(new, kind)
    return out


def reference(layout: Layout, wanted: Sequence[Made]) -> list[Row]:
    """What the changes mean, by the book."""
    sent_at = {place: sent for sent, place in enumerate(layout.places) if place >= 0}
    columns = range(len(layout.relation.columns))
    unknown = sum(1 << place for place in columns if place not in sent_at)
    key = layout.relation.key
    rows: list[Row] = []
    for order, (op, old, new) in enumerate(wanted):
        moved = None
        if op == "D" or (op == "U" and old is not None and new is not None and changed(old, new, sent_at, key)):
            assert old is not None
            moved = len(rows)
            values = [old[sent_at[place]] if place in key else None for place in columns]
            rows.append(Row(DELETE, tuple(v if isinstance(v, bytes) else None for v in values), order, 0, 0, None))
        if new is not None:
            missing = 0
            row: list[bytes | None] = []
            for place in columns:
                if place not in sent_at:
                    row.append(None)
                    continue
                value = new[sent_at[place]]
                if value is UNSENT and old is not None and old[sent_at[place]] is not None:
                    value = old[sent_at[place]]
                if value is UNSENT:
                    missing |= 1 << place
                row.append(value if isinstance(value, bytes) else None)
            operation = INSERT if op == "I" else UPDATE
            rows.append(Row(operation, tuple(row), order, missing, unknown, moved if missing else None))
    return rows


def changed(old: Sequence[Value], new: Sequence[Value], sent_at: dict[int, int], key: Sequence[int]) -> bool:
    return any(new[sent_at[p]] is not UNSENT and new[sent_at[p]] != old[sent_at[p]] for p in key)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any number of columns, some not wanted or not sent, in any order, with any of those sent the key."""
    wanted = draw(st.integers(1, 5))
    dropped = draw(st.integers(0, 3))
    sent = (
        draw(st.lists(st.sampled_from(range(wanted)), min_size=1, unique=True))
        if draw(st.booleans())
        else range(wanted)
    )
    places = draw(st.permutations([*sent, *[-1] * dropped]))
    key = draw(st.lists(st.sampled_from(sent), min_size=1, unique=True))
    format_ = draw(st.sampled_from([Format.TEXT, Format.BINARY]))
    made = relation("t", [f"c{place}:text" for place in range(wanted)], [f"c{place}" for place in key], format_=format_)
    return Layout(made, tuple(places), made.name)


VALUE = st.one_of(st.binary(max_size=3), st.binary(min_size=200, max_size=300))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layout, changes, and the changes as bytes."""
    layout = draw(layouts())
    kind = b"b" if layout.relation.format is Format.BINARY else b"t"
    keys = set(layout.key)
    made: list[Made] = []
    messages = []

    def row(nullable: bool, unsent: bool, whole: bool = True) -> list[Value]:
        values: list[Value] = []
        for sent in range(len(layout.places)):
            if sent in keys and not nullable:
                values.append(draw(st.one_of(VALUE, st.just(UNSENT)) if unsent else VALUE))
            elif not whole:
                values.append(None)
            else:
                options = [VALUE, st.none()] + ([st.just(UNSENT)] if unsent else [])
                values.append(draw(st.one_of(*options)))
        return values

    for _ in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(["I", "U", "U", "UK", "UO", "D", "DO"]))
        whole = op.endswith("O")
        old = row(False, False, whole) if op not in ("I", "U") else None
        new = row(False, op[0] == "U") if op[0] != "D" else None
        if old is not None and new is not None and draw(st.booleans()):
            for sent in keys:
                new[sent] = draw(st.sampled_from([old[sent], UNSENT]))
        made.append((op[0], old, new))
        messages.append(change(op[0], old, new, kind, b"O" if whole else b"K"))
    return layout, made, messages


@pytest.mark.parametrize("framer", FRAMERS, ids=["many", "few"])
@settings(derandomize=True, deadline=None, max_examples=120)
@given(case=cases(), enveloped=st.booleans())
def test_rows_are_those_of_the_reference(framer: Framer, case: Case, enveloped: bool) -> None:
    """Whatever the mix of changes: rows, operations, order, missing values and moved keys are as by the book."""
    layout, made, messages = case
    at = len(ENVELOPE) if enveloped else 0
    framed = framer(layout, [ENVELOPE[:at] + message for message in messages], range(len(messages)), at)
    assert rows_of(framed) == reference(layout, made)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_broken_bytes_break_both_alike(case: Case, seed: int) -> None:
    """Bytes changed, cut off or put in: StreamMalformed from both framers, or the same rows from both."""
    layout, _, messages = case
    dice = random.Random(seed)
    victim = dice.randrange(len(messages))
    messages[victim] = broken(messages[victim], dice)
    results: list[object] = []
    for framer in FRAMERS:
        try:
            results.append(rows_of(framer(layout, messages, range(len(messages)), 0)))
        except StreamMalformed:
            results.append("malformed")
    assert results[0] == results[1]


def broken(message: bytes, dice: random.Random) -> bytes:
    """The message with one thing done to it. The OID is left alone: it is what brought the message here."""
    at = dice.choice([0, *range(5, len(message))])
    match dice.randrange(4):
        case 0:
            return message[:at]
        case 1:
            return message[:at] + dice.randbytes(1) + message[at + 1 :]
        case 2:
            return (
                message[:at] + dice.choice([b"n", b"u", b"t", b"b", b"N", b"K", b"\x7f", b"\xff"]) + message[at + 1 :]
            )
        case _:
            return message[:at] + dice.randbytes(dice.randrange(1, 9)) + message[at:]


RELATION = relation("t", ["id:text", "v:text"], ["id"])
LAYOUT = Layout(RELATION, (0, -1, 1), RELATION.name)
GOOD = change("U", [b"1", b"x", b"old"], [b"2", None, UNSENT], b"t", b"O")


@pytest.mark.parametrize("framer", FRAMERS, ids=["many", "few"])
@pytest.mark.parametrize("copies", [1, 3])
def test_every_prefix_is_malformed(framer: Framer, copies: int) -> None:
    """A change that was cut off anywhere is never a row, wherever it stands among others."""
    assert len(rows_of(framer(LAYOUT, [GOOD] * copies, range(copies), 0))) == 2 * copies
    for size in range(len(GOOD)):
        for place in range(copies):
            messages = [GOOD] * copies
            messages[place] = GOOD[:size]
            with pytest.raises(StreamMalformed):
                framer(LAYOUT, messages, range(copies), 0)
            messages[place] = GOOD + GOOD[:size] + b"!"
            with pytest.raises(StreamMalformed):
                framer(LAYOUT, messages, range(copies), 0)


@pytest.mark.parametrize("framer", FRAMERS, ids=["many", "few"])
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (change("I", None, [b"1", None, UNSENT], b"t", b""), "inserted row was not sent"),
        (change("I", [b"1", None, None], [b"1", None, None], b"t", b"K"), "wrong kind"),
        (change("D", None, [b"1", None, None], b"t", b""), "wrong kind"),
        (change("U", [b"1", None, None], None, b"t", b"K"), "no new tuple"),
        (change("D", [None, None, b"v"], None, b"t", b"K"), "lacks a column of the key"),
        (change("D", [UNSENT, None, b"v"], None, b"t", b"K"), "column id is of unknown kind"),
        (change("I", None, [b"1", None], b"t", b""), "does not have 3 columns"),
        (change("I", None, [b"1", b"x", b"v"], b"b", b""), "column id came as binary in a stream of text"),
        (change("I", None, [None, b"x", None], b"?", b""), "column number 2 is of unknown kind 63"),
        (b"I\0\0\0cN\0\3t\xff\xff\xff\xffnn", "ends inside column 1"),
        (b"I\0\0\0cN\0\3t\0\0\0\3nn", "ends inside column"),
        (b"I\0\0\0c", "before its first tuple"),
    ],
)
def test_malformed(framer: Framer, message: bytes, said: str) -> None:
    """Each way of being wrong is said, with the table's name."""
    for messages in ([message], [GOOD, message, GOOD]):
        with pytest.raises(StreamMalformed, match=said) as raised:
            framer(LAYOUT, messages, range(len(messages)), 0)
        assert "public.t" in str(raised.value)
