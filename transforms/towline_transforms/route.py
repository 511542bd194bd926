"""Routes, as they are written and as they are once checked.

``RouteSpec`` is what an admin writes; ``Route`` is what remains when every name in it was found in the two
catalogs and every rule holds. The daemon runs only the latter.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from towline_transforms.schema import Table, TableName


class OnDelete(enum.StrEnum):
    """What a delete at the source does at the target. MARK sets the route's ``mark_column``."""

    DELETE = "delete"
    IGNORE = "ignore"
    MARK = "mark"


class OnTruncate(enum.StrEnum):
    """What TRUNCATE at the source does."""

    HALT = "halt"
    DELETE = "delete"
    IGNORE = "ignore"


class OnError(enum.StrEnum):
    """What a row that the target refuses does: stop the pipeline at it, or be set aside while the others go on."""

    HALT = "halt"
    QUARANTINE = "quarantine"


class OnSchemaChange(enum.StrEnum):
    """What a column that is added to the table of an identity route does.

    EVOLVE adds it at the target, too; IGNORE goes on without it, until `towline apply` is told otherwise.
    """

    HALT = "halt"
    EVOLVE = "evolve"
    IGNORE = "ignore"


#: Columns that the daemon adds to the staged row when a route refers to them, with their SQL types.
PSEUDO_COLUMNS = {
    "_commit_time": "timestamp with time zone",
    "_lsn": "pg_lsn",
    "_xid": "bigint",
    "_op": "text",  # 'insert', 'update' or 'snapshot'
    "_source": "text",  # the pipeline's name
}


#: What is shown in the place of a sensitive value.
MASK = "***"


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route as written. In identity routes a table's name may be ``*`` (``public.*`` into ``replica.*``)."""

    name: str
    source: TableName
    into: TableName
    select: str | None = None
    key: tuple[str, ...] = ()
    on_delete: OnDelete = OnDelete.DELETE
    mark_column: str | None = None
    on_truncate: OnTruncate = OnTruncate.HALT
    on_error: OnError = OnError.HALT
    on_schema_change: OnSchemaChange = OnSchemaChange.HALT
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """One target column and where it comes from.

    ``column``: the target's column, also the name of that column in the route's SELECT. ``sql``: the expression, as
    written. ``sources``: the source table's columns it depends on, through the SELECT list and the ON of the joins that
    it refers to; ``pseudo``: pseudo-columns, likewise; ``joined``: columns of joined target tables that it names, as
    ``schema.table.column``.
    """

    column: str
    sql: str
    sources: frozenset[str]
    pseudo: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """A checked route.

    ``select``: the admin's own text before and after the reference to the source table, so that any relation with
    the source's columns can be put there (`dialect.postgres.select_over`); its output columns are named as the
    target's. For an identity route it is None: each column is the source's column of that name.
    ``columns``: the source columns that must travel, in the table's order, identity included.
    ``key``: target columns that find a row. ``filtered``: whether a source row may yield no row (WHERE, inner join).
    ``filter_sources``: source columns on which that depends. ``pseudo``: the pseudo-columns that the route refers to
    anywhere, in the order of PSEUDO_COLUMNS.
    ``create``: the target table does not exist yet and `apply` is to create it as ``target`` describes.
    ``added``: target columns that do not exist yet and are to be added (`OnSchemaChange.EVOLVE`); ``target`` has them.
    ``left_out``: source columns that an identity route leaves out, since the target has no such columns.
    ``sensitive``: source columns whose values are shown nowhere: masked in the quarantine, in previews and samples.
    """

    name: str
    source: Table
    target: Table
    select: tuple[str, str] | None
    columns: tuple[str, ...]
    assignments: tuple[Assignment, ...]
    key: tuple[str, ...]
    filtered: bool
    filter_sources: frozenset[str]
    pseudo: tuple[str, ...]
    on_delete: OnDelete
    mark_column: str | None
    on_truncate: OnTruncate
    create: bool = False
    on_error: OnError = OnError.HALT
    on_schema_change: OnSchemaChange = OnSchemaChange.HALT
    sensitive: frozenset[str] = frozenset()
    added: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def identity(self) -> bool:
        """Whether every column is copied as it is."""
        return self.select is None

    @property
    def into(self) -> TableName:
        """The target table's name."""
        return self.target.name


def masked_columns(route: Route) -> frozenset[str]:
    """The target's columns that hold something of a sensitive column of the source."""
    return frozenset(each.column for each in route.assignments if each.sources & route.sensitive)
