"""Every way of staging gives the same rows: one suite over all of them, and over both forms of values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.apply_cases import START, WHEN, Hub
from tests.support.checked import spec
from tests.support.databases import create_database, drop_database
from towline.change import Format
from towline.demo.server import Server
from towline.errors import RowRefused, SourceTruncated
from towline.target import ChunkLoad, RouteState
from towline.target.postgres import staging
from towline.target.postgres.staging import Path
from towline_transforms.route import OnDelete, OnTruncate

ITEM = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.item (id int PRIMARY KEY, code text, price numeric, note text);
CREATE TABLE hub.item (id int PRIMARY KEY, code text UNIQUE, price numeric, note text);
"""

WAYS = {
    "text-arrays": (Format.TEXT, Path.ARRAYS),
    "text-values": (Format.TEXT, Path.VALUES),
    "text-table": (Format.TEXT, Path.TABLE),
    "binary-arrays": (Format.BINARY, Path.ARRAYS),
    "binary-values": (Format.BINARY, Path.VALUES),
    "binary-table": (Format.BINARY, Path.TABLE),
    "binary-chosen": (Format.BINARY, None),
}


@pytest.fixture(scope="module")
def database(pg18: Server) -> Iterator[str]:
    """A database for all tests of the file; each empties it."""
    name = create_database(pg18)
    yield pg18.dsn(name)
    drop_database(pg18, name)


@pytest.fixture(params=WAYS)
def hub(request: pytest.FixtureRequest, database: str) -> Iterator[Hub]:
    form, path = WAYS[request.param]
    hub = Hub(database, form, path)
    yield hub
    hub.close()


@pytest.fixture
def binary(database: str) -> Iterator[Hub]:
    """The ways that are chosen by default."""
    hub = Hub(database, Format.BINARY)
    yield hub
    hub.close()


ITEMS = "SELECT id, code, price::text, note FROM hub.item ORDER BY id"


def test_inserts_updates_deletes(hub: Hub) -> None:
    """The last version of each key is what the target has; everything is accounted for."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.apply(hub.batch().insert("item", id="1", code="a", price="1.0").insert("item", id="2", code="b"))
    batch = hub.batch().update("item", id="1", code="c", price="1.00", note="").delete("item", id="2")
    batch.insert("item", id="3", code="d").update("item", id="3", code="e", price="NaN")
    hub.apply(batch)
    assert hub.rows(ITEMS) == [(1, "c", "1.00", ""), (3, "e", "NaN", None)]
    assert hub.ledger() == {"src.item": (6, 4, 1, 1, 0)}


def test_applying_again_changes_nothing(hub: Hub) -> None:
    """A batch may be applied twice: rows that are equal are not written."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    batch = hub.batch().insert("item", id="1", code="a").insert("item", id="2", code="b").delete("item", id="7")
    hub.apply(batch)
    before = hub.rows("SELECT xmin, ctid, * FROM hub.item ORDER BY id")
    hub.apply(batch)
    assert hub.rows("SELECT xmin, ctid, * FROM hub.item ORDER BY id") == before


def test_values_that_are_equal_but_not_the_same(hub: Hub) -> None:
    """1.0 becomes 1.00, one month 30 days, 0 minus zero; json keeps its spaces, and types without = work."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.odd (id int PRIMARY KEY, n numeric, i interval, f float8, j json, p point);
        CREATE TABLE hub.odd (LIKE src.odd INCLUDING ALL);
        """,
        spec("src.odd", "hub.odd"),
    )
    query = "SELECT n::text, i::text, f::text, j::text, p::text FROM hub.odd"
    for n, i, f, j, p in (
        ("1.0", "1 mon", "0", '{"a":1}', "(1,2)"),
        ("1.00", "30 days", "-0", '{"a": 1}', "(1,3)"),
    ):
        hub.apply(hub.batch().update("odd", id="1", n=n, i=i, f=f, j=j, p=p))
        assert hub.rows(query) == [(n, i, f, j, p)]


