"""Shows what a route does to the target, by doing it: real rows, the real apply, and a rollback.

Nothing of it lasts: the temporary tables too are made inside the transaction. It needs neither the pipeline's lock
nor its checkpoint; the daemon may go on meanwhile. (What a trigger of the target does beyond its database is beyond a
rollback.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Rollback

from towline.change import Chunk, Format
from towline.errors import NotSetUp
from towline.postgres.session import translating
from towline.target import ChunkLoad, RouteState
from towline.target.postgres.apply import Applier
from towline.target.postgres.compare import comparison, stage
from towline_transforms.dialect import compare as dialect
from towline_transforms.dialect.stage import stage_columns
from towline_transforms.route import MASK, Route, masked_columns

Values = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A source row, by its identity as text, and what becomes of it.

    ``key``: of the target's row; None when the route makes no row of it. ``before`` and ``after``: the target's row
    as text, by `PreviewResult.columns`; None: there is none.
    """

    source_key: Values
    key: Values | None
    before: Values | None = None
    after: Values | None = None

    @property
    def outcome(self) -> str:
        """In a word: filtered, insert, update, same, or nothing when a trigger of the target kept the row out."""
        if self.key is None:
            return "filtered"
        if self.after is None:
            return "nothing"
        if self.before is None:
            return "insert"
        return "same" if self.before == self.after else "update"


@dataclass(frozen=True, slots=True)
class PreviewResult:
    """The rows in the source's order; ``columns`` are the target table's. ``masked``, ``masked_sources``: columns of
    target and source whose values are not shown.
    """

    route: str
    into: str
    source_key: tuple[str, ...]
    key: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[PreviewRow, ...]
    masked: frozenset[str] = frozenset()
    masked_sources: frozenset[str] = frozenset()

    def lines(self) -> Iterator[str]:
        """For people: columns that change as ``before → after``, the others as they are."""
        yield f"{self.route}: {len(self.rows)} source rows into {self.into}, rolled back"
        for row in self.rows:
            if row.key is None:
                yield f"filtered  {_pairs(self.source_key, row.source_key, self.masked_sources)}"
                continue
            yield f"{row.outcome:<9} {_pairs(self.key, row.key, self.masked)}"
            for place, name in enumerate(self.columns):
                before = None if row.before is None else row.before[place]
                after = None if row.after is None else row.after[place]
                secret = name in self.masked
                if row.outcome == "insert" and after is not None:
                    yield f"    {name}: {_shown(after, secret)}"
                elif row.outcome == "update" and before != after:
                    yield f"    {name}: {_shown(before, secret)} → {_shown(after, secret)}"
        outcomes = [row.outcome for row in self.rows]
        counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
        yield f"{counts or 'no rows'}; nothing was kept"


def preview(connection: psycopg.Connection[Any], route: Route, chunk: Chunk, *, pipeline: str) -> PreviewResult:
    """Apply the rows of a chunk, and roll back. The connection is in autocommit mode, and of no further use.

    Raises RowRefused, as the daemon would; NotSetUp when the target table is not there yet.
    """
    if route.create:
        raise NotSetUp(f"route {route.name}: the target table {route.into} does not exist yet")
    relation = chunk.relation
    columns = stage_columns(relation.columns, binary=relation.format is Format.BINARY, route=route)
    statements = comparison(route, columns, pipeline)
    applier = Applier(connection, pipeline=pipeline, routes=[route], relations=[relation], direct=False)
    with translating("target"), connection.transaction(), connection.cursor() as cursor:
        cursor.execute(dialect.create_stage(columns).encode())
        stage(cursor, relation, chunk.rows)
        sources = cursor.execute(dialect.stage_keys(route).encode()).fetchall()
        before = cursor.execute(statements.counterparts().encode()).fetchall()
        applier.begin()
        applier.load(ChunkLoad(route, chunk, RouteState(route.name, "copying")))
        applier.executor.sync()
        after = cursor.execute(statements.counterparts().encode()).fetchall()
        raise Rollback
    old = {row: (tuple(key), None if values is None else tuple(values)) for row, key, values in before}
    new = {row: (tuple(key), None if values is None else tuple(values)) for row, key, values in after}
    found = []
    for row, source_key in sources:
        key, then = new.get(row, (None, None))
        found.append(PreviewRow(tuple(source_key), key, old[row][1] if row in old else None, then))
    names = tuple(column.name for column in route.target.columns)
    return PreviewResult(
        route.name,
        str(route.into),
        route.source.identity,
        route.key,
        names,
        tuple(found),
        masked_columns(route),
        route.sensitive,
    )


def _pairs(names: tuple[str, ...], values: Values, masked: frozenset[str]) -> str:
    return ", ".join(f"{name} = {_shown(value, name in masked)}" for name, value in zip(names, values, strict=True))


def _shown(value: str | None, secret: bool) -> str:
    return "NULL" if value is None else MASK if secret else value
