"""Which chunk is read next, and which chunk may be used."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from towline.change import Chunk, Format, Relation, Visibility
from towline.frame import Frame
from towline.snapshot import Snapshots, copy_order
from towline.target import RouteState
from towline_transforms.route import Assignment, OnDelete, OnTruncate, Route
from towline_transforms.schema import Column, ForeignKey, SqlType, Table, TableName

BIGINT = SqlType(20, "pg_catalog", "int8", "bigint")


def route(name: str, *parents: str) -> Route:
    """An identity route of a one-column table whose target refers to the parents' targets."""
    columns = (Column("id", BIGINT, not_null=True),)
    keys = tuple(ForeignKey(f"to_{p}", ("id",), TableName("hub", p), ("id",)) for p in parents)
    return Route(
        name=name,
        source=Table(TableName("public", name), columns, ("id",), ("id",), row_estimate=10),
        target=Table(TableName("hub", name), columns, ("id",), foreign_keys=keys),
        select=None,
        columns=("id",),
        assignments=(Assignment("id", "id", frozenset({"id"})),),
        key=("id",),
        filtered=False,
        filter_sources=frozenset(),
        pseudo=(),
        on_delete=OnDelete.DELETE,
        mark_column=None,
        on_truncate=OnTruncate.HALT,
    )


def chunk(of: Route, rows: int, upto: str | None, seen: Visibility) -> Chunk:
    """A chunk of that many rows."""
    relation = Relation(of.source, of.source.columns, Format.BINARY)
    frame = Frame.of_values([[i.to_bytes(8, "big")] for i in range(rows)], 1)
    return Chunk(relation, frame, (upto,) if upto is not None else None, seen, 1000, datetime.now(UTC))


def names(routes: tuple[Route, ...]) -> list[str]:
    return [r.name for r in routes]


def test_parents_are_copied_before_children() -> None:
    """Whatever order the routes are written in, a table follows the tables that it refers to."""
    routes = [route("line", "order", "product"), route("order", "party"), route("product"), route("party")]
    order = names(copy_order(routes))
    assert sorted(order) == ["line", "order", "party", "product"]
    assert order.index("party") < order.index("order") < order.index("line")
    assert order.index("product") < order.index("line")


def test_cycles_do_not_hang_or_lose_routes() -> None:
    """Tables that refer to each other, or to themselves, are all copied, once."""
    routes = [route("a", "b"), route("b", "c"), route("c", "a"), route("self", "self")]
    assert sorted(names(copy_order(routes))) == ["a", "b", "c", "self"]


def test_long_chains_do_not_overflow_the_stack() -> None:
    """Thousands of tables, each referring to the next."""
    routes = [route(f"t{i}", f"t{i + 1}") for i in range(3000)] + [route("t3000")]
    assert names(copy_order(routes))[0] == "t3000"


def test_no_chunk_before_the_barrier() -> None:
    """What ran when listening began may have written rows that were never heard of: wait until it has ended."""
    only = route("t")
    snapshots = Snapshots([only], {})
    before = chunk(only, 1, None, Visibility(90, 120))
    assert not snapshots.accepts(before), "not listening yet"
    snapshots.listen(Visibility(95, 110, frozenset({95, 99})))
    assert not snapshots.accepts(chunk(only, 1, None, Visibility(109, 130, frozenset({109}))))
    assert snapshots.accepts(chunk(only, 1, None, Visibility(110, 130)))


@pytest.mark.parametrize(
    ("seen", "usable"),
    [
        (Visibility(201, 201), True),
        (Visibility(150, 201, frozenset({150})), True),
        (Visibility(200, 201, frozenset({200})), False),
        (Visibility(200, 200), False),
    ],
    ids=["all ended", "another runs", "committed in the log but not visible", "not even begun"],
)
def test_a_chunk_must_see_what_was_applied(seen: Visibility, usable: bool) -> None:
    """Rule 1, for transactions applied and for those skipped while the route was pending."""
    only = route("t")
    snapshots = Snapshots([only], {})
    snapshots.listen(Visibility(100, 100))
    snapshots.applied([200])
    assert snapshots.accepts(chunk(only, 1, None, seen)) is usable
    assert snapshots.accepts(chunk(only, 1, None, Visibility(201, 201))), "a later snapshot sees it"


def test_logged_transaction_ids_wrap_around() -> None:
    """The log has 32 bits of a transaction's id, snapshots have 64: the nearest one is meant."""
    epoch = 5 << 32
    seen = Visibility(epoch + 10, epoch + 20, frozenset({epoch + 15}))
    assert seen.sees(9) and seen.sees(16) and seen.sees(0xFFFFFFF0)
    assert not seen.sees(15) and not seen.sees(20) and not seen.sees(21)


def test_a_route_is_pending_then_copying_then_streaming() -> None:
    """States follow committed chunks, resume from the cursor, and only then the next route begins."""
    parent, child = route("parent"), route("child", "parent")
    snapshots = Snapshots([child, parent], {})
    snapshots.listen(Visibility(1, 1))
    assert snapshots.active == frozenset()
    assert snapshots.next() == (parent, None)

    first = snapshots.after(parent, chunk(parent, 3, "3", Visibility(5, 5)))
    assert first == RouteState("parent", "copying", ("3",), 3, 10)
    assert snapshots.active == frozenset(), "nothing counts before it is committed"
    snapshots.committed(first)
    assert snapshots.active == {"parent"}
    assert snapshots.next() == (parent, ("3",))

    resumed = Snapshots([child, parent], {"parent": first})
    assert resumed.next() == (parent, ("3",)) and resumed.active == {"parent"}

    snapshots.committed(snapshots.after(parent, chunk(parent, 2, None, Visibility(5, 5))))
    assert snapshots.states["parent"] == RouteState("parent", "streaming", None, 5, 10)
    assert snapshots.next() == (child, None) and not snapshots.done
    snapshots.committed(snapshots.after(child, chunk(child, 0, None, Visibility(5, 5))))
    assert snapshots.done and snapshots.next() is None and snapshots.active == {"parent", "child"}


def test_what_snapshots_see_does_not_pile_up() -> None:
    """While a chunk waits for an old transaction to end, looks at the source tell which others have."""
    snapshots = Snapshots([route("a")], {})
    snapshots.listen(Visibility(10, 10))
    for xid in range(10, 100_000):
        snapshots.past_barrier(Visibility(5, xid, frozenset({5})))
        snapshots.applied([xid])
    assert len(snapshots._unseen) < 20_000
    assert not snapshots.accepts(chunk(route("a"), 1, None, Visibility(99_000, 99_000)))
    assert snapshots.accepts(chunk(route("a"), 1, None, Visibility(100_000, 100_000)))
