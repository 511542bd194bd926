"""Sums over source keys: the hash is the server's, and what changes do to a sum is what they do to the set of keys."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_compact import COLUMNS, RELATION, Changes, framed
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, Relation, RowSet, Transaction
from towline.frame import Frame
from towline.key_hash import hash_key, key_hashes
from towline.key_sum import MODULUS, NO_KEYS, KeySum, by_transaction, change_of, key_form, sum_of


def test_known_hashes() -> None:
    """``SELECT hashtextextended(encode('…', 'hex') COLLATE "C", 0)``, of PostgreSQL 18."""
    one = b"\0\0\0\x04\0\0\0\x01"
    known = {b"": -6939563903564495251, one: 5601288639910024395, bytes(range(17)): 8233793685175251524}
    assert {key: hash_key(key) for key in known} == {key: value % MODULUS for key, value in known.items()}


VALUES = st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=9), st.binary(max_size=3)), max_size=60)


@given(VALUES, st.permutations([0, 1, 2]), st.integers(1, 3))
def test_many_hashes_at_once(values: list[tuple[bytes, ...]], columns: list[int], width: int) -> None:
    """Whatever the lengths, and whichever columns the key has, they are the hashes of each key by itself."""
    frame, key = Frame.of_values(values, 3), columns[:width]
    expected = [hash_key(name) for name in frame.keys(key)] if values else []
    assert key_hashes(frame, key).tolist() == expected
    frame.fields()
    assert key_hashes(frame, key).tolist() == expected


@st.composite
def histories(draw: st.DrawFn) -> tuple[Changes, set[str], set[str]]:
    """Changes that a table with some keys could have seen, and its keys before and after."""
    before = set(draw(st.lists(st.sampled_from("abcdefgh"))))
    keys, changes = set(before), Changes()
    for _ in range(draw(st.integers(0, 40))):
        key, new = draw(st.sampled_from("abcdefgh")), draw(st.sampled_from("abcdefgh"))
        if key not in keys:
            changes.add(INSERT, (key, "x", None))
            keys.add(key)
        elif draw(st.booleans()):
            changes.add(UPDATE, (key, None, "y"))
        elif new in keys - {key} or draw(st.booleans()):
            changes.add(DELETE, (key, None, None))
            keys.discard(key)
        else:
            changes.rekey(key, (new, "z", None))
            changes.order[-1] = changes.order[-2]
            keys = keys - {key} | {new}
    return changes, before, keys


def sum_over(keys: set[str]) -> KeySum:
    return sum_of(Frame.of_rows([framed((key, None, None)) for key in sorted(keys)], 3), RELATION)


@given(histories())
def test_changes_add_up_to_the_keys_that_are_left(history: tuple[Changes, set[str], set[str]]) -> None:
    """Inserts, deletes, changes of key (also back to the same one) and other updates."""
    changes, before, after = history
    rowset = changes.rowset()
    assert sum_over(before) + change_of(rowset).keys == sum_over(after)


@given(histories(), st.integers(0, 40))
def test_transactions_add_up(history: tuple[Changes, set[str], set[str]], cut: int) -> None:
    """Cut anywhere, between the changes or inside a piece, the parts add up to the whole."""
    rowset = history[0].rowset()
    whole = change_of(rowset)
    low, high = change_of(rowset.between(0, cut)), change_of(rowset.between(cut, 1000))
    assert low.keys + high.keys == whole.keys
    assert (low.operations + high.operations) % MODULUS == whole.operations
    at = datetime.now(UTC)
    piece = Piece((rowset,), (Transaction(7, 10, at, 0), Transaction(8, 20, at, cut)), 30)
    parts = by_transaction(piece, rowset, whole)
    assert parts.get(7, NO_KEYS) + parts.get(8, NO_KEYS) == whole.keys


def test_operations_tell_what_was_done() -> None:
    """An insert and a delete of the same keys is not two updates, although the keys are left as they were."""
    ops = ([INSERT, DELETE], [UPDATE, UPDATE], [DELETE, INSERT])
    sums = []
    for pair in ops:
        changes = Changes()
        for op in pair:
            changes.add(op, ("k", None, None))
        change = change_of(changes.rowset())
        assert change.keys == NO_KEYS
        sums.append(change.operations)
    assert sums[0] == sums[2] != sums[1]


def test_many_rows() -> None:
    """A large batch of inserts adds up as its rows do one by one."""
    rows = Frame.of_rows([framed((str(n), "x", None)) for n in range(20_000)], 3)
    rowset = RowSet(RELATION, rows, np.full(20_000, INSERT, dtype=np.uint8), np.arange(20_000))
    expected = sum(hash_key(key) for key in rows.keys((0,))) % MODULUS
    assert change_of(rowset).keys == KeySum(20_000, expected)


def test_the_form_tells_key_and_format_apart() -> None:
    """Sums over other columns, in another order or in another format, have another form."""
    table = RELATION.table
    forms = {
        key_form(Relation(type(table)(table.name, COLUMNS, identity=identity), COLUMNS, form))
        for identity in (("id",), ("a",), ("id", "a"), ("a", "id"))
        for form in Format
    }
    assert len(forms) == 8


def test_how_many_keys_are_different() -> None:
    """New rows have new keys, so that nobody looks; those of a queue come and go."""
    new, queue = Changes(), Changes()
    for number in range(200):
        new.add(INSERT, (str(number), None, None))
        queue.add(INSERT, (str(number), None, None))
        queue.add(DELETE, (str(number), None, None))
    assert (change_of(new.rowset()).different, change_of(new.rowset()).ordered) == (200, None)
    change = change_of(queue.rowset())
    assert change.different == 200 and change.ordered is not None
    assert sorted(change.ordered.tolist()) == list(range(400))
    assert all(place % 2 == 0 and after == place + 1 for place, after in change.ordered.reshape(200, 2).tolist())
