"""The rows of several tables looked at together: the outcome is that of looking at each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_compact import RELATION
from tests.unit.test_key_sum import histories
from towline.change import DELETE, INSERT, UPDATE, RowSet
from towline.columns import columns, columns_of_each
from towline.frame import Frame, FrameError, frame_row, frame_value
from towline.key_hash import each_key_hashes, key_hashes
from towline.key_sum import MODULUS, change_of, changes_of

Values = list[bytes | None]
VALUE = st.none() | st.binary(max_size=9)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[Values]]:
    """The width of a table, and some rows."""
    width = draw(st.integers(1, 5))
    return width, draw(st.lists(st.lists(VALUE, min_size=width, max_size=width), max_size=6))


def frames(made: list[tuple[int, list[Values]]]) -> list[Frame]:
    """The tables' rows, framed anew: nothing of them is known."""
    return [Frame.of_values(rows, width) for width, rows in made]


def framed_columns(width: int, rows: list[Values]) -> list[bytes]:
    """What each column's values are, framed one by one."""
    return [b"".join(frame_value(row[column]) for row in rows) for column in range(width)]


@given(st.lists(tables(), max_size=6), st.integers(1, 20))
def test_columns_of_many_tables(made: list[tuple[int, list[Values]]], times: int) -> None:
    """Whatever the widths, the lengths and the numbers of rows: for few rows and for many."""
    made = [(width, rows * times) for width, rows in made]
    expected = [framed_columns(width, rows) for width, rows in made]
    assert columns_of_each(frames(made)) == expected
    assert [columns(frame) for frame in frames(made)] == expected


@given(st.lists(tables(), min_size=1, max_size=6), st.integers(1, 40))
def test_columns_of_values_of_one_size(made: list[tuple[int, list[Values]]], times: int) -> None:
    """Where all rows are alike, values are copied at once: the tables' first rows, again and again."""
    width = min(width for width, _ in made)
    row: Values = next((rows[0][:width] for _, rows in made if rows), [None] * width)
    alike = [(width, [row] * (times * number)) for number in range(1, 4)]
    expected = [framed_columns(width, rows) for width, rows in alike]
    assert columns_of_each(frames(alike)) == expected
    assert [columns(frame) for frame in frames(alike)] == expected


@given(st.lists(tables(), min_size=1, max_size=6), st.data())
def test_keys_are_those_of_each(made: list[tuple[int, list[Values]]], data: st.DataObject) -> None:
    """Once their keys were hashed together, frames know where these are: there they are found as before."""
    least = min(width for width, _ in made)
    first = data.draw(st.integers(0, least - 1))
    key = range(first, first + data.draw(st.integers(1, least - first)))
    made = [(width, rows * 8) for width, rows in made]
    alone, together, looked_at = frames(made), frames(made), frames(made)
    each_key_hashes([(frame, key) for frame in together])
    for one, other, third in zip(alone, together, looked_at, strict=True):
        expected = [b"".join(frame_value(one.value(row, column)) for column in key) for row in range(len(one))]
        third.fields()
        assert frames([(one.width, [])])[0].keys(key) == []
        assert other.keys(key) == third.keys(key) == expected
        for found, by_itself in zip(other.span(key[0], len(key)), third.span(key[0], len(key)), strict=True):
            assert found.tolist() == by_itself.tolist()


@given(st.lists(tables(), max_size=8), st.data(), st.integers(1, 9))
def test_hashes_are_those_of_each(made: list[tuple[int, list[Values]]], data: st.DataObject, times: int) -> None:
    """With few rows in all and with many, and with keys whose columns are not beside each other."""
    made = [(width, rows * times) for width, rows in made]
    keys = [
        data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=width, unique=True)) for width, _ in made
    ]
    found = each_key_hashes(list(zip(frames(made), keys, strict=True)))
    expected = [key_hashes(frame, key) for frame, key in zip(frames(made), keys, strict=True)]
    assert [hashes.tolist() for hashes in found] == [hashes.tolist() for hashes in expected]


@given(st.lists(histories(), max_size=6), st.integers(0, 1000))
def test_changes_are_those_of_each(made: list[tuple[object, object, object]], gap: int) -> None:
    """So are the sums, also where one table's last change and the next one's first have the same order number."""
    rowsets = [history[0].rowset() for history in made]  # type: ignore[attr-defined]
    rowsets = [
        RowSet(each.relation, each.rows, each.ops, each.order + gap * number) for number, each in enumerate(rowsets)
    ]
    for rowset, found in zip(rowsets, changes_of(rowsets), strict=True):
        expected = change_of(rowset)
        assert found.hashes.tolist() == expected.hashes.tolist()
        assert found.signs.tolist() == expected.signs.tolist()
        assert (found.keys, found.operations) == (expected.keys, expected.operations)


def test_a_deletion_before_another_tables_update() -> None:
    """Of two tables, a deletion and an update with the same number are not a change of key."""
    deletion, update = (
        RowSet(RELATION, Frame.of_values([[b"k", None, None]], 3), np.array([op], dtype=np.uint8), np.array([7]))
        for op in (DELETE, UPDATE)
    )
    assert [change.keys.keys for change in changes_of([deletion, update])] == [-1, 0]


def test_sums_go_round() -> None:
    """Hashes, and their products with weights, add up modulo 2**64, as Python's integers do."""
    rows = Frame.of_values([[str(number).encode(), None, None] for number in range(500)], 3)
    ops = np.array([(INSERT, UPDATE, DELETE)[number % 3] for number in range(500)], dtype=np.uint8)
    change = change_of(RowSet(RELATION, rows, ops, np.arange(500)))
    hashes = key_hashes(rows, (0,)).tolist()
    signs = [{INSERT: 1, UPDATE: 0, DELETE: -1}[op] for op in ops.tolist()]
    assert change.keys.sum == sum(one * sign for one, sign in zip(hashes, signs, strict=True)) % MODULUS
    assert change.keys.keys == sum(signs)


@pytest.mark.parametrize(
    "bad", [b"\0\2\0\0\0\1x", frame_row([b"x"]), frame_row([b"x", b"y"]) + b"z", b"\0\2\0\0\0\x09xy"]
)
def test_a_malformed_row_is_the_error_of_its_frame(bad: bytes) -> None:
    """Rows that are not whole are refused, with few rows or many, alone or with others."""
    good = Frame.of_values([[b"a", b"b", b"c"]] * 30, 3)
    for others in (0, 200):
        wrong = Frame.of_rows([*[frame_row([b"a", b"b"])] * others, bad], 2)
        with pytest.raises(FrameError):
            columns_of_each([wrong, good])
        with pytest.raises(FrameError):
            columns(wrong)


def test_a_key_that_is_cut_off() -> None:
    """A row that ends inside its key is an error of hashing, however many frames are hashed together."""
    good = Frame.of_values([[b"a"]] * 30, 1)
    for bad in (b"\0\1\0\0", b"\0\1\0\0\0\5abc"):
        wrong = Frame.of_rows([bad], 1)
        with pytest.raises(FrameError):
            each_key_hashes([(wrong, (0,)), (good, (0,))])
        with pytest.raises(FrameError):
            wrong.keys((0,))