def test_keys_that_are_equal_but_not_the_same(hub: Hub) -> None:
    """A key that changes from 1.0 to 1.00 is one row."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.n (k numeric, l text, v int, PRIMARY KEY (k, l));
        CREATE TABLE hub.n (LIKE src.n INCLUDING ALL);
        """,
        spec("src.n", "hub.n"),
    )
    hub.apply(hub.batch().insert("n", k="1.0", l="x", v="1"))
    hub.apply(hub.batch().rekey("n", {"k": "1.0", "l": "x"}, k="1.00", l="x", v="1"))
    assert hub.rows("SELECT k::text, l, v FROM hub.n") == [("1.00", "x", 1)]
    hub.apply(hub.batch().update("n", k="1.00", l="x", v="2").delete("n", k="1.00", l="x"))
    assert hub.rows("SELECT * FROM hub.n") == []


def test_unchanged_toast(hub: Hub) -> None:
    """Columns that were not sent keep their value, or take that of an earlier change of the batch."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.apply(hub.batch().insert("item", id="1", code="a", note="long").insert("item", id="2", code="b", note="x"))
    batch = hub.batch().update("item", id="1", missing="note", code="a2").insert("item", id="3", code="c", note="new")
    batch.update("item", id="3", missing="note", code="c2").update("item", id="2", missing="note price", code="b2")
    hub.apply(batch)
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [
        (1, "a2", "long"),
        (2, "b2", "x"),
        (3, "c2", "new"),
    ]
    assert hub.reread_keys == []


def test_unchanged_toast_of_a_row_that_is_not_there(hub: Hub) -> None:
    """Such a row is read again from the source, all of them at once; one that is gone there is left to the change that
    tells.
    """
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.source_rows["item"] = [{"id": "1", "code": "a", "note": "long"}, {"id": "4", "code": "d", "price": "NaN"}]
    batch = hub.batch().update("item", id="1", missing="note", code="a").update("item", id="2", missing="note price")
    hub.apply(batch.update("item", id="4", unknown="price", code="d").insert("item", id="3"))
    assert hub.rows(ITEMS) == [(1, "a", None, "long"), (3, None, None, None), (4, "d", "NaN", None)]
    assert len(hub.reread_keys) == 1 and len(hub.reread_keys[0]) == 3
    assert hub.ledger() == {"src.item": (4, 3, 0, 1, 0)}


def test_key_change(hub: Hub) -> None:
    """A row whose key changes is moved, with what was not sent; also onto a key that was deleted before."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.apply(hub.batch().insert("item", id="1", code="a", note="long").insert("item", id="2", code="b", note="y"))
    batch = hub.batch().delete("item", id="2").rekey("item", {"id": "1"}, missing="note", id="2", code="a2")
    hub.apply(batch.insert("item", id="1", code="new", note="n"))
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [(1, "new", "n"), (2, "a2", "long")]
    hub.apply(hub.batch().rekey("item", {"id": "2"}, id="5", code="whole", note="w"))
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [(1, "new", "n"), (5, "whole", "w")]
    assert hub.reread_keys == []
    assert hub.ledger() == {"src.item": (8, 5, 1, 2, 0)}


def test_keys_that_change_places(hub: Hub) -> None:
    """Rows that swap their keys, with columns missing, are read again."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.apply(hub.batch().insert("item", id="1", code="a", note="A").insert("item", id="2", code="b", note="B"))
    hub.source_rows["item"] = [{"id": "1", "code": "b", "note": "B"}, {"id": "2", "code": "a", "note": "A"}]
    batch = hub.batch().rekey("item", {"id": "1"}, missing="note", id="9", code="a")
    batch.rekey("item", {"id": "2"}, missing="note", id="1", code="b")
    hub.apply(batch.rekey("item", {"id": "9"}, missing="note", id="2", code="a"))
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [(1, "b", "B"), (2, "a", "A")]


def test_swap_of_unique_values(hub: Hub) -> None:
    """Values of a unique column that wander between rows break sets, and are replayed in order."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    first = hub.batch()
    for number in range(12):
        first.insert("item", id=str(number), code=f"c{number}")
    hub.apply(first)
    batch = hub.batch().update("item", id="3", code="tmp").update("item", id="4", code="c3")
    batch.update("item", id="3", code="c4").insert("item", id="20", code="c20").delete("item", id="5")
    hub.apply(batch.insert("item", id="21", code="c5").update("item", id="20", code="last"))
    found = dict(hub.rows("SELECT id, code FROM hub.item WHERE id IN (3, 4, 5, 20, 21)"))
    assert found == {3: "c4", 4: "c3", 20: "last", 21: "c5"}
    assert all(seen == sum(rest) for seen, *rest in hub.ledger().values())


