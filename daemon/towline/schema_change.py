"""What has changed of a source's table, and whether its routes can go on. Pure comparisons, no I/O.

What is compared: the table as the pipeline took it in last (`Remembered`, kept at the target) with what the source's
catalog says now. A table is told from others by its OID, a column by its number (pg_attribute.attnum): both stay when
something is renamed, and are not used again when it is dropped.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from towline.errors import (
    ColumnAdded,
    ColumnChanged,
    IdentityChanged,
    PartitionDetached,
    SourceTableChanged,
    TableGone,
    TableRecreated,
)
from towline_transforms.placement import widened
from towline_transforms.route import OnSchemaChange, OnTruncate, Route
from towline_transforms.schema import Table, TableName


class Kind(enum.StrEnum):
    """What kind of difference it is."""

    ADDED = "column added"
    DROPPED = "column dropped"
    RENAMED = "column renamed"
    REPLACED = "column dropped and added again"
    TAKEN = "column's name given to another"
    TYPE = "column type changed"
    GENERATED = "column no longer generated"
    IDENTITY = "replica identity changed"
    ATTACHED = "partition attached"
    REATTACHED = "partition detached and attached again"
    DETACHED = "partition detached or dropped"
    TABLE_DROPPED = "table dropped"
    TABLE_RENAMED = "table renamed"
    TABLE_MOVED = "table moved to another schema"
    TABLE_RECREATED = "table dropped and made anew"


#: Differences of a whole table, which is not there any more.
GONE = frozenset({Kind.TABLE_DROPPED, Kind.TABLE_RENAMED, Kind.TABLE_MOVED})
#: Differences after which a name stands for another column than before.
_ANOTHER = frozenset({Kind.REPLACED, Kind.TAKEN})
#: Differences by which the source may have rows of which the log does not tell, or no longer has some.
_ROWS_CAME = frozenset({Kind.TABLE_RECREATED, Kind.ATTACHED, Kind.REATTACHED})
_ROWS_WENT = frozenset({Kind.TABLE_RECREATED, Kind.REATTACHED})

_ERRORS: Mapping[Kind, type[SourceTableChanged]] = {
    Kind.ADDED: ColumnAdded,
    Kind.DROPPED: ColumnChanged,
    Kind.RENAMED: ColumnChanged,
    Kind.REPLACED: ColumnChanged,
    Kind.TAKEN: ColumnChanged,
    Kind.TYPE: ColumnChanged,
    Kind.GENERATED: ColumnChanged,
    Kind.IDENTITY: IdentityChanged,
    Kind.ATTACHED: PartitionDetached,
    Kind.REATTACHED: PartitionDetached,
    Kind.DETACHED: PartitionDetached,
    Kind.TABLE_DROPPED: TableGone,
    Kind.TABLE_RENAMED: TableGone,
    Kind.TABLE_MOVED: TableGone,
    Kind.TABLE_RECREATED: TableRecreated,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. ``column`` is empty for those of whole tables; ``was`` and ``now`` are types or names."""

    kind: Kind
    table: TableName
    column: str = ""
    was: str = ""
    now: str = ""

    def __str__(self) -> str:
        what = f"{self.table}: {self.kind}" + (f": {self.column}" if self.column else "")
        if self.was and self.now:
            return f"{what} (was {self.was}, is {self.now})"
        return what + (f" (was {self.was})" if self.was else f" ({self.now})" if self.now else "")


@dataclass(frozen=True, slots=True)
class Remembered:
    """A route's source table as it was taken in. ``columns``: those that travelled for the route.

    ``position``: where the source's log was then. ``since``: columns with a position before which the log's values are
    not theirs. ``accepted``: `apply` was run since, and takes the table as it is now. ``published``: how the
    publication had it (see `towline.source.postgres.published.versions`); None: not known.
    """

    route: str
    table: Table
    columns: tuple[str, ...]
    position: int
    since: Mapping[str, int] = field(default_factory=dict)
    accepted: bool = False
    published: str | None = None


