"""What a schema of histories says: tables, routes, what may be done to them, and what must be equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Sql = SearchStrategy[str]

#: Values are written as SQL, so that PostgreSQL is the only one to interpret them.
TEXTS = ("NULL", "''", "'a'", "'b'", "'ü €'", "repeat('long ', 900)", "repeat('other ', 900)")
NUMBERS = ("NULL", "0", "1.0", "1.00", "-12.5", "'NaN'", "'Infinity'", "1e20")
FLOATS = ("NULL", "0", "'-0'", "1e-7", "'NaN'", "'-Infinity'", "0.1")
CODES = ("NULL", "'w'", "'x'", "'y'", "'z'")
KEYS = st.integers(1, 6)


@dataclass(frozen=True)
class Schema:
    """``source`` and ``hub``: scripts that make the tables. ``fill``: the first rows, for ``{rows}`` of them.

    ``equal``: queries at the source and at the hub that must give the same rows. ``tables``, ``copies``: what to empty
    between histories. ``max_rows``: how large pieces may be. ``changing``: operations change the tables, so that
    each history has databases of its own; ``{columns}`` in what is to be equal stands for the source's columns.
    ``more``: of the pipeline file. ``streamed``: transactions beyond 64 kB are sent while they are under way.
    ``behind``: what is behind is read through SQL, in small gulps, before the stream goes on.
    ``refused``: the rows of the one table, with the key ``id``, that the target refuses, as a condition.
    """

    name: str
    source: str
    routes: str
    fill: str
    operations: Sql
    equal: tuple[tuple[str, str], ...]
    tables: tuple[str, ...]
    copies: tuple[str, ...]
    hub: str = "SELECT"
    plugins: tuple[str, ...] = ("pgoutput", "wal2json")
    max_rows: tuple[int, ...] = (20_000, 1, 3)
    changing: bool = False
    more: str = ""
    streamed: bool = False
    behind: bool = False
    refused: str = ""


def pick(values: Sequence[str]) -> Sql:
    """One of the values."""
    return st.sampled_from(values)


def drawn(template: str, **parts: SearchStrategy[object]) -> Sql:
    """The template with its parts drawn."""
    return st.fixed_dictionaries(parts).map(lambda values: template.format(**values))


def same(*tables: str) -> tuple[tuple[str, str], ...]:
    """Queries that compare whole tables."""
    query = "SELECT t::text FROM {}.{} t ORDER BY 1"
    return tuple((query.format("public", table), query.format("replica", table)) for table in tables)
