"""Framed rows: the numpy operations against a plain reading of the format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towline.frame import COPY_HEADER, COPY_TRAILER, Frame, FrameError, frame_row, key_values

Row = list[bytes | None]
values = st.none() | st.binary(max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[Row]]:
    width = draw(st.integers(1, 5))
    return width, draw(st.lists(st.lists(values, min_size=width, max_size=width), max_size=8))


@given(tables())
@settings(derandomize=True)
def test_values_come_back(table: tuple[int, list[Row]]) -> None:
    """Whatever is framed is found again by column, by row and by value."""
    width, rows = table
    frame = Frame.of_values(rows, width)
    assert len(frame) == len(rows)
    for column in range(width):
        assert frame.column(column) == [row[column] for row in rows]
    for index, row in enumerate(rows):
        assert frame.row(index) == frame_row(row)
        assert [frame.value(index, column) for column in range(width)] == row
    assert frame.copy_data() == COPY_HEADER + b"".join(map(frame_row, rows)) + COPY_TRAILER


@given(tables(), st.data())
@settings(derandomize=True)
def test_rows_and_columns_can_be_chosen(table: tuple[int, list[Row]], data: st.DataObject) -> None:
    """take, project, append_column, concat and keys do what their names say."""
    width, rows = table
    frame = Frame.of_values(rows, width)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    columns = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=5))
    taken = frame.take(np.array(chosen, dtype=np.int64))
    assert [taken.row(i) for i in range(len(taken))] == [frame_row(rows[i]) for i in chosen]
    projected = frame.project(columns)
    assert projected.width == len(columns)
    assert projected.data == b"".join(frame_row([row[c] for c in columns]) for row in rows)
    assert [key_values(key) for key in frame.keys(columns)] == [[row[c] for c in columns] for row in rows]
    more = frame.append_column([b"x"] * len(rows))
    assert more.data == b"".join(frame_row([*row, b"x"]) for row in rows)
    both = Frame.concat([frame, taken], width)
    assert both.data == frame.data + taken.data and len(both) == len(frame) + len(taken)


def test_keys_that_only_look_alike_differ() -> None:
    """('a', 'bc') is not ('ab', 'c'), and NULL is not the empty string."""
    frame = Frame.of_values([[b"a", b"bc"], [b"ab", b"c"], [None, b""], [b"", None]], 2)
    assert len(set(frame.keys([0, 1]))) == 4


@pytest.mark.parametrize("cut", range(1, 17))
def test_truncated_rows_are_refused(cut: int) -> None:
    """A row cut anywhere is an error, not a wrong value."""
    whole = frame_row([b"abc", b"de"])
    assert len(whole) == 15
    short = whole[:-cut] if cut < 15 else whole + bytes(cut)
    with pytest.raises(FrameError):
        Frame(short, np.array([0, len(short)]), 2).fields()


def test_a_length_beyond_the_row_is_refused() -> None:
    """Nor may a value reach into the next row."""
    rows = [b"\0\x01\0\0\0\x09ab", frame_row([b"cdefghijk"])]
    with pytest.raises(FrameError):
        Frame.of_rows(rows, 1).fields()
