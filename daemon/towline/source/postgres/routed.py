"""The relations that a stream is to yield, found by the names that the source's log uses.

The log may name a partition where the route names the table that it is a part of: wal2json always does, pgoutput
when its publication lacks ``publish_via_partition_root``. Partitions known beforehand come with the relation's table;
about any other name (it may be a partition made since) ``resolve`` is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from towline.change import Relation
from towline.errors import ColumnAdded, SourceTableChanged, SourceTruncated
from towline_transforms.schema import TableName

#: From the name of a table to the name of the partitioned table at its root; None when it is no partition.
Resolve = Callable[[TableName], TableName | None]


class Routed:
    """The wanted relations by name."""

    def __init__(self, relations: Sequence[Relation], resolve: Resolve | None = None) -> None:
        self.relations = tuple(relations)
        self._resolve = resolve
        self._by_name: dict[TableName, Relation | None] = {
            partition: relation for relation in relations for partition in relation.table.partitions
        }
        # A partition that is routed for itself is not taken for its root.
        self._by_name.update((relation.name, relation) for relation in relations)
        self._by_oid = {relation.table.oid: relation for relation in relations if relation.table.oid}
        #: Positions, ascending, from which something else is expected of the log than before.
        self.eras = tuple(sorted({p for r in relations for p in (r.described, *(at for _, at in r.since)) if p}))

    def find(self, name: TableName) -> Relation | None:
        """The relation that changes of the table of that name belong to; None when they are not wanted.

        Raises what ``resolve`` raises.
        """
        if name in self._by_name:
            return self._by_name[name]
        root = self._resolve(name) if self._resolve is not None else None
        relation = self._by_name.get(root) if root is not None else None
        self._by_name[name] = relation
        return relation

    def wants(self, oid: int, name: TableName) -> bool:
        """Whether `identified` may give a relation."""
        return oid in self._by_oid or self.find(name) is not None

    def identified(self, oid: int, name: TableName, lsn: int) -> Relation | None:
        """The relation of a table that the log names with its OID too; None when it is not wanted.

        Raises SourceTableChanged when name and OID are no longer of one table.
        """
        relation, same = self.find(name), self._by_oid.get(oid)
        if relation is None and same is not None:
            if lsn < same.described:
                return same  # it had another name then
            raise SourceTableChanged(f"{same.name} is called {name} in the log at this point")
        other = relation is not None and relation.name == name and relation.table.oid not in (0, oid)
        if relation is not None and other and lsn >= relation.described:
            raise SourceTableChanged(f"{name} is another table of that name in the log at this point")
        return relation


#: Later than every transaction.
NEWEST = 1 << 64


def lacking(name: TableName, column: str) -> SourceTableChanged:
    """The error for a wanted column that the log does not have."""
    return SourceTableChanged(f"{name} has no column {column} in the log at this point, or it is not published")


def check_added(name: TableName, relation: Relation, sent: Collection[str], lsn: int = NEWEST) -> None:
    """Look for columns, in a table that is copied as it is, of which its routes do not know.

    Raises SourceTableChanged when the catalog did not have one yet, and ColumnAdded when the routes have to be told
    what to do about it. What the catalog no longer has was dropped since.
    """
    if not relation.whole:
        return
    added = [column for column in sent if not relation.table.has(column)]
    if added and lsn >= relation.described:
        raise SourceTableChanged(f"{name} has a column {', '.join(sorted(added))} that was added since")
    waiting = sorted(relation.waiting.intersection(sent))
    if waiting:
        typed = [f"{column} ({relation.table.column(column).type.sql})" for column in waiting]
        raise ColumnAdded(f"{name} has a column {', '.join(typed)} that was added, and its routes say halt")


def whole_tables(truncated: Sequence[tuple[TableName, Relation]], lsn: int = NEWEST) -> list[Relation]:
    """The relations that one TRUNCATE empties, from the names it was logged with.

    Partitions that go with the table that they are part of are left out. Raises SourceTruncated when some go alone:
    that cannot be done to the target, which does not know the rows of one partition.
    """
    whole = [relation for name, relation in truncated if name == relation.name]
    for name, relation in truncated:
        if not any(relation is known for known in whole) and lsn >= relation.swept:
            raise SourceTruncated(
                f"the partition {name} of {relation.name} was truncated by itself",
                hint="Run `towline resync` with the routes of that table, and start again: they are copied again, and "
                "what the source no longer has is removed. Use DELETE, or DROP TABLE with `on_truncate: delete`.",
            )
    return whole
