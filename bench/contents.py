"""Whether the target holds what it must: row counts and checksums over all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bench.servers import rows


@dataclass(frozen=True, slots=True)
class Pair:
    """Two queries that must give the same rows, in any order."""

    source: sql.Composable
    target: sql.Composable


def whole(table: str) -> Pair:
    """A table of schema public that is copied as it is."""
    query = sql.SQL("SELECT * FROM {}").format(sql.Identifier("public", table))
    return Pair(query, query)


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows, and a sum of hashes over their text."""

    count: int
    checksum: str


def contents(dsn: str, query: sql.Composable) -> Contents:
    """What a query gives."""
    summing = sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ({}) AS t")
    ((count, checksum),) = rows(dsn, summing.format(query))
    return Contents(count, str(checksum))


def differences(expected: Sequence[tuple[Pair, Contents]], target: str) -> list[str]:
    """What the target does not have as the source has it, in words; empty when all is equal."""
    found = []
    for pair, there in expected:
        try:
            here = contents(target, pair.target)
        except psycopg.Error as error:
            found.append(str(error).splitlines()[0])
            continue
        if here != there:
            name = pair.target.as_string(None)
            found.append(f"{name}: {here.count:,} rows of {there.count:,}, {'other' if here.count else 'no'} contents")
    return found