def test_row_filter(hub: Hub) -> None:
    """Rows enter and leave a route by its WHERE; an update that does not pass deletes."""
    select = """
        SELECT s.id, upper(s.code) AS code, s.price * 2 AS price, _op || ' ' || _source AS note
        FROM src.item s WHERE s.price > 10 -- so"""
    hub.set_up(ITEM, spec("src.item", "hub.item", select, name="r"))
    batch = hub.batch().insert("item", id="1", code="a", price="11").insert("item", id="2", code="b", price="9")
    hub.apply(batch.insert("item", id="3", code="c", price="12"))
    assert hub.rows(ITEMS) == [(1, "A", "22", "insert test"), (3, "C", "24", "insert test")]
    batch = hub.batch().update("item", id="1", code="a", price="1").update("item", id="2", code="b", price="20")
    hub.apply(batch.delete("item", id="3"))
    assert hub.rows(ITEMS) == [(2, "B", "40", "update test")]
    assert hub.ledger() == {"r": (6, 3, 1, 0, 2)}


def test_row_filter_and_toast(hub: Hub) -> None:
    """Where the filter needs what was not sent, the row is read again; else only if it is wanted and not there."""
    hub.set_up(
        ITEM,
        spec(
            "src.item", "hub.item", "SELECT id, code, note FROM src.item WHERE code <> 'no' AND note <> ''", name="both"
        ),
    )
    hub.apply(hub.batch().insert("item", id="1", code="a", note="A").insert("item", id="2", code="b", note=""))
    hub.source_rows["item"] = [{"id": "1", "code": "a2", "note": "A"}, {"id": "2", "code": "b2", "note": ""}]
    hub.apply(
        hub.batch().update("item", id="1", missing="note", code="a2").update("item", id="2", missing="note", code="b2")
    )
    assert hub.rows("SELECT id, code, note FROM hub.item") == [(1, "a2", "A")]
    assert hub.ledger() == {"both": (4, 2, 0, 0, 2)}


def test_row_filter_that_does_not_need_toast(hub: Hub) -> None:
    """Rows with gaps are updated, left alone or deleted without reading them again; only one that enters is read."""
    hub.set_up(ITEM, spec("src.item", "hub.item", "SELECT id, code, note FROM src.item WHERE code <> 'no'", name="r"))
    batch = hub.batch().insert("item", id="1", code="a", note="A").insert("item", id="2", code="no", note="B")
    hub.apply(batch.insert("item", id="3", code="c", note="C").insert("item", id="4", code="no", note="D"))
    hub.source_rows["item"] = [{"id": "4", "code": "d", "note": "D"}]
    batch = (
        hub.batch().update("item", id="1", missing="note", code="a2").update("item", id="2", missing="note", code="no")
    )
    hub.apply(batch.update("item", id="3", missing="note", code="no").update("item", id="4", missing="note", code="d"))
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [(1, "a2", "A"), (4, "d", "D")]
    assert [len(keys) for keys in hub.reread_keys] == [1]
    assert hub.ledger() == {"r": (8, 4, 0, 0, 4)}


