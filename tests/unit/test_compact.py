"""Compaction against a model: the outcome of a row set is that of applying its changes one by one."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from towline.change import DELETE, INSERT, UPDATE, Format, Relation, RowSet
from towline.compact import Versions, compact, inserts_only
from towline.frame import Frame, frame_row, key_values
from towline.key_sum import added_up, change_of
from towline_transforms.schema import Column, SqlType, Table, TableName

TEXT = SqlType(25, "pg_catalog", "text", "text")
COLUMNS = tuple(Column(name, TEXT) for name in ("id", "a", "b"))
TABLE = Table(TableName("s", "t"), COLUMNS, primary_key=("id",), identity=("id",))
RELATION = Relation(TABLE, COLUMNS, Format.TEXT)
A, B = 2, 4  # masks

Row = tuple[str | None, ...]


class Changes:
    """A row set, change by change."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.ops: list[int] = []
        self.order: list[int] = []
        self.missing: dict[int, int] = {}
        self.unknown: dict[int, int] = {}
        self.moved: dict[int, int] = {}

    def add(self, op: int, row: Row, missing: int = 0, unknown: int = 0, moved: int | None = None) -> None:
        place = len(self.rows)
        if missing:
            self.missing[place] = missing
            if moved is not None:
                self.moved[place] = moved
        if unknown:
            self.unknown[place] = unknown
        values = [None if (missing | unknown) >> at & 1 else value for at, value in enumerate(row)]
        self.rows.append(framed(values))
        self.ops.append(op)
        self.order.append(self.order[-1] if moved is not None else len(self.rows))

    def rekey(self, old: str, row: Row, missing: int = 0) -> None:
        self.add(DELETE, (old, None, None))
        self.add(UPDATE, row, missing, moved=len(self.rows) - 1)

    def rowset(self) -> RowSet:
        ops, order = np.array(self.ops, dtype=np.uint8), np.array(self.order, dtype=np.int64)
        return RowSet(RELATION, Frame.of_rows(self.rows, 3), ops, order, self.missing, self.unknown, self.moved)


def framed(values: list[str | None] | Row) -> bytes:
    return frame_row([None if value is None else value.encode() for value in values])


def rows(versions: Versions) -> list[Row]:
    """The rows, as text."""
    found = []
    for place in range(len(versions)):
        values = key_values(versions.rows.row(place)[2:])
        found.append(tuple(None if value is None else value.decode() for value in values))
    return found


def test_last_version_of_each_key() -> None:
    """Earlier versions are superseded; a deleted key is gone, whatever it was before."""
    changes = Changes()
    changes.add(INSERT, ("1", "x", None))
    changes.add(UPDATE, ("2", "x", "y"))
    changes.add(UPDATE, ("1", "z", ""))
    changes.add(DELETE, ("2", None, None))
    changes.add(DELETE, ("3", None, None))
    changes.add(INSERT, ("3", "new", "n"))
    result = compact(changes.rowset())
    assert rows(result.live) == [("1", "z", ""), ("3", "new", "n")]
    assert result.live.places.tolist() == [2, 5]
    assert rows(result.gone) == [("2",)]
    assert (result.seen, result.kept, result.superseded) == (6, 3, 3)


def test_inserts_are_passed_on_as_they_are() -> None:
    """Nothing is copied or looked up when there are only new rows."""
    changes = Changes()
    for number in range(5):
        changes.add(INSERT, (str(number), None, "b"))
    rowset = changes.rowset()
    assert inserts_only(rowset)
    assert compact(rowset).live.rows is rowset.rows
    changes.add(UPDATE, ("9", None, None))
    assert not inserts_only(changes.rowset())


