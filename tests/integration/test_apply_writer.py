"""The PostgreSQL target as a session: locks, fencing, lost connections, deferred constraints, memory, plans."""

from __future__ import annotations

import resource
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from tests.integration.apply_cases import START, WHEN, Hub, Values
from tests.support.checked import spec
from tests.support.databases import create_database, drop_database
from towline.change import INSERT, UPDATE, Format, Piece, RowSet, Transaction
from towline.demo.server import Server
from towline.errors import Fenced, LedgerImbalance, NotSetUp, RowRefused, TargetConflict, TargetUnavailable
from towline.frame import Frame
from towline.postgres.session import connect
from towline.target import ChunkLoad, RouteState
from towline.target.postgres import writing_session
from towline.target.postgres.apply import Applier
from towline.target.postgres.executor import Executor
from towline.target.postgres.writer import PostgresTarget
from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect import stage

ITEM = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.item (id int PRIMARY KEY, code text, note text);
CREATE TABLE hub.item (LIKE src.item INCLUDING ALL);
"""


@pytest.fixture(scope="module", params=["pg18", pytest.param("pg15", marks=pytest.mark.debian)])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    server: Server = request.getfixturevalue(request.param)
    name = create_database(server)
    yield server.dsn(name)
    drop_database(server, name)


@pytest.fixture
def hub(database: str) -> Iterator[Hub]:
    hub = Hub(database, Format.BINARY)
    yield hub
    hub.close()


def pid(hub: Hub) -> int:
    """The server process of the target's session."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'towline test' AND datname = current_database()"
    ((found,),) = hub.rows(query)
    return int(found)


def test_no_control_tables(hub: Hub) -> None:
    """That `apply` has not run is said as such."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.sql.execute("DROP SCHEMA towline CASCADE")
    target = hub.closed_target()
    assert target.acquire(5)
    with pytest.raises(NotSetUp):
        target.open()
    with pytest.raises(NotSetUp):
        target.states()


def test_session_settings(hub: Hub) -> None:
    """A frozen daemon's session and transaction end by themselves; the role's search_path is kept."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.target()
    backend = pid(hub)
    assert hub.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = " + str(backend)) == [(1,)]
    connection = hub.targets[0]._session.connection
    for name, value in (("idle_in_transaction_session_timeout", "1min"), ("lock_timeout", "30s"), ("jit", "off")):
        assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    if connection.info.server_version >= 140000:
        assert connection.execute("SHOW idle_session_timeout").fetchone() == ("1min",)
    assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)


def test_functions_of_the_admins(hub: Hub) -> None:
    """A route's SELECT finds functions where the role's search_path does."""
    hub.sql.execute(
        "CREATE OR REPLACE FUNCTION public.twice(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1 || $1'"
    )
    hub.set_up(ITEM, spec("src.item", "hub.item", "SELECT id, twice(code) AS code FROM src.item", name="r"))
    hub.apply(hub.batch().insert("item", id="1", code="ab"))
    assert hub.rows("SELECT code FROM hub.item") == [("abab",)]


def test_a_lost_connection(hub: Hub) -> None:
    """The session's end is TargetUnavailable, in whatever call; nothing is left of the transaction."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    for call in ("apply", "commit", "heartbeat", "begin"):
        target = hub.target()
        if call in ("apply", "commit"):
            target.begin()
        if call == "commit":
            target.apply(hub.batch().insert("item", id="1").piece(), {"src.item"}, hub.reread)
        hub.sql.execute("SELECT pg_terminate_backend(%s, 5000)", (pid(hub),))
        with pytest.raises(TargetUnavailable):
            if call == "apply":
                target.apply(hub.batch().insert("item", id="1").piece(), {"src.item"}, hub.reread)
            elif call == "commit":
                target.commit(START + 1, WHEN)
            elif call == "heartbeat":
                target.heartbeat()
            else:
                target.begin()
                target.commit(START + 1, WHEN)
        target.rollback()
        target.close()
    assert hub.rows("SELECT * FROM hub.item") == []


def test_figures_that_do_not_add_up_are_not_committed(hub: Hub) -> None:
    """What is applied twice, behind the ledger's back, is found before anything of it is durable."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    hub.apply(hub.batch().insert("item", id="1"), target=target)
    piece = hub.batch().insert("item", id="2").piece(START + 1)
    target.begin()
    target.apply(piece, {"src.item"}, hub.reread)
    target._applying().apply(piece, {"src.item"}, hub.reread)
    with pytest.raises(LedgerImbalance, match=r"src\.item: 1 rows came from the source, 2 were seen"):
        target.commit(START + 1, WHEN)
    target.rollback()
    assert hub.rows("SELECT id FROM hub.item") == [(1,)]
    assert hub.ledger()["src.item"][0] == 1
    hub.apply(piece, target=target)
    assert hub.rows("SELECT id FROM hub.item ORDER BY 1") == [(1,), (2,)]


