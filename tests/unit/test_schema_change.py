"""What has changed of a table is told by numbers, and by it whether a route goes on."""

from __future__ import annotations

import pytest

from tests.unit.transforms.catalogs import TYPES
from towline.schema_change import Difference, Kind, Remembered, compare, halts
from towline_transforms.route import OnSchemaChange
from towline_transforms.schema import Column, Table, TableName

ITEM = TableName("public", "item")
HALT, EVOLVE, IGNORE = OnSchemaChange.HALT, OnSchemaChange.EVOLVE, OnSchemaChange.IGNORE


def item(*columns: str, oid: int = 1) -> Table:
    """Each column is its name and its number; ``=`` after it for a generated one."""
    made = [
        Column(
            each.rstrip("=")[:-1],
            TYPES["int"],
            number=int(each.rstrip("=")[-1]),
            generated="1" if "=" in each else None,
        )
        for each in columns
    ]
    key = next(column.name for column in made if column.number == 1)
    return Table(ITEM, tuple(made), (key,), (key,), oid=oid)


def found(was: Table, now: Table) -> list[tuple[Kind, str]]:
    return [(each.kind, each.column) for each in compare(was, now, None)]


WAS = item("id1", "a2", "b3")


@pytest.mark.parametrize(
    ("now", "differences"),
    [
        (WAS, []),
        (item("id1", "b2", "b_old3"), [(Kind.RENAMED, "a"), (Kind.RENAMED, "b"), (Kind.TAKEN, "b")]),
        (
            item("id1", "b2", "a3"),
            [(Kind.RENAMED, "a"), (Kind.TAKEN, "a"), (Kind.RENAMED, "b"), (Kind.TAKEN, "b")],
        ),
        (item("id1", "a_old2", "b3", "a4"), [(Kind.RENAMED, "a"), (Kind.TAKEN, "a")]),
        (item("id1", "a3"), [(Kind.REPLACED, "a"), (Kind.RENAMED, "b")]),
        (item("id1", "b3", "a4"), [(Kind.REPLACED, "a")]),
        (item("id1", "b3"), [(Kind.DROPPED, "a")]),
        (item("id1", "a2", "b3", "c4"), [(Kind.ADDED, "c")]),
        (item("id1", "b3", "a4="), [(Kind.DROPPED, "a")]),
    ],
)
def test_what_a_name_stands_for(now: Table, differences: list[tuple[Kind, str]]) -> None:
    """Each old name that is now of another column is a difference of its own."""
    assert found(WAS, now) == differences


def test_a_column_that_is_no_longer_generated() -> None:
    """From then on it has values of its own, in the log."""
    assert found(item("id1", "a2="), item("id1", "a2")) == [(Kind.GENERATED, "a")]
    assert found(item("id1", "a2="), item("id1", "a2=")) == []


def test_the_key_is_never_read_again_under_another_meaning() -> None:
    """Where the name of a key's column was given to another, rows would be found under wrong keys."""
    now = item("code1", "id2", "b3")
    remembered = Remembered("r", WAS, ("id", "a", "b"), 0)
    taken = Difference(Kind.TAKEN, ITEM, "id")
    assert taken.kind in {each.kind for each in compare(WAS, now, None)}
    for policy in (HALT, EVOLVE, IGNORE, None):
        assert halts(taken, remembered, policy, WAS)