def test_two_routes_of_one_table(hub: Hub) -> None:
    """Rows are staged once, for an identity route and a SELECT with a computed key and a join at the target."""
    script = (
        ITEM
        + """
        CREATE TABLE hub.name (code text PRIMARY KEY, name text NOT NULL);
        INSERT INTO hub.name VALUES ('a', 'Anna');
        CREATE TABLE hub.named (ref varchar(10) PRIMARY KEY, name text, seen timestamptz, lsn pg_lsn, xid bigint);
        """
    )
    select = (
        "SELECT 'I-' || s.id AS ref, n.name, _commit_time AS seen, _lsn AS lsn, _xid AS xid "
        "FROM src.item AS s LEFT JOIN hub.name n ON n.code = s.code"
    )
    hub.set_up(script, spec("src.item", "hub.item"), spec("src.item", "hub.named", select, name="named"))
    hub.apply(hub.batch().insert("item", id="1", code="a").commit().insert("item", id="2", code="b"))
    query = "SELECT ref, name, seen, lsn::text, xid FROM hub.named ORDER BY 1"
    assert hub.rows(query) == [("I-1", "Anna", WHEN, "0/1000", 700), ("I-2", None, WHEN, "0/1100", 701)]
    hub.apply(hub.batch().delete("item", id="1").rekey("item", {"id": "2"}, id="3", code="a"))
    assert hub.rows("SELECT ref, name FROM hub.named") == [("I-3", "Anna")]
    assert hub.rows("SELECT id FROM hub.item") == [(3,)]


def test_foreign_keys(hub: Hub) -> None:
    """Parents are inserted before children and deleted after them, whatever the order of the row sets."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.parent (id int PRIMARY KEY, up int); CREATE TABLE src.child (id int PRIMARY KEY, parent int);
        CREATE TABLE hub.parent (id int PRIMARY KEY, up int REFERENCES hub.parent);
        CREATE TABLE hub.child (id int PRIMARY KEY, parent int REFERENCES hub.parent);
        """,
        spec("src.child", "hub.child"),
        spec("src.parent", "hub.parent"),
    )
    hub.apply(hub.batch().insert("child", id="1", parent="1").insert("parent", id="1", up="2").insert("parent", id="2"))
    hub.apply(
        hub.batch()
        .insert("parent", id="3")
        .update("child", id="1", parent="3")
        .delete("parent", id="1")
        .delete("parent", id="2")
    )
    assert hub.rows("SELECT id, parent FROM hub.child") == [(1, 3)]
    hub.apply(hub.batch().delete("child", id="1").delete("parent", id="3"))
    assert hub.rows("SELECT * FROM hub.parent") == []


def test_on_delete_mark(hub: Hub) -> None:
    """A delete writes the time of its commit, or true; a row that comes back is unmarked."""
    hub.set_up(
        ITEM
        + """
        ALTER TABLE hub.item ADD gone_at timestamptz;
        CREATE TABLE hub.flag (id int PRIMARY KEY, gone boolean NOT NULL);
        """,
        spec("src.item", "hub.item", on_delete=OnDelete.MARK, mark_column="gone_at", on_truncate=OnTruncate.DELETE),
        spec(
            "src.item",
            "hub.flag",
            "SELECT id FROM src.item WHERE price IS NULL",
            name="flag",
            on_delete=OnDelete.MARK,
            mark_column="gone",
            on_truncate=OnTruncate.DELETE,
        ),
    )
    hub.apply(hub.batch().insert("item", id="1").insert("item", id="2").insert("item", id="3"))
    hub.apply(hub.batch().delete("item", id="1").update("item", id="2", price="1"))
    assert hub.rows("SELECT id, gone_at FROM hub.item ORDER BY id") == [(1, WHEN), (2, None), (3, None)]
    assert hub.rows("SELECT id, gone FROM hub.flag ORDER BY id") == [(1, True), (2, True), (3, False)]
    hub.apply(hub.batch().insert("item", id="1").update("item", id="2", missing="note"))
    assert hub.rows("SELECT id, gone_at FROM hub.item ORDER BY id") == [(1, None), (2, None), (3, None)]
    assert hub.rows("SELECT id, gone FROM hub.flag ORDER BY id") == [(1, False), (2, False), (3, False)]
    hub.apply(hub.batch().truncate("item"))
    assert hub.rows("SELECT count(*) FROM hub.item WHERE gone_at IS NOT NULL") == [(3,)]
    assert hub.rows("SELECT count(*) FROM hub.flag WHERE gone") == [(3,)]