def test_close_ends_a_call_of_another_thread(hub: Hub) -> None:
    """A statement that waits for a lock is cancelled, and its thread gets an error."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    hub.apply(hub.batch().insert("item", id="1"), target=target)
    raised: list[Exception] = []

    def work() -> None:
        try:
            hub.apply(hub.batch().update("item", id="1", code="x"), target=target)
        except (TargetUnavailable, TargetConflict) as error:
            raised.append(error)

    with psycopg.connect(hub.dsn) as other:
        other.execute("SELECT * FROM hub.item FOR UPDATE")
        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 10
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while hub.rows(waiting) != [(1,)]:
            assert time.monotonic() < deadline
        target.close()
        thread.join(10)
        assert not thread.is_alive() and len(raised) == 1
    successor = hub.closed_target()
    assert successor.acquire(10)


def test_lock_timeout(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that someone keeps is a conflict, to be tried again; the rows are not to blame."""
    monkeypatch.setitem(writing_session.SETTINGS, "lock_timeout", 50)
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    with psycopg.connect(hub.dsn) as other:
        other.execute("LOCK TABLE hub.item")
        with pytest.raises(TargetConflict):
            hub.apply(hub.batch().insert("item", id="1"))
        target.rollback()
    hub.apply(hub.batch().insert("item", id="1"))
    assert hub.rows("SELECT id FROM hub.item") == [(1,)]


def test_a_repair_and_the_daemon_take_turns(hub: Hub) -> None:
    """Whoever holds the checkpoint row makes a transaction wait."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    target.begin()
    target.apply(hub.batch().insert("item", id="1").piece(), {"src.item"}, hub.reread)
    with psycopg.connect(hub.dsn) as other, pytest.raises(psycopg.errors.LockNotAvailable):
        other.execute("SELECT * FROM towline.checkpoint FOR UPDATE NOWAIT")
    target.rollback()
    with psycopg.connect(hub.dsn) as other:
        assert len(other.execute("SELECT * FROM towline.checkpoint FOR UPDATE NOWAIT").fetchall()) == 1


@pytest.mark.parametrize("wrong", ["DROP TABLE hub.item", "ALTER TABLE hub.item ADD CHECK (id < 0)"])
def test_what_fails_of_a_fenced_daemon_is_that_it_is_fenced(hub: Hub, wrong: str) -> None:
    """Its statements are sent before it knows; what comes of them is no matter of theirs."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    hub.sql.execute(f"UPDATE towline.checkpoint SET epoch = epoch + 1; {wrong}".encode())
    target.begin()
    with pytest.raises(Fenced):
        target.apply(hub.batch().insert("item", id="1").piece(), {"src.item"}, hub.reread)
    with pytest.raises(Fenced):
        target.commit(START + 1, WHEN)
    target.rollback()
    assert hub.rows("SELECT count(*) FROM towline.quarantine") == [(0,)]


def test_deferred_constraints(hub: Hub) -> None:
    """What is deferrable is checked at the commit: order does not matter, and a violation commits nothing."""
    hub.set_up(
        ITEM + "ALTER TABLE hub.item ADD UNIQUE (code) DEFERRABLE",
        spec("src.item", "hub.item"),
    )
    hub.apply(hub.batch().insert("item", id="1", code="a").insert("item", id="2", code="b"))
    hub.apply(hub.batch().update("item", id="1", code="b"), hub.batch().update("item", id="2", code="a"))
    assert hub.rows("SELECT id, code FROM hub.item ORDER BY id") == [(1, "b"), (2, "a")]
    with pytest.raises(RowRefused) as caught:
        hub.apply(hub.batch().update("item", id="1", code="a"))
    assert caught.value.sqlstate == "23505" and "item_code_key" in str(caught.value)
    hub.targets[0].rollback()
    assert hub.rows("SELECT id, code FROM hub.item ORDER BY id") == [(1, "b"), (2, "a")]
    assert hub.ledger()["src.item"][0] == 4


