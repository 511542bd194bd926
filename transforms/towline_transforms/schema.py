"""What a catalog knows of tables: the shapes that routes are checked against.

Both ends fill these from their own catalogs (the source's server and the target's); nothing here
does I/O. All names are unquoted identifiers, exactly as the catalog stores them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class TypeKind(enum.StrEnum):
    """``pg_type.typtype``, with arrays told apart."""

    BASE = "base"
    ARRAY = "array"
    ENUM = "enum"
    DOMAIN = "domain"
    COMPOSITE = "composite"
    RANGE = "range"
    MULTIRANGE = "multirange"


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A schema-qualified table name. ``str()`` joins with a dot, for people; it is not SQL."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class SqlType:
    """A column's type as its server names it.

    ``sql`` is what ``format_type(oid, typmod)`` prints with an empty search_path: safe to put in a
    statement, e.g. ``numeric(10,2)``, ``character varying(5)[]``, ``public.order_state``.
    ``schema``/``name`` name the type itself (``pg_catalog``/``numeric``). ``oid`` is the server's own.
    ``binary`` says whether its binary form means the same on another server of another version
    (false for ``reg*``, which are OIDs, and for containers that embed OIDs of user types).
    ``element`` is the element of an array, the base of a domain, the subtype of a range.
    ``extension`` names the extension that made the type, if one did.
    """

    oid: int
    schema: str
    name: str
    sql: str
    kind: TypeKind = TypeKind.BASE
    binary: bool = True
    array_oid: int = 0
    element: SqlType | None = None
    extension: str | None = None

    @property
    def builtin(self) -> bool:
        """Known by the same OID on every PostgreSQL server (below FirstNormalObjectId)."""
        return self.oid < 16384

    @property
    def is_array(self) -> bool:
        """An array, or a domain over one: what ``unnest`` would flatten."""
        if self.kind is TypeKind.DOMAIN and self.element is not None:
            return self.element.is_array
        return self.kind is TypeKind.ARRAY


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``generated``: a stored or virtual expression, never written by Towline.

    ``number`` (pg_attribute.attnum, 0 when unknown) stays when the column is renamed, and is never used again.
    """

    name: str
    type: SqlType
    not_null: bool = False
    has_default: bool = False
    generated: str | None = None
    identity_always: bool = False
    collation: str | None = None
    number: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``columns`` of the table that holds it refer to ``referenced_columns`` of ``referenced``."""

    name: str
    columns: tuple[str, ...]
    referenced: TableName
    referenced_columns: tuple[str, ...]
    deferrable: bool = False


@dataclass(frozen=True, slots=True)
class ActingKey:
    """A foreign key of some table that, when a row of this one is deleted, deletes or changes what refers to it.

    ``table``: the one that refers. ``columns``: those of this table that it refers to. ``follows``: it allows them to
    be changed, and acts then too.
    """

    table: TableName
    columns: tuple[str, ...]
    follows: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table of either catalog.

    ``identity``: columns by which the source's log names a row in updates and deletes (the replica
    identity's index; with REPLICA IDENTITY FULL the primary key or another unique NOT NULL index):
    empty when there is none, and the table cannot be routed. ``identity_reason`` then says why.
    ``unique_keys``: columns of every valid, immediate, non-partial, column-only unique index (the primary
    key among them). ``partitions``: the names of all leaf partitions of a partitioned table; ``leaves``, in the same
    order: the OID of each, and by which transaction it was attached (None: not known).
    """

    name: TableName
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    identity_reason: str = ""
    replica_identity_full: bool = False
    unique_keys: tuple[tuple[str, ...], ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    partitions: tuple[TableName, ...] = ()
    leaves: tuple[tuple[int, int], ...] | None = None
    acting_keys: tuple[ActingKey, ...] = ()
    oid: int = 0
    row_estimate: int = 0
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {column.name: column for column in self.columns})

    def column(self, name: str) -> Column:
        """The column of that name. Raises KeyError."""
        return self._by_name[name]

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return name in self._by_name


@dataclass(frozen=True, slots=True)
class Catalog:
    """The tables of one database that routes may name.

    ``types``: schema and name of every type of that database which is not built in (arrays and tables' row
    types may be left out); None when that was not asked.
    """

    tables: dict[TableName, Table]
    server_version: int = 0
    types: frozenset[tuple[str, str]] | None = None

    def get(self, name: TableName) -> Table | None:
        """The table of that name, or None."""
        return self.tables.get(name)
