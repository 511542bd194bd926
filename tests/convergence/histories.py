"""Histories: what is done at the source, when, and what befalls the pipeline meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.convergence.schema import Schema
from towline.pipeline import POINTS
from towline.source.postgres.catch_up_stream import POINTS as CATCH_UP_POINTS

#: How a transaction ends. 'held': it stays open, in a session of its own, until the loop has passed a few more points.
ENDS = ("commit", "commit", "commit", "rollback", "prepare", "prepare, rollback", "not synchronous", "held")


@dataclass(frozen=True)
class Step:
    """A statement. ``undone``: in a savepoint that is rolled back to."""

    sql: str
    undone: bool = False


@dataclass(frozen=True)
class Transaction:
    """Statements of one transaction; one that fails is rolled back to a savepoint, and the others go on."""

    steps: tuple[Step, ...]
    end: str = "commit"
    message: bool = False


@dataclass(frozen=True)
class Meanwhile:
    """A transaction that takes place while the loop passes a point for the nth time (0: the first)."""

    point: str
    nth: int
    transaction: Transaction


@dataclass(frozen=True)
class Kill:
    """The daemon is gone when it passes a point for the nth time (0: the first). ``point``: "" counts all of them."""

    point: str
    nth: int


@dataclass(frozen=True)
class Cut:
    """All connections with one end are cut once so many bytes more went up to it, or came down from it."""

    end: str  # 'source' or 'hub'
    up: bool
    after: int


@dataclass(frozen=True)
class Phase:
    """Transactions, then a run of the pipeline to its end, with transactions and perhaps a fault meanwhile."""

    before: tuple[Transaction, ...] = ()
    meanwhile: tuple[Meanwhile, ...] = ()
    fault: Kill | Cut | None = None


@dataclass(frozen=True)
class History:
    """``rows``: that are there at the beginning. ``verify``: `towline verify` is asked in the end, too."""

    rows: int
    chunk_rows: int
    max_rows: int
    phases: tuple[Phase, ...]
    verify: bool = False


def histories(schema: Schema) -> SearchStrategy[History]:
    """Histories of a schema, that shrink to few and plain ones."""
    steps = st.builds(Step, schema.operations, st.sampled_from((False, False, False, True)))
    transactions = st.builds(
        Transaction,
        st.lists(steps, min_size=1, max_size=6).map(tuple),
        st.sampled_from(ENDS),
        st.sampled_from((False, False, False, True)),
    )
    points = st.sampled_from(POINTS + CATCH_UP_POINTS if schema.behind else POINTS)
    # A point may not be passed, if there is nothing to copy or no table has changed; of all of them a run passes many.
    kills = st.one_of(st.builds(Kill, st.just(""), st.integers(0, 12)), st.builds(Kill, points, st.integers(0, 1)))
    cuts = st.builds(Cut, st.sampled_from(("source", "hub")), st.booleans(), st.integers(0, 60_000))
    phases = st.builds(
        Phase,
        st.lists(transactions, min_size=1, max_size=3).map(tuple),
        st.lists(st.builds(Meanwhile, points, st.integers(0, 3), transactions), max_size=3).map(tuple),
        st.one_of(st.none(), kills, kills, cuts),
    )
    return st.builds(
        History,
        st.sampled_from((0, 1, 3, 6)),
        st.sampled_from((1, 2, 3, 20_000)),
        st.sampled_from(schema.max_rows),
        st.lists(phases, min_size=1, max_size=3).map(tuple),
        st.sampled_from((False,) * 9 + (True,)),
    )