def test_on_delete_ignore(hub: Hub) -> None:
    """Deletes are counted and leave the rows; a row whose key changes is there twice, whole."""
    hub.set_up(ITEM, spec("src.item", "hub.item", on_delete=OnDelete.IGNORE))
    hub.apply(hub.batch().insert("item", id="1", code="a", note="n").insert("item", id="2", code="b"))
    hub.source_rows["item"] = [{"id": "3", "code": "c", "note": "n"}]
    hub.apply(hub.batch().delete("item", id="2").rekey("item", {"id": "1"}, missing="note", id="3", code="c"))
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [(1, "a", "n"), (2, "b", None), (3, "c", "n")]
    assert hub.ledger() == {"src.item": (5, 3, 0, 0, 2)}


@pytest.mark.parametrize("mode", OnTruncate)
def test_truncate(hub: Hub, mode: OnTruncate) -> None:
    """TRUNCATE empties the target, is ignored, or stops the pipeline."""
    hub.set_up(ITEM, spec("src.item", "hub.item", on_truncate=mode))
    hub.apply(hub.batch().insert("item", id="1", code="a"))
    batch = hub.batch().truncate("item").insert("item", id="2", code="b")
    if mode is OnTruncate.HALT:
        with pytest.raises(SourceTruncated, match=r"src\.item was truncated.*0/1000"):
            hub.apply(batch)
        hub.targets[0].rollback()
        assert hub.rows("SELECT id FROM hub.item") == [(1,)]
        return
    hub.apply(batch)
    assert hub.rows("SELECT id FROM hub.item ORDER BY id") == ([(2,)] if mode is OnTruncate.DELETE else [(1,), (2,)])


def test_refused_row_is_named(hub: Hub) -> None:
    """The row that the target refuses is found among others; the error has names and codes, and no values."""
    hub.set_up(
        ITEM + "ALTER TABLE hub.item ADD CHECK (price < 100)",
        spec("src.item", "hub.item"),
    )
    hub.target()
    batch = hub.batch()
    for number in range(9):
        batch.insert("item", id=str(number), price="5" if number != 6 else "777").commit()
    with pytest.raises(RowRefused) as caught:
        hub.apply(batch)
    assert caught.value.sqlstate == "23514"
    text = str(caught.value)
    assert "route src.item: hub.item" in text and "0/1600" in text and "(key columns: id)" in text
    assert "777" not in text
    hub.targets[0].rollback()
    assert hub.rows("SELECT * FROM hub.item") == []
    hub.apply(hub.batch().insert("item", id="1"))
    assert hub.rows("SELECT id FROM hub.item") == [(1,)]


