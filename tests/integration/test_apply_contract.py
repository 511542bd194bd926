"""The contract of a target, over every target there is: one suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.integration.apply_cases import START, WHEN, Batch, Hub
from tests.support.checked import PIPELINE, SCHEMA, spec
from tests.support.databases import create_database, drop_database
from towline.change import Format
from towline.demo.server import Server
from towline.errors import Fenced, NotSetUp, TargetUnavailable
from towline.frame import frame_row
from towline.source import Identity
from towline.target import Checkpoint, ChunkLoad, Counts, RouteState, Target
from towline.target.memory import MemoryStore, MemoryTarget
from towline.target.postgres import control
from towline_transforms.route import OnTruncate

TABLES = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.item (id int PRIMARY KEY, code text, note text);
CREATE TABLE hub.item (LIKE src.item INCLUDING ALL);
"""
ROUTE = "src.item"


@dataclass
class Case:
    """A target under test: how to make one more for the same durable state, and how to look at that."""

    hub: Hub
    make: Callable[[], Target]
    rows: Callable[[], set[tuple[str | None, ...]]]
    ledger: Callable[[], Mapping[str, Counts]]
    forget: Callable[[], None]
    supersede: Callable[[], None]  # raise the epoch, without the lock

    def opened(self) -> Target:
        """A target that holds the lock and is open."""
        target = self.make()
        assert target.acquire(5)
        target.open()
        return target

    def apply(self, target: Target, *batches: Batch, at: int = START) -> Mapping[str, Counts]:
        """One transaction."""
        target.begin()
        for batch in batches:
            target.apply(batch.piece(), {ROUTE}, self.hub.reread)
        return target.commit(at, WHEN).counts


def _postgres(hub: Hub) -> Case:
    def rows() -> set[tuple[str | None, ...]]:
        return {tuple(row) for row in hub.rows("SELECT id::text, code, note FROM hub.item")}

    def ledger() -> Mapping[str, Counts]:
        return {row.route: row.counts for row in control.read_ledger(hub.sql, SCHEMA, PIPELINE)}

    def forget() -> None:
        hub.sql.execute("DELETE FROM towline.checkpoint")

    def supersede() -> None:
        hub.sql.execute("UPDATE towline.checkpoint SET epoch = epoch + 1")

    return Case(hub, hub.closed_target, rows, ledger, forget, supersede)


def _memory(hub: Hub) -> Case:
    store = MemoryStore(Checkpoint(START, 0, Identity("1", 1, "src", 0), "s", "pgoutput", None, datetime.now(UTC)))
    made: list[MemoryTarget] = []

    def make() -> Target:
        made.append(MemoryTarget(store, hub.routes))
        return made[-1]

    def rows() -> set[tuple[str | None, ...]]:
        found = set()
        for row in store.rows.get(ROUTE, {}).values():
            values, at = [], 2
            while at < len(row):
                length = int.from_bytes(row[at : at + 4], "big", signed=True)
                values.append(None if length < 0 else row[at + 4 : at + 4 + length].decode())
                at += 4 + max(length, 0)
            assert frame_row([v if v is None else v.encode() for v in values]) == row
            found.add(tuple(values))
        return found

    def forget() -> None:
        store.checkpoint = None

    def supersede() -> None:
        make().open()

    return Case(hub, make, rows, lambda: store.ledger, forget, supersede)


@pytest.fixture(scope="module", params=["pg18", pytest.param("pg15", marks=pytest.mark.debian)])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    server: Server = request.getfixturevalue(request.param)
    name = create_database(server)
    yield server.dsn(name)
    drop_database(server, name)


@pytest.fixture(params=["postgres", "memory"])
def case(request: pytest.FixtureRequest, database: str) -> Iterator[Case]:
    hub = Hub(database, Format.TEXT)
    hub.set_up(TABLES, spec("src.item", "hub.item", on_truncate=OnTruncate.DELETE))
    yield _memory(hub) if request.param == "memory" else _postgres(hub)
    hub.close()


def test_rows_ledger_and_checkpoint_commit_together(case: Case) -> None:
    """Before the commit nothing is to be seen; after it, everything."""
    target = case.opened()
    target.begin()
    target.apply(case.hub.batch().insert("item", id="1", code="a").piece(), {ROUTE}, case.hub.reread)
    assert case.rows() == set() and not case.ledger()
    counts = target.commit(START + 0x10, WHEN).counts
    assert counts == {ROUTE: Counts(seen=1, upserted=1)} == case.ledger()
    assert case.rows() == {("1", "a", None)}
    target.close()
    checkpoint = case.opened().open()
    assert (checkpoint.position, checkpoint.commit_time) == (START + 0x10, WHEN)


def test_asynchronous_commits_are_seen_and_gone_on_from(case: Case) -> None:
    """They differ from others in a crash alone; whoever opens next goes on from them."""
    target = case.opened()
    for number in (1, 2):
        target.begin()
        target.apply(case.hub.batch().insert("item", id=str(number)).piece(), {ROUTE}, case.hub.reread)
        assert target.commit(START + number, WHEN, synchronous=False).counts[ROUTE].upserted == 1
        assert len(case.rows()) == number == case.ledger()[ROUTE].seen
    target.close()
    assert case.opened().open().position == START + 2


def test_rollback_leaves_nothing(case: Case) -> None:
    """What was rolled back was never there, and the next transaction is not disturbed by it."""
    target = case.opened()
    target.begin()
    target.apply(case.hub.batch().insert("item", id="1").piece(), {ROUTE}, case.hub.reread)
    target.rollback()
    target.rollback()
    case.apply(target, case.hub.batch().insert("item", id="2"))
    assert case.rows() == {("2", None, None)}
    assert case.ledger() == {ROUTE: Counts(seen=1, upserted=1)}


