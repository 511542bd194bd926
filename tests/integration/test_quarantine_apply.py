"""Rows that the target refuses: what is set aside, what goes on, and what stops, over both forms of values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.apply_cases import START, Hub, Values
from tests.support.checked import spec
from tests.support.databases import create_database, drop_database
from towline.breaker import Limits
from towline.change import Format, Relation
from towline.demo.server import Server
from towline.errors import (
    QuarantineFlooded,
    QuarantineFull,
    RowRefused,
    TargetRefused,
    TargetTableChanged,
    TowlineError,
    TransactionRefused,
)
from towline.target import ChunkLoad, RouteState
from towline.target.postgres import waiting
from towline.target.postgres.writer import PostgresTarget
from towline_transforms.route import OnDelete, OnError, OnTruncate

ITEM = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.item (id int PRIMARY KEY, code text, price numeric, note text);
CREATE TABLE hub.item (id int PRIMARY KEY, code text UNIQUE, price numeric CHECK (price > 0), note text);
"""
ASIDE = {"on_error": OnError.QUARANTINE}
ITEMS = "SELECT id, code, price::text, note FROM hub.item ORDER BY id"
ENTRIES = "SELECT key::json->>'id', operation, state, sqlstate FROM towline.quarantine ORDER BY id"


@pytest.fixture(scope="module")
def database(pg18: Server) -> Iterator[str]:
    name = create_database(pg18)
    yield pg18.dsn(name)
    drop_database(pg18, name)


@pytest.fixture(params=Format, ids=lambda form: form.value)
def hub(request: pytest.FixtureRequest, database: str) -> Iterator[Hub]:
    """Both forms in which values travel."""
    hub = Hub(database, request.param)
    yield hub
    hub.close()


@pytest.fixture
def binary(database: str) -> Iterator[Hub]:
    """Where the form does not matter."""
    hub = Hub(database, Format.BINARY)
    yield hub
    hub.close()


def limited(hub: Hub, **limits: Any) -> PostgresTarget:
    """A target whose quarantine has other limits."""
    hub.limits = Limits(**limits)
    hub.targets.clear()
    return hub.target()


def balanced(hub: Hub) -> list[tuple[Any, ...]]:
    """By route: seen, quarantined; the ledger's own CHECK holds the balance."""
    return hub.rows("SELECT route, sum(seen), sum(quarantined) FROM towline.ledger GROUP BY route ORDER BY route")