@pytest.mark.parametrize("value", [b"a\0b", b"\xff\xfe"])
def test_text_that_the_target_cannot_hold(hub: Hub, value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NUL, or bytes that are not UTF-8, are a refused row like any other."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.target()
    plain = hub.encode

    def encode(sql_type: str, text: str | None) -> bytes | None:
        return value if text == "bad" else plain(sql_type, text)

    monkeypatch.setattr(hub, "encode", encode)
    with pytest.raises(RowRefused) as caught:
        hub.apply(hub.batch().insert("item", id="1", note="good").insert("item", id="2", note="bad"))
    assert caught.value.sqlstate in ("22021", "22P03")
    hub.targets[0].rollback()


def test_names(hub: Hub) -> None:
    """Quotes, percent signs, dollars, spaces, upper case and other alphabets in names are only names."""
    hub.set_up(
        """
        CREATE SCHEMA "Sr%s c"; CREATE SCHEMA "hub ""$1";
        CREATE TABLE "Sr%s c"."Tä%b" ("I""d" int, "$2 é" text, "order" text, "%s" text, PRIMARY KEY ("I""d", "$2 é"));
        CREATE TABLE "hub ""$1"."Tä%b" (LIKE "Sr%s c"."Tä%b" INCLUDING ALL);
        """,
        spec("Sr%s c.Tä%b", 'hub "$1.Tä%b', name="r%s"),
    )
    table = "Tä%b"
    hub.apply(hub.batch().insert(table, **{'I"d': "1", "$2 é": "x", "order": "o", "%s": "p"}))
    hub.apply(hub.batch().update(table, missing="order", **{'I"d': "1", "$2 é": "x", "%s": "q"}))
    batch = hub.batch().rekey(
        table, {'I"d': "1", "$2 é": "x"}, missing="order", **{'I"d': "2", "$2 é": "y", "%s": "100%"}
    )
    hub.apply(batch)
    assert hub.rows('SELECT * FROM "hub ""$1"."Tä%b"') == [(2, "y", "o", "100%")]
    hub.apply(hub.batch().delete(table, **{'I"d': "2", "$2 é": "y"}))
    assert hub.rows('SELECT * FROM "hub ""$1"."Tä%b"') == []


def test_arrays_and_user_types(hub: Hub) -> None:
    """Arrays are not flattened; enums, domains and composites arrive as the target's types."""
    composite = ", c src.pair" if hub.form is Format.TEXT else ""
    hub.set_up(
        f"""
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TYPE src.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN src.small AS numeric CHECK (VALUE < 10);
        CREATE TYPE src.pair AS (a int, b text);
        CREATE TABLE src.t (id int PRIMARY KEY, a int[], m src.mood, d src.small, o text {composite});
        """,
        spec("src.t", "hub.t"),
    )
    more = {"c": '(1,"x y")'} if composite else {}
    batch = hub.batch()
    for number in range(12):
        batch.insert("t", id=str(number), a="{{1,2},{3,NULL}}", m="glad", d="1.50", o="o", **more)
    hub.apply(batch)
    hub.apply(hub.batch().update("t", missing="o", id="1", a="{}", m="sad", **more))
    hub.apply(hub.batch().rekey("t", {"id": "1"}, missing="o", id="-1", a="{7}", m="sad", **more))
    columns = "a::text, m::text, d::text, o" + (", c::text" if composite else "")
    tail = ('(1,"x y")',) if composite else ()
    assert hub.rows(f"SELECT {columns} FROM hub.t WHERE id = 2") == [("{{1,2},{3,NULL}}", "glad", "1.50", "o", *tail)]
    assert hub.rows(f"SELECT {columns} FROM hub.t WHERE id = -1") == [("{7}", "sad", None, "o", *tail)]
    assert hub.rows("SELECT count(*) FROM hub.t") == [(12,)]


@pytest.mark.parametrize("hub", [way for way in WAYS if way.startswith("text")], indirect=True)
def test_values_that_a_cast_reads_otherwise(hub: Hub) -> None:
    """A regclass may be a dash, a number, or a name with quotes (OIDs do not travel); a `"char"` may be empty."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.r (id int PRIMARY KEY, c regclass, k "char", l regclass[]);
        CREATE TABLE hub.r (LIKE src.r INCLUDING ALL);
        CREATE TABLE hub."q""\\ t" ();
        """,
        spec("src.r", "hub.r", "SELECT id, c, k, l FROM src.r", name="r"),
    )
    values = ["-", "pg_class", "99999999", 'hub."q""\\ t"', None]
    batch = hub.batch()
    for number, value in enumerate(values):
        batch.insert("r", id=str(number), c=value, k="", l="{-,pg_type}")
    hub.apply(batch)
    assert hub.rows("SELECT c::text, k::text, l::text FROM hub.r ORDER BY id") == [
        (value, "", "{-,pg_type}") for value in values
    ]