def test_missing_columns_by_mask() -> None:
    """Rows with gaps that nothing in the row set can fill are grouped by what they lack."""
    changes = Changes()
    changes.add(UPDATE, ("1", "x", "-"), missing=B)
    changes.add(UPDATE, ("2", "-", "-"), missing=A | B)
    changes.add(UPDATE, ("3", "y", "-"), missing=B)
    changes.add(UPDATE, ("4", "whole", "w"))
    result = compact(changes.rowset())
    assert {mask: rows(versions) for mask, versions in result.partial} == {
        B: [("1", "x", None), ("3", "y", None)],
        A | B: [("2", None, None)],
    }
    assert rows(result.live) == [("4", "whole", "w")]


def test_missing_columns_from_an_earlier_version() -> None:
    """Byte for byte from the last version that had them; what is still missing stays so."""
    changes = Changes()
    changes.add(INSERT, ("1", "x", "long"))
    changes.add(UPDATE, ("1", "y", "-"), missing=B)
    changes.add(UPDATE, ("1", "z", "-"), missing=B)
    changes.add(UPDATE, ("2", "a", "-"), missing=B)
    changes.add(UPDATE, ("2", "-", "-"), missing=A | B)
    result = compact(changes.rowset())
    assert rows(result.live) == [("1", "z", "long")]
    assert [(mask, rows(versions)) for mask, versions in result.partial] == [(B, [("2", "a", None)])]


def test_a_key_change_takes_columns_along() -> None:
    """From the old key's version in the row set, or as a move of the target's row; chains keep the first origin."""
    changes = Changes()
    changes.add(INSERT, ("1", "x", "long"))
    changes.rekey("1", ("2", "y", "-"), missing=B)
    changes.rekey("7", ("8", "q", "-"), missing=B)
    changes.rekey("8", ("9", "r", "-"), missing=B)
    result = compact(changes.rowset())
    assert rows(result.live) == [("2", "y", "long")]
    (move,) = result.moves
    assert (key_values(move.origin), key_values(move.key), move.mask) == ([b"7"], [b"9"], B)
    assert rows(result.gone) == [("1",), ("7",), ("8",)]
    assert result.seen == result.kept + result.superseded


def test_rows_that_change_places_are_read_again() -> None:
    """When one moves to where another comes from, doing it in place is not safe."""
    changes = Changes()
    changes.rekey("1", ("t", "a", "-"), missing=B)
    changes.rekey("2", ("1", "b", "-"), missing=B)
    changes.rekey("t", ("2", "a", "-"), missing=B)
    result = compact(changes.rowset())
    assert not result.moves
    assert {row[0] for row in rows(result.reread)} == {"1", "2"}


def test_unknown_values_are_read_again() -> None:
    """Unless a later change sends them; an unchanged column whose value was unknown is unknown still."""
    changes = Changes()
    changes.add(UPDATE, ("1", "-", "b"), unknown=A)
    changes.add(UPDATE, ("2", "-", "b"), unknown=A)
    changes.add(UPDATE, ("2", "now", "b"))
    changes.add(INSERT, ("3", "-", "b"), unknown=A)
    changes.add(UPDATE, ("3", "-", "c"), missing=A)
    result = compact(changes.rowset())
    assert [row[0] for row in rows(result.reread)] == ["1", "3"]
    assert rows(result.live) == [("2", "now", "b")]
    alone = Changes()
    alone.add(UPDATE, ("1", "-", "b"), unknown=A)
    assert len(compact(alone.rowset()).reread) == 1


def test_whole_rows_move_where_that_is_asked_for() -> None:
    """Those that the target has; not the ones that are new in the row set."""
    changes = Changes()
    changes.add(INSERT, ("1", "x", "new"))
    changes.rekey("1", ("2", "y", "new"))
    changes.rekey("7", ("8", "q", "w"))
    changes.add(UPDATE, ("8", "r", "w"))
    changes.add(UPDATE, ("5", "s", "w"))
    changes.rekey("5", ("6", "s", "w"))
    result = compact(changes.rowset(), moving=True)
    assert [(move.origin[-1:], decoded(move.row), move.mask) for move in result.moves] == [
        (b"7", ("8", "r", "w"), 0),
        (b"5", ("6", "s", "w"), 0),
    ]
    assert rows(result.live) == [("2", "y", "new")]
    assert result.seen == result.kept + result.superseded