def compare(was: Table, now: Table | None, elsewhere: TableName | None) -> tuple[Difference, ...]:
    """How a table differs. ``now``: the table of its name; ``elsewhere``: what the table of its OID is called."""
    if now is None:
        if elsewhere is None:
            return (Difference(Kind.TABLE_DROPPED, was.name),)
        kind = Kind.TABLE_RENAMED if elsewhere.schema == was.name.schema else Kind.TABLE_MOVED
        return (Difference(kind, was.name, "", str(was.name), str(elsewhere)),)
    if now.oid != was.oid:
        detail = f"the one of before is called {elsewhere}" if elsewhere is not None else ""
        return (Difference(Kind.TABLE_RECREATED, now.name, "", "", detail),)
    return (*_columns(was, now), *_identity(was, now), *_partitions(was, now))


def _columns(was: Table, now: Table) -> list[Difference]:
    by_number = {column.number: column for column in now.columns}
    numbers = {column.number for column in was.columns}
    found = []
    for old in was.columns:
        new = by_number.get(old.number)
        if new is not None and new.name != old.name:
            found.append(Difference(Kind.RENAMED, now.name, old.name, old.name, new.name))
        elif new is not None and (new.type.oid, new.type.sql) != (old.type.oid, old.type.sql):
            found.append(Difference(Kind.TYPE, now.name, old.name, old.type.sql, new.type.sql))
        elif new is not None and old.generated is not None and new.generated is None:
            found.append(Difference(Kind.GENERATED, now.name, old.name, old.type.sql, new.type.sql))
        if now.has(old.name) and (holder := now.column(old.name)).number != old.number:
            if old.generated is None and holder.generated is not None:  # which the log does not have
                kind, then = Kind.DROPPED, "generated"
            else:
                kind, then = (Kind.REPLACED if new is None else Kind.TAKEN), holder.type.sql
            found.append(Difference(kind, now.name, old.name, old.type.sql, then))
        elif new is None:
            found.append(Difference(Kind.DROPPED, now.name, old.name, old.type.sql))
    found += [
        Difference(Kind.ADDED, now.name, new.name, "", new.type.sql)
        for new in now.columns
        if new.number not in numbers and not was.has(new.name)
    ]
    return found


def _identity(was: Table, now: Table) -> list[Difference]:
    """By the columns' numbers: a renamed column is still the same."""
    numbers = [[table.column(name).number for name in table.identity] for table in (was, now)]
    if numbers[0] == numbers[1]:
        return []
    listed = [", ".join(table.identity) or "none" for table in (was, now)]
    return [Difference(Kind.IDENTITY, now.name, "", *listed)]


def _partitions(was: Table, now: Table) -> list[Difference]:
    """By OID, and by when each was attached."""
    if was.leaves is None or now.leaves is None:
        return []
    before, after = dict(was.leaves), dict(now.leaves)
    found = []
    for name, (oid, _) in zip(was.partitions, was.leaves, strict=True):
        if oid not in after:
            found.append(Difference(Kind.DETACHED, now.name, "", str(name)))
    for name, (oid, attached) in zip(now.partitions, now.leaves, strict=True):
        if oid not in before:
            found.append(Difference(Kind.ATTACHED, now.name, "", "", str(name)))
        elif before[oid] != attached:
            found.append(Difference(Kind.REATTACHED, now.name, "", "", str(name)))
    return found


def came(was: Table, now: Table | None) -> dict[str, int]:
    """The OIDs of the partitions that are new, by their names as differences have them."""
    if now is None or was.leaves is None or now.leaves is None:
        return {}
    before = dict(was.leaves)
    return {str(n): oid for n, (oid, _) in zip(now.partitions, now.leaves, strict=True) if oid not in before}


def needed(difference: Difference, remembered: Remembered) -> bool:
    """Whether the route took what has changed."""
    return not difference.column or difference.column in (*remembered.columns, *remembered.table.identity)