#: By case: what is wrong, the SQLSTATE, and what the server says of it.
REFUSALS: dict[str, tuple[dict[str, str | None], str, str]] = {
    "check": ({"price": "-1"}, "23514", "table hub.item: constraint item_price_check: new row for relation"),
    "not null": ({"code": None}, "23502", "table hub.item: column code: null value in column"),
    "unique": ({"code": "taken"}, "23505", 'duplicate key value violates unique constraint "item_code_key"'),
    "length": ({"code": "far too long"}, "22001", "value too long for type character varying(6)"),
    "cast": ({"note": "no number"}, "22P02", 'invalid input syntax for type integer: "no number"'),
    "range": ({"price": "99999"}, "22003", "smallint out of range"),
    "route expression": ({"price": "7"}, "22012", "division by zero"),
    "trigger": ({"note": "13"}, "P0001", "unlucky bad"),
    "foreign key": ({"note": "404"}, "23503", 'violates foreign key constraint "item_note_fkey"'),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_kind_of_refusal(hub: Hub, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """The bad row is set aside with its reason, its text and its place; those around it are at the target.

    What the server says is kept with the row, and is nowhere else.
    """
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.item (id int PRIMARY KEY, code text, price numeric, note text);
        CREATE TABLE hub.parent (id int PRIMARY KEY);
        INSERT INTO hub.parent VALUES (1), (13);
        CREATE TABLE hub.item (id int PRIMARY KEY, code varchar(6) NOT NULL UNIQUE, price smallint CHECK (price > 0),
            share numeric, note int REFERENCES hub.parent);
        INSERT INTO hub.item VALUES (0, 'taken', 1, 1, 1);
        CREATE FUNCTION hub.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN IF NEW.note = 13 THEN RAISE 'unlucky %', NEW.code; END IF; RETURN NEW; END$$;
        CREATE TRIGGER refuse BEFORE INSERT ON hub.item FOR EACH ROW EXECUTE FUNCTION hub.refuse();
        """,
        spec(
            "src.item",
            "hub.item",
            "SELECT i.id, i.code, i.price::smallint AS price, 1 / (i.price - 7) AS share, i.note::int AS note "
            "FROM src.item i",
            **ASIDE,
        ),
    )
    wrong, sqlstate, said = REFUSALS[case]
    values = {"code": "bad", "price": "3", "note": "1", **wrong}
    batch = hub.batch().insert("item", id="1", code="a", price="2", note="1").insert("item", id="2", **values)
    batch.commit().insert("item", id="3", code="c", price="2", note="1")
    hub.apply(batch)
    assert hub.rows("SELECT id FROM hub.item ORDER BY id") == [(0,), (1,), (3,)]
    ((key, row, found, message, place, operation),) = hub.rows(
        "SELECT key, \"row\", sqlstate, message, position::text || ' ' || ordinal || ' ' || xid, operation "
        "FROM towline.quarantine"
    )
    assert json.loads(key) == {"id": "2"}
    assert row == {"id": "2", **values}
    assert (found, place, operation) == (sqlstate, "0/1000 1 700", "insert")
    assert message.startswith(f"SQLSTATE {sqlstate}") and said in message
    logged = str([record.__dict__ for record in caplog.records])
    assert "rows_quarantined" in logged and "unlucky" not in logged and "no number" not in logged
    assert balanced(hub) == [("src.item", 3, 1)]


def test_later_changes_of_the_row(hub: Hub) -> None:
    """What fails joins in order; a full row that succeeds, or a delete, takes the place of all before."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="-1").insert("item", id="2", code="b", price="-2"))
    hub.apply(hub.batch().update("item", id="1", code="a", price="-3").insert("item", id="3", code="c", price="1"))
    assert hub.rows(ENTRIES) == [
        ("1", "insert", "open", "23514"),
        ("2", "insert", "open", "23514"),
        ("1", "update", "open", "23514"),
    ]
    hub.targets.pop().close()  # another daemon knows it from the table
    hub.apply(hub.batch().update("item", id="1", code="a", price="5").delete("item", id="2"))
    assert [state for _, _, state, _ in hub.rows(ENTRIES)] == ["superseded"] * 3
    assert hub.rows(ITEMS) == [(1, "a", "5", None), (3, "c", "1", None)]
    assert balanced(hub) == [("src.item", 6, 3)]
    assert hub.rows("SELECT count(*) FROM towline.quarantine WHERE behind OR resolved_at IS NULL") == [(0,)]


def test_one_transaction_after_the_other_in_one_batch(hub: Hub) -> None:
    """Within a batch, too: only the last version counts where it succeeds, else each is set aside."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    batch = hub.batch().insert("item", id="1", code="a", price="-1").commit()
    hub.apply(batch.update("item", id="1", code="a", price="1").insert("item", id="2", code="b", price="1"))
    assert hub.rows(ENTRIES) == []
    batch = (
        hub.batch().update("item", id="1", code="a", price="2").commit().update("item", id="1", code="a", price="-2")
    )
    hub.apply(batch.commit().update("item", id="2", code="b", price="-3"))
    assert [key for key, *_ in hub.rows(ENTRIES)] == ["1", "2"]
    assert hub.rows(ITEMS) == [(1, "a", "2", None), (2, "b", "1", None)]


def test_columns_that_were_not_sent(hub: Hub) -> None:
    """Of a row that is behind nothing is lent: what a later change leaves out is read from the source."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="1", note="old"))
    hub.apply(hub.batch().update("item", id="1", code="a", price="-1", note="new"))
    hub.apply(hub.batch().update("item", id="1", missing="note", code="a2", price="-1"))
    assert hub.rows('SELECT operation, "row", not_sent FROM towline.quarantine ORDER BY id') == [
        ("update", {"id": "1", "code": "a", "price": "-1", "note": "new"}, []),
        ("update", {"id": "1", "code": "a2", "price": "-1"}, ["note"]),
    ]
    hub.source_rows["item"] = [{"id": "1", "code": "a3", "price": "4", "note": "new"}]
    hub.apply(hub.batch().update("item", id="1", missing="note", code="a3", price="4"))
    assert hub.rows(ITEMS) == [(1, "a3", "4", "new")]
    assert [state for _, _, state, _ in hub.rows(ENTRIES)] == ["superseded", "superseded"]
    reads = len(hub.reread_keys)
    hub.apply(hub.batch().update("item", id="1", missing="note", code="a4", price="4"))
    assert hub.rows(ITEMS) == [(1, "a4", "4", "new")] and len(hub.reread_keys) == reads


def test_keys_are_known_in_either_form(binary: Hub) -> None:
    """What was set aside while values came in binary form is found when they come as text, and the other way round."""
    hub = binary
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.odd (n numeric, at timestamptz, b bool, c char(5), f float8, u uuid, i interval, y bytea,
            a int[], v int, PRIMARY KEY (n, at, b, c, f, u, i, y, a));
        CREATE TABLE hub.odd (LIKE src.odd INCLUDING ALL, CHECK (v > 0));
        """,
        spec("src.odd", "hub.odd", **ASIDE),
    )
    key = {
        "n": "1.00", "at": "2026-01-02 03:04:05.678901+00", "b": "f", "c": "ü    ", "f": "0.1", "i": "1 mon -2 days",
        "u": "00000000-0000-0000-0000-00000000000a", "y": "\\x00ff", "a": "{1,NULL,3}",
    }  # fmt: skip
    for form in (Format.BINARY, Format.TEXT, Format.BINARY):
        hub.form = form
        hub._encoded.clear()
        hub.relations = {name: Relation(of.table, of.columns, form) for name, of in hub.relations.items()}
        while hub.targets:
            hub.targets.pop().close()
        states = hub.rows("SELECT state FROM towline.quarantine ORDER BY id")
        hub.apply(hub.batch().update("odd", **key, v="1"))
        assert hub.rows("SELECT state FROM towline.quarantine") == [("superseded",)] * len(states)
        hub.apply(hub.batch().update("odd", **key, v="-1"))
    assert {json.loads(found)["c"] for (found,) in hub.rows("SELECT key FROM towline.quarantine")} == {"ü    "}
    assert len(hub.rows("SELECT DISTINCT key FROM towline.quarantine")) == 1


def test_a_change_of_key(hub: Hub) -> None:
    """The old key's row goes; the new row is set aside under its key, whole or with what was not sent."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="1", note="n").insert("item", id="2", price="2"))
    batch = hub.batch().rekey("item", {"id": "1"}, id="10", code="a", price="-1", missing="note")
    hub.source_rows["item"] = [{"id": "10", "code": "a", "price": "-1", "note": "n"}]
    hub.apply(batch.insert("item", id="3", price="3"))
    assert hub.rows(ITEMS) == [(2, None, "2", None), (3, None, "3", None)]
    assert hub.rows('SELECT key, "row", not_sent FROM towline.quarantine') == [
        ('{"id": "10"}', {"id": "10", "code": "a", "price": "-1"}, ["note"])
    ]
    hub.source_rows["item"] = [{"id": "11", "code": "a", "price": "1", "note": "n"}]
    hub.apply(hub.batch().rekey("item", {"id": "10"}, id="11", code="a", price="1", missing="note"))
    assert hub.rows(ITEMS) == [(2, None, "2", None), (3, None, "3", None), (11, "a", "1", "n")]
    assert hub.rows(ENTRIES) == [("10", "update", "superseded", "23514")]
    assert balanced(hub) == [("src.item", 7, 1)]


def test_a_delete_that_is_refused(hub: Hub) -> None:
    """Something at the target still refers to the row. What comes after its delete takes that one's place."""
    hub.set_up(ITEM + "CREATE TABLE hub.child (item int REFERENCES hub.item)", spec("src.item", "hub.item", **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="1"))
    hub.sql.execute("INSERT INTO hub.child VALUES (1)")
    hub.apply(hub.batch().delete("item", id="1").insert("item", id="2", code="b", price="1"))
    assert hub.rows(ENTRIES) == [("1", "delete", "open", "23503")]
    assert hub.rows('SELECT "row" FROM towline.quarantine') == [(None,)]
    hub.apply(hub.batch().insert("item", id="1", code="again", price="1"))
    assert hub.rows(ENTRIES) == [("1", "delete", "superseded", "23503")]


def test_a_row_that_was_not_deleted_comes_again(binary: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that the route leaves out, among many new rows, which cannot be at the target: this one is."""
    hub = binary
    monkeypatch.setattr("towline.target.postgres.direct.FEW", 10)
    select = "SELECT id, code, price, note FROM src.item WHERE note IS DISTINCT FROM 'draft'"
    route = spec("src.item", "hub.item", select, name="no drafts", **ASIDE)
    hub.set_up(ITEM + "CREATE TABLE hub.child (item int REFERENCES hub.item)", route)
    hub.apply(hub.batch().insert("item", id="1", code="a", price="1"))
    hub.sql.execute("INSERT INTO hub.child VALUES (1)")
    hub.apply(hub.batch().delete("item", id="1"))
    new = hub.batch()
    for number in range(1, 31):
        new.insert("item", id=str(number), code=f"c{number}", price="1", note="draft" if number == 1 else None)
    hub.apply(new)
    assert hub.rows(ENTRIES) == [("1", "delete", "open", "23503"), ("1", "insert", "open", "23503")]
    hub.sql.execute("DELETE FROM hub.child")
    hub.apply(hub.batch().update("item", id="1", code="a", price="2", note="draft"))
    assert hub.rows("SELECT count(*), min(id) FROM hub.item") == [(29, 2)]
    assert {state for _, _, state, _ in hub.rows(ENTRIES)} == {"superseded"}


def test_deletes_that_the_target_ignores(binary: Hub) -> None:
    """Where deleted rows are kept, the last version of one is still due."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", on_delete=OnDelete.IGNORE, **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="-1"))
    hub.apply(hub.batch().delete("item", id="1"))
    assert hub.rows(ENTRIES) == [("1", "insert", "open", "23514")]


def test_truncate_supersedes(binary: Hub) -> None:
    """The target is emptied: nothing that was set aside is due any more."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", on_truncate=OnTruncate.DELETE, **ASIDE))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="-1"))
    hub.apply(hub.batch().truncate("item").insert("item", id="2", code="b", price="1"))
    assert hub.rows(ENTRIES) == [("1", "insert", "superseded", "23514")]


def test_of_two_routes_one_refuses(hub: Hub) -> None:
    """The other one applies the row. When it is the one that halts that refuses, nothing of the batch is kept."""
    hub.set_up(
        ITEM + "CREATE TABLE hub.copy (LIKE hub.item INCLUDING INDEXES)",
        spec("src.item", "hub.item", name="strict", **ASIDE),
        spec("src.item", "hub.copy", name="lax"),
    )
    hub.apply(hub.batch().insert("item", id="1", code="a", price="-1").insert("item", id="2", code="b", price="1"))
    assert hub.rows(ITEMS) == [(2, "b", "1", None)]
    assert hub.rows("SELECT id FROM hub.copy ORDER BY id") == [(1,), (2,)]
    assert hub.rows("SELECT route, key FROM towline.quarantine") == [("strict", '{"id": "1"}')]
    assert balanced(hub) == [("lax", 2, 0), ("strict", 2, 1)]
    hub.sql.execute("ALTER TABLE hub.copy ADD CHECK (price <> 3)")
    bad = hub.batch().insert("item", id="3", code="c", price="-1").commit().insert("item", id="4", code="d", price="3")
    with pytest.raises(RowRefused, match=r"lax.*0/1100"):
        hub.apply(bad)
    hub.targets[0].rollback()
    assert len(hub.rows(ENTRIES)) == 1 and balanced(hub) == [("lax", 2, 0), ("strict", 2, 1)]
    hub.apply(hub.batch().update("item", id="1", code="a", price="1"))  # what was rolled back is forgotten
    assert hub.rows(ENTRIES) == [("1", "insert", "superseded", "23514")]


def test_rows_of_a_chunk(hub: Hub) -> None:
    """The first copy goes on without its bad rows, too; copied again, they are superseded."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    target = hub.target()
    for price in ("-1", "1"):
        rows: list[Values] = [
            {"id": str(n), "code": f"c{n}", "price": price if n == 500 else "1"} for n in range(1, 1001)
        ]
        target.begin()
        target.load(ChunkLoad(hub.routes[0], hub.chunk("item", rows, 0x1800), RouteState("src.item", "streaming")))
        target.commit(0x2000, None)
        assert hub.rows("SELECT count(*) FROM hub.item") == [(999 if price == "-1" else 1000,)]
    assert hub.rows("SELECT key, position::text, operation, xid, state FROM towline.quarantine") == [
        ('{"id": "500"}', "0/1800", "snapshot", None, "superseded")
    ]
    assert balanced(hub) == [("src.item", 2000, 1)]


FAMILY = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.parent (id int PRIMARY KEY, name text);
CREATE TABLE src.child (id int PRIMARY KEY, parent int);
CREATE TABLE hub.parent (id int PRIMARY KEY, name text CHECK (name <> 'bad'));
CREATE TABLE hub.child (id int PRIMARY KEY, parent int REFERENCES hub.parent {});
"""


@pytest.mark.parametrize("deferred", ["", "DEFERRABLE INITIALLY DEFERRED", "DEFERRABLE"])
def test_rows_that_refer_to_what_was_set_aside(hub: Hub, deferred: str) -> None:
    """Their foreign key fails at once or at the end of the transaction; either way it is they who are set aside."""
    hub.set_up(
        FAMILY.format(deferred), spec("src.parent", "hub.parent", **ASIDE), spec("src.child", "hub.child", **ASIDE)
    )
    batch = hub.batch().insert("parent", id="1", name="good").insert("child", id="11", parent="1").commit()
    batch.insert("child", id="22", parent="2").insert("child", id="13", parent="1")
    batch.insert("parent", id="2", name="bad")
    batch.commit().insert("child", id="33", parent="3").insert("parent", id="3", name="late")
    batch.commit().insert("child", id="14", parent="1")
    batch.commit().insert("child", id="44", parent="4").insert("parent", id="5", name="bad")
    batch.insert("parent", id="4", name="late, and beside a bad one")
    hub.apply(batch)
    assert hub.rows("SELECT id FROM hub.parent ORDER BY id") == [(1,), (3,), (4,)]
    assert hub.rows("SELECT id FROM hub.child ORDER BY id") == [(11,), (13,), (14,), (33,), (44,)]
    found = {key: (state, code) for key, _, state, code in hub.rows(ENTRIES)}
    assert found == {"2": ("open", "23514"), "22": ("open", "23503"), "5": ("open", "23514")}
    assert dict((route, seen) for route, seen, _ in balanced(hub)) == {"src.child": 6, "src.parent": 5}


def test_a_commit_that_is_refused_halts_where_routes_halt(binary: Hub) -> None:
    """And where the transaction is larger than a piece, since its rows are no longer at hand."""
    hub = binary
    specs = spec("src.parent", "hub.parent", **ASIDE), spec("src.child", "hub.child")
    hub.set_up(FAMILY.format("DEFERRABLE"), *specs)
    batch = hub.batch().insert("parent", id="1", name="bad").commit().insert("child", id="2", parent="1")
    with pytest.raises(RowRefused, match=r"src\.child.*0/1100.*ForeignKeyViolation"):
        hub.apply(batch)
    hub.targets[0].rollback()
    assert hub.rows(ENTRIES) == []
    hub.targets[0].begin()
    for number in ("3", "4"):
        piece = hub.batch().insert("child", id=number, parent="9").piece(None if number == "3" else START)
        hub.targets[0].apply(piece, {"src.child"}, hub.reread)
    with pytest.raises(TransactionRefused):
        hub.targets[0].commit(START, None)


def test_the_end_of_what_is_deferred_may_be_waited_for(binary: Hub) -> None:
    """Inside a transaction a row may come before what it refers to, change again, and go: only the last counts."""
    hub = binary
    hub.set_up(
        FAMILY.format("DEFERRABLE"), spec("src.parent", "hub.parent", **ASIDE), spec("src.child", "hub.child", **ASIDE)
    )
    batch = hub.batch().insert("child", id="1", parent="5").insert("child", id="2", parent="6")
    batch.insert("child", id="3", parent="404").update("child", id="1", parent="6").delete("child", id="2")
    batch.insert("parent", id="6", name="six")
    hub.apply(batch)
    assert hub.rows("SELECT id, parent FROM hub.child") == [(1, 6)]
    assert hub.rows(ENTRIES) == [("3", "insert", "open", "23503")]
    assert balanced(hub) == [("src.child", 5, 1), ("src.parent", 1, 0)]


def test_a_stage_that_was_made_and_undone(hub: Hub) -> None:
    """The first rows of a session, which make its stage, are refused; the next piece of the transaction finds none."""
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    pieces = [hub.batch(), hub.batch()]
    for base, batch in zip((0, 1000), pieces, strict=True):
        for number in range(base + 1, base + 300):
            batch.insert("item", id=str(number), price="1")
        batch.insert("item", id=str(base + 300), price="-1")
    hub.apply(pieces[0].piece(None), pieces[1])
    assert hub.rows("SELECT count(*) FROM hub.item") == [(598,)]
    assert hub.rows("SELECT count(*) FROM towline.quarantine") == [(2,)]


def test_a_transaction_in_pieces_is_waited_for(hub: Hub) -> None:
    """What its last piece puts right is no bad row, and what comes after the transaction is."""
    family = FAMILY.format("") + "CREATE TABLE src.note (id int PRIMARY KEY, t text);"
    family += "CREATE TABLE hub.note (id int PRIMARY KEY, t text UNIQUE);"
    tables = ("parent", "child", "note")
    hub.set_up(family, *(spec(f"src.{name}", f"hub.{name}", **ASIDE) for name in tables))
    hub.apply(hub.batch().insert("note", id="1", t="a").insert("note", id="2", t="b"))
    first = hub.batch().update("note", id="1", t="b")
    for number in range(1, 7):
        first.insert("child", id=str(number), parent=str(number))
    second = hub.batch().delete("child", id="5").update("child", id="6", parent="1")
    second.insert("parent", id="1", name="one").insert("parent", id="4", name="bad")
    third = hub.batch().update("note", id="2", t="c").insert("parent", id="2", name="two")
    third.commit().insert("parent", id="3", name="too late").insert("child", id="7", parent="404")
    fourth = hub.batch().insert("child", id="8", parent="9")
    hub.apply(first.piece(None), second.piece(None), third.piece(None), fourth)
    assert hub.rows("SELECT id, parent FROM hub.child ORDER BY id") == [(1, 1), (2, 2), (6, 1)]
    assert hub.rows("SELECT id, t FROM hub.note ORDER BY id") == [(1, "b"), (2, "c")]
    assert hub.rows("SELECT id FROM hub.parent ORDER BY id") == [(1,), (2,), (3,)]
    found = {key: (code, ordinal) for key, code, ordinal in hub.rows(
        "SELECT key::json->>'id', sqlstate, ordinal FROM towline.quarantine WHERE route <> 'src.parent'"
    )}  # fmt: skip
    assert found == {"3": ("23503", 3), "4": ("23503", 4), "7": ("23503", 1), "8": ("23503", 0)}
    assert balanced(hub) == [("src.child", 10, 4), ("src.note", 4, 0), ("src.parent", 4, 1)]


def test_a_transaction_in_pieces_is_not_waited_for_without_limit(binary: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as a whole, then; and a table that is emptied meanwhile has nothing that waits."""
    hub = binary
    options = {"on_truncate": OnTruncate.DELETE, **ASIDE}
    hub.set_up(FAMILY.format(""), spec("src.parent", "hub.parent", **ASIDE), spec("src.child", "hub.child", **options))
    few = hub.batch().insert("child", id="1", parent="405").insert("child", id="2", parent="404")
    rest = hub.batch().truncate("child").insert("child", id="3", parent="1").insert("parent", id="1", name="one")
    hub.apply(few.piece(None), rest)
    assert hub.rows("SELECT id FROM hub.child") == [(3,)] and hub.rows(ENTRIES) == []
    assert hub.ledger()["src.child"] == (3, 1, 0, 2, 0)
    monkeypatch.setattr(waiting, "MOST_ROWS", 1)
    with pytest.raises(TransactionRefused, match=r"2 rows .*23503"):
        hub.apply(few.piece(None))
    hub.targets[0].rollback()
    hub.apply(hub.batch().insert("child", id="9", parent="1"))
    assert hub.rows("SELECT id FROM hub.child ORDER BY id") == [(3,), (9,)] and hub.rows(ENTRIES) == []


def test_sensitive_columns_are_masked(hub: Hub) -> None:
    """Their values are not kept; what another route's columns hold is not kept either."""
    hub.set_up(
        ITEM + "CREATE TABLE hub.other (id int PRIMARY KEY, note text)",
        spec(
            "src.item",
            "hub.item",
            "SELECT i.id, left(i.code, i.code::int) AS code, i.price FROM src.item i",
            sensitive=("code",),
            **ASIDE,
        ),
        spec("src.item", "hub.other", "SELECT i.id, i.note FROM src.item i", name="other"),
    )
    hub.apply(hub.batch().insert("item", id="1", code="secret", price="-1", note="hidden"))
    assert hub.rows('SELECT "row", masked FROM towline.quarantine') == [
        ({"id": "1", "code": "***", "price": "-1"}, ["code"])
    ]
    ((everything,),) = hub.rows("SELECT string_agg(q::text, '') FROM towline.quarantine q")
    assert "secret" not in everything and "hidden" not in everything
    assert hub.rows("SELECT message FROM towline.quarantine") == [("SQLSTATE 22P02 (InvalidTextRepresentation)",)]


def test_too_large_a_share(binary: Hub) -> None:
    """It is not the rows then: the batch is given up, and nothing of it is in the quarantine."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    limited(hub, max_share=0.1, min_rows=100)
    batch = hub.batch()
    for number in range(120):
        batch.insert("item", id=str(number), code=f"c{number}", price="-1" if number % 4 == 0 else "1")
    with pytest.raises(QuarantineFlooded, match="23514"):
        hub.apply(batch)
    hub.targets[0].rollback()
    assert hub.rows(ENTRIES) == [] and hub.rows(ITEMS) == [] and balanced(hub) == []
    few = hub.batch()
    for number in range(10):
        few.insert("item", id=str(number), code=f"c{number}", price="-1")
    hub.apply(few)
    assert len(hub.rows(ENTRIES)) == 10


def test_too_many_in_the_quarantine(binary: Hub) -> None:
    """The limit holds over many batches, and over daemons."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    for number in range(3):
        limited(hub, max_open=3)
        hub.apply(hub.batch().insert("item", id=str(number), code=f"c{number}", price="-1"))
        hub.targets[0].close()
    limited(hub, max_open=3)
    with pytest.raises(QuarantineFull):
        hub.apply(hub.batch().insert("item", id="9", code="c9", price="-1"))
    hub.targets[0].rollback()
    hub.apply(hub.batch().update("item", id="1", code="c1", price="1"))
    assert len(hub.rows(ENTRIES)) == 3


def test_one_row_that_changes_often(binary: Hub) -> None:
    """It is one bad row among many, and takes the room of one; of its changes the first ones and the last are kept."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    limited(hub, max_open=2)
    batch = hub.batch()
    for number in range(100):
        batch.insert("item", id=str(number), code=f"c{number}", price="1")
    hub.apply(batch)
    for begin in (0, 75):
        batch = hub.batch()
        for number in range(begin, begin + 75):
            batch.commit().update("item", id="1", code=f"hot{number}", price="-1")
        hub.apply(batch)
        hub.targets.pop().close()  # another daemon does not take them for many, either
        limited(hub, max_open=2)
    states = "SELECT state, behind, count(*) FROM towline.quarantine GROUP BY state, behind ORDER BY state"
    assert hub.rows(states) == [("open", True, 100), ("superseded", False, 50)]
    kept = [row["code"] for (row,) in hub.rows("""SELECT "row" FROM towline.quarantine WHERE behind ORDER BY id""")]
    assert kept == [f"hot{number}" for number in (*range(99), 149)]
    committed = hub.apply(hub.batch().insert("item", id="200", code="x", price="-1"))
    assert committed.quarantine == {"src.item": 2}
    with pytest.raises(QuarantineFull):
        hub.apply(hub.batch().insert("item", id="201", code="y", price="-1"))


def test_many_bad_rows_over_many_daemons(binary: Hub) -> None:
    """Each has few of them, and none remembers the one before; the control tables do, until people have acted."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))

    def ninety(first: int, price: str) -> None:
        limited(hub)
        batch = hub.batch()
        for number in range(first, first + 90):
            batch.insert("item", id=str(number), code=f"c{number}", price=price)
        try:
            hub.apply(batch)
        finally:
            hub.targets.pop().close()

    ninety(0, "-1")
    with pytest.raises(QuarantineFlooded, match="last 180 changes"):
        ninety(100, "-1")
    assert len(hub.rows(ENTRIES)) == 90
    ninety(100, "1")
    limited(hub)
    with pytest.raises(QuarantineFlooded):
        hub.apply(hub.batch().insert("item", id="300", price="-1"))
    hub.targets.pop().close()
    hub.sql.execute("UPDATE towline.quarantine SET state = 'discarded'")
    limited(hub)
    hub.apply(hub.batch().insert("item", id="300", price="-1"))


def test_a_breaker_outlives_attempts(binary: Hub) -> None:
    """What it remembers itself is not read again; what another daemon did meanwhile is."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    target = limited(hub, min_rows=5)
    for number in range(4):
        hub.apply(hub.batch().insert("item", id=str(number), price="-1"))
    hub.sql.execute("UPDATE towline.quarantine SET state = 'discarded'")
    target.close()
    hub.targets.clear()
    again = hub.closed_target()
    again._breaker = target._breaker
    assert again.acquire(5)
    again.open()
    with pytest.raises(QuarantineFlooded):
        hub.apply(hub.batch().insert("item", id="9", price="-1"))


GUARD = """
CREATE FUNCTION hub.guard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN {} RETURN NEW; END$$;
CREATE TRIGGER guard BEFORE INSERT ON hub.item FOR EACH ROW EXECUTE FUNCTION hub.guard()
"""
#: By case: what happens to the target, and the error.
SCHEMA: dict[str, tuple[str, type[TowlineError], str]] = {
    "column": ("ALTER TABLE hub.item DROP note", TargetTableChanged, "42703"),
    "table": ("ALTER TABLE hub.item RENAME TO moved", TargetTableChanged, "42P01"),
    "a rule (0A)": ("CREATE RULE r AS ON UPDATE TO hub.item DO INSTEAD NOTHING", TargetTableChanged, "0A000"),
    "a trigger's table": (GUARD.format("INSERT INTO hub.audit VALUES (NEW.id);"), TargetTableChanged, "42P01"),
    "a trigger's privilege": (
        "CREATE TABLE hub.audit (id int); DROP ROLE IF EXISTS towline_guard; CREATE ROLE towline_guard; "
        "GRANT ALL ON SCHEMA hub TO towline_guard; "
        + GUARD.format("INSERT INTO hub.audit VALUES (NEW.id);")
        + "; ALTER FUNCTION hub.guard() OWNER TO towline_guard",
        TargetRefused,
        "42501",
    ),
}


@pytest.mark.parametrize("case", SCHEMA)
def test_what_is_not_a_row_error(binary: Hub, case: str) -> None:
    """What every row is refused for is nothing that rows can be set aside for."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    hub.target()
    script, error, sqlstate = SCHEMA[case]
    hub.sql.execute(script.encode())
    with pytest.raises(error, match=sqlstate):
        hub.apply(hub.batch().insert("item", id="1", code="a", price="1"))
    hub.targets[0].rollback()
    assert hub.rows(ENTRIES) == []


def test_policies_that_hold_for_the_role(binary: Hub) -> None:
    """Row-level security is about all rows: the session is told to raise rather than to filter."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    hub.sql.execute(
        "CREATE ROLE towline_policed LOGIN; GRANT ALL ON SCHEMA hub, towline TO towline_policed; "
        "GRANT ALL ON ALL TABLES IN SCHEMA hub, towline TO towline_policed; "
        "ALTER TABLE hub.item ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON hub.item USING (true) WITH CHECK (id < 5)"
    )
    try:
        hub.dsn = hub.dsn.replace("user=postgres", "user=towline_policed")
        with pytest.raises(TargetRefused, match="42501"):
            hub.apply(hub.batch().insert("item", id="1", price="1").insert("item", id="9", price="1"))
        hub.targets.pop().close()
        assert hub.rows(ENTRIES) == []
    finally:
        hub.sql.execute("DROP OWNED BY towline_policed; DROP ROLE towline_policed")


@pytest.mark.parametrize("rows", [3, 1000])
def test_what_looks_like_the_schema_and_is_a_row(hub: Hub, rows: int) -> None:
    """A cast of a value to a name's type says that there is no such table; a function that it has no such feature."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.item (id int PRIMARY KEY, t text, n int);
        CREATE TABLE hub.item (id int PRIMARY KEY, t regclass, n int);
        CREATE FUNCTION hub.guard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF NEW.n = 1 THEN RAISE 'not supported' USING ERRCODE = '0A000'; END IF;
            IF NEW.n = 2 THEN RAISE 'not for you' USING ERRCODE = '42501'; END IF;
            RETURN NEW; END$$;
        CREATE TRIGGER guard BEFORE INSERT ON hub.item FOR EACH ROW EXECUTE FUNCTION hub.guard();
        """,
        spec("src.item", "hub.item", "SELECT i.id, i.t::regclass AS t, i.n FROM src.item i", **ASIDE),
    )
    batch = hub.batch()
    for number in range(10, 10 + rows):
        batch.insert("item", id=str(number), t="hub.item", n="0")
    batch.insert("item", id="1", t="hub.secret", n="0").insert("item", id="2", t="hub.item", n="1")
    hub.apply(batch.insert("item", id="3", t="hub.item", n="2"))
    assert hub.rows(ENTRIES) == [
        ("1", "insert", "open", "42P01"),
        ("2", "insert", "open", "0A000"),
        ("3", "insert", "open", "42501"),
    ]
    assert hub.rows("SELECT count(*) FROM hub.item") == [(rows,)]
    ((message,),) = hub.rows("SELECT message FROM towline.quarantine WHERE sqlstate = '42P01'")
    assert message == 'SQLSTATE 42P01 (UndefinedTable): relation "hub.secret" does not exist'


def test_halt_is_the_default(binary: Hub) -> None:
    """Nothing is set aside that the pipeline file does not say so of."""
    hub = binary
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    with pytest.raises(RowRefused, match="0/1100"):
        hub.apply(hub.batch().insert("item", id="1", price="1").commit().insert("item", id="2", price="-1"))


def test_the_cost_of_finding_a_few_bad_rows(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred bad rows in fifty thousand: a bounded number of statements for each, and few times the rows staged."""
    hub = Hub(database, Format.TEXT)
    hub.set_up(ITEM, spec("src.item", "hub.item", **ASIDE))
    target = hub.target()
    executor = target._executing()
    statements = rows = 0
    run, copy = executor.run, executor.copy

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal statements
        statements += 1
        return run(*arguments, **options)

    def copying(statement: str, frame: Any) -> None:
        nonlocal rows
        rows += len(frame)
        copy(statement, frame)

    monkeypatch.setattr(executor, "run", counting)
    monkeypatch.setattr(executor, "copy", copying)
    total, bad = 50_000, 100
    chunk = hub.chunk(
        "item",
        [{"id": str(n), "code": str(n), "price": "-1" if n % (total // bad) == 77 else "1"} for n in range(total)],
    )
    target.begin()
    target.load(ChunkLoad(hub.routes[0], chunk, RouteState("src.item", "streaming")))
    target.commit(START, None)
    assert hub.rows("SELECT count(*) FROM hub.item") == [(total - bad,)]
    assert hub.rows("SELECT count(*) FROM towline.quarantine WHERE state = 'open'") == [(bad,)]
    hub.close()
    assert statements / bad < 120
    assert rows / total < 12