def test_generated_keys(hub: Hub) -> None:
    """GENERATED ALWAYS columns take the source's values; a table may have nothing but its key."""
    hub.set_up(
        """
        CREATE SCHEMA src; CREATE SCHEMA hub;
        CREATE TABLE src.g (id int PRIMARY KEY, v text); CREATE TABLE src.k (id int PRIMARY KEY);
        CREATE TABLE hub.g (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
        CREATE TABLE hub.k (id int PRIMARY KEY);
        """,
        spec("src.g", "hub.g"),
        spec("src.k", "hub.k"),
    )
    hub.apply(hub.batch().insert("g", id="5", v="a").insert("k", id="1"))
    hub.apply(hub.batch().update("g", id="5", v="b").update("k", id="1").insert("k", id="2"))
    assert hub.rows("SELECT * FROM hub.g") == [(5, "b")]
    assert hub.rows("SELECT * FROM hub.k ORDER BY 1") == [(1,), (2,)]


def test_chunk_beside_the_stream(hub: Hub) -> None:
    """A chunk's rows are older than what the same transaction applied, and complete what that lacked."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    old: list[dict[str, str | None]] = [{"id": str(n), "code": f"c{n}", "note": f"n{n}"} for n in range(1, 7)]
    load = ChunkLoad(
        hub.routes[0], hub.chunk("item", old), RouteState("src.item", "copying", ("6",), copied=6, estimate=10)
    )
    target.begin()
    active = {"src.item"}
    batch = hub.batch().update("item", id="1", code="new", note="x").delete("item", id="2")
    batch.update("item", id="3", missing="note", code="filled").rekey("item", {"id": "4"}, id="40", code="c4", note="z")
    target.apply(batch.piece(), active, hub.reread, load)
    target.load(load)
    counts = target.commit(START + 8, WHEN).counts["src.item"]
    assert hub.rows("SELECT id, code, note FROM hub.item ORDER BY id") == [
        (1, "new", "x"),
        (3, "filled", "n3"),
        (5, "c5", "n5"),
        (6, "c6", "n6"),
        (40, "c4", "z"),
    ]
    assert hub.reread_keys == []
    assert (counts.seen, counts.upserted, counts.deleted, counts.superseded) == (11, 5, 2, 4)
    assert target.states() == {"src.item": load.state}


def test_chunk_of_a_table_that_was_truncated(hub: Hub) -> None:
    """Rows read before a TRUNCATE that the same transaction applies are not loaded."""
    hub.set_up(ITEM, spec("src.item", "hub.item", on_truncate=OnTruncate.DELETE))
    target = hub.target()
    load = ChunkLoad(hub.routes[0], hub.chunk("item", [{"id": "1"}]), RouteState("src.item", "streaming"))
    target.begin()
    target.apply(hub.batch().truncate("item").insert("item", id="2").piece(), {"src.item"}, hub.reread, load)
    target.load(load)
    target.commit(START, WHEN)
    assert hub.rows("SELECT id FROM hub.item") == [(2,)]


def test_pieces_of_one_transaction(hub: Hub) -> None:
    """Several pieces see each other's rows, and stages are not mixed up; rolled back, nothing is left."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    pieces = []
    for number in range(4):
        batch = hub.batch()
        for row in range(5):
            batch.insert("item", id=str(number * 5 + row), code=f"c{number}-{row}", note="n")
        pieces += [batch, hub.batch().update("item", missing="note", id=str(number * 5), code=f"x{number}")]
        pieces.append(hub.batch().delete("item", id=str(number * 5 + 1)))
    target.begin()
    for batch in pieces[:3]:
        target.apply(batch.piece(None), {"src.item"}, hub.reread)
    target.rollback()
    assert hub.rows("SELECT * FROM hub.item") == [] and hub.ledger() == {}
    hub.apply(*pieces)
    assert len(hub.rows(ITEMS)) == 16
    assert hub.rows("SELECT id, code, note FROM hub.item WHERE id % 5 = 0 ORDER BY id")[3] == (15, "x3", "n")
    assert hub.reread_keys == []