KEYS = st.sampled_from("12345")
STEPS = st.lists(
    st.tuples(KEYS, KEYS, st.sampled_from(("write", "gap", "delete", "move", "movegap")), st.integers(0, 99))
)


@given(st.sets(KEYS), STEPS, st.booleans())
def test_against_a_model(present: set[str], steps: list[tuple[str, str, str, int]], moving: bool) -> None:
    """Whatever the history: applied to a target that has the rows of before, the outcome is the rows of after."""
    before: dict[str, Row] = {key: (key, "old", f"toast {key}") for key in present}
    after = dict(before)
    changes = Changes()
    for key, other, what, number in steps:
        if what == "write":
            row: Row = (key, f"v{number}", f"t{number}")
            changes.add(UPDATE if key in after else INSERT, row)
            after[key] = row
        elif key not in after:
            continue
        elif what == "gap":
            after[key] = (key, f"v{number}", after[key][2])
            changes.add(UPDATE, after[key], missing=B)
        elif what == "delete":
            del after[key]
            changes.add(DELETE, (key, None, None))
        elif other not in after:
            toast = after.pop(key)[2] if what == "movegap" else f"t{number}"
            after.pop(key, None)
            after[other] = (other, f"v{number}", toast)
            changes.rekey(key, after[other], missing=B if what == "movegap" else 0)
    if not changes.rows:
        return
    result = compact(changes.rowset(), moving=moving)
    assert result.seen == result.kept + result.superseded
    moved = {move.origin: move for move in result.moves}
    target = dict(before)
    origins = {origin: target[text(origin)] for origin in moved}
    for (old,) in rows(result.gone):
        target.pop(str(old), None)
    for move in result.moves:
        row = decoded(move.row)
        target[text(move.key)] = (row[0], row[1], origins[move.origin][2] if move.mask else row[2])
    for _, versions in result.partial:
        for row in rows(versions):
            target[str(row[0])] = (row[0], row[1], target[str(row[0])][2])
    for row in rows(result.live):
        target[str(row[0])] = row
    for row in rows(result.reread):
        target[str(row[0])] = after[str(row[0])]
    assert target == after


def text(key: bytes) -> str:
    return str(decoded(b"\0\1" + key)[0])


def decoded(row: bytes) -> Row:
    return tuple(None if value is None else value.decode() for value in key_values(row[2:]))


@given(
    st.lists(st.tuples(st.text("ab1", max_size=4), st.sampled_from([INSERT, UPDATE, DELETE])), min_size=1, max_size=40),
    st.integers(0, 64),
)
def test_the_last_version_is_found_by_hashes_as_by_keys(steps: list[tuple[str, int]], bits: int) -> None:
    """With the keys' own hashes, and with some that keys have in common: then the keys themselves are looked at."""
    changes = Changes()
    for number, (key, op) in enumerate(steps * (200 // len(steps) + 1)):
        changes.add(op, (key, None if op == DELETE else str(number), None))
    rowset = changes.rowset()
    expected = compact(rowset)
    change = change_of(rowset)
    hashes = change.hashes >> np.uint64(bits) if bits < 64 else np.zeros_like(change.hashes)
    change = replace(change, hashes=hashes, ordered=np.argsort(hashes, kind="stable"))
    found = compact(replace(rowset, keys=change))
    assert (rows(found.live), rows(found.gone)) == (rows(expected.live), rows(expected.gone))
    assert found.live.places.tolist() == expected.live.places.tolist()
    assert found.superseded == expected.superseded


def test_keys_of_very_many_lengths() -> None:
    """They are looked at one by one."""
    changes = Changes()
    for number in range(600):
        changes.add(UPDATE, ("k" * (number % 200), str(number), None))
    (rowset,) = added_up([changes.rowset()])
    with mock.patch("towline.compact._bytes_at", side_effect=AssertionError("they were compared by length")):
        found = compact(rowset)
    assert found.live.places.tolist() == list(range(400, 600))