def frame(low: int, high: int) -> Frame:
    """Rows of ``src.item`` in binary form."""
    head, note = b"\0\3\0\0\0\4", b"\0\0\0\4note"
    rows = [head + number.to_bytes(4, "big") + b"\0\0\0\x07" + b"%07d" % number + note for number in range(low, high)]
    return Frame.of_rows(rows, 3)


def piece(hub: Hub, low: int, high: int, op: int, end: int | None) -> Piece:
    """One transaction's changes."""
    rows = frame(low, high)
    ops = np.full(len(rows), op, dtype=np.uint8)
    rowset = RowSet(hub.relations["item"], rows, ops, np.arange(len(rows), dtype=np.int64))
    return Piece((rowset,), (Transaction(9, START, WHEN, 0),), end)


@pytest.mark.parametrize("direct", [True, False])
def test_a_million_rows_in_one_transaction(hub: Hub, direct: bool) -> None:
    """Fifty pieces are applied in bounded memory, and the stage does not grow with them."""
    hub.direct = direct
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    target.begin()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(50):
        end = START + 1 if number == 49 else None
        target.apply(piece(hub, number * 20000, (number + 1) * 20000, INSERT, end), {"src.item"}, hub.reread)
    if not direct:
        connection = target._session.connection
        sizes = connection.execute(r"SELECT pg_relation_size(oid) FROM pg_class WHERE relname LIKE 'towline\_%\_rows'")
        assert 0 < max(size for (size,) in sizes) < 4_000_000
    counts = target.commit(START + 1, WHEN).counts
    assert counts["src.item"].upserted == 1_000_000
    assert hub.rows("SELECT count(*), max(id) FROM hub.item") == [(1_000_000, 999_999)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


def test_stages_are_few(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary tables beyond a number are dropped again, and made anew when needed."""
    monkeypatch.setattr("towline.target.postgres.staging._TABLES", 2)
    monkeypatch.setattr("towline.target.postgres.staging.FEW", 1)
    monkeypatch.setattr("towline.target.postgres.staging.FEW_VALUES", 0)
    tables = "".join(
        f"CREATE TABLE src.t{n} (id int PRIMARY KEY, v text); CREATE TABLE hub.t{n} (id int PRIMARY KEY, v text);"
        for n in range(4)
    )
    hub.set_up(f"CREATE SCHEMA src; CREATE SCHEMA hub; {tables}", *(spec(f"src.t{n}", f"hub.t{n}") for n in range(4)))
    hub.direct = False
    for turn in range(3):
        for n in range(4):
            hub.apply(hub.batch().update(f"t{n}", id="1", v=str(turn)).update(f"t{n}", id="2", v=str(turn)))
    left = hub.rows(r"SELECT count(*) FROM pg_class WHERE relname LIKE 'towline\_%\_rows'")
    assert left == [(2,)]
    for n in range(4):
        assert hub.rows(f"SELECT * FROM hub.t{n} ORDER BY id") == [(1, "2"), (2, "2")]


@pytest.mark.parametrize("staged", [100, 20000])
def test_keys_are_looked_up_in_the_index(hub: Hub, staged: int) -> None:
    """Deletes and updates of staged keys do not read a large target, whatever the number of keys."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.sql.execute("INSERT INTO hub.item SELECT g, g::text, repeat('x', 300) FROM generate_series(1, 400000) g")
    hub.sql.execute("ANALYZE hub.item")
    target = hub.target()
    connection = target._session.connection
    route, relation = hub.routes[0], hub.relations["item"]
    columns = stage.stage_columns(relation.columns, binary=True)
    with connection.transaction():
        connection.execute(stage.create_stage('"st"', columns).encode())
        connection.execute(b"INSERT INTO pg_temp.st SELECT g * 3, 'c', 'n' FROM generate_series(1, %d) g" % staged)
        for statement in (dialect.delete(route, "pg_temp.st"), dialect.update(route, "pg_temp.st", frozenset())):
            plan = connection.execute(f"EXPLAIN {statement}".encode()).fetchall()
            text = "\n".join(line for (line,) in plan)
            assert "Seq Scan on item" not in text and "item_pkey" in text, text


def test_several_appliers_share_a_session(hub: Hub) -> None:
    """Their stages and prepared statements do not get into each other's way."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    with connect(hub.dsn, application_name="test", side="target") as connection:
        appliers = [
            Applier(connection, pipeline="p", routes=hub.routes, relations=tuple(hub.relations.values()), direct=False)
            for _ in range(2)
        ]
        for turn, applier in enumerate(appliers * 2):
            with connection.transaction():
                applier.begin()
                low = 1000 * turn
                applier.apply(piece(hub, low, low + 300, UPDATE, START), {"src.item"}, hub.reread)
                applier.apply(piece(hub, low + 500, low + 510, UPDATE, START), {"src.item"}, hub.reread)
                assert applier.counts["src.item"].upserted == 310
    assert hub.rows("SELECT count(*) FROM hub.item") == [(1240,)]


def test_prepared_statements_outlive_errors(hub: Hub) -> None:
    """Statements that were skipped after an error, or rolled back, run again."""
    hub.set_up(ITEM + "ALTER TABLE hub.item ADD CHECK (code <> 'bad')", spec("src.item", "hub.item"))
    target: PostgresTarget = hub.target()
    for turn in range(3):
        with pytest.raises(RowRefused):
            batch = hub.batch().insert("item", id="1", code="good").update("item", id="2", code="bad")
            hub.apply(batch.delete("item", id="3"))
        target.rollback()
        hub.apply(hub.batch().insert("item", id=str(turn), code="good").delete("item", id="3"))
    hub.apply(piece(hub, 10, 60, UPDATE, START))
    assert hub.rows("SELECT count(*) FROM hub.item") == [(53,)]


def test_memory_while_a_chunk_waits(hub: Hub) -> None:
    """Of a large transaction that is applied before a chunk, the keys are kept that the chunk has, and no others."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    rows: list[Values] = [{"id": str(n), "code": "chunk"} for n in range(100)]
    load = ChunkLoad(hub.routes[0], hub.chunk("item", rows), RouteState("src.item", "streaming"))
    relation = hub.relations["item"]

    def piece(number: int) -> Piece:
        """Five thousand new rows; of those that the chunk has one in twenty."""
        ids = [*range(number, 100, 20), *range(1000 + 5000 * number, 6000 + 5000 * number)]
        frame = Frame.of_values([[n.to_bytes(4, "big"), b"stream", None] for n in ids], 3)
        ops = np.full(len(ids), UPDATE, dtype=np.uint8)
        end = START if number == 19 else None
        return Piece((RowSet(relation, frame, ops, np.arange(len(ids))),), (Transaction(7, START, WHEN, 0),), end)

    target.begin()
    target.apply(piece(0), {"src.item"}, hub.reread, load)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1, 20):
        target.apply(piece(number), {"src.item"}, hub.reread, load)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1 << 20
    target.load(load)
    target.commit(START, WHEN)
    assert hub.rows("SELECT count(*), count(*) FILTER (WHERE code = 'stream') FROM hub.item") == [(100_100, 100_100)]


def test_a_batch_of_new_rows_waits_for_few_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its COPY, for its two answers, and for that of the commit: at a distance, that is all it takes."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    waited: list[str] = []
    sync, copy = Executor.sync, Executor.copy

    def syncs(self: Executor) -> None:
        if self._sent:
            waited.append("sync")
        sync(self)

    def copies(self: Executor, statement: str, frame: Frame) -> None:
        copy(self, statement, frame)
        waited.append("copy")

    monkeypatch.setattr(Executor, "sync", syncs)
    monkeypatch.setattr(Executor, "copy", copies)
    target.begin()
    target.apply(piece(hub, 0, 1000, INSERT, START), {"src.item"}, hub.reread)
    target.commit(START, WHEN)
    assert waited == ["sync", "copy", "sync"]
    assert hub.rows("SELECT count(*) FROM hub.item") == [(1000,)]