def test_inactive_routes_are_skipped(hub: Hub) -> None:
    """A route whose snapshot has not begun sees no changes, and has no counts."""
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    target = hub.target()
    target.begin()
    target.apply(hub.batch().insert("item", id="1").piece(), set(), hub.reread)
    assert not target.commit(START + 1, WHEN).counts
    assert hub.rows("SELECT * FROM hub.item") == []
    assert hub.rows("SELECT position::text FROM towline.checkpoint") == [("0/1001",)]


def many(hub: Hub, low: int, high: int) -> object:
    """A batch of so many new rows."""
    batch = hub.batch()
    for number in range(low, high):
        batch.insert("item", id=str(number), code=f"c{number}", price="1.50")
    return batch


def test_direct_path(binary: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """New rows are COPYed into the table; rows that are there already make it fall back, and it is not tried again at
    once.
    """
    hub = binary
    monkeypatch.setattr(staging, "FEW", 10)
    monkeypatch.setattr(staging, "FEW_VALUES", 0)
    monkeypatch.setattr("towline.target.postgres.direct.FEW", 10)
    hub.set_up(ITEM, spec("src.item", "hub.item"))
    hub.apply(many(hub, 0, 50))  # type: ignore[arg-type]
    assert not hub.rows("SELECT * FROM pg_class WHERE relname LIKE 'towline_%_rows'")
    hub.apply(many(hub, 40, 90))  # type: ignore[arg-type]
    assert hub.rows("SELECT count(*) FROM hub.item") == [(90,)]
    assert hub.rows("SELECT * FROM pg_class WHERE relname LIKE 'towline_%_rows'")
    hub.apply(many(hub, 90, 120))  # type: ignore[arg-type]
    load = ChunkLoad(
        hub.routes[0], hub.chunk("item", [{"id": str(n)} for n in range(110, 150)]), RouteState("src.item", "streaming")
    )
    target = hub.targets[0]
    target.begin()
    target.load(load)
    target.commit(START, WHEN)
    assert hub.rows("SELECT count(*), count(code) FROM hub.item") == [(150, 110)]
    assert hub.ledger() == {"src.item": (170, 170, 0, 0, 0)}


def test_new_rows_of_a_select(binary: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a SELECT makes of new rows is inserted; where rows are there already, also ones that it leaves out now, it
    falls back to merging.
    """
    hub = binary
    monkeypatch.setattr(staging, "FEW", 10)
    monkeypatch.setattr(staging, "FEW_VALUES", 0)
    monkeypatch.setattr("towline.target.postgres.direct.FEW", 10)
    select = "SELECT id, upper(code) AS code, price FROM src.item WHERE id % 2 = 0"
    hub.set_up(ITEM, spec("src.item", "hub.item", select, name="even"))
    hub.apply(many(hub, 0, 50))  # type: ignore[arg-type]
    assert hub.rows("SELECT count(*), min(code) FROM hub.item") == [(25, "C0")]
    hub.sql.execute("INSERT INTO hub.item (id) VALUES (51)")
    hub.apply(many(hub, 40, 90))  # type: ignore[arg-type]
    assert hub.rows("SELECT count(*), count(code) FROM hub.item") == [(45, 45)]
    assert hub.ledger() == {"even": (100, 50, 0, 0, 50)}


@pytest.mark.parametrize("mode", [OnTruncate.IGNORE, OnTruncate.DELETE])
def test_new_rows_that_a_select_leaves_out(binary: Hub, monkeypatch: pytest.MonkeyPatch, mode: OnTruncate) -> None:
    """They are only looked for where they can be: when a truncation of the source's table is not taken over."""
    hub = binary
    monkeypatch.setattr("towline.target.postgres.direct.FEW", 10)
    select = "SELECT id, upper(code) AS code, price FROM src.item WHERE id % 2 = 0"
    hub.set_up(ITEM, spec("src.item", "hub.item", select, name="even", on_truncate=mode))
    hub.sql.execute("INSERT INTO hub.item (id) VALUES (51)")
    hub.apply(many(hub, 40, 90))  # type: ignore[arg-type]
    assert hub.rows("SELECT count(*), count(code) FROM hub.item") == [(25 + (mode is OnTruncate.DELETE), 25)]
