"""Puts framed rows where a statement can read them: arrays, single rows, or a temporary table.

* Few rows travel as parameters of the statement itself, one array a column, unnested by the server: one round trip.
* A relation with array columns cannot be unnested (unnest flattens them): a few rows travel value by value.
* Many rows are COPYed into a temporary table, ``ON COMMIT DELETE ROWS``, which is made when it is first needed and
  kept for the session. It has no statistics, but the planner looks at its size. Within a transaction it is emptied by
  TRUNCATE before it is loaded again: from the second time on that is done in place, if it is done outside of
  savepoints.

At each commit the server empties every such table of the session, used or not, hence no more than `_TABLES` are kept.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from towline.change import Format, Relation
from towline.columns import columns
from towline.frame import Frame
from towline.target.postgres import params
from towline.target.postgres.executor import Executor
from towline_transforms.dialect import stage as text
from towline_transforms.dialect.postgres import marks_with_time
from towline_transforms.identifier import quote
from towline_transforms.route import PSEUDO_COLUMNS, Route
from towline_transforms.schema import Column, TableName

#: Up to so many rows go as arrays, and so do more of them, up to so many values; beyond that, COPY costs less.
FEW = 200
FEW_VALUES = 10_000
#: Up to so many rows with array columns go value by value.
_VALUES = 8
#: Temporary tables of a session.
_TABLES = 48


def few(rows: Frame) -> bool:
    """Whether rows go as arrays, where these can be had."""
    return len(rows) <= FEW or len(rows) * rows.width <= FEW_VALUES


class Kind(enum.StrEnum):
    """What is staged: rows of all columns, the same with their numbers, or keys."""

    ROWS = "rows"
    NUMBERED = "numbered"
    KEYS = "keys"


class Path(enum.Enum):
    """How it is staged."""

    ARRAYS = "arrays"
    VALUES = "values"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of a relation's stages. ``pseudo``: those of rows; ``key_time``: keys have ``_commit_time``."""

    relation: Relation
    pseudo: tuple[str, ...]
    key_time: bool

    @classmethod
    def of(cls, relation: Relation, routes: Sequence[Route]) -> Shape:
        """What the relation's routes ask for."""
        asked = {name for route in routes for name in route.pseudo}
        timed = any(marks_with_time(route) for route in routes)
        if any(marks_with_time(route) and route.filtered for route in routes):
            asked.add("_commit_time")
        return cls(relation, tuple(name for name in PSEUDO_COLUMNS if name in asked), timed)

    def columns(self, kind: Kind) -> list[Column]:
        """The columns of a stage, in order."""
        if kind is Kind.KEYS:
            timed = [text.pseudo_column("_commit_time")] if self.key_time else []
            return [*self.relation.key_columns, *timed]
        return [*self.relation.columns, *map(text.pseudo_column, self.pseudo)]


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Rows that are staged: SQL that names them, and its parameters."""

    shape: Shape
    kind: Kind
    path: Path
    count: int
    table: str
    parameters: tuple[object, ...]

    def __len__(self) -> int:
        return self.count

    @property
    def prepare(self) -> bool:
        """Whether statements over it are worth preparing. With temporary tables, a plan is for one size of them."""
        return self.path is Path.ARRAYS or (self.path is Path.VALUES and self.count == 1)

    @property
    def key(self) -> tuple[object, ...]:
        """What `sql` depends on, beside the route: statements made of it are kept by this."""
        rows = self.count if self.path is Path.VALUES else 0
        return self.shape.relation.name, self.kind, self.path, self.table, rows

    def sql(self, route: Route, first: int = 1) -> str:
        """The stage as SQL that can stand behind FROM, its parameters from ``$first`` on."""
        binary = self.shape.relation.format is Format.BINARY
        staged = text.stage_columns(self.shape.columns(self.kind), binary=binary, route=route)
        place = self.kind is Kind.NUMBERED
        if self.path is Path.TABLE:
            return text.table_stage(self.table, staged, place=place)
        if self.path is Path.ARRAYS:
            return text.unnest_stage(staged, first=first, place=place)
        return text.rows_stage(staged, self.count, first=first, place=place)


class Stages:
    """The stages of a session. ``path`` forces one way (for tests); VALUES and ARRAYS only where they are possible."""

    def __init__(self, executor: Executor, *, path: Path | None = None) -> None:
        self._executor = executor
        self._path = path
        self._made: dict[str, None] = {}  # in the order of their last use
        self._dirty: set[str] = set()
        self._numbers: dict[TableName, int] = {}
        self._shapes: dict[tuple[TableName, Kind], tuple[tuple[int, ...], bool]] = {}

    def begin(self) -> None:
        """A transaction begins: all tables are empty."""
        self._dirty.clear()

    def mark(self) -> tuple[dict[str, None], set[str]]:
        """What `restore` needs, taken when a savepoint is set or a transaction begins."""
        return dict(self._made), set(self._dirty)

    def restore(self, mark: tuple[dict[str, None], set[str]]) -> None:
        """The server went back to the savepoint: tables made since are gone; those that were filled count as filled."""
        self._made = dict(mark[0])
        self._dirty = (self._dirty | mark[1]) & self._made.keys()

    def empty(self) -> None:
        """Empty the tables that were filled in this transaction, in a place where that costs least (see above)."""
        if self._dirty:
            tables = ", ".join(f"pg_temp.{quote(name)}" for name in sorted(self._dirty))
            self._executor.run(f"TRUNCATE {tables}")
            self._dirty.clear()

    def load(
        self,
        shape: Shape,
        kind: Kind,
        rows: Frame,
        *,
        slot: int = 0,
        path: Path | None = None,
        found: Sequence[bytes] | None = None,
    ) -> Staged:
        """Stage one or more rows that have the shape's columns of that kind. May COPY, which ends the executor's queue.

        Stages of one relation and kind that are read at the same time need different slots. ``found``: the rows'
        columns (`towline.columns`), when they are known.
        """
        oids, flat = self._wire(shape, kind)
        path = path or self._choose(rows, flat)
        if path is Path.ARRAYS:
            found = columns(rows) if found is None else found
            return Staged(shape, kind, path, len(rows), "", tuple(params.arrays(found, len(rows), oids)))
        if path is Path.VALUES:
            return Staged(shape, kind, path, len(rows), "", tuple(params.values(rows)))
        name = self._table(shape, kind, slot)
        table = f"pg_temp.{quote(name)}"
        if name in self._dirty:
            self._executor.run(f"TRUNCATE {table}")
        self._dirty.add(name)
        if kind is Kind.NUMBERED:
            rows = rows.append_column([number.to_bytes(8, "big") for number in range(1, len(rows) + 1)])
        self._executor.copy(f"COPY {table} FROM STDIN (FORMAT binary)", rows)
        return Staged(shape, kind, path, len(rows), table, ())

    def _choose(self, rows: Frame, flat: bool) -> Path:
        if self._path is Path.TABLE or self._path is Path.VALUES:
            return self._path
        if flat:
            return Path.ARRAYS if few(rows) or self._path is Path.ARRAYS else Path.TABLE
        return Path.VALUES if len(rows) <= _VALUES else Path.TABLE

    def _wire(self, shape: Shape, kind: Kind) -> tuple[tuple[int, ...], bool]:
        """The OIDs of the stage's wire types, and whether none of them is an array."""
        key = shape.relation.name, kind
        if key not in self._shapes:
            binary = shape.relation.format is Format.BINARY
            staged = text.stage_columns(shape.columns(kind), binary=binary)
            self._shapes[key] = tuple(column.oid for column in staged), not any(column.is_array for column in staged)
        return self._shapes[key]

    def _table(self, shape: Shape, kind: Kind, slot: int) -> str:
        """The name of a temporary table, made if need be; the one not used for longest makes room."""
        number = self._numbers.setdefault(shape.relation.name, len(self._numbers))
        name = f"towline_{self._executor.number}_{number}_{kind}" + (f"_{slot}" if slot else "")
        if name in self._made:
            del self._made[name]
        else:
            spare = [old for old in self._made if old not in self._dirty]
            if len(self._made) >= _TABLES and spare:
                del self._made[spare[0]]
                self._executor.run(f"DROP TABLE pg_temp.{quote(spare[0])}")
            binary = shape.relation.format is Format.BINARY
            staged = text.stage_columns(shape.columns(kind), binary=binary)
            self._executor.run(text.create_stage(quote(name), staged, place=kind is Kind.NUMBERED))
        self._made[name] = None
        return name