def halts(
    difference: Difference,
    remembered: Remembered,
    policy: OnSchemaChange | None,
    target: Table | None,
    on_truncate: OnTruncate = OnTruncate.HALT,
) -> bool:
    """Whether the route may not go on, though it holds against the catalogs as they are now.

    ``policy``: of an identity route. ``target``: its table as it is. ``on_truncate``: what is to become of many rows
    that go at once, without a word in the log of each.
    """
    kind, column = difference.kind, difference.column
    if kind in GONE:
        return True
    if remembered.accepted or not needed(difference, remembered):
        return False
    if kind in (Kind.TABLE_RECREATED, Kind.IDENTITY):
        return True
    if kind is Kind.DETACHED:
        return on_truncate is OnTruncate.HALT
    if (kind is Kind.TYPE or kind in _ANOTHER) and column in remembered.table.identity:
        return True
    if policy is None or target is None or not target.has(column):
        return False  # the SELECT no longer names it; or the target no longer has it (or makes it, see below)
    if kind is Kind.DROPPED:
        return policy is OnSchemaChange.HALT and target.column(column).generated is None
    return kind is Kind.RENAMED and (policy is not OnSchemaChange.EVOLVE or column in remembered.table.identity)


def unsettling(route: Route, remembered: Remembered, differences: Sequence[Difference]) -> bool:
    """Whether the target may rightly have other rows, until the pipeline has taken these differences in."""
    again = read_again(route, remembered, differences)
    taken = any(needed(difference, remembered) for difference in differences)
    return taken or (bool(differences) and (again.everywhere or again.sweep))


class Again(NamedTuple):
    """What it takes for a route to be exact again.

    ``columns``: to be read again for changes of before. ``everywhere``: all rows are to be. ``sweep``: rows that the
    source no longer has are to be removed, too.
    """

    columns: frozenset[str] = frozenset()
    everywhere: bool = False
    sweep: bool = False


def read_again(route: Route, remembered: Remembered, differences: Sequence[Difference]) -> Again:
    """What it takes after these differences.

    A column that a SELECT has come to name is filled from then on, as ever when a SELECT is changed.
    """
    kinds = {difference.kind for difference in differences}
    key = frozenset(route.source.identity)
    went = Kind.DETACHED in kinds and route.on_truncate is not OnTruncate.IGNORE
    if Kind.TABLE_RECREATED in kinds:
        return Again(frozenset(route.columns) - key, True, True)
    fresh = frozenset(route.columns) - frozenset(remembered.columns)
    changed = {
        difference.column
        for difference in differences
        if difference.column in route.columns
        and (
            difference.kind in _ANOTHER
            or (difference.kind is Kind.TYPE and not _widened(difference, remembered.table, route.source))
        )
    }
    everywhere = bool(changed) or (route.identity and bool(fresh)) or bool(kinds & _ROWS_CAME)
    return Again((fresh | changed) - key, everywhere, went or bool(kinds & _ROWS_WENT) or bool(changed & key))


def _widened(difference: Difference, was: Table, now: Table) -> bool:
    """Whether a type has only a larger limit now: the values are the same."""
    old, new = was.column(difference.column), now.column(difference.column)
    return old.type.oid == new.type.oid and widened(old.type, new.type)


def error_for(
    differences: Sequence[Difference], routes: Collection[str], *, more: str = "", hint: str = ""
) -> SourceTableChanged:
    """The error that halts a pipeline, after the first difference. ``more``: what else there is to say."""
    which = f"route {next(iter(routes))}" if len(routes) == 1 else f"routes {', '.join(sorted(routes))}"
    detail = "; ".join(dict.fromkeys(map(str, differences)))
    kind = _ERRORS[differences[0].kind]
    return kind(f"{detail}. Needed by {which}." + (f" {more}" if more else ""), hint=hint)