def test_idempotence(case: Case) -> None:
    """A batch may be applied again."""
    target = case.opened()
    batch = case.hub.batch().insert("item", id="1", code="a").delete("item", id="9")
    batch.rekey("item", {"id": "1"}, missing="note", id="2", code="b")
    case.apply(target, case.hub.batch().insert("item", id="1", code="z", note="n"))
    case.hub.source_rows["item"] = [{"id": "2", "code": "b", "note": "n"}]
    case.apply(target, batch)
    once = case.rows()
    case.apply(target, batch)
    assert case.rows() == once == {("2", "b", None)}


def test_versions_of_a_key(case: Case) -> None:
    """The last one wins; columns that were not sent keep their value; absent rows are read again."""
    target = case.opened()
    case.apply(target, case.hub.batch().insert("item", id="1", code="a", note="n"))
    case.hub.source_rows["item"] = [{"id": "7", "code": "g", "note": "far"}]
    batch = case.hub.batch().update("item", id="1", missing="note", code="b")
    batch.update("item", id="7", missing="note", code="g")
    batch.update("item", id="8", missing="code note").insert("item", id="2", code="x").delete("item", id="2")
    counts = case.apply(target, batch)[ROUTE]
    assert case.rows() == {("1", "b", "n"), ("7", "g", "far")}
    assert (counts.seen, counts.upserted, counts.deleted, counts.superseded) == (5, 2, 1, 2)
    assert counts.balanced


def test_a_moved_row_keeps_what_was_not_sent(case: Case) -> None:
    """The key changes in place."""
    target = case.opened()
    case.apply(target, case.hub.batch().insert("item", id="1", code="a", note="n").insert("item", id="2", note="m"))
    batch = case.hub.batch().delete("item", id="2").rekey("item", {"id": "1"}, missing="note", id="2", code="b")
    case.apply(target, batch)
    assert case.rows() == {("2", "b", "n")} and case.hub.reread_keys == []


def test_chunk_is_older_than_the_stream(case: Case) -> None:
    """Of a chunk, only rows that the transaction did not touch are loaded; its state commits with it."""
    target = case.opened()
    state = RouteState(ROUTE, "copying", ("4",), 4, 9)
    rows: list[dict[str, str | None]] = [{"id": str(n), "code": f"c{n}", "note": f"n{n}"} for n in range(1, 5)]
    load = ChunkLoad(case.hub.routes[0], case.hub.chunk("item", rows), state)
    target.begin()
    batch = case.hub.batch().delete("item", id="1").update("item", id="2", missing="note", code="new")
    target.apply(batch.piece(), {ROUTE}, case.hub.reread, load)
    target.apply(case.hub.batch().rekey("item", {"id": "3"}, id="30").piece(), {ROUTE}, case.hub.reread, load)
    target.load(load)
    assert target.commit(START, WHEN).counts[ROUTE].balanced
    assert case.rows() == {("2", "new", "n2"), ("30", None, None), ("4", "c4", "n4")}
    assert target.states() == {ROUTE: state}
    assert case.hub.reread_keys == []


def test_truncate(case: Case) -> None:
    """The table is emptied before the rows of the piece."""
    target = case.opened()
    case.apply(target, case.hub.batch().insert("item", id="1"))
    case.apply(target, case.hub.batch().truncate("item").insert("item", id="2"))
    assert case.rows() == {("2", None, None)}


def test_one_writer(case: Case) -> None:
    """The second waits until the first is gone; route states are theirs in turn."""
    first, second = case.opened(), case.make()
    assert not second.acquire(0.05)
    case.apply(first, case.hub.batch().insert("item", id="1"))
    first.set_states([RouteState(ROUTE, "copying", ("1",), 1, 4)])
    first.close()
    first.close()
    assert second.acquire(5)
    assert second.open().epoch == 2
    second.set_states([RouteState(ROUTE, "streaming", None, 3, 4)])
    assert second.states() == {ROUTE: RouteState(ROUTE, "streaming", None, 3, 4)}
    assert case.rows() == {("1", None, None)}


def test_a_stale_writer_is_fenced(case: Case) -> None:
    """Whoever lost its session lock unawares may neither write nor set states, once another has begun."""
    stale = case.opened()
    case.apply(stale, case.hub.batch().insert("item", id="1"))
    case.supersede()
    with pytest.raises(Fenced):
        case.apply(stale, case.hub.batch().insert("item", id="2"))
    stale.rollback()
    with pytest.raises(Fenced):
        stale.begin()
        stale.commit(START + 9, WHEN)
    stale.rollback()
    with pytest.raises(Fenced):
        stale.begin()
        stale.heartbeat()
        stale.heartbeat()
    stale.rollback()
    with pytest.raises(Fenced):
        stale.set_states([RouteState(ROUTE, "pending")])
    stale.rollback()
    assert case.rows() == {("1", None, None)}


def test_not_set_up(case: Case) -> None:
    """Without a checkpoint there is nothing to go on from."""
    case.forget()
    target = case.make()
    assert target.acquire(5)
    with pytest.raises(NotSetUp):
        target.open()


def test_a_closed_target_is_unavailable(case: Case) -> None:
    """After close, calls fail as if the connection was lost."""
    target = case.opened()
    target.heartbeat()
    target.begin()
    target.close()
    with pytest.raises(TargetUnavailable):
        target.heartbeat()
    with pytest.raises(TargetUnavailable):
        target.begin()
    target.rollback()
    assert case.opened() is not None
